// GRU, pointwise, reset before the product: r,z = sigmoid(a), n = tanh(x_n + W_hn (r h') + b_hn), h = (1 - z) n + z h'.
//
// The product W_hn (r h') needs r, so each way has two stages with that product between them: forward gates, then
// output; backward output_backward, then gates_backward. Saved for backward: r,z,n here, and h' and r h' by the step.

struct Cell {
  static const int kGates = 3;
  static const int kSaved = 3;
  static const bool kHasC = false;
  static const bool kReadsH = true;
  static const bool kSplits = false;
  static const bool kResetsBefore = true;

  static __device__ __forceinline__ void gates(Compute a_r, Compute a_z, Compute h_prev, Compute& r, Compute& z,
                                               Compute& rh) {
    r = sigmoid_of(a_r);
    z = sigmoid_of(a_z);
    rh = r * h_prev;
  }

  static __device__ __forceinline__ void output(Compute a_n, Compute z, Compute h_prev, Compute& n, Compute& h) {
    n = tanh_of(a_n);
    h = n + z * (h_prev - n);
  }

  static __device__ __forceinline__ void output_backward(Compute z, Compute n, Compute h_prev, Compute dh,
                                                         Compute& da_z, Compute& da_n) {
    da_z = dh * (h_prev - n) * z * (Compute(1) - z);
    da_n = dh * (Compute(1) - z) * (Compute(1) - n * n);
  }

  static __device__ __forceinline__ void gates_backward(Compute r, Compute z, Compute h_prev, Compute dh, Compute drh,
                                                        Compute& da_r, Compute& dh_direct) {
    da_r = drh * h_prev * r * (Compute(1) - r);
    dh_direct = dh * z + drh * r;
  }
};
