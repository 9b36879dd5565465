// Cells with layer normalisation, pointwise: the equations of rnnkit/core/norm_steps.py after the rows are normalised.
//
// The build defines, beside the row's facts: RK_KIND_GRU or RK_KIND_LSTM; RK_SIDES, 2 where both sides are normalised
// apart and 1 where their sum is; RK_CARRIES, 1 where the state is the normalised c; RK_UNIT_WEIGHTS, the rows of w_unit.
// v and u are the sides after gain and bias. What is saved of a unit: the gates, then x_hat and u_hat of each gate, then
// c_hat. Its gradients: those of v, then that of n on the hidden side where it differs, or of the shifted c.

struct Cell {
  static const int kGates = RK_GATES;
  static const int kSaved = RK_SAVED;
  static const bool kHasC = RK_HAS_C;
  static const bool kReadsH = RK_READS_H;
  static const bool kSplits = RK_SPLITS;
  static const bool kResetsBefore = RK_RESETS_BEFORE;
  static const int kSides = RK_SIDES;
  static const int kUnitWeights = RK_UNIT_WEIGHTS;
  static const int kNormGradients = RK_GATES + RK_SIDES - 1;
  static const int kStatistics = RK_SIDES + RK_HAS_C;

#if defined(RK_KIND_LSTM)
  // The gates i,f,g,o, and c before its normalisation.
  static __device__ __forceinline__ void gates(const Compute* v, Compute c_prev, Compute* gate, Compute& c) {
    gate[0] = sigmoid_of(v[0]);
    gate[1] = sigmoid_of(v[1]);
    gate[2] = tanh_of(v[2]);
    gate[3] = sigmoid_of(v[3]);
    c = gate[1] * c_prev + gate[0] * gate[2];
  }

  static __device__ __forceinline__ Compute output(Compute o, Compute shifted) { return o * tanh_of(shifted); }

  static __device__ __forceinline__ void output_backward(Compute o, Compute shifted, Compute dh, Compute& da_o,
                                                         Compute& dshifted) {
    const Compute tanh_c = tanh_of(shifted);
    da_o = dh * tanh_c * o * (Compute(1) - o);
    dshifted = dh * o * (Compute(1) - tanh_c * tanh_c);
  }

  // d: of the gates i, f and g. dc: the gradient of c before its normalisation.
  static __device__ __forceinline__ void gates_backward(Compute i, Compute f, Compute g, Compute c_prev, Compute dc,
                                                        Compute* d, Compute& dc_prev) {
    d[0] = dc * g * i * (Compute(1) - i);
    d[1] = dc * c_prev * f * (Compute(1) - f);
    d[2] = dc * i * (Compute(1) - g * g);
    dc_prev = dc * f;
  }
#else
  // The gates r,z,n. u is not read where one normalisation is over the sum of both sides.
  static __device__ __forceinline__ void forward(const Compute* v, const Compute* u, Compute h_prev, Compute* gate,
                                                 Compute& h) {
#if RK_SIDES == 2
    gate[0] = sigmoid_of(v[0] + u[0]);
    gate[1] = sigmoid_of(v[1] + u[1]);
    gate[2] = tanh_of(v[2] + gate[0] * u[2]);
    h = gate[2] + gate[1] * (h_prev - gate[2]);
#else
    gate[0] = sigmoid_of(v[0]);
    gate[1] = sigmoid_of(v[1] - Compute(1));
    gate[2] = tanh_of(gate[0] * v[2]);
    h = h_prev + gate[1] * (gate[2] - h_prev);
#endif
  }

  // reset_n: what r multiplies. direct: the part of dh that bypasses the product.
  static __device__ __forceinline__ void backward(Compute r, Compute z, Compute n, Compute reset_n, Compute h_prev,
                                                  Compute dh, Compute* d, Compute& direct) {
#if RK_SIDES == 2
    const Compute da_n = dh * (Compute(1) - z) * (Compute(1) - n * n);
    d[1] = dh * (h_prev - n) * z * (Compute(1) - z);
    d[2] = da_n;
    d[3] = da_n * r;
    direct = dh * z;
#else
    const Compute da_n = dh * z * (Compute(1) - n * n);
    d[1] = dh * (n - h_prev) * z * (Compute(1) - z);
    d[2] = da_n * r;
    direct = dh * (Compute(1) - z);
#endif
    d[0] = da_n * reset_n * r * (Compute(1) - r);
  }
#endif
};
