// What a barrier costs on a card: no part of the library, `python -m bench.gpu.barriers` and its tests alone use it.
//
// Every probe goes through `rounds` rounds of one thing; its cost is the difference between two numbers of rounds. Each
// also counts the rounds in which it saw what it should not have, in `wrong`: a barrier that does not hold is not timed.

#include <cooperative_groups.h>

// Release and acquire at device scope: what is written before the one is seen after the other.
#ifdef RNNKIT_EMULATOR
__device__ __forceinline__ unsigned load_acquire(const unsigned* p) { return emulator::load_acquire(p); }
__device__ __forceinline__ void store_release(unsigned* p, unsigned v) { emulator::store_release(p, v); }
__device__ __forceinline__ void add_release(unsigned* p, unsigned v) { emulator::add_release(p, v); }
#else
__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_release(unsigned* p, unsigned v) {
  asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void add_release(unsigned* p, unsigned v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
#endif

extern "C" __global__ void nothing() {}

// The dependence of one element on itself, read and written: a launch with the least of memory traffic.
extern "C" __global__ void __launch_bounds__(256) count_up(unsigned* value) {
  if (threadIdx.x == 0 && blockIdx.x == 0) *value += 1;
}

// A block writes its number of the round, all meet, and it reads its neighbour's. The two halves of `seen` (2, blocks)
// take turns, so that one barrier a round is enough.
__device__ __forceinline__ void write_round(unsigned* seen, int round) {
  if (threadIdx.x == 0) seen[(round & 1) * gridDim.x + blockIdx.x] = round;
}
__device__ __forceinline__ void check_round(const unsigned* seen, unsigned* wrong, int round) {
  const unsigned neighbour = (blockIdx.x + 1) % gridDim.x;
  if (threadIdx.x == 0 && load_acquire(seen + (round & 1) * gridDim.x + neighbour) != (unsigned)round)
    atomicAdd(wrong, 1u);
}

// Cooperative launch; `seen` null: the barrier alone.
extern "C" __global__ void __launch_bounds__(256) grid_sync(unsigned* seen, unsigned* wrong, int rounds) {
  const cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  for (int round = 1; round <= rounds; ++round) {
    if (seen) write_round(seen, round);
    grid.sync();
    if (seen) check_round(seen, wrong, round);
  }
}

// The same barrier by hand: one counter in the L2 cache, 0 at the launch. Cooperative launch too, for all must run.
extern "C" __global__ void __launch_bounds__(256)
grid_counter(unsigned* counter, unsigned* seen, unsigned* wrong, int rounds) {
  for (int round = 1; round <= rounds; ++round) {
    if (seen) write_round(seen, round);
    __syncthreads();
    if (threadIdx.x == 0) {
      add_release(counter, 1u);
      while (load_acquire(counter) < (unsigned)round * gridDim.x) {
      }
    }
    __syncthreads();
    if (seen) check_round(seen, wrong, round);
  }
}

// Two blocks of a thread each hand a flag to and fro: a round is two handoffs. flags (2, 32), 0 at the launch; a
// cache line each.
extern "C" __global__ void __launch_bounds__(32) flag_handoff(unsigned* flags, unsigned* wrong, int rounds) {
  unsigned* mine = flags + blockIdx.x * 32;
  unsigned* other = flags + (1 - blockIdx.x) * 32;
  for (unsigned round = 1; round <= (unsigned)rounds; ++round) {
    if (blockIdx.x == 0) store_release(mine, round);
    unsigned seen = load_acquire(other);
    while (seen < round) seen = load_acquire(other);
    if (seen != round) atomicAdd(wrong, 1u);
    if (blockIdx.x == 1) store_release(mine, round);
  }
}

#if defined(RK_CLUSTER) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900)
// A block pushes its number of the round into its neighbour's shared memory, and the cluster meets.
extern "C" __global__ void __cluster_dims__(RK_CLUSTER, 1, 1) __launch_bounds__(256)
cluster_sync(unsigned* wrong, int rounds, int exchange) {
  __shared__ unsigned seen[2];
  const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  const unsigned next = (cluster.block_rank() + 1) % cluster.num_blocks();
  unsigned* theirs = cluster.map_shared_rank(seen, next);
  for (int round = 1; round <= rounds; ++round) {
    if (exchange && threadIdx.x == 0) theirs[round & 1] = round;
    cluster.sync();
    if (exchange && threadIdx.x == 0 && seen[round & 1] != (unsigned)round) atomicAdd(wrong, 1u);
  }
  // Nobody leaves while another may still write to its shared memory.
  cluster.sync();
}
#endif
