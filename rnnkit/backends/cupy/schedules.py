"""SCHEDULES: the ways to run a layer-direction on a card, one row each, in order of preference; and the choice.

A schedule is a module in this folder, with forward, backward and describe over `problem.Problem`; `sources` holds the
builds of its kernels. The last row serves every shape, so one row always serves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rnnkit.backends import Sizes
from rnnkit.backends.cupy import sources
from rnnkit.core.cells import Cell
from rnnkit.core.dtypes import DType
from rnnkit.errors import UnsupportedDeviceError

OLDEST_ARCH = 70


@dataclass(frozen=True)
class Schedule:
    """One row of SCHEDULES. `problem` gives the reason why it does not serve (cell, dtype, sizes, arch), or None."""

    name: str
    about: str
    problem: Callable[[Cell, DType, Sizes, int], str | None]

    def load(self) -> Any:
        return importlib.import_module(f"rnnkit.backends.cupy.{self.name}")


SCHEDULES: tuple[Schedule, ...] = (
    Schedule(
        "stepwise",
        "a cuBLAS product and a fused pointwise launch per step, in CUDA graphs",
        lambda cell, dtype, sizes, arch: None,
    ),
)


def choose(cell: Cell, dtype: DType, sizes: Sizes, arch: int, pinned: str | None = None) -> tuple[Schedule, str]:
    """The schedule for a call on a card of compute capability `arch` (90 for 9.0), and why.

    pinned: the name of the only schedule to consider, or None for all of them in order.
    Raises UnsupportedDeviceError if no schedule serves the card, or the dtype on this card, and if the pinned schedule
    does not serve the call.
    """
    if arch < OLDEST_ARCH:
        oldest = f"{OLDEST_ARCH // 10}.{OLDEST_ARCH % 10}"
        raise UnsupportedDeviceError(
            f"the card must have compute capability {oldest} or later, it has {arch // 10}.{arch % 10}"
        )
    needs = sources.STORAGES[dtype.stored][1]
    if arch < needs:
        raise UnsupportedDeviceError(
            f"dtype {dtype.name} needs compute capability {needs // 10}.{needs % 10} or later, the card has "
            f"{arch // 10}.{arch % 10}"
        )
    passed_over: list[str] = []
    for schedule in SCHEDULES:
        if pinned is not None and schedule.name != pinned:
            continue
        problem = schedule.problem(cell, dtype, sizes, arch)
        if problem is None:
            asked_for = [] if pinned is None else ["pinned"]
            return schedule, "; ".join([schedule.about, *asked_for, *passed_over])
        passed_over.append(f"passed over {schedule.name}: {problem}")
    if pinned is not None:
        raise UnsupportedDeviceError(f"the pinned schedule cannot run: {passed_over[0].removeprefix('passed over ')}")
    raise UnsupportedDeviceError("; ".join(passed_over))
