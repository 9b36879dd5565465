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

from rnnkit.backends.cupy import overlap, passes, schedules, tuned
from rnnkit.backends.cupy.arena import capturing
from rnnkit.backends.cupy.arena import current as current_arena
from rnnkit.backends.cupy.card import card_of
from rnnkit.backends.cupy.cost import rates_of
from rnnkit.backends.cupy.cublas import workspace_bytes
from rnnkit.backends.cupy.overlap import Plan
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.saved import reserve_bytes
from rnnkit.backends.cupy.schedules import Schedule, Work, choose
from rnnkit.backends.interface import BackwardCall, Description, Forward, Gradients, LayerCall, Sizes
from rnnkit.core.autotune import autotuning
from rnnkit.core.cells import Array, Cell
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
        if schedule is None and autotuning():
            schedule = _measured(call, work, device.id)
        chosen, _, plan = _chosen(work, device.id, schedule, schedules.SCHEDULES)
        given = call if chosen.strided_y else call._replace(out=None)
        planned = problem if _captured() else plan.applied(problem)
        y, state_n, own = chosen.load().forward(planned, given)
    return y, state_n, Saved(chosen, problem, own) if call.keep else None


def _captured() -> bool:
    """Whether the call is inside a capture that is not rnnkit's. Its work stays on the one stream: another stream that
    the call made would end with it, and the capture goes on.
    """
    import cupy

    return capturing(cupy.cuda.get_current_stream())


def backward(call: BackwardCall) -> Gradients:
    """See `rnnkit.backends.Backend.backward`. Raises as `forward`."""
    saved: Saved = call.saved
    with _on(call.weights.w_hh.device, saved.problem):
        return saved.schedule.load().backward(saved.problem, call._replace(saved=saved.own))


def saved_in_reserve(call: LayerCall, schedule: str | None = None) -> Saved:
    """See `rnnkit.backends.Backend`. All schedules save alike, so the schedule of the backward is chosen here: it is
    that of the forward, unless `rnnkit.autotune` has measured another one to be faster meanwhile.
    """
    problem = Problem.of(call)
    device = call.x.device
    with _on(device, problem):
        work = Work(call.cell, call.dtype, _sizes(problem), True, problem.projected)
        chosen = _chosen(work, device.id, schedule or _fastest(work, device.id), schedules.SCHEDULES)[0]
        return Saved(chosen, problem, passes.saved_in_reserve(problem, call))


def layers_at_once(
    cell: Cell,
    dtype: DType,
    sizes: Sizes,
    layers: int,
    keep: bool,
    device: int | None = None,
    schedule: str | None = None,
) -> int:
    """See `rnnkit.backends.Backend`. device: its number, or None for the current one."""
    import cupy

    if sizes.R != sizes.H or _captured():
        return 1
    number = cupy.cuda.Device().id if device is None else device
    work = Work(cell, dtype, sizes._replace(I=max(sizes.I, sizes.H)), keep)
    if schedule is None and autotuning():
        schedule = _fastest(work, number)
        if schedule is None:
            return 1  # so that each layer's own call measures
    return _chosen(work, number, schedule, schedules.SCHEDULES, layers)[2].layers


def forward_layers(
    calls: Sequence[LayerCall], masks: Sequence[Array | None], schedule: str | None = None
) -> list[Forward]:
    """See `rnnkit.backends.Backend`. Raises as `forward`."""
    first = calls[0]
    device = first.x.device
    problems = [Problem.of(call) for call in calls]
    with _on(device, problems[0]):
        sizes = _sizes(problems[0])
        widest = sizes._replace(I=max(sizes.I, sizes.H))
        work = Work(first.cell, first.dtype, widest, first.keep)
        schedule = schedule or _fastest(work, device.id)
        chosen, _, plan = _chosen(work, device.id, schedule, schedules.SCHEDULES, len(calls), together=True)
        planned = [plan.applied(problem) for problem in problems]
        launchers = [chosen.load().launchers(p) for p in planned]
        results = passes.forward_stack(planned, calls, masks, launchers)
    return [
        (y, state_n, Saved(chosen, problem, own) if first.keep else None)
        for problem, (y, state_n, own) in zip(problems, results, strict=True)
    ]


