"""Words of memory by their addresses, which several threads may read and write; and functions by theirs."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnkit.kernels.cpu.simd import INT64


def _address(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.inttoptr(value, INT64.as_pointer())


def _atomic(operation: str):
    """operation(address, value) -> the word's value before."""

    @intrinsic
    def atomic(typing, address, value):
        def emit(context, builder, sig, args):
            number = context.cast(builder, args[1], sig.args[1], types.int64)
            return builder.atomic_rmw(operation, _address(builder, args[0]), number, "seq_cst")

        return types.int64(types.intp, value), emit

    return atomic


@intrinsic
def _atomic_load(typing, address):
    """The word's value, and what was written before it was."""

    def emit(context, builder, sig, args):
        return builder.load_atomic(_address(builder, args[0]), "seq_cst", 8)

    return types.int64(types.intp), emit


@intrinsic
def _load_word(typing, address):
    def emit(context, builder, sig, args):
        return builder.load(_address(builder, args[0]))

    return types.int64(types.intp), emit


@intrinsic
def _store_word(typing, address, value):
    def emit(context, builder, sig, args):
        builder.store(context.cast(builder, args[1], sig.args[1], types.int64), _address(builder, args[0]))
        return context.get_dummy_value()

    return types.void(types.intp, value), emit


@intrinsic
def _call_address(typing, function, block, index):
    """function(block, index), of a compiled function's address."""

    def emit(context, builder, sig, args):
        function_type = ir.FunctionType(ir.VoidType(), [INT64, INT64])
        builder.call(builder.inttoptr(args[0], function_type.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), emit


def _select(relation: str):
    """The one of two whole numbers that has the relation to the other."""

    @intrinsic
    def select(typing, a, b):
        def emit(context, builder, sig, args):
            x, y = (context.cast(builder, value, kind, types.int64) for value, kind in zip(args, sig.args, strict=True))
            return builder.select(builder.icmp_signed(relation, x, y), x, y)

        return types.int64(a, b), emit

    return select


@intrinsic
def _stack_bytes(typing, size):
    """The address of `size` bytes of any contents on the stack of the kernel that asks, until it returns.

    Not for use in a loop, nor in a function that is inlined, unless `size` is constant.
    """

    def emit(context, builder, sig, args):
        allocated = builder.alloca(ir.IntType(8), args[0])
        allocated.align = 64
        return builder.ptrtoint(allocated, INT64)

    return types.int64(types.intp), emit


atomic_add: Any = _atomic("add")  # typed by Numba, not by their Python signatures
atomic_exchange: Any = _atomic("xchg")
atomic_load: Any = _atomic_load
load_word: Any = _load_word
store_word: Any = _store_word
call_address: Any = _call_address
# Of whole numbers. Numba's own are functions, which it would compile for each mix of argument types.
minimum: Any = _select("<")
maximum: Any = _select(">")
stack_bytes: Any = _stack_bytes
