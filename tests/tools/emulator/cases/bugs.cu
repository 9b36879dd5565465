// One bug of every kind that the emulator detects. A kernel's last parameter enables its bug; with 0 the kernel is
// correct. The comment "HERE <kernel>" marks the line that the error must name.
#include <cooperative_groups.h>
#include <cuda/std/cstdint>
using cuda::std::uint32_t;
using cuda::std::uint64_t;
namespace cg = cooperative_groups;

#define KERNEL extern "C" __global__ void

// ---- bounds
KERNEL past_the_end(float* a, int n, int bug) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n + bug) a[i] = i;  // HERE past_the_end
}
KERNEL before_the_start(float* a, int bug) {
  float* p = a + threadIdx.x;
  p[-bug] = 1;  // HERE before_the_start
}
struct Table {
  const float* from;
  float* to;
  int n;
};
KERNEL past_a_loaded_pointer(const Table* table, int bug) {
  const int i = threadIdx.x;
  if (i < table->n) table->to[i] = 2 * table->from[i + bug];  // HERE past_a_loaded_pointer
}
KERNEL past_dynamic_shared(float* a, int bug) {
  extern __shared__ float tile[];
  tile[threadIdx.x + bug] = a[threadIdx.x];  // HERE past_dynamic_shared
  __syncthreads();
  a[threadIdx.x] = tile[threadIdx.x + bug];
}
KERNEL past_static_shared(float* a, int bug) {
  __shared__ float tile[64];
  float* p = tile;
  p[threadIdx.x + bug] = a[threadIdx.x];  // HERE past_static_shared
  __syncthreads();
  a[threadIdx.x] = tile[threadIdx.x];
}
KERNEL index_past_array(float* a, int bug) {
  float r[4] = {1, 2, 3, 4};
  a[threadIdx.x] = r[(threadIdx.x & 3) + bug];  // HERE index_past_array
}
KERNEL null_pointer(float* a, const float* nothing, int bug) {
  if (bug) a[threadIdx.x] = nothing[threadIdx.x];  // HERE null_pointer
}
KERNEL misaligned_vector(float* a, int bug) {
  const float4 v = *reinterpret_cast<const float4*>(a + 4 * threadIdx.x + bug);  // HERE misaligned_vector
  a[4 * threadIdx.x] = v.w;
}
KERNEL int_overflow(int* a, int n, int bug) {
  if (bug) a[threadIdx.x] = n * n;  // HERE int_overflow
}

KERNEL division(int* a, int bug) {
  a[threadIdx.x] = 12 / (int)(threadIdx.x + 1 - bug);  // HERE division
}
KERNEL failing_assert(float* a, int bug) {
  assert(a[threadIdx.x] == 1 + bug);  // HERE failing_assert
}

