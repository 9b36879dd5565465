// Probes of launches, of barriers of the grid, and of hand-overs through the L2 cache. After probes.cuh.

// ---- launches

extern "C" __global__ void nothing() {}

// The dependence of one element on itself, read and written: a launch with the least of memory traffic.
extern "C" __global__ void __launch_bounds__(256) count_up(unsigned* value) {
  if (threadIdx.x == 0 && blockIdx.x == 0) *value += 1;
}

// A small kernel of many blocks that depends on the one before it: every element comes from another block of that one.
extern "C" __global__ void __launch_bounds__(256) pass_on(const unsigned* from, unsigned* to, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) to[i] = from[(i + blockDim.x) % n] + 1;
}

// ---- barriers of the grid

// A block writes its number of the round, all meet, and it reads its neighbour's. The two halves of `seen` (2, blocks)
// take turns, so that one barrier a round is enough.
__device__ __forceinline__ void write_round(unsigned* seen, int round) {
  if (threadIdx.x == 0) seen[(round & 1) * gridDim.x + blockIdx.x] = round;
}
__device__ __forceinline__ void check_round(const unsigned* seen, unsigned* wrong, int round) {
  const unsigned neighbour = (blockIdx.x + 1) % gridDim.x;
  if (threadIdx.x == 0 && load_acquire(seen + (round & 1) * gridDim.x + neighbour) != (unsigned)round)
    atomicAdd(wrong, 1u);
}

// Cooperative launch; `seen` null: the barrier alone.
extern "C" __global__ void __launch_bounds__(256) grid_sync(unsigned* seen, unsigned* wrong, int rounds) {
  const cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  for (int round = 1; round <= rounds; ++round) {
    if (seen) write_round(seen, round);
    grid.sync();
    if (seen) check_round(seen, wrong, round);
  }
}

// The same barrier by hand: one counter in the L2 cache, 0 at the launch. Cooperative launch too, for all must run.
extern "C" __global__ void __launch_bounds__(256)
grid_counter(unsigned* counter, unsigned* seen, unsigned* wrong, int rounds) {
  for (int round = 1; round <= rounds; ++round) {
    if (seen) write_round(seen, round);
    __syncthreads();
    if (threadIdx.x == 0) {
      add_release(counter, 1u);
      while (load_acquire(counter) < (unsigned)round * gridDim.x) {
      }
    }
    __syncthreads();
    if (seen) check_round(seen, wrong, round);
  }
}

// ---- one hop through the L2 cache: two blocks of one thread, a cooperative launch. All buffers are 0 at the launch.

// A flag alone, to and fro: a round is two hand-overs. flags (2, 32): a cache line each.
extern "C" __global__ void __launch_bounds__(32) flag_handoff(unsigned* flags, unsigned* wrong, int rounds) {
  unsigned* mine = flags + blockIdx.x * 32;
  unsigned* other = flags + (1 - blockIdx.x) * 32;
  for (unsigned round = 1; round <= (unsigned)rounds; ++round) {
    if (blockIdx.x == 0) store_release(mine, round);
    unsigned seen = load_acquire(other);
    while (seen < round) seen = load_acquire(other);
    if (seen != round) atomicAdd(wrong, 1u);
    if (blockIdx.x == 1) store_release(mine, round);
  }
}

// Data, then a flag: the data's store, the flag's, the flag's load and the data's are one after the other. lines
// (2, 2, 32): of each block a cache line for the flag and one for the data.
extern "C" __global__ void __launch_bounds__(32) hop_by_flag(unsigned* lines, unsigned* wrong, int rounds) {
  unsigned* mine = lines + blockIdx.x * 64;
  const unsigned* other = lines + (1 - blockIdx.x) * 64;
  const bool first = blockIdx.x == 0;
  unsigned value = 0, missed = 0, patience = kPatience;
  for (unsigned round = 1; round <= (unsigned)rounds; ++round) {
    if (first) {
      mine[32] = value + 1;
      store_release(mine, round);
    }
    missed += !wait_until([&] { return has_come(load_acquire(other), round); }, patience);
    value = __ldcg(other + 32);
    missed += value != 2 * round - !first;
    if (!first) {
      mine[32] = value + 1;
      store_release(mine, round);
    }
  }
  if (missed) atomicAdd(wrong, missed);
}

