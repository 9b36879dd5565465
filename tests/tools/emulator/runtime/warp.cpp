// Collective operations of a warp: shuffles, votes, __syncwarp, mma, ldmatrix.
#include "order.h"
#include "runtime.h"

namespace emulator {

// Executes the operation if every lane of t's mask waits in the same operation.
static void try_collective(Thread* t) {
  Warp* w = t->warp;
  const unsigned lanes = t->mask & w->present & ~w->exited;
  for (unsigned left = lanes; left; left &= left - 1) {
    const Thread& other = w->lanes[__builtin_ctz(left)];
    if (other.state != State::at_warp) return;
    if (other.mask == t->mask && other.op == t->op && other.variant == t->variant) continue;
    if (!(other.mask >> t->lane & 1)) return;
    fail(t->site, "warp", "%s of %s with mask %08x meets %s of lane %u with mask %08x at %s", t->waits_in,
         thread_name(t).c_str(), t->mask, other.waits_in, other.lane, other.mask, site_name(other.site).c_str());
  }
  if (t->mask & w->exited)
    fail(t->site, "warp", "%s: mask %08x names lanes that have exited (%08x)", t->waits_in, t->mask,
        t->mask & w->exited);
  if (t->mask & ~w->present)
    fail(t->site, "warp", "%s: mask %08x names lanes that the block does not have", t->waits_in, t->mask);
  void* data[32] = {};
  for (unsigned left = lanes; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    data[lane] = w->lanes[lane].data;
  }
  t->work(data, lanes);
  ++rt.stats.warp_ops;
  progress();
  if (t->op == WarpOp::sync && rt.checking) {  // the only warp operation that orders memory
    std::vector<Thread*> threads;
    for (unsigned left = lanes; left; left &= left - 1) threads.push_back(&w->lanes[__builtin_ctz(left)]);
    synchronise_threads(threads);
  }
  for (unsigned left = lanes; left; left &= left - 1) make_ready(&w->lanes[__builtin_ctz(left)]);
}

void warp_collective(unsigned mask, WarpOp op, int variant, void* data, WarpWork work, const char* name, Site site) {
  Thread* t = rt.thread;
  if (!(mask >> t->lane & 1))
    fail(site, "warp", "%s: mask %08x does not name the calling lane %u", name, mask, t->lane);
  t->state = State::at_warp;
  t->mask = mask;
  t->op = op;
  t->variant = variant;
  t->data = data;
  t->work = work;
  t->site = site;
  t->waits_in = name;
  try_collective(t);
  wait_in(t->state, name, site);
}

unsigned active_mask() {
  const Warp* w = rt.thread->warp;
  return w->present & ~w->exited;
}

void warp_thread_exited(Thread* t) {
  for (unsigned left = t->warp->present & ~t->warp->exited; left; left &= left - 1) {
    Thread* other = &t->warp->lanes[__builtin_ctz(left)];
    if (other->state == State::at_warp && (other->mask >> t->lane & 1)) return try_collective(other);
  }
}

}  // namespace emulator
