// Qualifiers, built-in variables, barriers, fences, atomics and cached loads, by their CUDA names.
#pragma once
#include "types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __inline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))

// One static object per declaration. The runtime finds it in the symbol table and has a copy of it for each block.
// `used` stops GCC from assuming that only the visible code changes it.
#define __shared__ static __attribute__((used))
// scan.py replaces `extern __shared__ T name[];` by this macro.
#define EMULATOR_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::emulator::dynamic_shared())

#define threadIdx (::emulator::context.thread)
#define blockIdx (::emulator::context.block)
#define blockDim (::emulator::context.block_size)
#define gridDim (::emulator::context.grid_size)
static constexpr int warpSize = 32;

inline void __syncthreads(EMULATOR_HERE) { emulator::sync_threads(site); }
inline int __syncthreads_or(int p, EMULATOR_HERE) {
  return emulator::sync_threads_reduce(p, emulator::Reduce::any, site);
}
inline int __syncthreads_and(int p, EMULATOR_HERE) {
  return emulator::sync_threads_reduce(p, emulator::Reduce::all, site);
}
inline int __syncthreads_count(int p, EMULATOR_HERE) {
  return emulator::sync_threads_reduce(p, emulator::Reduce::count, site);
}
inline void __threadfence_block(EMULATOR_HERE) { emulator::fence(emulator::Scope::block, site); }
inline void __threadfence(EMULATOR_HERE) { emulator::fence(emulator::Scope::device, site); }
inline void __threadfence_system(EMULATOR_HERE) { emulator::fence(emulator::Scope::device, site); }
inline void __nanosleep(unsigned, EMULATOR_HERE) { emulator::pause(site); }
inline long long clock64() { return emulator::clock(); }
inline void __trap(EMULATOR_HERE) { emulator::fail(site, "assert", "__trap()"); }
#define __builtin_assume(condition) ((void)0)
#undef assert
#define assert(condition) \
  ((condition) ? (void)0 : ::emulator::fail(::emulator::Site::here(), "assert", "device assert failed: %s", #condition))

// ---- loads and stores with a cache hint, which is ignored; __ldg also checks that the launch does not write the data
template <class T>
__forceinline__ T __ldg(const T* p, EMULATOR_HERE) {
  emulator::check_read_only(p, sizeof(T), site);
  return *p;
}
template <class T> __forceinline__ T __ldca(const T* p) { return *p; }
template <class T> __forceinline__ T __ldcg(const T* p) { return *p; }
template <class T> __forceinline__ T __ldcs(const T* p) { return *p; }
template <class T> __forceinline__ T __ldcv(const T* p) { return *p; }
template <class T> __forceinline__ T __ldlu(const T* p) { return *p; }
template <class T> __forceinline__ void __stwb(T* p, T v) { *p = v; }
template <class T> __forceinline__ void __stcg(T* p, T v) { *p = v; }
template <class T> __forceinline__ void __stcs(T* p, T v) { *p = v; }
template <class T> __forceinline__ void __stwt(T* p, T v) { *p = v; }

// ---- atomics
namespace emulator {

template <class T> struct Same { using type = T; };
template <class T> using same = typename Same<T>::type;  // a parameter that does not take part in the deduction of T

template <class T, class Update>
EMULATOR_INTERNAL inline T atomic_update(T* p, Update update, Site site) {
  if ((uintptr_t)p % sizeof(T))
    fail(site, "alignment", "atomic on %p, which is not a multiple of %zu", (void*)p, sizeof(T));
  atomic_before(p, sizeof(T), site);
  const T old = *p, now = update(old);
  *p = now;
  atomic_after(p, __builtin_memcmp(&old, &now, sizeof(T)) != 0, site);
  return old;
}

}  // namespace emulator

#define EMULATOR_ATOMIC(name, expression)                                          \
  template <class T>                                                               \
  EMULATOR_INTERNAL inline T name(T* p, emulator::same<T> v, EMULATOR_HERE) {      \
    return emulator::atomic_update(p, [v](T old) EMULATOR_INTERNAL { return (T)(expression); }, site); \
  }                                                                                \
  template <class T>                                                               \
  inline T name##_block(T* p, emulator::same<T> v, EMULATOR_HERE) { return name(p, v, site); }
EMULATOR_ATOMIC(atomicAdd, old + v)
EMULATOR_ATOMIC(atomicSub, old - v)
EMULATOR_ATOMIC(atomicExch, v)
EMULATOR_ATOMIC(atomicMax, old < v ? v : old)
EMULATOR_ATOMIC(atomicMin, v < old ? v : old)
EMULATOR_ATOMIC(atomicAnd, old& v)
EMULATOR_ATOMIC(atomicOr, old | v)
EMULATOR_ATOMIC(atomicXor, old ^ v)
EMULATOR_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
EMULATOR_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef EMULATOR_ATOMIC
template <class T>
EMULATOR_INTERNAL inline T atomicCAS(T* p, emulator::same<T> expected, emulator::same<T> v, EMULATOR_HERE) {
  return emulator::atomic_update(p, [=](T old) EMULATOR_INTERNAL { return old == expected ? v : old; }, site);
}
