"""Whether weights are still those that were packed: a 64-bit digest of their bytes, as fast as they can be read.

    digest(address, size, seed, share, shares)      this share's part; the digest is the sum of all parts

Every 8 bytes w at position p give m = lo * hi + w, where lo and hi are the halves of w xor a key of p and of the array
(as in NH: Black et al., UMAC, CRYPTO 1999), mixed once more so that changes of two words do not cancel; the digest is
the wrapping sum of all. A sum does not mind who adds which part, or in what order. It is no cryptographic digest:
nobody is kept from making two arrays of one digest, but it takes intent.
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
_OF_ARRAY, _MIX = 0xD1B54A32D192ED03, 0xFF51AFD7ED558CCD


def _scattered(n: int) -> int:
    """The n-th number of splitmix64 (Steele et al., OOPSLA 2014): keys of one lattice would meet again and again."""
    z = n * _GOLDEN % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


_LANES = [_scattered(lane + 1) for lane in range(WORDS)]
_VECTOR = ir.VectorType(INT64, WORDS)


def _number(value: int) -> ir.Constant:
    return ir.Constant(INT64, value)


def _mixed(builder: ir.IRBuilder, words: ir.Value, keys: ir.Value) -> ir.Value:
    """m of each word, and its upper half brought into the lower one before it is spread again."""
    halves = builder.xor(words, keys)
    low = builder.and_(halves, splat(builder, _VECTOR, _number(2**32 - 1)))
    high = builder.lshr(halves, splat(builder, _VECTOR, _number(32)))
    m = builder.add(builder.mul(low, high), words)
    m = builder.xor(m, builder.lshr(m, splat(builder, _VECTOR, _number(32))))
    return builder.mul(m, splat(builder, _VECTOR, _number(_MIX)))


@intrinsic
def _blocks(typing, address, first, end, seed):
    """The sum over the blocks [first, end) of 64 bytes each."""

    def emit(context, builder, sig, args):
        address, first, end, seed = args
        total = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0] * WORDS))
        lanes = builder.add(
            ir.Constant(_VECTOR, _LANES), splat(builder, _VECTOR, builder.mul(seed, _number(_OF_ARRAY)))
        )
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
            m = (word + 1) * (2 * (at + seed * 1000003) + 1) * 0x9E3779B97F4A7C1
            total += (m ^ (m >> 29)) * 0x2545F4914F6CDD1D
    return total
