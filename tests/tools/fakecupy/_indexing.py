"""Indexing with CuPy's rules, which differ from NumPy's.

Lists and NumPy arrays in an index are uploaded. Out-of-range entries of integer arrays wrap around and never raise.
Reading with a boolean mask synchronises, to count its entries. Assigning a scalar with a boolean mask does not. A NumPy
array whose size is not 1 is rejected as the assigned value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.tools.fakecupy import _launch, _state


def prepare(index: Any) -> tuple[Any, ...]:
    """`index` as a tuple of None, Ellipsis, slices, integers and device arrays."""
    from tests.tools.fakecupy._functions import asarray

    parts = []
    for part in index if isinstance(index, tuple) else (index,):
        if part is None or part is Ellipsis or isinstance(part, slice) or _launch.is_array(part):
            parts.append(part)
        elif np.isscalar(part) and not isinstance(part, (bool, np.bool_)):
            parts.append(_whole(part))
        else:
            array = asarray(part)
            empty = isinstance(part, (list, tuple)) and array.size == 0
            parts.append(array.astype(np.int32) if empty else array)
    for part in parts:
        if _launch.is_array(part) and part.dtype.kind not in "biu":
            raise IndexError(f"arrays used as indices must be of integer or boolean type. (actual: {part.dtype.type})")
    masks = [part for part in parts if _launch.is_array(part) and part.dtype.kind == "b"]
    if len(masks) > 1:
        raise ValueError("Currently, CuPy only supports one boolean array in an index")
    return tuple(parts)


def _whole(value: Any) -> int:
    if not isinstance(value, (int, np.integer)):
        raise IndexError(
            "only integers, slices (`:`), ellipsis (`...`), numpy.newaxis (`None`) and integer or boolean arrays are "
            "valid indices"
        )
    return int(value)


def is_basic(index: tuple[Any, ...]) -> bool:
    """Whether the index gives a view."""
    return not any(_launch.is_array(part) for part in index)


def has_mask(index: tuple[Any, ...]) -> bool:
    return any(_launch.is_array(part) and part.dtype.kind == "b" for part in index)


def host_index(array: Any, index: tuple[Any, ...]) -> tuple[Any, ...]:
    """The index for the NumPy array, with out-of-range integers wrapped around. Evaluated when the work runs."""
    consumed = sum(_axes(part) for part in index)
    axis, parts = 0, []
    for part in index:
        if part is Ellipsis:
            axis += array.ndim - consumed
        elif _launch.is_array(part) and part.dtype.kind in "iu":
            size = array.shape[axis]
            parts.append(part._host.astype(np.int64) % size if size else part._host.astype(np.int64))
            axis += 1
            continue
        else:
            axis += _axes(part)
        parts.append(part._host if _launch.is_array(part) else part)
    return tuple(parts)


def _axes(part: Any) -> int:
    """The number of the array's axes that a part of the index consumes."""
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if _launch.is_array(part) and part.dtype.kind == "b" else 1


def getitem(array: Any, index: Any) -> Any:
    """array[index]: a view for a basic index, else a new array."""
    parts = prepare(index)
    if is_basic(parts):
        return array._view(array._host[(*parts, ...)] if Ellipsis not in parts else array._host[parts])
    used = [part for part in parts if _launch.is_array(part)]
    for part in (array, *used):
        _launch.check_device(part)
    if has_mask(parts):
        _state.machine().streams.synchronise(_state.machine().streams.current().ptr, "mask")

    def run() -> np.ndarray:
        return np.asarray(array_host[host_index(frame, parts)])

    array_host, frame = array._host, array
    result = run()
    out = _launch.new(result.shape, result.dtype)
    _launch.store("getitem", out, run, result, (array, *used))
    return out


def setitem(array: Any, index: Any, value: Any) -> None:
    """array[index] = value: value is a scalar or a device array that broadcasts, else TypeError or ValueError."""
    parts = prepare(index)
    if is_basic(parts):
        target = array._view(array._host[(*parts, ...)] if Ellipsis not in parts else array._host[parts])
        _assign(target, value)
        return
    used = [part for part in parts if _launch.is_array(part)]
    for part in (array, *used):
        _launch.check_device(part)
    if not _launch.is_array(value):
        from tests.tools.fakecupy._functions import array as upload

        value = upload(value, dtype=array.dtype)
        mask_with_many = has_mask(parts) and value.size > 1
    else:
        mask_with_many = has_mask(parts) and value.ndim > 0
    if mask_with_many:
        _state.machine().streams.synchronise(_state.machine().streams.current().ptr, "mask")
    source = _launch.host_view(value)
    host, frame = array._host, array

    def run() -> None:
        with np.errstate(all="ignore"):
            host[host_index(frame, parts)] = source.astype(host.dtype)

    machine = _state.machine()
    blocks = _launch.blocks_of(array, value, *used)
    node = _launch.Node("setitem", ("operations", "setitem"), run, blocks)
    machine.streams.submit(node, owners=(array, value, *used))


def _assign(target: Any, value: Any) -> None:
    if not _launch.is_array(value):
        target.fill(value)
        return
    shape = value.shape
    while shape and shape[0] == 1 and len(shape) > target.ndim:
        shape = shape[1:]
    source = value.reshape(shape) if shape != value.shape else value
    if source.size and np.broadcast_shapes(source.shape, target.shape) != target.shape:
        raise ValueError(f"could not broadcast input array from shape {value.shape} into shape {target.shape}")
    same_layout = source.shape == target.shape and source.strides == target.strides
    if same_layout and source.data.ptr == target.data.ptr:
        return
    if same_layout and target.flags.c_contiguous and source.dtype == target.dtype:
        target.data.copy_from_device_async(source.data, source.nbytes)
        return
    _launch.compute("copy", lambda a: np.broadcast_to(a, target.shape), source, out=target, casting="unsafe")
