"""Tensors as the arrays that backends take, and results as tensors: no copy either way.

On the CPU a tensor is viewed as a NumPy array. On a CUDA device it is viewed as a CuPy array through DLPack, on
PyTorch's current stream, and CuPy allocates from PyTorch's caching allocator meanwhile: see `on_device`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from rnnkit.backends import LayerCache
from rnnkit.core import graph_memory
from rnnkit.core.cells import Array, Cell, Weights
from rnnkit.core.dtypes import DTYPES
from rnnkit.torch import checks

Tensor = Any  # torch.Tensor: type checkers run without PyTorch
_version = attrgetter("_version")
_NO_CONTEXT = nullcontext()
LARGE = 4 << 20
LINE = 64  # bytes of a cache line


def as_array(tensor: Tensor) -> Array:
    """A view of the tensor's memory."""
    if tensor.is_cpu:
        plain = tensor.detach() if tensor.requires_grad else tensor
        return plain.view(torch.int16).numpy().view(_bfloat16()) if plain.dtype is torch.bfloat16 else plain.numpy()
    import cupy

    return cupy.from_dlpack(tensor.detach())


class _Memory:
    """A tensor on the CPU in NumPy's array interface.

    `Tensor.numpy` would mark the memory as not resizable for good, and FSDP frees weights between calls by resizing.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        dtype = _array_dtype(tensor.dtype)
        self.__array_interface__ = {
            "version": 3,
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "typestr": np.dtype(f"u{dtype.itemsize}").str if dtype.kind == "V" else dtype.str,
        }


def weight_as_array(weight: Tensor) -> Array:
    """A view of the memory of a contiguous tensor, which may be resized when the view is no longer used."""
    if weight.device.type != "cpu":
        return as_array(weight)
    return np.asarray(_Memory(weight.detach())).view(_array_dtype(weight.dtype))


def _bfloat16() -> np.dtype:
    return DTYPES["bfloat16"].storage


def _array_dtype(dtype: Any) -> np.dtype:
    """The NumPy dtype of a torch.dtype. bfloat16 is of kind "V" to NumPy, whose array interface does not have it."""
    return DTYPES[str(dtype).removeprefix("torch.")].storage


def as_tensor(array: Array) -> Tensor:
    """The reverse of `as_array`, for an array that nothing else refers to."""
    if type(array) is not np.ndarray:
        return torch.from_dlpack(array)
    if array.dtype.kind == "V":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_tensors(arrays: Sequence[Array]) -> list[Tensor]:
    """`as_tensor` of arrays of one kind and dtype."""
    if not arrays:
        return []
    first = arrays[0]
    if type(first) is np.ndarray and first.dtype.kind != "V":
        return list(map(torch.from_numpy, arrays))
    return list(map(as_tensor, arrays))


def new_bytes(like: Tensor, size: int) -> Tensor:
    """(size,) uninitialised uint8 on the device of `like`, from a multiple of 64 bytes on.

    From 4 MiB on NumPy asks the system for large pages, and PyTorch does not: forward and backward of an LSTM with 12
    MiB of them take 2.5% less.
    """
    if size < LARGE or not like.is_cpu:
        return like.new_empty(size, dtype=torch.uint8)
    whole = np.empty(size + LINE, np.uint8)
    start = -whole.ctypes.data % LINE
    return torch.from_numpy(whole[start : start + size])


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which CuPy works on the tensor's device, PyTorch's current stream and PyTorch's memory.

    It does nothing for a tensor on the CPU.

    Work is then ordered as PyTorch's own operators are, and memory that was freed by one library serves the other.
    While PyTorch captures a CUDA graph (torch.cuda.graph), the memory is the graph's.
    """
    return _NO_CONTEXT if tensor.is_cpu else _on_cuda(tensor.device)


def _on_cuda(device: Any) -> ExitStack:
    import cupy

    stack = ExitStack()
    stack.enter_context(cupy.cuda.Device(device.index))
    stream = torch.cuda.current_stream(device).cuda_stream
    stack.enter_context(cupy.cuda.ExternalStream(stream, device.index))
    stack.enter_context(cupy.cuda.using_allocator(_torch_allocator()))
    stack.enter_context(graph_memory.stays_with_graphs())
    return stack


@cache
def _torch_allocator() -> Any:
    import cupy

    delete = torch.cuda.caching_allocator_delete

    def allocate(size: int, device: int) -> int:
        # CuPy's stream, not PyTorch's: the reverse direction of a layer runs on another one, and PyTorch's allocator
        # gives memory that was freed to the next allocation of its stream, without waiting for other streams.
        return torch.cuda.caching_allocator_alloc(size, device, cupy.cuda.get_current_stream().ptr) if size else 0

    def free(pointer: int, _: int) -> None:
        if pointer:
            delete(pointer)

    return cupy.cuda.PythonFunctionAllocator(allocate, free).malloc


