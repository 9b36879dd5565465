// Every access of a kernel compiled for checking comes here.
#pragma once
#include "runtime.h"

namespace emulator {

enum class Access : uint8_t {
  read,
  write,
  ordered_read,   // volatile, ld.relaxed, ld.acquire: no race with one another or with atomics
  ordered_write,  // volatile stores, st.relaxed, st.release
  update,         // atomics, which also read
  async_write,    // cp.async under way: ordered with nothing until it was waited for
};

// Where an access came from: a program counter of the kernel's object, or a Site.
using Origin = uint32_t;
Origin origin_of(uintptr_t pc);
Origin origin_of(Site site);
std::string origin_name(Origin origin);

// shadow.cpp: races, and reads of what was never written
void check_access(uintptr_t address, size_t bytes, Access access, Origin origin);
void check_landed(uintptr_t address, size_t bytes, Origin origin);     // an async_write has been waited for
void check_unwritten(uintptr_t address, size_t bytes, Origin origin);  // __ldg: nobody may write it in this launch
void checker_begin_launch();
void checker_release();
void checker_begin_blocks();
const std::string& checker_findings();  // empty: none
const char* checker_kind();             // of the findings

// memory_ops.cpp: volatile accesses, and what ld/st.relaxed, acquire and release do
void ordered_load(const void* p, size_t bytes, Order order, Site site, const char* what, Origin origin);
void ordered_store(const void* p, size_t bytes, Order order, Origin origin);

// regions.cpp: which memory an address belongs to
struct Region {
  enum Kind : uint8_t { buffer, dynamic_shared, static_shared, module_variable, guard } kind;
  bool writable;
  unsigned number;      // of the buffer or variable
  const Block* block;   // of shared memory
  uintptr_t low, high;
  bool shared() const { return kind == dynamic_shared || kind == static_shared; }
};
void regions_begin_launch(const std::vector<Block*>& blocks);  // the blocks that share the launch's memory
// The region of an access of the running thread, or null where it is the emulator's own. Moves `address` of static
// shared memory to its place in the block's image. Fails where the access is out of bounds.
const Region* region_of(uintptr_t& address, size_t bytes, bool writes, Origin origin);
std::string region_name(const Region& region, uintptr_t address);
uintptr_t canonical(uintptr_t address);

// The stacks of the fibers and the built-in variables are nobody else's.
inline bool is_private(uintptr_t address) {
  return address - rt.stacks_low < rt.stacks_high - rt.stacks_low || address - (uintptr_t)&context < sizeof context;
}

}  // namespace emulator
