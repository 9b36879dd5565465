// The interface between compiled kernels and the runtime: the functions that kernels call and the runtime implements.
//
// Kernels call them by the CUDA names of builtins.h, warp.h and other headers. PTX wrappers call them by the names of
// ptx.h under RNNKIT_EMULATOR.
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

// For code of the emulator in headers: its accesses are not checked.
#define EMULATOR_INTERNAL __attribute__((no_sanitize("thread"), no_sanitize("undefined")))
// The last parameter of every function that can fail: the location of the call in the kernel's source.
#define EMULATOR_HERE ::emulator::Site site = ::emulator::Site::here()

namespace emulator {

struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// The running thread's built-in variables, which the scheduler sets at every switch.
struct Context {
  uint3 thread, block;
  dim3 block_size, grid_size;
  unsigned lane, rank;
};
extern Context context;

enum class Scope { block, device };
enum class Reduce { any, all, count };
enum class Order { relaxed, acquire, release };

// The kinds of warp operations. All lanes of a mask must be in the same one.
enum class WarpOp : int { sync, shuffle, ballot, match, reduce, mma, ldmatrix };

// Executes a warp operation after every lane of `mask` has arrived. data[lane] is the lane's record.
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
void pause(Site site);  // lets other threads run: __nanosleep, and between two polls of a spinning thread
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
