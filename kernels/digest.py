"""Whether weights are still those that were packed: a 64-bit digest of their bytes, as fast as they can be read.

    digest(address, size, seed, share, shares)      this share's part; the digest is the sum of all parts

Every 8 bytes w at position p give lo * hi + w, where lo and hi are the halves of w xor a key of p (the scheme of NH:
Black et al., UMAC, CRYPTO 1999), and the sum wraps. A sum does not mind who adds which part, or in what order. It is
no cryptographic digest: nobody is kept from making two arrays of one digest; that two do by chance has 1 in 2^64.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnkit.kernels.jit import outer
from rnnkit.kernels.vector import INT64, splat

WORDS = 8
BLOCK = 8 * WORDS
_GOLDEN = 0x9E3779B97F4A7C15
_LANES = [(_GOLDEN * (2 * lane + 1) ** 3) & (2**64 - 1) for lane in range(WORDS)]
_VECTOR = ir.VectorType(INT64, WORDS)


def _number(value: int) -> ir.Constant:
    return ir.Constant(INT64, value)


def _mixed(builder: ir.IRBuilder, words: ir.Value, keys: ir.Value) -> ir.Value:
    """lo * hi + w of each word."""
    halves = builder.xor(words, keys)
    low = builder.and_(halves, splat(builder, _VECTOR, _number(2**32 - 1)))
    high = builder.lshr(halves, splat(builder, _VECTOR, _number(32)))
    return builder.add(builder.mul(low, high), words)


@intrinsic
def _blocks(typing, address, first, end, seed):
    """The sum over the blocks [first, end) of 64 bytes each."""

    def emit(context, builder, sig, args):
        address, first, end, seed = args
        total = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0] * WORDS))
        lanes = builder.add(ir.Constant(_VECTOR, _LANES), splat(builder, _VECTOR, seed))
        with cgutils.for_range_slice(builder, first, end, _number(1), intp=INT64) as (block, _):
            keys = builder.add(lanes, splat(builder, _VECTOR, builder.mul(block, _number(_GOLDEN))))
            at = builder.add(address, builder.mul(block, _number(BLOCK)))
            words = builder.load(builder.inttoptr(at, _VECTOR.as_pointer()))
            words.align = 4
            builder.store(builder.add(builder.load(total), _mixed(builder, words, keys)), total)
        last = builder.load(total)
        result = _number(0)
        for lane in range(WORDS):
            result = builder.add(result, builder.extract_element(last, ir.Constant(ir.IntType(32), lane)))
        return result

    return types.int64(*[types.int64] * 4), emit


@intrinsic
def _four_bytes(typing, address):
    def emit(context, builder, sig, args):
        word = builder.load(builder.inttoptr(args[0], ir.IntType(32).as_pointer()))
        return builder.zext(word, INT64)

    return types.int64(types.int64), emit


blocks: Any = _blocks  # typed by Numba, not by their Python signatures
four_bytes: Any = _four_bytes


@outer
def digest(address, size, seed, share, shares):
    """See the module's docstring. size: bytes, a multiple of 4."""
    whole = size // BLOCK
    total = blocks(address, whole * share // shares, whole * (share + 1) // shares, seed)
    if share == shares - 1:
        for at in range(whole * BLOCK, size, 4):
            word = four_bytes(address + at)
            total += (word + 1) * (2 * (at + seed) + 1) * 0x9E3779B97F4A7C1
    return total
