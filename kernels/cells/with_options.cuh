// Cells with options, pointwise: the equations of rnnkit/core/option_steps.py. One struct Cell per cell.
//
// The build defines, beside the row's facts: RK_KIND_RNN, RK_KIND_GRU or RK_KIND_LSTM; RK_PEEPHOLE, RK_COUPLED, RK_CLIP
// and RK_CELL_CLIP as 0 or 1; the activations RK_F, RK_G and RK_H; RK_CONSTANTS, how many constants a call has, and the
// place of each, RK_AT_CLIP, RK_AT_ALPHA_F, ..., or -1.
//
// What is saved of a gate is its value y, or infinity with the sign of the pre-activation beyond the clip: backward finds
// both y and the slope 0 exactly. An LSTM that limits c saves a fifth value: 1 where c is inside, 0 where it is not.

#if defined(RK_FLOAT64)
__device__ __forceinline__ Compute expm1_of(Compute a) { return expm1(a); }
__device__ __forceinline__ Compute exp_of(Compute a) { return exp(a); }
__device__ __forceinline__ Compute log1p_of(Compute a) { return log1p(a); }
__device__ __forceinline__ Compute abs_of(Compute a) { return fabs(a); }
#else
__device__ __forceinline__ Compute expm1_of(Compute a) { return expm1f(a); }
__device__ __forceinline__ Compute exp_of(Compute a) { return expf(a); }
__device__ __forceinline__ Compute log1p_of(Compute a) { return log1pf(a); }
__device__ __forceinline__ Compute abs_of(Compute a) { return fabsf(a); }
#endif
#define RK_INFINITY ((Compute)(1e308 * 1e308))  // NVRTC has no INFINITY

// The activations that ONNX names: value(a), and slope(y) at a value y.
#define RK_ACTIVATION(NAME, VALUE, SLOPE)                                                             \
  struct NAME {                                                                                       \
    static __device__ __forceinline__ Compute value(Compute a, Compute alpha, Compute beta) { return VALUE; } \
    static __device__ __forceinline__ Compute slope(Compute y, Compute alpha, Compute beta) { return SLOPE; } \
  };
RK_ACTIVATION(Relu, relu_of(a), y <= Compute(0) ? Compute(0) : Compute(1))
RK_ACTIVATION(Tanh, tanh_of(a), Compute(1) - y * y)
RK_ACTIVATION(Sigmoid, sigmoid_of(a), y * (Compute(1) - y))
RK_ACTIVATION(Affine, alpha * a + beta, alpha)
RK_ACTIVATION(LeakyRelu, a <= Compute(0) ? alpha * a : a, y <= Compute(0) ? alpha : Compute(1))
RK_ACTIVATION(ThresholdedRelu, a <= alpha ? Compute(0) : a, y == Compute(0) ? Compute(0) : Compute(1))
RK_ACTIVATION(ScaledTanh, alpha * tanh_of(beta * a), beta * (alpha - y * (y / alpha)))
RK_ACTIVATION(HardSigmoid,
              alpha * a + beta < Compute(0) ? Compute(0) : alpha * a + beta > Compute(1) ? Compute(1) : alpha * a + beta,
              y <= Compute(0) || y >= Compute(1) ? Compute(0) : alpha)
RK_ACTIVATION(Elu, a <= Compute(0) ? alpha * expm1_of(a) : a, y <= Compute(0) ? y + alpha : Compute(1))
RK_ACTIVATION(Softsign, a / (Compute(1) + abs_of(a)), (Compute(1) - abs_of(y)) * (Compute(1) - abs_of(y)))
RK_ACTIVATION(Softplus, (a <= Compute(0) ? Compute(0) : a) + log1p_of(exp_of(-abs_of(a))), -expm1_of(-y))

// The constants of a call, and the weights per unit of unit j of H, in the compute dtype: after the Call.
struct Extras {
  const Compute* k;
  int j;
  int H;

  __device__ __forceinline__ Extras(const void* call, int j, int H)
      : k((const Compute*)((const char*)call + RK_CALL_BYTES)), j(j), H(H) {}
  __device__ __forceinline__ Compute constant(int at) const { return at < 0 ? Compute(0) : k[at]; }
  __device__ __forceinline__ Compute weight(int row) const { return k[RK_CONSTANTS + (long long)row * H + j]; }
};

// c or a in [-most, most]; NaN stays NaN.
__device__ __forceinline__ Compute limited(Compute a, Compute most) { return a > most ? most : a < -most ? -most : a; }

