"""The CuPy backend: CUDA C++ kernels compiled by NVRTC, and cuBLAS.

This file chooses a schedule (`rnnkit.backends.cupy.schedules`) and translates CuPy's errors. Everything is launched on
CuPy's current stream, on the arrays' device, and nothing synchronises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from rnnkit.backends.cupy.card import card_of
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.schedules import Schedule, Work, choose
from rnnkit.backends.interface import BackwardCall, Description, Forward, Gradients, LayerCall, Sizes
from rnnkit.core.cells import Cell
from rnnkit.core.dtypes import DType
from rnnkit.errors import DeviceError, DeviceMemoryError

# cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY: allocations outside CuPy's pool fail with this status.
OUT_OF_MEMORY = 2


class Saved(NamedTuple):
    """What `backward` needs: the schedule of the forward pass, the problem, and what the schedule itself saved."""

    schedule: Schedule
    problem: Problem
    own: Any


def forward(call: LayerCall, schedule: str | None = None) -> Forward:
    """See `rnnkit.backends.Backend.forward`. schedule: its name, or None for the first one that serves the call.

    Raises DeviceMemoryError, UnsupportedDeviceError or DeviceError, see `rnnkit.errors`.
    """
    problem = Problem.of(call)
    device = call.x.device
    with _on(device, problem):
        work = Work(call.cell, call.dtype, _sizes(problem), call.keep, problem.projected)
        chosen, _ = choose(work, card_of(device.id), schedule)
        y, state_n, own = chosen.load().forward(problem, call)
    return y, state_n, Saved(chosen, problem, own) if call.keep else None


def backward(call: BackwardCall) -> Gradients:
    """See `rnnkit.backends.Backend.backward`. Raises as `forward`."""
    saved: Saved = call.saved
    with _on(call.weights.w_hh.device, saved.problem):
        return saved.schedule.load().backward(saved.problem, call._replace(saved=saved.own))


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool, schedule: str | None = None) -> Description:
    """See `rnnkit.backends.Backend.describe`, for the current device. schedule: as in `forward`."""
    import cupy

    work = Work(cell, dtype, sizes, keep, projected=sizes.R != sizes.H)
    chosen, why = choose(work, card_of(cupy.cuda.Device().id), schedule)
    detail, transient, kept = chosen.load().describe(cell, dtype, sizes, keep)
    return Description(f"{cell.name}, schedule {chosen.name}: {why}; {detail}", transient, kept)


@dataclass(frozen=True)
class Pinned:
    """This backend with one schedule for every call. `backward` uses the schedule of the forward pass."""

    schedule: str

    def forward(self, call: LayerCall) -> Forward:
        return forward(call, self.schedule)

    def backward(self, call: BackwardCall) -> Gradients:
        return backward(call)

    def describe(self, cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
        return describe(cell, dtype, sizes, keep, self.schedule)


pinned = Pinned


def _sizes(p: Problem) -> Sizes:
    return Sizes(p.T, p.B, p.I, p.H, p.R, p.N)


@contextmanager
def _on(device: Any, p: Problem) -> Iterator[None]:
    """Makes `device` current, and raises CuPy's errors as rnnkit's."""
    import cupy

    def described(problem: Exception) -> str:
        sizes = f"T={p.T}, B={p.B}, I={p.I}, H={p.H}"
        return f"{p.cell.name} in {p.dtype.name} with {sizes} on cuda:{device.id}: {problem}"

    with device:
        try:
            yield
        except (cupy.cuda.memory.OutOfMemoryError, DeviceMemoryError) as problem:
            raise DeviceMemoryError(f"{described(problem)} (it does not fit the device's memory)") from problem
        except (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError) as problem:
            kind = DeviceMemoryError if problem.status == OUT_OF_MEMORY else DeviceError
            raise kind(described(problem)) from problem
        except cupy.cuda.compiler.CompileException as problem:
            raise DeviceError(f"{described(problem)} (a kernel does not compile for this card)") from problem
        except DeviceError as problem:
            raise DeviceError(described(problem)) from problem
