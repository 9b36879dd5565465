// At least one kernel for every feature of the emulator. tests/tools/test_emulator.py has the expected results.
#include <cooperative_groups.h>
#include <cuda/std/cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
using cuda::std::uint16_t;
using cuda::std::uint32_t;
using cuda::std::uint64_t;
namespace cg = cooperative_groups;

#define KERNEL extern "C" __global__ void

// ---- indices, arguments, module variables
KERNEL indices(uint32_t* out) {
  const dim3 b = blockDim;
  const unsigned thread = threadIdx.x + b.x * (threadIdx.y + b.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  uint32_t* row = out + 8 * ((size_t)block * b.x * b.y * b.z + thread);
  row[0] = threadIdx.x, row[1] = threadIdx.y, row[2] = threadIdx.z;
  row[3] = blockIdx.x, row[4] = blockIdx.y, row[5] = blockIdx.z;
  row[6] = cg::this_thread_block().thread_rank(), row[7] = (uint32_t)cg::this_grid().thread_rank();
}
struct Shape {
  double scale;
  int n;
};
KERNEL all_kinds(double* out, float f, double d, int i, unsigned u, long long q, bool b, __half h, const Shape s) {
  if (threadIdx.x == 0) {
    const double values[] = {f, d, (double)i, (double)u, (double)q, (double)b, (double)__half2float(h), s.scale,
        (double)s.n};
    for (int k = 0; k < 9; ++k) out[k] = values[k];
  }
}
__device__ unsigned launches;
__constant__ float weights[4] = {1, 10, 100, 1000};
KERNEL module_variables(float* out) {
  if (threadIdx.x == 0) atomicAdd(&launches, 1u);
  out[threadIdx.x] = weights[threadIdx.x & 3];
}
KERNEL count_of_launches(unsigned* out) { *out = launches; }
template <int N, typename T>
__global__ void __launch_bounds__(N * 16) add_constant(T* a) {
  a[threadIdx.x] += N;
}
#define MADE_BY_A_MACRO(name, T)                            \
  KERNEL name(T* a) {                                      \
    const int i = blockIdx.x * blockDim.x + threadIdx.x;   \
    a[i] = 2 * a[i] + SHIFT;                               \
  }
MADE_BY_A_MACRO(twice_float, float)
MADE_BY_A_MACRO(twice_int, int)
#if __CUDA_ARCH__ < 700
#error "an old card"
KERNEL never_compiled(int* a) { nonsense; }
#endif

// ---- shared memory and barriers
KERNEL reverse(float* a) {
  extern __shared__ __align__(16) float dynamic_tile[];
  __shared__ float static_tile[2][32];
  dynamic_tile[threadIdx.x] = a[blockIdx.x * 64 + threadIdx.x];
  static_tile[threadIdx.x / 32][threadIdx.x % 32] = blockIdx.x;
  __syncthreads();
  const int from = 63 - threadIdx.x;
  a[blockIdx.x * 64 + threadIdx.x] = dynamic_tile[from] + static_tile[from / 32][from % 32];
}
KERNEL barrier_votes(const int* flags, int* out) {
  const int flag = flags[blockIdx.x * blockDim.x + threadIdx.x];
  const int any = __syncthreads_or(flag), all = __syncthreads_and(flag), count = __syncthreads_count(flag);
  if (threadIdx.x == 5) out[3 * blockIdx.x] = any, out[3 * blockIdx.x + 1] = all, out[3 * blockIdx.x + 2] = count;
}
KERNEL named_barriers(float* a, int rounds) {  // two pairs of warps, each with another barrier and number of rounds
  __shared__ float tile[128];
  const int pair = threadIdx.x / 64, mine = threadIdx.x % 64;
  for (int i = 0; i < rounds * (pair + 1); ++i) {
    tile[threadIdx.x] = a[threadIdx.x];
    emulator::named_barrier(1 + pair, 64, emulator::Site::here());
    a[threadIdx.x] = tile[64 * pair + (mine + 1) % 64];
    emulator::named_barrier(1 + pair, 64, emulator::Site::here());
  }
}

// ---- warps
KERNEL shuffles(const float* in, float* out) {
  const float v = in[threadIdx.x];
  float* row = out + threadIdx.x;
  const unsigned all = 0xffffffffu;
  row[0] = __shfl_sync(all, v, 5);
  row[64] = __shfl_sync(all, v, threadIdx.x + 3, 8);
  row[128] = __shfl_xor_sync(all, v, 9);
  row[192] = __shfl_down_sync(all, v, 3);
  row[256] = __shfl_up_sync(all, v, 3);
  row[320] = __shfl_down_sync(all, v, 1, 4);
  double d = v;
  for (int o = 16; o; o /= 2) d += __shfl_xor_sync(all, d, o);
  row[384] = (float)d;
  cg::thread_block_tile<8> tile = cg::tiled_partition<8>(cg::this_thread_block());
  row[448] = tile.shfl(v, 2) + tile.thread_rank();
}
KERNEL votes(const int* in, uint32_t* out) {
  const int v = in[threadIdx.x];
  const unsigned all = 0xffffffffu;
  uint32_t* row = out + threadIdx.x;
  row[0] = __ballot_sync(all, v > 3);
  row[32] = __any_sync(all, v > 6);
  row[64] = __all_sync(all, v >= 0);
  row[96] = __match_any_sync(all, v);
  row[128] = __reduce_add_sync(all, v);
  row[160] = __reduce_max_sync(all, v);
  const unsigned half = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
  row[192] = __ballot_sync(half, v & 1);
  if (threadIdx.x >= 8) row[224] = __activemask();
}
KERNEL warp_transpose(float* a) {
  __shared__ float tile[4][32];
  const int w = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = 0; i < 3; ++i) {
    tile[w][lane] = a[threadIdx.x];
    __syncwarp();
    a[threadIdx.x] = tile[w][(lane + 1) % 32];
    __syncwarp();
  }
}

