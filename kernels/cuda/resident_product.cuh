// The product of the resident schedules: weights that stay on the chip, times a few rows of h in shared memory.
//
// A warp computes kUnits units of G outputs each (the gates) for kRows rows, over a range of columns k. A lane holds
// the same (unit, row) pairs of every output, so the cell is applied to registers:
//
//   lane                l = 4 * group + member
//   units               group, group + 8
//   rows                member * kLaneRows + 0 .. kLaneRows - 1
//   pair p of kPairs    unit group + 8 * (p / kLaneRows), row member * kLaneRows + p % kLaneRows
//
// Columns come in blocks of 64 bytes. Of a block, a lane reads 16 bytes (a Vec) of each of its units' weights, at
// column member * kVec of the block. In the fragments of mma.sync the columns of a block are therefore permuted, in
// both operands alike, which changes no sum and makes every access 16 bytes wide. The weights are operand A, because
// its 16 units waste fewer products than 16 rows would where the batch is small.
//
// Without tensor cores the four members share the columns of a block, each for all rows, and a reduce-scatter by
// shuffles leaves each its own rows. So a weight is read by one lane alone, once for all rows, and the weights of a
// lane are the same as those of the mma fragments. Splitting the rows between lanes instead would read each weight
// from shared memory as often as there are lanes.
//
// Layouts, of 16-byte Vecs:
//   weights  (tile, block, G, 2, 32): unit of the lane (group, group + 8), lane. Zero beyond the last unit or column
//   h        row r begins at row_at(r, stride): neighbouring rows are half of the 32 banks apart, so that reads of 16
//            bytes and writes of one number have no bank conflicts. Zero beyond the last column

#if defined(RK_FLOAT64)
typedef double2 Vec;
constexpr int kRows = 4;
#elif RK_TENSOR_CORES
typedef uint4 Vec;
constexpr int kRows = 8;
#else
typedef float4 Vec;
constexpr int kRows = 8;
#endif
constexpr int kUnits = 16;                    // units of a warp's tile
constexpr int kVec = 16 / sizeof(Storage);    // numbers of a Vec
constexpr int kBlock = 4 * kVec;              // columns of a block
constexpr int kLaneRows = kRows / 4;          // rows of a lane
constexpr int kPairs = 2 * kLaneRows;         // (unit, row) pairs of a lane

__device__ __forceinline__ int lane_of() { return threadIdx.x & 31; }
__device__ __forceinline__ int group_of() { return lane_of() >> 2; }
__device__ __forceinline__ int member_of() { return threadIdx.x & 3; }
__device__ __forceinline__ int unit_of(int pair) { return group_of() + 8 * (pair / kLaneRows); }
__device__ __forceinline__ int row_of(int pair) { return member_of() * kLaneRows + pair % kLaneRows; }

// Blocks of K columns.
__device__ __forceinline__ int blocks_of(int K) { return (K + kBlock - 1) / kBlock; }

// Numbers from one row of h to the next: an odd number of blocks.
__device__ __forceinline__ int stride_of(int K) { return (blocks_of(K) | 1) * kBlock; }
__device__ __forceinline__ int row_at(int row, int stride) { return row * stride + (row >> 1) * 8; }
// Numbers of a tile of h.
__device__ __forceinline__ int rows_size(int stride) { return kRows * stride + kRows / 2 * 8; }

// The weights of one warp: the first kHeld blocks of columns in registers, the others in shared memory.
template <int G, int kHeld>
struct ResidentWeights {
  Vec held[kHeld ? kHeld : 1][G][2];
  const Vec* shared;  // of this lane
  int blocks;

  // Vecs of a block.
  static constexpr int kSize = G * 2 * 32;

  // Blocks [first, first + blocks) of a tile; `tile` is where its packed weights begin. `memory` is where the warp's
  // blocks beyond the first kHeld go. Needs a barrier before `add_product`, of the warp at least.
  __device__ __forceinline__ void load(const Vec* tile, Vec* memory, int first, int count) {
    const Vec* from = tile + first * kSize + lane_of();
    Vec* to = memory + lane_of();
    blocks = count;
    shared = to;
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
      if (k < count)
#pragma unroll
        for (int i = 0; i < 2 * G; ++i) held[k][i / 2][i % 2] = from[k * kSize + i * 32];
    for (int i = 0; i < (count - kHeld) * 2 * G; ++i) to[i * 32] = from[kHeld * kSize + i * 32];
  }

  // sums (of this lane's pairs) += W h. h: row 0 at the warp's first column.
  __device__ __forceinline__ void add_product(Compute (&sums)[G][kPairs], const Storage* h, int stride) const;
};

#if RK_TENSOR_CORES

// The two halves of a block may add to the same sums, or to two chains of them.
template <int G>
__device__ __forceinline__ void add_block(float (&first)[G][4], float (&second)[G][4], const Vec (&w)[G][2], Vec h) {
#pragma unroll
  for (int g = 0; g < G; ++g) mma(first[g], w[g][0].x, w[g][1].x, w[g][0].y, w[g][1].y, h.x, h.y);
#pragma unroll
  for (int g = 0; g < G; ++g) mma(second[g], w[g][0].z, w[g][1].z, w[g][0].w, w[g][1].w, h.z, h.w);
}

