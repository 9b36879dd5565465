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
// Where a step has a second product (resident_stage.cuh), a stage before these computes the gradient of its output for
// the member's units, multiplies it by the member's rows of the second weights, and sends the parts of that sum
// likewise. So such a step has two messages. Of the R units of h a member owns those with the numbers of its own.
//
// A policy `Parts` says which blocks serve which tile of rows, and how parts travel: its members `members` and `units`;
// `begin`, a barrier of the block at least, before the first step; `send`, 4 adjacent units of a row; then `receive`,
// called by all threads, after which `sum` is the sum of the parts of a pair, in the order of the members. Messages are
// numbered from 0, one per stage of a step. The first `senders` members send a message.
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
    const bool has_dy = in.dy && (!kProjected || own[o].j < in.R);
    pairs[o].dy = has_dy ? (in.dy + t * in.dy_t)[own[o].dy] : store(Compute(0));
  }
}

// A product of a member: its rows of a weight, `outputs` of them per unit of the member, by all N columns of the weight.
template <int kHeld, int kTiles>
struct PartsProduct {
  ResidentWeights<2, kHeld> weights[kTiles];
  int used;  // of the kTiles pairs of tiles of a warp
  int stride;

  // packed: as pack_parts leaves it. Returns the shared memory behind the weights, which begin at `memory`.
  __device__ __forceinline__ Vec* load(const Vec* packed, Vec* memory, int member, int N, int K) {
    const int warp = threadIdx.x / 32;
    const int warps = blockDim.x / 32;
    const int blocks = blocks_of(K);
    const int shared_blocks = blocks > kHeld ? blocks - kHeld : 0;
    used = (N + 2 * kUnits * warps - 1) / (2 * kUnits * warps);
    stride = stride_of(K);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (i >= used) break;
      const Index tile = ((Index)member * used + i) * warps + warp;
      weights[i].load(packed + tile * blocks * weights[i].kSize,
                      memory + (i * warps + warp) * shared_blocks * weights[i].kSize, 0, blocks);
    }
    return memory + warps * used * shared_blocks * weights[0].kSize;
  }

  // Sends the parts of all N sums of the tile's first `rows` rows.
  template <class Parts>
  __device__ __forceinline__ void send(const Parts& parts, int message, const Storage* operand, int rows) const {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (i >= used) break;
      Compute sums[2][kPairs] = {};
      weights[i].add_product(sums, operand, stride);
      const int tile = i * (blockDim.x / 32) + threadIdx.x / 32;
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        const int row = member_of() * kLaneRows + r;
        const Compute adjacent[4] = {sums[0][r], sums[0][kLaneRows + r], sums[1][r], sums[1][kLaneRows + r]};
        if (row < rows) parts.send(message, row, tile * 2 * kUnits + 4 * group_of(), adjacent);
      }
    }
  }
};

