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
//
// Where a step has a second product (resident_stage.cuh), a stage before these computes the gradient of its output,
// meets at a barrier, and multiplies it by the second weights, transposed. Each stage has one operand, which a warp
// writes only after the barrier of the other stage.

struct BackwardArrays {
  const Vec* weights;      // W_hh transposed, as pack_weights leaves it; of the gates of the first product
  const Vec* second;       // the weights of the second product transposed, or null
  const Storage* saved;    // (N, kSaved, H), h_prev (N, R), c_prev (N, H): as the forward pass has saved them
  const Storage* h_prev;
  const Compute* c_prev;
  const Storage* dy;       // (T, B, R) of strides dy_t, dy_b, 1; null for zeros
  Index dy_t, dy_b;
  const Index* order;      // (B,) see rows.cuh
  Storage* dgates_x;       // (rows of the chunk, G*H); one array unless kSplits
  Storage* dgates_h;
  Storage* dprojected;     // (rows of the chunk, R) gradients of the projection's output, or null
  Compute* dh;             // (B, R) gradients of the states in sorted order, updated in place
  Compute* dc;             // (B, H), or null
  unsigned H, R;
};

// What a step reads for one pair.
struct SavedPair {
  Storage saved[Cell::kSaved];
  Storage h_prev;
  Storage dy;
  Compute c_prev;
};

// The stages of the cell's backward for one pair. dh and dc are gradients of the states after the step; dc becomes that
// of the state before. dx and du: of both sides' pre-activations.

#if RK_RESETS_BEFORE

// Adds dy to dh; dx of z and n. Returns the operand of the second product: the gradient of n.
__device__ __forceinline__ Compute first_backward_stage(const SavedPair& pair, Compute& dh,
                                                        Compute (&dx)[Cell::kGates]) {
  dh += load(pair.dy);
  Cell::output_backward(load(pair.saved[1]), load(pair.saved[2]), load(pair.h_prev), dh, dx[1], dx[2]);
  return dx[2];
}

// From the sum of the second product: dx of r. Returns the part of dh that bypasses the first product.
__device__ __forceinline__ Compute apply_backward(const SavedPair& pair, Compute dh, Compute drh, Compute&,
                                                  Compute (&dx)[Cell::kGates], Compute (&)[Cell::kGates]) {
  Compute direct;
  Cell::gates_backward(load(pair.saved[0]), load(pair.saved[1]), load(pair.h_prev), dh, drh, dx[0], direct);
  return direct;
}

#else

// Under projection, the gradient of its output.
__device__ __forceinline__ Compute first_backward_stage(const SavedPair& pair, Compute& dh, Compute (&)[Cell::kGates]) {
  return dh + load(pair.dy);
}

// dm: the sum of the second product. Returns the part of dh that bypasses the first product.
__device__ __forceinline__ Compute apply_backward(const SavedPair& pair, Compute dh, Compute dm, Compute& dc,
                                                  Compute (&dx)[Cell::kGates], Compute (&du)[Cell::kGates]) {
  Compute saved[Cell::kSaved], h_prev = 0, c_prev = 0, direct = 0, dc_prev = 0;
#pragma unroll
  for (int k = 0; k < Cell::kSaved; ++k) saved[k] = load(pair.saved[k]);
  if (Cell::kReadsH) h_prev = load(pair.h_prev);
  if (Cell::kHasC) c_prev = pair.c_prev;
  Cell::backward(saved, h_prev, c_prev, kProjected ? dm : dh + load(pair.dy), dc, dx, du, direct, dc_prev);
  if (Cell::kHasC) dc = dc_prev;
  return direct;
}

#endif

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

// Shared memory, in this order, behind the weights. The host computes its size: Division.backward_bytes of
// rnnkit/backends/cupy/tiles.py.
struct BackwardMemory {
  Storage* operand;  // 2 tiles of dgates_h, alternating; 1 where a step has a second product
  Storage* output;   // a tile of the operand of the second product
  Compute* partial;  // (warps, kPairs, 32) see StageProduct; unless one warp computes a tile of units

  __device__ __forceinline__ BackwardMemory(Vec* behind, int operand_size, int output_size) {
    operand = reinterpret_cast<Storage*>(behind);
    output = operand + (kSecond ? operand_size : 2 * operand_size);
    partial = reinterpret_cast<Compute*>(output + (kSecond ? output_size : 0));
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
      const bool has_dy = live && in.dy && (!kProjected || block.j + 8 * u < in.R);
      pairs[r][u].dy = has_dy ? (in.dy + t * in.dy_t + row[r] + block.j)[8 * u] : store(Compute(0));
    }
  }
}

