// A step of the resident schedules has one product, or two with an exchange between them. What a stage needs:
//
//              one product     projection (RK_PROJECTED)      reset before
//   forward    h W_hh^T        h W_hh^T                       h W_hr^T, h W_hz^T
//              cell: h         cell: m                        r, z, rh = r h'
//                              m W_proj^T: h                  rh W_hn^T: n, h
//   backward                   dprojected = dh + dy           gradients of z and n
//                              dprojected W_proj: dm          dgates_n W_hn: drh
//              cell            cell                           gradient of r
//              dgates W_hh     dgates W_hh                    dgates_r W_hr + dgates_z W_hz
//
// R = P under projection, else H. W_hh is (G*H, R). A lane owns the same pairs in both stages: units of H and of R have
// the same numbers, and those of R from R on do not exist.

#if !defined(RK_PROJECTED)
#define RK_PROJECTED 0
#endif
constexpr bool kProjected = RK_PROJECTED;
constexpr bool kSecond = kProjected || Cell::kResetsBefore;      // a step has a second product
constexpr int kFirst = Cell::kGates - (Cell::kResetsBefore ? 1 : 0);  // gates of the first product

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

// One product of a step: the weights of a warp, G outputs of its tile of units over its part of the K columns.
template <int G, int kHeld, int kSplits>
struct StageProduct {
  static constexpr int Q = Owned<kSplits>::kPairsOwned;
  ResidentWeights<G, kHeld> weights;
  int stride;  // of the operand's rows
  int column;  // the warp's first one
  int splits;

  // packed: weights of all tiles of units, as pack_weights leaves them; number: of the warp's tile. Returns the shared
  // memory behind this product's weights, which begin at `memory`. Needs a barrier before `multiply`.
  __device__ __forceinline__ Vec* load(const Vec* packed, Vec* memory, int number, int units, int K, int some_splits) {
    splits = some_splits;
    const int warp = threadIdx.x / 32;
    const int blocks = blocks_of(K);
    const int each = (blocks + splits - 1) / splits;  // blocks of columns of a warp
    const int shared = each > kHeld ? each - kHeld : 0;
    const int first = warp % splits * each;
    const int warps = min((int)blockDim.x / 32, (units + kUnits - 1) / kUnits * splits);  // of a block, with weights
    stride = stride_of(K);
    column = first * kBlock;
    const bool any = number * kUnits < units && first < blocks;
    weights.load(packed + (Index)number * blocks * weights.kSize, memory + warp * shared * weights.kSize, first,
                 any ? min(each, blocks - first) : 0);
    return memory + warps * shared * weights.kSize;
  }

  // own: the sums of the lane's own pairs. partial (warps, G, kPairs, 32): sums of the warps that share a tile of units;
  // the next write to it must follow a barrier.
  __device__ __forceinline__ void multiply(Compute (&own)[G][Q], const Storage* operand, Compute* partial,
                                           const Owned<kSplits>& owned) const {
    constexpr int kMost = kSplits == kAnySplits ? kMostSplits : kSplits;
    Compute sums[G][kPairs] = {};
    weights.add_product(sums, operand + column, stride);
    if (kSplits == 1) {
#pragma unroll
      for (int g = 0; g < G; ++g)
#pragma unroll
        for (int q = 0; q < Q; ++q) own[g][q] = sums[g][q];
      return;
    }
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int p = 0; p < kPairs; ++p) partial[((warp * G + g) * kPairs + p) * 32 + lane_of()] = sums[g][p];
    __syncthreads();
    if (!owned.any()) return;
    const int first = warp / splits * splits;
#pragma unroll
    for (int q = 0; q < Q; ++q)
#pragma unroll
      for (int g = 0; g < G; ++g) {
        own[g][q] = 0;
        // Unrolled without a break, so that all loads are in flight at once.
#pragma unroll
        for (int k = 0; k < kMost; ++k)
          if (k < splits) own[g][q] += partial[(((first + k) * G + g) * kPairs + owned.pair(q)) * 32 + lane_of()];
      }
  }
};
