// Vector clocks over threads, with epochs over blocks.
#include "order.h"

#include <algorithm>

namespace emulator {

void BlockClock::join(const BlockClock& other) {
  if (other.epoch < epoch) return;
  if (other.epoch > epoch) {
    *this = other;
    return;
  }
  if (clocks.size() < other.clocks.size()) clocks.resize(other.clocks.size());
  for (size_t i = 0; i < other.clocks.size(); ++i) clocks[i] = std::max(clocks[i], other.clocks[i]);
}

void VectorClock::join(const VectorClock& other) {
  for (const auto& [block, block_clock] : other.blocks) blocks[block].join(block_clock);
}

ThreadOrder& order_of(const Thread* t) { return t->block->order->threads[t->rank]; }

static uint32_t* row_of(const Thread* t) {
  BlockOrder& order = *t->block->order;
  if (order.rows.empty()) order.rows.resize((size_t)t->block->size * t->block->size);
  return &order.rows[(size_t)t->rank * t->block->size];
}

bool happened_before(unsigned block, unsigned thread, uint32_t epoch, uint32_t clock, const Thread* t) {
  const BlockOrder& own = *t->block->order;
  if (block == t->block->index) {
    if (thread == t->rank || epoch < own.epoch) return true;
    return !own.rows.empty() && own.rows[(size_t)t->rank * t->block->size + thread] >= clock;
  }
  const VectorClock* others = own.threads[t->rank].others.get();
  if (!others) return false;
  const auto found = others->blocks.find(block);
  if (found == others->blocks.end()) return false;
  const BlockClock& block_clock = found->second;
  if (epoch != block_clock.epoch) return epoch < block_clock.epoch;
  return thread < block_clock.clocks.size() && block_clock.clocks[thread] >= clock;
}

void release_to(Thread* t, VectorClock& to) {
  const BlockOrder& block = *t->block->order;
  ThreadOrder& own = order_of(t);
  if (own.others) to.join(*own.others);
  BlockClock block_clock;
  block_clock.epoch = block.epoch;
  const uint32_t* row = row_of(t);
  block_clock.clocks.assign(row, row + t->block->size);
  block_clock.clocks[t->rank] = own.clock++;
  to.blocks[t->block->index].join(block_clock);
}

void acquire_from(Thread* t, const VectorClock& from) {
  ThreadOrder& own = order_of(t);
  std::shared_ptr<VectorClock> others;
  for (const auto& [block, block_clock] : from.blocks) {
    if (block != t->block->index) {
      if (!others) others = own.others ? std::make_shared<VectorClock>(*own.others) : std::make_shared<VectorClock>();
      others->blocks[block].join(block_clock);
    } else if (block_clock.epoch == t->block->order->epoch) {
      uint32_t* row = row_of(t);
      for (size_t i = 0; i < block_clock.clocks.size(); ++i) row[i] = std::max(row[i], block_clock.clocks[i]);
    }
  }
  if (others) own.others = std::move(others);
}

// The joined clocks of these threads for other blocks. Usually all threads already share one object.
static std::shared_ptr<const VectorClock> joined_others(const std::vector<ThreadOrder*>& threads) {
  std::shared_ptr<const VectorClock> result = threads[0]->others;
  std::shared_ptr<VectorClock> joined;
  for (const ThreadOrder* t : threads) {
    if (!t->others || t->others == result) continue;
    if (!joined) joined = result ? std::make_shared<VectorClock>(*result) : std::make_shared<VectorClock>();
    joined->join(*t->others);
  }
  return joined ? joined : result;
}

static std::vector<ThreadOrder*> all_threads(const std::vector<Block*>& blocks) {
  std::vector<ThreadOrder*> result;
  for (Block* b : blocks)
    for (ThreadOrder& t : b->order->threads) result.push_back(&t);
  return result;
}

void synchronise_block(Block* block) {
  ++block->order->epoch;
  const std::vector<ThreadOrder*> threads = all_threads({block});
  bool any = false;
  for (const ThreadOrder* t : threads) any |= t->others != threads[0]->others;
  if (!any) return;
  const std::shared_ptr<const VectorClock> others = joined_others(threads);
  for (ThreadOrder* t : threads) t->others = others;
}

void synchronise_threads(const std::vector<Thread*>& threads) {
  if (threads.empty()) return;
  const unsigned n = threads[0]->block->size;
  std::vector<uint32_t> joined(n);
  std::vector<ThreadOrder*> orders;
  for (Thread* t : threads) {
    const uint32_t* row = row_of(t);
    for (unsigned i = 0; i < n; ++i) joined[i] = std::max(joined[i], row[i]);
    ThreadOrder& own = order_of(t);
    joined[t->rank] = own.clock++;
    orders.push_back(&own);
  }
  const std::shared_ptr<const VectorClock> others = joined_others(orders);
  for (Thread* t : threads) {
    std::copy(joined.begin(), joined.end(), row_of(t));
    order_of(t).others = others;
  }
}

void synchronise_blocks(const std::vector<Block*>& blocks) {
  const std::vector<ThreadOrder*> threads = all_threads(blocks);
  const std::shared_ptr<const VectorClock> before = joined_others(threads);
  auto after = before ? std::make_shared<VectorClock>(*before) : std::make_shared<VectorClock>();
  for (Block* b : blocks) {
    BlockClock block_clock;
    block_clock.epoch = ++b->order->epoch;
    after->blocks[b->index] = block_clock;
  }
  for (ThreadOrder* t : threads) t->others = after;
}

// ---- flags and counters: a store releases a clock to its address, which a load of that address can acquire
namespace {
struct Location {
  VectorClock device, block;  // released at device scope, and at block scope by block `owner`
  unsigned owner = 0;
};
std::unordered_map<uintptr_t, Location> locations;
}  // namespace

void order_fence(Thread* t, Scope scope) {
  ThreadOrder& own = order_of(t);
  if (own.read_clock) acquire_from(t, *own.read_clock);
  own.read_clock.reset();
  own.fence_clock = std::make_unique<VectorClock>();
  own.fence_scope = scope;
  release_to(t, *own.fence_clock);
}

void order_read(Thread* t, uintptr_t address, bool acquires) {
  const auto found = locations.find(address);
  if (found == locations.end()) return;
  const Location& location = found->second;
  const bool same_block = location.owner == t->block->index;
  if (acquires) {
    acquire_from(t, location.device);
    if (same_block) acquire_from(t, location.block);
    return;
  }
  ThreadOrder& own = order_of(t);
  if (!own.read_clock) own.read_clock = std::make_unique<VectorClock>();
  own.read_clock->join(location.device);
  if (same_block) own.read_clock->join(location.block);
}

void order_write(Thread* t, uintptr_t address, bool releases, bool keeps_earlier) {
  ThreadOrder& own = order_of(t);
  if (!keeps_earlier) locations.erase(address);
  VectorClock current;
  if (releases) release_to(t, current);
  const VectorClock* released = releases ? &current : own.fence_clock.get();
  if (!released) return;
  Location& location = locations[address];
  if (releases || own.fence_scope == Scope::device) location.device.join(*released);
  if (location.owner != t->block->index) location.block.blocks.clear();
  location.owner = t->block->index;
  location.block.join(*released);
}

void order_clear() { locations.clear(); }

}  // namespace emulator
