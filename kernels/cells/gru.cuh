// GRU, pointwise, reset after the product: r,z = sigmoid(x + u), n = tanh(x_n + r u_n), h = (1 - z) n + z h'.
//
// Kept for backward: r,z,n and u_n, and by the step h'. The hidden side's gradient differs from the input side's in n,
// by the factor r: hence kSplit.

struct Cell {
  static const int kGates = 3, kKept = 4;
  static const bool kHasC = false, kReadsH = true, kSplit = true, kDirect = true;

  static __device__ __forceinline__ void forward(const Compute* x, const Compute* u, Compute h_prev, Compute,
                                                 Compute* kept, Compute& h, Compute&) {
    const Compute r = sigmoid_of(x[0] + u[0]), z = sigmoid_of(x[1] + u[1]);
    const Compute n = tanh_of(x[2] + r * u[2]);
    h = n + z * (h_prev - n);
    kept[0] = r, kept[1] = z, kept[2] = n, kept[3] = u[2];
  }

  static __device__ __forceinline__ void backward(const Compute* kept, Compute h_prev, Compute, Compute dh, Compute,
                                                  Compute* dx, Compute* du, Compute& dh_direct, Compute&) {
    const Compute r = kept[0], z = kept[1], n = kept[2], u_n = kept[3];
    const Compute da_n = dh * (Compute(1) - z) * (Compute(1) - n * n);
    dx[0] = du[0] = da_n * u_n * r * (Compute(1) - r);
    dx[1] = du[1] = dh * (h_prev - n) * z * (Compute(1) - z);
    dx[2] = da_n;
    du[2] = da_n * r;
    dh_direct = dh * z;
  }
};
