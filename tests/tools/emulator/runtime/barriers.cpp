// __syncthreads, named barriers, grid and cluster barriers.
#include <utility>

#include "order.h"
#include "runtime.h"

namespace emulator {

static bool same_site(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::string(a.file) == b.file);
}

// ---- barriers of a block
static void check_convergence(Block* b, const Barrier& barrier) {
  if (b->done) {
    const Thread* exited = nullptr;
    for (const Thread& t : b->threads)
      if (!exited && t.state == State::done) exited = &t;
    fail(barrier.site, "divergence", "barrier divergence: %u of %u threads exited without reaching __syncthreads "
         "(such as %s)",
         b->done, b->size, thread_name(exited).c_str());
  }
  for (const Thread& t : b->threads)
    if (t.state == State::at_barrier && t.barrier == 0 && !same_site(t.site, barrier.site))
      fail(t.site, "divergence", "barrier divergence: %s waits in this __syncthreads, others in the one at %s",
           thread_name(&t).c_str(), site_name(barrier.site).c_str());
}

static void release_barrier(Block* b, unsigned id) {
  Barrier& barrier = b->barriers[id];
  if (id == 0) check_convergence(b, barrier);
  static std::vector<Thread*> waiting;
  waiting.clear();
  for (unsigned i = 0; i < b->size; ++i) {
    Thread& t = b->threads[rt.config->schedule == kDescending ? b->size - 1 - i : i];
    if (t.state == State::at_barrier && t.barrier == id) waiting.push_back(&t);
  }
  if (rt.checking) {
    if (waiting.size() == b->size) {
      synchronise_block(b);
    } else {
      synchronise_threads(waiting);
      if (barrier.clock)
        for (Thread* t : waiting) acquire_from(t, *barrier.clock);
    }
  }
  barrier.result[(int)Reduce::any] = barrier.any;
  barrier.result[(int)Reduce::all] = barrier.all;
  barrier.result[(int)Reduce::count] = barrier.count;
  barrier.any = barrier.count = barrier.arrived = 0;
  barrier.all = 1;
  barrier.clock.reset();
  ++rt.stats.barriers;
  progress();
  for (Thread* t : waiting) make_ready(t);
}

static void arrive(unsigned id, int count, bool waits, const char* what, Site site) {
  Thread* t = rt.thread;
  Block* b = t->block;
  if (id > 15) fail(site, "barrier", "barrier %u: ids are 0 to 15", id);
  Barrier& barrier = b->barriers[id];
  const int needed = count ? count : (int)b->size;
  if (count % 32 || count < 0) fail(site, "barrier", "barrier %u for %d threads, not a multiple of 32", id, count);
  if (!barrier.arrived) {
    barrier.site = site;
    barrier.needed = needed;
  } else if (needed != barrier.needed) {
    fail(site, "barrier", "barrier %u for %d threads here, for %d at %s", id, needed, barrier.needed,
         site_name(barrier.site).c_str());
  }
  ++barrier.arrived;
  if (!waits && rt.checking) {
    if (!barrier.clock) barrier.clock = std::make_unique<VectorClock>();
    release_to(t, *barrier.clock);
  }
  if (waits) {
    t->state = State::at_barrier;
    t->barrier = (uint16_t)id;
    t->site = site;
  }
  const int exited = count ? 0 : (int)b->done;
  if (barrier.arrived + exited >= barrier.needed) release_barrier(b, id);
  if (!waits) return;
  if (t->state == State::at_barrier) {
    wait_in(State::at_barrier, what, site);
  } else {  // the last arrival released the barrier, so this thread is ready too
    t->waits_in = what;
    wait_in(State::ready, what, site);
  }
}

void sync_threads(Site site) { arrive(0, 0, true, "__syncthreads", site); }

int sync_threads_reduce(int predicate, Reduce reduce, Site site) {
  Block* b = rt.thread->block;
  Barrier& barrier = b->barriers[0];
  barrier.any |= predicate != 0;
  barrier.all &= predicate != 0;
  barrier.count += predicate != 0;
  arrive(0, 0, true, "__syncthreads_and/or/count", site);
  return b->barriers[0].result[(int)reduce];
}

void named_barrier(int id, int count, Site site) { arrive((unsigned)id, count, true, "a named barrier", site); }

void named_barrier_arrive(int id, int count, Site site) {
  if (!count) fail(site, "barrier", "bar.arrive needs a thread count");
  arrive((unsigned)id, count, false, "bar.arrive", site);
}

// ---- the grid
static void release_grid() {
  rt.at_grid = 0;
  ++rt.stats.barriers;
  progress();
  if (rt.checking) synchronise_blocks(rt.live);
  for (Block* b : rt.live)
    for (Thread& t : b->threads)
      if (t.state == State::at_grid) make_ready(&t);
}

void grid_sync(Site site) {
  if (!rt.config->cooperative) fail(site, "launch", "grid sync in a launch that is not cooperative");
  Thread* t = rt.thread;
  t->state = State::at_grid;
  t->site = site;
  if (++rt.at_grid + rt.threads_done >= rt.threads_live) {
    if (rt.threads_done)
      fail(site, "divergence", "barrier divergence: %u threads exited without reaching this grid sync",
          rt.threads_done);
    release_grid();
  }
  wait_in(t->state, "grid sync", site);
}

