"""The schedule of some work, and what runs beside its steps: by predicted time, by name, or as `rnnkit.autotune` found.

Both are chosen once for the same sizes on a device, and kept.
"""

from __future__ import annotations

from functools import lru_cache

from rnnkit.backends.cupy import overlap, schedules, tuned
from rnnkit.backends.cupy.arena import capturing
from rnnkit.backends.cupy.card import card_of
from rnnkit.backends.cupy.cost import rates_of
from rnnkit.backends.cupy.overlap import Plan
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.schedules import Schedule, Work, choose
from rnnkit.backends.interface import Sizes
from rnnkit.core.autotune import autotuning


def chosen(
    work: Work, device: int, pinned: str | None, layers: int = 1, together: bool = False
) -> tuple[Schedule, str, Plan]:
    """The schedule for the work on a device, why, and the plan of its forward pass.

    layers, together: as in `overlap.plan`.
    """
    return _chosen(work, device, pinned, schedules.SCHEDULES, layers, together)


@lru_cache(maxsize=4096)
def _chosen(
    work: Work, device: int, pinned: str | None, rows: tuple[Schedule, ...], layers: int, together: bool
) -> tuple[Schedule, str, Plan]:
    """rows: SCHEDULES, which are part of the cache's key."""
    card = card_of(device)
    rates = rates_of(card)
    found, why = choose(work, card, rates, pinned)
    return found, why, overlap.plan(found, work, card, rates, layers, together)


@lru_cache(maxsize=4096)
def backward_plan(schedule: Schedule, work: Work, device: int, layers: int = 1, together: bool = False) -> Plan:
    """The plan of the backward pass of some work by a schedule."""
    card = card_of(device)
    return overlap.plan(schedule, work, card, rates_of(card), layers, together, backward=True)


def of_stack(work: Work, device: int, layers: int) -> tuple[Schedule, str] | None:
    """Another schedule than that of one layer, and why, where it runs `layers` of them in less time; None where none
    does. A schedule with fewer blocks runs more layers at once.
    """
    return _of_stack(work, device, schedules.SCHEDULES, layers)


@lru_cache(maxsize=4096)
def _of_stack(work: Work, device: int, rows: tuple[Schedule, ...], layers: int) -> tuple[Schedule, str] | None:
    """rows: SCHEDULES, which are part of the cache's key."""
    card = card_of(device)
    rates = rates_of(card)
    alone, _ = choose(work, card, rates)
    times = {}
    for row in rows:
        if row.problem(work, card) is None:
            passes = (False, True) if work.keep else (False,)
            times[row.name] = sum(overlap.pass_seconds(row, work, card, rates, layers, backward) for backward in passes)
    best = min(rows, key=lambda row: times.get(row.name, float("inf")))
    if best.name == alone.name or times[best.name] > (1 - overlap.LEAST_GAIN) * times[alone.name]:
        return None
    both = ", ".join(f"{name} {1e3 * times[name]:.2f}" for name in (best.name, alone.name))
    return best, f"{best.about}; for {layers} layers of a stack, least time in ms predicted: {both}"


def serving(work: Work, device: int) -> list[str]:
    """The names of the schedules that serve the work on a device."""
    card = card_of(device)
    return [schedule.name for schedule in schedules.SCHEDULES if schedule.problem(work, card) is None]


def fastest(work: Work, device: int, layers: int = 1) -> str | None:
    """With `rnnkit.autotune` on, the schedule that was measured to be the fastest one; None if none was measured.

    layers: as in `tuned.key_of`.
    """
    times = tuned.times_of(work, device, layers) if autotuning() else None
    return None if times is None else tuned.fastest(times, serving(widest(work), device))


def about_tuning(work: Work, device: int, schedule: Schedule, why: str, layers: int = 1) -> str:
    """Why a schedule is chosen while `rnnkit.autotune` is on. layers: as in `tuned.key_of`."""
    times = tuned.times_of(work, device, layers)
    if times is None:
        return f"{why}; autotune is on: the first call of these sizes measures"
    listed = ", ".join(f"{name} {1e6 * seconds:.1f}" for name, seconds in times.items())
    stack = f" for {layers} layers of a stack" if layers > 1 else ""
    return f"{schedule.about}; the fastest{stack} by rnnkit.autotune, measured in us per call: {listed}"


def work_of(p: Problem, keep: bool) -> Work:
    """The work of a problem."""
    return Work(p.cell, p.dtype, Sizes(p.T, p.B, p.I, p.H, p.R, p.N), keep, p.projected, p.recomputes)


def widest(work: Work) -> Work:
    """The work of any layer of a stack whose first layer has this one: the layers above read H units."""
    sizes = work.sizes
    return work._replace(sizes=sizes._replace(I=max(sizes.I, sizes.H)))


def planned(plan: Plan, p: Problem) -> Problem:
    """The problem as the plan says, or inside a capture as it is."""
    return p if plan.steps is None or captured() else plan.applied(p)


def captured() -> bool:
    """Whether the current stream is inside a capture that is not rnnkit's. Then a call has no plan, and its work stays
    on that stream: another stream that the call made would end with it, and the capture goes on.
    """
    import cupy

    return capturing(cupy.cuda.get_current_stream())
