// sLSTM, pointwise: the equations of `_slstm_forward` in rnnkit/core/cells.py. States beside h: c, n, m.
//
// With lead = a_i - p, i is 1 and f is exp(-|lead|) where lead >= 0, else the reverse; but in the first step of a unit,
// where n' = 0, i is 1, and f is 1 where lead < 0. Saved for backward: lead, sigmoid(-a_f), tanh(a_z) and o here, and
// c', n' and m' by the step. backward computes i, f, c and n again.

#if defined(RK_FLOAT64)
__device__ __forceinline__ Compute exp_of(Compute a) { return exp(a); }
__device__ __forceinline__ Compute log1p_of(Compute a) { return log1p(a); }
__device__ __forceinline__ Compute abs_of(Compute a) { return fabs(a); }
#else
__device__ __forceinline__ Compute exp_of(Compute a) { return expf(a); }
__device__ __forceinline__ Compute log1p_of(Compute a) { return log1pf(a); }
__device__ __forceinline__ Compute abs_of(Compute a) { return fabsf(a); }
#endif

struct Cell {
  static const int kGates = 4;
  static const int kSaved = 4;
  static const bool kHasC = true;
  static const int kCellStates = 3;
  static const bool kReadsH = false;
  static const bool kSplits = false;
  static const bool kResetsBefore = false;

  enum State { kC, kN, kM };

  // Whether m is p, not a_i.
  static __device__ __forceinline__ bool exponentials(Compute lead, Compute n_prev, Compute& i, Compute& f) {
    const Compute e = exp_of(-abs_of(lead));
    const bool of_f = lead < Compute(0) && n_prev != Compute(0);
    i = of_f ? e : Compute(1);
    f = lead < Compute(0) ? Compute(1) : e;
    return of_f;
  }

  // a: the pre-activations of both sides.
  static __device__ __forceinline__ void forward(const Compute* a, const Compute* before, Compute* saved, Compute& h,
                                                 Compute* after) {
    const Compute z = tanh_of(a[2]);
    const Compute o = sigmoid_of(a[3]);
    const Compute p = before[kM] + ((a[1] <= Compute(0) ? a[1] : Compute(0)) - log1p_of(exp_of(-abs_of(a[1]))));
    const Compute lead = a[0] - p;
    Compute i, f;
    const bool of_f = exponentials(lead, before[kN], i, f);
    const Compute total = f * before[kN] + i;
    after[kC] = f * before[kC] + i * z;
    after[kN] = total < Compute(1) ? Compute(1) : total;
    after[kM] = of_f ? p : a[0];
    h = o * after[kC] / after[kN];
    saved[0] = lead;
    saved[1] = sigmoid_of(-a[1]);
    saved[2] = z;
    saved[3] = o;
  }

  // d: the gradients of the states after the step, which become those of the states before it.
  static __device__ __forceinline__ void backward(const Compute* saved, const Compute* before, Compute dh, Compute* d,
                                                  Compute* dx) {
    const Compute lead = saved[0];
    const Compute z = saved[2];
    const Compute o = saved[3];
    Compute i, f;
    const bool of_f = exponentials(lead, before[kN], i, f);
    const Compute total = f * before[kN] + i;
    const bool below = total < Compute(1);
    const Compute n = below ? Compute(1) : total;
    const Compute mean = (f * before[kC] + i * z) / n;
    const Compute to_c = dh * o / n;
    const Compute dc = d[kC] + to_c;
    const Compute dn = below ? Compute(0) : d[kN] - to_c * mean;
    const Compute by_i = (dc * z + dn) * i;
    const bool limited = lead < Compute(0) && !of_f;
    const Compute by_f = limited ? Compute(0) : (dc * before[kC] + dn * before[kN]) * f;
    const Compute dm = d[kM] - by_i - by_f;
    const Compute dp = of_f ? by_f + dm : by_f;
    dx[0] = of_f ? by_i : by_i + dm;
    dx[1] = dp * saved[1];
    dx[2] = dc * i * (Compute(1) - z * z);
    dx[3] = dh * mean * o * (Compute(1) - o);
    d[kC] = dc * f;
    d[kN] = dn * f;
    d[kM] = dp;
  }
};
