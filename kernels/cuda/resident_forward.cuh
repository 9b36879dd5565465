// The forward pass of the resident schedules. Per step: h W_hh^T of a tile's rows, the cell on the sums where they are,
// in registers, and the new h to the next step's buffer. States stay in registers between steps.

struct ForwardArrays {
  const Compute* x_side;   // (rows of the chunk, G*H) products of x, without biases
  const Compute* bias;     // (2, G*H) b_ih, then b_hh
  const Vec* weights;      // W_hh as pack_weights leaves it
  const Storage* h;        // (B, H) states in sorted order
  Storage* h_out;          // (B, H) the states after the chunk; another array where a tile has several members, because
                           // a member may end before another one has read h
  Compute* c;              // (B, H), or null; updated in place
  Storage* y;              // (T, B, H)
  Storage* saved;          // (N, kSaved, H), or null; with h_prev (N, H), and c_prev (N, H) where the cell has c
  Storage* h_prev;
  Compute* c_prev;
  const Index* order;      // (B,) see rows.cuh
  int H;
};

// The (unit, row) pairs that a lane applies the cell to: all kPairs of its sums, or a part of them where kSplits warps
// share the columns of a tile of units.
template <int kSplits>
struct Owned {
  static constexpr int kPairsOwned = kSplits < kPairs ? kPairs / kSplits : 1;
  int first;
  __device__ __forceinline__ explicit Owned(int split) : first(split * kPairsOwned) {}
  __device__ __forceinline__ int pair(int q) const { return kSplits == 1 ? q : first + q; }
  __device__ __forceinline__ bool any() const { return kSplits <= kPairs || first < kPairs; }
};

// kSplits is kAnySplits where the launch decides how many warps share a tile of units: at least kPairs, so that a lane
// has one pair or none, and at most kMostSplits.
constexpr int kAnySplits = 0;
constexpr int kMostSplits = 8;

template <>
struct Owned<kAnySplits> {
  static constexpr int kPairsOwned = 1;
  int first;
  __device__ __forceinline__ explicit Owned(int split) : first(split) {}
  __device__ __forceinline__ int pair(int q) const { return first + q; }
  __device__ __forceinline__ bool any() const { return first < kPairs; }
};

// Shared memory, in this order. The host computes its size: rnnkit/backends/cupy/resident.py.
struct ForwardMemory {
  Vec* weights;      // blocks of columns that are not in registers
  Storage* h;        // 2 tiles of h, alternating
  Compute* bias;     // (2, G, units of the block)
  unsigned* rows;    // (kRows,) the caller's row of each sorted row
  Compute* partial;  // (warps, G, kPairs, 32) sums of the warps that share a tile of units; unless it is one

  __device__ __forceinline__ ForwardMemory(void* memory, int warps, int shared_blocks, int units, int h_size) {
    weights = static_cast<Vec*>(memory);
    h = reinterpret_cast<Storage*>(weights + warps * shared_blocks * Cell::kGates * 64);
    bias = reinterpret_cast<Compute*>(h + 2 * h_size);
    rows = reinterpret_cast<unsigned*>(bias + 2 * Cell::kGates * units);
    partial = reinterpret_cast<Compute*>(rows + kRows);
  }
};

