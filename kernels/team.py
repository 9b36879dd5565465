"""Threads in native code: a job is a compiled function that each thread of a team calls with its own number.

    run(state, members, function, block)    calls function(block, k) for k in [0, members), 0 here; back when all are
    serve(state, index, seen)               what the thread `index` does: jobs as they come; back when idle too long
    book(state, members)                    before run: how many are asleep and must be woken; who is awake stays so
    wait(counter, goal)                     a barrier between the threads of one job

Threads that have just worked look for the next job for some 100 us before they sleep, so that the calls of a training
loop or of a stack of layers hand over within a microsecond, where waking a thread takes fifty. They give their core
away between looks after the first few, for whoever else wants it. Sleeping and waking is Python's (rnnkit/_threads.py).

`state` is the address of zeros, one cache line a word that different threads write. What is posted is a job's number
and its members in one word: a thread that is none of them must not look at the rest, which may be a later job's.
"""

from __future__ import annotations

import sys
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnkit.kernels.jit import entry, inner
from rnnkit.kernels.vector import INT64

LINE = 64
POSTED, BOOKED, FINISHED, JOB, ASLEEP = 0, LINE, 2 * LINE, 3 * LINE, 4 * LINE  # offsets of words; ASLEEP a line each
MEMBER_BITS = 16
# Looks before giving the core away, and before going to sleep. A look is a pause instruction (10 to 40 ns), or later a
# system call of about 300 ns.
SPINS, PATIENCE = 1500, 1800


def state_bytes(workers: int) -> int:
    """Size of `state` for so many threads besides the caller's."""
    return ASLEEP + LINE * (workers + 1)


def _address(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.inttoptr(value, INT64.as_pointer())


def _atomic(operation: str):
    """operation(address, value) -> the word's value before."""

    @intrinsic
    def atomic(typing, address, value):
        def emit(context, builder, sig, args):
            number = context.cast(builder, args[1], sig.args[1], types.int64)
            return builder.atomic_rmw(operation, _address(builder, args[0]), number, "seq_cst")

        return types.int64(types.intp, value), emit

    return atomic


@intrinsic
def _look(typing, address):
    """The word's value, and what was written before it was."""

    def emit(context, builder, sig, args):
        return builder.load_atomic(_address(builder, args[0]), "seq_cst", 8)

    return types.int64(types.intp), emit


@intrinsic
def _word(typing, address):
    def emit(context, builder, sig, args):
        return builder.load(_address(builder, args[0]))

    return types.int64(types.intp), emit


@intrinsic
def _set_word(typing, address, value):
    def emit(context, builder, sig, args):
        builder.store(context.cast(builder, args[1], sig.args[1], types.int64), _address(builder, args[0]))
        return context.get_dummy_value()

    return types.void(types.intp, value), emit


@intrinsic
def _call(typing, function, block, index):
    """function(block, index), of a compiled function's address."""

    def emit(context, builder, sig, args):
        function_type = ir.FunctionType(ir.VoidType(), [INT64, INT64])
        builder.call(builder.inttoptr(args[0], function_type.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), emit


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


add: Any = _atomic("add")  # typed by Numba, not by their Python signatures
exchange: Any = _atomic("xchg")
look: Any = _look
word: Any = _word
set_word: Any = _set_word
call: Any = _call
pause: Any = _pause
give_way: Any = _give_way


@inner
def await_count(counter, goal):
    """Until the word at `counter` has reached `goal`."""
    spins = 0
    while look(counter) < goal:
        spins += 1
        if spins < SPINS:
            pause()
        else:
            give_way()


@inner
def wait(counter, goal):
    """Adds one to the counter, then waits for `goal`: with P threads the n-th meeting's is n * P. It only grows."""
    add(counter, 1)
    await_count(counter, goal)


@entry(("serve",))
def serve(state, index, seen):
    """Does this thread's share of every job after the one numbered `seen`. Returns the last one's number, to sleep."""
    asleep, idle = state + ASLEEP + LINE * index, 0
    while True:
        posted = look(state + POSTED)
        if posted != seen:
            seen = posted
            if index < posted & ((1 << MEMBER_BITS) - 1):
                call(word(state + JOB), word(state + JOB + 8), index)
                add(state + FINISHED, 1)
                idle = 0
        elif idle < SPINS:
            idle += 1
            pause()
        elif idle < PATIENCE or look(state + BOOKED) > index:
            idle += 1
            give_way()
        else:
            # Said before BOOKED is read, as a caller says BOOKED before it reads this: one of the two sees the other.
            exchange(asleep, 1)
            if look(state + BOOKED) <= index or not exchange(asleep, 0):
                return seen
            idle = 0


@entry(("book",))
def book(state, members):
    """How many of the members were asleep. They count as awake now, and the word after theirs says: wake me.

    It says so until that is done: who is interrupted before leaves it to the next caller.
    """
    exchange(state + BOOKED, members)
    found = 0
    for k in range(1, members):
        flag = state + ASLEEP + LINE * k + 8
        if exchange(state + ASLEEP + LINE * k, 0):
            set_word(flag, 1)
        found += word(flag)
    return found


@inner
def run(state, members, function, block):
    """See the module's docstring. The members are booked and awake, or being woken."""
    if members > 1:
        set_word(state + JOB, function)
        set_word(state + JOB + 8, block)
        set_word(state + FINISHED, 0)
        number = (word(state + POSTED) >> MEMBER_BITS) + 1
        exchange(state + POSTED, (number << MEMBER_BITS) | members)
    call(function, block, 0)
    if members > 1:
        await_count(state + FINISHED, members - 1)
        exchange(state + BOOKED, 0)
