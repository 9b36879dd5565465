"""A SIMD vector as a number: the Numba type `Vec`, so that one scalar source of a cell compiles to vector code.

    v = vectors("float32")                      as many lanes as the host has: 16 with AVX-512, 8 with AVX2, else 4
    a = v.whole.load(address, n)                v.first.load reads the n lanes at the end of a row, and no more
    v.whole.store(a * b + 1.0, address, n)      + - * / between Vecs and numbers; a * b + c may fuse

    h = vectors("float16")                      the same Vecs of float32, in 16 bits where they are loaded and stored

Arithmetic on a Vec is vector arithmetic, so nothing depends on LLVM's loop vectoriser. Addresses are plain integers.
Products and sums carry only the `contract` flag of fast-math, so NaN, infinities and signed zeros keep their meaning.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from rnnkit.kernels.cpu.conversions import INT16, narrow, widen

INT8 = ir.IntType(8)
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
_CONTRACT = ("contract",)


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
        return emit(builder)(left, right, flags=_CONTRACT)

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


# Loads and stores: of whole vectors, and of the first n lanes of a vector.


def pointer(builder: ir.IRBuilder, address: ir.Value, vector: ir.Type) -> ir.Value:
    return builder.inttoptr(address, vector.as_pointer())


def emit_load(builder: ir.IRBuilder, vec: VecType, address: ir.Value) -> ir.Value:
    value = builder.load(pointer(builder, address, vec.llvm))
    value.align = 4
    return value


def emit_store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    builder.store(value, pointer(builder, address, value.type)).align = 4


def _first_lanes(builder: ir.IRBuilder, vec: VecType, n: ir.Value) -> ir.Value:
    """The mask of the first n lanes."""
    wide = ir.VectorType(INT64, vec.lanes)
    iota = ir.Constant(wide, list(range(vec.lanes)))
    return builder.icmp_signed("<", iota, splat(builder, wide, n))


def _masked(builder: ir.IRBuilder, vector: ir.VectorType, kind: str) -> ir.Function:
    """llvm.masked.load or llvm.masked.store for vectors of this type."""
    mask = ir.VectorType(ir.IntType(1), vector.count)
    at = vector.as_pointer()
    name = f"llvm.masked.{kind}.v{vector.count}{_SUFFIXES[str(vector.element)]}.p0"
    if kind == "load":
        signature_ = ir.FunctionType(vector, [at, INT32, mask, vector])
    else:
        signature_ = ir.FunctionType(ir.VoidType(), [vector, at, INT32, mask])
    return cgutils.get_or_insert_function(builder.module, signature_, name)


_SUFFIXES = {"float": "f32", "double": "f64", "i16": "i16", "i8": "i8"}  # LLVM's types, in the names of its intrinsics


def load_first(builder: ir.IRBuilder, vec: VecType, address: ir.Value, n: ir.Value) -> ir.Value:
    zero = ir.Constant(vec.llvm, [0.0] * vec.lanes)
    arguments = [pointer(builder, address, vec.llvm), ir.Constant(INT32, 4), _first_lanes(builder, vec, n), zero]
    return builder.call(_masked(builder, vec.llvm, "load"), arguments)


def store_first(builder: ir.IRBuilder, vec: VecType, value: ir.Value, address: ir.Value, n: ir.Value) -> None:
    arguments = [value, pointer(builder, address, vec.llvm), ir.Constant(INT32, 4), _first_lanes(builder, vec, n)]
    builder.call(_masked(builder, vec.llvm, "store"), arguments)


def _load_whole(builder: ir.IRBuilder, vec: VecType, address: ir.Value, n: ir.Value) -> ir.Value:
    return emit_load(builder, vec, address)


def _store_whole(builder: ir.IRBuilder, vec: VecType, value: ir.Value, address: ir.Value, n: ir.Value) -> None:
    emit_store(builder, value, address)


def emit_load_up_to(builder: ir.IRBuilder, vec: VecType, address: ir.Value, n: ir.Value) -> ir.Value:
    """The first n lanes, or the whole vector if n reaches its width; decided at run time."""
    whole = builder.icmp_signed(">=", n, ir.Constant(n.type, vec.lanes))
    with builder.if_else(whole, likely=True) as (then, otherwise):
        with then:
            full = emit_load(builder, vec, address)
            full_block = builder.block
        with otherwise:
            part = load_first(builder, vec, address, n)
            part_block = builder.block
    value = builder.phi(vec.llvm)
    value.add_incoming(full, full_block)
    value.add_incoming(part, part_block)
    return value


def emit_store_up_to(builder: ir.IRBuilder, vec: VecType, value: ir.Value, address: ir.Value, n: ir.Value) -> None:
    """The first n lanes, or the whole vector if n reaches its width; decided at run time."""
    whole = builder.icmp_signed(">=", n, ir.Constant(n.type, vec.lanes))
    with builder.if_else(whole, likely=True) as (then, otherwise):
        with then:
            emit_store(builder, value, address)
        with otherwise:
            store_first(builder, vec, value, address, n)


class Emitters(NamedTuple):
    """What emits one vector's load and store: functions of (builder, vec, address, n), with the value before address.

    `load` and `store` ignore n; load_first and store_first have the first n lanes.
    """

    load: Callable[..., ir.Value]
    store: Callable[..., None]
    load_first: Callable[..., ir.Value]
    store_first: Callable[..., None]


def words_16(builder: ir.IRBuilder, lanes: int, address: ir.Value) -> ir.Value:
    """(lanes x i16) from memory."""
    value = builder.load(pointer(builder, address, ir.VectorType(INT16, lanes)))
    value.align = 2
    return value


def first_words_16(builder: ir.IRBuilder, vec: VecType, address: ir.Value, n: ir.Value) -> ir.Value:
    """The same of the first n lanes; the others are 0."""
    kind = ir.VectorType(INT16, vec.lanes)
    zero = ir.Constant(kind, [0] * vec.lanes)
    arguments = [pointer(builder, address, kind), ir.Constant(INT32, 2), _first_lanes(builder, vec, n), zero]
    return builder.call(_masked(builder, kind, "load"), arguments)


def _emitters_16(dtype: str) -> Emitters:
    def load(builder: ir.IRBuilder, vec: VecType, address: ir.Value, n: ir.Value) -> ir.Value:
        return widen(builder, dtype, words_16(builder, vec.lanes, address))

    def store(builder: ir.IRBuilder, vec: VecType, value: ir.Value, address: ir.Value, n: ir.Value) -> None:
        words = narrow(builder, dtype, value)
        builder.store(words, pointer(builder, address, words.type)).align = 2

    def load_some(builder: ir.IRBuilder, vec: VecType, address: ir.Value, n: ir.Value) -> ir.Value:
        return widen(builder, dtype, first_words_16(builder, vec, address, n))

    def store_some(builder: ir.IRBuilder, vec: VecType, value: ir.Value, address: ir.Value, n: ir.Value) -> None:
        words = narrow(builder, dtype, value)
        arguments = [words, pointer(builder, address, words.type), ir.Constant(INT32, 2), _first_lanes(builder, vec, n)]
        builder.call(_masked(builder, words.type, "store"), arguments)

    return Emitters(load, store, load_some, store_some)


def _emitters_int8() -> Emitters:
    """Whole numbers in a byte. Vecs that are stored must hold such numbers."""

    def as_floats(builder: ir.IRBuilder, vec: VecType, value: ir.Value) -> ir.Value:
        return builder.sitofp(builder.sext(value, ir.VectorType(INT32, vec.lanes)), vec.llvm)

    def as_bytes(builder: ir.IRBuilder, vec: VecType, value: ir.Value) -> ir.Value:
        return builder.trunc(builder.fptosi(value, ir.VectorType(INT32, vec.lanes)), ir.VectorType(INT8, vec.lanes))

    def load(builder: ir.IRBuilder, vec: VecType, address: ir.Value, n: ir.Value) -> ir.Value:
        value = builder.load(pointer(builder, address, ir.VectorType(INT8, vec.lanes)))
        value.align = 1
        return as_floats(builder, vec, value)

    def store(builder: ir.IRBuilder, vec: VecType, value: ir.Value, address: ir.Value, n: ir.Value) -> None:
        numbers = as_bytes(builder, vec, value)
        builder.store(numbers, pointer(builder, address, numbers.type)).align = 1

    def load_some(builder: ir.IRBuilder, vec: VecType, address: ir.Value, n: ir.Value) -> ir.Value:
        kind = ir.VectorType(INT8, vec.lanes)
        zero = ir.Constant(kind, [0] * vec.lanes)
        arguments = [pointer(builder, address, kind), ir.Constant(INT32, 1), _first_lanes(builder, vec, n), zero]
        return as_floats(builder, vec, builder.call(_masked(builder, kind, "load"), arguments))

    def store_some(builder: ir.IRBuilder, vec: VecType, value: ir.Value, address: ir.Value, n: ir.Value) -> None:
        numbers = as_bytes(builder, vec, value)
        at = pointer(builder, address, numbers.type)
        arguments = [numbers, at, ir.Constant(INT32, 1), _first_lanes(builder, vec, n)]
        builder.call(_masked(builder, numbers.type, "store"), arguments)

    return Emitters(load, store, load_some, store_some)


def _emitters(dtype: str) -> Emitters:
    if dtype == "int8":
        return _emitters_int8()
    if dtype in ("float16", "bfloat16"):
        return _emitters_16(dtype)
    return Emitters(_load_whole, _store_whole, load_first, store_first)


@cache
def vectors(dtype: str) -> SimpleNamespace:
    """The operations on Vecs of a dtype, as functions callable from Numba code.

    Vecs of "float16", "bfloat16" and "int8" are those of "float32": their loads and stores convert.

    whole     loads and stores of whole vectors; n is ignored
    first     loads and stores of the first n lanes; other lanes are loaded as zero, and not stored
        load(address, n)                            one vector
        store(value, address, n)                    one vector, or a number in every lane
        load_blocks(address, stride, n, count)      a tuple of `count` vectors, `stride` bytes apart; count is a literal
        store_blocks(values, address, stride, n)    the same for a store
    emit                                            the `Emitters` of one vector, for intrinsics
    zero()                                          zero in every lane
    add_blocks(left, right)                         the sums of two tuples, vector by vector
    load_numbers(address, count)                    a tuple of `count` vectors, each with one number in every lane, from
                                                    consecutive numbers; count is a literal
    """
    scalar = types.float64 if dtype == "float64" else types.float32
    itemsize = {"float16": 2, "bfloat16": 2, "int8": 1}.get(dtype, scalar.bitwidth // 8)
    vec = VecType(scalar, vector_bytes() // (scalar.bitwidth // 8))
    emit_one = _emitters(dtype)

    def memory(load_one: Callable[..., ir.Value], store_one: Callable[..., None]) -> SimpleNamespace:
        """load, store, load_blocks and store_blocks, made of functions that emit one vector's load and store."""

        @intrinsic
        def load(typing, address, n):
            def emit(context, builder, sig, args):
                return load_one(builder, vec, *args)

            return vec(types.intp, types.intp), emit

        @intrinsic
        def store(typing, value, address, n):
            def emit(context, builder, sig, args):
                whole = as_vector(context, builder, args[0], sig.args[0], vec)
                store_one(builder, vec, whole, args[1], args[2])
                return context.get_dummy_value()

            return types.void(value, types.intp, types.intp), emit

        @intrinsic(prefer_literal=True)
        def load_blocks(typing, address, stride, n, count):
            blocks = types.UniTuple(vec, count.literal_value) if count.literal_value else types.Tuple(())

            def emit(context, builder, sig, args):
                address, stride, n, _ = args
                values = []
                for k in range(count.literal_value):
                    at = builder.add(address, builder.mul(stride, ir.Constant(stride.type, k)))
                    values.append(load_one(builder, vec, at, n))
                return context.make_tuple(builder, blocks, values)

            return blocks(types.intp, types.intp, types.intp, count), emit

        @intrinsic
        def store_blocks(typing, values, address, stride, n):
            def emit(context, builder, sig, args):
                values_, address, stride, n = args
                for k, value in enumerate(cgutils.unpack_tuple(builder, values_, len(sig.args[0]))):
                    at = builder.add(address, builder.mul(stride, ir.Constant(stride.type, k)))
                    store_one(builder, vec, value, at, n)
                return context.get_dummy_value()

            return types.void(values, types.intp, types.intp, types.intp), emit

        return SimpleNamespace(load=load, store=store, load_blocks=load_blocks, store_blocks=store_blocks)

    @intrinsic
    def zero(typing):
        def emit(context, builder, sig, args):
            return vec.constant(0.0)

        return vec(), emit

    @intrinsic
    def add_blocks(typing, left, right):
        def emit(context, builder, sig, args):
            pairs = zip(*(cgutils.unpack_tuple(builder, a, len(left)) for a in args), strict=True)
            return context.make_tuple(builder, left, [builder.fadd(a, b, flags=_CONTRACT) for a, b in pairs])

        return left(left, left), emit

    @intrinsic(prefer_literal=True)
    def load_numbers(typing, address, count):
        numbers = types.UniTuple(vec, count.literal_value) if count.literal_value else types.Tuple(())

        def emit(context, builder, sig, args):
            first = pointer(builder, args[0], vec.llvm_scalar)
            values = [builder.load(builder.gep(first, [ir.Constant(INT64, k)])) for k in range(count.literal_value)]
            return context.make_tuple(builder, numbers, [splat(builder, vec.llvm, value) for value in values])

        return numbers(types.intp, count), emit

    return SimpleNamespace(
        dtype=dtype,
        type=vec,
        lanes=vec.lanes,
        itemsize=itemsize,
        emit=emit_one,
        whole=memory(emit_one.load, emit_one.store),
        first=memory(emit_one.load_first, emit_one.store_first),
        zero=zero,
        add_blocks=add_blocks,
        load_numbers=load_numbers,
    )
