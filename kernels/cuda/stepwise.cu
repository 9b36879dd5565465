// Schedule D for every cell that is one product and one pointwise part a step: RNN, LSTM, GRU (reset after).
//
// All of a step's threads stand for (row b, unit j): j along x, so that a warp reads and writes neighbours; rows along
// y. Between two launches of one stream everything is visible, so h and c are updated in place.

// x_side (rows, G*H) and h_side (rows, G*H): the step's products without biases. bias (2, G*H). h (B, R), c (B, H):
// states, in and out. m (B, H): the unprojected output under projection, else null. t, n: time step and first live
// step, from the chunk's.
extern "C" __global__ void __launch_bounds__(256, 2)
forward_step(const Call* __restrict__ call, const Compute* __restrict__ x_side, const Compute* __restrict__ h_side,
             const Compute* __restrict__ bias, Storage* h, Compute* c, Storage* m, int rows, int B, int H, int R, int t,
             Index n) {
  const int G = Cell::kGates, K = Cell::kKept;
  const Index GH = (Index)G * H;
  for (int b = blockIdx.y * blockDim.y + threadIdx.y; b < rows; b += gridDim.y * blockDim.y) {
    const Index step = call->n0 + n + b;
    for (int j = blockIdx.x * blockDim.x + threadIdx.x; j < H; j += gridDim.x * blockDim.x) {
      Compute x[G], u[G], kept[K], c_prev = 0, h_prev = 0, new_h, new_c = 0;
#pragma unroll
      for (int g = 0; g < G; ++g) {
        x[g] = x_side[b * GH + g * H + j] + bias[g * H + j];
        u[g] = h_side[b * GH + g * H + j] + bias[GH + g * H + j];
      }
      const Index at = (Index)b * H + j;
      if (Cell::kHasC) c_prev = c[at];
      const bool saves_h = !m && call->h_prev;
      if (Cell::kReadsH || saves_h) {
        const Storage before = h[at];
        if (saves_h) call->h_prev[step * H + j] = before;
        h_prev = load(before);
      }
      Cell::forward(x, u, h_prev, c_prev, kept, new_h, new_c);
      const Storage out = store(new_h);
      if (Cell::kHasC) {
        c[at] = new_c;
        if (call->c_prev) call->c_prev[step * H + j] = c_prev;
      }
      if (call->kept) {
#pragma unroll
        for (int k = 0; k < K; ++k) call->kept[(step * K + k) * H + j] = store(kept[k]);
      }
      if (m) {
        m[at] = out;
        if (call->extra) call->extra[step * H + j] = out;
      } else {
        h[at] = out;
        *y_at(call, t, b, B, R, j) = out;
      }
    }
    if (m && call->h_prev)
      for (int k = blockIdx.x * blockDim.x + threadIdx.x; k < R; k += gridDim.x * blockDim.x)
        call->h_prev[step * R + k] = h[(Index)b * R + k];
  }
}

// y at step t = h (B, R), after the product of the projection.
extern "C" __global__ void __launch_bounds__(256, 2)
emit_output(const Call* __restrict__ call, const Storage* __restrict__ h, int rows, int B, int R, int t) {
  for (int b = blockIdx.y * blockDim.y + threadIdx.y; b < rows; b += gridDim.y * blockDim.y)
    for (int k = blockIdx.x * blockDim.x + threadIdx.x; k < R; k += gridDim.x * blockDim.x)
      *y_at(call, t, b, B, R, k) = h[(Index)b * R + k];
}

// dgates_x, dgates_h (rows, G*H): gradients of the two sides, one array unless kSplit. dh (B, R), dc (B, H): gradients
// of the states, in and out; dh leaves with what passes by the product, if anything does. dm (B, H): under projection
// the gradient of m, else null.
extern "C" __global__ void __launch_bounds__(256, 2)
backward_step(const Call* __restrict__ call, Storage* dgates_x, Storage* dgates_h, Compute* dh, Compute* dc,
              const Compute* dm, int rows, int B, int H, int R, int t, Index n) {
  const int G = Cell::kGates, K = Cell::kKept;
  const Index GH = (Index)G * H;
  for (int b = blockIdx.y * blockDim.y + threadIdx.y; b < rows; b += gridDim.y * blockDim.y) {
    const Index step = call->n0 + n + b;
    for (int j = blockIdx.x * blockDim.x + threadIdx.x; j < H; j += gridDim.x * blockDim.x) {
      Compute kept[K], dx[G], du[G], c_prev = 0, h_prev = 0, dc_in = 0, direct = 0, dc_prev = 0;
      const Index at = (Index)b * H + j;
      const Compute dh_in = dm ? dm[at] : dh[at] + dy_at(call, t, b, j);
#pragma unroll
      for (int k = 0; k < K; ++k) kept[k] = load(call->kept[(step * K + k) * H + j]);
      if (Cell::kHasC) {
        c_prev = call->c_prev[step * H + j];
        dc_in = dc[at];
      }
      if (Cell::kReadsH) h_prev = load(call->h_prev[step * H + j]);
      Cell::backward(kept, h_prev, c_prev, dh_in, dc_in, dx, du, direct, dc_prev);
#pragma unroll
      for (int g = 0; g < G; ++g) {
        dgates_x[b * GH + g * H + j] = store(dx[g]);
        if (Cell::kSplit) dgates_h[b * GH + g * H + j] = store(du[g]);
      }
      if (Cell::kDirect) dh[at] = direct;
      if (Cell::kHasC) dc[at] = dc_prev;
    }
  }
}

// dprojected (rows, R) = dh + dy at step t: the gradient of the projection's output.
extern "C" __global__ void __launch_bounds__(256, 2)
backward_project(const Call* __restrict__ call, Storage* dprojected, const Compute* __restrict__ dh, int rows, int R,
                 int t) {
  for (int b = blockIdx.y * blockDim.y + threadIdx.y; b < rows; b += gridDim.y * blockDim.y)
    for (int k = blockIdx.x * blockDim.x + threadIdx.x; k < R; k += gridDim.x * blockDim.x)
      dprojected[(Index)b * R + k] = store(dh[(Index)b * R + k] + dy_at(call, t, b, k));
}
