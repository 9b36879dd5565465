"""What activations are made of: limits, signs, polynomials and powers of two of Vecs, lane by lane.

Generic LLVM, which every host has in a few instructions. Comparisons are written so that NaN stays NaN and x86, whose
min and max return the second operand at NaN, needs one instruction for each.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from llvmlite import ir
from numba.extending import intrinsic

from rnnkit.kernels.cpu.simd import llvm_function, vectors


@cache
def elementwise(dtype: str) -> SimpleNamespace:
    """The functions on Vecs of a dtype ("float32" or "float64"), callable from Numba code.

    at_least(low)(a), at_most(high)(a)      limits; NaN stays NaN
    relu(a), passed(h, dh)                  0 where a <= 0, else a; 0 where h <= 0, else dh
    negative(a), signed_as(a, b)            -|a|; |a| with the sign of b
    polynomial(coefficients)(a)             by Horner's rule, highest power first
    power_of_two(t), scaled(a, n)           made on the bits; see there
    """
    return SimpleNamespace(**_limits(dtype), **_signs(dtype), **_numbers(dtype))


def _limits(dtype: str) -> dict:
    vec = vectors(dtype).type

    def limit(relation: str, bound: float):
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

    return {
        "at_least": lambda low: limit(">", low),
        "at_most": lambda high: limit("<", high),
        "relu": relu,
        "passed": passed,
    }


def _signs(dtype: str) -> dict:
    vec = vectors(dtype).type

    @intrinsic
    def negative(typing, a):
        def emit(context, builder, sig, args):
            return builder.fneg(builder.call(llvm_function(builder, "llvm.fabs", vec.llvm, 1), args))

        return vec(vec), emit

    @intrinsic
    def signed_as(typing, a, b):
        def emit(context, builder, sig, args):
            return builder.call(llvm_function(builder, "llvm.copysign", vec.llvm, 2), args)

        return vec(vec, vec), emit

    return {"negative": negative, "signed_as": signed_as}


def _numbers(dtype: str) -> dict:
    vec = vectors(dtype).type
    mantissa, ints = (23 if dtype == "float32" else 52), vec.llvm_int

    def polynomial(coefficients: tuple[float, ...]):
        @intrinsic
        def evaluated(typing, a):
            def emit(context, builder, sig, args):
                # Not llvm.fma: a host without that instruction would call a function for each lane.
                multiply_add = llvm_function(builder, "llvm.fmuladd", vec.llvm, 3)
                value = vec.constant(coefficients[0])
                for c in coefficients[1:]:
                    value = builder.call(multiply_add, [value, args[0], vec.constant(c)])
                return value

            return vec(vec), emit

        return evaluated

    @intrinsic
    def power_of_two(typing, t):
        """2^k, from t = 1.5 * 2^mantissa + bias + k: the low bits of t are the exponent's, the others drop out."""

        def emit(context, builder, sig, args):
            k = builder.shl(builder.bitcast(args[0], ints), ir.Constant(ints, [mantissa] * vec.lanes))
            return builder.bitcast(k, vec.llvm)

        return vec(vec), emit

    @intrinsic(prefer_literal=True)
    def scaled(typing, a, n):
        """a 2^n, n literal, by an addition to the exponent: a and the result must be normal numbers."""

        def emit(context, builder, sig, args):
            step = ir.Constant(ints, [n.literal_value << mantissa] * vec.lanes)
            return builder.bitcast(builder.add(builder.bitcast(args[0], ints), step), vec.llvm)

        return vec(vec, n), emit

    return {"polynomial": polynomial, "power_of_two": power_of_two, "scaled": scaled}
