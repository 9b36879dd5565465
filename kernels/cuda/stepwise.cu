// Schedule D: the pointwise kernels of a step, for every cell. A step has one product, or two: the second one is the
// projection, or W_hn (r h') of a GRU that resets before. The launches and the products around them, in order:
//
//            one product      projection                    reset before
//   forward  h W_hh^T         h W_hh^T                      h W_hr^T, h W_hz^T
//            forward_step     forward_step: m               forward_step: r, z, rh = r h'
//                             m W_proj^T                    rh W_hn^T
//                             forward_output: y             forward_output: n, h, y
//   backward                  backward_output: dprojected   backward_output: gradients of z and n
//                             dprojected W_proj: dm         dgates_n W_hn: drh
//            backward_step    backward_step                 backward_step: gradient of r
//            dgates_h W_hh    dgates_h W_hh                 dgates_r W_hr + dgates_z W_hz
//
// Kernels of one name take the same arguments in every cell:
//
//   x_side, h_side (rows, G*H)      products of x and of h, without biases
//   bias (2, G*H)                   b_ih, then b_hh
//   h (B, R), c (B, H)              states, updated in place: the launches of one stream see each other's writes
//   m (B, H)                        operand of the second product: the unprojected output, or rh; null without one
//   dgates_x, dgates_h (rows, G*H)  gradients of the two sides' pre-activations; one array unless kSplits
//   dh (B, R), dc (B, H)            gradients of the states, updated in place
//   dm (B, H)                       gradient of m; null without a second product
//   t, n                            time step and first row-step, from the chunk's
//
// R = P under projection, else H.

#if !RK_RESETS_BEFORE

extern "C" __global__ void __launch_bounds__(256, 2)
forward_step(const Call* __restrict__ call, const Compute* __restrict__ x_side, const Compute* __restrict__ h_side,
             const Compute* __restrict__ bias, Storage* h, Compute* c, Storage* m, int rows, int B, int H, int R, int t,
             Index n) {
  const int G = Cell::kGates;
  const int K = Cell::kSaved;
  for (int b = first_row(); b < rows; b += row_stride()) {
    const Index step = row_step(call, n, b);
    for (int j = first_unit(); j < H; j += unit_stride()) {
      Compute x[G], u[G], saved[K], c_prev = 0, h_prev = 0, new_h, new_c = 0;
#pragma unroll
      for (int g = 0; g < G; ++g) {
        x[g] = x_side[gate_at(b, g, j, H)] + bias[g * H + j];
        u[g] = h_side[gate_at(b, g, j, H)] + bias[gate_at(1, g, j, H)];
      }
      const Index at = (Index)b * H + j;
      if (Cell::kHasC) c_prev = c[at];
      const bool saves_h = !m && call->h_prev;
      if (Cell::kReadsH || saves_h) {
        const Storage before = h[at];
        if (saves_h) call->h_prev[step * H + j] = before;
        h_prev = load(before);
      }
      Cell::forward(x, u, h_prev, c_prev, saved, new_h, new_c);
      const Storage out = store(new_h);
      if (Cell::kHasC) {
        c[at] = new_c;
        if (call->c_prev) call->c_prev[step * H + j] = c_prev;
      }
      if (call->saved) {
#pragma unroll
        for (int k = 0; k < K; ++k) call->saved[saved_at(step, k, j, H)] = store(saved[k]);
      }
      if (m) {
        m[at] = out;
        if (call->operand) call->operand[step * H + j] = out;
      } else {
        h[at] = out;
        *y_at(call, t, b, B, R, j) = out;
      }
    }
    // Under projection a row of h has R elements, so the loop over H units does not save it.
    if (m && call->h_prev)
      for (int k = first_unit(); k < R; k += unit_stride()) call->h_prev[step * R + k] = h[(Index)b * R + k];
  }
}

// Under projection, after the second product: y at step t = h (B, R).
extern "C" __global__ void __launch_bounds__(256, 2)
forward_output(const Call* __restrict__ call, const Compute*, const Compute*, const Compute*,
               const Storage* __restrict__ h, int rows, int B, int R, int t, Index) {
  for (int b = first_row(); b < rows; b += row_stride())
    for (int k = first_unit(); k < R; k += unit_stride()) *y_at(call, t, b, B, R, k) = h[(Index)b * R + k];
}

// Under projection, before the second product: dprojected (rows, R) = dh + dy, the gradient of the projection's output.
extern "C" __global__ void __launch_bounds__(256, 2)
backward_output(const Call* __restrict__ call, Storage* dprojected, const Compute* __restrict__ dh, int rows, int R,
                int t, Index) {
  for (int b = first_row(); b < rows; b += row_stride())
    for (int k = first_unit(); k < R; k += unit_stride())
      dprojected[(Index)b * R + k] = store(dh[(Index)b * R + k] + dy_at(call, t, b, k));
}

// Where kReadsH, dh becomes the part of it that bypasses the product.
extern "C" __global__ void __launch_bounds__(256, 2)
backward_step(const Call* __restrict__ call, Storage* dgates_x, Storage* dgates_h, Compute* dh, Compute* dc,
              const Compute* dm, int rows, int H, int t, Index n) {
  const int G = Cell::kGates;
  const int K = Cell::kSaved;
  for (int b = first_row(); b < rows; b += row_stride()) {
    const Index step = row_step(call, n, b);
    for (int j = first_unit(); j < H; j += unit_stride()) {
      Compute saved[K], dx[G], du[G], c_prev = 0, h_prev = 0, dc_in = 0, direct = 0, dc_prev = 0;
      const Index at = (Index)b * H + j;
      const Compute dh_in = dm ? dm[at] : dh[at] + dy_at(call, t, b, j);
#pragma unroll
      for (int k = 0; k < K; ++k) saved[k] = load(call->saved[saved_at(step, k, j, H)]);
      if (Cell::kHasC) {
        c_prev = call->c_prev[step * H + j];
        dc_in = dc[at];
      }
      if (Cell::kReadsH) h_prev = load(call->h_prev[step * H + j]);
      Cell::backward(saved, h_prev, c_prev, dh_in, dc_in, dx, du, direct, dc_prev);
#pragma unroll
      for (int g = 0; g < G; ++g) {
        dgates_x[gate_at(b, g, j, H)] = store(dx[g]);
        if (Cell::kSplits) dgates_h[gate_at(b, g, j, H)] = store(du[g]);
      }
      if (Cell::kReadsH) dh[at] = direct;
      if (Cell::kHasC) dc[at] = dc_prev;
    }
  }
}

