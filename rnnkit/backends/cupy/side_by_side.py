"""Several layers or directions of a CuPy call at once: layers of a stack as a wavefront, and the two directions of one.

How many layers run at once is predicted (`overlap`). Layers of one direction alone, without a projection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from rnnkit.backends.cupy import backward_pass, choice, layer, overlap, passes
from rnnkit.backends.cupy.arena import current as current_arena
from rnnkit.backends.cupy.card import card_of
from rnnkit.backends.cupy.cublas import workspace_bytes
from rnnkit.backends.cupy.layer import Saved
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.schedules import Schedule, Work
from rnnkit.backends.interface import BackwardCall, Forward, Gradients, LayerCall, Sizes
from rnnkit.core.autotune import autotuning
from rnnkit.core.cells import Array, Cell
from rnnkit.core.dtypes import DType

Result = TypeVar("Result")


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

    if sizes.R != sizes.H or choice.captured():
        return 1
    number = cupy.cuda.Device().id if device is None else device
    work = choice.widest(Work(cell, dtype, sizes, keep))
    return choice.chosen(work, number, schedule, layers)[2].layers


def forward_layers(
    calls: Sequence[LayerCall], masks: Sequence[Array | None], schedule: str | None = None, recomputes: bool = False
) -> list[Forward]:
    """See `rnnkit.backends.Backend`. Raises as `layer.forward`."""
    first = calls[0]
    device = first.x.device
    problems = [Problem.of(call, recomputes) for call in calls]
    with layer.on(device, problems[0]):
        work = choice.widest(choice.work_of(problems[0], first.keep))
        chosen, _, plan = choice.chosen(work, device.id, schedule, len(calls), together=True)
        planned = [plan.applied(problem) for problem in problems]
        launchers = [chosen.load().launchers(p) for p in planned]
        results = passes.forward_stack(planned, calls, masks, launchers)
    return [
        (y, state_n, Saved(chosen, problem, own) if first.keep else None)
        for problem, (y, state_n, own) in zip(problems, results, strict=True)
    ]


def backward_layers_at_once(saved: Sequence[Saved]) -> int:
    """See `rnnkit.backends.Backend`. 1 where layers have different schedules, as `rnnkit.autotune` may find."""
    schedule, problem, own = saved[0]
    alike = all(one.schedule is schedule and one.problem.H == problem.H for one in saved)
    if problem.projected or not alike or choice.captured():
        return 1
    work = choice.widest(choice.work_of(problem, True))
    return overlap.evenly(len(saved), choice.backward_plan(schedule, work, own.x.device.id, len(saved)).layers)


def backward_layers(calls: Sequence[BackwardCall], masks: Sequence[Array | None]) -> list[Gradients]:
    """See `rnnkit.backends.Backend`. Raises as `layer.forward`."""
    device = calls[0].weights.w_hh.device
    schedule: Schedule = calls[0].saved.schedule
    problems: list[Problem] = [call.saved.problem for call in calls]
    with layer.on(device, problems[0]):
        work = choice.widest(choice.work_of(problems[-1], True))
        plan = choice.backward_plan(schedule, work, device.id, len(calls), together=True)
        planned = [plan.applied(problem) for problem in problems]
        launchers = [schedule.load().backward_launchers(p) for p in planned]
        own = [call._replace(saved=call.saved.own) for call in calls]
        return backward_pass.backward_stack(planned, own, masks, launchers)


def describe_layers(
    cell: Cell,
    dtype: DType,
    sizes: Sizes,
    layers: int,
    keep: bool,
    schedule: str | None = None,
    recomputes: bool = False,
) -> tuple[str, int]:
    """See `rnnkit.backends.Backend`."""
    chosen, work, device = _described(cell, dtype, sizes, keep, schedule, recomputes)
    plan = choice.chosen(work, device, chosen.name, layers, together=True)[2]
    return plan.words(), (layers - 1) * _own_bytes(cell, dtype, sizes, keep, schedule, recomputes)


def describe_backward_layers(
    cell: Cell, dtype: DType, sizes: Sizes, layers: int, schedule: str | None = None, recomputes: bool = False
) -> tuple[str, int]:
    """See `rnnkit.backends.Backend`."""
    if sizes.R != sizes.H or choice.captured():
        return "", 0
    chosen, work, device = _described(cell, dtype, sizes, True, schedule, recomputes)
    at_once = overlap.evenly(layers, choice.backward_plan(chosen, work, device, layers).layers)
    if at_once == 1:
        return "", 0
    plan = choice.backward_plan(chosen, work, device, at_once, together=True)
    one = _own_bytes(cell, dtype, sizes, True, schedule, recomputes) + layer.more_bytes(work, plan)
    return plan.words(backward=True), (at_once - 1) * one


def _described(
    cell: Cell, dtype: DType, sizes: Sizes, keep: bool, schedule: str | None, recomputes: bool
) -> tuple[Schedule, Work, int]:
    """The schedule of a stack on the current device, the work of any of its layers, and the device."""
    import cupy

    device = cupy.cuda.Device().id
    work = choice.widest(Work(cell, dtype, sizes, keep, recomputes=recomputes))
    return choice.chosen(work, device, schedule)[0], work, device


def _own_bytes(
    cell: Cell, dtype: DType, sizes: Sizes, keep: bool, schedule: str | None, recomputes: bool = False
) -> int:
    """What each of several layers at once has of its own in the arena."""
    import cupy

    found = layer.describe(cell, dtype, sizes, keep, schedule, recomputes=recomputes)
    return found.transient - workspace_bytes(cupy.cuda.Device().id)


def forward_directions(
    calls: Sequence[LayerCall], schedule: str | None = None, recomputes: bool = False
) -> list[Forward]:
    """See `rnnkit.backends.Backend`. The first call runs on the current stream, the second one beside it.

    One after the other where their blocks wait for each other and the card does not hold those of both.
    """
    call = calls[0]
    device = call.x.device
    work = Work(call.cell, call.dtype, call.sizes, call.keep, call.weights.w_hr is not None)
    with layer.on(device, Problem.of(call)):
        if schedule is None and autotuning():
            schedule = layer.measured(call, work, device.id, recomputes)
        chosen = choice.chosen(work, device.id, schedule)[0]
        fit = overlap.fit_beside(chosen, work, card_of(device.id))
    own = [partial(layer.forward, call, schedule, recomputes) for call in calls]
    return _beside(own, device) if fit else [one() for one in own]


def backward_directions(calls: Sequence[BackwardCall]) -> list[Gradients]:
    """See `rnnkit.backends.Backend`. As `forward_directions`."""
    device = calls[0].weights.w_hh.device
    saved: Saved = calls[0].saved
    own = [partial(layer.backward, call) for call in calls]
    work = choice.work_of(saved.problem, True)
    fit = overlap.fit_beside(saved.schedule, work, card_of(device.id), backward=True)
    return _beside(own, device) if fit else [one() for one in own]


def _beside(calls: Sequence[Callable[[], Result]], device: Any) -> list[Result]:
    """The results of two calls, the second of which runs on another stream of the device, between two events.

    Memory that the second call allocates belongs to the other stream's pool. It is freed at any time, and used again
    only there, in a later call of this function: after the event that the current stream records at its beginning.

    Inside a capture that is not rnnkit's the calls run one after the other.
    """

    with device:
        if choice.captured():
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
