// The backward pass of the resident schedules. Per step, of the live rows of a tile:
//
//   1. a lane computes the gradients of its (unit, row) pairs' pre-activations from saved values, dh and dc. It writes
//      them to dgates_x and dgates_h, and those of the recurrent side to the operand in shared memory
//   2. it reads the saved values of the next step, so that the product hides their latency
//   3. barrier
//   4. dh = dgates_h W_hh for the same pairs, plus the part of dh that bypasses the product
//
// The weights of that product are W_hh transposed: one output, K = G*H columns, column g*H + j being gate g of unit j.
// dh and dc stay in registers between steps. There are two operands, which alternate. So one barrier per step is
// enough: a warp writes an operand again only after the barrier of the step between, which every warp reaches after
// its product with that operand.

struct BackwardArrays {
  const Vec* weights;      // W_hh transposed, as pack_weights leaves it
  const Storage* saved;    // (N, kSaved, H), h_prev (N, H), c_prev (N, H): as the forward pass has saved them
  const Storage* h_prev;
  const Compute* c_prev;
  const Storage* dy;       // (T, B, H) of strides dy_t, dy_b, 1; null for zeros
  Index dy_t, dy_b;
  const Index* order;      // (B,) see rows.cuh
  Storage* dgates_x;       // (rows of the chunk, G*H); one array unless kSplits
  Storage* dgates_h;
  Compute* dh;             // (B, H) gradients of the states in sorted order, updated in place
  Compute* dc;             // (B, H), or null
  unsigned H;
};

// What a step reads for one pair.
struct SavedPair {
  Storage saved[Cell::kSaved];
  Storage h_prev;
  Storage dy;
  Compute c_prev;
};

// Shared memory, in this order. The host computes its size: rnnkit/backends/cupy/resident.py.
struct BackwardMemory {
  Vec* weights;      // blocks of columns that are not in registers
  Storage* operand;  // 2 tiles of dgates_h, alternating
  Compute* partial;  // (warps, kPairs, 32) sums of the warps that share a tile of units; unless kSplits is 1

  __device__ __forceinline__ BackwardMemory(void* memory, int warps, int shared_blocks, int operand_size) {
    weights = static_cast<Vec*>(memory);
    operand = reinterpret_cast<Storage*>(weights + warps * shared_blocks * 64);
    partial = reinterpret_cast<Compute*>(operand + 2 * operand_size);
  }
};

// at: offset of the step's first row in h_prev. dy: of the step, the caller's row and the unit; null for zero.
__device__ __forceinline__ SavedPair load_pair(const BackwardArrays& in, Index at, unsigned b, unsigned j,
                                               const Storage* dy) {
  SavedPair pair;
  const Storage* saved = in.saved + at * Cell::kSaved;
#pragma unroll
  for (int k = 0; k < Cell::kSaved; ++k) pair.saved[k] = saved[(b * Cell::kSaved + k) * in.H + j];
  if (Cell::kReadsH) pair.h_prev = (in.h_prev + at)[b * in.H + j];
  if (Cell::kHasC) pair.c_prev = (in.c_prev + at)[b * in.H + j];
  pair.dy = dy ? *dy : store(Compute(0));
  return pair;
}

