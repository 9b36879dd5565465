"""The CuPy backend: CUDA C++ kernels compiled by NVRTC, and cuBLAS.

This file runs one layer in one direction by a schedule (`choice`), and translates CuPy's errors. `side_by_side` runs
several at once. Everything is launched on CuPy's current stream, or on streams that it waits for, on the arrays'
device, and nothing synchronises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from rnnkit.backends.cupy import choice, overlap, passes, tuned
from rnnkit.backends.cupy.backward_launcher import backward_buffers
from rnnkit.backends.cupy.overlap import Plan
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.recompute_buffers import recompute_buffers
from rnnkit.backends.cupy.saved import saved_bytes
from rnnkit.backends.cupy.schedules import Schedule, Work
from rnnkit.backends.interface import BackwardCall, Description, Forward, Gradients, LayerCall, Sizes
from rnnkit.core.autotune import autotuning
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


def forward(call: LayerCall, schedule: str | None = None, recomputes: bool = False) -> Forward:
    """See `rnnkit.backends.Backend.forward`. schedule: its name, or None for the one of the least predicted time.

    recomputes: whether backward computes the gates again, instead of what the forward would save of them.

    Raises DeviceMemoryError, UnsupportedDeviceError or DeviceError, see `rnnkit.errors`.
    """
    problem = Problem.of(call, recomputes)
    device = call.x.device
    with on(device, problem):
        work = choice.work_of(problem, call.keep)
        if schedule is None and autotuning():
            schedule = measured(call, work, device.id, recomputes)
        chosen, _, plan = choice.chosen(work, device.id, schedule)
        given = call if chosen.strided_y else call._replace(out=None)
        y, state_n, own = chosen.load().forward(choice.planned(plan, problem), given)
    return y, state_n, Saved(chosen, problem, own) if call.keep else None


def backward(call: BackwardCall) -> Gradients:
    """See `rnnkit.backends.Backend.backward`. Raises as `forward`."""
    schedule, problem, own = call.saved
    device = call.weights.w_hh.device
    with on(device, problem):
        plan = choice.backward_plan(schedule, choice.work_of(problem, True), device.id)
        return schedule.load().backward(choice.planned(plan, problem), call._replace(saved=own))


def saved_in_reserve(call: LayerCall, schedule: str | None = None, recomputes: bool = False) -> Saved:
    """See `rnnkit.backends.Backend`. All schedules save alike, so the schedule of the backward is chosen here: it is
    that of the forward, unless `rnnkit.autotune` has measured another one to be faster meanwhile.
    """
    problem = Problem.of(call, recomputes)
    device = call.x.device
    with on(device, problem):
        work = choice.work_of(problem, True)
        chosen = choice.chosen(work, device.id, schedule or choice.fastest(work, device.id))[0]
        return Saved(chosen, problem, passes.saved_in_reserve(problem, call))


def describe(
    cell: Cell,
    dtype: DType,
    sizes: Sizes,
    keep: bool,
    schedule: str | None = None,
    reason: str | None = None,
    recomputes: bool = False,
) -> Description:
    """See `rnnkit.backends.Backend.describe`, for the current device.

    schedule, recomputes: as in `forward`. reason: why that schedule, or None if the caller has named it.
    """
    import cupy

    recomputes = recomputes and keep
    work = Work(cell, dtype, sizes, keep, sizes.R != sizes.H, recomputes)
    device = cupy.cuda.Device().id
    named = schedule or choice.fastest(work, device)
    chosen, why, plan = choice.chosen(work, device, named)
    if schedule is None and autotuning():
        why = choice.about_tuning(work, device, chosen, why)
    detail, transient, kept = chosen.load().describe(cell, dtype, sizes, keep)
    back = choice.backward_plan(chosen, work, device) if keep else overlap.ALONE
    alone = plan.words(), back.words(backward=True)
    if any(alone) and choice.captured():
        alone = overlap.CAPTURED, ""
    kernel = f"{cell.key}, schedule {chosen.name}: {reason or why}; {detail}"
    transient += more_bytes(work, back)
    if recomputes:
        kernel += "; backward computes the gates of a launch's steps again before them"
        more, less = recompute_bytes(work)
        transient += more
        kept -= less
    return Description(kernel, transient, kept, placed=chosen.strided_y, beside=True, alone=alone)


def more_bytes(work: Work, plan: Plan) -> int:
    """Bytes that the workspace of a backward pass takes with a plan beyond those without, at most: running sums of the
    weights' gradients, where one chunk becomes several.
    """
    p = Problem.of_sizes(work.cell, work.dtype, work.sizes, work.recomputes)
    with_plan, without = (sum(backward_buffers(one).values()) for one in (plan.applied(p), p))
    return max(0, with_plan - without)


def recompute_bytes(work: Work) -> tuple[int, int]:
    """What computing the gates again adds to the workspace, at most, and what forward then does not save, in bytes."""
    p = Problem.of_sizes(work.cell, work.dtype, work.sizes)
    again = replace(p, recomputes=True)
    N = work.sizes.N
    return sum(recompute_buffers(again).values()), saved_bytes(p, N) - saved_bytes(again, N)


def measured(call: LayerCall, work: Work, device: int, recomputes: bool = False) -> str | None:
    """As `choice.fastest`, and measures first if that is not known. None in a capture, which nothing may wait in."""

    known = choice.fastest(work, device)
    serving = choice.serving(work, device)
    if known is not None or len(serving) < 2 or choice.captured():
        return known
    once = call._replace(out=None, reserve=None)

    def run(name: str) -> None:
        y, state_n, saved = forward(once, name, recomputes)
        if call.keep:
            # Without the cache, to whose gradients it would add.
            backward(BackwardCall(call.cell, call.dtype, saved, y, state_n, call.weights))

    return tuned.fastest(tuned.measure(work, device, {name: partial(run, name) for name in serving}), serving)


@contextmanager
def on(device: Any, p: Problem) -> Iterator[None]:
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
