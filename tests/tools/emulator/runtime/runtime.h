// The state of a launch, used by all parts of the runtime.
//
// One launch runs at a time, and all its fibers run on one system thread, so there are no locks.
#pragma once
#include <stdint.h>

#include <memory>
#include <string>
#include <vector>

#include "emulator/abi.h"

namespace emulator {

// ---- passed by launch.py, which declares the same structures
enum Schedule : uint32_t { kAscending = 0, kDescending = 1, kRandom = 2 };

struct LaunchConfig {
  uint32_t grid[3], block[3], cluster[3];
  uint32_t dynamic_shared, cooperative, schedule, seed, check, stack_bytes;
  uint32_t static_count, variable_count, buffer_count, guard_count;
  double time_limit;            // seconds of CPU time
  const uint64_t* statics;      // static_count x {offset in the object file, bytes}
  const uint64_t* variables;    // the same for module variables; the last guard_count are GCC's guard variables
  const uint64_t* buffers;      // buffer_count x {address, bytes, writable}, sorted by address
  const char* parameter_kinds;  // as export.h describes them
  void** arguments;
  void (*kernel)(void** arguments);
};

struct LaunchStats {
  uint64_t threads, switches, barriers, warp_ops, accesses;
};

// ---- fibers
struct Thread;
struct Fiber {
  void* stack_pointer;
  char* stack;
  Thread* thread;  // runs when the fiber is resumed
};

// ---- defined in order.h
struct ThreadOrder;
struct BlockOrder;
struct VectorClock;

// ---- threads, warps, blocks, clusters
enum class State : uint8_t { unstarted, ready, running, at_barrier, at_warp, at_grid, at_cluster, done };

struct Block;
struct Warp;

struct alignas(64) Thread {  // the fields used by every switch fill the first cache line
  State state;
  uint16_t barrier;  // id of the barrier where it waits
  unsigned rank;     // within its block
  uint3 position;
  unsigned lane;
  Block* block;
  Fiber* fiber;
  const char* waits_in;
  Site site;
  Warp* warp;
  // the warp operation where it waits
  unsigned mask;
  WarpOp op;
  int variant;
  void* data;
  WarpWork work;
  // the cluster barrier
  unsigned cluster_phase;
  bool cluster_arrived;
  bool cluster_released;  // it arrived without waiting and has released its clock
  // the last ordered load
  const void* polled;
  uint64_t polled_value;
  std::shared_ptr<struct AsyncCopies> copies;
};

struct Warp {
  unsigned present = 0, exited = 0;
  Thread* lanes = nullptr;
};

struct Barrier {
  int arrived = 0, needed = 0;
  Site site = {};
  int any = 0, all = 1, count = 0;  // over the predicates of the threads that have arrived
  int result[3] = {};               // of the last completed phase
  std::unique_ptr<VectorClock> clock;  // joined clocks of the threads that arrived without waiting
};

struct Cluster {
  std::vector<Block*> blocks;
  unsigned arrived = 0, phase = 0, threads = 0;
  std::unique_ptr<VectorClock> clock;                 // joined clocks of the threads that arrived without waiting
  std::shared_ptr<const VectorClock> released_clock;  // of the last phase; null if all threads waited at its end
};

struct Block {
  unsigned index = 0, cluster_rank = 0;
  uint3 position = {};
  unsigned size = 0, done = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<unsigned> start_order;  // used by a random schedule
  unsigned started = 0;
  std::vector<Thread*> ready;  // a ring buffer
  unsigned ready_head = 0, ready_count = 0;
  Barrier barriers[16];
  Cluster* cluster = nullptr;
  char* dynamic = nullptr;  // dynamic shared memory
  char* statics = nullptr;  // copy of the static shared memory while another block runs
  std::unique_ptr<BlockOrder> order;
};

// ---- the launch
struct StaticObject {
  uintptr_t address;
  size_t bytes, image_offset;
};

struct Runtime {
  const LaunchConfig* config;
  LaunchStats stats;
  std::string error, error_kind;
  bool running, failed, checking;
  uint32_t random;

  Thread* thread;       // the running thread
  Block* swapped_in;    // the block whose static shared memory is in the static objects
  std::vector<Block*> live;
  size_t last_block;
  unsigned threads_live, threads_done, at_grid, threads_per_block, block_count;
  uint32_t last_origin;  // of the last checked access; locates an endless loop
  uint64_t idle_polls;   // polls since the last progress of any thread

  void* main_stack_pointer;
  std::vector<StaticObject> statics;
  size_t static_bytes;
  uintptr_t image_base, image_low, image_high, writable_low, writable_high, statics_low, statics_high;
  uintptr_t stacks_low, stacks_high;
};
extern Runtime rt;

uint32_t random_number();
std::string thread_name(unsigned block, unsigned thread);
std::string thread_name(const Thread* t);
std::string site_name(Site site);
std::string pc_name(uintptr_t pc);
void record_failure(const char* kind, const std::string& message);
// Ends the launch, from a fiber. The message must contain the source location.
[[noreturn]] void fail_at(const char* kind, const std::string& message);

// fiber.cpp
void fibers_reserve(unsigned count, size_t stack_bytes);
void fibers_reset();
void fibers_release();
Fiber* fiber_take();
void fiber_give(Fiber* fiber);
void fiber_check_stack(const Fiber* fiber);
extern "C" void emulator_switch(void** save, void* to);

// scheduler.cpp
void make_ready(Thread* t);
void wait_in(State state, const char* what, Site site);
void yield_thread(bool to_another_block);
void progress();
void run_live_blocks();
std::string waiting_threads();
char* static_image(const Block* block, uintptr_t address);
void fiber_main();

// barriers.cpp
void barrier_thread_exited(Thread* t);
// warp.cpp
void warp_thread_exited(Thread* t);
// async.cpp
void async_thread_exited(Thread* t);

}  // namespace emulator
