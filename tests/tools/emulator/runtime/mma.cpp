// mma.sync and ldmatrix. Products of 16-bit and TF32 numbers are exact in double, and their sum is rounded once, to
// float. Intermediate rounding in the tensor core is not modelled.
#include <string.h>

#include "checker.h"
#include "emulator/math.h"
#include "emulator/ptx.h"
#include "runtime.h"

namespace emulator {

namespace {

struct Mma {
  float* d;
  const uint32_t *a, *b;
  const float* c;
};

struct BFloat16 {
  static constexpr int per_register = 2;
  static double of(uint32_t reg, int i) { return bit_cast<float>((i ? reg >> 16 : reg & 0xffff) << 16); }
};
struct Half {
  static constexpr int per_register = 2;
  static double of(uint32_t reg, int i) {
    const unsigned bits = i ? reg >> 16 : reg & 0xffff, exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
    const double sign = bits & 0x8000 ? -1.0 : 1.0;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    return sign * ldexp(exponent ? mantissa + 1024.0 : mantissa, exponent ? (int)exponent - 25 : -24);
  }
};
struct Tf32 {  // the hardware uses the upper 19 bits
  static constexpr int per_register = 1;
  static double of(uint32_t reg, int) { return bit_cast<float>(reg & 0xffffe000u); }
};

// A: (16, K), B: (K, 8), D: (16, 8). Lane l is (group, member) = (l / 4, l % 4). A register of A holds per_register
// consecutive numbers of a row. Register r starts at row group + 8 (r % 2) and column member * per_register, plus K / 2
// for r >= 2. The layout of B is the same, transposed.
template <class Type, int K>
void mma_work(void* const* data, unsigned) {
  constexpr int P = Type::per_register, a_registers = K == 4 * P ? 2 : 4, b_registers = a_registers / 2;
  double A[16][K], B[K][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Mma* m = static_cast<const Mma*>(data[lane]);
    const int group = lane >> 2, member = lane & 3;
    for (int i = 0; i < P; ++i) {
      for (int r = 0; r < a_registers; ++r)
        A[group + 8 * (r & 1)][member * P + 4 * P * (r >> 1) + i] = Type::of(m->a[r], i);
      for (int r = 0; r < b_registers; ++r) B[member * P + 4 * P * r + i][group] = Type::of(m->b[r], i);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const Mma* m = static_cast<const Mma*>(data[lane]);
    float result[4];
    for (int i = 0; i < 4; ++i) {
      const int row = (lane >> 2) + 8 * (i >> 1), column = 2 * (lane & 3) + (i & 1);
      double sum = 0;
      for (int k = 0; k < K; ++k) sum += A[row][k] * B[k][column];
      result[i] = (float)(m->c[i] + sum);
    }
    memcpy(m->d, result, sizeof result);
  }
}

void require_whole_warp(const char* name, Site site) {
  const Thread* t = rt.thread;
  if (t->warp->present != 0xffffffffu) fail(site, "warp", "%s in a warp of fewer than 32 threads", name);
}

template <class Type, int K>
void mma(float* d, const uint32_t* a, const uint32_t* b, const float* c, int variant, Site site) {
  Mma record{d, a, b, c};
  require_whole_warp("mma.sync", site);
  warp_collective(0xffffffffu, WarpOp::mma, variant, &record, mma_work<Type, K>, "mma.sync", site);
}

struct LdMatrix {
  uint32_t* registers;
  const void* row;
  int matrices;
  bool transposed;
};

void ldmatrix_work(void* const* data, unsigned) {
  const LdMatrix* first = static_cast<const LdMatrix*>(data[0]);
  uint16_t values[4][8][8];
  for (int lane = 0; lane < 8 * first->matrices; ++lane)
    memcpy(values[lane >> 3][lane & 7], static_cast<const LdMatrix*>(data[lane])->row, 16);
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < first->matrices; ++m) {
      const int row = lane >> 2, column = 2 * (lane & 3);
      const uint32_t low = first->transposed ? values[m][column][row] : values[m][row][column];
      const uint32_t high = first->transposed ? values[m][column + 1][row] : values[m][row][column + 1];
      static_cast<const LdMatrix*>(data[lane])->registers[m] = low | high << 16;
    }
}

}  // namespace

void mma_m16n8k16_bf16(float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site) {
  mma<BFloat16, 16>(d, a, b, c, 0, site);
}
void mma_m16n8k16_f16(float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site) {
  mma<Half, 16>(d, a, b, c, 1, site);
}
void mma_m16n8k8_bf16(float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site) {
  mma<BFloat16, 8>(d, a, b, c, 2, site);
}
void mma_m16n8k8_f16(float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site) {
  mma<Half, 8>(d, a, b, c, 3, site);
}
void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site) {
  mma<Tf32, 8>(d, a, b, c, 4, site);
}

void ldmatrix(uint32_t* registers, const void* row, int matrices, bool transposed, Site site) {
  if (matrices != 1 && matrices != 2 && matrices != 4)
    fail(site, "warp", "ldmatrix of %d matrices: it must be 1, 2 or 4", matrices);
  require_whole_warp("ldmatrix", site);
  if ((int)rt.thread->lane < 8 * matrices) {
    if ((uintptr_t)row % 16) fail(site, "alignment", "ldmatrix: the row at %p is not at a multiple of 16 bytes", row);
    touch(row, 16, false, site);
  }
  LdMatrix record{registers, row, matrices, transposed};
  warp_collective(0xffffffffu, WarpOp::ldmatrix, matrices + 8 * transposed, &record, ldmatrix_work, "ldmatrix", site);
}

}  // namespace emulator
