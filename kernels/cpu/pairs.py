"""Copies of bfloat16 rows in pairs: rows k and k + 1 become one row of 32-bit words. See kernels/cpu/formats.py."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.memory import minimum
from rnnkit.kernels.cpu.simd import vectors
from rnnkit.kernels.cpu.vec_type import INT32
from rnnkit.kernels.cpu.vector_memory import first_words_16, words_16


def _make_load_pairs(whole: bool) -> Any:
    """load_pairs(low, high, both, n): words, as the bits of a Vec. Their high halves are 0 unless `both`."""
    vec = vectors("float32").type
    ints = ir.VectorType(INT32, vec.lanes)

    @intrinsic
    def load_pairs(typing, low, high, both, n):
        def emit(context, builder, sig, args):
            *addresses, both, n = args
            halves = []
            for address in addresses:
                half = words_16(builder, vec.lanes, address) if whole else first_words_16(builder, vec, address, n)
                halves.append(builder.zext(half, ints))
            high = builder.shl(halves[1], ir.Constant(ints, [16] * vec.lanes))
            is_both = builder.icmp_signed("!=", both, ir.Constant(both.type, 0))
            high = builder.select(is_both, high, ir.Constant(ints, [0] * vec.lanes))
            return builder.bitcast(builder.or_(halves[0], high), vec.llvm)

        return vec(*[types.intp] * 4), emit

    return load_pairs


@cache
def pair_copies() -> SimpleNamespace:
    """Functions on addresses; rows are K rows of `count` bfloat16, strides are in bytes.

    copy_pairs(source, source_row, target, target_row, K, count)
        (K + 1) / 2 rows of words, each padded to whole vectors with zeros
    copy_pairs_and_sum(…, sums)
        the same, and sums (count,) float32 += the sums over K
    load_first_pairs(low, high, both, n)
        n words of the elements from `low` on and, where `both`, from `high` on
    """
    words = vectors("float32")  # for stores: moving a word changes none of its bits
    numbers = vectors("bfloat16")
    load_pairs = _make_load_pairs(True)
    load_first_pairs = _make_load_pairs(False)
    store = words.whole.store
    load_sums = words.first.load
    store_sums = words.first.store
    load_numbers = numbers.first.load
    zero = words.zero
    lanes = words.lanes

    @inner
    def copy_pairs(source, source_row, target, target_row, K, count):
        whole = count // lanes * lanes
        for k in range(0, K, 2):
            both = k + 1 < K
            a = source + k * source_row
            b = a + source_row if both else a
            to = target + k // 2 * target_row
            for n in range(0, whole, lanes):
                store(load_pairs(a + 2 * n, b + 2 * n, both, lanes), to + 4 * n, lanes)
            if whole < count:
                left = count - whole
                store(load_first_pairs(a + 2 * whole, b + 2 * whole, both, left), to + 4 * whole, lanes)

    @inner
    def copy_pairs_and_sum(source, source_row, target, target_row, K, count, sums):
        copy_pairs(source, source_row, target, target_row, K, count)
        for n in range(0, count, lanes):
            left = minimum(lanes, count - n)
            total = zero()
            for k in range(K):
                total = total + load_numbers(source + k * source_row + 2 * n, left)
            store_sums(load_sums(sums + 4 * n, left) + total, sums + 4 * n, left)

    return SimpleNamespace(
        copy_pairs=copy_pairs, copy_pairs_and_sum=copy_pairs_and_sum, load_first_pairs=load_first_pairs
    )
