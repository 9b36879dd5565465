"""Loads and stores of `Vec`s of every dtype in memory, whole or the first n lanes: functions that emit LLVM code."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir
from numba.core import cgutils

from rnnkit.kernels.cpu.conversions import INT16, narrow, widen
from rnnkit.kernels.cpu.vec_type import INT8, INT32, INT64, VecType, splat

_SUFFIXES = {"float": "f32", "double": "f64", "i16": "i16", "i8": "i8"}  # LLVM's types, in the names of its intrinsics


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


def emitters(dtype: str) -> Emitters:
    """Those of numbers that are in memory as `dtype` says, and in a Vec as float64 or float32."""
    if dtype == "int8":
        return _emitters_int8()
    if dtype in ("float16", "bfloat16"):
        return _emitters_16(dtype)
    return Emitters(_load_whole, _store_whole, load_first, store_first)