#else  // a GRU that resets before

// The saved values are the gates, so call->saved (N, 3*H) has the layout of gates.
enum Gate { kR, kZ, kN };

// The pre-activation of gate g: both sides' products, at offset `at`, and biases.
__device__ __forceinline__ Compute preactivation(const Compute* x_side, const Compute* h_side, const Compute* bias,
                                                 Index at, int g, int j, int H) {
  return x_side[at] + bias[g * H + j] + h_side[at] + bias[gate_at(1, g, j, H)];
}

// h_side holds the products of r and z. z replaces its product, for forward_output. rh replaces m.
extern "C" __global__ void __launch_bounds__(256, 2)
forward_step(const Call* __restrict__ call, const Compute* __restrict__ x_side, Compute* h_side,
             const Compute* __restrict__ bias, const Storage* __restrict__ h, Compute*, Storage* m, int rows, int,
             int H, int, int, Index n) {
  for (int b = first_row(); b < rows; b += row_stride()) {
    const Index step = row_step(call, n, b);
    for (int j = first_unit(); j < H; j += unit_stride()) {
      const Index r_at = gate_at(b, kR, j, H);
      const Index z_at = r_at + H;
      const Compute a_r = preactivation(x_side, h_side, bias, r_at, kR, j, H);
      const Compute a_z = preactivation(x_side, h_side, bias, z_at, kZ, j, H);
      const Index at = (Index)b * H + j;
      const Storage before = h[at];
      Compute r, z, rh;
      Cell::gates(a_r, a_z, load(before), r, z, rh);
      const Storage out = store(rh);
      m[at] = out;
      h_side[z_at] = z;
      if (call->saved) {
        call->saved[gate_at(step, kR, j, H)] = store(r);
        call->saved[gate_at(step, kZ, j, H)] = store(z);
        call->h_prev[step * H + j] = before;
        call->operand[step * H + j] = out;
      }
    }
  }
}

// h_side holds z and the product of n.
extern "C" __global__ void __launch_bounds__(256, 2)
forward_output(const Call* __restrict__ call, const Compute* __restrict__ x_side, const Compute* __restrict__ h_side,
               const Compute* __restrict__ bias, Storage* h, int rows, int B, int H, int t, Index n) {
  for (int b = first_row(); b < rows; b += row_stride()) {
    const Index step = row_step(call, n, b);
    for (int j = first_unit(); j < H; j += unit_stride()) {
      const Index z_at = gate_at(b, kZ, j, H);
      const Compute a_n = preactivation(x_side, h_side, bias, z_at + H, kN, j, H);
      const Index at = (Index)b * H + j;
      Compute candidate, new_h;
      Cell::output(a_n, h_side[z_at], load(h[at]), candidate, new_h);
      const Storage out = store(new_h);
      h[at] = out;
      *y_at(call, t, b, B, H, j) = out;
      if (call->saved) call->saved[gate_at(step, kN, j, H)] = store(candidate);
    }
  }
}

// Adds dy of step t to dh, for backward_step.
extern "C" __global__ void __launch_bounds__(256, 2)
backward_output(const Call* __restrict__ call, Storage* dgates, Compute* dh, int rows, int H, int t, Index n) {
  for (int b = first_row(); b < rows; b += row_stride()) {
    const Index step = row_step(call, n, b);
    for (int j = first_unit(); j < H; j += unit_stride()) {
      const Index at = (Index)b * H + j;
      const Compute z = load(call->saved[gate_at(step, kZ, j, H)]);
      const Compute candidate = load(call->saved[gate_at(step, kN, j, H)]);
      const Compute d = dh[at] + dy_at(call, t, b, j);
      dh[at] = d;
      Compute da_z, da_n;
      Cell::output_backward(z, candidate, load(call->h_prev[step * H + j]), d, da_z, da_n);
      dgates[gate_at(b, kZ, j, H)] = store(da_z);
      dgates[gate_at(b, kN, j, H)] = store(da_n);
    }
  }
}

// dm is the gradient of rh. dh becomes the part of it that bypasses the product of r and z.
extern "C" __global__ void __launch_bounds__(256, 2)
backward_step(const Call* __restrict__ call, Storage* dgates, Storage*, Compute* dh, Compute*,
              const Compute* __restrict__ dm, int rows, int H, int, Index n) {
  for (int b = first_row(); b < rows; b += row_stride()) {
    const Index step = row_step(call, n, b);
    for (int j = first_unit(); j < H; j += unit_stride()) {
      const Index at = (Index)b * H + j;
      const Compute r = load(call->saved[gate_at(step, kR, j, H)]);
      const Compute z = load(call->saved[gate_at(step, kZ, j, H)]);
      Compute da_r, direct;
      Cell::gates_backward(r, z, load(call->h_prev[step * H + j]), dh[at], dm[at], da_r, direct);
      dgates[gate_at(b, kR, j, H)] = store(da_r);
      dh[at] = direct;
    }
  }
}

#endif
