"""Services of the processor and the operating system for a thread: pauses, clocks, cores, the floating-point mode."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.memory import load_word, store_word
from rnnkit.kernels.cpu.vec_type import INT64

# The size of a `cpu_set_t` of glibc and musl: one bit per core. On a machine with more cores than bits, the system call
# fails and threads stay where they are.
CPU_SET_BYTES = 128


@intrinsic
def _pause(typing):
    """The instruction that marks a spin loop, on x86; nothing on other processors."""

    def emit(context, builder, sig, args):
        if llvm.get_process_triple().startswith(("x86_64", "i686")):
            function_type = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def _yield_core(typing):
    """Yields this core to another thread: sched_yield, or SwitchToThread on Windows."""

    def emit(context, builder, sig, args):
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        function_type = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def _clock_ns(typing, of_thread):
    """Nanoseconds of the monotonic clock, or of this thread's CPU time if `of_thread`; 0 on Windows."""

    def emit(context, builder, sig, args):
        if sys.platform == "win32":
            return ir.Constant(INT64, 0)
        monotonic, thread_cpu = (6, 16) if sys.platform == "darwin" else (1, 3)  # clock ids
        int32 = ir.IntType(32)
        clock = builder.select(args[0], ir.Constant(int32, thread_cpu), ir.Constant(int32, monotonic))
        timespec = cgutils.alloca_once_value(builder, ir.Constant(ir.ArrayType(INT64, 2), [0, 0]))
        function_type = ir.FunctionType(int32, [int32, timespec.type])
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, "clock_gettime"), [clock, timespec])
        seconds, nanoseconds = (builder.extract_value(builder.load(timespec), k) for k in range(2))
        return builder.add(builder.mul(seconds, ir.Constant(INT64, 10**9)), nanoseconds)

    return types.int64(types.boolean), emit


@intrinsic
def _current_core(typing):
    """The number of the core that this thread is on; -1 on systems other than Linux."""

    def emit(context, builder, sig, args):
        if sys.platform != "linux":
            return ir.Constant(INT64, -1)
        function_type = ir.FunctionType(ir.IntType(32), [])
        number = builder.call(cgutils.get_or_insert_function(builder.module, function_type, "sched_getcpu"), [])
        return builder.sext(number, INT64)

    return types.int64(), emit


def _affinity_call(name: str) -> Any:
    """An intrinsic name(cores), the system call of that name for this thread and the CPU set at an address.

    Returns 0 on success, and -1 on systems other than Linux.
    """

    @intrinsic
    def of_affinity(typing, cores):
        def emit(context, builder, sig, args):
            if sys.platform != "linux":
                return ir.Constant(INT64, -1)
            int32 = ir.IntType(32)
            function_type = ir.FunctionType(int32, [int32, INT64, INT64.as_pointer()])
            function = cgutils.get_or_insert_function(builder.module, function_type, name)
            cores = builder.inttoptr(args[0], INT64.as_pointer())
            status = builder.call(function, [ir.Constant(int32, 0), ir.Constant(INT64, CPU_SET_BYTES), cores])
            return builder.sext(status, INT64)

        return types.int64(types.intp), emit

    return of_affinity


@intrinsic
def _two_cpu_sets(typing):
    """The address of stack memory for two CPU sets, valid until the calling function returns."""

    def emit(context, builder, sig, args):
        sets = cgutils.alloca_once(builder, ir.ArrayType(INT64, 2 * CPU_SET_BYTES // 8))
        return builder.ptrtoint(sets, INT64)

    return types.int64(), emit


# The floating-point mode of jobs: round to nearest, no exceptions, subnormal operands and results replaced by zero.
# Arithmetic on subnormal numbers takes more than a hundred cycles on x86. MXCSR: bit 15 is flush-to-zero, bit 6 is
# denormals-are-zero. FPCR: bit 24 is flush-to-zero.
_MXCSR = 0x1F80 | 1 << 15 | 1 << 6
_FPCR = 1 << 24


def _float_control(builder: ir.IRBuilder) -> Callable[[ir.Value | None], ir.Value | None]:
    """control(value) sets this thread's floating-point control register, control(None) reads it.

    On processors other than x86-64 and 64-bit ARM, control(value) does nothing and control(None) gives 0.
    """
    triple = llvm.get_process_triple()
    byte = ir.IntType(8).as_pointer()

    def call(name: str, result: ir.Type, arguments: list[ir.Value]) -> Any:
        function_type = ir.FunctionType(result, [argument.type for argument in arguments])
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)

    def x86(value: ir.Value | None) -> ir.Value | None:
        slot = cgutils.alloca_once(builder, ir.IntType(32))
        at = builder.bitcast(slot, byte)
        if value is None:
            call("llvm.x86.sse.stmxcsr", ir.VoidType(), [at])
            return builder.zext(builder.load(slot), INT64)
        builder.store(builder.trunc(value, ir.IntType(32)), slot)
        call("llvm.x86.sse.ldmxcsr", ir.VoidType(), [at])
        return None

    def arm(value: ir.Value | None) -> ir.Value | None:
        if value is None:
            return call("llvm.aarch64.get.fpcr", INT64, [])
        call("llvm.aarch64.set.fpcr", ir.VoidType(), [value])
        return None

    if triple.startswith("x86_64"):
        return x86
    if triple.startswith(("aarch64", "arm64")):
        return arm
    return lambda value: ir.Constant(INT64, 0) if value is None else None


@intrinsic
def _float_mode(typing):
    """This thread's floating-point control register: rounding, exceptions, subnormal numbers."""

    def emit(context, builder, sig, args):
        return _float_control(builder)(None)

    return types.int64(), emit


@intrinsic
def _set_float_mode(typing, mode):
    def emit(context, builder, sig, args):
        _float_control(builder)(args[0])
        return context.get_dummy_value()

    return types.void(types.int64), emit


def job_mode() -> int:
    """The floating-point mode of jobs, which does not depend on the caller's or the worker's mode."""
    return _FPCR if llvm.get_process_triple().startswith(("aarch64", "arm64")) else _MXCSR


JOB_MODE = job_mode()

# `Any`, since Numba types these calls, and not the Python signatures.
float_mode: Any = _float_mode
set_float_mode: Any = _set_float_mode
pause: Any = _pause
yield_core: Any = _yield_core
clock_ns: Any = _clock_ns
current_core: Any = _current_core
get_affinity: Any = _affinity_call("sched_getaffinity")
set_affinity: Any = _affinity_call("sched_setaffinity")
two_cpu_sets: Any = _two_cpu_sets


@inner
def move_off_cores(first, stride, count):
    """Moves this thread to a core that it may use and that none of `count` words names. Stays if there is none.

    The words are `stride` bytes apart; each is 1 + the number of a core. The thread's affinity mask does not change.
    """
    usable = two_cpu_sets()
    others = usable + CPU_SET_BYTES
    if get_affinity(usable) != 0:
        return
    for at in range(0, CPU_SET_BYTES, 8):
        store_word(others + at, load_word(usable + at))
    for k in range(count):
        occupied = load_word(first + stride * k) - 1
        if 0 <= occupied < 8 * CPU_SET_BYTES:
            at = others + (occupied >> 6) * 8
            store_word(at, load_word(at) & ~(1 << (occupied & 63)))
    remaining = 0
    for at in range(0, CPU_SET_BYTES, 8):
        remaining |= load_word(others + at)
    if remaining and set_affinity(others) == 0:
        set_affinity(usable)
