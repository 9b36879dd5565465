"""The Numba type `Vec` of a SIMD vector, and its arithmetic. See kernels/cpu/simd.py."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

INT8 = ir.IntType(8)
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
CONTRACT = ("contract",)  # of fast-math: a product and a sum may become one instruction


@cache
def vector_bytes() -> int:
    """The width of the host's vectors: 64 with AVX-512, 32 with AVX2 and FMA, else 16 (SSE2, NEON)."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64
    return 32 if features.get("avx2") and features.get("fma") else 16


class VecType(types.Type):
    """Numba's type of `lanes` values of `scalar` (a Numba float type) in one vector register."""

    def __init__(self, scalar: types.Float, lanes: int) -> None:
        self.scalar = scalar
        self.lanes = lanes
        super().__init__(name=f"Vec({scalar}, {lanes})")

    @property
    def llvm_scalar(self) -> ir.Type:
        return ir.FloatType() if self.scalar == types.float32 else ir.DoubleType()

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(self.llvm_scalar, self.lanes)

    @property
    def llvm_int(self) -> ir.VectorType:
        """The integer vector of the same width, for operations on bits."""
        return ir.VectorType(INT32 if self.scalar == types.float32 else INT64, self.lanes)

    def constant(self, value: float) -> ir.Constant:
        """`value`, rounded to the scalar type, in every lane."""
        return ir.Constant(self.llvm, [float(np.dtype(self.scalar.name).type(value))] * self.lanes)


@register_model(VecType)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.llvm)


def splat(builder: ir.IRBuilder, vector: ir.VectorType, scalar: ir.Value) -> ir.Value:
    """A vector whose lanes all hold `scalar`."""
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(INT32, vector.count), [0] * vector.count))


def llvm_function(builder: ir.IRBuilder, name: str, vector: ir.VectorType, arguments: int) -> ir.Function:
    """The LLVM intrinsic `name` with `arguments` arguments of type `vector`."""
    suffix = "f32" if isinstance(vector.element, ir.FloatType) else "f64"
    function_type = ir.FunctionType(vector, [vector] * arguments)
    return cgutils.get_or_insert_function(builder.module, function_type, f"{name}.v{vector.count}{suffix}")


# Arithmetic: of two Vecs, and of a Vec and a number on either side.


class _Binary(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) != 2 or not any(isinstance(a, VecType) for a in args):
            return None
        vec = next(a for a in args if isinstance(a, VecType))
        if all(a == vec or isinstance(a, types.Number) for a in args):
            return signature(vec, *args)
        return None


class _Unary(AbstractTemplate):
    def generic(self, args, kws):
        return signature(args[0], args[0]) if len(args) == 1 and isinstance(args[0], VecType) else None


def as_vector(context: Any, builder: ir.IRBuilder, value: ir.Value, from_type: types.Type, vec: VecType) -> ir.Value:
    """A Vec as it is; a number in every lane."""
    if isinstance(from_type, VecType):
        return value
    return splat(builder, vec.llvm, context.cast(builder, value, from_type, vec.scalar))


def _define_binary(op: Callable[..., Any], emit: Callable[[ir.IRBuilder], Any]) -> None:
    infer_global(op)(type(f"Vec_{op.__name__}", (_Binary,), {}))

    def lower(context, builder, sig, args):
        vec = sig.return_type
        left, right = (as_vector(context, builder, a, t, vec) for a, t in zip(args, sig.args, strict=True))
        return emit(builder)(left, right, flags=CONTRACT)

    for pair in ((VecType, VecType), (VecType, types.Number), (types.Number, VecType)):
        lower_builtin(op, *pair)(lower)


_define_binary(operator.add, lambda b: b.fadd)
_define_binary(operator.sub, lambda b: b.fsub)
_define_binary(operator.mul, lambda b: b.fmul)
_define_binary(operator.truediv, lambda b: b.fdiv)
infer_global(operator.neg)(type("Vec_neg", (_Unary,), {}))


@lower_builtin(operator.neg, VecType)
def _lower_neg(context, builder, sig, args):
    return builder.fneg(args[0])
