"""64-bit words of memory by address, plain and atomic; calls of functions by address; the smaller of two integers.

Addresses are plain integers. The words may be shared by several threads. Atomic operations are sequentially consistent.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnkit.kernels.cpu.vec_type import INT64


def _pointer(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, INT64.as_pointer())


def _atomic(operation: str) -> Any:
    """An intrinsic operation(address, value), which returns the word's value before the operation."""

    @intrinsic
    def atomic(typing, address, value):
        def emit(context, builder, sig, args):
            number = context.cast(builder, args[1], sig.args[1], types.int64)
            return builder.atomic_rmw(operation, _pointer(builder, args[0]), number, "seq_cst")

        return types.int64(types.intp, value), emit

    return atomic


@intrinsic
def _atomic_load(typing, address):
    """The word at `address`, by a sequentially consistent load."""

    def emit(context, builder, sig, args):
        return builder.load_atomic(_pointer(builder, args[0]), "seq_cst", 8)

    return types.int64(types.intp), emit


@intrinsic
def _load_word(typing, address):
    """The word at `address`, by a plain load."""

    def emit(context, builder, sig, args):
        return builder.load(_pointer(builder, args[0]))

    return types.int64(types.intp), emit


@intrinsic
def _store_word(typing, address, value):
    """Writes the word at `address`, by a plain store."""

    def emit(context, builder, sig, args):
        builder.store(context.cast(builder, args[1], sig.args[1], types.int64), _pointer(builder, args[0]))
        return context.get_dummy_value()

    return types.void(types.intp, value), emit


@intrinsic
def _call_address(typing, function, block, index):
    """function(block, index), where `function` is the address of a compiled function."""

    def emit(context, builder, sig, args):
        function_type = ir.FunctionType(ir.VoidType(), [INT64, INT64])
        builder.call(builder.inttoptr(args[0], function_type.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), emit


def _select(relation: str) -> Any:
    """An intrinsic select(a, b) on integers: a if `a relation b`, else b."""

    @intrinsic
    def select(typing, a, b):
        def emit(context, builder, sig, args):
            x, y = (context.cast(builder, value, kind, types.int64) for value, kind in zip(args, sig.args, strict=True))
            return builder.select(builder.icmp_signed(relation, x, y), x, y)

        return types.int64(a, b), emit

    return select


@intrinsic
def _stack_bytes(typing, size):
    """The address of `size` uninitialised bytes on the stack of the calling kernel, valid until it returns.

    Unless `size` is constant, neither in a loop nor in an inlined function.
    """

    def emit(context, builder, sig, args):
        allocated = builder.alloca(ir.IntType(8), args[0])
        allocated.align = 64
        return builder.ptrtoint(allocated, INT64)

    return types.int64(types.intp), emit


# `Any`, since Numba types these calls, and not the Python signatures.
atomic_add: Any = _atomic("add")
atomic_exchange: Any = _atomic("xchg")
atomic_load: Any = _atomic_load
load_word: Any = _load_word
store_word: Any = _store_word
call_address: Any = _call_address
# For integers. Numba's own min and max are functions, which it would compile for each combination of argument types.
minimum: Any = _select("<")
maximum: Any = _select(">")
stack_bytes: Any = _stack_bytes
