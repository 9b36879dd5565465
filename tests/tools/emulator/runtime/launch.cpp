// The entry point: prepares and runs blocks, batch by batch, and converts signals to errors.
#include <errno.h>
#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "checker.h"
#include "order.h"
#include "runtime.h"

namespace emulator {

// ---- faults and the time limit: signals of the launching thread while a kernel runs
namespace {

sigjmp_buf after_fault;
const int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGVTALRM};
constexpr int kSignalCount = sizeof kSignals / sizeof *kSignals;
struct sigaction earlier_actions[kSignalCount];

void on_signal(int number, siginfo_t* info, void* machine) {
  if (!rt.running) {  // not raised by a kernel
    signal(number, SIG_DFL);
    raise(number);
    return;
  }
  const uintptr_t pc = (uintptr_t) static_cast<ucontext_t*>(machine)->uc_mcontext.gregs[REG_RIP];
  const bool in_kernel = pc >= rt.image_low && pc < rt.image_high;
  char text[160];
  if (number == SIGVTALRM)
    snprintf(text, sizeof text, "the time limit of %g s was reached (an endless loop?)", rt.config->time_limit);
  else if (number == SIGFPE)
    snprintf(text, sizeof text, "integer division by zero");
  else
    snprintf(text, sizeof text, "invalid access to memory at %p (out of bounds, null or misaligned)", info->si_addr);
  const std::string place = number == SIGVTALRM && rt.last_origin ? origin_name(rt.last_origin)
                            : in_kernel                           ? pc_name(pc + 1)
                                                                  : "";
  std::string message = place.empty() ? text : place + ": " + text;
  if (rt.thread) message += " [" + thread_name(rt.thread) + "]";
  if (number == SIGVTALRM) message += waiting_threads();
  record_failure(number == SIGVTALRM ? "timeout" : "fault", message);
  siglongjmp(after_fault, 1);
}

class Guard {
 public:
  explicit Guard(double time_limit) {
    static char stack[1 << 16];
    stack_t alternate = {};
    alternate.ss_sp = stack;
    alternate.ss_size = sizeof stack;
    sigaltstack(&alternate, &earlier_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &action, &earlier_actions[i]);
    struct sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGVTALRM;
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    timed_ = timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer_) == 0;
    if (!timed_) return;
    struct itimerspec limit = {};
    limit.it_value.tv_sec = (time_t)time_limit;
    limit.it_value.tv_nsec = (long)((time_limit - (double)limit.it_value.tv_sec) * 1e9);
    timer_settime(timer_, 0, &limit, nullptr);
  }
  ~Guard() {
    if (timed_) timer_delete(timer_);
    for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &earlier_actions[i], nullptr);
    sigaltstack(&earlier_stack_, nullptr);
  }

 private:
  stack_t earlier_stack_ = {};
  timer_t timer_ = {};
  bool timed_ = false;
};

// ---- the object file that contains the kernels and this runtime
int find_image(struct dl_phdr_info* info, size_t, void*) {
  uintptr_t low = UINTPTR_MAX, high = 0, writable_low = UINTPTR_MAX, writable_high = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
    const uintptr_t start = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
    low = std::min(low, start);
    high = std::max(high, start + info->dlpi_phdr[i].p_memsz);
    if (!(info->dlpi_phdr[i].p_flags & PF_W)) continue;
    writable_low = std::min(writable_low, start);
    writable_high = std::max(writable_high, start + info->dlpi_phdr[i].p_memsz);
  }
  const uintptr_t here = (uintptr_t)&find_image;
  if (here < low || here >= high) return 0;
  rt.image_low = low;
  rt.image_high = high;
  rt.writable_low = writable_low;
  rt.writable_high = writable_high;
  rt.image_base = info->dlpi_addr;
  return 1;
}