// ---- clusters
static void release_cluster(Cluster* c, bool all_waiting) {
  c->arrived = 0;
  ++c->phase;
  ++rt.stats.barriers;
  progress();
  c->released_clock.reset();
  if (rt.checking && all_waiting)
    synchronise_blocks(c->blocks);
  else if (rt.checking)
    c->released_clock = std::shared_ptr<const VectorClock>(c->clock.release());
  c->clock.reset();
  for (Block* b : c->blocks)
    for (Thread& t : b->threads)
      if (t.state == State::at_cluster) {
        if (c->released_clock) acquire_from(&t, *c->released_clock);
        make_ready(&t);
      }
}

static bool all_wait(const Cluster* c) {
  for (const Block* b : c->blocks)
    for (const Thread& t : b->threads)
      if (t.state != State::at_cluster) return false;
  return true;
}

static void arrive_at_cluster(Site site, bool waits) {
  Thread* t = rt.thread;
  Cluster* c = t->block->cluster;
  if (t->cluster_arrived)
    fail(site, "barrier", "a thread arrives twice at the cluster barrier without a wait between the two");
  t->cluster_arrived = true;
  t->cluster_phase = c->phase;
  t->site = site;
  if (waits) t->state = State::at_cluster;
  if (rt.checking && !waits) {
    if (!c->clock) c->clock = std::make_unique<VectorClock>();
    release_to(t, *c->clock);
    t->cluster_released = true;
  }
  if (++c->arrived < c->threads) return;
  // If a thread arrived without waiting, the barrier does not order its accesses between arrive and wait.
  const bool all_waiting = !c->clock && all_wait(c);
  if (rt.checking && !all_waiting) {
    if (!c->clock) c->clock = std::make_unique<VectorClock>();
    for (Block* b : c->blocks)
      for (Thread& other : b->threads)
        if (!std::exchange(other.cluster_released, false)) release_to(&other, *c->clock);
  }
  release_cluster(c, all_waiting);
}

void cluster_arrive(Site site) { arrive_at_cluster(site, false); }

void cluster_wait(Site site) {
  Thread* t = rt.thread;
  Cluster* c = t->block->cluster;
  if (!t->cluster_arrived) fail(site, "barrier", "cluster wait without an arrive before it");
  t->cluster_arrived = false;
  if (c->phase == t->cluster_phase) {
    wait_in(State::at_cluster, "cluster wait", site);
  } else if (rt.checking && c->released_clock) {
    acquire_from(t, *c->released_clock);
  }
}

void cluster_sync(Site site) {
  Thread* t = rt.thread;
  arrive_at_cluster(site, true);
  t->cluster_arrived = false;
  wait_in(t->state, "cluster sync", site);
}

unsigned cluster_rank() { return rt.thread->block->cluster_rank; }
unsigned cluster_size() { return (unsigned)rt.thread->block->cluster->blocks.size(); }
dim3 cluster_dims() { return dim3(rt.config->cluster[0], rt.config->cluster[1], rt.config->cluster[2]); }

void* map_shared(const void* pointer, unsigned rank, Site site) {
  Block* own = rt.thread->block;
  if (rank >= own->cluster->blocks.size())
    fail(site, "cluster", "map_shared_rank: rank %u in a cluster of %zu blocks", rank, own->cluster->blocks.size());
  Block* other = own->cluster->blocks[rank];
  const char* p = static_cast<const char*>(pointer);
  char* mapped = nullptr;
  if (p >= own->dynamic && p <= own->dynamic + rt.config->dynamic_shared)
    mapped = other->dynamic + (p - own->dynamic);
  else
    mapped = static_image(other, (uintptr_t)p);
  if (!mapped) fail(site, "cluster", "map_shared_rank: %p is not shared memory of this block", pointer);
  if (other->done == other->size) fail(site, "cluster", "map_shared_rank: the block of rank %u has exited", rank);
  return other == own ? const_cast<void*>(pointer) : mapped;
}

void* dynamic_shared() { return rt.thread->block->dynamic; }
unsigned dynamic_shared_bytes() { return rt.config->dynamic_shared; }

// An exited thread no longer arrives, so its exit can complete a block barrier, or make a grid barrier an error.
void barrier_thread_exited(Thread* t) {
  Block* b = t->block;
  Barrier& barrier = b->barriers[0];
  if (barrier.arrived && barrier.arrived + (int)b->done >= barrier.needed) release_barrier(b, 0);
  if (rt.at_grid && rt.at_grid + rt.threads_done >= rt.threads_live)
    for (const Block* other : rt.live)
      for (const Thread& waiting : other->threads)
        if (waiting.state == State::at_grid)
          fail(waiting.site, "divergence", "barrier divergence: %u threads exited without reaching this grid sync",
               rt.threads_done);
}

}  // namespace emulator
