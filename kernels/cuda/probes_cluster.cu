// Probes of thread-block clusters of RK_CLUSTER blocks, from compute capability 9.0 on. After probes.cuh and
// ptx_cluster.cuh.

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

#ifdef RNNKIT_EMULATOR
__device__ __forceinline__ Word load_own(const Word* p) { return emulator::load_relaxed(p); }
__device__ __forceinline__ ulonglong2 load_own(const ulonglong2* p) { return load_pair(p); }
__device__ __forceinline__ void store_peer(Peer p, Word v) { emulator::store_relaxed((Word*)p, v); }
__device__ __forceinline__ void store_peer(Peer p, ulonglong2 v) { store_pair((ulonglong2*)p, v); }
__device__ __forceinline__ uint4 load_peer(Peer p) { return *(const uint4*)p; }
#else
__device__ __forceinline__ Word load_own(const Word* p) {
  Word v;
  asm volatile("ld.relaxed.cluster.shared::cta.u64 %0, [%1];" : "=l"(v) : "r"(shared_address(p)) : "memory");
  return v;
}
__device__ __forceinline__ ulonglong2 load_own(const ulonglong2* p) {
  ulonglong2 v;
  asm volatile("ld.relaxed.cluster.shared::cta.v2.u64 {%0, %1}, [%2];"
               : "=l"(v.x), "=l"(v.y)
               : "r"(shared_address(p))
               : "memory");
  return v;
}
__device__ __forceinline__ void store_peer(Peer p, Word v) {
  asm volatile("st.relaxed.cluster.shared::cluster.u64 [%0], %1;" ::"r"(p), "l"(v) : "memory");
}
__device__ __forceinline__ void store_peer(Peer p, ulonglong2 v) {
  asm volatile("st.relaxed.cluster.shared::cluster.v2.u64 [%0], {%1, %2};" ::"r"(p), "l"(v.x), "l"(v.y) : "memory");
}
__device__ __forceinline__ uint4 load_peer(Peer p) {
  uint4 v;
  asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(p)
               : "memory");
  return v;
}
#endif

#define CLUSTER_KERNEL extern "C" __global__ void __cluster_dims__(RK_CLUSTER, 1, 1) __launch_bounds__(256)

// A block pushes its number of the round into its neighbour's shared memory, and the cluster meets.
CLUSTER_KERNEL cluster_sync(unsigned* wrong, int rounds, int exchange) {
  __shared__ unsigned seen[2];
  const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  const unsigned next = (cluster.block_rank() + 1) % cluster.num_blocks();
  unsigned* theirs = cluster.map_shared_rank(seen, next);
  cluster.sync();  // a peer's shared memory is there once it has started
  for (int round = 1; round <= rounds; ++round) {
    if (exchange && threadIdx.x == 0) theirs[round & 1] = round;
    cluster.sync();
    if (exchange && threadIdx.x == 0 && seen[round & 1] != (unsigned)round) atomicAdd(wrong, 1u);
  }
  // Nobody leaves while another may still write to its shared memory.
  cluster.sync();
}

// One hop: the first and the last block of the cluster push a tagged word into each other's shared memory.
CLUSTER_KERNEL hop_by_push(unsigned* wrong, int rounds) {
  __shared__ Word slot;
  const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  const unsigned rank = cluster.block_rank();
  if (threadIdx.x == 0) slot = 0;
  cluster.sync();
  if (threadIdx.x == 0 && (rank == 0 || rank == RK_CLUSTER - 1)) {
    const Peer other = peer_of(&slot, rank ? 0 : RK_CLUSTER - 1);
    const Word* own = &slot;
    const unsigned missed = ping_pong(
        rank == 0, rounds, [=](Word word) { store_peer(other, word); }, [=] { return load_own(own); });
    if (missed) atomicAdd(wrong, missed);
  }
  cluster.sync();
}

// ---- the all-gather through distributed shared memory: every block sends its slice of the vector to all of the
// cluster, itself too, or they fetch it. words: a multiple of 4 * RK_CLUSTER.

__device__ __forceinline__ uint4 one_more(uint4 v) { return make_uint4(v.x + 1, v.y + 1, v.z + 1, v.w + 1); }

