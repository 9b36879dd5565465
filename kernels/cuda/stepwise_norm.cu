// Schedule D with layer normalisation: the pointwise kernels of a step, and the sums after the steps of a chunk. The
// launches and the products around them are those of kernels/cuda/stepwise.cu with one product, and so are the arguments
// of forward_step and backward_step, except that
//
//   x_side, h_side   are overwritten: each step's rows are used once
//   bias             is not read: biases are added after the gains, from Norm
//   dv (rows of the chunk, kNormGradients*H)   gradients of what is normalised, scaled and shifted, in place of dm
//
// call.operand is (N, kStatistics) of Compute: 1 / sqrt(var + eps) of each normalisation of a row-step, x, h, then c.

#if defined(RK_KIND_LSTM)
// The first two blocks of h_side become c before its normalisation, and o.
__device__ __forceinline__ void forward_row(const Call& call, const Norm& norm, const Compute* x, Compute* u, Compute* c,
                                            Storage* h, Storage* y, Index step, int H) {
  const int G = Cell::kGates;
  const Compute* const sides[2] = {x, u};
  Moments of_side[2], of_c[1];
  moments<2, G>(sides, H, norm.eps(), of_side);
  for (int j = threadIdx.x; j < H; j += blockDim.x) {
    Compute v[G], gate[G], c_new;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const Compute x_hat = of_side[0].hat(x[g * H + j]);
      const Compute u_hat = of_side[1].hat(u[g * H + j]);
      v[g] = x_hat * norm.gain(0, g, j) + norm.bias(0, g, j) + (u_hat * norm.gain(1, g, j) + norm.bias(1, g, j));
      if (call.saved) {
        call.saved[saved_at(step, G + g, j, H)] = store(x_hat);
        call.saved[saved_at(step, 2 * G + g, j, H)] = store(u_hat);
      }
    }
    Cell::gates(v, c[j], gate, c_new);
    if (call.saved) {
      call.c_prev[step * H + j] = c[j];
#pragma unroll
      for (int g = 0; g < G; ++g) call.saved[saved_at(step, g, j, H)] = store(gate[g]);
    }
    u[j] = c_new;
    u[H + j] = gate[3];
  }
  const Compute* const of_u[1] = {u};
  moments<1, 1>(of_u, H, norm.eps(), of_c);
  for (int j = threadIdx.x; j < H; j += blockDim.x) {
    const Compute c_hat = of_c[0].hat(u[j]);
    const Compute shifted = c_hat * norm.row(2 * G, j) + norm.row(2 * G + 1, j);
    const Storage h_new = store(Cell::output(u[H + j], shifted));
    if (call.saved) {
      call.saved[saved_at(step, 3 * G, j, H)] = store(c_hat);
      call.h_prev[step * H + j] = h[j];
    }
    c[j] = RK_CARRIES ? shifted : u[j];
    h[j] = h_new;
    y[j] = h_new;
  }
  if (call.saved && threadIdx.x == 0) {
    Compute* const kept = (Compute*)call.operand + step * Cell::kStatistics;
    kept[0] = of_side[0].scale;
    kept[1] = of_side[1].scale;
    kept[2] = of_c[0].scale;
  }
}
#else
__device__ __forceinline__ void forward_row(const Call& call, const Norm& norm, const Compute* x, Compute* u, Compute*,
                                            Storage* h, Storage* y, Index step, int H) {
  const int G = Cell::kGates;
  Moments of_side[Cell::kSides];
#if RK_SIDES == 2
  const Compute* const sides[2] = {x, u};
#else
  for (int j = threadIdx.x; j < H; j += blockDim.x) {
#pragma unroll
    for (int g = 0; g < G; ++g) u[g * H + j] += x[g * H + j];
  }
  const Compute* const sides[1] = {u};
#endif
  moments<Cell::kSides, G>(sides, H, norm.eps(), of_side);
  for (int j = threadIdx.x; j < H; j += blockDim.x) {
    Compute v[G], w[G] = {}, gate[G], h_new;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const Compute x_hat = of_side[0].hat(sides[0][g * H + j]);
      v[g] = x_hat * norm.gain(0, g, j) + norm.bias(0, g, j);
      if (call.saved) call.saved[saved_at(step, G + g, j, H)] = store(x_hat);
#if RK_SIDES == 2
      const Compute u_hat = of_side[1].hat(u[g * H + j]);
      w[g] = u_hat * norm.gain(1, g, j) + norm.bias(1, g, j);
      if (call.saved) call.saved[saved_at(step, 2 * G + g, j, H)] = store(u_hat);
#else
      v[g] += norm.bias(1, g, j);
#endif
    }
    const Storage before = h[j];
    Cell::forward(v, w, load(before), gate, h_new);
    if (call.saved) {
      call.h_prev[step * H + j] = before;
#pragma unroll
      for (int g = 0; g < G; ++g) call.saved[saved_at(step, g, j, H)] = store(gate[g]);
    }
    h[j] = store(h_new);
    y[j] = store(h_new);
  }
  if (call.saved && threadIdx.x == 0) {
    Compute* const kept = (Compute*)call.operand + step * Cell::kStatistics;
#pragma unroll
    for (int s = 0; s < Cell::kSides; ++s) kept[s] = of_side[s].scale;
  }
}
#endif