class WeightViews:
    """The arrays over the weights of a stack, and what must still hold for them to be valid.

    of      the cell, D, I of the first layer, and the cell's constants
    layers  the arrays by layer and direction
    ends    the shapes of the states (L*D, B, ·), without B
    """

    __slots__ = ("addresses", "ends", "layers", "of", "references", "shapes", "versions")

    def __init__(self, weights: Sequence[Tensor], of: tuple[Cell, int, int, tuple[float, ...]], ended: Any) -> None:
        cell, directions, I, _ = of
        checks.weights(weights, cell, directions, I)
        self.of = of
        arrays = [weight_as_array(w.contiguous()) for w in weights]
        count = parts_of_each(weights, cell)
        slots = [as_weights(arrays[k : k + count], cell) for k in range(0, len(arrays), count)]
        caches = [LayerCache(w, None) for w in slots]
        self.layers = [tuple(caches[k : k + directions]) for k in range(0, len(caches), directions)]
        self.ends = [(slots, width) for slots, _, width in state_shapes(weights, cell, 0)]
        self.references: list[Any] = [weakref.ref(w, ended) for w in weights]
        self.addresses = [w.data_ptr() for w in weights]
        self.shapes = [w.shape for w in weights]
        self.versions = list(map(_version, weights)) if _may_be_kept(weights) else None

    def are_of(self, weights: Sequence[Tensor]) -> bool:
        """Whether the arrays are valid for these tensors, the ones they were made of. Their values may have changed."""
        # `p.data = p.data.t()` changes neither address nor version.
        if [w.data_ptr() if w.is_contiguous() else None for w in weights] != self.addresses:
            return False
        versions = list(map(_version, weights))
        if versions != self.versions:
            # Written to, or given another shape in place.
            if [w.shape for w in weights] != self.shapes or not _may_be_kept(weights):
                return False
            self.versions = versions
        return True


def _may_be_kept(weights: Sequence[Tensor]) -> bool:
    """Whether arrays over the weights follow their values, and changes of their shapes can be seen."""
    return all(w.is_contiguous() and not w.is_inference() for w in weights)


# By the ids of the tensors. An entry ends with the first of its tensors, so that no id is another tensor's.
_views: dict[tuple[int, ...], WeightViews] = {}


def forget(weights: Iterable[Tensor]) -> None:
    """Drops what is kept of these weights: before PyTorch swaps them, which it refuses while weak references exist."""
    ids = set(map(id, weights))
    for key in [key for key in list(_views) if not ids.isdisjoint(key)]:
        _views.pop(key, None)


def weight_views(
    weights: Sequence[Tensor], cell: Cell, directions: int, I: int, constants: tuple[float, ...] = ()
) -> WeightViews:
    """The weights as arrays. They are kept between calls, with what backends derive from them.

    A backend that keeps what it computed from the weights' values compares them at each call. `Tensor._version` cannot
    replace that: writes through `.data` or through NumPy do not change it.

    Args:
        weights: for each layer and direction weight_ih, weight_hh, the biases if there are any, weight_hr if there is
            one, those per unit if the cell has some: as in `_flat_weights` of PyTorch's layers. The kernels do not
            check what they read, so the shapes are checked here.
        cell: whose they are.
        directions: D.
        I: the number of features of x.
        constants: those of the cell, as backends may derive arrays from them.
    """
    key = tuple(map(id, weights))
    of = (cell, directions, I, constants)
    found = _views.get(key)
    if found is not None and found.of == of and found.are_of(weights):
        return found

    def ended(_: Any) -> None:
        _views.pop(key, None)

    views = WeightViews(weights, of, ended)
    if views.versions is not None:
        _views[key] = views
    return views


def as_weights(parts: Sequence[Any], cell: Cell) -> Weights:
    """The parts of one layer and direction as `Weights`. The cell and how many there are say which are missing."""
    w_unit = None
    if cell.unit_weights:
        *parts, w_unit = parts
    b_ih, b_hh = parts[2:4] if len(parts) >= 4 else (None, None)
    return Weights(parts[0], parts[1], b_ih, b_hh, parts[-1] if len(parts) in (3, 5) else None, w_unit)


def parts_of_each(weights: Sequence[Any], cell: Cell) -> int:
    """How many of the weights each layer and direction has: 2 to 6, see `as_weights`."""
    GH, R = weights[1].shape
    biased = len(weights) > 2 and len(weights[2].shape) == 1
    return 2 + 2 * biased + (cell.n_gates * R != GH) + bool(cell.unit_weights)


def state_shapes(weights: Sequence[Any], cell: Cell, B: int) -> list[tuple[int, int, int]]:
    """Shapes of the states of a stack: (L*D, B, R) of h, (L*D, B, H) of the others."""
    GH, R = weights[1].shape
    slots = len(weights) // parts_of_each(weights, cell)
    return [(slots, B, width) for width in cell.state_widths(R, GH // cell.n_gates)]


def parts_of(weights: Weights) -> list[Any]:
    """The reverse of `as_weights`."""
    return [part for part in weights if part is not None]