// ---- threads of a block
KERNEL no_barrier_after_load(float* a, int bug) {
  __shared__ float tile[64];
  tile[threadIdx.x] = a[threadIdx.x];
  if (!bug) __syncthreads();
  a[threadIdx.x] = tile[63 - threadIdx.x];  // HERE no_barrier_after_load
}
KERNEL no_barrier_before_reuse(float* a, int bug) {
  __shared__ float tile[64];
  tile[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  const float v = tile[63 - threadIdx.x];
  if (!bug) __syncthreads();
  tile[threadIdx.x] = 2 * v;  // HERE no_barrier_before_reuse
  __syncthreads();
  a[threadIdx.x] = tile[63 - threadIdx.x];
}
KERNEL never_written(float* a, int bug) {
  __shared__ float tile[64];
  if (threadIdx.x < 64 - bug) tile[threadIdx.x] = 1;
  __syncthreads();
  a[threadIdx.x] = tile[threadIdx.x];  // HERE never_written
}
KERNEL barrier_of_some(float* a, int bug) {
  if (threadIdx.x < 16 || !bug) __syncthreads();  // HERE barrier_of_some
  a[threadIdx.x] = 1;
}
KERNEL barriers_in_branches(float* a, int bug) {
  if (threadIdx.x < 32 && bug) {
    __syncthreads();
  } else {
    __syncthreads();  // HERE barriers_in_branches
  }
  a[threadIdx.x] = 1;
}
KERNEL early_return(float* a, int n, int bug) {
  __shared__ float tile[64];
  if (bug && threadIdx.x >= n) return;
  tile[threadIdx.x] = 1;
  __syncthreads();  // HERE early_return
  if (threadIdx.x < n) a[threadIdx.x] = tile[n - 1 - threadIdx.x];
}
KERNEL wrong_named_barrier(float* a, int bug) {  // warp 0 writes, warp 1 reads
  __shared__ float tile[32];
  if (threadIdx.x < 32) {
    tile[threadIdx.x] = a[threadIdx.x];
    emulator::named_barrier_arrive(1, 64, emulator::Site::here());
  } else {
    if (!bug) emulator::named_barrier(1, 64, emulator::Site::here());
    a[threadIdx.x] = tile[63 - threadIdx.x];  // HERE wrong_named_barrier
  }
}

KERNEL lost_named_barrier(float* a, int bug) {
  emulator::named_barrier(threadIdx.x < 32 && bug ? 2 : 1, 64, emulator::Site::here());  // HERE lost_named_barrier
  a[threadIdx.x] = 1;
}

// ---- warps
KERNEL half_a_warp_shuffles(float* a, int bug) {
  float v = a[threadIdx.x];
  if (threadIdx.x < (bug ? 16 : 32)) v += __shfl_xor_sync(0xffffffffu, v, 1);  // HERE half_a_warp_shuffles
  a[threadIdx.x] = v;
}
KERNEL shuffle_from_outside(float* a, int bug) {
  float v = a[threadIdx.x];
  if (threadIdx.x < 16) v += __shfl_xor_sync(0x0000ffffu, v, bug ? 16 : 8);  // HERE shuffle_from_outside
  a[threadIdx.x] = v;
}
KERNEL masks_that_differ(float* a, int bug) {
  const float v = a[threadIdx.x];
  const unsigned mask = threadIdx.x < 16 ? (bug ? 0x0001ffffu : 0x0000ffffu) : 0xffff0000u;
  a[threadIdx.x] = __shfl_xor_sync(mask, v, 1);  // HERE masks_that_differ
}
KERNEL no_syncwarp(float* a, int bug) {  // bug 2: a shuffle in its place, which orders nothing
  __shared__ float tile[64];
  tile[threadIdx.x] = a[threadIdx.x];
  if (!bug) __syncwarp();
  if (bug == 2) a[threadIdx.x] = __shfl_sync(0xffffffffu, a[threadIdx.x], 0);
  a[threadIdx.x] = tile[threadIdx.x ^ 1];  // HERE no_syncwarp
}
KERNEL mma_of_some(float* a, int bug) {
  uint32_t x[4] = {}, y[2] = {};
  float c[4] = {};
  if (threadIdx.x < 32 - bug) emulator::mma_m16n8k16_bf16(c, x, y, c);  // HERE mma_of_some
  a[threadIdx.x] = c[0];
}

// ---- blocks
KERNEL blocks_race(float* sum, int bug) {
  if (threadIdx.x == 0) {
    if (bug)
      sum[0] += 1;  // HERE blocks_race
    else
      atomicAdd(sum, 1.0f);
  }
}
KERNEL plain_read_of_atomic(unsigned* a, unsigned* out, int bug) {
  if (blockIdx.x == 0) {
    atomicAdd(a, 1u);
  } else {
    out[blockIdx.x] = bug ? *a : atomicAdd(a, 0u);  // HERE plain_read_of_atomic
  }
}
KERNEL ldg_of_written(float* a, int bug) {
  a[threadIdx.x] = threadIdx.x;
  a[threadIdx.x] += bug ? __ldg(a + threadIdx.x) : a[threadIdx.x];  // HERE ldg_of_written
}
KERNEL not_cooperative(float* a) {
  cg::this_grid().sync();  // HERE not_cooperative
  a[blockIdx.x] = 1;
}

// Every block writes its line, passes a grid barrier made from a counter, and reads its neighbour's line. bug 1: no
// fence before the counter; 2: no __syncthreads after the barrier; 3: no fence after a relaxed poll; 4: a block skips
// the barrier.
KERNEL handmade_barrier(float* lines, float* out, unsigned* counter, int bug) {
  const int n = blockDim.x, me = blockIdx.x, next = (blockIdx.x + 1) % gridDim.x;
  lines[me * n + threadIdx.x] = me + threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0 && !(bug == 4 && me == 1)) {
    if (bug != 1) __threadfence();
    atomicAdd(counter, 1u);
    while (emulator::load_relaxed(counter) < gridDim.x) {  // HERE handmade_barrier_4
    }
    if (bug != 3) __threadfence();
  }
  if (bug != 2) __syncthreads();
  out[me * n + threadIdx.x] = lines[next * n + threadIdx.x];  // HERE handmade_barrier
}
// block 0 writes, block 1 reads, with release and acquire
KERNEL volatile_flag(float* data, float* out, int* flag, int bug) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    data[0] = 7;
    if (bug != 1) __threadfence();
    *(volatile int*)flag = 1;
  } else {
    while (!*(volatile int*)flag) {
    }
    if (bug != 2) __threadfence();
    out[0] = data[0];  // HERE volatile_flag
  }
}
KERNEL spins_alone(unsigned* counter, int bug) {
  if (threadIdx.x == 0) {
    atomicAdd(counter, 1u);
    while (bug && emulator::load_acquire(counter) < gridDim.x) {  // HERE spins_alone
    }
  }
  __syncthreads();
}
KERNEL endless(const float* a, float* out, int bug) {
  float v = 0;
  for (unsigned i = 0; bug || i < 4; ++i) v += a[i % 4];  // HERE endless
  out[threadIdx.x] = v;
}