template <typename A, int kAlpha, int kBeta>
struct Role {
  static __device__ __forceinline__ Compute value(Compute a, const Extras& e) {
    return A::value(a, e.constant(kAlpha), e.constant(kBeta));
  }
  static __device__ __forceinline__ Compute slope(Compute y, const Extras& e) {
    return A::slope(y, e.constant(kAlpha), e.constant(kBeta));
  }
  // y, and what is saved of it.
  static __device__ __forceinline__ Compute gate(Compute a, const Extras& e, Compute& saved) {
#if RK_CLIP
    const Compute most = e.constant(RK_AT_CLIP);
    const Compute y = value(limited(a, most), e);
    saved = a > most ? RK_INFINITY : a < -most ? -RK_INFINITY : y;
#else
    const Compute y = value(a, e);
    saved = y;
#endif
    return y;
  }
  // y and its slope, from what is saved.
  static __device__ __forceinline__ Compute opened(Compute saved, const Extras& e, Compute& dy) {
#if RK_CLIP
    if (abs_of(saved) == RK_INFINITY) {
      const Compute most = e.constant(RK_AT_CLIP);
      dy = Compute(0);
      return value(saved > Compute(0) ? most : -most, e);
    }
#endif
    dy = slope(saved, e);
    return saved;
  }
};
typedef Role<RK_F, RK_AT_ALPHA_F, RK_AT_BETA_F> RoleF;
typedef Role<RK_G, RK_AT_ALPHA_G, RK_AT_BETA_G> RoleG;
typedef Role<RK_H, RK_AT_ALPHA_H, RK_AT_BETA_H> RoleH;

struct Cell {
  static const int kGates = RK_GATES;
  static const int kSaved = RK_SAVED;
  static const bool kHasC = RK_HAS_C;
  static const bool kReadsH = RK_READS_H;
  static const bool kSplits = RK_SPLITS;
  static const bool kResetsBefore = RK_RESETS_BEFORE;

#if defined(RK_KIND_RNN)
  static __device__ __forceinline__ void forward(const Compute* x, const Compute* u, Compute, Compute, Compute* saved,
                                                 Compute& h, Compute&, const Extras& e) {
    h = RoleF::gate(x[0] + u[0], e, saved[0]);
  }

  static __device__ __forceinline__ void backward(const Compute* saved, Compute, Compute, Compute dh, Compute,
                                                  Compute* dx, Compute*, Compute&, Compute&, const Extras& e) {
    Compute slope;
    RoleF::opened(saved[0], e, slope);
    dx[0] = dh * slope;
  }
#elif defined(RK_KIND_GRU) && !RK_RESETS_BEFORE
  static __device__ __forceinline__ void forward(const Compute* x, const Compute* u, Compute h_prev, Compute,
                                                 Compute* saved, Compute& h, Compute&, const Extras& e) {
    const Compute r = RoleF::gate(x[0] + u[0], e, saved[0]);
    const Compute z = RoleF::gate(x[1] + u[1], e, saved[1]);
    const Compute n = RoleG::gate(x[2] + r * u[2], e, saved[2]);
    h = n + z * (h_prev - n);
    saved[3] = u[2];
  }

  static __device__ __forceinline__ void backward(const Compute* saved, Compute h_prev, Compute, Compute dh, Compute,
                                                  Compute* dx, Compute* du, Compute& dh_direct, Compute&,
                                                  const Extras& e) {
    Compute slope_r, slope_z, slope_n;
    const Compute r = RoleF::opened(saved[0], e, slope_r);
    const Compute z = RoleF::opened(saved[1], e, slope_z);
    const Compute n = RoleG::opened(saved[2], e, slope_n);
    const Compute da_n = dh * (Compute(1) - z) * slope_n;
    dx[0] = da_n * saved[3] * slope_r;
    dx[1] = dh * (h_prev - n) * slope_z;
    dx[2] = da_n;
    du[0] = dx[0];
    du[1] = dx[1];
    du[2] = da_n * r;
    dh_direct = dh * z;
  }
#elif defined(RK_KIND_GRU)
  // z passes between the stages as it is saved.
  static __device__ __forceinline__ void gates(Compute a_r, Compute a_z, Compute h_prev, Compute& r_saved,
                                               Compute& z_saved, Compute& rh, const Extras& e) {
    rh = RoleF::gate(a_r, e, r_saved) * h_prev;
    RoleF::gate(a_z, e, z_saved);
  }

