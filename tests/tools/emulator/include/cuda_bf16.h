// __nv_bfloat16: the upper half of a float, with 8 bits of exponent and 7 of mantissa.
#ifdef RNNKIT_EMULATOR_SCAN
#pragma rnnkit_emulator include <cuda_bf16.h>
#else
#pragma once
#include "emulator/small_float.h"

struct __nv_bfloat16 {
  uint16_t x;
  __nv_bfloat16() = default;
  __nv_bfloat16(float v) { *this = nearest(v); }
  __nv_bfloat16(double v) { *this = nearest(v); }
  __nv_bfloat16(int v) { *this = nearest(v); }
  __nv_bfloat16(unsigned v) { *this = nearest(v); }
  operator float() const { return exact(); }
  static __nv_bfloat16 raw(unsigned bits) {
    __nv_bfloat16 h;
    h.x = (uint16_t)bits;
    return h;
  }
  static __nv_bfloat16 nearest(double v) { return raw(emulator::round_to_bits<8, 7>(v)); }
  float exact() const { return emulator::bit_cast<float>((uint32_t)x << 16); }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
EMULATOR_SMALL_FLOAT(__nv_bfloat16, __nv_bfloat162)

inline __nv_bfloat16 __float2bfloat16(float v) { return __nv_bfloat16::nearest(v); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16::nearest(v); }
inline __nv_bfloat16 __float2bfloat16_rz(float v) {
  return v != v ? __nv_bfloat16::raw(0x7fff) : __nv_bfloat16::raw(__float_as_uint(v) >> 16);
}
inline __nv_bfloat16 __double2bfloat16(double v) { return __nv_bfloat16::nearest(v); }
inline __nv_bfloat16 __int2bfloat16_rn(int v) { return __nv_bfloat16::nearest(v); }
inline float __bfloat162float(__nv_bfloat16 h) { return h.exact(); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.x; }
inline short __bfloat16_as_short(__nv_bfloat16 h) { return (short)h.x; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return __nv_bfloat16::raw(bits); }
inline __nv_bfloat16 __short_as_bfloat16(short bits) { return __nv_bfloat16::raw((unsigned short)bits); }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 v) { return {v, v}; }
inline __nv_bfloat162 __float2bfloat162_rn(float v) { return {__nv_bfloat16::nearest(v), __nv_bfloat16::nearest(v)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16::nearest(x), __nv_bfloat16::nearest(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x.exact(), v.y.exact()}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
#endif