template <int kHeld, int kSplits, class Exchange>
__device__ __forceinline__ void forward_steps(void* memory, const Sequence& all, const ForwardArrays& in,
                                              const Exchange& exchange, int splits = kSplits) {
  constexpr bool kShares = kSplits != 1;
  constexpr int kMost = kSplits == kAnySplits ? kMostSplits : kSplits;
  constexpr int G = Cell::kGates;
  constexpr int Q = Owned<kSplits>::kPairsOwned;
  const unsigned H = in.H;
  const int warps = blockDim.x / 32;
  const int tiles = warps / splits;             // of units, in this block
  const int tile = threadIdx.x / 32 / splits;   // of this warp
  const int split = threadIdx.x / 32 % splits;
  const int blocks = blocks_of(H);
  const int each = (blocks + splits - 1) / splits;  // blocks of columns of a warp
  const int stride = stride_of(H);
  const int u0 = exchange.member() * tiles * kUnits;  // first unit of this block
  const int b0 = exchange.tile() * kRows;
  const Owned<kSplits> owned(split);
  const ForwardMemory shared(memory, warps, each > kHeld ? each - kHeld : 0, tiles * kUnits, rows_size(stride));

  ResidentWeights<G, kHeld> weights;
  const int first = split * each;
  weights.load(in.weights + (Index)(exchange.member() * tiles + tile) * blocks * weights.kSize,
               shared.weights + threadIdx.x / 32 * (each > kHeld ? each - kHeld : 0) * weights.kSize, first,
               first < blocks ? min(each, blocks - first) : 0);
  for (int i = threadIdx.x; i < 2 * G * tiles * kUnits; i += blockDim.x) {
    const int j = u0 + i % (tiles * kUnits);
    shared.bias[i] = j < H ? in.bias[i / (tiles * kUnits) * (Index)H + j] : Compute(0);
  }
  for (int i = threadIdx.x; i < kRows; i += blockDim.x)
    shared.rows[i] = in.order && b0 + i < all.B ? in.order[b0 + i] : b0 + i;
  for (int i = threadIdx.x; i < 2 * rows_size(stride); i += blockDim.x) shared.h[i] = store(Compute(0));
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * H; i += blockDim.x)
    if (b0 + i / H < all.B)
      shared.h[row_at(i / H, stride) + i % H] = operand_of(in.h[(Index)b0 * H + i]);

  // The lane's pairs: unit j[q] of the batch's row b[q], with their states.
  unsigned j[Q], b[Q];
  Compute h[Q], c[Q];
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const int pair = owned.pair(q);
    j[q] = u0 + tile * kUnits + unit_of(pair);
    b[q] = b0 + row_of(pair);
    const bool inside = owned.any() && j[q] < H && b[q] < all.B;
    if (!inside) b[q] = all.B;  // never live
    h[q] = inside ? load(in.h[(Index)b[q] * H + j[q]]) : Compute(0);
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
    const Storage* h_now = shared.h + s % 2 * rows_size(stride);
    Storage* h_next = shared.h + (s + 1) % 2 * rows_size(stride);

    Compute sums[G][kPairs] = {};
    weights.add_product(sums, h_now + first * kBlock, stride);
    if (kShares) {
#pragma unroll
      for (int g = 0; g < G; ++g)
#pragma unroll
        for (int p = 0; p < kPairs; ++p)
          shared.partial[((threadIdx.x / 32 * G + g) * kPairs + p) * 32 + lane_of()] = sums[g][p];
      __syncthreads();
    }
#pragma unroll
    for (int q = 0; q < Q; ++q) {
      if (!owned.any()) break;
      const int pair = owned.pair(q);
      const int unit = tile * kUnits + unit_of(pair);
      Compute u[G], saved[Cell::kSaved], new_h, new_c = 0;
#pragma unroll
      for (int g = 0; g < G; ++g) {
        x[q][g] += shared.bias[g * tiles * kUnits + unit];
        u[g] = shared.bias[(G + g) * tiles * kUnits + unit];
        if (!kShares) u[g] += sums[g][q];
        // Unrolled without a break, so that all loads are in flight at once.
#pragma unroll
        for (int k = 0; k < kMost && kShares; ++k)
          if (k < splits) u[g] += shared.partial[(((tile * splits + k) * G + g) * kPairs + pair) * 32 + lane_of()];
      }
      if (b[q] < now.rows) {
        Cell::forward(x[q], u, h[q], c[q], saved, new_h, new_c);
        const Storage out = store(new_h);
        if (in.saved) {
          const Index at = (all.n0 + now.n) * H;  // the same in all lanes
          const unsigned unit = b[q] * H + j[q];
          in.h_prev[at + unit] = store(h[q]);
          if (Cell::kHasC) in.c_prev[at + unit] = c[q];
          Storage* to = in.saved + at * Cell::kSaved;
#pragma unroll
          for (int k = 0; k < Cell::kSaved; ++k) to[(b[q] * Cell::kSaved + k) * H + j[q]] = store(saved[k]);
        }
        in.y[(all.t0 + now.t) * all.B * H + (shared.rows[row_of(pair)] * H + j[q])] = out;
        h[q] = load(out);
        c[q] = new_c;
      }
      exchange.put(h_next, stride, s, row_of(pair), u0 + unit, operand_of(store(h[q])));
    }
    // Read ahead of the barrier, so that the next product hides the latency.
    load_x(next);
    if (s + 1 < steps) exchange.receive(h_next, stride, s);
    __syncthreads();
    now = next;
    next = after;
  }
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    if (b[q] >= all.B) continue;
    in.h_out[(Index)b[q] * H + j[q]] = store(h[q]);
    if (Cell::kHasC) in.c[(Index)b[q] * H + j[q]] = c[q];
  }
}