def describe_layers(
    cell: Cell, dtype: DType, sizes: Sizes, layers: int, keep: bool, schedule: str | None = None
) -> tuple[str, int]:
    """See `rnnkit.backends.Backend`."""
    import cupy

    device = cupy.cuda.Device().id
    work = Work(cell, dtype, sizes._replace(I=max(sizes.I, sizes.H)), keep)
    named = schedule or _fastest(work, device)
    plan = _chosen(work, device, named, schedules.SCHEDULES, layers, together=True)[2]
    one = describe(cell, dtype, sizes, keep, schedule).transient - workspace_bytes(device)
    return plan.words, (layers - 1) * one


def forward_directions(calls: Sequence[LayerCall], schedule: str | None = None) -> list[Forward]:
    """See `rnnkit.backends.Backend`. The first call runs on the current stream, the second one beside it.

    One after the other where their blocks wait for each other and the card does not hold those of both.
    """
    call = calls[0]
    device = call.x.device
    work = Work(call.cell, call.dtype, call.sizes, call.keep, call.weights.w_hr is not None)
    with _on(device, Problem.of(call)):
        if schedule is None and autotuning():
            schedule = _measured(call, work, device.id)
        chosen = _chosen(work, device.id, schedule, schedules.SCHEDULES)[0]
        fit = overlap.fit_beside(chosen, work, card_of(device.id))
    own = [partial(forward, call, schedule) for call in calls]
    return _beside(own, device) if fit else [one() for one in own]


def backward_directions(calls: Sequence[BackwardCall]) -> list[Gradients]:
    """See `rnnkit.backends.Backend`. As `forward_directions`."""
    device = calls[0].weights.w_hh.device
    saved: Saved = calls[0].saved
    own = [partial(backward, call) for call in calls]
    p = saved.problem
    work = Work(p.cell, p.dtype, _sizes(p), keep=True, projected=p.projected)
    fit = overlap.fit_beside(saved.schedule, work, card_of(device.id), backward=True)
    return _beside(own, device) if fit else [one() for one in own]


def _beside(calls: Sequence[Callable[[], Result]], device: Any) -> list[Result]:
    """The results of two calls, the second of which runs on another stream of the device, between two events.

    Memory that the second call allocates belongs to the other stream's pool. It is freed at any time, and used again
    only there, in a later call of this function: after the event that the current stream records at its beginning.

    Inside a capture that is not rnnkit's the calls run one after the other.
    """

    with device:
        if _captured():
            return [call() for call in calls]
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
    device = cupy.cuda.Device().id
    named = schedule or _fastest(work, device)
    chosen, why, plan = _chosen(work, device, named, schedules.SCHEDULES)
    if schedule is None and autotuning():
        why = _about_tuning(work, device, chosen, why)
    detail, transient, kept = chosen.load().describe(cell, dtype, sizes, keep)
    kernel = f"{cell.key}, schedule {chosen.name}: {why}; {detail}{plan.words}"
    return Description(kernel, transient, kept, placed=chosen.strided_y, beside=True)


