// Schedule D for the GRU that resets before the product: n = tanh(x_n + W_hn (r h') + b_hn) waits for r.
//
// So a step is two products with a pointwise launch after each, forward and back. Kept for backward: r,z,n; and rh =
// r h', the operand of W_hn. Threads and arguments as in stepwise.cu.

// u (B, 3H): the products of r and z in, z out in its place. rh (B, H) out.
extern "C" __global__ void __launch_bounds__(256, 2)
forward_gates(const Call* __restrict__ call, const Compute* __restrict__ x_side, Compute* u,
              const Compute* __restrict__ bias, const Storage* __restrict__ h, Storage* rh, int rows, int H, Index n) {
  const Index GH = 3 * (Index)H;
  for (int b = blockIdx.y * blockDim.y + threadIdx.y; b < rows; b += gridDim.y * blockDim.y) {
    const Index step = call->n0 + n + b;
    for (int j = blockIdx.x * blockDim.x + threadIdx.x; j < H; j += gridDim.x * blockDim.x) {
      const Index r_at = b * GH + j, z_at = r_at + H, at = (Index)b * H + j;
      const Compute r = sigmoid_of(x_side[r_at] + bias[j] + u[r_at] + bias[GH + j]);
      const Compute z = sigmoid_of(x_side[z_at] + bias[H + j] + u[z_at] + bias[GH + H + j]);
      const Storage before = h[at];
      const Storage out = store(r * load(before));
      rh[at] = out;
      u[z_at] = z;
      if (call->kept) {
        call->kept[step * GH + j] = store(r);
        call->kept[step * GH + H + j] = store(z);
        call->h_prev[step * H + j] = before;
        call->extra[step * H + j] = out;
      }
    }
  }
}

// u (B, 3H): z, and the product of n. h (B, H) in and out.
extern "C" __global__ void __launch_bounds__(256, 2)
forward_output(const Call* __restrict__ call, const Compute* __restrict__ x_side, const Compute* __restrict__ u,
               const Compute* __restrict__ bias, Storage* h, int rows, int B, int H, int t, Index n) {
  const Index GH = 3 * (Index)H;
  for (int b = blockIdx.y * blockDim.y + threadIdx.y; b < rows; b += gridDim.y * blockDim.y) {
    const Index step = call->n0 + n + b;
    for (int j = blockIdx.x * blockDim.x + threadIdx.x; j < H; j += gridDim.x * blockDim.x) {
      const Index z_at = b * GH + H + j, n_at = z_at + H, at = (Index)b * H + j;
      const Compute candidate = tanh_of(x_side[n_at] + bias[2 * H + j] + u[n_at] + bias[GH + 2 * H + j]);
      const Storage out = store(candidate + u[z_at] * (load(h[at]) - candidate));
      h[at] = out;
      *y_at(call, t, b, B, H, j) = out;
      if (call->kept) call->kept[step * GH + 2 * H + j] = store(candidate);
    }
  }
}

// dgates (rows, 3H): z and n of the gradients out. dh (B, H): leaves with dy of step t added.
extern "C" __global__ void __launch_bounds__(256, 2)
backward_output(const Call* __restrict__ call, Storage* dgates, Compute* dh, int rows, int H, int t, Index n) {
  const Index GH = 3 * (Index)H;
  for (int b = blockIdx.y * blockDim.y + threadIdx.y; b < rows; b += gridDim.y * blockDim.y) {
    const Index step = call->n0 + n + b;
    for (int j = blockIdx.x * blockDim.x + threadIdx.x; j < H; j += gridDim.x * blockDim.x) {
      const Index at = (Index)b * H + j;
      const Compute z = load(call->kept[step * GH + H + j]), candidate = load(call->kept[step * GH + 2 * H + j]);
      const Compute d = dh[at] + dy_at(call, t, b, j);
      dh[at] = d;
      const Compute before = load(call->h_prev[step * H + j]);
      dgates[b * GH + H + j] = store(d * (before - candidate) * z * (Compute(1) - z));
      dgates[b * GH + 2 * H + j] = store(d * (Compute(1) - z) * (Compute(1) - candidate * candidate));
    }
  }
}

// drh (B, H): the gradient of rh in. dgates: r out. dh in and out: what passes by the products of r and z.
extern "C" __global__ void __launch_bounds__(256, 2)
backward_gates(const Call* __restrict__ call, Storage* dgates, Compute* dh, const Compute* __restrict__ drh, int rows,
               int H, Index n) {
  const Index GH = 3 * (Index)H;
  for (int b = blockIdx.y * blockDim.y + threadIdx.y; b < rows; b += gridDim.y * blockDim.y) {
    const Index step = call->n0 + n + b;
    for (int j = blockIdx.x * blockDim.x + threadIdx.x; j < H; j += gridDim.x * blockDim.x) {
      const Index at = (Index)b * H + j;
      const Compute r = load(call->kept[step * GH + j]), z = load(call->kept[step * GH + H + j]);
      const Compute d = drh[at];
      dgates[b * GH + j] = store(d * load(call->h_prev[step * H + j]) * r * (Compute(1) - r));
      dh[at] = dh[at] * z + d * r;
    }
  }
}
