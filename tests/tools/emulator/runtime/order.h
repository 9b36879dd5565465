// What happened before what. Every thread counts its steps (a clock that moves on when it publishes), every block its
// barriers (an epoch). An event is (block, thread, epoch, clock); a thread knows of some events of others, and two
// accesses of which neither knows the other are a race.
#pragma once
#include <unordered_map>

#include "runtime.h"

namespace emulator {

// What is known of one block: all of the epochs before `epoch`, and in it each thread's events up to its clock.
struct View {
  uint32_t epoch = 0;
  std::vector<uint32_t> clocks;  // by thread; empty: none
  void join(const View& other);
};

struct Knowledge {
  std::unordered_map<unsigned, View> blocks;
  void join(const Knowledge& other);
};

struct ThreadOrder {
  uint32_t clock = 1;
  std::shared_ptr<const Knowledge> others;  // of other blocks
  std::unique_ptr<Knowledge> seen;          // behind relaxed reads: known at the next fence
  std::unique_ptr<Knowledge> fenced;        // known at the last fence: what a store or atomic publishes
  Scope fence_scope = Scope::block;
};

struct BlockOrder {
  uint32_t epoch = 1;
  std::vector<ThreadOrder> threads;
  std::vector<uint32_t> rows;  // rows[t * n + u]: the clock up to which t knows u's events. Empty: none
  explicit BlockOrder(unsigned size) : threads(size) {}
};

ThreadOrder& order_of(const Thread* t);
bool knows(const Thread* t, unsigned block, unsigned thread, uint32_t epoch, uint32_t clock);

void publish_to(Thread* t, Knowledge& to);               // all that t knows, its own past included
void learn(Thread* t, const Knowledge& from);
void meet_block(Block* block);                           // a barrier of the whole block
void meet_threads(const std::vector<Thread*>& threads);  // a barrier of some threads of one block
void meet_blocks(const std::vector<Block*>& blocks);     // a barrier of all threads of several blocks

// Flags and counters in memory.
void order_fence(Thread* t, Scope scope);
void order_read(Thread* t, uintptr_t address, bool acquires);
void order_write(Thread* t, uintptr_t address, bool releases, bool keeps_earlier);
void order_forget();  // the locations, at the end of a launch

}  // namespace emulator
