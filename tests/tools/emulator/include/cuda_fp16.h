// __half: 5 bits of exponent, 10 of mantissa.
#ifdef RNNKIT_EMULATOR_SCAN
#pragma rnnkit_emulator include <cuda_fp16.h>
#else
#pragma once
#include "emulator/small_float.h"

struct __half {
  uint16_t x;
  __half() = default;
  __half(float v) { *this = nearest(v); }
  __half(double v) { *this = nearest(v); }
  __half(int v) { *this = nearest(v); }
  __half(unsigned v) { *this = nearest(v); }
  operator float() const { return exact(); }
  static __half raw(unsigned bits) {
    __half h;
    h.x = (uint16_t)bits;
    return h;
  }
  static __half nearest(double v) { return raw(emulator::round_to_bits<5, 10>(v)); }
  float exact() const {
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, exponent = x >> 10 & 31, mantissa = x & 0x3ff;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)mantissa * 0x1p-24f;
    const uint32_t wide = exponent == 31 ? 255 : exponent + 127 - 15;
    return emulator::bit_cast<float>(sign | wide << 23 | mantissa << 13);
  }
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;
EMULATOR_SMALL_FLOAT(__half, __half2)

inline __half __float2half(float v) { return __half::nearest(v); }
inline __half __float2half_rn(float v) { return __half::nearest(v); }
inline __half __double2half(double v) { return __half::nearest(v); }
inline __half __int2half_rn(int v) { return __half::nearest(v); }
inline float __half2float(__half h) { return h.exact(); }
inline int __half2int_rz(__half h) { return __float2int_rz(h.exact()); }
inline int __half2int_rn(__half h) { return __float2int_rn(h.exact()); }
inline unsigned short __half_as_ushort(__half h) { return h.x; }
inline short __half_as_short(__half h) { return (short)h.x; }
inline __half __ushort_as_half(unsigned short bits) { return __half::raw(bits); }
inline __half __short_as_half(short bits) { return __half::raw((unsigned short)bits); }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half v) { return {v, v}; }
inline __half2 __float2half2_rn(float v) { return {__half::nearest(v), __half::nearest(v)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half::nearest(x), __half::nearest(y)}; }
inline __half2 __float22half2_rn(float2 v) { return {__half::nearest(v.x), __half::nearest(v.y)}; }
inline float2 __half22float2(__half2 v) { return {v.x.exact(), v.y.exact()}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
#endif
