"""SCHEDULES: the ways to run a layer-direction on a card, one row each, in order of preference; and the choice.

A schedule is a module in this folder (`ScheduleModule`), its kernels in kernels/cuda, and a row. The last row serves
every shape, so one row always serves.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.sources import STORAGES, Build
from rnnkit.backends.interface import BackwardCall, Gradients, LayerCall, Sizes
from rnnkit.core.cells import Array, Cell, State
from rnnkit.core.dtypes import DType
from rnnkit.errors import UnsupportedDeviceError

OLDEST_ARCH = 70


class Work(NamedTuple):
    """What a schedule is asked to run: one layer-direction. keep: whether a backward follows."""

    cell: Cell
    dtype: DType
    sizes: Sizes
    keep: bool
    projected: bool = False


class ScheduleModule(Protocol):
    """What the module of a schedule provides."""

    def problem(self, work: Work, card: CardFacts) -> str | None:
        """Why the schedule does not serve the work on this card, or None. Decided without a card."""
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
    """One row of SCHEDULES: the name of its module, and what it does in words."""

    name: str
    about: str

    def load(self) -> ScheduleModule:
        module: Any = importlib.import_module(f"rnnkit.backends.cupy.{self.name}")
        return module

    def problem(self, work: Work, card: CardFacts) -> str | None:
        """See `ScheduleModule.problem`."""
        return self.load().problem(work, card)

    def builds(self) -> tuple[Build, ...]:
        """See `ScheduleModule.builds`."""
        return self.load().builds()


SCHEDULES: tuple[Schedule, ...] = (
    Schedule("one_block", "one launch for many steps, one block per tile of rows, W_hh in registers and shared memory"),
    Schedule("grid", "one launch for many steps, groups of blocks with W_hh on the chip that exchange h through L2"),
    Schedule("stepwise", "a cuBLAS product and a fused pointwise launch per step, in CUDA graphs"),
)


def choose(work: Work, card: CardFacts, pinned: str | None = None) -> tuple[Schedule, str]:
    """The schedule for a call on a card, and why. Pure: the same arguments give the same choice on every machine.

    pinned: the name of the only schedule to consider, or None for all of them in order.
    Raises UnsupportedDeviceError if no schedule serves the card, or the dtype on this card, and if the pinned schedule
    does not serve the call.
    """
    _check_card(work.dtype, card)
    passed_over: list[str] = []
    for schedule in SCHEDULES:
        if pinned is not None and schedule.name != pinned:
            continue
        problem = schedule.problem(work, card)
        if problem is None:
            asked_for = [] if pinned is None else ["pinned"]
            return schedule, "; ".join([schedule.about, *asked_for, *passed_over])
        passed_over.append(f"passed over {schedule.name}: {problem}")
    if pinned is not None:
        raise UnsupportedDeviceError(f"the pinned schedule cannot run: {passed_over[0].removeprefix('passed over ')}")
    raise UnsupportedDeviceError("; ".join(passed_over))


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
