// LSTM, pointwise: i,f,o = sigmoid(a), g = tanh(a), a = x_side + h_side; c = f c' + i g; h = o tanh(c).
//
// Kept for backward: i,f,g,o, and by the step c'; c and tanh(c) are computed again, which costs less than writing and
// reading them. Under projection "h" here is m, what W_hr multiplies.

struct Cell {
  static const int kGates = 4, kKept = 4;
  static const bool kHasC = true, kReadsH = false, kSplit = false, kDirect = false;

  static __device__ __forceinline__ void forward(const Compute* x, const Compute* u, Compute, Compute c_prev,
                                                 Compute* kept, Compute& h, Compute& c) {
    const Compute i = sigmoid_of(x[0] + u[0]), f = sigmoid_of(x[1] + u[1]);
    const Compute g = tanh_of(x[2] + u[2]), o = sigmoid_of(x[3] + u[3]);
    c = f * c_prev + i * g;
    h = o * tanh_of(c);
    kept[0] = i, kept[1] = f, kept[2] = g, kept[3] = o;
  }

  static __device__ __forceinline__ void backward(const Compute* kept, Compute, Compute c_prev, Compute dh, Compute dc,
                                                  Compute* dx, Compute*, Compute&, Compute& dc_prev) {
    const Compute i = kept[0], f = kept[1], g = kept[2], o = kept[3];
    const Compute tanh_c = tanh_of(f * c_prev + i * g);
    dc += dh * o * (Compute(1) - tanh_c * tanh_c);
    dx[0] = dc * g * i * (Compute(1) - i);
    dx[1] = dc * c_prev * f * (Compute(1) - f);
    dx[2] = dc * i * (Compute(1) - g * g);
    dx[3] = dh * tanh_c * o * (Compute(1) - o);
    dc_prev = dc * f;
  }
};
