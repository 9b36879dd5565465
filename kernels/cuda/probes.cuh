// What the probes share. Probes are kernels that measure launches, barriers and hand-overs on a card, for
// bench/gpu/sync_costs.py and bench/gpu/exchange_costs.py. No kernel of the library uses these files.
//
// Every probe repeats one thing for `rounds` rounds; its cost is the slope between two numbers of rounds. Each adds to
// `wrong` what it saw that it should not have seen: a protocol that does not hold is not timed. What a round sends
// depends on what the round before it received, as in a recurrence, so that no two rounds overlap.

#include <cooperative_groups.h>

typedef unsigned long long Word;

// Looks at a flag or tag before a wait gives up, a second or so: a protocol that does not hold must not hang the card.
constexpr unsigned kPatience = 1u << 22;
// 16-byte loads that a thread has in flight.
constexpr int kBatch = 4;

// PTX, each with what stands for it in the emulator. Acquire and release: what is written before the release is seen
// after the acquire. Relaxed: the access itself is atomic and bypasses the L1 cache, and orders nothing.
#ifdef RNNKIT_EMULATOR
__device__ __forceinline__ unsigned load_acquire(const unsigned* p) { return emulator::load_acquire(p); }
__device__ __forceinline__ void store_release(unsigned* p, unsigned v) { emulator::store_release(p, v); }
__device__ __forceinline__ void add_release(unsigned* p, unsigned v) { emulator::add_release(p, v); }
__device__ __forceinline__ Word load_word(const Word* p) { return emulator::load_relaxed(p); }
__device__ __forceinline__ void store_word(Word* p, Word v) { emulator::store_relaxed(p, v); }
__device__ __forceinline__ ulonglong2 load_pair(const ulonglong2* p) {
  return make_ulonglong2(emulator::load_relaxed(&p->x), emulator::load_relaxed(&p->y));
}
__device__ __forceinline__ void store_pair(ulonglong2* p, ulonglong2 v) {
  emulator::store_relaxed(&p->x, v.x);
  emulator::store_relaxed(&p->y, v.y);
}
__device__ __forceinline__ void poll_again() { __nanosleep(0); }  // lets the other threads run
#else
__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_release(unsigned* p, unsigned v) {
  asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void add_release(unsigned* p, unsigned v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ Word load_word(const Word* p) {
  Word v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_word(Word* p, Word v) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
// Two words by one access of 16 bytes; each word is atomic, the two together are not.
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

// A 32-bit value and the round that it belongs to, in one word: who sees the tag sees the value, without a fence.
__device__ __forceinline__ Word tagged(unsigned value, unsigned round) { return (Word)round << 32 | value; }
__device__ __forceinline__ unsigned value_of(Word word) { return (unsigned)word; }
// Later rounds count as come, too: their value is then found wrong, where waiting for the tag would never end.
__device__ __forceinline__ bool has_come(unsigned tag, unsigned round) { return (int)(tag - round) >= 0; }
__device__ __forceinline__ bool has_come(ulonglong2 pair, unsigned round) {
  return has_come((unsigned)(pair.x >> 32), round) & has_come((unsigned)(pair.y >> 32), round);
}

// Calls `look` until it is true; false where patience ends. A thread that gave up once does not wait again.
template <class Look>
__device__ __forceinline__ bool wait_until(Look look, unsigned& patience) {
  for (unsigned polls = 0; polls < patience; ++polls) {
    if (look()) return true;
    poll_again();
  }
  patience = 1;
  return false;
}

// Two threads, each with a tagged word that the other writes: a round is two hand-overs. Gives what went wrong.
template <class Send, class Receive>
__device__ __forceinline__ unsigned ping_pong(bool first, unsigned rounds, Send send, Receive receive) {
  unsigned value = 0, missed = 0, patience = kPatience;
  for (unsigned round = 1; round <= rounds; ++round) {
    if (first) send(tagged(value + 1, round));
    Word word = 0;
    const bool came = wait_until([&] { return has_come((unsigned)((word = receive()) >> 32), round); }, patience);
    value = value_of(word);
    missed += !came || value != 2 * round - !first;
    if (!first) send(tagged(value + 1, round));
  }
  return missed;
}

// The vector of an all-gather: in a round word i becomes 1 more than what word i + shift was. The shift is the length
// of a slice or a little more, so every block needs what another one sent. words and shift: multiples of 4.
struct Vector {
  unsigned words, shift, round, offset;
  __device__ Vector(unsigned words, unsigned members)
      : words(words), shift(((words + members - 1) / members + 3) / 4 * 4), round(0), offset(0) {}
  __device__ __forceinline__ unsigned wrap(unsigned word) const { return word < words ? word : word - words; }
  __device__ __forceinline__ void next() {
    ++round;
    offset = wrap(offset + shift);
  }
  __device__ __forceinline__ unsigned source(unsigned word) const { return wrap(word + shift); }
  __device__ __forceinline__ unsigned expected(unsigned word) const { return wrap(word + offset) + round; }
  // `word` begins 8 or 16 aligned bytes, so its neighbours follow it without wrapping.
  __device__ __forceinline__ bool differs(uint2 got, unsigned word) const {
    const unsigned e = expected(word);
    return (got.x != e) | (got.y != e + 1);
  }
  __device__ __forceinline__ bool differs(uint4 got, unsigned word) const {
    return differs(make_uint2(got.x, got.y), word) | differs(make_uint2(got.z, got.w), word + 2);
  }
};

__device__ __forceinline__ uint2 values_of(ulonglong2 pair) { return make_uint2(value_of(pair.x), value_of(pair.y)); }
__device__ __forceinline__ ulonglong2 tagged(uint2 last, unsigned round) {
  return make_ulonglong2(tagged(last.x + 1, round), tagged(last.y + 1, round));
}

// Waits for every pair of the vector and checks it; load(p) reads pair p, keep(p, values) takes what came.
template <class Load, class Keep>
__device__ __forceinline__ unsigned receive_pairs(const Vector& v, Load load, Keep keep, unsigned& patience) {
  const unsigned pairs = v.words / 2;
  unsigned missed = 0;
  for (unsigned base = threadIdx.x; base < pairs; base += kBatch * blockDim.x) {
    ulonglong2 got[kBatch] = {};
    const bool all = wait_until(
        [&] {
          bool late = false;
#pragma unroll
          for (int j = 0; j < kBatch; ++j) {
            const unsigned p = base + j * blockDim.x;
            if ((p < pairs) & !has_come(got[j], v.round)) got[j] = load(p);
          }
#pragma unroll
          for (int j = 0; j < kBatch; ++j) late |= (base + j * blockDim.x < pairs) & !has_come(got[j], v.round);
          return !late;
        },
        patience);
    missed += !all;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const unsigned p = base + j * blockDim.x;
      if (p >= pairs) break;
      const uint2 values = values_of(got[j]);
      missed += v.differs(values, 2 * p);
      keep(p, values);
    }
  }
  return missed;
}

// Reads every quad of the vector, load(q) of quad q, into `seen` and checks it.
template <class Load>
__device__ __forceinline__ unsigned read_quads(const Vector& v, Load load, uint4* seen) {
  const unsigned quads = v.words / 4;
  unsigned missed = 0;
  for (unsigned base = threadIdx.x; base < quads; base += kBatch * blockDim.x) {
    uint4 got[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j)
      if (base + j * blockDim.x < quads) got[j] = load(base + j * blockDim.x);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const unsigned q = base + j * blockDim.x;
      if (q >= quads) break;
      missed += v.differs(got[j], 4 * q);
      seen[q] = got[j];
    }
  }
  return missed;
}

__device__ __forceinline__ void start_vector(uint2* seen, unsigned words) {
  for (unsigned p = threadIdx.x; p < words / 2; p += blockDim.x) seen[p] = make_uint2(2 * p, 2 * p + 1);
}