extern "C" __global__ void __launch_bounds__(256, 2)
forward_step(const Call* given, const Compute* x_side, Compute* h_side, const Compute*, Storage* h, Compute* c, Storage*,
             int most, int H, int, int t) {
  const Call call = *given;
  const Live live = live_rows(call, t, most);
  const Norm norm(given, H);
  const Index GH = (Index)Cell::kGates * H;
  for (int b = blockIdx.x; b < live.rows; b += gridDim.x) {
    const Index step = live.first + b;
    const Index at = (Index)b * H;
    forward_row(call, norm, x_side + (step - call.n0) * GH, h_side + b * GH, c + at, h + at, y_row(call, t, b), step, H);
  }
}

// Adds what unit j adds to the two means of a side's gradient: d gain, and d gain hat. hats: the first of the side among
// the saved values.
__device__ __forceinline__ void add_side(const Call& call, const Norm& norm, const Compute* d, int side, int hats,
                                         Index step, int j, int H, Compute* sums) {
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) {
    const Compute scaled = d[g] * norm.gain(side, g, j);
    sums[0] += scaled;
    sums[1] += scaled * load(call.saved[saved_at(step, hats + g, j, H)]);
  }
}

// The gradients of a side's product. means: those that add_side summed; scale: of the side's normalisation.
__device__ __forceinline__ void store_side(const Call& call, const Norm& norm, const Compute* d, int side, int hats,
                                           Index step, int j, int H, const Compute* means, Compute scale, Storage* to,
                                           Storage* also) {
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) {
    const Compute hat = load(call.saved[saved_at(step, hats + g, j, H)]);
    const Storage found = store(scale * (d[g] * norm.gain(side, g, j) - means[0] - hat * means[1]));
    to[g * H + j] = found;
    if (also) also[g * H + j] = found;
  }
}

// The gradients of the gates on a side: those of v, but that of n differs between the sides of a GRU.
__device__ __forceinline__ void load_side(const Compute* dv, int side, int j, int H, Compute* d) {
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) d[g] = dv[g * H + j];
#if defined(RK_KIND_GRU) && RK_SIDES == 2
  if (side == 1) d[2] = dv[3 * H + j];
#endif
}