template <int G, int kHeld>
__device__ __forceinline__ void ResidentWeights<G, kHeld>::add_product(Compute (&sums)[G][kPairs], const Storage* h,
                                                                       int stride) const {
  const Vec* row = reinterpret_cast<const Vec*>(h + row_at(group_of(), stride)) + member_of();
  // A mma waits for the one before it on the same sums, so a single output gets several chains of sums.
  constexpr int kChains = G > 1 ? 1 : RK_THREADS > 256 ? 2 : 4;
  float chains[kChains][G][4] = {};
#pragma unroll
  for (int k = 0; k < kHeld; ++k)
    if (k < blocks) add_block<G>(chains[2 * k % kChains], chains[(2 * k + 1) % kChains], held[k], row[4 * k]);
  const Vec* from = shared;
#pragma unroll 1
  for (int k = kHeld; k < blocks; ++k) {
    Vec w[G][2];
#pragma unroll
    for (int i = 0; i < 2 * G; ++i) w[i / 2][i % 2] = from[i * 32];
    add_block<G>(chains[0], chains[1 % kChains], w, row[4 * k]);
    from += kSize;
  }
#pragma unroll
  for (int g = 0; g < G; ++g)
#pragma unroll
    for (int p = 0; p < 4; ++p)
#pragma unroll
      for (int chain = 0; chain < kChains; ++chain) sums[g][p] += chains[chain][g][p];
}

#else

#if defined(RK_FLOAT64)
__device__ __forceinline__ double dot(Vec a, Vec b, double sum) { return fma(a.y, b.y, fma(a.x, b.x, sum)); }
#else
__device__ __forceinline__ float dot(Vec a, Vec b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}
#endif

// sums of 2 units and all rows over this lane's columns of a block; h: row 0 at those columns.
template <int G>
__device__ __forceinline__ void add_block(Compute (&sums)[G][2][kRows], const Vec (&w)[G][2], const Storage* h,
                                          int stride) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const Vec v = *reinterpret_cast<const Vec*>(h + row_at(r, stride));
#pragma unroll
    for (int i = 0; i < 2 * G; ++i) sums[i / 2][i % 2][r] = dot(w[i / 2][i % 2], v, sums[i / 2][i % 2][r]);
  }
}

// Adds the sums of the four members; `half` of the rows stays in lanes whose bit `bit` is set, the others elsewhere.
template <int kHalf>
__device__ __forceinline__ void scatter(Compute (&sums)[kRows], int bit) {
  const bool upper = threadIdx.x & bit;
#pragma unroll
  for (int r = 0; r < kHalf; ++r) {
    const Compute mine = upper ? sums[r + kHalf] : sums[r];
    const Compute theirs = upper ? sums[r] : sums[r + kHalf];
    sums[r] = mine + __shfl_xor_sync(0xffffffffu, theirs, bit);
  }
}

template <int G, int kHeld>
__device__ __forceinline__ void ResidentWeights<G, kHeld>::add_product(Compute (&sums)[G][kPairs], const Storage* h,
                                                                       int stride) const {
  Compute parts[G][2][kRows] = {};
  const Storage* columns = h + member_of() * kVec;
#pragma unroll
  for (int k = 0; k < kHeld; ++k)
    if (k < blocks) add_block<G>(parts, held[k], columns + k * kBlock, stride);
  const Vec* from = shared;
#pragma unroll 1
  for (int k = kHeld; k < blocks; ++k) {
    Vec w[G][2];
#pragma unroll
    for (int i = 0; i < 2 * G; ++i) w[i / 2][i % 2] = from[i * 32];
    add_block<G>(parts, w, columns + k * kBlock, stride);
    from += kSize;
  }
#pragma unroll
  for (int i = 0; i < 2 * G; ++i) {
    Compute(&part)[kRows] = parts[i / 2][i % 2];
    scatter<kRows / 2>(part, 2);
    scatter<kRows / 4>(part, 1);
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) sums[i / 2][i % 2 * kLaneRows + r] += part[r];
  }
}

#endif

// packed (tiles, blocks, G, 2, 32) of Vecs = the weights w, whose number of output g, unit u and column k is at
// g * gate_stride + u * unit_stride + k * k_stride. Zero beyond the last unit and column.
extern "C" __global__ void __launch_bounds__(256, 2)
pack_weights(Storage* packed, const Storage* __restrict__ w, Index gate_stride, Index unit_stride, Index k_stride,
             int G, int units, int K, int tiles, int blocks) {
  const Index size = (Index)tiles * blocks * G * 2 * 32 * kVec;
  for (Index i = first_index(); i < size; i += index_stride()) {
    const int lane = i / kVec % 32;
    const int half = i / (kVec * 32) % 2;
    Index rest = i / (kVec * 64);
    const int g = rest % G;
    rest /= G;
    const int block = rest % blocks;
    const int unit = rest / blocks * kUnits + half * 8 + lane / 4;
    const int k = block * kBlock + lane % 4 * kVec + i % kVec;
    const bool inside = unit < units && k < K;
    packed[i] = inside ? operand_of(w[g * gate_stride + unit * unit_stride + k * k_stride]) : store(Compute(0));
  }
}
