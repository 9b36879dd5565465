"""The CuPy backend: CUDA C++ kernels compiled by NVRTC, and cuBLAS. This file chooses a schedule and names what fails.

See `rnnkit.backends.cupy.schedules` for the schedules. Everything is launched on CuPy's current stream, on the arrays'
own device, and nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends import Description, Forward, Gradients, Sizes
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.schedules import Schedule, choose
from rnnkit.core.cells import Array, Cell, State, Weights
from rnnkit.core.dtypes import DType
from rnnkit.errors import DeviceError, DeviceMemoryError

# cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY: what is allocated beside CuPy's pool fails so.
OUT_OF_MEMORY = 2


class Saved(NamedTuple):
    """What `backward` needs: the schedule that ran, the problem, and the schedule's own part."""

    schedule: Schedule
    problem: Problem
    own: Any


def forward(
    cell: Cell,
    dtype: DType,
    x: Array,
    state0: State,
    weights: Weights,
    *,
    lengths: np.ndarray | None,
    reverse: bool,
    keep: bool,
    out: Array | None = None,
    schedule: str | None = None,
) -> Forward:
    """See `rnnkit.backends.Backend.forward`. schedule: the name of the one to run, None for the first that serves.

    Raises DeviceMemoryError, UnsupportedDeviceError or DeviceError, see `rnnkit.errors`.
    """
    problem = Problem.of(cell, dtype, x, weights, lengths, reverse)
    with _on(x.device, problem):
        chosen, _ = choose(cell, dtype, _sizes(problem), arch_of(x.device.id), schedule)
        y, state_n, own = chosen.load().forward(problem, x, state0, weights, keep)
    return Forward(y, state_n, Saved(chosen, problem, own) if keep else None)


def backward(
    cell: Cell, dtype: DType, saved: Saved, dy: Array | None, dstate_n: State, weights: Weights, into: Weights | None
) -> Gradients:
    """See `rnnkit.backends.Backend.backward`. Raises as `forward`."""
    with _on(weights.w_hh.device, saved.problem):
        return saved.schedule.load().backward(saved.problem, saved.own, dy, dstate_n, weights)


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool, schedule: str | None = None) -> Description:
    """See `rnnkit.backends.Backend.describe`; of the current device. schedule: as `forward`."""
    import cupy

    chosen, why = choose(cell, dtype, sizes, arch_of(cupy.cuda.Device().id), schedule)
    detail, transient, kept = chosen.load().describe(cell, dtype, sizes, keep)
    return Description(f"{cell.name}, schedule {chosen.name}: {why}; {detail}", transient, kept)


@dataclass(frozen=True)
class Pinned:
    """This backend with one schedule for every call. `backward` follows what the forward ran."""

    schedule: str

    def forward(self, *args: Any, **options: Any) -> Forward:
        return forward(*args, **options, schedule=self.schedule)

    def backward(self, *args: Any) -> Gradients:
        return backward(*args)

    def describe(self, cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
        return describe(cell, dtype, sizes, keep, self.schedule)


pinned = Pinned


@cache
def arch_of(device: int) -> int:
    """The compute capability of a device: 90 for 9.0."""
    import cupy

    return int(cupy.cuda.Device(device).compute_capability)


def _sizes(p: Problem) -> Sizes:
    return Sizes(p.T, p.B, p.I, p.H, p.R, p.N)


@contextmanager
def _on(device: Any, p: Problem) -> Iterator[None]:
    """With `device` current, and CuPy's errors by rnnkit's names."""
    import cupy

    def said(problem: Exception) -> str:
        sizes = f"T={p.T}, B={p.B}, I={p.I}, H={p.H}"
        return f"{p.cell.name} in {p.dtype.name} with {sizes} on cuda:{device.id}: {problem}"

    with device:
        try:
            yield
        except (cupy.cuda.memory.OutOfMemoryError, DeviceMemoryError) as problem:
            raise DeviceMemoryError(f"{said(problem)} (it does not fit the device's memory)") from problem
        except (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError) as problem:
            kind = DeviceMemoryError if problem.status == OUT_OF_MEMORY else DeviceError
            raise kind(said(problem)) from problem
        except cupy.cuda.compiler.CompileException as problem:
            raise DeviceError(f"{said(problem)} (a kernel does not compile for this card)") from problem
        except DeviceError as problem:
            raise DeviceError(said(problem)) from problem
