"""What the processor and the operating system tell a thread and do for it: pauses, clocks, cores, floating point."""

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
from rnnkit.kernels.cpu.simd import INT64

# A set of cores, as glibc and musl have it: a bit each. Where there are more than it has bits for, threads stay.
CPU_SET_BYTES = 128


@intrinsic
def _pause(typing):
    """The processor's hint that this is a spin loop, where it has one."""

    def emit(context, builder, sig, args):
        if llvm.get_process_triple().startswith(("x86_64", "i686")):
            function_type = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def _yield_core(typing):
    """Lets another thread have this core: sched_yield, or Windows' SwitchToThread."""

    def emit(context, builder, sig, args):
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        function_type = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def _clock_ns(typing, of_thread):
    """The system's clock, or this thread's time on a core; 0 where the system has no POSIX clocks."""

    def emit(context, builder, sig, args):
        if sys.platform == "win32":
            return ir.Constant(INT64, 0)
        monotonic, own = (6, 16) if sys.platform == "darwin" else (1, 3)
        int32 = ir.IntType(32)
        clock = builder.select(args[0], ir.Constant(int32, own), ir.Constant(int32, monotonic))
        found = cgutils.alloca_once_value(builder, ir.Constant(ir.ArrayType(INT64, 2), [0, 0]))
        function_type = ir.FunctionType(int32, [int32, found.type])
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, "clock_gettime"), [clock, found])
        seconds, rest = (builder.extract_value(builder.load(found), k) for k in range(2))
        return builder.add(builder.mul(seconds, ir.Constant(INT64, 10**9)), rest)

    return types.int64(types.boolean), emit


@intrinsic
def _current_core(typing):
    """The number of the core this thread is on; -1 where the system is not Linux."""

    def emit(context, builder, sig, args):
        if sys.platform != "linux":
            return ir.Constant(INT64, -1)
        function_type = ir.FunctionType(ir.IntType(32), [])
        found = builder.call(cgutils.get_or_insert_function(builder.module, function_type, "sched_getcpu"), [])
        return builder.sext(found, INT64)

    return types.int64(), emit


def _affinity_call(name: str):
    """name(set): the call of that name for this thread and a set of cores; 0 where that was done."""

    @intrinsic
    def of_affinity(typing, cores):
        def emit(context, builder, sig, args):
            if sys.platform != "linux":
                return ir.Constant(INT64, -1)
            int32 = ir.IntType(32)
            function_type = ir.FunctionType(int32, [int32, INT64, INT64.as_pointer()])
            function = cgutils.get_or_insert_function(builder.module, function_type, name)
            cores = builder.inttoptr(args[0], INT64.as_pointer())
            done = builder.call(function, [ir.Constant(int32, 0), ir.Constant(INT64, CPU_SET_BYTES), cores])
            return builder.sext(done, INT64)

        return types.int64(types.intp), emit

    return of_affinity


@intrinsic
def _two_cpu_sets(typing):
    """The address of room for two sets of cores, which the function that asks for it has until it returns."""

    def emit(context, builder, sig, args):
        room = cgutils.alloca_once(builder, ir.ArrayType(INT64, 2 * CPU_SET_BYTES // 8))
        return builder.ptrtoint(room, INT64)

    return types.int64(), emit


# Round to nearest, no exceptions, and subnormal numbers taken and given as zero: arithmetic on them takes some hundred
# cycles on x86. MXCSR: flush to zero is bit 15, denormals are zero bit 6. FPCR: flush to zero is bit 24.
_MXCSR, _FPCR = 0x1F80 | 1 << 15 | 1 << 6, 1 << 24


def _float_control(builder: ir.IRBuilder) -> Callable[[ir.Value | None], ir.Value | None]:
    """control(value) sets the register of this thread's floating-point mode, control(None) gives it; on other
    processors than x86-64 and 64-bit ARM neither does anything."""
    triple = llvm.get_process_triple()
    byte = ir.IntType(8).as_pointer()

    def call(name: str, result: ir.Type, arguments: list[ir.Value]) -> Any:
        function_type = ir.FunctionType(result, [argument.type for argument in arguments])
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)

    def x86(value: ir.Value | None) -> ir.Value | None:
        place = cgutils.alloca_once(builder, ir.IntType(32))
        at = builder.bitcast(place, byte)
        if value is None:
            call("llvm.x86.sse.stmxcsr", ir.VoidType(), [at])
            return builder.zext(builder.load(place), INT64)
        builder.store(builder.trunc(value, ir.IntType(32)), place)
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
    """This thread's floating-point mode: rounding, exceptions, subnormal numbers."""

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
    """The floating-point mode of jobs, the same whatever the caller's and the worker's are."""
    return _FPCR if llvm.get_process_triple().startswith(("aarch64", "arm64")) else _MXCSR


float_mode: Any = _float_mode  # typed by Numba, not by their Python signatures
set_float_mode: Any = _set_float_mode
JOB_MODE = job_mode()

pause: Any = _pause  # typed by Numba, not by their Python signatures
yield_core: Any = _yield_core
clock_ns: Any = _clock_ns
current_core: Any = _current_core
get_affinity: Any = _affinity_call("sched_getaffinity")
set_affinity: Any = _affinity_call("sched_setaffinity")
two_cpu_sets: Any = _two_cpu_sets


@inner
def move_off_cores(first, step, count):
    """Moves this thread to a core that it may use, and that none of `count` words names; stays where there is none.

    The words are `step` bytes apart and each one more than a core's number. What the thread may use is as it was.
    """
    usable = two_cpu_sets()
    others = usable + CPU_SET_BYTES
    if get_affinity(usable) != 0:
        return
    for at in range(0, CPU_SET_BYTES, 8):
        store_word(others + at, load_word(usable + at))
    for k in range(count):
        named = load_word(first + step * k) - 1
        if 0 <= named < 8 * CPU_SET_BYTES:
            at = others + (named >> 6) * 8
            store_word(at, load_word(at) & ~(1 << (named & 63)))
    some = 0
    for at in range(0, CPU_SET_BYTES, 8):
        some |= load_word(others + at)
    if some and set_affinity(others) == 0:
        set_affinity(usable)
