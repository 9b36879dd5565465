// The backward steps of the schedules whose blocks ("members") hold W_hh together, each the G*units rows of its own
// `units` units. Per step:
//
//   1. each thread computes the gradients of its (unit, row) pairs' pre-activations, writes them to dgates_x and
//      dgates_h, and those of the recurrent side to the operand in shared memory: (rows, G*units)
//   2. barrier
//   3. the product with the member's rows of W_hh: this member's part of dh of all H units
//   4. every part is sent to the member that owns its unit, which adds up the parts of all members
//
// So partial sums travel, in the compute dtype, and not the gradients of all gates, of which every member would need
// all. That is 4 bytes per row and unit into a member, and 4 out of it, where the gradients would be 2 G in 16 bits and
// 4 G in 32 bits; and the operand stays small.
//
// A policy `Parts` says which blocks serve which tile of rows, and how parts travel: its members `members` and `units`;
// `begin`, a barrier of the block at least, before the first step; `send`, 4 adjacent units of a row; then `receive`,
// called by all threads, after which `sum` is the sum of all members' parts of a pair, in the order of the members.
//
// Adjacent units of a part are in one lane, and travel together: see pack_parts.

// The pairs of a thread: row * units + unit is threadIdx.x, and that plus multiples of the block.
struct OwnPair {
  int row, unit;  // from the tile's and the member's first
  unsigned b, j;  // of the batch and of the layer; b is all.B for a pair that does not exist
  Index dy;       // offset of the pair in dy at time step 0
};

template <int kOwn>
__device__ __forceinline__ void load_pairs(SavedPair (&pairs)[kOwn], const BackwardArrays& in,
                                           const OwnPair (&own)[kOwn], const Step& step, Index at, Index t) {
#pragma unroll
  for (int o = 0; o < kOwn; ++o) {
    if (own[o].b >= step.rows) continue;
    const unsigned unit = own[o].b * in.H + own[o].j;
    const Storage* saved = in.saved + at * Cell::kSaved + (own[o].b * Cell::kSaved * in.H + own[o].j);
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k, saved += in.H) pairs[o].saved[k] = *saved;
    if (Cell::kReadsH) pairs[o].h_prev = (in.h_prev + at)[unit];
    if (Cell::kHasC) pairs[o].c_prev = (in.c_prev + at)[unit];
    pairs[o].dy = in.dy ? (in.dy + t * in.dy_t)[own[o].dy] : store(Compute(0));
  }
}

template <int kHeld, int kTiles, int kOwn, class Parts>
__device__ __forceinline__ void parts_backward_steps(void* memory, const Sequence& all, const BackwardArrays& in,
                                                     const Parts& parts) {
  constexpr int G = Cell::kGates;
  const unsigned H = in.H;
  const int warp = threadIdx.x / 32;
  const int warps = blockDim.x / 32;
  const int units = parts.units;
  const int b0 = parts.tile() * kRows;
  const int blocks = blocks_of(G * units);
  const int shared_blocks = blocks > kHeld ? blocks - kHeld : 0;
  const int stride = stride_of(G * units);
  const int size = rows_size(stride);

  const int used = (H + 2 * kUnits * warps - 1) / (2 * kUnits * warps);  // of the kTiles pairs of tiles of a warp

  ResidentWeights<2, kHeld> weights[kTiles];
  Vec* shared_weights = static_cast<Vec*>(memory);
  Storage* operands = reinterpret_cast<Storage*>(shared_weights + warps * used * shared_blocks * weights[0].kSize);
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    if (i >= used) break;
    const Index tile = ((Index)parts.member() * used + i) * warps + warp;
    weights[i].load(in.weights + tile * blocks * weights[i].kSize,
                    shared_weights + (i * warps + warp) * shared_blocks * weights[i].kSize, 0, blocks);
  }
  for (int i = threadIdx.x; i < 2 * size; i += blockDim.x) operands[i] = store(Compute(0));

  OwnPair own[kOwn];
  Compute dh[kOwn], dc[kOwn];
