// Schedule D with layer normalisation: what its kernels share. A mean is over all features of a row, so a block has a
// row at a time. Its threads have units: thread i those at i, i + threads, ..., of every gate. What a thread writes to
// device memory it alone reads again within a launch, so the only barriers are those of the sums.

// Numbers of a call in the compute dtype, after the Call: norm_eps, then rows of H: those of w_unit, then the gates of
// b_ih, then those of b_hh.
struct Norm {
  const Compute* k;
  int H;

  __device__ __forceinline__ Norm(const void* call, int H)
      : k((const Compute*)((const char*)call + RK_CALL_BYTES)), H(H) {}
  __device__ __forceinline__ Compute eps() const { return k[0]; }
  __device__ __forceinline__ Compute row(int number, int j) const { return k[1 + (Index)number * H + j]; }
  // Of gate g on a side, 0 for x and 1 for h. A single normalisation has the gains of side 0.
  __device__ __forceinline__ Compute gain(int side, int g, int j) const { return row(side * Cell::kGates + g, j); }
  __device__ __forceinline__ Compute bias(int side, int g, int j) const {
    return row(Cell::kUnitWeights + side * Cell::kGates + g, j);
  }
};

constexpr int kMostWarps = 8;

// Replaces each of kCount numbers by its sum over the threads of the block, in an order that depends on their number
// alone. All threads get the same bits.
template <int kCount>
__device__ __forceinline__ void block_sums(Compute* v) {
  __shared__ Compute parts[kCount][kMostWarps];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int warps = blockDim.x / 32;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
#pragma unroll
    for (int other = 16; other; other /= 2) v[i] += __shfl_xor_sync(0xffffffffu, v[i], other);
  }
  __syncthreads();  // the parts of the sums before have been read
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) parts[i][warp] = v[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    Compute total = parts[i][0];
    for (int w = 1; w < warps; ++w) total += parts[i][w];
    v[i] = total;
  }
}

#if defined(RK_FLOAT64)
__device__ __forceinline__ Compute sqrt_of(Compute a) { return sqrt(a); }
#else
__device__ __forceinline__ Compute sqrt_of(Compute a) { return sqrtf(a); }
#endif

// A row's mean, and 1 / sqrt(var + eps).
struct Moments {
  Compute mean, scale;
  __device__ __forceinline__ Compute hat(Compute a) const { return (a - mean) * scale; }
};

// The moments of kCount rows of `blocks` blocks of H numbers. The mean is subtracted before squares are summed, so that
// the variance keeps its digits where the mean is far from zero.
template <int kCount, int kBlocks>
__device__ __forceinline__ void moments(const Compute* const* rows, int H, Compute eps, Moments* found) {
  const Compute count = (Compute)kBlocks * (Compute)H;
  Compute sums[kCount] = {}, squares[kCount] = {};
  for (int j = threadIdx.x; j < H; j += blockDim.x) {
#pragma unroll
    for (int g = 0; g < kBlocks; ++g) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[i] += rows[i][g * H + j];
    }
  }
  block_sums<kCount>(sums);
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] /= count;
  for (int j = threadIdx.x; j < H; j += blockDim.x) {
#pragma unroll
    for (int g = 0; g < kBlocks; ++g) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const Compute centred = rows[i][g * H + j] - sums[i];
        squares[i] += centred * centred;
      }
    }
  }
  block_sums<kCount>(squares);
#pragma unroll
  for (int i = 0; i < kCount; ++i) found[i] = {sums[i], Compute(1) / sqrt_of(squares[i] / count + eps)};
}