// ---- clusters of 4: blocks exchange units of h through distributed shared memory. bug 1: no second buffer; 2: a block
// exits while others write to it; 3: no wait for the other blocks to start.
KERNEL __cluster_dims__(4, 1, 1) cluster_exchange(float* out, int steps, int bug) {
  __shared__ float h[2][64];
  cg::cluster_group cluster = cg::this_cluster();
  const int rank = cluster.block_rank(), unit = rank * 16 + threadIdx.x;
  for (int i = threadIdx.x; i < 64; i += 16) h[0][i] = i;
  if (bug != 3) cluster.sync();
  for (int t = 0; t < steps; ++t) {
    float sum = 0;
    for (int k = 0; k < 64; ++k) sum += h[bug == 1 ? 0 : t & 1][k];
    for (int peer = 0; peer < 4; ++peer) {
      float* there = cluster.map_shared_rank(&h[bug == 1 ? 0 : (t + 1) & 1][0], peer);  // HERE cluster_exchange_2
      there[unit] = sum + unit;  // HERE cluster_exchange
    }
    if (bug != 2 || t + 1 < steps) cluster.sync();
  }
  out[blockIdx.x * 16 + threadIdx.x] = bug == 2 ? 0 : h[steps & 1][unit];
}

KERNEL __cluster_dims__(2, 1, 1) cluster_split(float* out, int bug) {
  __shared__ float tile[16];
  cg::cluster_group cluster = cg::this_cluster();
  tile[threadIdx.x] = threadIdx.x;
  cluster.barrier_arrive();
  if (bug && cluster.thread_rank() == 0) tile[0] = 1;  // after the arrival, so the others' wait does not order it
  cluster.barrier_wait();
  const float* there = cluster.map_shared_rank(tile, cluster.block_rank() ^ 1);
  out[blockIdx.x * 16 + threadIdx.x] = there[15 - threadIdx.x];  // HERE cluster_split
  cluster.sync();
}

// ---- asynchronous copies and mbarriers
KERNEL copy_not_waited_for(const float* a, float* out, int bug) {
  __shared__ __align__(16) float tile[128];
  emulator::cp_async(tile + 4 * threadIdx.x, a + 4 * threadIdx.x, 16);
  emulator::cp_async_commit();
  if (bug != 1) emulator::cp_async_wait(0);
  __syncthreads();
  out[threadIdx.x] = tile[4 * threadIdx.x];  // HERE copy_not_waited_for
  if (bug == 1) emulator::cp_async_wait(0);
}
KERNEL copy_left_behind(const float* a, float* out, int bug) {
  __shared__ __align__(16) float tile[128];
  emulator::cp_async(tile + 4 * threadIdx.x, a + 4 * threadIdx.x, 16);  // HERE copy_left_behind
  emulator::cp_async_commit();
  if (!bug) emulator::cp_async_wait(0);
  out[threadIdx.x] = 1;
}
KERNEL mbarrier_not_waited_for(const float* a, float* out, int bug) {
  __shared__ uint64_t full;
  __shared__ float tile[32];
  if (threadIdx.x == 0) emulator::mbarrier_init(&full, 32);
  __syncthreads();
  if (threadIdx.x < 32) {
    tile[threadIdx.x] = a[threadIdx.x];
    emulator::mbarrier_arrive(&full);
  } else {
    if (!bug) emulator::mbarrier_wait(&full, 0);
    out[threadIdx.x - 32] = tile[63 - threadIdx.x];  // HERE mbarrier_not_waited_for
  }
}
