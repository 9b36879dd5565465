"""A SIMD vector as a number: the Numba type `Vec`, so that one scalar source of a cell compiles to vector code.

    v = vectors("float32")                      as many lanes as the host has: 16 with AVX-512, 8 with AVX2, else 4
    a = v.whole.load(address, n)                v.first.load reads the n lanes at the end of a row, and no more
    v.whole.store(a * b + 1.0, address, n)      + - * / between Vecs and numbers; a * b + c may fuse

    h = vectors("float16")                      the same Vecs of float32, in 16 bits where they are loaded and stored

Arithmetic on a Vec is vector arithmetic, so nothing depends on LLVM's loop vectoriser. Addresses are plain integers.
Products and sums carry only the `contract` flag of fast-math, so NaN, infinities and signed zeros keep their meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnkit.kernels.cpu.vec_type import CONTRACT, INT64, VecType, as_vector, splat, vector_bytes
from rnnkit.kernels.cpu.vector_memory import emitters, pointer


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
    emit_one = emitters(dtype)

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
            return context.make_tuple(builder, left, [builder.fadd(a, b, flags=CONTRACT) for a, b in pairs])

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