#if defined(RK_KIND_LSTM)
// Writes dv and the gradients of the states, without the product's part. sums: of add_side, of both sides.
__device__ __forceinline__ void backward_gates(const Call& call, const Norm& norm, const Storage* dy, Compute* dh,
                                               Compute* dc, Compute* dv, bool replaces_dh, Index step, int H,
                                               Compute* sums) {
  const int G = Cell::kGates;
  const Compute scale = ((const Compute*)call.operand)[step * Cell::kStatistics + 2];
  Compute means[2] = {};
  for (int j = threadIdx.x; j < H; j += blockDim.x) {
    const Compute gain = norm.row(2 * G, j);
    const Compute hat = load(call.saved[saved_at(step, 3 * G, j, H)]);
    const Compute dh_j = dh[j] + (dy ? load(dy[j]) : Compute(0));
    Compute da_o, dshifted;
    Cell::output_backward(load(call.saved[saved_at(step, 3, j, H)]), hat * gain + norm.row(2 * G + 1, j), dh_j, da_o,
                          dshifted);
    if (RK_CARRIES) dshifted += dc[j];
    dv[3 * H + j] = da_o;
    dv[4 * H + j] = dshifted;
    if (replaces_dh) dh[j] = Compute(0);
    means[0] += dshifted * gain;
    means[1] += dshifted * gain * hat;
  }
  block_sums<2>(means);
  means[0] /= (Compute)H;
  means[1] /= (Compute)H;
  for (int j = threadIdx.x; j < H; j += blockDim.x) {
    Compute gate[3], d[G], dc_prev;
#pragma unroll
    for (int g = 0; g < 3; ++g) gate[g] = load(call.saved[saved_at(step, g, j, H)]);
    const Compute hat = load(call.saved[saved_at(step, 3 * G, j, H)]);
    Compute dc_j = scale * (dv[4 * H + j] * norm.row(2 * G, j) - means[0] - hat * means[1]);
    if (!RK_CARRIES) dc_j += dc[j];
    Cell::gates_backward(gate[0], gate[1], gate[2], call.c_prev[step * H + j], dc_j, d, dc_prev);
    dc[j] = dc_prev;
#pragma unroll
    for (int g = 0; g < 3; ++g) dv[g * H + j] = d[g];
    d[3] = dv[3 * H + j];
    add_side(call, norm, d, 0, G, step, j, H, sums);
    add_side(call, norm, d, 1, 2 * G, step, j, H, sums + 2);
  }
}
#else
__device__ __forceinline__ void backward_gates(const Call& call, const Norm& norm, const Storage* dy, Compute* dh,
                                               Compute*, Compute* dv, bool, Index step, int H, Compute* sums) {
  const int G = Cell::kGates;
  const int last = Cell::kSides - 1;
  for (int j = threadIdx.x; j < H; j += blockDim.x) {
    Compute gate[G], d[4], direct;
#pragma unroll
    for (int g = 0; g < G; ++g) gate[g] = load(call.saved[saved_at(step, g, j, H)]);
    const Compute hat = load(call.saved[saved_at(step, (1 + Cell::kSides) * G - 1, j, H)]);
    Compute reset_n = hat * norm.gain(last, 2, j) + norm.bias(1, 2, j);
    if (Cell::kSides == 1) reset_n += norm.bias(0, 2, j);
    const Compute h_prev = load(call.h_prev[step * H + j]);
    const Compute dh_j = dh[j] + (dy ? load(dy[j]) : Compute(0));
    Cell::backward(gate[0], gate[1], gate[2], reset_n, h_prev, dh_j, d, direct);
    dh[j] = direct;
#pragma unroll
    for (int g = 0; g < Cell::kNormGradients; ++g) dv[g * H + j] = d[g];
    add_side(call, norm, d, 0, G, step, j, H, sums);
#if RK_SIDES == 2
    d[2] = d[3];
    add_side(call, norm, d, 1, 2 * G, step, j, H, sums + 2);
#endif
  }
}
#endif

extern "C" __global__ void __launch_bounds__(256, 2)
backward_step(const Call* given, Storage* dgates_x, Storage* dgates_h, Storage* now, Compute* dh, Compute* dc, Compute* dv,
              int most, int H, int t) {
  const int G = Cell::kGates;
  const Call call = *given;
  const Live live = live_rows(call, t, most);
  const Norm norm(given, H);
  const Index GH = (Index)G * H;
  const int rows = now ? most : live.rows;
  for (int b = blockIdx.x; b < rows; b += gridDim.x) {
    if (b >= live.rows) {
      for (int j = threadIdx.x; j < H; j += blockDim.x) {
#pragma unroll
        for (int g = 0; g < G; ++g) now[b * GH + g * H + j] = store(Compute(0));
      }
      continue;
    }
    const Index step = live.first + b;
    const Index row = step - call.n0;
    const Index at = (Index)b * H;
    Compute* const dv_row = dv + row * Cell::kNormGradients * H;
    Compute sums[2 * Cell::kSides] = {};
    backward_gates(call, norm, dy_row(call, t, b), dh + at, dc + at, dv_row, now != nullptr, step, H, sums);
    block_sums<2 * Cell::kSides>(sums);
#pragma unroll
    for (int i = 0; i < 2 * Cell::kSides; ++i) sums[i] /= (Compute)GH;
    const Compute* const scales = (const Compute*)call.operand + step * Cell::kStatistics;
    Storage* const now_row = now ? now + b * GH : nullptr;
    for (int j = threadIdx.x; j < H; j += blockDim.x) {
      Compute d[G];
      load_side(dv_row, 0, j, H, d);
#if RK_SIDES == 2
      store_side(call, norm, d, 0, G, step, j, H, sums, scales[0], dgates_x + row * GH, nullptr);
      load_side(dv_row, 1, j, H, d);
      store_side(call, norm, d, 1, 2 * G, step, j, H, sums + 2, scales[1], dgates_h + row * GH, now_row);
#else
      store_side(call, norm, d, 0, G, step, j, H, sums, scales[0], dgates_x + row * GH, now_row);
#endif
    }
  }
}