// Tagged pairs, pushed, and polled where they arrive: a hop with no barrier of the cluster and no fence. Half of the
// bytes are tags. Shared: (2, words / 2) pairs, of which the halves take turns. The thread that reads what a pair
// depends on sends the pair to every peer, so a peer that has the whole vector may overwrite the half that was read.
CLUSTER_KERNEL gather_by_push(unsigned* wrong, int words, int rounds) {
  extern __shared__ uint4 shared_memory[];
  ulonglong2* inbox = reinterpret_cast<ulonglong2*>(shared_memory);
  const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  const unsigned rank = cluster.block_rank(), pairs = words / 2, each = pairs / RK_CLUSTER, begin = rank * each;
  Vector v(words, RK_CLUSTER);
  unsigned missed = 0, patience = kPatience;
  for (unsigned p = threadIdx.x; p < pairs; p += blockDim.x) {
    inbox[p] = make_ulonglong2(2 * p, 2 * p + 1);
    inbox[pairs + p] = make_ulonglong2(0, 0);
  }
  cluster.sync();
  for (unsigned round = 1; round <= (unsigned)rounds; ++round) {
    v.next();
    const ulonglong2* last = inbox + (round + 1) % 2 * pairs;
    ulonglong2* now = inbox + round % 2 * pairs;
    for (unsigned p = begin + threadIdx.x; p < begin + each; p += blockDim.x) {
      const ulonglong2 pair = tagged(values_of(load_own(last + v.source(2 * p) / 2)), round);
#pragma unroll
      for (unsigned k = 1; k <= RK_CLUSTER; ++k) store_peer(peer_of(now + p, (rank + k) % RK_CLUSTER), pair);
    }
    missed += receive_pairs(v, [=](unsigned p) { return load_own(now + p); }, [](unsigned, uint2) {}, patience);
    __syncthreads();
  }
  if (missed) atomicAdd(wrong, missed);
  cluster.sync();
}

// Plain data, pushed by asynchronous stores whose bytes the receiver's mbarrier counts: nothing is polled in memory,
// and no byte is a tag. Shared: (2, words / 4) quads, of which the halves and their mbarriers take turns. One thread
// sends a quad to every peer, as above.
CLUSTER_KERNEL gather_by_mbarrier(unsigned* wrong, int words, int rounds) {
  extern __shared__ uint4 shared_memory[];
  __shared__ Word full[2];
  const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  const unsigned rank = cluster.block_rank(), quads = words / 4, each = quads / RK_CLUSTER, begin = rank * each;
  Vector v(words, RK_CLUSTER);
  unsigned missed = 0, patience = kBarrierPatience;
  start_vector(reinterpret_cast<uint2*>(shared_memory), words);
  if (threadIdx.x < 2) init_barrier(full + threadIdx.x);
  cluster.sync();
  for (unsigned round = 1; round <= (unsigned)rounds; ++round) {
    v.next();
    const uint4* last = shared_memory + (round + 1) % 2 * quads;
    uint4* now = shared_memory + round % 2 * quads;
    Word* barrier = full + round % 2;
    if (threadIdx.x == 0) expect_bytes(barrier, words * 4);
    for (unsigned q = begin + threadIdx.x; q < begin + each; q += blockDim.x) {
      const uint4 values = one_more(last[v.source(4 * q) / 4]);
#pragma unroll
      for (unsigned k = 1; k <= RK_CLUSTER; ++k) {
        const unsigned peer = (rank + k) % RK_CLUSTER;
        store_async(peer_of(now + q, peer), values, peer_of(barrier, peer));
      }
    }
    const unsigned parity = (round - 1) / 2 % 2;
    missed += !wait_until([&] { return phase_ended(barrier, parity); }, patience);
    for (unsigned q = threadIdx.x; q < quads; q += blockDim.x) missed += v.differs(now[q], 4 * q);
    // All have read this half, and seen this phase, before this block's next words let the others go on to write it.
    __syncthreads();
  }
  if (missed) atomicAdd(wrong, missed);
  cluster.sync();
}

// A thread's share of (RK_CLUSTER, each) units: unit k is unit k % each of peer k / each. It divides once, before the
// rounds.
struct Share {
  unsigned each, peer, unit, peer_step, unit_step;
  __device__ explicit Share(unsigned each)
      : each(each),
        peer(threadIdx.x / each),
        unit(threadIdx.x % each),
        peer_step(blockDim.x / each),
        unit_step(blockDim.x % each) {}
  __device__ __forceinline__ void next() {
    peer += peer_step;
    unit += unit_step;
    if (unit >= each) {
      unit -= each;
      ++peer;
    }
  }
};

// Every block writes its slice to its own shared memory, the cluster meets, and each reads the slices of all. Shared:
// (2, words / RK_CLUSTER) words of its own, of which the halves take turns, then the vector (words,).
CLUSTER_KERNEL gather_by_pull(unsigned* wrong, int words, int rounds) {
  extern __shared__ uint4 shared_memory[];
  const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  const unsigned each = words / 4 / RK_CLUSTER, begin = cluster.block_rank() * each;
  uint4* vector = shared_memory + 2 * each;
  Vector v(words, RK_CLUSTER);
  unsigned missed = 0;
  start_vector(reinterpret_cast<uint2*>(vector), words);
  __syncthreads();
  const Share share(each);
  for (unsigned round = 1; round <= (unsigned)rounds; ++round) {
    v.next();
    uint4* mine = shared_memory + round % 2 * each;
    for (unsigned q = threadIdx.x; q < each; q += blockDim.x)
      mine[q] = one_more(vector[v.source(4 * (begin + q)) / 4]);
    cluster.sync();
    Share from = share;  // in step with the quads that read_quads asks for
    const auto load = [&](unsigned) {
      const uint4 got = load_peer(peer_of(mine + from.unit, from.peer));
      from.next();
      return got;
    };
    missed += read_quads(v, load, vector);
    __syncthreads();
  }
  if (missed) atomicAdd(wrong, missed);
  cluster.sync();
}

#endif
