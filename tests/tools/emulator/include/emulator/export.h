// Exports a kernel to the launcher: a function that takes void* arguments, and a description of the parameters.
#pragma once
#include <cstring>
#include <type_traits>
#include <utility>

#include "abi.h"

namespace emulator {

template <class... A, size_t... I>
EMULATOR_INTERNAL inline void call_with(void (*kernel)(A...), void** values, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<A>*>(values[I])...);
}
template <class... A>
EMULATOR_INTERNAL inline void call(void (*kernel)(A...), void** values) {
  call_with(kernel, values, std::index_sequence_for<A...>{});
}

// p pointer, f floating point, i signed, u unsigned, b bool, s structure (half types included)
template <class T>
constexpr char parameter_kind() {
  if (std::is_pointer_v<T>) return 'p';
  if (std::is_floating_point_v<T>) return 'f';
  if (std::is_same_v<T, bool>) return 'b';
  if (std::is_integral_v<T> || std::is_enum_v<T>) return std::is_signed_v<T> ? 'i' : 'u';
  return 's';
}
template <class... A>
inline int describe(void (*)(A...), char* kinds, unsigned* sizes) {
  const char k[] = {parameter_kind<std::remove_cv_t<A>>()..., 0};
  const unsigned s[] = {(unsigned)sizeof(A)..., 0};
  std::memcpy(kinds, k, sizeof(k));
  std::memcpy(sizes, s, sizeof(s) - sizeof(unsigned));
  return sizeof...(A);
}

}  // namespace emulator

#define EMULATOR_VISIBLE extern "C" __attribute__((visibility("default")))
#define EMULATOR_EXPORT(number, ...)                                              \
  EMULATOR_VISIBLE EMULATOR_INTERNAL void emulator_call_##number(void** values) { \
    emulator::call(__VA_ARGS__, values);                                          \
  }                                                                               \
  EMULATOR_VISIBLE int emulator_describe_##number(char* kinds, unsigned* sizes) { \
    return emulator::describe(__VA_ARGS__, kinds, sizes);                         \
  }
// The values of __launch_bounds__ or __cluster_dims__: expressions that only the compiler can evaluate.
#define EMULATOR_NUMBERS(name, number, ...)                                    \
  EMULATOR_VISIBLE void emulator_##name##_##number(unsigned* out) {            \
    const unsigned values[] = {(unsigned)0, __VA_ARGS__};                      \
    std::memcpy(out, values + 1, sizeof(values) - sizeof(unsigned));           \
  }