void find_statics() {
  rt.statics.clear();
  rt.static_bytes = 0;
  rt.statics_low = UINTPTR_MAX;
  rt.statics_high = 0;
  for (uint32_t i = 0; i < rt.config->static_count; ++i) {
    const uintptr_t address = rt.image_base + rt.config->statics[2 * i];
    const size_t bytes = rt.config->statics[2 * i + 1];
    // A block's copy has the alignment of the object, as a float4 in a peer's shared memory requires.
    rt.static_bytes = (rt.static_bytes + 127) / 128 * 128 + address % 128;
    rt.statics.push_back({address, bytes, rt.static_bytes});
    rt.static_bytes += bytes;
    rt.statics_low = std::min(rt.statics_low, address);
    rt.statics_high = std::max(rt.statics_high, address + bytes);
  }
}

// ---- blocks
constexpr int kPoison = 0xff;  // shared memory at the start of a block: NaN in every floating type

std::vector<std::unique_ptr<Block>> pool;  // reused, to avoid reallocating their arrays
std::vector<Cluster> clusters;

char* aligned_buffer(char* buffer, size_t bytes) {
  free(buffer);
  return static_cast<char*>(aligned_alloc(1024, (bytes + 1024) / 1024 * 1024));
}

void prepare_block(Block* b, uint3 position, Cluster* cluster, unsigned rank) {
  const LaunchConfig& config = *rt.config;
  const unsigned n = rt.threads_per_block;
  b->position = position;
  b->index = position.x + config.grid[0] * (position.y + config.grid[1] * position.z);
  b->cluster = cluster;
  b->cluster_rank = rank;
  b->size = n;
  b->done = b->started = b->ready_head = b->ready_count = 0;
  b->ready.resize(n);
  if (config.schedule == kRandom) {
    b->start_order.resize(n);
    for (unsigned i = 0; i < n; ++i) b->start_order[i] = i;
  }
  b->warps.assign((n + 31) / 32, Warp());
  uint3 at = {0, 0, 0};
  for (unsigned i = 0; i < n; ++i) {
    Thread& t = b->threads[i];
    t.position = at;
    if (++at.x == config.block[0]) at = {0, at.y + 1, at.z};
    if (at.y == config.block[1]) at = {0, 0, at.z + 1};
    t.state = State::unstarted;
    t.waits_in = nullptr;
    t.fiber = nullptr;
    t.polled = nullptr;
    t.cluster_arrived = t.cluster_released = false;
    t.rank = i;
    t.lane = i % 32;
    t.block = b;
    t.warp = &b->warps[i / 32];
  }
  for (unsigned w = 0; w < b->warps.size(); ++w) {
    b->warps[w].lanes = &b->threads[32 * w];
    const unsigned lanes = std::min(32u, n - 32 * w);
    b->warps[w].present = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
  }
  memset(b->dynamic, kPoison, config.dynamic_shared);
  memset(b->statics, kPoison, rt.static_bytes);
  if (rt.checking) b->order = std::make_unique<BlockOrder>(n);
}

Block* pooled_block(size_t index) {
  while (pool.size() <= index) pool.push_back(std::make_unique<Block>());
  Block* b = pool[index].get();
  for (Barrier& barrier : b->barriers) barrier = Barrier();
  return b;
}

void resize_pool(unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    Block* b = pooled_block(i);
    if (b->threads.size() != rt.threads_per_block) b->threads = std::vector<Thread>(rt.threads_per_block);
    b->dynamic = aligned_buffer(b->dynamic, rt.config->dynamic_shared);
    b->statics = aligned_buffer(b->statics, rt.static_bytes);
  }
}

uint3 block_position(unsigned cluster, unsigned rank) {
  const uint32_t *g = rt.config->grid, *c = rt.config->cluster;
  const unsigned clusters_x = g[0] / c[0], clusters_y = g[1] / c[1];
  return {cluster % clusters_x * c[0] + rank % c[0], cluster / clusters_x % clusters_y * c[1] + rank / c[0] % c[1],
          cluster / clusters_x / clusters_y * c[2] + rank / c[0] / c[1]};
}