// Data and tag in one word: one store and one load that sees it. words (2, 16): a cache line for each block's.
extern "C" __global__ void __launch_bounds__(32) hop_by_tag(Word* words, unsigned* wrong, int rounds) {
  Word* mine = words + blockIdx.x * 16;
  const Word* other = words + (1 - blockIdx.x) * 16;
  const unsigned missed = ping_pong(
      blockIdx.x == 0, rounds, [=](Word word) { store_word(mine, word); }, [=] { return load_word(other); });
  if (missed) atomicAdd(wrong, missed);
}

// ---- an all-gather through the L2 cache: `members` consecutive blocks each write their slice of a vector and read all
// of it into shared memory, as a persistent kernel does with h in a step. Cooperative launch of groups * members
// blocks. The two halves of a vector in global memory take turns: a block that writes one has seen that all the others
// have read it.

// flags (groups, members up to a multiple of 32), vectors (groups, 2, words): both 0 at the launch. Shared: (words,).
extern "C" __global__ void __launch_bounds__(256)
gather_by_flag(unsigned* flags, uint2* vectors, unsigned* wrong, int words, int members, int rounds) {
  extern __shared__ uint4 shared_memory[];
  uint2* seen = reinterpret_cast<uint2*>(shared_memory);
  const unsigned group = blockIdx.x / members, member = blockIdx.x % members, pairs = words / 2;
  const unsigned begin = member * pairs / members, end = (member + 1) * pairs / members;
  flags += group * ((members + 31) / 32 * 32);
  vectors += group * 2 * pairs;
  Vector v(words, members);
  unsigned missed = 0, patience = kPatience;
  start_vector(seen, words);
  __syncthreads();
  for (unsigned round = 1; round <= (unsigned)rounds; ++round) {
    v.next();
    uint2* vector = vectors + (round & 1) * pairs;
    for (unsigned p = begin + threadIdx.x; p < end; p += blockDim.x) {
      const uint2 last = seen[v.source(2 * p) / 2];
      vector[p] = make_uint2(last.x + 1, last.y + 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) store_release(flags + member, round);
    for (unsigned m = threadIdx.x; m < (unsigned)members; m += blockDim.x)
      missed += !wait_until([&] { return has_come(load_acquire(flags + m), round); }, patience);
    __syncthreads();
    const uint4* from = reinterpret_cast<const uint4*>(vector);
    missed += read_quads(v, [=](unsigned q) { return __ldcg(from + q); }, shared_memory);
    __syncthreads();
  }
  if (missed) atomicAdd(wrong, missed);
}

// vectors (groups, 2, words / 2) of tagged pairs, 0 at the launch. Shared: (2, words), of which the halves take turns,
// so that one barrier a round is enough.
extern "C" __global__ void __launch_bounds__(256)
gather_by_tag(ulonglong2* vectors, unsigned* wrong, int words, int members, int rounds) {
  extern __shared__ uint4 shared_memory[];
  uint2* seen = reinterpret_cast<uint2*>(shared_memory);
  const unsigned group = blockIdx.x / members, member = blockIdx.x % members, pairs = words / 2;
  const unsigned begin = member * pairs / members, end = (member + 1) * pairs / members;
  vectors += group * 2 * pairs;
  Vector v(words, members);
  unsigned missed = 0, patience = kPatience;
  start_vector(seen, words);
  __syncthreads();
  for (unsigned round = 1; round <= (unsigned)rounds; ++round) {
    v.next();
    const uint2* last = seen + (round + 1) % 2 * pairs;
    uint2* now = seen + round % 2 * pairs;
    ulonglong2* vector = vectors + round % 2 * pairs;
    for (unsigned p = begin + threadIdx.x; p < end; p += blockDim.x)
      store_pair(vector + p, tagged(last[v.source(2 * p) / 2], round));
    missed += receive_pairs(
        v, [=](unsigned p) { return load_pair(vector + p); }, [=](unsigned p, uint2 values) { now[p] = values; },
        patience);
    __syncthreads();
  }
  if (missed) atomicAdd(wrong, missed);
}