// ---- the grid
KERNEL grid_rounds(float* x, float* y, int rounds) {
  const int n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  float *from = x, *to = y;
  for (int k = 0; k < rounds; ++k) {
    to[i] = from[(i + blockDim.x) % n] + 1;
    cg::this_grid().sync();
    float* swap = from;
    from = to, to = swap;
  }
}
KERNEL last_block_sums(const float* x, float* partial, float* sum, unsigned* counter) {
  __shared__ bool last;
  __shared__ float part[64];
  part[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    float s = 0;
    for (int i = 0; i < 64; ++i) s += part[i];
    partial[blockIdx.x] = s;
    __threadfence();
    last = atomicAdd(counter, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float s = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) s += __ldcg(partial + b);
    *sum = s;
  }
}
// block b waits for b - 1: st.release, ld.acquire
KERNEL pipeline_of_blocks(float* data, unsigned* flags, int rounds) {
  const unsigned b = blockIdx.x;
  for (unsigned r = 1; r <= (unsigned)rounds; ++r) {
    if (b && threadIdx.x == 0)
      while (emulator::load_acquire(flags + b - 1) < r) {
      }
    __syncthreads();
    const float before = b ? data[((r - 1) * gridDim.x + b - 1) * blockDim.x + threadIdx.x] : 0;
    data[((r - 1) * gridDim.x + b) * blockDim.x + threadIdx.x] = before + r;
    __syncthreads();
    if (threadIdx.x == 0) emulator::store_release(flags + b, r);
  }
}
KERNEL atomics(int* i, unsigned* u, float* f, double* d, unsigned long long* q, uint32_t* olds) {
  const int t = blockIdx.x * blockDim.x + threadIdx.x;
  olds[t] = (uint32_t)atomicAdd(i, 2);
  atomicSub(i + 1, 3);
  atomicMax(i + 2, (t * 7) % 101);
  atomicMin(i + 3, -((t * 7) % 101));
  atomicAnd(u, ~(1u << (t % 32)));
  atomicOr(u + 1, 1u << (t % 32));
  atomicXor(u + 2, t);
  atomicInc(u + 3, 9);
  atomicDec(u + 4, 9);
  atomicAdd(f, 0.5f);
  atomicAdd(d, 0.25);
  atomicAdd(q, 1ull << 33);
  unsigned expected = u[5], seen;  // a sum by compare-and-swap
  expected = atomicAdd(u + 5, 0u);
  while ((seen = atomicCAS(u + 5, expected, expected + 5)) != expected) expected = seen;
  atomicExch(u + 6, 77);
}

// ---- clusters
KERNEL __cluster_dims__(2, 2, 1) cluster_ring(float* out) {
  extern __shared__ float dynamic_tile[];
  __shared__ float static_tile[32];
  cg::cluster_group cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank(), size = cluster.num_blocks();
  dynamic_tile[threadIdx.x] = 100 * rank + threadIdx.x;
  static_tile[threadIdx.x] = 1000 * rank;
  cluster.sync();
  const unsigned next = (rank + 1) % size;
  const float* there = cluster.map_shared_rank(dynamic_tile, next);
  const float v = there[threadIdx.x] + *cluster.map_shared_rank(static_tile + 31, next);
  auto token = cluster.barrier_arrive();
  out[cluster.thread_rank() + 128 * (blockIdx.x / 2 + gridDim.x / 2 * (blockIdx.y / 2))] = v;
  cluster.barrier_wait(static_cast<decltype(token)&&>(token));
}