  static __device__ __forceinline__ void output(Compute a_n, Compute z_saved, Compute h_prev, Compute& n_saved,
                                                Compute& h, const Extras& e) {
    Compute slope;
    const Compute z = RoleF::opened(z_saved, e, slope);
    const Compute n = RoleG::gate(a_n, e, n_saved);
    h = n + z * (h_prev - n);
  }

  static __device__ __forceinline__ void output_backward(Compute z_saved, Compute n_saved, Compute h_prev, Compute dh,
                                                         Compute& da_z, Compute& da_n, const Extras& e) {
    Compute slope_z, slope_n;
    const Compute z = RoleF::opened(z_saved, e, slope_z);
    const Compute n = RoleG::opened(n_saved, e, slope_n);
    da_z = dh * (h_prev - n) * slope_z;
    da_n = dh * (Compute(1) - z) * slope_n;
  }

  static __device__ __forceinline__ void gates_backward(Compute r_saved, Compute z_saved, Compute h_prev, Compute dh,
                                                        Compute drh, Compute& da_r, Compute& dh_direct,
                                                        const Extras& e) {
    Compute slope_r, slope_z;
    const Compute r = RoleF::opened(r_saved, e, slope_r);
    const Compute z = RoleF::opened(z_saved, e, slope_z);
    da_r = drh * h_prev * slope_r;
    dh_direct = dh * z + drh * r;
  }
#else
  static __device__ __forceinline__ void forward(const Compute* x, const Compute* u, Compute, Compute c_prev,
                                                 Compute* saved, Compute& h, Compute& c, const Extras& e) {
    Compute a_i = x[0] + u[0];
    Compute a_f = x[1] + u[1];
    Compute a_o = x[3] + u[3];
#if RK_PEEPHOLE
    a_i += e.weight(0) * c_prev;
    a_f += e.weight(1) * c_prev;
#endif
    const Compute i = RoleF::gate(a_i, e, saved[0]);
#if RK_COUPLED
    const Compute f = Compute(1) - i;
    saved[1] = f;
#else
    const Compute f = RoleF::gate(a_f, e, saved[1]);
#endif
    const Compute g = RoleG::gate(x[2] + u[2], e, saved[2]);
    c = f * c_prev + i * g;
#if RK_CELL_CLIP
    const Compute most = e.constant(RK_AT_CELL_CLIP);
    saved[4] = c > most || c < -most ? Compute(0) : Compute(1);
    c = limited(c, most);
#endif
#if RK_PEEPHOLE
    a_o += e.weight(2) * c;
#endif
    h = RoleF::gate(a_o, e, saved[3]) * RoleH::value(c, e);
  }

  // c of the step, and i, f, g with their slopes.
  static __device__ __forceinline__ Compute cell_state(const Compute* saved, Compute c_prev, const Extras& e,
                                                       Compute* value, Compute* slope) {
    value[0] = RoleF::opened(saved[0], e, slope[0]);
#if RK_COUPLED
    value[1] = saved[1];
    slope[1] = Compute(0);
#else
    value[1] = RoleF::opened(saved[1], e, slope[1]);
#endif
    value[2] = RoleG::opened(saved[2], e, slope[2]);
    const Compute c = value[1] * c_prev + value[0] * value[2];
#if RK_CELL_CLIP
    return limited(c, e.constant(RK_AT_CELL_CLIP));
#else
    return c;
#endif
  }

  static __device__ __forceinline__ void backward(const Compute* saved, Compute, Compute c_prev, Compute dh, Compute dc,
                                                  Compute* dx, Compute*, Compute&, Compute& dc_prev, const Extras& e) {
    Compute v[3], slope[3], slope_o;
    const Compute h_c = RoleH::value(cell_state(saved, c_prev, e, v, slope), e);
    const Compute o = RoleF::opened(saved[3], e, slope_o);
    dx[3] = dh * h_c * slope_o;
    dc += dh * o * RoleH::slope(h_c, e);
#if RK_PEEPHOLE
    dc += dx[3] * e.weight(2);
#endif
#if RK_CELL_CLIP
    dc *= saved[4];
#endif
    dx[0] = dc * (RK_COUPLED ? v[2] - c_prev : v[2]) * slope[0];
    dx[1] = dc * c_prev * slope[1];
    dx[2] = dc * v[0] * slope[2];
    dc_prev = dc * v[1];
#if RK_PEEPHOLE
    dc_prev += dx[0] * e.weight(0) + dx[1] * e.weight(1);
#endif
  }
#endif
};