// Makes the blocks of clusters order[from : from + count] live.
void set_live(const std::vector<unsigned>& order, size_t from, size_t count, unsigned cluster_blocks) {
  rt.live.clear();
  rt.threads_done = rt.at_grid = 0;
  rt.swapped_in = nullptr;
  rt.last_block = 0;
  clusters.clear();
  clusters.resize(count);
  for (size_t k = 0; k < count; ++k) {
    Cluster* cluster = &clusters[k];
    cluster->threads = rt.threads_per_block * cluster_blocks;
    for (unsigned rank = 0; rank < cluster_blocks; ++rank) {
      Block* b = pooled_block(rt.live.size());
      prepare_block(b, block_position(order[from + k], rank), cluster, rank);
      cluster->blocks.push_back(b);
      rt.live.push_back(b);
    }
  }
  rt.threads_live = rt.threads_per_block * (unsigned)rt.live.size();
  rt.stats.threads += rt.threads_live;
  progress();
}

std::vector<unsigned> cluster_order(unsigned count) {
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) order[i] = rt.config->schedule == kDescending ? count - 1 - i : i;
  if (rt.config->schedule == kRandom)
    for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
  return order;
}

void run_grid() {
  const LaunchConfig& config = *rt.config;
  const unsigned cluster_blocks = config.cluster[0] * config.cluster[1] * config.cluster[2];
  const unsigned cluster_count = rt.block_count / cluster_blocks;
  const unsigned concurrent = config.cooperative ? cluster_count : 1;
  fibers_reserve(concurrent * cluster_blocks * rt.threads_per_block, config.stack_bytes);
  resize_pool(concurrent * cluster_blocks);
  const std::vector<unsigned> order = cluster_order(cluster_count);
  if (rt.checking) {
    std::vector<Block*> blocks;
    for (unsigned i = 0; i < concurrent * cluster_blocks; ++i) blocks.push_back(pool[i].get());
    regions_begin_launch(blocks);
  }
  Guard guard(config.time_limit);
  for (volatile unsigned next = 0; next < cluster_count && !rt.failed; next = next + concurrent) {
    set_live(order, next, concurrent, cluster_blocks);
    if (rt.checking) checker_begin_blocks();
    if (!sigsetjmp(after_fault, 1)) run_live_blocks();
    rt.running = false;
    rt.thread = nullptr;
  }
}

}  // namespace

static void set_up(const LaunchConfig* config) {
  rt.config = config;
  rt.stats = LaunchStats();
  rt.error.clear();
  rt.error_kind.clear();
  rt.failed = rt.running = false;
  rt.last_origin = 0;
  rt.checking = config->check;
  rt.random = config->seed * 2654435761u + 88172645u;
  if (!rt.random) rt.random = 1;
  rt.threads_per_block = config->block[0] * config->block[1] * config->block[2];
  rt.block_count = config->grid[0] * config->grid[1] * config->grid[2];
  context.grid_size = dim3(config->grid[0], config->grid[1], config->grid[2]);
  context.block_size = dim3(config->block[0], config->block[1], config->block[2]);
  if (!rt.image_base) dl_iterate_phdr(find_image, nullptr);
  find_statics();
}

}  // namespace emulator

// Returns 0 on success, 1 for an error, 2 for findings such as races. `kind` and `text` receive kind and message.
extern "C" __attribute__((visibility("default"))) int emulator_launch(const emulator::LaunchConfig* config, char* kind,
                                                                      int kind_bytes, char* text, int text_bytes,
                                                                      emulator::LaunchStats* stats) {
  using namespace emulator;
  set_up(config);
  if (rt.checking) checker_begin_launch();
  run_grid();
  if (rt.failed) {
    fibers_reset();
    for (auto& block : pool) block->threads.clear();
  }
  std::string message = rt.error;
  const char* what = rt.error_kind.c_str();
  int result = rt.failed ? 1 : 0;
  if (rt.checking) {
    const std::string& findings = checker_findings();
    if (!findings.empty()) {
      if (!result) what = checker_kind();
      message += (result ? "\n" : "") + findings;
      result = result ? result : 2;
    }
  }
  snprintf(kind, kind_bytes, "%s", what);
  snprintf(text, text_bytes, "%s", message.c_str());
  *stats = rt.stats;
  if (rt.checking) order_clear();
  return result;
}

// Frees what is cached between launches: stacks, blocks and access records. The next launch allocates them again.
extern "C" __attribute__((visibility("default"))) void emulator_release() {
  using namespace emulator;
  fibers_release();
  for (auto& block : pool) {
    free(block->dynamic);
    free(block->statics);
  }
  pool.clear();
  checker_release();
}