// norm_eps, the weights per unit (units), and the biases (GH,), or zeros for a null one, after the Call: see Norm.
extern "C" __global__ void __launch_bounds__(256, 2)
set_norm(Call* call, const Storage* weights, const Storage* b_ih, const Storage* b_hh, Index units, Index GH,
         Compute eps) {
  Compute* const to = (Compute*)((char*)call + RK_CALL_BYTES);
  if (first_index() == 0) to[0] = eps;
  for (Index i = first_index(); i < units + 2 * GH; i += index_stride()) {
    const Storage* const bias = i < units + GH ? b_ih : b_hh;
    const Index at = i < units + GH ? i - units : i - units - GH;
    to[1 + i] = i < units ? load(weights[i]) : bias ? load(bias[at]) : Compute(0);
  }
}

// What a row-step adds to the gradient of a row of Norm: a block of dv, times a saved value unless that is -1.
struct Summand {
  int d, hat;
};

__device__ __forceinline__ Summand summand_of(int row) {
  const int G = Cell::kGates;
  const bool bias = row >= Cell::kUnitWeights;
#if defined(RK_KIND_LSTM)
  if (row == 2 * G) return {4, 3 * G};
  if (row == 2 * G + 1) return {4, -1};
#endif
  const int number = bias ? row - Cell::kUnitWeights : row;
  const int side = number / G;
  const int g = number - side * G;
#if defined(RK_KIND_GRU) && RK_SIDES == 2
  const int d = side == 1 && g == 2 ? 3 : g;
#else
  const int d = g;
#endif
  return {d, bias ? -1 : (1 + side) * G + g};
}

// partial (gridDim.y, count*H): the sums over the N row-steps of a chunk of what they add to the gradients of `count`
// rows of Norm from `first` on; each block along y sums a part of the row-steps, as column_sums of kernels/cuda/rows.cu.
// dv and saved begin at the chunk. blockDim = (32, 8).
extern "C" __global__ void __launch_bounds__(256, 2)
norm_sums(Compute* partial, const Compute* dv, const Storage* saved, Index N, int H, int first, int count) {
  __shared__ Compute sums[8][32];
  const Index K = (Index)count * H;
  const Index k = (Index)blockIdx.x * 32 + threadIdx.x;
  const Index stride = (Index)gridDim.y * 8;
  LongSum total = {0, 0};
  if (k < K) {
    const int row = (int)(k / H);
    const int j = (int)(k - (Index)row * H);
    const Summand of = summand_of(first + row);
    for (Index n = (Index)blockIdx.y * 8 + threadIdx.y; n < N;) {
      const Index chain = n + kChain * stride;
      const Index end = chain < N ? chain : N;
      Compute sum = 0;
      for (; n < end; n += stride) {
        const Compute d = dv[(n * Cell::kNormGradients + of.d) * H + j];
        sum += of.hat < 0 ? d : d * load(saved[saved_at(n, of.hat, j, H)]);
      }
      total.add(sum);
    }
  }
  sums[threadIdx.y][threadIdx.x] = total.value();
  __syncthreads();
  for (int half = 4; half; half /= 2) {
    if (threadIdx.y < half) sums[threadIdx.y][threadIdx.x] += sums[threadIdx.y + half][threadIdx.x];
    __syncthreads();
  }
  if (threadIdx.y == 0 && k < K) partial[blockIdx.y * K + k] = sums[0][threadIdx.x];
}