@dataclass(frozen=True)
class Pinned:
    """This backend with one schedule for every call. `backward` uses the schedule of the forward pass."""

    schedule: str

    def forward(self, call: LayerCall) -> Forward:
        return forward(call, self.schedule)

    def backward(self, call: BackwardCall) -> Gradients:
        return backward(call)

    def reserve_bytes(self, cell: Cell, dtype: DType, sizes: Sizes, ragged: bool) -> int:
        return reserve_bytes(cell, dtype, sizes, ragged)

    def saved_in_reserve(self, call: LayerCall) -> Saved:
        return saved_in_reserve(call, self.schedule)

    def forward_directions(self, calls: Sequence[LayerCall]) -> list[Forward]:
        return forward_directions(calls, self.schedule)

    def backward_directions(self, calls: Sequence[BackwardCall]) -> list[Gradients]:
        return backward_directions(calls)

    def layers_at_once(
        self, cell: Cell, dtype: DType, sizes: Sizes, layers: int, keep: bool, device: int | None = None
    ) -> int:
        return layers_at_once(cell, dtype, sizes, layers, keep, device, self.schedule)

    def describe_layers(self, cell: Cell, dtype: DType, sizes: Sizes, layers: int, keep: bool) -> tuple[str, int]:
        return describe_layers(cell, dtype, sizes, layers, keep, self.schedule)

    def forward_layers(self, calls: Sequence[LayerCall], masks: Sequence[Array | None]) -> list[Forward]:
        return forward_layers(calls, masks, self.schedule)

    def describe(self, cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
        return describe(cell, dtype, sizes, keep, self.schedule)


pinned = Pinned


@lru_cache(maxsize=4096)
def _chosen(
    work: Work, device: int, pinned: str | None, rows: tuple[Schedule, ...], layers: int = 1, together: bool = False
) -> tuple[Schedule, str, Plan]:
    """The schedule for the work on a device, why, and what runs beside its steps.

    rows: SCHEDULES, which are part of the cache's key. layers, together: as in `overlap.plan`.
    """
    card = card_of(device)
    rates = rates_of(card)
    chosen, why = choose(work, card, rates, pinned)
    return chosen, why, overlap.plan(chosen, work, card, rates, layers, together)


def _serving(work: Work, device: int) -> list[str]:
    """The names of the schedules that serve the work on a device."""
    card = card_of(device)
    return [schedule.name for schedule in schedules.SCHEDULES if schedule.problem(work, card) is None]


def _fastest(work: Work, device: int) -> str | None:
    """With `rnnkit.autotune` on, the schedule that was measured to be the fastest one; None if none was measured."""
    times = tuned.times_of(work, device) if autotuning() else None
    return None if times is None else tuned.fastest(times, _serving(work, device))


def _measured(call: LayerCall, work: Work, device: int) -> str | None:
    """As `_fastest`, and measures first if that is not known. None during a capture, which nothing may wait in."""

    known = _fastest(work, device)
    serving = _serving(work, device)
    if known is not None or len(serving) < 2 or _captured():
        return known
    once = call._replace(out=None, reserve=None)

    def run(name: str) -> None:
        y, state_n, saved = forward(once, name)
        if call.keep:
            # Without the cache, to whose gradients it would add.
            backward(BackwardCall(call.cell, call.dtype, saved, y, state_n, call.weights))

    return tuned.fastest(tuned.measure(work, device, {name: partial(run, name) for name in serving}), serving)


def _about_tuning(work: Work, device: int, chosen: Schedule, why: str) -> str:
    """Why a schedule is chosen while `rnnkit.autotune` is on."""
    times = tuned.times_of(work, device)
    if times is None:
        return f"{why}; autotune is on: the first call of these sizes measures"
    listed = ", ".join(f"{name} {1e6 * seconds:.1f}" for name, seconds in times.items())
    return f"{chosen.about}; the fastest by rnnkit.autotune, measured in us per call: {listed}"


def _sizes(p: Problem) -> Sizes:
    return Sizes(p.T, p.B, p.I, p.H, p.R, p.N)


@contextmanager
def _on(device: Any, p: Problem) -> Iterator[None]:
    """Makes `device` current, and raises CuPy's errors as rnnkit's."""
    import cupy

    def described(problem: Exception) -> str:
        sizes = f"T={p.T}, B={p.B}, I={p.I}, H={p.H}"
        return f"{p.cell.key} in {p.dtype.name} with {sizes} on cuda:{device.id}: {problem}"

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
