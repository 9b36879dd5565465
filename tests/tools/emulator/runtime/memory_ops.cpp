// Fences, atomics, ordered loads and stores: their scheduling points and their effect on the vector clocks.
#include <string.h>

#include "checker.h"
#include "order.h"
#include "runtime.h"

namespace emulator {

static constexpr uint64_t kPollsBeforeLivelock = 20000;

// A thread that polls must let other threads run, since only they can change the value.
static void poll(Site site, const char* what, Origin origin) {
  Thread* t = rt.thread;
  t->site = site;
  t->waits_in = what;
  if (++rt.idle_polls > kPollsBeforeLivelock + 100ull * rt.threads_live)
    fail_at("deadlock", origin_name(origin) + ": livelock: all running threads poll memory that no thread changes" +
        waiting_threads());
  yield_thread(true);
}

void pause(Site site) { poll(site, "__nanosleep", origin_of(site)); }

void fence(Scope scope, Site) {
  if (rt.checking) order_fence(rt.thread, scope);
}

void atomic_before(const void* p, unsigned bytes, Site site) {
  if (rt.config->schedule == kRandom && random_number() % 2) {
    rt.thread->site = site;
    rt.thread->waits_in = "an atomic";
    yield_thread(false);
  }
  if (rt.checking) {
    check_access((uintptr_t)p, bytes, Access::update, origin_of(site));
    order_read(rt.thread, canonical((uintptr_t)p), false);
    order_write(rt.thread, canonical((uintptr_t)p), false, true);
  }
}

void atomic_after(const void*, bool changed, Site site) {
  if (changed)
    progress();
  else
    poll(site, "an atomic that changes nothing", origin_of(site));
}

// A repeated load of an unchanged value is a poll.
static void poll_if_unchanged(const void* p, size_t bytes, Site site, const char* what, Origin origin) {
  Thread* t = rt.thread;
  uint64_t value = 0;
  memcpy(&value, p, bytes < sizeof value ? bytes : sizeof value);
  const bool again = t->polled == p && t->polled_value == value;
  t->polled = p;
  t->polled_value = value;
  if (again) poll(site, what, origin);
}

void ordered_load(const void* p, size_t bytes, Order order, Site site, const char* what, Origin origin) {
  if (rt.checking) check_access((uintptr_t)p, bytes, Access::ordered_read, origin);
  poll_if_unchanged(p, bytes, site, what, origin);
  if (rt.checking) order_read(rt.thread, canonical((uintptr_t)p), order == Order::acquire);
}

void ordered_store(const void* p, size_t bytes, Order order, Origin origin) {
  progress();
  if (!rt.checking) return;
  check_access((uintptr_t)p, bytes, Access::ordered_write, origin);
  order_write(rt.thread, canonical((uintptr_t)p), order == Order::release, false);
}

void load_before(const void* p, unsigned bytes, Order order, Site site) {
  ordered_load(p, bytes, order, site, "a polling load", origin_of(site));
}

void store_before(const void* p, unsigned bytes, Order order, Site site) {
  ordered_store(p, bytes, order, origin_of(site));
}

void touch(const void* p, unsigned bytes, bool write, Site site) {
  if (rt.checking) check_access((uintptr_t)p, bytes, write ? Access::write : Access::read, origin_of(site));
}

void check_read_only(const void* p, unsigned bytes, Site site) {
  if (rt.checking) check_not_written((uintptr_t)p, bytes, origin_of(site));
}

long long clock() { return (long long)(++rt.stats.switches); }

}  // namespace emulator
