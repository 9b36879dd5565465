// GRU, pointwise, reset after the product: r,z = sigmoid(x + u), n = tanh(x_n + r u_n), h = (1 - z) n + z h'.
//
// Saved for backward: r,z,n and u_n here, and h' by the step. The gradient of n on the hidden side is r times that on
// the input side, hence kSplits.

struct Cell {
  static const int kGates = 3;
  static const int kSaved = 4;
  static const bool kHasC = false;
  static const bool kReadsH = true;
  static const bool kSplits = true;
  static const bool kResetsBefore = false;

  static __device__ __forceinline__ void forward(const Compute* x, const Compute* u, Compute h_prev, Compute,
                                                 Compute* saved, Compute& h, Compute&) {
    const Compute r = sigmoid_of(x[0] + u[0]);
    const Compute z = sigmoid_of(x[1] + u[1]);
    const Compute n = tanh_of(x[2] + r * u[2]);
    h = n + z * (h_prev - n);
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = u[2];
  }

  static __device__ __forceinline__ void backward(const Compute* saved, Compute h_prev, Compute, Compute dh, Compute,
                                                  Compute* dx, Compute* du, Compute& dh_direct, Compute&) {
    const Compute r = saved[0];
    const Compute z = saved[1];
    const Compute n = saved[2];
    const Compute u_n = saved[3];
    const Compute da_n = dh * (Compute(1) - z) * (Compute(1) - n * n);
    dx[0] = da_n * u_n * r * (Compute(1) - r);
    dx[1] = dh * (h_prev - n) * z * (Compute(1) - z);
    dx[2] = da_n;
    du[0] = dx[0];
    du[1] = dx[1];
    du[2] = da_n * r;
    dh_direct = dh * z;
  }
};
