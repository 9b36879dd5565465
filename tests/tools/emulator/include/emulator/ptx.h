// The functions that a kernel's PTX wrappers call under `#ifdef RNNKIT_EMULATOR`, in place of asm.
//
// Fragments have the layout of the PTX manual: 32-bit registers in its order.
#pragma once
#include "math.h"
#include "warp.h"

namespace emulator {

// d = a b + c for the whole warp. Per lane, a has 4 registers and b has 2 (m16n8k8 of 16-bit types: 2 and 1), c and d
// have 4 floats.
void mma_m16n8k16_bf16(float* d, const uint32_t* a, const uint32_t* b, const float* c, EMULATOR_HERE);
void mma_m16n8k16_f16(float* d, const uint32_t* a, const uint32_t* b, const float* c, EMULATOR_HERE);
void mma_m16n8k8_bf16(float* d, const uint32_t* a, const uint32_t* b, const float* c, EMULATOR_HERE);
void mma_m16n8k8_f16(float* d, const uint32_t* a, const uint32_t* b, const float* c, EMULATOR_HERE);
void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b, const float* c, EMULATOR_HERE);

// ldmatrix of 1, 2 or 4 8x8 matrices of 16-bit numbers. Lane l passes the shared memory address of row l % 8 of matrix
// l / 8.
void ldmatrix(uint32_t* registers, const void* row, int matrices, bool transposed, EMULATOR_HERE);

// cvt.rna.tf32.f32: 10 bits of mantissa, ties away from zero.
inline uint32_t to_tf32(float v) {
  const uint32_t bits = bit_cast<uint32_t>(v);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

// ld.acquire, ld.relaxed and st.release, st.relaxed at device scope.
template <class T>
EMULATOR_INTERNAL inline T load_ordered(const T* p, Order order, Site site) {
  load_before(p, sizeof(T), order, site);
  return *p;
}
template <class T>
EMULATOR_INTERNAL inline void store_ordered(T* p, T value, Order order, Site site) {
  store_before(p, sizeof(T), order, site);
  *p = value;
}
template <class T> inline T load_acquire(const T* p, EMULATOR_HERE) { return load_ordered(p, Order::acquire, site); }
template <class T> inline T load_relaxed(const T* p, EMULATOR_HERE) { return load_ordered(p, Order::relaxed, site); }
template <class T>
inline void store_release(T* p, same<T> v, EMULATOR_HERE) { store_ordered(p, v, Order::release, site); }
template <class T>
inline void store_relaxed(T* p, same<T> v, EMULATOR_HERE) { store_ordered(p, v, Order::relaxed, site); }
// red.release: an atomicAdd with a fence before it. atom.acq_rel: an atomicAdd with a fence before and after it.
template <class T>
inline void add_release(T* p, same<T> v, EMULATOR_HERE) {
  fence(Scope::device, site);
  atomicAdd(p, v, site);
}
template <class T>
inline T add_acquire_release(T* p, same<T> v, EMULATOR_HERE) {
  fence(Scope::device, site);
  const T old = atomicAdd(p, v, site);
  fence(Scope::device, site);
  return old;
}

// cp.async of 4, 8 or 16 bytes. The next `zero_bytes` of the destination are set to 0 (src-size below cp-size).
inline void cp_async(void* shared, const void* global, unsigned bytes, unsigned zero_bytes = 0, EMULATOR_HERE) {
  copy_async(shared, global, bytes, zero_bytes, site);
}
inline void cp_async_commit(EMULATOR_HERE) { copy_async_commit(site); }
inline void cp_async_wait(unsigned groups_left, EMULATOR_HERE) { copy_async_wait(groups_left, site); }

// An mbarrier object is 8 bytes of shared memory. A phase completes after `count` arrivals and all expected bytes.
void mbarrier_init(uint64_t* barrier, unsigned count, EMULATOR_HERE);
void mbarrier_arrive(uint64_t* barrier, unsigned expected_bytes = 0, EMULATOR_HERE);
void mbarrier_complete(uint64_t* barrier, unsigned bytes, EMULATOR_HERE);  // complete_tx, as a bulk copy does
bool mbarrier_test(uint64_t* barrier, unsigned parity, EMULATOR_HERE);      // try_wait.parity
inline void mbarrier_wait(uint64_t* barrier, unsigned parity, EMULATOR_HERE) {
  while (!mbarrier_test(barrier, parity, site)) pause(site);
}

// mapa: where a peer of the cluster has its copy of a shared variable. It fails if the peer has exited.
inline char* mapa(void* shared, unsigned rank, EMULATOR_HERE) {
  return static_cast<char*>(map_shared(shared, rank, site));
}
inline void cluster_barrier(EMULATOR_HERE) { cluster_sync(site); }

}  // namespace emulator