// ---- asynchronous
KERNEL copy_pipeline(const float* a, float* out, int tiles) {  // two stages of cp.async
  __shared__ __align__(16) float stage[2][128];
  auto fetch = [&](int t) {
    const int bytes = t % 3 ? 16 : 8, at = 4 * threadIdx.x;
    if (t < tiles) emulator::cp_async(&stage[t & 1][at], a + 128 * t + at, bytes, 16 - bytes);
    emulator::cp_async_commit();
  };
  fetch(0);
  for (int t = 0; t < tiles; ++t) {
    fetch(t + 1);
    emulator::cp_async_wait(1);
    __syncthreads();
    out[128 * t + 127 - threadIdx.x] = stage[t & 1][127 - threadIdx.x];
    for (int i = threadIdx.x; i < 96; i += 32) out[128 * t + i] = stage[t & 1][i];
    __syncthreads();
  }
}
KERNEL mbarrier_ring(const float* a, float* out, int rounds) {  // warp 0 fills, warp 1 empties
  __shared__ uint64_t full, empty;
  __shared__ float tile[32];
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    emulator::mbarrier_init(&full, 32);
    emulator::mbarrier_init(&empty, 32);
  }
  __syncthreads();
  for (int r = 0; r < rounds; ++r) {
    if (threadIdx.x < 32) {
      if (r) emulator::mbarrier_wait(&empty, (r - 1) & 1);
      tile[lane] = a[32 * r + lane];
      emulator::mbarrier_arrive(&full);
    } else {
      emulator::mbarrier_wait(&full, r & 1);
      out[32 * r + lane] = tile[31 - lane];
      emulator::mbarrier_arrive(&empty);
    }
  }
}

