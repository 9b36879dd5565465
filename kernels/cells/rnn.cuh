// RNN, pointwise: h = act(a), a = x_side + h_side; act is tanh, or relu under RK_RNN_RELU.
//
// Kept for backward: h itself, from which both slopes follow: 1 - h^2, and whether h <= 0 (which a NaN is not).

struct Cell {
  static const int kGates = 1, kKept = 1;
  static const bool kHasC = false;       // a second state, c
  static const bool kReadsH = false;     // the pointwise part reads h_{t-1}
  static const bool kSplit = false;      // the two sides' gradients differ
  static const bool kDirect = false;     // part of dh passes by the product

  static __device__ __forceinline__ void forward(const Compute* x, const Compute* u, Compute, Compute, Compute* kept,
                                                 Compute& h, Compute&) {
#if defined(RK_RNN_RELU)
    h = relu_of(x[0] + u[0]);
#else
    h = tanh_of(x[0] + u[0]);
#endif
    kept[0] = h;
  }

  static __device__ __forceinline__ void backward(const Compute* kept, Compute, Compute, Compute dh, Compute,
                                                  Compute* dx, Compute*, Compute&, Compute&) {
#if defined(RK_RNN_RELU)
    dx[0] = kept[0] <= Compute(0) ? Compute(0) : dh;
#else
    dx[0] = dh * (Compute(1) - kept[0] * kept[0]);
#endif
  }
};
