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

// The cell's backward for one pair: dx and du, the gradients of both sides' pre-activations. dh and dc are those of the
// states after the step; dc becomes that of the state before. Returns the part of dh that bypasses the product.
__device__ __forceinline__ Compute apply_backward(const SavedPair& pair, Compute dh, Compute& dc,
                                                  Compute (&dx)[Cell::kGates], Compute (&du)[Cell::kGates]) {
  Compute saved[Cell::kSaved], h_prev = 0, c_prev = 0, direct = 0, dc_prev = 0;
#pragma unroll
  for (int k = 0; k < Cell::kSaved; ++k) saved[k] = load(pair.saved[k]);
  if (Cell::kReadsH) h_prev = load(pair.h_prev);
  if (Cell::kHasC) c_prev = pair.c_prev;
  Cell::backward(saved, h_prev, c_prev, dh + load(pair.dy), dc, dx, du, direct, dc_prev);
  if (Cell::kHasC) dc = dc_prev;
  return direct;
}

// The (unit, row) pairs that a lane applies the cell to: U units, 8 apart, of each of R rows; see Owned.
template <int kSplits>
struct OwnedBlock {
  static constexpr int Q = Owned<kSplits>::kPairsOwned;
  static constexpr int R = Q < kLaneRows ? Q : kLaneRows;
  static constexpr int U = Q / R;
  unsigned j;      // the first unit
  unsigned b[R];   // rows of the batch; all.B for one that does not exist
  bool exists[U];  // whether the units do

  __device__ __forceinline__ bool live(int r, int u, const Step& step) const { return b[r] < step.rows && exists[u]; }
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

// Without branches: the loads of all pairs are in flight at once. at: offset of the step's first row in h_prev.
template <int kSplits, class Block = OwnedBlock<kSplits>>
__device__ __forceinline__ void load_pairs(SavedPair (&pairs)[Block::R][Block::U], const BackwardArrays& in,
                                           const Block& block, const Step& step, Index at, const Index (&row)[Block::R],
                                           Index t) {
  const unsigned H = in.H;
#pragma unroll
  for (int r = 0; r < Block::R; ++r) {
    const unsigned first = block.b[r] * H + block.j;
    const Storage* saved = in.saved + at * Cell::kSaved + (block.b[r] * Cell::kSaved * H + block.j);
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k, saved += H)
#pragma unroll
      for (int u = 0; u < Block::U; ++u)
        pairs[r][u].saved[k] = block.live(r, u, step) ? saved[8 * u] : store(Compute(0));
#pragma unroll
    for (int u = 0; u < Block::U; ++u) {
      const bool live = block.live(r, u, step);
      if (Cell::kReadsH) pairs[r][u].h_prev = live ? (in.h_prev + at + first)[8 * u] : store(Compute(0));
      if (Cell::kHasC) pairs[r][u].c_prev = live ? (in.c_prev + at + first)[8 * u] : Compute(0);
      pairs[r][u].dy = live && in.dy ? (in.dy + t * in.dy_t + row[r] + block.j)[8 * u] : store(Compute(0));
    }
  }
}

template <int kHeld, int kSplits, class Exchange>
__device__ __forceinline__ void backward_steps(void* memory, const Sequence& all, const BackwardArrays& in,
                                               const Exchange& exchange) {
  constexpr int G = Cell::kGates;
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

  // The lane's pairs, with the gradients of their states.
  typedef OwnedBlock<kSplits> Block;
  constexpr int R = Block::R;
  constexpr int U = Block::U;
  const int local_unit = tile * kUnits + unit_of(owned.pair(0));
  const int local_row = row_of(owned.pair(0));
  Block block;
  block.j = u0 + local_unit;
  Index row[R];  // offset in dy
  Compute dh[R][U], dc[R][U];
#pragma unroll
  for (int u = 0; u < U; ++u) block.exists[u] = owned.any() && block.j + 8 * u < H;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const unsigned b = b0 + local_row + r;
    block.b[r] = b < all.B ? b : all.B;
    row[r] = b < all.B ? (in.order ? in.order[b] : b) * in.dy_b : 0;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const bool inside = b < all.B && block.exists[u];
      const Index at = (Index)b * H + block.j + 8 * u;
      dh[r][u] = inside ? in.dh[at] : Compute(0);
      dc[r][u] = inside && Cell::kHasC ? in.dc[at] : Compute(0);
    }
  }
  __syncthreads();

  const int steps = live_steps(all, b0);
  Step now = step_at(all, 0, steps);
  Step next = step_at(all, 1, steps);
  SavedPair pairs[R][U];
  load_pairs<kSplits>(pairs, in, block, now, (all.n0 + now.n) * H, row, all.t0 + now.t);
  for (int s = 0; s < steps; ++s) {
    const Step after = step_at(all, s + 2, steps);
    Storage* operand = shared.operand + s % 2 * size;
    Storage* dgates_x = in.dgates_x + (Index)now.n * (G * H);
    Storage* dgates_h = in.dgates_h + (Index)now.n * (G * H);
    Compute direct[R][U];
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int u = 0; u < U; ++u) {
        Compute dx[G], du[G];
        if (!block.live(r, u, now)) continue;
        direct[r][u] = apply_backward(pairs[r][u], dh[r][u], dc[r][u], dx, du);
        const unsigned at = block.b[r] * G * H + block.j;
        Storage* to = operand + row_at(local_row + r, stride) + block.j;
#pragma unroll
        for (int g = 0; g < G; ++g) {
          const Storage of_x = store(dx[g]);
          const Storage of_h = Cell::kSplits ? store(du[g]) : of_x;
          (dgates_x + at + g * H)[8 * u] = of_x;
          if (Cell::kSplits) (dgates_h + at + g * H)[8 * u] = of_h;
          (to + g * H)[8 * u] = operand_of(of_h);
        }
      }
    load_pairs<kSplits>(pairs, in, block, next, (all.n0 + next.n) * H, row, all.t0 + next.t);
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
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int u = 0; u < U; ++u) {
        Compute sum = kSplits == 1 ? sums[0][u * kLaneRows + r] : Compute(0);
#pragma unroll
        for (int k = 0; k < kSplits && kSplits > 1; ++k)
          sum += shared.partial[((tile * kSplits + k) * kPairs + owned.pair(u * R + r)) * 32 + lane_of()];
        if (block.live(r, u, now)) dh[r][u] = direct[r][u] + sum;
      }
    now = next;
    next = after;
  }
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (block.b[r] >= all.B || !block.exists[u]) continue;
      const Index at = (Index)block.b[r] * H + block.j + 8 * u;
      in.dh[at] = dh[r][u];
      if (Cell::kHasC) in.dc[at] = dc[r][u];
    }
}
