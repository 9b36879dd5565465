// PTX that the resident schedules use, each with what stands for it in the emulator.

// RK_TENSOR_CORES: whether products run on tensor cores: in 16 bits, and in TF32 (RK_FLOAT32 and RK_TF32).
#if defined(RK_FLOAT16) || defined(RK_BFLOAT16) || defined(RK_TF32)
#define RK_TENSOR_CORES 1
#else
#define RK_TENSOR_CORES 0
#endif

#if RK_TENSOR_CORES
// d (16, 8) += a (16, K) b (K, 8) for a warp: K is 16 in 16 bits, 8 in TF32. Registers as in the PTX manual.
__device__ __forceinline__ void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                    unsigned b1) {
#if defined(RNNKIT_EMULATOR)
  const unsigned a[4] = {a0, a1, a2, a3};
  const unsigned b[2] = {b0, b1};
#if defined(RK_FLOAT16)
  emulator::mma_m16n8k16_f16(d, a, b, d);
#elif defined(RK_BFLOAT16)
  emulator::mma_m16n8k16_bf16(d, a, b, d);
#else
  emulator::mma_m16n8k8_tf32(d, a, b, d);
#endif
#elif defined(RK_FLOAT16) && __CUDA_ARCH__ < 800
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b0));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a2), "r"(a3), "r"(b1));
#else
#if defined(RK_FLOAT16)
#define RK_MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#elif defined(RK_BFLOAT16)
#define RK_MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#else
#define RK_MMA "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
#endif
  asm(RK_MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}
#endif

// v as an operand of a product: rounded to TF32 where products are in TF32, else v.
__device__ __forceinline__ Storage operand_of(Storage v) {
#if !defined(RK_TF32)
  return v;
#elif defined(RNNKIT_EMULATOR)
  return __uint_as_float(emulator::to_tf32(v));
#else
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(v));
  return __uint_as_float(rounded);
#endif
}

// Words of 64 bits that blocks exchange through the L2 cache. Each access is atomic and bypasses the L1 cache; it
// orders nothing. A pair is one access of 16 bytes; each of its words is atomic, the two together are not.
#if defined(RNNKIT_EMULATOR)
__device__ __forceinline__ void store_word(unsigned long long* p, unsigned long long v) {
  emulator::store_relaxed(p, v);
}
__device__ __forceinline__ unsigned long long load_word(const unsigned long long* p) {
  return emulator::load_relaxed(p);
}
__device__ __forceinline__ ulonglong2 load_pair(const ulonglong2* p) {
  return make_ulonglong2(emulator::load_relaxed(&p->x), emulator::load_relaxed(&p->y));
}
__device__ __forceinline__ void store_pair(ulonglong2* p, ulonglong2 v) {
  emulator::store_relaxed(&p->x, v.x);
  emulator::store_relaxed(&p->y, v.y);
}
__device__ __forceinline__ void poll_again() { __nanosleep(0); }  // lets the other threads run
#else
__device__ __forceinline__ void store_word(unsigned long long* p, unsigned long long v) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
__device__ __forceinline__ unsigned long long load_word(const unsigned long long* p) {
  unsigned long long v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ ulonglong2 load_pair(const ulonglong2* p) {
  ulonglong2 v;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(v.x), "=l"(v.y) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_pair(ulonglong2* p, ulonglong2 v) {
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(p), "l"(v.x), "l"(v.y) : "memory");
}
__device__ __forceinline__ void poll_again() {}
#endif

// v, hidden from the compiler, so that it computes what depends on v where it is needed. Otherwise it would compute it
// before a loop and keep it in registers, which the weights need.
__device__ __forceinline__ int recomputed(int v) {
#if !defined(RNNKIT_EMULATOR)
  asm volatile("" : "+r"(v));
#endif
  return v;
}
