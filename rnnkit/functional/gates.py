"""Whether a call saves the gates of every step for backward, or the states alone, from which backward computes them.

Computing them again is one product over all steps at once, where `chunked` runs the scan again, step by step. A backend
that can do so has `recomputing`: rnnkit/backends/interface.py. The choice is by memory: gates are saved where that
fits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rnnkit.backends import Choice, Sizes
from rnnkit.core import checks
from rnnkit.core.cells import Cell
from rnnkit.core.dtypes import DType


class Needs(NamedTuple):
    """Bytes that a call allocates: saved for backward with the gates, and without; and what it needs beside them."""

    saving: int
    recomputing: int
    beside: int = 0


class Decision(NamedTuple):
    """Whether the gates are computed again, and from what that was decided.

    asked  what the caller said, or None
    most   the most bytes that the call may save, or None
    free   bytes that the device has left, or None where the gates are a small part of its memory
    never  why the gates of the cell cannot be computed again, or None
    """

    recomputes: bool
    needs: Needs
    asked: bool | None = None
    most: int | None = None
    free: int | None = None
    never: str | None = None

    @property
    def words(self) -> str:
        """For `explain`."""
        if self.never is not None:
            return f"gates: saved for backward; {self.never}"
        saving, recomputing, beside = self.needs
        sizes = f"{saving:,} bytes with the gates, {recomputing:,} without"
        how = "computed again in backward, from the states" if self.recomputes else "saved for backward"
        if self.asked is not None:
            return f"gates: {how}, as recompute_gates={self.asked} says; {sizes}"
        if self.most is not None:
            fit = "" if min(saving, recomputing) <= self.most else "; neither fits, so the call runs in chunks"
            return f"gates: {how}; {sizes}, of {self.most:,} that max_saved_bytes allows{fit}"
        if self.free is None:
            return f"gates: {how}; {sizes}, a small part of the device's memory"
        return f"gates: {how}; {sizes}, and {beside:,} beside them; the device has {self.free:,} left"


def decide(needs: Needs, asked: bool | None = None, most: int | None = None, free: int | None = None) -> Decision:
    """The choice for a call whose gates can be computed again. Pure. The arguments are those of `Decision`.

    Gates are saved where that fits, and where nothing fits `most`, so that the call runs in chunks. Where the device
    is too small for either, the smaller one is tried.
    """
    saving, recomputing, beside = needs
    if asked is not None:
        recomputes = asked
    elif most is not None:
        recomputes = recomputing <= most < saving
    else:
        recomputes = free is not None and saving + beside > free and recomputing < saving
    return Decision(recomputes, needs, asked, most, free)


def may_be_large(choice: Choice, cell: Cell, T: int, B: int, I: int, H: int, layers: int, directions: int) -> bool:
    """Whether a call may save so much that its gates are worth a choice: False in little time for most calls."""
    asked = getattr(choice.backend, "free_bytes", None)
    if asked is None:
        return False
    columns = cell.n_saved + cell.n_cell_states + 3 + directions  # h, an operand or statistics, and x
    return asked(None, 8 * T * B * layers * directions * (columns * H + I)) is not None


def gates_of(
    choice: Choice,
    cell: Cell,
    sizes: Sizes,
    layers: int,
    directions: int,
    asked: Any,
    most: int | None,
    saved: Callable[[Choice], int],
) -> tuple[Choice, Decision | None]:
    """The choice with the backend that saves the gates, or one that computes them again; and why, or None where a
    backend has one way only.

    sizes: of the first layer. asked: `recompute_gates` of the call, unchecked. most: a checked `max_saved_bytes`.
    saved: the bytes that a call with a choice saves for backward, which are compared with `most`.

    Raises TypeError for a bad `asked`, and ValueError where it is True and cannot be done.
    """
    asked = None if asked is None else checks.flag("recompute_gates", asked)
    backend: Any = choice.backend
    can = hasattr(backend, "recomputing")
    problem = backend.recompute_problem(cell) if can else f"backend {choice.row.name!r} always saves the gates"
    if problem is not None:
        if asked:
            raise ValueError(f"recompute_gates must be None or False here ({problem}), got True")
        return choice, Decision(False, Needs(0, 0), never=problem) if can else None
    again = choice._replace(backend=backend.recomputing())
    if most is not None or asked is not None:
        decision = decide(Needs(saved(choice), saved(again)), asked, most)
    else:
        needs = needs_of(backend, again.backend, cell, choice.dtype, sizes, layers, directions)
        decision = decide(needs, free=backend.free_bytes(None, needs.saving))
    return (again if decision.recomputes else choice), decision


def needs_of(
    saving: Any, recomputing: Any, cell: Cell, dtype: DType, sizes: Sizes, layers: int, directions: int
) -> Needs:
    """What a call allocates that grows with T. Pure.

    saving, recomputing: the backends of both ways. sizes: of the first layer. Beside what is saved these are y of every
    layer, and in backward dx of two layers.
    """
    T, B, I, _, R, _ = sizes
    width = directions * R
    beside = T * B * dtype.storage.itemsize * (layers * width + 2 * max(I, width))
    ragged = sizes.N != T * B
    total = []
    for backend in (saving, recomputing):
        first = backend.reserve_bytes(cell, dtype, sizes, ragged)
        above = backend.reserve_bytes(cell, dtype, sizes._replace(I=width), ragged) if layers > 1 else 0
        total.append(directions * (first + (layers - 1) * above))
    return Needs(total[0], total[1], beside)
