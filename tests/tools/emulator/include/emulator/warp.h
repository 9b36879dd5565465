// Shuffles, votes, reductions and __syncwarp. Every lane of the mask passes a record; the last lane to arrive executes
// the operation for all.
#pragma once
#include "builtins.h"

namespace emulator {

template <class T>
struct Shuffle {
  T in, out;
  int source;  // lane of the warp
  Site site;
};

template <class T>
EMULATOR_INTERNAL void shuffle_work(void* const* data, unsigned mask) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    auto* mine = static_cast<Shuffle<T>*>(data[lane]);
    if (!(mask >> mine->source & 1))
      fail(mine->site, "warp", "shuffle: lane %d reads lane %d, which is not in the mask %08x", lane, mine->source,
           mask);
    mine->out = static_cast<Shuffle<T>*>(data[mine->source])->in;
  }
}

template <class T>
EMULATOR_INTERNAL inline T shuffle(unsigned mask, T value, int source, int width, const char* name, Site site) {
  if (width < 1 || width > 32 || (width & (width - 1))) fail(site, "warp", "%s: width %d", name, width);
  Shuffle<T> record{value, value, source, site};
  warp_collective(mask, WarpOp::shuffle, (int)sizeof(T), &record, shuffle_work<T>, name, site);
  return record.out;
}

// The first lane of the segment of `width` lanes that contains this lane.
inline int segment(int width) { return (int)context.lane & ~(width - 1); }

struct Ballot {
  bool predicate;
  unsigned out;
};

EMULATOR_INTERNAL inline void ballot_work(void* const* data, unsigned mask) {
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane)
    if ((mask >> lane & 1) && static_cast<Ballot*>(data[lane])->predicate) result |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) static_cast<Ballot*>(data[lane])->out = result;
}

EMULATOR_INTERNAL inline unsigned ballot(unsigned mask, bool predicate, const char* name, Site site) {
  Ballot record{predicate, 0};
  warp_collective(mask, WarpOp::ballot, 0, &record, ballot_work, name, site);
  return record.out;
}

template <class T>
struct Reduction {
  T in, out;
};

template <class T, class Combine>
EMULATOR_INTERNAL void reduce_work(void* const* data, unsigned mask) {
  bool first = true;
  T result{};
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const T in = static_cast<Reduction<T>*>(data[lane])->in;
    result = first ? in : Combine::of(result, in);
    first = false;
  }
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) static_cast<Reduction<T>*>(data[lane])->out = result;
}

template <class Combine, class T>
EMULATOR_INTERNAL inline T reduce(unsigned mask, T value, int variant, const char* name, Site site) {
  Reduction<T> record{value, value};
  warp_collective(mask, WarpOp::reduce, variant, &record, reduce_work<T, Combine>, name, site);
  return record.out;
}

template <class T>
struct Match {
  T in;
  unsigned out;
};

template <class T>
EMULATOR_INTERNAL void match_work(void* const* data, unsigned mask) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    auto* mine = static_cast<Match<T>*>(data[lane]);
    mine->out = 0;
    for (int other = 0; other < 32; ++other)
      if ((mask >> other & 1) && !__builtin_memcmp(&static_cast<Match<T>*>(data[other])->in, &mine->in, sizeof(T)))
        mine->out |= 1u << other;
  }
}

EMULATOR_INTERNAL inline void no_work(void* const*, unsigned) {}

}  // namespace emulator

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_HERE) {
  emulator::warp_collective(mask, emulator::WarpOp::sync, 0, nullptr, emulator::no_work, "__syncwarp", site);
}
template <class T>
inline T __shfl_sync(unsigned mask, T v, int source, int width = 32, EMULATOR_HERE) {
  return emulator::shuffle(mask, v, emulator::segment(width) | (source & (width - 1)), width, "__shfl_sync", site);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, EMULATOR_HERE) {
  int source = (int)emulator::context.lane ^ lanes;
  if (source >= emulator::segment(width) + width) source = emulator::context.lane;
  return emulator::shuffle(mask, v, source, width, "__shfl_xor_sync", site);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, EMULATOR_HERE) {
  long long source = (long long)emulator::context.lane + delta;
  if (source >= emulator::segment(width) + width) source = emulator::context.lane;
  return emulator::shuffle(mask, v, (int)source, width, "__shfl_down_sync", site);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, EMULATOR_HERE) {
  long long source = (long long)emulator::context.lane - delta;
  if (source < emulator::segment(width)) source = emulator::context.lane;
  return emulator::shuffle(mask, v, (int)source, width, "__shfl_up_sync", site);
}
inline unsigned __ballot_sync(unsigned mask, int p, EMULATOR_HERE) {
  return emulator::ballot(mask, p != 0, "__ballot_sync", site);
}
inline int __any_sync(unsigned mask, int p, EMULATOR_HERE) {
  return emulator::ballot(mask, p != 0, "__any_sync", site) != 0;
}
inline int __all_sync(unsigned mask, int p, EMULATOR_HERE) {
  return emulator::ballot(mask, p == 0, "__all_sync", site) == 0;
}
inline unsigned __activemask() { return emulator::active_mask(); }
template <class T>
inline unsigned __match_any_sync(unsigned mask, T v, EMULATOR_HERE) {
  emulator::Match<T> record{v, 0};
  const emulator::WarpWork work = emulator::match_work<T>;
  emulator::warp_collective(mask, emulator::WarpOp::match, 0, &record, work, "__match_any_sync", site);
  return record.out;
}

#define EMULATOR_WARP_REDUCE(suffix, variant, expression)                                              \
  namespace emulator {                                                                                 \
  struct Combine_##suffix {                                                                            \
    template <class T> EMULATOR_INTERNAL static T of(T a, T b) { return expression; }                  \
  };                                                                                                   \
  }                                                                                                    \
  template <class T>                                                                                   \
  inline T __reduce_##suffix##_sync(unsigned mask, T v, EMULATOR_HERE) {                               \
    return emulator::reduce<emulator::Combine_##suffix>(mask, v, variant, "__reduce_" #suffix "_sync", site); \
  }
EMULATOR_WARP_REDUCE(add, 0, a + b)
EMULATOR_WARP_REDUCE(min, 1, b < a ? b : a)
EMULATOR_WARP_REDUCE(max, 2, a < b ? b : a)
EMULATOR_WARP_REDUCE(and, 3, a& b)
EMULATOR_WARP_REDUCE(or, 4, a | b)
EMULATOR_WARP_REDUCE(xor, 5, a ^ b)
#undef EMULATOR_WARP_REDUCE
