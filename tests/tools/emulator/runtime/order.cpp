// Clocks, epochs and what threads learn of each other's.
#include "order.h"

#include <algorithm>

namespace emulator {

void View::join(const View& other) {
  if (other.epoch < epoch) return;
  if (other.epoch > epoch) {
    *this = other;
    return;
  }
  if (clocks.size() < other.clocks.size()) clocks.resize(other.clocks.size());
  for (size_t i = 0; i < other.clocks.size(); ++i) clocks[i] = std::max(clocks[i], other.clocks[i]);
}

void Knowledge::join(const Knowledge& other) {
  for (const auto& [block, view] : other.blocks) blocks[block].join(view);
}

ThreadOrder& order_of(const Thread* t) { return t->block->order->threads[t->rank]; }

static uint32_t* row_of(const Thread* t) {
  BlockOrder& order = *t->block->order;
  if (order.rows.empty()) order.rows.resize((size_t)t->block->size * t->block->size);
  return &order.rows[(size_t)t->rank * t->block->size];
}

bool knows(const Thread* t, unsigned block, unsigned thread, uint32_t epoch, uint32_t clock) {
  const BlockOrder& own = *t->block->order;
  if (block == t->block->index) {
    if (thread == t->rank || epoch < own.epoch) return true;
    return !own.rows.empty() && own.rows[(size_t)t->rank * t->block->size + thread] >= clock;
  }
  const Knowledge* others = own.threads[t->rank].others.get();
  if (!others) return false;
  const auto found = others->blocks.find(block);
  if (found == others->blocks.end()) return false;
  const View& view = found->second;
  return epoch < view.epoch || (epoch == view.epoch && thread < view.clocks.size() && view.clocks[thread] >= clock);
}

void publish_to(Thread* t, Knowledge& to) {
  const BlockOrder& block = *t->block->order;
  ThreadOrder& own = order_of(t);
  if (own.others) to.join(*own.others);
  View view;
  view.epoch = block.epoch;
  const uint32_t* row = row_of(t);
  view.clocks.assign(row, row + t->block->size);
  view.clocks[t->rank] = own.clock++;
  to.blocks[t->block->index].join(view);
}

void learn(Thread* t, const Knowledge& from) {
  ThreadOrder& own = order_of(t);
  std::shared_ptr<Knowledge> others;
  for (const auto& [block, view] : from.blocks) {
    if (block != t->block->index) {
      if (!others) others = own.others ? std::make_shared<Knowledge>(*own.others) : std::make_shared<Knowledge>();
      others->blocks[block].join(view);
    } else if (view.epoch == t->block->order->epoch) {
      uint32_t* row = row_of(t);
      for (size_t i = 0; i < view.clocks.size(); ++i) row[i] = std::max(row[i], view.clocks[i]);
    }
  }
  if (others) own.others = std::move(others);
}

// The threads' knowledge of other blocks, joined; most often they all share one already.
static std::shared_ptr<const Knowledge> joined_others(const std::vector<ThreadOrder*>& threads) {
  std::shared_ptr<const Knowledge> result = threads[0]->others;
  std::shared_ptr<Knowledge> joined;
  for (const ThreadOrder* t : threads) {
    if (!t->others || t->others == result) continue;
    if (!joined) joined = result ? std::make_shared<Knowledge>(*result) : std::make_shared<Knowledge>();
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

void meet_block(Block* block) {
  ++block->order->epoch;
  const std::vector<ThreadOrder*> threads = all_threads({block});
  bool any = false;
  for (const ThreadOrder* t : threads) any |= t->others != threads[0]->others;
  if (!any) return;
  const std::shared_ptr<const Knowledge> others = joined_others(threads);
  for (ThreadOrder* t : threads) t->others = others;
}

void meet_threads(const std::vector<Thread*>& threads) {
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
  const std::shared_ptr<const Knowledge> others = joined_others(orders);
  for (Thread* t : threads) {
    std::copy(joined.begin(), joined.end(), row_of(t));
    order_of(t).others = others;
  }
}

void meet_blocks(const std::vector<Block*>& blocks) {
  const std::vector<ThreadOrder*> threads = all_threads(blocks);
  const std::shared_ptr<const Knowledge> before = joined_others(threads);
  auto after = before ? std::make_shared<Knowledge>(*before) : std::make_shared<Knowledge>();
  for (Block* b : blocks) {
    View view;
    view.epoch = ++b->order->epoch;
    after->blocks[b->index] = view;
  }
  for (ThreadOrder* t : threads) t->others = after;
}

// ---- flags and counters: what a store publishes, a load of the same place may learn
namespace {
struct Location {
  Knowledge device, block;  // published at device scope; at block scope, by `owner`
  unsigned owner = 0;
};
std::unordered_map<uintptr_t, Location> locations;
}  // namespace

void order_fence(Thread* t, Scope scope) {
  ThreadOrder& own = order_of(t);
  if (own.seen) learn(t, *own.seen);
  own.seen.reset();
  own.fenced = std::make_unique<Knowledge>();
  own.fence_scope = scope;
  publish_to(t, *own.fenced);
}

void order_read(Thread* t, uintptr_t address, bool acquires) {
  const auto found = locations.find(address);
  if (found == locations.end()) return;
  const Location& location = found->second;
  const bool same_block = location.owner == t->block->index;
  if (acquires) {
    learn(t, location.device);
    if (same_block) learn(t, location.block);
    return;
  }
  ThreadOrder& own = order_of(t);
  if (!own.seen) own.seen = std::make_unique<Knowledge>();
  own.seen->join(location.device);
  if (same_block) own.seen->join(location.block);
}

void order_write(Thread* t, uintptr_t address, bool releases, bool keeps_earlier) {
  ThreadOrder& own = order_of(t);
  if (!keeps_earlier) locations.erase(address);
  Knowledge now;
  if (releases) publish_to(t, now);
  const Knowledge* published = releases ? &now : own.fenced.get();
  if (!published) return;
  Location& location = locations[address];
  if (releases || own.fence_scope == Scope::device) location.device.join(*published);
  if (location.owner != t->block->index) location.block.blocks.clear();
  location.owner = t->block->index;
  location.block.join(*published);
}

void order_forget() { locations.clear(); }

}  // namespace emulator
