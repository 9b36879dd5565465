// Check mode: the functions that every access of a kernel calls.
#pragma once
#include "runtime.h"

namespace emulator {

enum class Access : uint8_t {
  read,
  write,
  ordered_read,   // volatile loads, ld.relaxed, ld.acquire: no race with ordered writes or atomics
  ordered_write,  // volatile stores, st.relaxed, st.release
  update,         // atomics, which also read
  async_write,    // a cp.async in flight: unordered with every access until its wait
};

// The source of an access: a program counter in the kernel's object file, or a Site.
using Origin = uint32_t;
Origin origin_of(uintptr_t pc);
Origin origin_of(Site site);
std::string origin_name(Origin origin);

// shadow.cpp: races and uninitialised reads
void check_access(uintptr_t address, size_t bytes, Access access, Origin origin);
void check_copy_completed(uintptr_t address, size_t bytes, Origin origin);  // the wait of an async_write
void check_not_written(uintptr_t address, size_t bytes, Origin origin);     // __ldg: the launch must not write it
void checker_begin_launch();
void checker_release();
void checker_begin_blocks();
const std::string& checker_findings();  // "" if there are none
const char* checker_kind();             // the kind of the findings, "" if there are none

// memory_ops.cpp: volatile accesses, ld and st with .relaxed, .acquire or .release
void ordered_load(const void* p, size_t bytes, Order order, Site site, const char* what, Origin origin);
void ordered_store(const void* p, size_t bytes, Order order, Origin origin);

// regions.cpp: finds the buffer or variable of an address
struct Region {
  enum Kind : uint8_t { buffer, dynamic_shared, static_shared, module_variable, guard } kind;
  bool writable;
  unsigned number;      // index of the buffer or variable
  const Block* block;   // owner of the shared memory
  uintptr_t low, high;
  bool shared() const { return kind == dynamic_shared || kind == static_shared; }
};
void regions_begin_launch(const std::vector<Block*>& blocks);  // the blocks that run concurrently
// The region of an access by the running thread, or null for memory of the emulator. An `address` in static shared
// memory is replaced by the address in the block's copy. Fails if the access is out of bounds.
const Region* region_of(uintptr_t& address, size_t bytes, bool writes, Origin origin);
std::string region_name(const Region& region, uintptr_t address);
uintptr_t canonical(uintptr_t address);

// Fiber stacks and the built-in variables: memory of one thread, which is not checked.
inline bool is_emulator_memory(uintptr_t address) {
  return address - rt.stacks_low < rt.stacks_high - rt.stacks_low || address - (uintptr_t)&context < sizeof context;
}

}  // namespace emulator
