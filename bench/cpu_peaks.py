"""The CPU's peaks: multiply-adds per second on one core and on all, and one core's read bandwidth per memory level.

    python -m bench.cpu_peaks DTYPE THREADS        prints the figures as JSON

The multiply-add kernel has ACCUMULATORS independent sums of whole vectors in registers, which hide the latency of a
multiply-add, and neither loads nor stores. It runs on all threads at the same time, since a busy core may lower the
others' clock rate.

A virtual machine's cores may share one physical core for seconds. So the peak is the maximum over several trials. The
trials end when all threads together reach WHOLE of one thread's rate times their number, or after TRIALS.

The read kernel adds up a buffer vector by vector on one core. The buffer fills half of its memory level and was read
before.
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
from rnnkit.kernels.cpu.simd import vectors
from rnnkit.kernels.cpu.vec_type import llvm_function, vector_bytes
from rnnkit.kernels.cpu.vector_memory import emit_load, emit_store

# A multiply-add takes 4 or 5 cycles, and a core starts 2 per cycle. Without AVX-512 x86 has 16 vector registers.
ACCUMULATORS = 12
READERS = 8
# Seconds per measurement, and measurements of which the best counts.
SECONDS = 0.05
REPEATS = 8
# Trials at most, the seconds between two, and the share of threads x one thread's rate at which they end.
TRIALS = 20
PAUSE = 1.0
WHOLE = 0.95
# Cache sizes where the system does not report them.
DEFAULT_SIZES = {"L1": 2**15, "L2": 2**20, "L3": 2**24}


def measure(dtype: str, threads: int) -> dict[str, Any]:
    """{"fma_gflops": {threads: rate}, "vector_bytes", "read_gb_s": {level: one core's rate}, "read_bytes": {level}}."""
    add_up, read = make_kernels(dtype)
    sizes = read_sizes(machine.describe()["caches"])
    return {
        "fma_gflops": {str(n): round(rate, 1) for n, rate in fma_peaks(add_up, dtype, threads).items()},
        "vector_bytes": vector_bytes(),
        "read_gb_s": {level: round(read_gb_s(read, size), 1) for level, size in sizes.items()},
        "read_bytes": sizes,
    }


def read_sizes(caches: dict[str, str]) -> dict[str, int]:
    """Bytes of the buffer per level: half of the level, at most 16 MiB. For memory: four times the last cache."""
    sizes = {
        level: machine.cache_bytes(caches[level]) if level in caches else size for level, size in DEFAULT_SIZES.items()
    }
    halves = {level: min(size // 2, 2**24) for level, size in sizes.items()}
    return {**halves, "memory": min(4 * sizes["L3"], 2**28)}


def fma_peaks(add_up: Any, dtype: str, threads: int) -> dict[int, float]:
    """The highest rate over all trials, of one thread and of `threads` together; see the module's docstring."""
    most = dict.fromkeys(sorted({1, threads}), 0.0)
    for trial in range(TRIALS):
        if trial:
            time.sleep(PAUSE)
        most = {n: max(rate, fma_gflops(add_up, dtype, n)) for n, rate in most.items()}
        if most[threads] >= WHOLE * threads * most[1]:
            break
    return most


def fma_gflops(add_up: Any, dtype: str, threads: int) -> float:
    """The best rate of `threads` threads together. A multiply-add counts as two operations."""
    lanes = vectors(dtype).lanes
    flop = 2 * lanes * ACCUMULATORS
    out = np.full((threads, 64), 0.5, dtype)
    add_up(out[0].ctypes.data, 10)
    started = time.perf_counter()
    add_up(out[0].ctypes.data, 100_000)
    times = int(100_000 * SECONDS / (time.perf_counter() - started)) + 1
    return max(_together(add_up, out, times) for _ in range(REPEATS)) * flop * times * threads / 1e9


def _together(add_up: Any, out: np.ndarray, times: int) -> float:
    """Runs per second, with one thread per row of `out`, from the first thread's start to the last one's end."""
    ready = threading.Barrier(len(out))
    spans = []

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
    # Written, since the system maps unwritten pages to one page of zeros. Read as numbers, bytes of 1 are normal.
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
    """add_up(address, times): ACCUMULATORS multiply-adds, `times` times. read(start, bytes, times, out)."""
    vec = vectors(dtype).type
    step = READERS * vector_bytes()

    @intrinsic
    def add_up(typing, address, times):
        def emit(context, builder, sig, args):
            fma = llvm_function(builder, "llvm.fma", vec.llvm, 3)
            # Loaded from memory, since LLVM would compute a constant's sums. x -> x / 2 + 1/2 remains a normal number.
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
    """Emits a loop, sums = again(sums, k) for k from 0 to `times`, at least once. Gives the last sums."""
    before = builder.block
    body = builder.append_basic_block("again")
    after = builder.append_basic_block("done")
    builder.branch(body)
    builder.position_at_end(body)
    k = builder.phi(times.type)
    held = [builder.phi(s.type) for s in sums]
    for phi, value in zip([k, *held], [ir.Constant(times.type, 0), *sums], strict=True):
        phi.add_incoming(value, before)
    new = again(held, k)
    following = builder.add(k, ir.Constant(times.type, 1))
    for phi, value in zip([k, *held], [following, *new], strict=True):
        phi.add_incoming(value, body)
    builder.cbranch(builder.icmp_signed("<", following, times), body, after)
    builder.position_at_end(after)
    return new


def _store_sum(builder: ir.IRBuilder, sums: list[ir.Value], address: ir.Value) -> None:
    """Stores the total of all sums as one vector, so that LLVM can leave out none."""
    total = sums[0]
    for s in sums[1:]:
        total = builder.fadd(total, s)
    emit_store(builder, total, address)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
