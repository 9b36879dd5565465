// The happens-before order. A thread has a clock, which each release increments. A block has an epoch, which each
// barrier of the whole block increments. An event is (block, thread, epoch, clock). A thread's vector clock holds the
// events that happened before its next one. Two conflicting accesses are a race if neither happened before the other.
#pragma once
#include <unordered_map>

#include "runtime.h"

namespace emulator {

// One block's part of a vector clock: all events of earlier epochs, and in `epoch` thread u's events up to clocks[u].
struct BlockClock {
  uint32_t epoch = 0;
  std::vector<uint32_t> clocks;  // per thread; empty if all are 0
  void join(const BlockClock& other);
};

struct VectorClock {
  std::unordered_map<unsigned, BlockClock> blocks;
  void join(const VectorClock& other);
};

struct ThreadOrder {
  uint32_t clock = 1;
  std::shared_ptr<const VectorClock> others;  // for other blocks
  std::unique_ptr<VectorClock> read_clock;    // joined from relaxed reads; the next fence acquires it
  std::unique_ptr<VectorClock> fence_clock;   // at the last fence; later stores and atomics release it
  Scope fence_scope = Scope::block;
};

struct BlockOrder {
  uint32_t epoch = 1;
  std::vector<ThreadOrder> threads;
  std::vector<uint32_t> rows;  // (n, n): rows[t * n + u] is u's clock in t's vector clock; empty if all are 0
  explicit BlockOrder(unsigned size) : threads(size) {}
};

ThreadOrder& order_of(const Thread* t);
bool happened_before(unsigned block, unsigned thread, uint32_t epoch, uint32_t clock, const Thread* t);

void release_to(Thread* t, VectorClock& to);                    // joins t's vector clock, its own clock included
void acquire_from(Thread* t, const VectorClock& from);
void synchronise_block(Block* block);                           // a barrier of all threads of a block
void synchronise_threads(const std::vector<Thread*>& threads);  // a barrier of some threads of one block
void synchronise_blocks(const std::vector<Block*>& blocks);     // a barrier of all threads of several blocks

// Flags and counters in memory. keeps_earlier: for atomics, which keep the clocks released to the address before.
void order_fence(Thread* t, Scope scope);
void order_read(Thread* t, uintptr_t address, bool acquires);
void order_write(Thread* t, uintptr_t address, bool releases, bool keeps_earlier);
void order_clear();  // drops all released clocks, at the end of a launch

}  // namespace emulator
