"""Lane-wise operations on Vecs that the activations are made of: limits, signs, polynomials and powers of two.

They are generic LLVM, a few instructions on every host. The comparisons propagate NaN, and are written so that each is
one instruction on x86, whose min and max return the second operand if either is NaN.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from rnnkit.kernels.cpu.simd import vectors
from rnnkit.kernels.cpu.vec_type import as_vector, llvm_function


@cache
def elementwise(dtype: str) -> SimpleNamespace:
    """The functions on Vecs of a dtype ("float32" or "float64"), callable from Numba code.

    clamp_min(low)(a), clamp_max(high)(a)   max(a, low) and min(a, high); NaN stays NaN
    relu(a)                                 0 where a <= 0, else a
    passed(h, dh)                           the gradient of relu: 0 where h <= 0, else dh
    where_lt(a, b, x, y), where_le(...)     x where a < b (a <= b), else y; a NaN is neither. Any of them may be numbers
    negative_abs(a), copysign(a, b)         -|a|; |a| with the sign of b
    polynomial(coefficients)(a)             by Horner's rule, highest power first
    power_of_two(t), scale_exponent(a, n)   2^k and a 2^n, computed on the bits
    """
    return SimpleNamespace(**_limits(dtype), **_signs(dtype), **_numbers(dtype))


def _limits(dtype: str) -> dict[str, Any]:
    vec = vectors(dtype).type

    def limit(relation: str, bound: float) -> Any:
        @intrinsic
        def limited(typing, a):
            def emit(context, builder, sig, args):
                beyond = builder.fcmp_ordered(relation, vec.constant(bound), args[0])
                return builder.select(beyond, vec.constant(bound), args[0])

            return vec(vec), emit

        return limited

    @intrinsic
    def relu(typing, a):
        def emit(context, builder, sig, args):
            return builder.select(builder.fcmp_ordered("<=", args[0], vec.constant(0)), vec.constant(0), args[0])

        return vec(vec), emit

    @intrinsic
    def passed(typing, h, dh):
        def emit(context, builder, sig, args):
            return builder.select(builder.fcmp_ordered("<=", args[0], vec.constant(0)), vec.constant(0), args[1])

        return vec(vec, vec), emit

    def where(relation: str) -> Any:
        @intrinsic
        def chosen(typing, a, b, x, y):
            def emit(context, builder, sig, args):
                a, b, x, y = (as_vector(context, builder, v, t, vec) for v, t in zip(args, sig.args, strict=True))
                return builder.select(builder.fcmp_ordered(relation, a, b), x, y)

            return vec(a, b, x, y), emit

        return chosen

    return {
        "where_lt": where("<"),
        "where_le": where("<="),
        "clamp_min": lambda low: limit(">", low),
        "clamp_max": lambda high: limit("<", high),
        "relu": relu,
        "passed": passed,
    }


def _signs(dtype: str) -> dict[str, Any]:
    vec = vectors(dtype).type

    @intrinsic
    def negative_abs(typing, a):
        def emit(context, builder, sig, args):
            return builder.fneg(builder.call(llvm_function(builder, "llvm.fabs", vec.llvm, 1), args))

        return vec(vec), emit

    @intrinsic
    def copysign(typing, a, b):
        def emit(context, builder, sig, args):
            return builder.call(llvm_function(builder, "llvm.copysign", vec.llvm, 2), args)

        return vec(vec, vec), emit

    return {"negative_abs": negative_abs, "copysign": copysign}


def _numbers(dtype: str) -> dict[str, Any]:
    vec = vectors(dtype).type
    mantissa = 23 if dtype == "float32" else 52
    ints = vec.llvm_int

    def polynomial(coefficients: tuple[float, ...]) -> Any:
        @intrinsic
        def evaluated(typing, a):
            def emit(context, builder, sig, args):
                # Not llvm.fma: on a host without that instruction it would be a function call per lane.
                multiply_add = llvm_function(builder, "llvm.fmuladd", vec.llvm, 3)
                value = vec.constant(coefficients[0])
                for c in coefficients[1:]:
                    value = builder.call(multiply_add, [value, args[0], vec.constant(c)])
                return value

            return vec(vec), emit

        return evaluated

    @intrinsic
    def power_of_two(typing, t):
        """2^k, from t = 1.5 * 2^mantissa + bias + k: the low bits of t, shifted into the exponent."""

        def emit(context, builder, sig, args):
            k = builder.shl(builder.bitcast(args[0], ints), ir.Constant(ints, [mantissa] * vec.lanes))
            return builder.bitcast(k, vec.llvm)

        return vec(vec), emit

    @intrinsic(prefer_literal=True)
    def scale_exponent(typing, a, n):
        """a 2^n for a literal n, by an addition to the exponent. Both a and the result must be normal numbers."""

        def emit(context, builder, sig, args):
            shift = ir.Constant(ints, [n.literal_value << mantissa] * vec.lanes)
            return builder.bitcast(builder.add(builder.bitcast(args[0], ints), shift), vec.llvm)

        return vec(vec, n), emit

    return {"polynomial": polynomial, "power_of_two": power_of_two, "scale_exponent": scale_exponent}
