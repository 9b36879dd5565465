"""The arguments of a launch: checked against the kernel's parameters and converted to bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from tests.tools.emulator.errors import EmulatorError
from tests.tools.emulator.memory import Memory


class Parameter(NamedTuple):
    """Of a kernel. kind: p pointer, f floating, i signed, u unsigned, b bool, s structure (and the half types)."""

    kind: str
    size: int


_NUMPY_KINDS = {"f": "f", "i": "i", "u": "u", "b": "?b", "s": "Vfe"}
_NAMES = {"p": "pointer", "f": "floating-point", "i": "signed", "u": "unsigned", "b": "bool", "s": "structure"}


def _address(arg: Any) -> int | None:
    if isinstance(arg, np.ndarray):
        return arg.ctypes.data
    if arg is None:
        return 0
    if isinstance(arg, int) and not isinstance(arg, bool):
        return arg
    if isinstance(arg, np.generic) and arg.dtype.kind in "ui" and arg.dtype.itemsize == 8:
        return int(arg)
    interface = getattr(arg, "__cuda_array_interface__", None)
    return int(interface["data"][0]) if interface else None


def bytes_of(arg: Any, parameter: Parameter) -> bytes | str:
    """The bytes that the kernel receives, or a description of the error in `arg`."""
    takes = f"the kernel takes a {_NAMES[parameter.kind]} of {parameter.size} bytes"
    if parameter.kind == "p":
        address = _address(arg)
        return struct.pack("<Q", address & (2**64 - 1)) if address is not None else f"{type(arg).__name__}, but {takes}"
    if isinstance(arg, np.generic):
        dtype = arg.dtype
        # A signed for an unsigned integer of the same size has the same bytes. A float for an integer is an error.
        same = dtype.kind in _NUMPY_KINDS[parameter.kind] or (dtype.kind in "iu" and parameter.kind in "iu")
        fits = dtype.itemsize == parameter.size and (same or parameter.kind == "s")
        return arg.tobytes() if fits else f"a {dtype}, but {takes}"
    if isinstance(arg, int) and not isinstance(arg, bool) and parameter.kind in "iu" and parameter.size == 8:
        return struct.pack("<Q", arg & (2**64 - 1))
    if isinstance(arg, float) and parameter == ("f", 8):
        return struct.pack("<d", arg)
    if isinstance(arg, bytes) and parameter.kind == "s" and len(arg) == parameter.size:
        return arg
    return f"a Python {type(arg).__name__}, but {takes}"


def live_buffers(memory: Memory | None, args: Iterable[Any]) -> np.ndarray:
    """(buffers, 3) uint64 as Memory.table: the buffers of `memory`, and array arguments outside all of them."""
    table = memory.table() if memory is not None else np.zeros((0, 3), np.uint64)
    extra: dict[int, tuple[int, int, int]] = {}
    for arg in args:
        if isinstance(arg, np.ndarray) and arg.nbytes and (memory is None or arg.ctypes.data not in memory):
            if not (arg.flags.c_contiguous or arg.flags.f_contiguous):
                raise EmulatorError("an array argument must be contiguous", "arguments")
            writable = int(arg.flags.writeable)
            known = extra.get(arg.ctypes.data, (0, 0, 0))
            extra[arg.ctypes.data] = (arg.ctypes.data, max(arg.nbytes, known[1]), max(writable, known[2]))
    if not extra:
        return table
    both = np.concatenate([table, np.array(list(extra.values()), np.uint64)])
    return np.ascontiguousarray(both[np.argsort(both[:, 0])])