#pragma unroll
  for (int o = 0; o < kOwn; ++o) {
    const int pair = threadIdx.x + o * blockDim.x;
    own[o].row = pair / units;
    own[o].unit = pair % units;
    own[o].j = parts.member() * units + own[o].unit;
    const unsigned b = b0 + own[o].row;
    const bool exists = own[o].row < kRows && b < all.B && own[o].j < H;
    own[o].b = exists ? b : all.B;
    own[o].dy = exists ? (in.order ? in.order[b] : b) * in.dy_b + own[o].j : 0;
    const Index at = (Index)b * H + own[o].j;
    dh[o] = exists ? in.dh[at] : Compute(0);
    dc[o] = exists && Cell::kHasC ? in.dc[at] : Compute(0);
  }
  parts.begin();

  const int steps = live_steps(all, b0);
  Step now = step_at(all, 0, steps);
  Step next = step_at(all, 1, steps);
  SavedPair pairs[kOwn];
  load_pairs(pairs, in, own, now, (all.n0 + now.n) * H, all.t0 + now.t);
  for (int s = 0; s < steps; ++s) {
    const Step after = step_at(all, s + 2, steps);
    Storage* operand = operands + s % 2 * size;
    const Index at = (Index)now.n * (G * H);
    Compute direct[kOwn];
#pragma unroll
    for (int o = 0; o < kOwn; ++o) {
      if (own[o].b >= now.rows) continue;
      Compute dx[G], du[G];
      direct[o] = apply_backward(pairs[o], dh[o], dc[o], dx, du);
      const unsigned gate = own[o].b * G * H + own[o].j;
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const Storage of_x = store(dx[g]);
        const Storage of_h = Cell::kSplits ? store(du[g]) : of_x;
        (in.dgates_x + at)[gate + g * H] = of_x;
        if (Cell::kSplits) (in.dgates_h + at)[gate + g * H] = of_h;
        operand[row_at(own[o].row, stride) + g * units + own[o].unit] = operand_of(of_h);
      }
    }
    load_pairs(pairs, in, own, next, (all.n0 + next.n) * H, all.t0 + next.t);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (i >= used) break;
      Compute sums[2][kPairs] = {};
      weights[i].add_product(sums, operand, stride);
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        const int row = member_of() * kLaneRows + r;
        const Compute adjacent[4] = {sums[0][r], sums[0][kLaneRows + r], sums[1][r], sums[1][kLaneRows + r]};
        if (b0 + row < all.B) parts.send(s, row, (i * warps + warp) * 2 * kUnits + 4 * group_of(), adjacent);
      }
    }
    parts.receive(s);
#pragma unroll
    for (int o = 0; o < kOwn; ++o) {
      if (own[o].b >= all.B) continue;
      const Compute sum = parts.sum(s, own[o].row, own[o].unit);
      if (own[o].b < now.rows) dh[o] = direct[o] + sum;
    }
    now = next;
    next = after;
  }
#pragma unroll
  for (int o = 0; o < kOwn; ++o) {
    if (own[o].b >= all.B) continue;
    const Index at = (Index)own[o].b * H + own[o].j;
    in.dh[at] = dh[o];
    if (Cell::kHasC) in.dc[at] = dc[o];
  }
}

// packed (members, tiles, blocks, 2, 2, 32) of Vecs: the member's G*units rows of W_hh (G*H, H) as the columns of the
// product, and all H units as its tiles, 2 * kUnits units each. Zero beyond the last unit and column. The units of a lane,
// of both outputs, are adjacent ones.
extern "C" __global__ void __launch_bounds__(256, 2)
pack_parts(Storage* packed, const Storage* __restrict__ w_hh, int H, int members, int units, int tiles, int blocks) {
  const Index size = (Index)members * tiles * blocks * 2 * 2 * 32 * kVec;
  for (Index i = first_index(); i < size; i += index_stride()) {
    const int lane = i / kVec % 32;
    const int half = i / (kVec * 32) % 2;
    const int output = i / (kVec * 64) % 2;
    Index rest = i / (kVec * 128);
    const int k = rest % blocks * kBlock + lane % 4 * kVec + i % kVec;
    rest /= blocks;
    const int n = rest % tiles * 2 * kUnits + lane / 4 * 4 + output * 2 + half;
    const int j = rest / tiles * units + k % units;
    const bool inside = k / units < Cell::kGates && j < H && n < H;
    packed[i] = inside ? operand_of(w_hh[((Index)(k / units) * H + j) * H + n]) : store(Compute(0));
  }
}
