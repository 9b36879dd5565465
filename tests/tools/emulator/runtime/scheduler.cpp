// The scheduler. A thread starts on a fiber when it is first scheduled. A fiber whose thread has ended starts the next
// thread without a switch, so a kernel without barriers runs as a loop on one stack.
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <map>

#include "order.h"
#include "runtime.h"

namespace emulator {

Context context;
Runtime rt;

uint32_t random_number() {
  uint32_t x = rt.random;
  x ^= x << 13;
  x ^= x >> 17;
  x ^= x << 5;
  return rt.random = x;
}

// ---- static shared memory: in the static objects for the running block, in Block::statics for the others
char* static_image(const Block* block, uintptr_t address) {
  for (const StaticObject& object : rt.statics)
    if (address - object.address < object.bytes)
      return block->statics + object.image_offset + (address - object.address);
  return nullptr;
}

static void swap_statics(Block* to) {
  if (rt.static_bytes) {
    if (rt.swapped_in)
      for (const StaticObject& o : rt.statics)
        memcpy(rt.swapped_in->statics + o.image_offset, reinterpret_cast<void*>(o.address), o.bytes);
    for (const StaticObject& o : rt.statics)
      memcpy(reinterpret_cast<void*>(o.address), to->statics + o.image_offset, o.bytes);
  }
  rt.swapped_in = to;
}

// ---- choice of the next thread
static Thread* start_next(Block* b) {
  const unsigned n = b->started++;
  unsigned rank = n;
  if (rt.config->schedule == kDescending) {
    rank = b->size - 1 - n;
  } else if (rt.config->schedule == kRandom) {
    std::swap(b->start_order[n], b->start_order[n + random_number() % (b->size - n)]);
    rank = b->start_order[n];
  }
  progress();
  return &b->threads[rank];
}

static Thread* take_ready(Block* b) {
  if (rt.config->schedule == kRandom)
    std::swap(b->ready[b->ready_head], b->ready[(b->ready_head + random_number() % b->ready_count) % b->size]);
  Thread* t = b->ready[b->ready_head];
  b->ready_head = b->ready_head + 1 == b->size ? 0 : b->ready_head + 1;
  --b->ready_count;
  // Prefetches the stack of the following thread: the stacks of 256 threads exceed the L1 cache.
  if (b->ready_count)
    if (const Fiber* next = b->ready[b->ready_head]->fiber) __builtin_prefetch(next->stack_pointer);
  return t;
}

static Thread* next_of(Block* b) {
  const unsigned unstarted = b->size - b->started;
  if (rt.config->schedule == kRandom && unstarted && b->ready_count)
    return random_number() % (unstarted + b->ready_count) < unstarted ? start_next(b) : take_ready(b);
  if (unstarted) return start_next(b);
  return b->ready_count ? take_ready(b) : nullptr;
}

// The running block continues while it has ready threads. `other_block`: tries the other blocks first.
static Thread* next_thread(bool other_block) {
  const size_t blocks = rt.live.size();
  if (rt.config->schedule == kRandom && blocks > 1 && random_number() % 16 == 0) other_block = true;
  if (!other_block && rt.swapped_in)
    if (Thread* t = next_of(rt.swapped_in)) return t;
  const size_t from = rt.config->schedule == kRandom ? random_number() % blocks : rt.last_block;
  const size_t step = rt.config->schedule == kDescending ? blocks - 1 : 1;
  for (size_t i = 1, k = from; i <= blocks; ++i) {
    k = (k + step) % blocks;
    if (Thread* t = next_of(rt.live[k])) {
      rt.last_block = k;
      return t;
    }
  }
  return nullptr;
}

void make_ready(Thread* t) {
  Block* b = t->block;
  t->state = State::ready;
  unsigned tail = b->ready_head + b->ready_count++;
  b->ready[tail >= b->size ? tail - b->size : tail] = t;
}

// ---- execution
static void activate(Thread* t) {
  Block* b = t->block;
  if (b != rt.swapped_in) {
    swap_statics(b);
    context.block = b->position;
  }
  t->state = State::running;
  rt.thread = t;
  context.rank = t->rank;
  context.lane = t->lane;
  context.thread = t->position;
  ++rt.stats.switches;
}

// Switches from the running thread, or initially from the launcher, to `next`, or to the launcher if `next` is null.
static void switch_to(void** save, Thread* next) {
  if (!next) return emulator_switch(save, rt.main_stack_pointer);
  activate(next);
  if (!next->fiber) {
    next->fiber = fiber_take();
    next->fiber->thread = next;
  }
  emulator_switch(save, next->fiber->stack_pointer);
}

static void switch_away(bool other_block) {
  Thread* self = rt.thread;
  Thread* next = next_thread(other_block);
  if (next == self) {
    self->state = State::running;
    return;
  }
  switch_to(&self->fiber->stack_pointer, next);
}

void wait_in(State state, const char* what, Site site) {
  Thread* t = rt.thread;
  t->state = state;
  t->waits_in = what;
  t->site = site;
  switch_away(false);
}

void yield_thread(bool to_another_block) {
  make_ready(rt.thread);
  switch_away(to_another_block);
}

void progress() { rt.idle_polls = 0; }

static void thread_ended(Thread* t) {
  Block* b = t->block;
  async_thread_exited(t);
  fiber_check_stack(t->fiber);
  t->state = State::done;
  ++b->done;
  ++rt.threads_done;
  t->warp->exited |= 1u << t->lane;
  warp_thread_exited(t);
  barrier_thread_exited(t);
  progress();
}

void fiber_main() {
  for (;;) {
    Thread* t = rt.thread;
    Fiber* fiber = t->fiber;
    rt.config->kernel(rt.config->arguments);
    thread_ended(t);
    t->fiber = nullptr;
    Thread* next = next_thread(false);
    if (next && !next->fiber) {
      activate(next);
      next->fiber = fiber;
      continue;
    }
    fiber_give(fiber);
    switch_to(&fiber->stack_pointer, next);
  }
}

void run_live_blocks() {
  rt.running = true;
  switch_to(&rt.main_stack_pointer, next_thread(false));
  rt.running = false;
  rt.thread = nullptr;
  if (!rt.failed && rt.threads_done < rt.threads_live)
    record_failure("deadlock", "deadlock: no thread can continue" + waiting_threads());
}

// ---- reports
std::string thread_name(unsigned block, unsigned thread) {
  const uint32_t *g = rt.config->grid, *b = rt.config->block;
  char text[96];
  snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u)", block % g[0], block / g[0] % g[1],
      block / g[0] / g[1],
           thread % b[0], thread / b[0] % b[1], thread / b[0] / b[1]);
  return text;
}

