"""A 64-bit digest of the weights' bytes, which tells whether packed weights are stale.

    digest(address, size, seed, share, shares)      one thread's part; the digest is the sum of all parts

The bytes are read as blocks of 8 lanes, each a 64-bit word w, and 64 blocks form a segment. Each lane of a segment has
two sums over its blocks. The first adds lo * hi, the halves of w xor a key of the block and lane (as in NH: Black et
al., UMAC, CRYPTO 1999). It detects words that were exchanged or that compensate each other, except with probability
2^-32. The second adds w itself and detects any single changed word. Both are mixed with a key of the segment, the lane
and the array into 64 bits. The digest is the wrapping sum of these, so it does not depend on which thread adds which
part, or in what order. It is not cryptographic: two arrays of one digest can be constructed deliberately.

The cost is five operations per 64 bytes, so that the digest takes little longer than reading the weights.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnkit.kernels.cpu.conversions import INT16
from rnnkit.kernels.cpu.jit import outer
from rnnkit.kernels.cpu.memory import minimum
from rnnkit.kernels.cpu.vec_type import INT32, INT64, splat

LANES = 8  # 64-bit words per block
SEGMENT = 64  # blocks
BLOCK = 8 * LANES  # bytes
_GOLDEN = 0x9E3779B97F4A7C15
_ARRAY_KEY = 0xD1B54A32D192ED03
_MIX = 0xFF51AFD7ED558CCD


def _scattered(n: int) -> int:
    """The n-th number of splitmix64 (Steele et al., OOPSLA 2014). Multiples of one number would collide as keys."""
    z = n * _GOLDEN % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


_LANE_KEYS = [_scattered(lane + 1) for lane in range(LANES)]
_BLOCK_KEYS = [[_scattered(100 + LANES * block + lane) for lane in range(LANES)] for block in range(SEGMENT)]
_VECTOR = ir.VectorType(INT64, LANES)


def _number(value: int) -> ir.Constant:
    return ir.Constant(INT64, value)


def _all_lanes(builder: ir.IRBuilder, value: int) -> ir.Value:
    return splat(builder, _VECTOR, _number(value))


def _keys(module: ir.Module) -> ir.Value:
    """The keys of a segment's blocks, a constant of the compiled module."""
    rows = [ir.Constant(_VECTOR, keys) for keys in _BLOCK_KEYS]
    return cgutils.global_constant(module, "digest_keys", ir.Constant(ir.ArrayType(_VECTOR, SEGMENT), rows))


def _emit_sums(builder: ir.IRBuilder, address: ir.Value, blocks: ir.Value) -> list[ir.Value]:
    """The two sums of each lane over `blocks` blocks."""
    keys = _keys(builder.module)
    sums = [cgutils.alloca_once_value(builder, _all_lanes(builder, 0)) for _ in range(2)]
    with cgutils.for_range(builder, blocks) as loop:
        at = builder.add(address, builder.mul(loop.index, _number(BLOCK)))
        words = builder.load(builder.inttoptr(at, _VECTOR.as_pointer()))
        words.align = 2
        halves = builder.xor(words, builder.load(builder.gep(keys, [_number(0), loop.index])))
        low = builder.and_(halves, _all_lanes(builder, 2**32 - 1))
        product = builder.mul(low, builder.lshr(halves, _all_lanes(builder, 32)))
        for total, value in zip(sums, (product, words), strict=True):
            builder.store(builder.add(builder.load(total), value), total)
    return [builder.load(total) for total in sums]


@intrinsic
def _segment_digest(typing, address, blocks, index, seed):
    """The digest of the segment number `index`, of `blocks` blocks."""

    def emit(context, builder, sig, args):
        address, blocks, index, seed = args
        products, words = _emit_sums(builder, address, blocks)
        key = builder.add(builder.mul(index, _number(_GOLDEN)), builder.mul(seed, _number(_ARRAY_KEY)))
        mixed = builder.xor(products, builder.add(ir.Constant(_VECTOR, _LANE_KEYS), splat(builder, _VECTOR, key)))
        for value, shift in ((words, 32), (_all_lanes(builder, 0), 29)):
            mixed = builder.xor(mixed, builder.lshr(mixed, _all_lanes(builder, shift)))
            mixed = builder.add(builder.mul(mixed, _all_lanes(builder, _MIX)), value)
        mixed = builder.xor(mixed, builder.lshr(mixed, _all_lanes(builder, 32)))
        result = _number(0)
        for lane in range(LANES):
            result = builder.add(result, builder.extract_element(mixed, ir.Constant(INT32, lane)))
        return result

    return types.int64(*[types.int64] * 4), emit


def _load_bytes(kind: ir.IntType) -> Any:
    @intrinsic
    def load(typing, address):
        def emit(context, builder, sig, args):
            word = builder.load(builder.inttoptr(args[0], kind.as_pointer()))
            word.align = 2
            return builder.zext(word, INT64)

        return types.int64(types.int64), emit

    return load


# `Any`, since Numba types these calls, and not the Python signatures.
segment_digest: Any = _segment_digest
four_bytes: Any = _load_bytes(INT32)
two_bytes: Any = _load_bytes(INT16)


@outer
def digest(address, size, seed, share, shares):
    """See the module's docstring. size: bytes, a multiple of 2. The last share adds the bytes after whole blocks."""
    whole = size // BLOCK
    segments = (whole + SEGMENT - 1) // SEGMENT
    total = 0
    for k in range(segments * share // shares, segments * (share + 1) // shares):
        total += segment_digest(address + k * SEGMENT * BLOCK, minimum(SEGMENT, whole - k * SEGMENT), k, seed)
    if share == shares - 1:
        for at in range(whole * BLOCK, size, 4):
            word = four_bytes(address + at) if at + 4 <= size else two_bytes(address + at)
            m = (word + 1) * (2 * (at + seed * 1000003) + 1) * 0x9E3779B97F4A7C1
            total += (m ^ (m >> 29)) * 0x2545F4914F6CDD1D
    return total
