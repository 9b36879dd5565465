// What the kernels of every schedule share: the order of ragged rows, and sums over row-steps.
//
// Rows are stored by descending length and without padding. order (B,): the row at each sorted position, null for
// 0..B-1. offsets (T+1,): the first of each step's row-steps among all N, null where every row has T steps. See
// rnnkit/backends/ragged.py.

typedef long long Index;

__device__ __forceinline__ Index first_index() { return (Index)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ Index index_stride() { return (Index)gridDim.x * blockDim.x; }

// dst[b, :] = src[order[b], :] over (B, K)
template <typename To, typename From>
__device__ __forceinline__ void sort_rows(To* dst, const From* src, const Index* order, Index B, Index K) {
  for (Index i = first_index(); i < B * K; i += index_stride()) {
    const Index b = i / K;
    const Index k = i - b * K;
    dst[i] = Convert<To, From>::of(src[(order ? order[b] : b) * K + k]);
  }
}

// dst[order[b], :] = src[b, :] over (B, K)
template <typename To, typename From>
__device__ __forceinline__ void unsort_rows(To* dst, const From* src, const Index* order, Index B, Index K) {
  for (Index i = first_index(); i < B * K; i += index_stride()) {
    const Index b = i / K;
    const Index k = i - b * K;
    dst[(order ? order[b] : b) * K + k] = Convert<To, From>::of(src[i]);
  }
}

// Sums over row-steps, in two passes and in a fixed order, without atomics. The error does not grow with the number of
// row-steps: a chain of plain additions has at most kChain terms, and LongSum adds the sums of chains together with the
// rounding error of each addition.
constexpr int kChain = 32;

// A sum and its accumulated rounding error. Knuth, The Art of Computer Programming 2, 4.2.2: exact for any two numbers.
struct LongSum {
  Compute sum, lost;
  __device__ __forceinline__ void add(Compute v) {
    const Compute before = sum;
    sum = before + v;
    const Compute added = sum - before;
    lost += (before - (sum - added)) + (v - added);
  }
  // sum - sum is NaN if sum is infinite: then the rounding error is meaningless.
  __device__ __forceinline__ Compute value() const { return sum - sum == Compute(0) ? sum + lost : sum; }
};
