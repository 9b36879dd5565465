"""A spin barrier between the threads that share one sequence's hidden units.

    wait(counter, goal)     adds one to the counter at that address, then waits until it has reached `goal`

The counter only grows: with P threads the n-th meeting has the goal n * P, so nothing is ever reset. A thread spins for
some microseconds, which is how long a step takes, and then gives its core away between looks, so that on a busy machine
the thread it waits for can run there.
"""

from __future__ import annotations

import sys
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnkit.kernels.jit import inner

SPINS = 2000


@intrinsic
def _arrive(typing, counter):
    def emit(context, builder, sig, args):
        at = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.atomic_rmw("add", at, ir.Constant(ir.IntType(64), 1), "acq_rel")
        return context.get_dummy_value()

    return types.void(types.intp), emit


@intrinsic
def _arrived(typing, counter):
    def emit(context, builder, sig, args):
        at = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(at, "acquire", 8)

    return types.int64(types.intp), emit


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
def _give_way(typing):
    """Lets another thread have this core: sched_yield, or Windows' SwitchToThread."""

    def emit(context, builder, sig, args):
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        function_type = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), [])
        return context.get_dummy_value()

    return types.void(), emit


arrive: Any = _arrive  # typed by Numba, not by their Python signatures
arrived: Any = _arrived
pause: Any = _pause
give_way: Any = _give_way


@inner
def wait(counter, goal):
    """See the module's docstring."""
    arrive(counter)
    spins = 0
    while arrived(counter) < goal:
        spins += 1
        if spins < SPINS:
            pause()
        else:
            give_way()
