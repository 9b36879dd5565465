// this_thread_block, this_grid, this_cluster and tiles of a warp.
#ifdef RNNKIT_EMULATOR_SCAN
#pragma rnnkit_emulator include <cooperative_groups.h>
#else
#pragma once
#include "emulator/warp.h"

namespace cooperative_groups {

inline unsigned threads_of_block() { return blockDim.x * blockDim.y * blockDim.z; }

struct thread_block {
  static void sync(EMULATOR_HERE) { emulator::sync_threads(site); }
  static unsigned thread_rank() { return emulator::context.rank; }
  static unsigned size() { return threads_of_block(); }
  static unsigned num_threads() { return threads_of_block(); }
  static dim3 group_index() { return dim3(blockIdx.x, blockIdx.y, blockIdx.z); }
  static dim3 thread_index() { return dim3(threadIdx.x, threadIdx.y, threadIdx.z); }
  static dim3 group_dim() { return blockDim; }
};
inline thread_block this_thread_block() { return {}; }

struct grid_group {
  static void sync(EMULATOR_HERE) { emulator::grid_sync(site); }
  static bool is_valid() { return true; }
  static unsigned long long num_blocks() { return (unsigned long long)gridDim.x * gridDim.y * gridDim.z; }
  static unsigned long long block_rank() {
    return blockIdx.x + gridDim.x * (blockIdx.y + (unsigned long long)gridDim.y * blockIdx.z);
  }
  static unsigned long long size() { return num_blocks() * threads_of_block(); }
  static unsigned long long num_threads() { return size(); }
  static unsigned long long thread_rank() { return block_rank() * threads_of_block() + emulator::context.rank; }
  static dim3 group_dim() { return gridDim; }
};
inline grid_group this_grid() { return {}; }

struct cluster_group {
  struct arrival_token {};
  static void sync(EMULATOR_HERE) { emulator::cluster_sync(site); }
  static arrival_token barrier_arrive(EMULATOR_HERE) {
    emulator::cluster_arrive(site);
    return {};
  }
  static void barrier_wait(EMULATOR_HERE) { emulator::cluster_wait(site); }
  static void barrier_wait(arrival_token&&, EMULATOR_HERE) { emulator::cluster_wait(site); }
  static unsigned block_rank() { return emulator::cluster_rank(); }
  static unsigned num_blocks() { return emulator::cluster_size(); }
  static unsigned thread_rank() { return block_rank() * threads_of_block() + emulator::context.rank; }
  static unsigned num_threads() { return num_blocks() * threads_of_block(); }
  static dim3 dim_blocks() { return emulator::cluster_dims(); }
  static dim3 block_index() {
    const dim3 size = emulator::cluster_dims();
    return dim3(blockIdx.x % size.x, blockIdx.y % size.y, blockIdx.z % size.z);
  }
  template <class T>
  static T* map_shared_rank(T* pointer, unsigned rank, EMULATOR_HERE) {
    return static_cast<T*>(emulator::map_shared((const void*)pointer, rank, site));
  }
};
inline cluster_group this_cluster() { return {}; }

template <unsigned N>
struct thread_block_tile {
  static_assert(N >= 1 && N <= 32 && (N & (N - 1)) == 0, "a tile has 1, 2, 4, 8, 16 or 32 threads");
  static unsigned mask() {
    return N == 32 ? 0xffffffffu : ((1u << (N & 31)) - 1u) << (emulator::context.lane & ~(N - 1));
  }
  static unsigned thread_rank() { return emulator::context.lane & (N - 1); }
  static unsigned meta_group_rank() { return emulator::context.rank / N; }
  static unsigned meta_group_size() { return (threads_of_block() + N - 1) / N; }
  static constexpr unsigned size() { return N; }
  static constexpr unsigned num_threads() { return N; }
  static void sync(EMULATOR_HERE) { ::__syncwarp(mask(), site); }
  template <class T> static T shfl(T v, int lane, EMULATOR_HERE) { return ::__shfl_sync(mask(), v, lane, N, site); }
  template <class T> static T shfl_xor(T v, int lanes, EMULATOR_HERE) {
    return ::__shfl_xor_sync(mask(), v, lanes, N, site);
  }
  template <class T> static T shfl_down(T v, unsigned delta, EMULATOR_HERE) {
    return ::__shfl_down_sync(mask(), v, delta, N, site);
  }
  template <class T> static T shfl_up(T v, unsigned delta, EMULATOR_HERE) {
    return ::__shfl_up_sync(mask(), v, delta, N, site);
  }
  static int any(int p, EMULATOR_HERE) { return ::__any_sync(mask(), p, site); }
  static int all(int p, EMULATOR_HERE) { return ::__all_sync(mask(), p, site); }
  static unsigned ballot(int p, EMULATOR_HERE) {
    return ::__ballot_sync(mask(), p, site) >> (emulator::context.lane & ~(N - 1));
  }
};
template <unsigned N, class Group>
inline thread_block_tile<N> tiled_partition(const Group&) { return {}; }
template <class Group>
inline void sync(const Group& group, EMULATOR_HERE) { group.sync(site); }

}  // namespace cooperative_groups
#endif
