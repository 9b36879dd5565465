"""Numba's host side without a driver: streams, views of arrays, the launch of a kernel."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from rnnkit.backends import registry
from tests.required import unless_required
from tests.tools.greenlets.block import Grid, KernelError
from tests.tools.greenlets.clone import clone
from tests.tools.greenlets.watch import Log, Watched


class Launch(NamedTuple):
    """One launch: the dispatcher, its sizes, the address of the stream, and the arguments' Numba types."""

    kernel: Any
    blocks: int
    threads: int
    stream: int
    types: tuple[Any, ...]


class _Holder:
    """An object that NumPy can view as an array. It keeps the owner of the memory alive."""

    def __init__(self, described: dict[str, Any], owner: Any) -> None:
        self.__array_interface__ = described
        self.owner = owner


class View(NamedTuple):
    """A Numba array over host memory. synchronised: whether creating it would have synchronised with the stream."""

    array: np.ndarray
    synchronised: bool


def available() -> str | None:
    """Why kernels cannot run here, or None if they can."""
    for module, package in (("numba_cuda", "numba-cuda"), ("greenlet", "greenlet")):
        if importlib.util.find_spec(module) is None:
            return unless_required("emulators", f"{package} is not installed")
    return None


@contextmanager
def installed(seed: int | None = None, watch: bool = False) -> Iterator[list[Launch]]:
    """Runs kernels on the host until the end of the `with` block. Yields the list of launches, which grows.

    seed: the random order of threads and blocks; None for ascending. watch: checks for races and bounds, and is slower.
    """
    from numba import cuda
    from numba.cuda.dispatcher import CUDADispatcher

    launches: list[Launch] = []

    def configured(kernel: Any, configuration: tuple[int, int, int]) -> Any:
        def call(*arguments: Any) -> None:
            launches.append(_launch(kernel, configuration, arguments, seed, watch))

        return call

    with (
        mock.patch.object(registry, "_libnvvm_problem", return_value=None),  # nothing is compiled here
        mock.patch.object(cuda, "external_stream", int),
        mock.patch.object(cuda, "as_cuda_array", view),
        mock.patch.object(CUDADispatcher, "__getitem__", configured),
    ):
        yield launches


def view(array: Any, sync: bool = True) -> View:
    """A view of the host memory that an array's `__cuda_array_interface__` points to."""
    described = dict(array.__cuda_array_interface__)
    stream = described.pop("stream", None)
    return View(np.asarray(_Holder(described, array)), sync and stream is not None)


def _launch(
    kernel: Any, configuration: tuple[int, int, int], arguments: tuple[Any, ...], seed: int | None, watch: bool
) -> Launch:
    blocks, threads, stream = configuration
    if any(isinstance(a, View) and a.synchronised for a in arguments):
        raise KernelError("the view of an argument was made with a synchronisation of its stream")
    bound = kernel.targetoptions.get("launch_bounds") or 1024
    if not (1 <= blocks < 2**31 and 1 <= threads <= bound and threads % 32 == 0):
        raise KernelError(f"{blocks} blocks of {threads} threads; it must be whole warps of up to {bound} threads")
    grid = Grid(blocks, threads, seed)
    log = Log(grid)
    if watch:
        grid.watched = lambda array: Watched(array, log)
    taken = [(Watched(a.array, log) if watch else a.array) if isinstance(a, View) else a for a in arguments]
    function = clone(kernel, grid.cuda)

    def thread() -> None:
        with np.errstate(all="ignore"):  # a greenlet does not inherit the caller's errstate
            function(*taken)

    grid.run(thread)
    return Launch(kernel, blocks, threads, stream, tuple(map(_type_of, arguments)))


def _type_of(argument: Any) -> Any:
    """The type that Numba would infer for the argument. A device array's layout follows from its strides."""
    from numba import types
    from numba.cuda.cudadrv.dummyarray import Array
    from numba.cuda.np.numpy_support import from_dtype

    if not isinstance(argument, View):
        return {bool: types.boolean, int: types.int64}[type(argument)]
    a = argument.array
    flags = Array.from_desc(0, a.shape, a.strides, a.itemsize).flags
    layout = "C" if flags["C_CONTIGUOUS"] else "F" if flags["F_CONTIGUOUS"] else "A"
    return types.Array(from_dtype(a.dtype), a.ndim, layout)
