// The functions that an instrumented kernel calls: GCC inserts the calls before every access (-fsanitize=thread) and at
// undefined behaviour (-fsanitize=undefined). They have the names of libtsan and libubsan, which are not linked.
#include <string.h>

#include "checker.h"
#include "runtime.h"

namespace emulator {

static constexpr unsigned kAccessesPerSwitch = 64;  // on average, under a random schedule

static inline void access(void* p, size_t bytes, Access kind, void* return_address) {
  const uintptr_t address = (uintptr_t)p;
  if (is_emulator_memory(address) || !rt.running) return;
  if (rt.config->schedule == kRandom && random_number() % kAccessesPerSwitch == 0) yield_thread(false);
  check_access(address, bytes, kind, origin_of((uintptr_t)return_address));
}

// A volatile access acts as a relaxed atomic. Kernels spin on volatile reads, so a repeated read of an unchanged value
// lets other threads run.
static inline void volatile_read(void* p, size_t bytes, void* return_address) {
  if (is_emulator_memory((uintptr_t)p) || !rt.running) return;
  ordered_load(p, bytes, Order::relaxed, Site{}, "a volatile read", origin_of((uintptr_t)return_address));
}

static inline void volatile_write(void* p, size_t bytes, void* return_address) {
  if (is_emulator_memory((uintptr_t)p) || !rt.running) return;
  ordered_store(p, bytes, Order::relaxed, origin_of((uintptr_t)return_address));
}

// ---- undefined behaviour: the compiler passes the source location
struct SourceLocation {
  const char* file;
  uint32_t line, column;
  Site site() const { return {file, (int)line}; }
};
struct Mismatch {
  SourceLocation location;
  const void* type;
  unsigned char log_alignment, kind;
};

static void undefined(const SourceLocation* where, const char* what) { fail(where->site(), "undefined", "%s", what); }

}  // namespace emulator

using emulator::Access;
#define HIDDEN extern "C" __attribute__((visibility("hidden")))
#define CALLER __builtin_return_address(0)
#define OF_SIZE(N)                                                                                              \
  HIDDEN void __tsan_read##N(void* p) { emulator::access(p, N, Access::read, CALLER); }                         \
  HIDDEN void __tsan_write##N(void* p) { emulator::access(p, N, Access::write, CALLER); }                       \
  HIDDEN void __tsan_unaligned_read##N(void* p) { emulator::access(p, N, Access::read, CALLER); }               \
  HIDDEN void __tsan_unaligned_write##N(void* p) { emulator::access(p, N, Access::write, CALLER); }             \
  HIDDEN void __tsan_volatile_read##N(void* p) { emulator::volatile_read(p, N, CALLER); }                       \
  HIDDEN void __tsan_volatile_write##N(void* p) { emulator::volatile_write(p, N, CALLER); }                     \
  HIDDEN void __tsan_unaligned_volatile_read##N(void* p) { emulator::volatile_read(p, N, CALLER); }             \
  HIDDEN void __tsan_unaligned_volatile_write##N(void* p) { emulator::volatile_write(p, N, CALLER); }
OF_SIZE(1)
OF_SIZE(2)
OF_SIZE(4)
OF_SIZE(8)
OF_SIZE(16)
HIDDEN void __tsan_read_range(void* p, size_t bytes) { emulator::access(p, bytes, Access::read, CALLER); }
HIDDEN void __tsan_write_range(void* p, size_t bytes) { emulator::access(p, bytes, Access::write, CALLER); }
HIDDEN void __tsan_init() {}
HIDDEN void __tsan_func_entry(void*) {}
HIDDEN void __tsan_func_exit() {}
HIDDEN void __tsan_vptr_update(void*, void*) {}
HIDDEN void __tsan_vptr_read(void*) {}

HIDDEN void __ubsan_handle_out_of_bounds_abort(emulator::SourceLocation* where, uintptr_t index) {
  emulator::fail(where->site(), "undefined", "index %lld is outside the array", (long long)index);
}
HIDDEN void __ubsan_handle_type_mismatch_v1_abort(emulator::Mismatch* what, uintptr_t pointer) {
  if (pointer)
    emulator::fail(what->location.site(), "alignment", "misaligned access: %p is not a multiple of %u", (void*)pointer,
                   1u << what->log_alignment);
  emulator::fail(what->location.site(), "bounds", "access through a null pointer");
}
#define UNDEFINED(name, what) \
  HIDDEN void __ubsan_handle_##name##_abort(emulator::SourceLocation* where) { emulator::undefined(where, what); }
UNDEFINED(shift_out_of_bounds, "a shift by a negative number, by too much, or of a negative number")
UNDEFINED(add_overflow, "signed integer overflow in an addition")
UNDEFINED(sub_overflow, "signed integer overflow in a subtraction")
UNDEFINED(mul_overflow, "signed integer overflow in a multiplication")
UNDEFINED(negate_overflow, "signed integer overflow in a negation")
UNDEFINED(divrem_overflow, "integer division by zero, or overflow in a division")
