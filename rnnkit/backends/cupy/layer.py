"""The CuPy backend: CUDA C++ kernels compiled by NVRTC, and cuBLAS.

This file chooses a schedule (`rnnkit.backends.cupy.schedules`) and translates CuPy's errors. Everything is launched on
CuPy's current stream, on the arrays' device, and nothing synchronises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

from rnnkit.backends.cupy import schedules
from rnnkit.backends.cupy.arena import current as current_arena
from rnnkit.backends.cupy.card import card_of
from rnnkit.backends.cupy.cost import rates_of
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.schedules import Schedule, Work, choose
from rnnkit.backends.interface import BackwardCall, Description, Forward, Gradients, LayerCall, Sizes
from rnnkit.core.cells import Cell
from rnnkit.core.dtypes import DType
from rnnkit.errors import DeviceError, DeviceMemoryError

# cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY: allocations outside CuPy's pool fail with this status.
OUT_OF_MEMORY = 2

Result = TypeVar("Result")


class Saved(NamedTuple):
    """What `backward` needs: the schedule of the forward pass, the problem, and what the schedule itself saved."""

    schedule: Schedule
    problem: Problem
    own: Any


def forward(call: LayerCall, schedule: str | None = None) -> Forward:
    """See `rnnkit.backends.Backend.forward`. schedule: its name, or None for the one of the least predicted time.

    Raises DeviceMemoryError, UnsupportedDeviceError or DeviceError, see `rnnkit.errors`.
    """
    problem = Problem.of(call)
    device = call.x.device
    with _on(device, problem):
        work = Work(call.cell, call.dtype, _sizes(problem), call.keep, problem.projected)
        chosen = _chosen(work, device.id, schedule, schedules.SCHEDULES)[0]
        given = call if chosen.strided_y else call._replace(out=None)
        y, state_n, own = chosen.load().forward(problem, given)
    return y, state_n, Saved(chosen, problem, own) if call.keep else None


def backward(call: BackwardCall) -> Gradients:
    """See `rnnkit.backends.Backend.backward`. Raises as `forward`."""
    saved: Saved = call.saved
    with _on(call.weights.w_hh.device, saved.problem):
        return saved.schedule.load().backward(saved.problem, call._replace(saved=saved.own))


def forward_directions(calls: Sequence[LayerCall], schedule: str | None = None) -> list[Forward]:
    """See `rnnkit.backends.Backend`. The first call runs on the current stream, the second one beside it."""
    return _beside([partial(forward, call, schedule) for call in calls], calls[0].x.device)


def backward_directions(calls: Sequence[BackwardCall]) -> list[Gradients]:
    """See `rnnkit.backends.Backend`. As `forward_directions`."""
    return _beside([partial(backward, call) for call in calls], calls[0].weights.w_hh.device)


def _beside(calls: Sequence[Callable[[], Result]], device: Any) -> list[Result]:
    """The results of two calls, the second of which runs on another stream of the device, between two events.

    Memory that the second call allocates belongs to the other stream's pool. It is freed at any time, and used again
    only there, in a later call of this function: after the event that the current stream records at its beginning.
    """
    with device:
        arena = current_arena()
        here = arena.stream
        there = arena.beside()
        there.wait_event(here.record())
        try:
            with there:
                second = calls[1]()
        finally:
            done = there.record()
            try:
                first = calls[0]()
            finally:
                here.wait_event(done)
    return [first, second]


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool, schedule: str | None = None) -> Description:
    """See `rnnkit.backends.Backend.describe`, for the current device. schedule: as in `forward`."""
    import cupy

    work = Work(cell, dtype, sizes, keep, projected=sizes.R != sizes.H)
    chosen, why = _chosen(work, cupy.cuda.Device().id, schedule, schedules.SCHEDULES)
    detail, transient, kept = chosen.load().describe(cell, dtype, sizes, keep)
    kernel = f"{cell.name}, schedule {chosen.name}: {why}; {detail}"
    return Description(kernel, transient, kept, placed=chosen.strided_y, beside=True)


@dataclass(frozen=True)
class Pinned:
    """This backend with one schedule for every call. `backward` uses the schedule of the forward pass."""

    schedule: str

    def forward(self, call: LayerCall) -> Forward:
        return forward(call, self.schedule)

    def backward(self, call: BackwardCall) -> Gradients:
        return backward(call)

    def forward_directions(self, calls: Sequence[LayerCall]) -> list[Forward]:
        return forward_directions(calls, self.schedule)

    def backward_directions(self, calls: Sequence[BackwardCall]) -> list[Gradients]:
        return backward_directions(calls)

    def describe(self, cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
        return describe(cell, dtype, sizes, keep, self.schedule)


pinned = Pinned


@lru_cache(maxsize=4096)
def _chosen(work: Work, device: int, pinned: str | None, rows: tuple[Schedule, ...]) -> tuple[Schedule, str]:
    """The schedule for the work on a device, and why. rows: SCHEDULES, which are part of the cache's key."""
    card = card_of(device)
    return choose(work, card, rates_of(card), pinned)


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
