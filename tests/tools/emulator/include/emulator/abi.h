// The border between device code and the runtime: what a kernel object calls, and what the runtime answers.
//
// Device code reaches these functions through the CUDA names of builtins.h, warp.h and the rest, or, in the branch of
// a PTX wrapper that is taken under RNNKIT_EMULATOR, by their own names (ptx.h).
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// Code that is the emulator's own: the checker must not take its accesses for the kernel's.
#define EMULATOR_INTERNAL __attribute__((no_sanitize("thread"), no_sanitize("undefined")))
// The last parameter of whatever may fail: the place in the kernel's source.
#define EMULATOR_HERE ::emulator::Site site = ::emulator::Site::here()

namespace emulator {

struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// The running thread's built-in variables. The scheduler fills it at every switch.
struct Context {
  uint3 thread, block;
  dim3 block_size, grid_size;
  unsigned lane, rank;
};
extern Context context;

enum class Scope { block, device };
enum class Reduce { any, all, count };
enum class Order { relaxed, acquire, release };

// What an operation of a warp is: lanes meet only in the same one.
enum class WarpOp : int { sync, shuffle, ballot, match, reduce, mma, ldmatrix };

// Does the work of a warp operation once every lane of `mask` has come: data[lane] is what the lane brought.
using WarpWork = void (*)(void* const* data, unsigned mask);

void sync_threads(Site site);
int sync_threads_reduce(int predicate, Reduce reduce, Site site);
void named_barrier(int id, int count, Site site);
void named_barrier_arrive(int id, int count, Site site);
void grid_sync(Site site);
void cluster_arrive(Site site);
void cluster_wait(Site site);
void cluster_sync(Site site);
unsigned cluster_rank();
unsigned cluster_size();
dim3 cluster_dims();
void* map_shared(const void* pointer, unsigned rank, Site site);
void* dynamic_shared();
unsigned dynamic_shared_bytes();

void warp_collective(unsigned mask, WarpOp op, int variant, void* data, WarpWork work, const char* name, Site site);
unsigned active_mask();

void fence(Scope scope, Site site);
void pause(Site site);  // lets other threads run: __nanosleep, and what a spinning thread does between two looks
void atomic_before(const void* p, unsigned bytes, Site site);
void atomic_after(const void* p, bool changed, Site site);
void load_before(const void* p, unsigned bytes, Order order, Site site);
void store_before(const void* p, unsigned bytes, Order order, Site site);
void touch(const void* p, unsigned bytes, bool write, Site site);
void check_read_only(const void* p, unsigned bytes, Site site);

void copy_async(void* shared, const void* global, unsigned bytes, unsigned zero_bytes, Site site);
void copy_async_commit(Site site);
void copy_async_wait(unsigned groups_left, Site site);

long long clock();
[[noreturn]] void fail(Site site, const char* kind, const char* format, ...) __attribute__((format(printf, 3, 4)));

}  // namespace emulator
