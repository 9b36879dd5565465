"""What Numba's host side would do with a driver: streams, views of arrays, the launch of a kernel."""

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
    """One launch: the dispatcher, its sizes, the address of the stream, and the arguments' types as Numba has them."""

    kernel: Any
    blocks: int
    threads: int
    stream: int
    types: tuple[Any, ...]


class _Holder:
    """What NumPy makes a view of; it keeps the memory's owner alive."""

    def __init__(self, described: dict[str, Any], owner: Any) -> None:
        self.__array_interface__, self.owner = described, owner


class View(NamedTuple):
    """A Numba array over host memory; `synchronised` is whether making it would have waited for the stream."""

    array: np.ndarray
    synchronised: bool


def available() -> str | None:
    """Why there is nothing to run kernels with, or None."""
    for module, package in (("numba_cuda", "numba-cuda"), ("greenlet", "greenlet")):
        if importlib.util.find_spec(module) is None:
            return unless_required("emulators", f"{package} is not installed")
    return None


@contextmanager
def installed(seed: int | None = None, watch: bool = False) -> Iterator[list[Launch]]:
    """Kernels run here until the end of the block; gives the list that launches are added to.

    seed: the order of threads and blocks, ascending for None. watch: races and bounds are checked, at some cost.
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
    """The host memory that an array's `__cuda_array_interface__` points to."""
    described = dict(array.__cuda_array_interface__)
    stream = described.pop("stream", None)
    return View(np.asarray(_Holder(described, array)), sync and stream is not None)


def _launch(
    kernel: Any, configuration: tuple[int, int, int], arguments: tuple[Any, ...], seed: int | None, watch: bool
) -> Launch:
    blocks, threads, stream = configuration
    if any(isinstance(a, View) and a.synchronised for a in arguments):
        raise KernelError("an array was handed over with a synchronisation of its stream")
    bound = kernel.targetoptions.get("launch_bounds") or 1024
    if not (1 <= blocks < 2**31 and 1 <= threads <= bound and threads % 32 == 0):
        raise KernelError(f"{blocks} blocks of {threads} threads; whole warps up to {bound} threads")
    grid = Grid(blocks, threads, seed)
    log = Log(grid)
    taken = [(Watched(a.array, log) if watch else a.array) if isinstance(a, View) else a for a in arguments]
    function = clone(kernel, grid.cuda)

    def thread() -> None:
        with np.errstate(all="ignore"):  # which a greenlet does not inherit
            function(*taken)

    grid.run(thread)
    return Launch(kernel, blocks, threads, stream, tuple(map(_type_of, arguments)))


def _type_of(argument: Any) -> Any:
    """The type Numba would give the argument: of a device array, by the layout that its strides have."""
    from numba import types
    from numba.cuda.cudadrv.dummyarray import Array
    from numba.cuda.np.numpy_support import from_dtype

    if not isinstance(argument, View):
        return {bool: types.boolean, int: types.int64}[type(argument)]
    a = argument.array
    flags = Array.from_desc(0, a.shape, a.strides, a.itemsize).flags
    layout = "C" if flags["C_CONTIGUOUS"] else "F" if flags["F_CONTIGUOUS"] else "A"
    return types.Array(from_dtype(a.dtype), a.ndim, layout)
