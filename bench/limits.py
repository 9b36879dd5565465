"""What one core and all of them can do at most: multiply-adds a second, and bytes read a second from each memory level.

    python -m bench.limits DTYPE THREADS        prints the figures as JSON

The peak is that of ACCUMULATORS independent sums of whole vectors in registers, which hide the latency of a
multiply-add, with nothing loaded or stored; on all threads at the same time, since a busy core may slow the others'
clock. A virtual machine's cores may for seconds be two threads of one core: the peak is the most of several moments,
as many as it takes until all threads together do what one does times their number, or MOMENTS. Reading is one core
adding up a buffer, vector by vector, that fills half of its level and was read before.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bench import machine
from rnnkit.kernels.cpu.simd import emit_load, emit_store, llvm_function, vector_bytes, vectors

ACCUMULATORS, READERS = 24, 8
SECONDS, REPEATS = 0.05, 8  # of one run, and how many of them the best is taken
MOMENTS, PAUSE, WHOLE = 20, 1.0, 0.95  # at most so many, seconds apart; the share of threads x one that is the whole
DEFAULT_SIZES = {"L1": 2**15, "L2": 2**20, "L3": 2**24}  # where the system tells none


def limits(dtype: str, threads: int) -> dict[str, Any]:
    """{"fma_gflops": {threads: rate}, "vector_bytes", "read_gb_s": {level: one core's rate}, "read_bytes": {level}}."""
    add_up, read = make_kernels(dtype)
    sizes = read_sizes(machine.describe()["caches"])
    return {
        "fma_gflops": {str(n): round(rate, 1) for n, rate in peaks(add_up, dtype, threads).items()},
        "vector_bytes": vector_bytes(),
        "read_gb_s": {level: round(read_gb_s(read, size), 1) for level, size in sizes.items()},
        "read_bytes": sizes,
    }


def read_sizes(caches: dict[str, str]) -> dict[str, int]:
    """Bytes of the buffer that stands for each level: half of it, at most 16 MiB; and for memory, four of the last."""
    sizes = {
        level: machine.cache_bytes(caches[level]) if level in caches else size for level, size in DEFAULT_SIZES.items()
    }
    halves = {level: min(size // 2, 2**24) for level, size in sizes.items()}
    return {**halves, "memory": min(4 * sizes["L3"], 2**28)}


def peaks(add_up: Any, dtype: str, threads: int) -> dict[int, float]:
    """The most that one thread and `threads` together did at any of the moments; see the module's docstring."""
    most = dict.fromkeys(sorted({1, threads}), 0.0)
    for moment in range(MOMENTS):
        if moment:
            time.sleep(PAUSE)
        most = {n: max(rate, fma_gflops(add_up, dtype, n)) for n, rate in most.items()}
        if most[threads] >= WHOLE * threads * most[1]:
            break
    return most


def fma_gflops(add_up: Any, dtype: str, threads: int) -> float:
    """The best rate of `threads` threads together, a multiply-add as two operations."""
    lanes = vectors(dtype).lanes
    flop = 2 * lanes * ACCUMULATORS
    out = np.full((threads, 64), 0.5, dtype)
    add_up(out[0].ctypes.data, 10)
    started = time.perf_counter()
    add_up(out[0].ctypes.data, 100_000)
    times = int(100_000 * SECONDS / (time.perf_counter() - started)) + 1
    return max(_together(add_up, out, times) for _ in range(REPEATS)) * flop * times * threads / 1e9


def _together(add_up: Any, out: np.ndarray, times: int) -> float:
    """Runs a second when every row of `out` has a thread of its own, from the first's start to the last's end."""
    ready, spans = threading.Barrier(len(out)), []

    def one(row: np.ndarray) -> None:
        ready.wait()
        started = time.perf_counter()
        add_up(row.ctypes.data, times)
        spans.append((started, time.perf_counter()))

    others = [threading.Thread(target=one, args=(row,)) for row in out[1:]]
    for thread in others:
        thread.start()
    one(out[0])
    for thread in others:
        thread.join()
    return 1 / (max(end for _, end in spans) - min(start for start, _ in spans))


def read_gb_s(read: Any, size: int) -> float:
    """The best rate of one core over a buffer of `size` bytes."""
    step = READERS * vector_bytes()
    whole = max(step, size // step * step)
    # Written, or the system would put one page of zeros behind all of it. As numbers, its bytes are normal ones.
    buffer = np.ones(whole + 64, np.uint8)
    out = np.zeros(64, np.uint8)
    start = buffer.ctypes.data + -buffer.ctypes.data % 64
    times = max(1, int(1e9 * SECONDS / whole))
    best = 0.0
    read(start, whole, 1, out.ctypes.data)
    for _ in range(REPEATS):
        started = time.perf_counter()
        read(start, whole, times, out.ctypes.data)
        best = max(best, whole * times / (time.perf_counter() - started) / 1e9)
    return best


@cache
def make_kernels(dtype: str) -> tuple[Any, Any]:
    """add_up(address, times): ACCUMULATORS multiply-adds `times` over; read(start, bytes, times, out)."""
    vec = vectors(dtype).type
    step = READERS * vector_bytes()

    @intrinsic
    def add_up(typing, address, times):
        def emit(context, builder, sig, args):
            fma = llvm_function(builder, "llvm.fma", vec.llvm, 3)
            # From memory, or LLVM would know the sums: x -> x / 2 + 1/2 stays a normal number for ever.
            factor = emit_load(builder, vec, args[0])

            def again(sums: list[ir.Value], _: ir.Value) -> list[ir.Value]:
                return [builder.call(fma, [s, factor, factor]) for s in sums]

            _store_sum(builder, _loop(builder, [factor] * ACCUMULATORS, args[1], again), args[0])
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), emit

    @intrinsic
    def add_buffer(typing, start, blocks, out):
        def emit(context, builder, sig, args):
            def again(sums: list[ir.Value], k: ir.Value) -> list[ir.Value]:
                at = builder.add(args[0], builder.mul(k, ir.Constant(k.type, step)))
                places = [builder.add(at, ir.Constant(k.type, i * vector_bytes())) for i in range(len(sums))]
                return [builder.fadd(s, emit_load(builder, vec, place)) for s, place in zip(sums, places, strict=True)]

            zeros = [ir.Constant(vec.llvm, [0.0] * vec.lanes)] * READERS
            _store_sum(builder, _loop(builder, zeros, args[1], again), args[2])
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp), emit

    run_add_up: Any = add_up  # typed by Numba, not by their Python signatures
    run_add_buffer: Any = add_buffer

    @numba.njit(nogil=True)
    def add_up_entry(address, times):
        run_add_up(address, times)

    @numba.njit(nogil=True)
    def read_entry(start, size, times, out):
        for _ in range(times):
            run_add_buffer(start, size // step, out)

    return add_up_entry, read_entry


def _loop(builder: ir.IRBuilder, sums: list[ir.Value], times: ir.Value, again: Any) -> list[ir.Value]:
    """Code that replaces the sums by again(sums, k) for k from 0 to `times`, at least once; the last ones."""
    before, body, after = builder.block, builder.append_basic_block("again"), builder.append_basic_block("done")
    builder.branch(body)
    builder.position_at_end(body)
    k = builder.phi(times.type)
    held = [builder.phi(s.type) for s in sums]
    for phi, value in zip([k, *held], [ir.Constant(times.type, 0), *sums], strict=True):
        phi.add_incoming(value, before)
    new, following = again(held, k), builder.add(k, ir.Constant(times.type, 1))
    for phi, value in zip([k, *held], [following, *new], strict=True):
        phi.add_incoming(value, body)
    builder.cbranch(builder.icmp_signed("<", following, times), body, after)
    builder.position_at_end(after)
    return new


def _store_sum(builder: ir.IRBuilder, sums: list[ir.Value], address: ir.Value) -> None:
    """All of them to memory, as one vector, so that none can be left out."""
    total = sums[0]
    for s in sums[1:]:
        total = builder.fadd(total, s)
    emit_store(builder, total, address)


if __name__ == "__main__":
    print(json.dumps(limits(sys.argv[1], int(sys.argv[2]))))
