// cp.async and mbarrier. A copy runs at its wait and no earlier, so a missing wait gives a wrong result. Until the
// wait, the checker reports any access to the destination.
#include <string.h>

#include "checker.h"
#include "emulator/ptx.h"
#include "order.h"
#include "runtime.h"

namespace emulator {

struct Copy {
  char* to;
  const char* from;
  unsigned bytes, zero_bytes;
  Site site;
};

struct AsyncCopies {
  std::vector<Copy> copies;      // in the order of issue
  std::vector<unsigned> groups;  // number of copies in each committed group
};

static AsyncCopies& copies_of(Thread* t) {
  if (!t->copies) t->copies = std::make_shared<AsyncCopies>();
  return *t->copies;
}

void copy_async(void* shared, const void* global, unsigned bytes, unsigned zero_bytes, Site site) {
  const unsigned all = bytes + zero_bytes;
  if (all != 4 && all != 8 && all != 16) fail(site, "async", "cp.async of %u bytes: it must be 4, 8 or 16", all);
  if ((uintptr_t)shared % all || (uintptr_t)global % all)
    fail(site, "alignment", "cp.async of %u bytes from %p to %p: both must be multiples of %u", all, global, shared,
        all);
  copies_of(rt.thread).copies.push_back({(char*)shared, (const char*)global, bytes, zero_bytes, site});
  if (rt.checking) {
    check_access((uintptr_t)global, bytes, Access::read, origin_of(site));
    check_access((uintptr_t)shared, all, Access::async_write, origin_of(site));
  }
}

void copy_async_commit(Site) {
  AsyncCopies& own = copies_of(rt.thread);
  unsigned committed = 0;
  for (unsigned group : own.groups) committed += group;
  own.groups.push_back((unsigned)own.copies.size() - committed);
}

void copy_async_wait(unsigned groups_left, Site site) {
  AsyncCopies& own = copies_of(rt.thread);
  while (own.groups.size() > groups_left) {
    const unsigned count = own.groups.front();
    own.groups.erase(own.groups.begin());
    for (unsigned i = 0; i < count; ++i) {
      const Copy& copy = own.copies[i];
      if (rt.checking) check_copy_completed((uintptr_t)copy.to, copy.bytes + copy.zero_bytes, origin_of(site));
      memcpy(copy.to, copy.from, copy.bytes);
      memset(copy.to + copy.bytes, 0, copy.zero_bytes);
    }
    own.copies.erase(own.copies.begin(), own.copies.begin() + count);
  }
}

void async_thread_exited(Thread* t) {
  if (t->copies && !t->copies->copies.empty())
    fail(t->copies->copies.front().site, "async", "a thread exits without waiting for its %zu cp.async copies",
         t->copies->copies.size());
  t->copies.reset();
}

// ---- mbarrier: the object's 8 bytes hold the state, as on the device, though in another layout
namespace {
struct State8 {
  uint64_t parity : 1, count : 20, pending : 20, valid : 1;
  int64_t bytes : 22;  // expected and not yet complete; negative if they complete before they are expected
};
static_assert(sizeof(State8) == 8, "an mbarrier has 8 bytes");

State8* state_of(uint64_t* barrier, Site site) {
  if ((uintptr_t)barrier % 8) fail(site, "alignment", "mbarrier at %p, not a multiple of 8", (void*)barrier);
  auto* state = reinterpret_cast<State8*>(barrier);
  if (rt.checking) check_access((uintptr_t)barrier, 8, Access::ordered_write, origin_of(site));
  if (!state->valid) fail(site, "barrier", "the mbarrier is not initialised");
  return state;
}

void end_phase_if_complete(State8* state) {
  progress();
  if (state->pending || state->bytes) return;
  state->parity ^= 1;
  state->pending = state->count;
}
}  // namespace

void mbarrier_init(uint64_t* barrier, unsigned count, Site site) {
  if (!count) fail(site, "barrier", "mbarrier.init with a count of 0");
  if (rt.checking) check_access((uintptr_t)barrier, 8, Access::write, origin_of(site));
  auto* state = reinterpret_cast<State8*>(barrier);
  *state = State8{};
  state->valid = 1;
  state->count = state->pending = count;
}

void mbarrier_arrive(uint64_t* barrier, unsigned expected_bytes, Site site) {
  State8* state = state_of(barrier, site);
  if (!state->pending)
    fail(site, "barrier", "more arrivals at an mbarrier than its count of %u", (unsigned)state->count);
  if (rt.checking) order_write(rt.thread, canonical((uintptr_t)barrier), true, true);
  state->bytes += expected_bytes;
  --state->pending;
  end_phase_if_complete(state);
}

void mbarrier_complete(uint64_t* barrier, unsigned bytes, Site site) {
  State8* state = state_of(barrier, site);
  if (rt.checking) order_write(rt.thread, canonical((uintptr_t)barrier), true, true);
  state->bytes -= bytes;
  end_phase_if_complete(state);
}

bool mbarrier_test(uint64_t* barrier, unsigned parity, Site site) {
  State8* state = state_of(barrier, site);
  if ((unsigned)state->parity == (parity & 1)) return false;  // that phase is still open
  if (rt.checking) order_read(rt.thread, canonical((uintptr_t)barrier), true);
  return true;
}

}  // namespace emulator
