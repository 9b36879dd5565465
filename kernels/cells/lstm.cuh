// LSTM, pointwise: i,f,o = sigmoid(a), g = tanh(a), a = x_side + h_side; c = f c' + i g; h = o tanh(c).
//
// Saved for backward: i,f,g,o here, and c' by the step. backward computes c and tanh(c) again: that costs less than
// writing and reading them. Under projection, h here is m, the operand of W_hr.

struct Cell {
  static const int kGates = 4;
  static const int kSaved = 4;
  static const bool kHasC = true;
  static const bool kReadsH = false;
  static const bool kSplits = false;
  static const bool kResetsBefore = false;

  static __device__ __forceinline__ void forward(const Compute* x, const Compute* u, Compute, Compute c_prev,
                                                 Compute* saved, Compute& h, Compute& c) {
    const Compute i = sigmoid_of(x[0] + u[0]);
    const Compute f = sigmoid_of(x[1] + u[1]);
    const Compute g = tanh_of(x[2] + u[2]);
    const Compute o = sigmoid_of(x[3] + u[3]);
    c = f * c_prev + i * g;
    h = o * tanh_of(c);
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
  }

  static __device__ __forceinline__ void backward(const Compute* saved, Compute, Compute c_prev, Compute dh, Compute dc,
                                                  Compute* dx, Compute*, Compute&, Compute& dc_prev) {
    const Compute i = saved[0];
    const Compute f = saved[1];
    const Compute g = saved[2];
    const Compute o = saved[3];
    const Compute tanh_c = tanh_of(f * c_prev + i * g);
    dc += dh * o * (Compute(1) - tanh_c * tanh_c);
    dx[0] = dc * g * i * (Compute(1) - i);
    dx[1] = dc * c_prev * f * (Compute(1) - f);
    dx[2] = dc * i * (Compute(1) - g * g);
    dx[3] = dh * tanh_c * o * (Compute(1) - o);
    dc_prev = dc * f;
  }
};
