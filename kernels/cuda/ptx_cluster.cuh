// PTX of clusters of RK_CLUSTER blocks, each with what stands for it in the emulator. Needs compute capability 9.0.

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// How often a thread looks at an mbarrier before a wait ends with an error. A look may take kSuspend nanoseconds.
constexpr unsigned kBarrierPatience = 1u << 16, kSuspend = 10000;

#if defined(RNNKIT_EMULATOR)
// The address of a peer's copy of a shared variable; `peer + bytes` is as far into it.
typedef char* Peer;
__device__ __forceinline__ Peer peer_of(void* mine, unsigned rank) { return emulator::mapa(mine, rank); }
__device__ __forceinline__ unsigned cluster_rank() { return emulator::cluster_rank(); }
__device__ __forceinline__ unsigned cluster_blocks() { return emulator::cluster_size(); }
__device__ __forceinline__ unsigned cluster_number() { return blockIdx.x / emulator::cluster_size(); }
__device__ __forceinline__ void cluster_barrier() { emulator::cluster_barrier(); }
__device__ __forceinline__ void store_async(Peer p, uint4 v, Peer barrier) {
  *(uint4*)p = v;
  emulator::mbarrier_complete((uint64_t*)barrier, sizeof v);
}
__device__ __forceinline__ void init_barrier(unsigned long long* barrier, unsigned arrivals = 1) {
  emulator::mbarrier_init((uint64_t*)barrier, arrivals);
}
__device__ __forceinline__ void arrive_at(Peer barrier) { emulator::mbarrier_arrive((uint64_t*)barrier); }
__device__ __forceinline__ void expect_bytes(unsigned long long* barrier, unsigned bytes) {
  emulator::mbarrier_arrive((uint64_t*)barrier, bytes);
}
__device__ __forceinline__ bool phase_ended(unsigned long long* barrier, unsigned parity) {
  return emulator::mbarrier_test((uint64_t*)barrier, parity);
}
#else
typedef unsigned Peer;
__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ __forceinline__ Peer peer_of(void* mine, unsigned rank) {
  Peer p;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(p) : "r"(shared_address(mine)), "r"(rank));
  return p;
}
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ unsigned cluster_blocks() {
  unsigned blocks;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}
// The cluster's index in a grid of one dimension: blockIdx.x / cluster_blocks(), without a division in every step.
__device__ __forceinline__ unsigned cluster_number() {
  unsigned number;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(number));
  return number;
}
// Also orders what was written to shared memory before it.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The store, and its bytes counted at the mbarrier of the block that is stored to.
__device__ __forceinline__ void store_async(Peer p, uint4 v, Peer barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(p),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void init_barrier(unsigned long long* barrier, unsigned arrivals = 1) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Arrives at an mbarrier of a peer. A thread that sees the phase end also sees what was written before the arrival.
__device__ __forceinline__ void arrive_at(Peer barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void expect_bytes(unsigned long long* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Waits in hardware for up to kSuspend nanoseconds.
__device__ __forceinline__ bool phase_ended(unsigned long long* barrier, unsigned parity) {
  unsigned ended;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2, %3;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(parity), "r"(kSuspend)
      : "memory");
  return ended;
}
#endif

#endif
