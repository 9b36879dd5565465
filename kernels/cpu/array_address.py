"""Arrays as arguments of entries: the kernel receives the address of the first element, and nothing else.

Numba's own arrays would be unboxed with shape, strides and a reference count, and each argument would add 10 ms to the
first call. An entry does not see dtype or layout here, so its callers pass what the kernels expect.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import NativeValue, intrinsic, models, register_model, unbox

from rnnkit.kernels.cpu.vec_type import INT64


class _ArrayAddressType(types.Type):
    """An ndarray in Python, the address of its data in native code."""

    def __init__(self) -> None:
        super().__init__(name="ArrayAddress")


ArrayAddress = _ArrayAddressType()


@register_model(_ArrayAddressType)
class _ArrayAddressModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, INT64)


@unbox(_ArrayAddressType)
def _unbox(kind, array, c):
    """Reads the field `data` of the array, the first of NumPy's C struct after the head of every Python object."""
    byte = ir.IntType(8)
    field = c.builder.gep(c.builder.bitcast(array, byte.as_pointer()), [ir.Constant(INT64, object.__basicsize__)])
    data = c.builder.load(c.builder.bitcast(field, INT64.as_pointer()))
    return NativeValue(data)


@intrinsic
def _address_of(typing, array):
    """The address as an integer."""

    def emit(context, builder, sig, args):
        return args[0]

    return types.intp(array), emit


address_of: Any = _address_of  # typed by Numba, not by its Python signature
