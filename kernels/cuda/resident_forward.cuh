// The forward pass of the resident schedules. Per step: h W_hh^T of a tile's rows, the cell on the sums where they are,
// in registers, and the new h to the next step's operand. Where a step has a second product, the first stage computes
// its operand m instead, and the second one h; see resident_stage.cuh. States stay in registers between steps.

struct ForwardArrays {
  const Compute* x_side;   // (rows of the chunk, G*H) products of x, without biases
  const Compute* bias;     // (2, G*H) b_ih, then b_hh
  const Vec* weights;      // of the first product, as pack_weights leaves them
  const Vec* second;       // of the second product, or null
  const Storage* h;        // (B, R) states in sorted order
  Storage* h_out;          // (B, R) the states after the chunk; another array where a tile has several members, because
                           // a member may end before another one has read h
  Compute* c;              // (B, H), or null; updated in place
  Storage* y;              // (T, B, R) of strides y_t, y_b, 1
  Index y_t, y_b;
  Storage* saved;          // (N, kSaved, H), or null; with h_prev (N, R), c_prev (N, H) where the cell has c, and
  Storage* h_prev;         // operand (N, H), m, where a step has a second product
  Compute* c_prev;
  Storage* operand;
  const Index* order;      // (B,) see rows.cuh
  int H, R;
};

// The stages of the cell for one pair. x: pre-activations of the input's side, u: those of the hidden side of the gates
// that the first product computes; both with biases. saved: values for backward. first_stage returns h, or m.
#if RK_RESETS_BEFORE
__device__ __forceinline__ Compute first_stage(const Compute (&x)[Cell::kGates], const Compute (&u)[kFirst],
                                               Compute h_prev, Compute, Compute (&saved)[Cell::kSaved], Compute&) {
  Compute rh;
  Cell::gates(x[0] + u[0], x[1] + u[1], h_prev, saved[0], saved[1], rh);
  return rh;
}
// x: that of n with both biases. z: of the first stage.
__device__ __forceinline__ Compute second_stage(Compute x, Compute product, Compute z, Compute h_prev, Compute& n) {
  Compute h;
  Cell::output(x + product, z, h_prev, n, h);
  return h;
}
#else
__device__ __forceinline__ Compute first_stage(const Compute (&x)[Cell::kGates], const Compute (&u)[kFirst],
                                               Compute h_prev, Compute c_prev, Compute (&saved)[Cell::kSaved],
                                               Compute& c) {
  Compute h;
  Cell::forward(x, u, h_prev, c_prev, saved, h, c);
  return h;
}
__device__ __forceinline__ Compute second_stage(Compute, Compute product, Compute, Compute, Compute&) {
  return product;
}
#endif

// Shared memory, in this order. The host computes its size: Division.shared_bytes of rnnkit/backends/cupy/tiles.py.
// With a second product, h and m have one tile each: h is written only after a barrier that all warps reach after the
// first product, and m after one that they reach after the second. Else two tiles of h alternate.
struct ForwardMemory {
  Storage* h;        // behind the weights
  Storage* m;        // null without a second product
  Compute* bias;     // (2, G, units of the block)
  unsigned* rows;    // (kRows,) the caller's row of each sorted row
  Compute* partial;  // (warps, kFirst, kPairs, 32) see StageProduct; unless one warp computes a tile of units

  __device__ __forceinline__ ForwardMemory(Vec* behind, int units, int h_size, int m_size) {
    h = reinterpret_cast<Storage*>(behind);
    m = kSecond ? h + h_size : nullptr;
    bias = reinterpret_cast<Compute*>(h + (kSecond ? h_size + m_size : 2 * h_size));
    rows = reinterpret_cast<unsigned*>(bias + 2 * Cell::kGates * units);
    partial = reinterpret_cast<Compute*>(rows + kRows);
  }
};

