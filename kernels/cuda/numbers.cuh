// Storage, the type of array elements; Compute, the type of the arithmetic; conversions between them; activations.
//
// The build defines one of RK_FLOAT64, RK_FLOAT32, RK_FLOAT16, RK_BFLOAT16. load() is exact, store() rounds to nearest
// even.

#if defined(RK_FLOAT64)
typedef double Storage;
typedef double Compute;
#elif defined(RK_FLOAT32)
typedef float Storage;
typedef float Compute;
#elif defined(RK_FLOAT16)
#include <cuda_fp16.h>
typedef __half Storage;
typedef float Compute;
#elif defined(RK_BFLOAT16)
#include <cuda_bf16.h>
typedef __nv_bfloat16 Storage;
typedef float Compute;
#endif

template <typename To, typename From>
struct Convert {
  static __device__ __forceinline__ To of(From v) { return v; }
};
#if defined(RK_FLOAT16)
template <>
struct Convert<float, __half> {
  static __device__ __forceinline__ float of(__half v) { return __half2float(v); }
};
template <>
struct Convert<__half, float> {
  static __device__ __forceinline__ __half of(float v) { return __float2half_rn(v); }
};
#elif defined(RK_BFLOAT16)
template <>
struct Convert<float, __nv_bfloat16> {
  static __device__ __forceinline__ float of(__nv_bfloat16 v) { return __bfloat162float(v); }
};
template <>
struct Convert<__nv_bfloat16, float> {
  static __device__ __forceinline__ __nv_bfloat16 of(float v) { return __float2bfloat16_rn(v); }
};
#endif

__device__ __forceinline__ Compute load(Storage v) { return Convert<Compute, Storage>::of(v); }
__device__ __forceinline__ Storage store(Compute v) { return Convert<Storage, Compute>::of(v); }

// The activations. They use no fast-math functions: errors are at most about 2 ulp, and infinities and NaN are exact.

#if defined(RK_FLOAT64)
__device__ __forceinline__ Compute tanh_of(Compute a) { return tanh(a); }
__device__ __forceinline__ Compute sigmoid_of(Compute a) { return 1.0 / (1.0 + exp(-a)); }
#else
__device__ __forceinline__ Compute tanh_of(Compute a) { return tanhf(a); }
__device__ __forceinline__ Compute sigmoid_of(Compute a) { return 1.0f / (1.0f + expf(-a)); }
#endif

// Propagates NaN, like numpy.maximum.
__device__ __forceinline__ Compute relu_of(Compute a) { return a <= Compute(0) ? Compute(0) : a; }
