// CUDA's vector types with CUDA's alignments. As on the device, a float4 at an address that is not a multiple of 16 is
// an error.
#pragma once
#include "abi.h"

#define EMULATOR_VECTOR(T, N, ALIGN2, ALIGN4)                                                    \
  struct N##1 { T x; };                                                                          \
  struct alignas(ALIGN2) N##2 { T x, y; };                                                       \
  struct N##3 { T x, y, z; };                                                                    \
  struct alignas(ALIGN4) N##4 { T x, y, z, w; };                                                 \
  inline N##1 make_##N##1(T x) { return {x}; }                                                   \
  inline N##2 make_##N##2(T x, T y) { return {x, y}; }                                           \
  inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }                                   \
  inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }

EMULATOR_VECTOR(signed char, char, 2, 4)
EMULATOR_VECTOR(unsigned char, uchar, 2, 4)
EMULATOR_VECTOR(short, short, 4, 8)
EMULATOR_VECTOR(unsigned short, ushort, 4, 8)
EMULATOR_VECTOR(int, int, 8, 16)
EMULATOR_VECTOR(long long, longlong, 16, 16)
EMULATOR_VECTOR(unsigned long long, ulonglong, 16, 16)
EMULATOR_VECTOR(float, float, 8, 16)
EMULATOR_VECTOR(double, double, 16, 16)
#undef EMULATOR_VECTOR

// uint3 is in abi.h.
struct uint1 { unsigned x; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint1 make_uint1(unsigned x) { return {x}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
