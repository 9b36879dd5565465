// RNN, pointwise: h = act(a), a = x_side + h_side. act is tanh, or relu under RK_RNN_RELU.
//
// Saved for backward: h, which gives the slope of both activations: 1 - h^2, and 0 where h <= 0. A NaN is not <= 0.

struct Cell {
  static const int kGates = 1;
  static const int kSaved = 1;              // values saved for backward, per unit and row-step
  static const bool kHasC = false;          // the cell has a cell state c
  static const bool kReadsH = false;        // the pointwise part reads h_{t-1}, so part of dh bypasses the product
  static const bool kSplits = false;        // the gradients of the input side and the hidden side differ
  static const bool kResetsBefore = false;  // r multiplies h_{t-1} before a second product

  static __device__ __forceinline__ void forward(const Compute* x, const Compute* u, Compute, Compute, Compute* saved,
                                                 Compute& h, Compute&) {
#if defined(RK_RNN_RELU)
    h = relu_of(x[0] + u[0]);
#else
    h = tanh_of(x[0] + u[0]);
#endif
    saved[0] = h;
  }

  static __device__ __forceinline__ void backward(const Compute* saved, Compute, Compute, Compute dh, Compute,
                                                  Compute* dx, Compute*, Compute&, Compute&) {
#if defined(RK_RNN_RELU)
    dx[0] = saved[0] <= Compute(0) ? Compute(0) : dh;
#else
    dx[0] = dh * (Compute(1) - saved[0] * saved[0]);
#endif
  }
};