template <int kHeld, int kSplits, class Exchange>
__device__ __forceinline__ void backward_steps(void* memory, const Sequence& all, const BackwardArrays& in,
                                               const Exchange& exchange) {
  constexpr int G = Cell::kGates;
  constexpr int Q = Owned<kSplits>::kPairsOwned;
  const unsigned H = in.H;
  const int warps = blockDim.x / 32;
  const int tiles = warps / kSplits;             // of units, in this block
  const int tile = threadIdx.x / 32 / kSplits;   // of this warp
  const int split = threadIdx.x / 32 % kSplits;
  const int blocks = blocks_of(G * H);
  const int each = (blocks + kSplits - 1) / kSplits;  // blocks of columns of a warp
  const int stride = stride_of(G * H);
  const int size = rows_size(stride);
  const int u0 = exchange.member() * tiles * kUnits;  // first unit of this block
  const int b0 = exchange.tile() * kRows;
  const Owned<kSplits> owned(split);
  const BackwardMemory shared(memory, warps, each > kHeld ? each - kHeld : 0, size);

  ResidentWeights<1, kHeld> weights;
  const int first = split * each;
  weights.load(in.weights + (Index)(exchange.member() * tiles + tile) * blocks * weights.kSize,
               shared.weights + threadIdx.x / 32 * (each > kHeld ? each - kHeld : 0) * weights.kSize, first,
               first < blocks ? min(each, blocks - first) : 0);
  for (int i = threadIdx.x; i < 2 * size; i += blockDim.x) shared.operand[i] = store(Compute(0));

  // The lane's pairs: unit j[q] of the batch's row b[q], with the gradients of their states.
  unsigned j[Q], b[Q];
  Index row[Q];  // offset of the pair's row in dy
  Compute dh[Q], dc[Q];
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const int pair = owned.pair(q);
    j[q] = u0 + tile * kUnits + unit_of(pair);
    b[q] = b0 + row_of(pair);
    const bool inside = owned.any() && j[q] < H && b[q] < all.B;
    if (!inside) b[q] = all.B;  // never live
    row[q] = inside ? (in.order ? in.order[b[q]] : b[q]) * in.dy_b : 0;
    dh[q] = inside ? in.dh[(Index)b[q] * H + j[q]] : Compute(0);
    dc[q] = inside && Cell::kHasC ? in.dc[(Index)b[q] * H + j[q]] : Compute(0);
  }
  __syncthreads();

  const int steps = live_steps(all, b0);
  Step now = step_at(all, 0, steps);
  Step next = step_at(all, 1, steps);
  SavedPair pairs[Q];
  auto load_pairs = [&](const Step& step) {
#pragma unroll
    for (int q = 0; q < Q; ++q)
      if (b[q] < step.rows) {
        const Storage* dy = in.dy ? in.dy + (all.t0 + step.t) * in.dy_t + row[q] + j[q] : nullptr;
        pairs[q] = load_pair(in, (all.n0 + step.n) * H, b[q], j[q], dy);
      }
  };
  load_pairs(now);
  for (int s = 0; s < steps; ++s) {
    const Step after = step_at(all, s + 2, steps);
    Storage* operand = shared.operand + s % 2 * size;
    Compute direct[Q];
#pragma unroll
    for (int q = 0; q < Q; ++q) {
      const int pair = owned.pair(q);
      if (b[q] < now.rows) {
        Compute saved[Cell::kSaved], dx[G], du[G], h_prev = 0, c_prev = 0, dc_prev = 0;
#pragma unroll
        for (int k = 0; k < Cell::kSaved; ++k) saved[k] = load(pairs[q].saved[k]);
        if (Cell::kReadsH) h_prev = load(pairs[q].h_prev);
        if (Cell::kHasC) c_prev = pairs[q].c_prev;
        direct[q] = 0;
        Cell::backward(saved, h_prev, c_prev, dh[q] + load(pairs[q].dy), dc[q], dx, du, direct[q], dc_prev);
        dc[q] = dc_prev;
        const Index at = (Index)now.n * (G * H);  // the same in all lanes
#pragma unroll
        for (int g = 0; g < G; ++g) {
          const Storage of_x = store(dx[g]);
          const Storage of_h = Cell::kSplits ? store(du[g]) : of_x;
          const unsigned gate = (b[q] * G + g) * H + j[q];
          (in.dgates_x + at)[gate] = of_x;
          if (Cell::kSplits) (in.dgates_h + at)[gate] = of_h;
          exchange.put(operand, stride, row_of(pair), g * H + j[q], operand_of(of_h));
        }
      }
    }
    load_pairs(next);
    __syncthreads();
    Compute sums[1][kPairs] = {};
    weights.add_product(sums, operand + first * kBlock, stride);
    if (kSplits > 1) {
#pragma unroll
      for (int p = 0; p < kPairs; ++p)
        shared.partial[(threadIdx.x / 32 * kPairs + p) * 32 + lane_of()] = sums[0][p];
      __syncthreads();
    }
#pragma unroll
    for (int q = 0; q < Q; ++q) {
      if (b[q] >= now.rows) continue;
      Compute sum = kSplits == 1 ? sums[0][q] : Compute(0);
#pragma unroll
      for (int k = 0; k < kSplits && kSplits > 1; ++k)
        sum += shared.partial[((tile * kSplits + k) * kPairs + owned.pair(q)) * 32 + lane_of()];
      dh[q] = direct[q] + sum;
    }
    now = next;
    next = after;
  }
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    if (b[q] >= all.B) continue;
    in.dh[(Index)b[q] * H + j[q]] = dh[q];
    if (Cell::kHasC) in.dc[(Index)b[q] * H + j[q]] = dc[q];
  }
}
