"""SCHEDULES: the ways to run a layer-direction on a card, one row each; and the choice, by predicted time.

A schedule is a module in this folder (`ScheduleModule`), its kernels in kernels/cuda, and a row. The last row serves
every shape, so one row always serves.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.cost import Rates
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.sources import STORAGES, Build
from rnnkit.backends.interface import BackwardCall, Gradients, LayerCall, Sizes
from rnnkit.core.cells import Array, Cell, State
from rnnkit.core.dtypes import DType
from rnnkit.errors import UnsupportedDeviceError

OLDEST_ARCH = 70


class Work(NamedTuple):
    """What a schedule is asked to run: one layer-direction. keep: whether a backward follows; recomputes: whether that
    computes the gates again.
    """

    cell: Cell
    dtype: DType
    sizes: Sizes
    keep: bool
    projected: bool = False
    recomputes: bool = False


class ScheduleModule(Protocol):
    """What the module of a schedule provides."""

    def problem(self, work: Work, card: CardFacts) -> str | None:
        """Why the schedule does not serve the work on this card, or None. Decided without a card."""
        ...

    def seconds(self, work: Work, card: CardFacts, rates: Rates) -> float:
        """The predicted time of the steps, and of those of the backward pass if the work keeps; see `cost`."""
        ...

    def blocks(self, work: Work, card: CardFacts, backward: bool = False) -> int:
        """Of a resident schedule: the most blocks of a launch of steps, each with a multiprocessor to itself.

        0 for a backward pass that another schedule runs.
        """
        ...

    def launchers(self, p: Problem) -> Any:
        """Of a resident schedule: `passes.Launchers` of the forward pass."""
        ...

    def backward_launchers(self, p: Problem) -> Any:
        """Of a resident schedule: `backward_pass.Launchers`, where `blocks` says that it has a backward pass."""
        ...

    def builds(self) -> tuple[Build, ...]:
        """Every module of the schedule that this version can compile, beside `sources.rows`."""
        ...

    def forward(self, p: Problem, call: LayerCall) -> tuple[Array, State, Any]:
        """y (T, B, R), the final states, and what `backward` needs."""
        ...

    def backward(self, p: Problem, call: BackwardCall) -> Gradients:
        """The gradients of one forward; call.saved is what it returned."""
        ...

    def describe(self, cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> tuple[str, int, int]:
        """The kernels in words, and the transient and kept bytes of `rnnkit.backends.Description`."""
        ...


@dataclass(frozen=True)
class Schedule:
    """One row of SCHEDULES: the name of its module, and what it does in words.

    strided_y: whether forward writes y into a wider array, `LayerCall.out`.
    resident: whether one launch runs many steps, so that other work can run beside them: see `overlap`.
    waits: whether the blocks of a launch wait for each other, so that all must run at once.
    """

    name: str
    about: str
    strided_y: bool = False
    resident: bool = False
    waits: bool = False

    def load(self) -> ScheduleModule:
        module: Any = importlib.import_module(f"rnnkit.backends.cupy.{self.name}")
        return module

    def problem(self, work: Work, card: CardFacts) -> str | None:
        """See `ScheduleModule.problem`."""
        return self.load().problem(work, card)

    def seconds(self, work: Work, card: CardFacts, rates: Rates) -> float:
        """See `ScheduleModule.seconds`."""
        return self.load().seconds(work, card, rates)

    def builds(self) -> tuple[Build, ...]:
        """See `ScheduleModule.builds`."""
        return self.load().builds()


SCHEDULES: tuple[Schedule, ...] = (
    Schedule(
        "one_block",
        "one launch for many steps, one block per tile of rows, W_hh in registers and shared memory",
        strided_y=True,
        resident=True,
    ),
    Schedule(
        "cluster",
        "one launch for many steps, clusters of blocks with W_hh on the chip that push h to each other",
        strided_y=True,
        resident=True,
    ),
    Schedule(
        "grid",
        "one launch for many steps, groups of blocks with W_hh on the chip that exchange h through L2",
        strided_y=True,
        resident=True,
        waits=True,
    ),
    Schedule("stepwise", "a cuBLAS product and a fused pointwise launch per step, in CUDA graphs", strided_y=True),
)


class Candidate(NamedTuple):
    """A schedule for some work on a card: why it does not serve it, or its predicted seconds."""

    schedule: Schedule
    problem: str | None
    seconds: float = 0.0


def candidates(work: Work, card: CardFacts, rates: Rates) -> list[Candidate]:
    """Every row of SCHEDULES for the work on the card, in their order."""
    found = []
    for schedule in SCHEDULES:
        problem = schedule.problem(work, card)
        seconds = 0.0 if problem else schedule.seconds(work, card, rates)
        found.append(Candidate(schedule, problem, seconds))
    return found


def choose(work: Work, card: CardFacts, rates: Rates, pinned: str | None = None) -> tuple[Schedule, str]:
    """The schedule with the least predicted time, the first of equals, and why. Pure: it looks at its arguments alone.

    pinned: the name of the only schedule to consider, or None for all of them.
    Raises UnsupportedDeviceError if no schedule serves the card, or the dtype on this card, and if the pinned schedule
    does not serve the call.
    """
    _check_card(work.dtype, card)
    if pinned is not None:
        (row,) = (schedule for schedule in SCHEDULES if schedule.name == pinned)
        problem = row.problem(work, card)
        if problem:
            raise UnsupportedDeviceError(f"the pinned schedule cannot run: {row.name}: {problem}")
        return row, f"{row.about}; pinned"
    found = candidates(work, card, rates)
    serving = [candidate for candidate in found if candidate.problem is None]
    passed_over = [f"passed over {c.schedule.name}: {c.problem}" for c in found if c.problem]
    if not serving:
        raise UnsupportedDeviceError("; ".join(passed_over))
    best = min(serving, key=lambda candidate: candidate.seconds)
    why = [best.schedule.about, *passed_over]
    if len(serving) > 1:
        steps = max(1, work.sizes.T)
        times = ", ".join(f"{c.schedule.name} {1e6 * c.seconds / steps:.1f}" for c in serving)
        source = "with this card's own latencies" if rates.measured else "from other cards' latencies"
        both = "both passes" if work.keep else "forward"
        why.append(f"least time in us per step, {both}, predicted {source}: {times}")
    return best.schedule, "; ".join(why)


def _check_card(dtype: DType, card: CardFacts) -> None:
    """Raises UnsupportedDeviceError if no schedule serves the card, or the dtype on it."""
    if card.arch < OLDEST_ARCH:
        oldest = f"{OLDEST_ARCH // 10}.{OLDEST_ARCH % 10}"
        raise UnsupportedDeviceError(
            f"the card must have compute capability {oldest} or later, it has {card.capability}"
        )
    needs = STORAGES[dtype.stored][1]
    if card.arch < needs:
        raise UnsupportedDeviceError(
            f"dtype {dtype.name} needs compute capability {needs // 10}.{needs % 10} or later, the card has "
            f"{card.capability}"
        )