std::string thread_name(const Thread* t) { return thread_name(t->block->index, t->rank); }

std::string site_name(Site site) { return std::string(site.file ? site.file : "?") + ":" + std::to_string(site.line); }

// A placeholder that launch.py replaces by file and line.
std::string pc_name(uintptr_t pc) {
  char text[40];
  snprintf(text, sizeof text, "{pc:0x%zx}", (size_t)(pc - rt.image_base));
  return text;
}

std::string waiting_threads() {
  struct Group {
    unsigned count = 0;
    const Thread* first = nullptr;
  };
  std::map<std::string, Group> groups;
  for (const Block* b : rt.live)
    for (const Thread& t : b->threads) {
      if (t.state == State::done || t.state == State::running) continue;
      Group& group = groups[t.state == State::unstarted ? "have not started"
                            : t.waits_in ? "are in " + (t.waits_in + (t.site.file ? " at " + site_name(t.site) : ""))
                                                        : "are ready"];
      if (!group.count++) group.first = &t;
    }
  std::string text;
  for (const auto& [what, group] : groups)
    text += "; " + std::to_string(group.count) + " threads " + what + " (such as " + thread_name(group.first) + ")";
  if (rt.threads_done) text += "; " + std::to_string(rt.threads_done) + " threads have exited";
  return text;
}

void record_failure(const char* kind, const std::string& message) {
  if (rt.failed) return;
  rt.failed = true;
  rt.error_kind = kind;
  rt.error = message;
}

void fail_at(const char* kind, const std::string& message) {
  record_failure(kind, message + " [" + thread_name(rt.thread) + "]");
  emulator_switch(&rt.thread->fiber->stack_pointer, rt.main_stack_pointer);
  abort();  // a failed fiber is never resumed
}

void fail(Site site, const char* kind, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fail_at(kind, site_name(site) + ": " + text);
}

}  // namespace emulator