template <int kHeld, int kTiles, int kOwn, class Parts>
__device__ __forceinline__ void parts_backward_steps(void* memory, const Sequence& all, const BackwardArrays& in,
                                                     const Parts& parts) {
  constexpr int G = Cell::kGates;
  constexpr int kStages = kSecond ? 2 : 1;
  const unsigned H = in.H;
  const unsigned R = kProjected ? in.R : in.H;
  const int units = parts.units;
  const int b0 = parts.tile() * kRows;
  const int senders = (R + units - 1) / units;  // members with units of R
  const bool has_outputs = parts.member() < senders;
  PartsProduct<kHeld, kTiles> product;
  PartsProduct<kSecond ? kHeld / 2 : 0, kSecond ? kTiles : 1> second;
  Vec* behind = product.load(in.weights, static_cast<Vec*>(memory), parts.member(), R, kFirst * units);
  if (kSecond) behind = second.load(in.second, behind, parts.member(), H, units);
  const int stride = product.stride;
  const int size = rows_size(stride);
  const int output_stride = stride_of(units);
  const BackwardMemory shared(behind, size, rows_size(output_stride));
  const int operands = kSecond ? size + rows_size(output_stride) : 2 * size;
  for (int i = threadIdx.x; i < operands; i += blockDim.x) shared.operand[i] = store(Compute(0));

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
    dh[o] = exists && own[o].j < R ? in.dh[(Index)b * R + own[o].j] : Compute(0);
    dc[o] = exists && Cell::kHasC ? in.dc[(Index)b * H + own[o].j] : Compute(0);
  }
  parts.begin();

  const int steps = live_steps(all, b0);
  Step now = step_at(all, 0, steps);
  Step next = step_at(all, 1, steps);
  SavedPair pairs[kOwn];
  load_pairs(pairs, in, own, now, (all.n0 + now.n) * H, all.t0 + now.t);
  for (int s = 0; s < steps; ++s) {
    const Step after = step_at(all, s + 2, steps);
    Storage* operand = shared.operand + (kSecond ? 0 : s % 2 * size);
    const int message = kStages * s;
    const Index at = (Index)now.n * (G * H);
    Compute direct[kOwn], dz[kOwn], through[kOwn];
    if (kSecond) {
#pragma unroll
      for (int o = 0; o < kOwn; ++o) {
        if (own[o].b >= now.rows || own[o].j >= R) continue;
        Compute dx[G];
        const Storage out = store(first_backward_stage(pairs[o], dh[o], dx));
        shared.output[row_at(own[o].row, output_stride) + own[o].unit] = operand_of(out);
        if (kProjected) in.dprojected[(Index)now.n * R + (own[o].b * R + own[o].j)] = out;
        if (Cell::kResetsBefore) {
          (in.dgates_x + at)[own[o].b * G * H + own[o].j + (G - 1) * H] = out;
          dz[o] = dx[1 % G];
        }
      }
      __syncthreads();
      if (has_outputs) second.send(parts, message, shared.output, all.B - b0);
      parts.receive(message, senders);
#pragma unroll
      for (int o = 0; o < kOwn; ++o)
        if (own[o].b < all.B)
          through[o] = parts.sum(message, own[o].row, own[o].unit, senders);
    }
#pragma unroll
    for (int o = 0; o < kOwn; ++o) {
      if (own[o].b >= now.rows) continue;
      Compute dx[G], du[G];
      direct[o] = apply_backward(pairs[o], dh[o], kSecond ? through[o] : Compute(0), dc[o], dx, du);
      if (Cell::kResetsBefore) dx[1 % G] = dz[o];
      const unsigned gate = own[o].b * G * H + own[o].j;
#pragma unroll
      for (int g = 0; g < kFirst; ++g) {
        const Storage of_x = store(dx[g]);
        const Storage of_h = Cell::kSplits ? store(du[g]) : of_x;
        (in.dgates_x + at)[gate + g * H] = of_x;
        if (Cell::kSplits) (in.dgates_h + at)[gate + g * H] = of_h;
        operand[row_at(own[o].row, stride) + g * units + own[o].unit] = operand_of(of_h);
      }
    }
    load_pairs(pairs, in, own, next, (all.n0 + next.n) * H, all.t0 + next.t);
    __syncthreads();
    product.send(parts, message + kStages - 1, operand, all.B - b0);
    parts.receive(message + kStages - 1, parts.members);
#pragma unroll
    for (int o = 0; o < kOwn; ++o) {
      if (own[o].b >= all.B || own[o].j >= R) continue;
      const Compute sum = parts.sum(message + kStages - 1, own[o].row, own[o].unit, parts.members);
      if (own[o].b < now.rows) dh[o] = direct[o] + sum;
    }
    now = next;
    next = after;
  }
#pragma unroll
  for (int o = 0; o < kOwn; ++o) {
    if (own[o].b >= all.B) continue;
    if (own[o].j < R) in.dh[(Index)own[o].b * R + own[o].j] = dh[o];
    if (Cell::kHasC) in.dc[(Index)own[o].b * H + own[o].j] = dc[o];
  }
}

// packed (members, tiles, blocks, 2, 2, 32) of Vecs: the member's rows of the weight w (gates*J, N), of `units` of the J
// units, as the columns of the product, and all N columns of w as its tiles, 2 * kUnits each. Zero beyond the last unit
// and column. The units of a lane, of both outputs, are adjacent ones.
extern "C" __global__ void __launch_bounds__(256, 2)
pack_parts(Storage* packed, const Storage* __restrict__ w, int gates, int J, int N, int members, int units, int tiles,
           int blocks) {
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
    const bool inside = k / units < gates && j < J && n < N;
    packed[i] = inside ? operand_of(w[((Index)(k / units) * J + j) * N + n]) : store(Compute(0));
  }
}