template <int kHeld, int kSplits, class Exchange>
__device__ __forceinline__ void forward_steps(void* memory, const Sequence& all, const ForwardArrays& in,
                                              const Exchange& exchange, int splits = kSplits) {
  constexpr int G = Cell::kGates;
  constexpr int Q = Owned<kSplits>::kPairsOwned;
  constexpr int kStages = kSecond ? 2 : 1;
  const unsigned H = in.H;
  const unsigned R = kProjected ? in.R : in.H;
  const int tiles = blockDim.x / 32 / splits;   // of units, in this block
  const int tile = threadIdx.x / 32 / splits;   // of this warp
  const int u0 = exchange.member() * tiles * kUnits;  // first unit of this block
  const int b0 = exchange.tile() * kRows;
  const Owned<kSplits> owned(threadIdx.x / 32 % splits);

  StageProduct<kFirst, kHeld, kSplits> product;
  StageProduct<1, kSecond ? kHeld : 0, kSplits> second;
  const int number = exchange.member() * tiles + tile;
  Vec* behind = product.load(in.weights, static_cast<Vec*>(memory), number, H, R, splits);
  if (kSecond) behind = second.load(in.second, behind, number, R, H, splits);
  const int stride = stride_of(R);
  const int m_stride = stride_of(H);
  const ForwardMemory shared(behind, tiles * kUnits, rows_size(stride), rows_size(m_stride));
  for (int i = threadIdx.x; i < 2 * G * tiles * kUnits; i += blockDim.x) {
    const int j = u0 + i % (tiles * kUnits);
    shared.bias[i] = j < H ? in.bias[i / (tiles * kUnits) * (Index)H + j] : Compute(0);
  }
  for (int i = threadIdx.x; i < kRows; i += blockDim.x)
    shared.rows[i] = in.order && b0 + i < all.B ? in.order[b0 + i] : b0 + i;
  const int operands = kSecond ? rows_size(stride) + rows_size(m_stride) : 2 * rows_size(stride);
  for (int i = threadIdx.x; i < operands; i += blockDim.x) shared.h[i] = store(Compute(0));
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * R; i += blockDim.x)
    if (b0 + i / R < all.B)
      shared.h[row_at(i / R, stride) + i % R] = operand_of(in.h[(Index)b0 * R + i]);

  // The lane's pairs: unit j[q] of the batch's row b[q], with their states. A pair of H that R lacks has h = 0.
  unsigned j[Q], b[Q];
  Compute h[Q], c[Q];
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const int pair = owned.pair(q);
    j[q] = u0 + tile * kUnits + unit_of(pair);
    b[q] = b0 + row_of(pair);
    const bool inside = owned.any() && j[q] < H && b[q] < all.B;
    if (!inside) b[q] = all.B;  // never live
    h[q] = inside && j[q] < R ? load(in.h[(Index)b[q] * R + j[q]]) : Compute(0);
    c[q] = inside && Cell::kHasC ? in.c[(Index)b[q] * H + j[q]] : Compute(0);
  }
  __syncthreads();

  const int steps = live_steps(all, b0);
  Step now = step_at(all, 0, steps);
  Step next = step_at(all, 1, steps);
  Compute x[Q][G];
  auto load_x = [&](const Step& step) {
    const Compute* from = in.x_side + (Index)step.n * (G * H);
#pragma unroll
    for (int q = 0; q < Q; ++q)
#pragma unroll
      for (int g = 0; g < G; ++g)
        x[q][g] = b[q] < step.rows ? from[(b[q] * G + g) * H + j[q]] : Compute(0);
  };
  load_x(now);
  for (int s = 0; s < steps; ++s) {
    const Step after = step_at(all, s + 2, steps);
    const Storage* h_now = shared.h + (kSecond ? 0 : s % 2 * rows_size(stride));
    Storage* h_next = shared.h + (kSecond ? 0 : (s + 1) % 2 * rows_size(stride));
    const int message = kStages * s;
    Compute z[Q];

    Compute sums[kFirst][Q];
    product.multiply(sums, h_now, shared.partial, owned);
#pragma unroll
    for (int q = 0; q < Q; ++q) {
      if (!owned.any()) break;
      const int row = row_of(owned.pair(q));
      const int unit = tile * kUnits + unit_of(owned.pair(q));
      Compute u[kFirst], saved[Cell::kSaved], new_c = 0, out = 0;
#pragma unroll
      for (int g = 0; g < G; ++g) {
        x[q][g] += shared.bias[g * tiles * kUnits + unit];
        const Compute bias = shared.bias[(G + g) * tiles * kUnits + unit];
        if (g < kFirst)
          u[g] = bias + sums[g][q];
        else
          x[q][g] += bias;
      }
      if (b[q] < now.rows) {
        out = first_stage(x[q], u, h[q], c[q], saved, new_c);
        if (in.saved) {
          const Index at = (all.n0 + now.n) * H;  // the same in all lanes
          const unsigned unit = b[q] * H + j[q];
          if (!kProjected) in.h_prev[at + unit] = store(h[q]);
          if (kProjected && j[q] < R) in.h_prev[(all.n0 + now.n) * R + (b[q] * R + j[q])] = store(h[q]);
          if (Cell::kHasC) in.c_prev[at + unit] = c[q];
          if (kSecond) in.operand[at + unit] = store(out);
          Storage* to = in.saved + at * Cell::kSaved;
#pragma unroll
          for (int k = 0; k < Cell::kSaved; ++k)
            if (!Cell::kResetsBefore || k < kFirst) to[(b[q] * Cell::kSaved + k) * H + j[q]] = store(saved[k]);
        }
        c[q] = new_c;
        if (Cell::kResetsBefore) z[q] = saved[1];
        if (!kSecond) {
          const Storage stored = store(out);
          in.y[(all.t0 + now.t) * in.y_t + (shared.rows[row] * in.y_b + j[q])] = stored;
          h[q] = load(stored);
        }
      }
      if (kSecond)
        exchange.put(shared.m, m_stride, H, message, row, u0 + unit, operand_of(store(out)));
      else
        exchange.put(h_next, stride, H, message, row, u0 + unit, operand_of(store(h[q])));
    }
    if (kSecond) {
      if (u0 < R) exchange.receive(shared.m, m_stride, H, message);  // else this block has no units of the product
      __syncthreads();
      Compute sum[1][Q];
      second.multiply(sum, shared.m, shared.partial, owned);
#pragma unroll
      for (int q = 0; q < Q; ++q) {
        if (!owned.any()) break;
        const int row = row_of(owned.pair(q));
        if (b[q] < now.rows && j[q] < R) {
          Compute n = 0;
          const Storage stored = store(second_stage(x[q][G - 1], sum[0][q], z[q], h[q], n));
          if (Cell::kResetsBefore && in.saved)
            (in.saved + (all.n0 + now.n) * H * Cell::kSaved)[(b[q] * Cell::kSaved + 2) * H + j[q]] = store(n);
          in.y[(all.t0 + now.t) * in.y_t + (shared.rows[row] * in.y_b + j[q])] = stored;
          h[q] = load(stored);
        }
        exchange.put(h_next, stride, R, message + 1, row, j[q], operand_of(store(h[q])));
      }
    }
    // Read ahead of the barrier, so that the next product hides the latency.
    load_x(next);
    if (s + 1 < steps) exchange.receive(h_next, stride, R, message + kStages - 1);
    __syncthreads();
    now = next;
    next = after;
  }
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    if (b[q] >= all.B) continue;
    if (j[q] < R) in.h_out[(Index)b[q] * R + j[q]] = store(h[q]);
    if (Cell::kHasC) in.c[(Index)b[q] * H + j[q]] = c[q];
  }
}
