// Fibers: stacks in one reserved address range, and the switch between two fibers.
#include <stdlib.h>
#include <sys/mman.h>

#include "runtime.h"

#if !defined(__x86_64__)
#error "the fiber switch is x86-64 assembly"
#endif

// Pushes the callee-saved registers, stores the stack pointer in *save, and resumes the fiber with stack pointer `to`.
asm(R"(
.text
.p2align 4
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

namespace emulator {

namespace {
constexpr size_t kHugePages = 64 << 20;
constexpr uint64_t kCanary = 0x5afe57ac4ca4a121;
std::vector<Fiber> fibers;
std::vector<Fiber*> unused;
size_t stack_size;

void prepare(Fiber& fiber, size_t index) {
  *reinterpret_cast<uint64_t*>(fiber.stack) = kCanary;
  // The distance between stacks is a power of two. The shift avoids that all stack tops map to the same cache sets.
  char* top = fiber.stack + stack_size - (index & 63) * 64;
  void** sp = reinterpret_cast<void**>(top);
  *--sp = nullptr;  // fiber_main never returns
  *--sp = reinterpret_cast<void*>(fiber_main);
  for (int saved = 0; saved < 6; ++saved) *--sp = nullptr;
  fiber.stack_pointer = sp;
  fiber.thread = nullptr;
}
}  // namespace

void fibers_release() {
  if (rt.stacks_high) munmap(reinterpret_cast<void*>(rt.stacks_low), rt.stacks_high - rt.stacks_low);
  rt.stacks_low = rt.stacks_high = 0;
  fibers.clear();
  unused.clear();
}

void fibers_reserve(unsigned count, size_t stack_bytes) {
  if (fibers.size() >= count && stack_size == stack_bytes) return;
  fibers_release();
  const size_t total = (size_t)count * stack_bytes;
  void* range = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return record_failure("launch", "no address space for the stacks of the threads");
  if (total <= kHugePages) madvise(range, total, MADV_HUGEPAGE);  // one small page per stack exceeds the TLB
  rt.stacks_low = reinterpret_cast<uintptr_t>(range);
  rt.stacks_high = rt.stacks_low + total;
  stack_size = stack_bytes;
  fibers.resize(count);
  fibers_reset();
}

// After a failure, discards the state of all fibers. prepare() writes a stack only when the fiber is taken again.
void fibers_reset() {
  unused.clear();
  for (size_t i = fibers.size(); i-- > 0;) {
    fibers[i].stack = reinterpret_cast<char*>(rt.stacks_low) + i * stack_size;
    fibers[i].stack_pointer = nullptr;
    unused.push_back(&fibers[i]);
  }
}

Fiber* fiber_take() {
  Fiber* fiber = unused.back();  // never empty: there is a fiber per live thread
  unused.pop_back();
  if (!fiber->stack_pointer) prepare(*fiber, fiber - fibers.data());
  return fiber;
}

void fiber_give(Fiber* fiber) { unused.push_back(fiber); }

void fiber_check_stack(const Fiber* fiber) {
  if (*reinterpret_cast<const uint64_t*>(fiber->stack) != kCanary)
    fail_at("stack", "a thread's stack overflowed (local arrays too large, or recursion)");
}

}  // namespace emulator