// ---- 16-bit numbers
KERNEL widen(const uint16_t* bits, float* from_half, float* from_bf16) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  from_half[i] = __half2float(__ushort_as_half(bits[i]));
  from_bf16[i] = __bfloat162float(__ushort_as_bfloat16(bits[i]));
}
KERNEL narrow(const float* x, const double* y, uint16_t* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = __half_as_ushort(__float2half_rn(x[i]));
  out[n + i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
  out[2 * n + i] = __half_as_ushort(__double2half(y[i]));
  out[3 * n + i] = __bfloat16_as_ushort(__double2bfloat16(y[i]));
}
template <class T>
__device__ void arithmetic_of(const T* x, T* out, int n, int i) {
  const T a = x[i], b = x[n + i], c = x[2 * n + i];
  const T results[] = {a + b, a - b, a * b, a / b, __hfma(a, b, c), -a, __habs(a), __hmax(a, b), hsqrt(__habs(a))};
  for (int k = 0; k < 9; ++k) out[k * n + i] = results[k];
}
KERNEL arithmetic(const __half* h, __half* h_out, const __nv_bfloat16* b, __nv_bfloat16* b_out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  arithmetic_of(h, h_out, n, i);
  arithmetic_of(b, b_out, n, i);
}
KERNEL pairs(const float2* x, __half2* h, __nv_bfloat162* b, float4* back) {
  const int i = threadIdx.x;
  h[i] = __hadd2(__float22half2_rn(x[i]), __floats2half2_rn(1, 2));
  b[i] = __hmul2(__floats2bfloat162_rn(x[i].x, x[i].y), __float2bfloat162_rn(3));
  const float2 u = __half22float2(h[i]);
  back[i] = make_float4(u.x, u.y, __low2float(b[i]), __high2float(b[i]));
}
union Four {
  uint2 raw;
  __half h[4];
};
// Half types in shared memory and in unions, which must be trivially constructible.
KERNEL half_tiles(const uint2* in, float* out) {
  __shared__ __align__(8) __half tile[32][4];
  __shared__ __nv_bfloat16 others[32];
  Four v;
  v.raw = in[threadIdx.x];
  *reinterpret_cast<uint2*>(tile[threadIdx.x]) = v.raw;
  others[threadIdx.x] = __float2bfloat16(__half2float(v.h[3]));
  __syncthreads();
  const int from = 31 - threadIdx.x;
  out[threadIdx.x] = (float)(tile[from][0] + tile[from][1]) * __half2float(tile[from][2]) + (float)others[from];
}
KERNEL vectors(const uint4* in, uint4* out, const float4* f, float4* g) {
  const int i = threadIdx.x;
  uint4 v = __ldg(in + i);
  v.x += 1, v.w = __funnelshift_l(v.x, v.y, 8);
  __stcg(out + i, v);
  const float4 w = __ldcs(f + i);
  g[i] = make_float4(w.w, w.z, w.y, w.x);
}

// ---- functions
KERNEL functions(const float* x, float* out, int n) {
  const int i = threadIdx.x;
  const float v = x[i];
  const float results[] = {__expf(v), __fdividef(v, 3.0f), tanhf(v), expf(v), fmaf(v, v, 1.0f), rsqrtf(fabsf(v)),
                           __saturatef(v), (float)__float2int_rn(v), max(v, 0.5f), (float)min(i, 7u), log1pf(fabsf(v)),
                           (float)__popc(__float_as_uint(v)), (float)__clz(i),
                               __uint_as_float(__brev(__brev(__float_as_uint(v)))),
                           (float)__byte_perm(0x03020100, 0x07060504, 0x1653) + 0 * v,
                               __int_as_float(__float_as_int(v))};
  for (int k = 0; k < 16; ++k) out[k * n + i] = results[k];
}

// ---- tensor cores: one warp; A (16, K), B (8, K) and D (16, 8) are row-major
template <class T>
__device__ void fragments(const T* A, const T* B, int K, uint32_t* a, uint32_t* b) {
  const int per = 4 / sizeof(T), lane = threadIdx.x, row = lane / 4, column = lane % 4 * per, halves = K / (4 * per);
  for (int r = 0; r < 2 * halves; ++r)
    a[r] = *reinterpret_cast<const uint32_t*>(A + (row + 8 * (r % 2)) * K + column + 4 * per * (r / 2));
  for (int r = 0; r < halves; ++r) b[r] = *reinterpret_cast<const uint32_t*>(B + row * K + column + 4 * per * r);
}
KERNEL products(const __half* A, const __half* B, const __nv_bfloat16* Ab, const __nv_bfloat16* Bb, const float* At,
                const float* Bt, const float* C, float* D) {
  uint32_t a[4], b[2];
  float c[4], d[4];
  const int at[4] = {0, 1, 64, 65}, base = threadIdx.x / 4 * 8 + threadIdx.x % 4 * 2;
  for (int i = 0; i < 4; ++i) c[i] = C[base + at[i]];
  auto put = [&](int k) {
    for (int i = 0; i < 4; ++i) D[128 * k + base + at[i]] = d[i];
  };
  fragments(A, B, 16, a, b);
  emulator::mma_m16n8k16_f16(d, a, b, c);
  put(0);
  fragments(Ab, Bb, 16, a, b);
  emulator::mma_m16n8k16_bf16(d, a, b, c);
  put(1);
  fragments(At, Bt, 8, a, b);
  emulator::mma_m16n8k8_tf32(d, a, b, c);
  put(2);
  fragments(A, B, 8, a, b);  // uses the first 128 numbers of A as (16, 8)
  emulator::mma_m16n8k8_f16(d, a, b, c);
  put(3);
  fragments(Ab, Bb, 8, a, b);
  emulator::mma_m16n8k8_bf16(d, a, b, c);
  put(4);
}
KERNEL matrix_loads(const uint16_t* in, uint32_t* out) {  // in: (32, 8), row-major, 4 matrices
  __shared__ __align__(16) uint16_t tile[32][8];
  for (int i = threadIdx.x; i < 256; i += 32) tile[i / 8][i % 8] = in[i];
  __syncwarp();
  uint32_t r[4];
  const int counts[3] = {4, 2, 1};
  for (int k = 0; k < 6; ++k) {
    const int n = counts[k / 2];
    emulator::ldmatrix(r, tile[threadIdx.x % (8 * n)], n, k & 1);
    for (int i = 0; i < n; ++i) out[(4 * k + i) * 32 + threadIdx.x] = r[i];
  }
}

// ---- the order in which threads run
KERNEL arrivals(unsigned* next, unsigned* order) { order[atomicAdd(next, 1u)] = blockIdx.x * blockDim.x + threadIdx.x; }
#line 1000 "parts/named.cuh"
KERNEL in_a_named_part(float* a) { a[threadIdx.x + 1000] = 0; }
