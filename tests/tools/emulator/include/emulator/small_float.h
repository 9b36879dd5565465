// __half and __nv_bfloat16: 16 bits of storage. Every operation is exact in double and rounded once.
#pragma once
#include "math.h"

namespace emulator {

// Rounds x to 1 sign bit and `exponent` and `mantissa` bits: to nearest, ties to even, with subnormals; NaN is 0x7fff.
template <int exponent, int mantissa>
inline uint16_t round_to_bits(double x) {
  constexpr int bias = (1 << (exponent - 1)) - 1, spare = 52 - mantissa;
  constexpr uint16_t infinity = ((1 << exponent) - 1) << mantissa;
  const uint64_t bits = bit_cast<uint64_t>(x), magnitude = bits & ~(1ull << 63);
  const uint16_t sign = (uint16_t)(bits >> 48 & 0x8000);
  if (magnitude > 0x7ffull << 52) return 0x7fff;
  if (magnitude < (uint64_t)(1023 + 1 - bias) << 52) {  // subnormal: a multiple of the smallest number
    // Scales by 2^(bias - 1 + mantissa), which may exceed the range of a double, in several factors.
    constexpr double steps = (double)(1ull << 60);
    double scaled = bit_cast<double>(magnitude);
    int power = bias - 1 + mantissa;
    for (; power >= 60; power -= 60) scaled *= steps;
    return sign | (uint16_t)nearbyint(scaled * (double)(1ull << power));
  }
  const uint64_t rounded = magnitude + ((1ull << (spare - 1)) - 1) + (magnitude >> spare & 1);
  const uint64_t result = (rounded >> spare) - ((uint64_t)(1023 - bias) << mantissa);
  return sign | (result >= infinity ? infinity : (uint16_t)result);
}

// a * b + c, rounded to odd at 53 bits, so that rounding it again to 11 or 8 bits gives the correctly rounded result.
// The product of two 16-bit numbers is exact in double.
inline double fma_to_odd(double a, double b, double c) {
  const double product = a * b, sum = product + c;
  if (!std::isfinite(sum)) return sum;
  const double back = sum - product, error = (product - (sum - back)) + (c - back);
  int64_t bits = bit_cast<int64_t>(sum);
  if (error != 0 && !(bits & 1)) bits += (error > 0) == (sum > 0) ? 1 : -1;
  return bit_cast<double>(bits);
}

}  // namespace emulator

// Operators and comparisons of a 16-bit type T and its pair T2, implemented by double(T) and T::nearest(double).
#define EMULATOR_SMALL_FLOAT(T, T2)                                                                     \
  inline T operator+(T a, T b) { return T::nearest((double)a.exact() + b.exact()); }                    \
  inline T operator-(T a, T b) { return T::nearest((double)a.exact() - b.exact()); }                    \
  inline T operator*(T a, T b) { return T::nearest((double)a.exact() * b.exact()); }                    \
  inline T operator/(T a, T b) { return T::nearest((double)a.exact() / b.exact()); }                    \
  inline T operator-(T a) { return T::raw(a.x ^ 0x8000); }                                              \
  inline T operator+(T a) { return a; }                                                                 \
  inline T& operator+=(T& a, T b) { return a = a + b; }                                                 \
  inline T& operator-=(T& a, T b) { return a = a - b; }                                                 \
  inline T& operator*=(T& a, T b) { return a = a * b; }                                                 \
  inline T& operator/=(T& a, T b) { return a = a / b; }                                                 \
  inline bool operator==(T a, T b) { return a.exact() == b.exact(); }                                   \
  inline bool operator!=(T a, T b) { return a.exact() != b.exact(); }                                   \
  inline bool operator<(T a, T b) { return a.exact() < b.exact(); }                                     \
  inline bool operator<=(T a, T b) { return a.exact() <= b.exact(); }                                   \
  inline bool operator>(T a, T b) { return a.exact() > b.exact(); }                                     \
  inline bool operator>=(T a, T b) { return a.exact() >= b.exact(); }                                   \
  inline T __hadd(T a, T b) { return a + b; }                                                           \
  inline T __hadd_rn(T a, T b) { return a + b; }                                                        \
  inline T __hsub(T a, T b) { return a - b; }                                                           \
  inline T __hsub_rn(T a, T b) { return a - b; }                                                        \
  inline T __hmul(T a, T b) { return a * b; }                                                           \
  inline T __hmul_rn(T a, T b) { return a * b; }                                                        \
  inline T __hdiv(T a, T b) { return a / b; }                                                           \
  inline T __hneg(T a) { return -a; }                                                                   \
  inline T __habs(T a) { return T::raw(a.x & 0x7fff); }                                                 \
  inline T __hfma(T a, T b, T c) { return T::nearest(emulator::fma_to_odd(a.exact(), b.exact(), c.exact())); } \
  inline bool __heq(T a, T b) { return a == b; }                                                        \
  inline bool __hne(T a, T b) { return a.exact() < b.exact() || a.exact() > b.exact(); }                \
  inline bool __hlt(T a, T b) { return a < b; }                                                         \
  inline bool __hle(T a, T b) { return a <= b; }                                                        \
  inline bool __hgt(T a, T b) { return a > b; }                                                         \
  inline bool __hge(T a, T b) { return a >= b; }                                                        \
  inline bool __hisnan(T a) { return a.exact() != a.exact(); }                                          \
  inline int __hisinf(T a) { return std::isinf(a.exact()) ? (a.exact() > 0 ? 1 : -1) : 0; }             \
  inline T __hmax(T a, T b) { return __hisnan(a) ? b : __hisnan(b) ? a : a < b ? b : a; }               \
  inline T __hmin(T a, T b) { return __hisnan(a) ? b : __hisnan(b) ? a : b < a ? b : a; }               \
  inline T hexp(T a) { return T::nearest(exp((double)a.exact())); }                                     \
  inline T hlog(T a) { return T::nearest(log((double)a.exact())); }                                     \
  inline T hsqrt(T a) { return T::nearest(sqrt((double)a.exact())); }                                   \
  inline T hrsqrt(T a) { return T::nearest(1.0 / sqrt((double)a.exact())); }                            \
  inline T hrcp(T a) { return T::nearest(1.0 / (double)a.exact()); }                                    \
  inline T htanh(T a) { return T::nearest(tanh((double)a.exact())); }                                   \
  inline T2 operator+(T2 a, T2 b) { return {a.x + b.x, a.y + b.y}; }                                    \
  inline T2 operator-(T2 a, T2 b) { return {a.x - b.x, a.y - b.y}; }                                    \
  inline T2 operator*(T2 a, T2 b) { return {a.x * b.x, a.y * b.y}; }                                    \
  inline T2 operator/(T2 a, T2 b) { return {a.x / b.x, a.y / b.y}; }                                    \
  inline T2 operator-(T2 a) { return {-a.x, -a.y}; }                                                    \
  inline T2 __hadd2(T2 a, T2 b) { return a + b; }                                                       \
  inline T2 __hsub2(T2 a, T2 b) { return a - b; }                                                       \
  inline T2 __hmul2(T2 a, T2 b) { return a * b; }                                                       \
  inline T2 __h2div(T2 a, T2 b) { return a / b; }                                                       \
  inline T2 __hneg2(T2 a) { return -a; }                                                                \
  inline T2 __hfma2(T2 a, T2 b, T2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }        \
  inline T2 __hmax2(T2 a, T2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }                        \
  inline T2 __hmin2(T2 a, T2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }                        \
  inline float __low2float(T2 a) { return a.x.exact(); }                                                \
  inline float __high2float(T2 a) { return a.y.exact(); }
