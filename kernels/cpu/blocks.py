"""Vectors of a row's gates as tuples, lane by lane, and sums over all lanes: what layer normalisation is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.simd import vectors
from rnnkit.kernels.cpu.vec_type import INT32, llvm_function

_CONTRACT = ("contract",)


@cache
def block_functions(dtype: str) -> SimpleNamespace:
    """The functions on Vecs of computed numbers ("float32" or "float64").

    multiply(a, b)                  a b of two tuples
    standard(a, mean, scale)        (a - mean) scale of a tuple
    standard_backward(d, hat, m1, m2, scale)
                                    scale (d - m1 - hat m2) of tuples d and hat
    total(a)                        the sum of a tuple's vectors
    spread(a)                       the sum of a Vec's lanes, in every lane
    inverse_root(a)                 1 / sqrt(a)
    moments(address, count, eps)    mean of `count` numbers, and 1 / sqrt(variance + eps), in every lane
    """
    v = vectors(dtype)
    vec = v.type
    lanes = v.lanes

    def of_tuples(tuples: int, others: int, emit_one: Callable[..., ir.Value]) -> Any:
        """emit_one(builder, one vector of each tuple, the other arguments), for each vector."""

        def emit_all(context, builder, sig, args):
            rows = zip(*(cgutils.unpack_tuple(builder, a, len(sig.args[0])) for a in args[:tuples]), strict=True)
            values = [emit_one(builder, *row, *args[tuples:]) for row in rows]
            return context.make_tuple(builder, sig.return_type, values)

        if (tuples, others) == (2, 0):

            @intrinsic
            def multiply(typing, a, b):
                return a(a, b), emit_all

            return multiply

        if (tuples, others) == (1, 2):

            @intrinsic
            def standard(typing, a, mean, scale):
                return a(a, vec, vec), emit_all

            return standard

        @intrinsic
        def standard_backward(typing, d, hat, m1, m2, scale):
            return d(d, hat, vec, vec, vec), emit_all

        return standard_backward

    def emit_standard(b: ir.IRBuilder, a: ir.Value, mean: ir.Value, scale: ir.Value) -> ir.Value:
        return b.fmul(b.fsub(a, mean), scale)

    def emit_backward(b: ir.IRBuilder, d: Any, hat: Any, m1: Any, m2: Any, scale: Any) -> ir.Value:
        rest = b.fsub(b.fsub(d, m1), b.fmul(hat, m2, flags=_CONTRACT), flags=_CONTRACT)
        return b.fmul(rest, scale)

    @intrinsic
    def total(typing, a):
        def emit(context, builder, sig, args):
            value, *rest = cgutils.unpack_tuple(builder, args[0], len(a))
            for other in rest:
                value = builder.fadd(value, other)
            return value

        return vec(a), emit

    @intrinsic
    def spread(typing, a):
        def emit(context, builder, sig, args):
            value = args[0]
            undefined = ir.Constant(vec.llvm, ir.Undefined)
            apart = lanes // 2
            while apart:
                mask = ir.Constant(ir.VectorType(INT32, lanes), [lane ^ apart for lane in range(lanes)])
                value = builder.fadd(value, builder.shuffle_vector(value, undefined, mask))
                apart //= 2
            return value

        return vec(vec), emit

    @intrinsic
    def inverse_root(typing, a):
        def emit(context, builder, sig, args):
            root = builder.call(llvm_function(builder, "llvm.sqrt", vec.llvm, 1), args)
            return builder.fdiv(vec.constant(1.0), root)

        return vec(vec), emit

    return SimpleNamespace(
        multiply=of_tuples(2, 0, lambda b, x, y: b.fmul(x, y, flags=_CONTRACT)),
        standard=of_tuples(1, 2, emit_standard),
        standard_backward=of_tuples(2, 3, emit_backward),
        total=total,
        spread=spread,
        inverse_root=inverse_root,
        moments=_make_moments(v, spread, inverse_root),
    )


def _make_moments(v: SimpleNamespace, spread: Any, inverse_root: Any) -> Any:
    """Two passes, so that a mean far from 0 costs no digits. Each sum has four chains per lane."""
    load = v.whole.load
    load_first = v.first.load
    load_numbers = v.load_numbers
    zero = v.zero
    size = v.itemsize
    lanes = v.lanes
    each = 1 / lanes

    @inner
    def moments(address, count, eps):
        vector = lanes * size
        fourfold = count // (4 * lanes) * (4 * lanes)
        whole = count // lanes * lanes
        a, b, c, d = zero(), zero(), zero(), zero()
        for j in range(0, fourfold, 4 * lanes):
            at = address + j * size
            a = a + load(at, lanes)
            b = b + load(at + vector, lanes)
            c = c + load(at + 2 * vector, lanes)
            d = d + load(at + 3 * vector, lanes)
        for j in range(fourfold, whole, lanes):
            a = a + load(address + j * size, lanes)
        if whole < count:
            b = b + load_first(address + whole * size, count - whole)
        mean = spread((a + b) + (c + d)) / float(count)
        a, b, c, d = zero(), zero(), zero(), zero()
        for j in range(0, fourfold, 4 * lanes):
            at = address + j * size
            e = load(at, lanes) - mean
            f = load(at + vector, lanes) - mean
            g = load(at + 2 * vector, lanes) - mean
            h = load(at + 3 * vector, lanes) - mean
            a = a + e * e
            b = b + f * f
            c = c + g * g
            d = d + h * h
        for j in range(fourfold, whole, lanes):
            e = load(address + j * size, lanes) - mean
            a = a + e * e
        for j in range(whole, count):
            e = load_numbers(address + j * size, 1)[0] - mean  # in every lane, so each adds its share
            b = b + e * e * each
        variance = spread((a + b) + (c + d)) / float(count)
        return mean, inverse_root(variance + eps)

    return moments
