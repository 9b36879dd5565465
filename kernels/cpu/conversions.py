"""Conversions between 16-bit numbers in memory and float32 in registers, on vectors: the only code that knows the bits.

Kernels compute with subnormal float32 numbers as zeros (kernels/cpu/system.py). float16 has no number that small, so
these conversions keep all of its values. Of bfloat16, subnormal numbers pass through the conversions as they are.
Rounding is to the nearest number, to even in a tie, and NaN stays NaN.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

INT16 = ir.IntType(16)
INT32 = ir.IntType(32)
_FLOAT = ir.FloatType()


class _BFloat(ir.Type):
    """LLVM's type `bfloat`, which llvmlite does not have. It only stands in the types of intrinsics."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BFLOAT = _BFloat()


@cache
def converts_float16(width: int) -> bool:
    """Whether the host's vectors of that many bytes have instructions for float16: F16C on x86, and all 64-bit ARM.

    Processors with AVX2 have F16C. Where there is none, LLVM would call a library for each number.
    """
    return width > 16 or llvm.get_process_triple().startswith(("aarch64", "arm64"))


def _all(lanes: int, value: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(INT32, lanes), [value] * lanes)


def _floats(lanes: int) -> ir.VectorType:
    return ir.VectorType(_FLOAT, lanes)


def widen(builder: ir.IRBuilder, dtype: str, value: ir.Value) -> ir.Value:
    """(lanes x i16) as float32. Exact."""
    lanes = value.type.count
    if dtype == "bfloat16":
        return low_as_float(builder, builder.zext(value, ir.VectorType(INT32, lanes)))
    if converts_float16(4 * lanes):
        return builder.fpext(builder.bitcast(value, ir.VectorType(ir.HalfType(), lanes)), _floats(lanes))
    return _widen_float16(builder, value, lanes)


def narrow(builder: ir.IRBuilder, dtype: str, value: ir.Value) -> ir.Value:
    """float32 rounded to (lanes x i16)."""
    lanes = value.type.count
    if dtype == "bfloat16":
        return _narrow_bfloat16(builder, value, lanes)
    if converts_float16(4 * lanes):
        half = builder.fptrunc(value, ir.VectorType(ir.HalfType(), lanes))
        return builder.bitcast(half, ir.VectorType(INT16, lanes))
    return _narrow_float16(builder, value, lanes)


def low_as_float(builder: ir.IRBuilder, words: ir.Value) -> ir.Value:
    """The bfloat16 in the low halves of 32-bit words, as float32."""
    lanes = words.type.count
    return builder.bitcast(builder.shl(words, _all(lanes, 16)), _floats(lanes))


def high_as_float(builder: ir.IRBuilder, words: ir.Value) -> ir.Value:
    """The bfloat16 in the high halves of 32-bit words, as float32."""
    lanes = words.type.count
    return builder.bitcast(builder.and_(words, _all(lanes, 0xFFFF0000)), _floats(lanes))


def _is_nan(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.fcmp_unordered("uno", value, value)


def _narrow_bfloat16(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """Adds half a unit, less one unless the result would be odd, and cuts. A NaN that is cut keeps its quiet bit."""
    bits = builder.bitcast(value, ir.VectorType(INT32, lanes))
    high = builder.lshr(bits, _all(lanes, 16))
    odd = builder.and_(high, _all(lanes, 1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, _all(lanes, 0x7FFF))), _all(lanes, 16))
    quiet = builder.or_(high, _all(lanes, 0x40))
    return builder.trunc(builder.select(_is_nan(builder, value), quiet, rounded), ir.VectorType(INT16, lanes))


def _widen_float16(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """By integer operations, and for subnormal numbers an exact subtraction of two normal ones."""
    ints, floats = ir.VectorType(INT32, lanes), _floats(lanes)
    word = builder.zext(value, ints)
    sign = builder.shl(builder.and_(word, _all(lanes, 0x8000)), _all(lanes, 16))
    rest = builder.and_(word, _all(lanes, 0x7FFF))
    moved = builder.shl(rest, _all(lanes, 13))
    normal = builder.add(moved, _all(lanes, (127 - 15) << 23))
    special = builder.or_(moved, _all(lanes, 0x7F800000))  # infinities and NaN
    base = _all(lanes, (127 - 14) << 23)
    small = builder.fsub(builder.bitcast(builder.add(moved, base), floats), builder.bitcast(base, floats))
    is_special = builder.icmp_unsigned(">=", rest, _all(lanes, 0x7C00))
    is_small = builder.icmp_unsigned("<", rest, _all(lanes, 0x0400))
    result = builder.select(is_special, special, builder.select(is_small, builder.bitcast(small, ints), normal))
    return builder.bitcast(builder.or_(result, sign), floats)


def _narrow_float16(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """By integer operations, and for subnormal results a sum whose last place is theirs."""
    ints, floats = ir.VectorType(INT32, lanes), _floats(lanes)
    bits = builder.bitcast(value, ints)
    sign = builder.lshr(builder.and_(bits, _all(lanes, 0x80000000)), _all(lanes, 16))
    size = builder.and_(bits, _all(lanes, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(size, _all(lanes, 13)), _all(lanes, 1))
    rebased = builder.sub(size, _all(lanes, (127 - 15) << 23))
    normal = builder.lshr(builder.add(rebased, builder.add(odd, _all(lanes, 0xFFF))), _all(lanes, 13))
    half = _all(lanes, 0x3F000000)
    sum_ = builder.fadd(builder.bitcast(size, floats), builder.bitcast(half, floats))
    small = builder.sub(builder.bitcast(sum_, ints), half)
    result = builder.select(builder.icmp_unsigned("<", size, _all(lanes, (127 - 14) << 23)), small, normal)
    result = builder.select(builder.icmp_unsigned(">=", size, _all(lanes, 0x47800000)), _all(lanes, 0x7C00), result)
    result = builder.select(_is_nan(builder, value), _all(lanes, 0x7E00), result)
    return builder.trunc(builder.or_(result, sign), ir.VectorType(INT16, lanes))


@cache
def has_dot_product(width: int) -> bool:
    """Whether code is compiled for AVX512_BF16, whose vdpbf16ps multiplies pairs of bfloat16 and adds in float32."""
    from numba.core.registry import cpu_target

    features = cpu_target.target_context.codegen().magic_tuple()[2]
    return width == 64 and "+avx512bf16" in features.split(",")


def emit_dot(builder: ir.IRBuilder, total: Any, a: ir.Value, w: ir.Value) -> ir.Value:
    """total + a_high w_high + a_low w_low, for 32-bit words that each hold two bfloat16. Needs `has_dot_product`."""
    lanes = a.type.count
    pairs = ir.VectorType(BFLOAT, 2 * lanes)
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    function_type = ir.FunctionType(_floats(lanes), [_floats(lanes), pairs, pairs])
    function = builder.module.globals.get(name) or ir.Function(builder.module, function_type, name)
    return builder.call(function, [total, builder.bitcast(a, pairs), builder.bitcast(w, pairs)])