// One tile of rows of a block with all of W_hh.
template <int kHeld, int kSplits, class Exchange>
__device__ __forceinline__ void backward_steps(void* memory, const Sequence& all, const BackwardArrays& in,
                                               const Exchange& exchange) {
  constexpr int G = Cell::kGates;
  const unsigned H = in.H;
  const unsigned R = kProjected ? in.R : in.H;
  const int tiles = blockDim.x / 32 / kSplits;   // of units, in this block
  const int tile = threadIdx.x / 32 / kSplits;   // of this warp
  const int u0 = exchange.member() * tiles * kUnits;  // first unit of this block
  const int b0 = exchange.tile() * kRows;
  const Owned<kSplits> owned(threadIdx.x / 32 % kSplits);
  typedef OwnedBlock<kSplits> Block;
  constexpr int kRowsOwned = Block::R;
  constexpr int U = Block::U;

  StageProduct<1, kHeld, kSplits> product;
  StageProduct<1, kSecond ? kHeld : 0, kSplits> second;
  const int number = exchange.member() * tiles + tile;
  Vec* behind = product.load(in.weights, static_cast<Vec*>(memory), number, R, kFirst * H, kSplits);
  if (kSecond) behind = second.load(in.second, behind, number, H, R, kSplits);
  const int stride = stride_of(kFirst * H);
  const int size = rows_size(stride);
  const int output_stride = stride_of(R);
  const int output_size = rows_size(output_stride);
  const BackwardMemory shared(behind, size, output_size);
  const int operands = kSecond ? size + output_size : 2 * size;
  for (int i = threadIdx.x; i < operands; i += blockDim.x) shared.operand[i] = store(Compute(0));

  // The lane's pairs, with the gradients of their states.
  const int local_unit = tile * kUnits + unit_of(owned.pair(0));
  const int local_row = row_of(owned.pair(0));
  Block block;
  block.j = u0 + local_unit;
  Index row[kRowsOwned];  // offset in dy
  Compute dh[kRowsOwned][U], dc[kRowsOwned][U];
#pragma unroll
  for (int u = 0; u < U; ++u) block.exists[u] = owned.any() && block.j + 8 * u < H;
#pragma unroll
  for (int r = 0; r < kRowsOwned; ++r) {
    const unsigned b = b0 + local_row + r;
    block.b[r] = b < all.B ? b : all.B;
    row[r] = b < all.B ? (in.order ? in.order[b] : b) * in.dy_b : 0;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const bool inside = b < all.B && block.exists[u];
      const unsigned j = block.j + 8 * u;
      dh[r][u] = inside && j < R ? in.dh[(Index)b * R + j] : Compute(0);
      dc[r][u] = inside && Cell::kHasC ? in.dc[(Index)b * H + j] : Compute(0);
    }
  }
  __syncthreads();

  const int steps = live_steps(all, b0);
  Step now = step_at(all, 0, steps);
  Step next = step_at(all, 1, steps);
  SavedPair pairs[kRowsOwned][U];
  load_pairs<kSplits>(pairs, in, block, now, (all.n0 + now.n) * H, row, all.t0 + now.t);
  for (int s = 0; s < steps; ++s) {
    const Step after = step_at(all, s + 2, steps);
    Storage* operand = shared.operand + (kSecond ? 0 : s % 2 * size);
    Storage* dgates_x = in.dgates_x + (Index)now.n * (G * H);
    Storage* dgates_h = in.dgates_h + (Index)now.n * (G * H);
    Compute direct[kRowsOwned][U], dz[kRowsOwned][U], sums[1][kRowsOwned * U], through[1][kRowsOwned * U];
    if (kSecond) {
#pragma unroll
      for (int r = 0; r < kRowsOwned; ++r)
#pragma unroll
        for (int u = 0; u < U; ++u) {
          const unsigned j = block.j + 8 * u;
          if (!block.live(r, u, now) || j >= R) continue;
          Compute dx[G];
          const Storage out = store(first_backward_stage(pairs[r][u], dh[r][u], dx));
          shared.output[row_at(local_row + r, output_stride) + j] = operand_of(out);
          if (kProjected) in.dprojected[(Index)now.n * R + (block.b[r] * R + j)] = out;
          if (Cell::kResetsBefore) {
            (dgates_x + (block.b[r] * G * H + block.j) + (G - 1) * H)[8 * u] = out;
            dz[r][u] = dx[1 % G];
          }
        }
      __syncthreads();
      second.multiply(through, shared.output, shared.partial, owned);
    }
#pragma unroll
    for (int r = 0; r < kRowsOwned; ++r)
#pragma unroll
      for (int u = 0; u < U; ++u) {
        Compute dx[G], du[G];
        if (!block.live(r, u, now)) continue;
        const Compute dm = kSecond ? through[0][u * kRowsOwned + r] : Compute(0);
        direct[r][u] = apply_backward(pairs[r][u], dh[r][u], dm, dc[r][u], dx, du);
        if (Cell::kResetsBefore) dx[1 % G] = dz[r][u];
        const unsigned at = block.b[r] * G * H + block.j;
        Storage* to = operand + row_at(local_row + r, stride) + block.j;
#pragma unroll
        for (int g = 0; g < kFirst; ++g) {
          const Storage of_x = store(dx[g]);
          const Storage of_h = Cell::kSplits ? store(du[g]) : of_x;
          (dgates_x + at + g * H)[8 * u] = of_x;
          if (Cell::kSplits) (dgates_h + at + g * H)[8 * u] = of_h;
          (to + g * H)[8 * u] = operand_of(of_h);
        }
      }
    load_pairs<kSplits>(pairs, in, block, next, (all.n0 + next.n) * H, row, all.t0 + next.t);
    __syncthreads();
    product.multiply(sums, operand, shared.partial, owned);
#pragma unroll
    for (int r = 0; r < kRowsOwned; ++r)
#pragma unroll
      for (int u = 0; u < U; ++u)
        if (block.live(r, u, now)) dh[r][u] = direct[r][u] + sums[0][u * kRowsOwned + r];
    now = next;
    next = after;
  }
#pragma unroll
  for (int r = 0; r < kRowsOwned; ++r)
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const unsigned j = block.j + 8 * u;
      if (block.b[r] >= all.B || !block.exists[u]) continue;
      if (j < R) in.dh[(Index)block.b[r] * R + j] = dh[r][u];
      if (Cell::kHasC) in.dc[(Index)block.b[r] * H + j] = dc[r][u];
    }
}
