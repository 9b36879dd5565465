"""The CuPy backend with one schedule for every call, backend="cupy:<schedule>", or with gates computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rnnkit.backends.cupy import choice, layer, side_by_side, tuned
from rnnkit.backends.cupy.every_step import saved_steps
from rnnkit.backends.cupy.free_memory import free_bytes
from rnnkit.backends.cupy.layer import Saved
from rnnkit.backends.cupy.recompute_buffers import recompute_problem
from rnnkit.backends.cupy.saved import reserve_bytes
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.interface import BackwardCall, Description, Forward, Gradients, LayerCall, Sizes
from rnnkit.core.autotune import autotuning
from rnnkit.core.cells import Array, Cell
from rnnkit.core.dtypes import DType


@dataclass(frozen=True)
class Pinned:
    """This backend with some choices made for every call. `backward` uses those of the forward pass.

    schedule: its name, or None for the one of the least predicted time.
    reason: why that schedule, for `explain`; None where the caller has named it.
    recomputes: whether backward computes the gates again: see `recompute`.
    """

    schedule: str | None
    reason: str | None = None
    recomputes: bool = False

    def forward(self, call: LayerCall) -> Forward:
        return layer.forward(call, self.schedule, self.recomputes)

    def backward(self, call: BackwardCall) -> Gradients:
        return layer.backward(call)

    def reserve_bytes(self, cell: Cell, dtype: DType, sizes: Sizes, ragged: bool) -> int:
        return reserve_bytes(cell, dtype, sizes, ragged, self.recomputes)

    def saved_in_reserve(self, call: LayerCall) -> Saved:
        return layer.saved_in_reserve(call, self.schedule, self.recomputes)

    def saved_steps(self, cell: Cell, dtype: DType, saved: Any) -> dict[str, Array]:
        return saved_steps(cell, dtype, saved)

    def forward_directions(self, calls: Sequence[LayerCall]) -> list[Forward]:
        return side_by_side.forward_directions(calls, self.schedule, self.recomputes)

    def backward_directions(self, calls: Sequence[BackwardCall]) -> list[Gradients]:
        return side_by_side.backward_directions(calls)

    def layers_at_once(
        self, cell: Cell, dtype: DType, sizes: Sizes, layers: int, keep: bool, device: int | None = None
    ) -> int:
        return side_by_side.layers_at_once(cell, dtype, sizes, layers, keep, device, self.schedule)

    def forward_layers(self, calls: Sequence[LayerCall], masks: Sequence[Array | None]) -> list[Forward]:
        return side_by_side.forward_layers(calls, masks, self.schedule, self.recomputes)

    def describe_layers(self, cell: Cell, dtype: DType, sizes: Sizes, layers: int, keep: bool) -> tuple[str, int]:
        recomputes = self.recomputes and keep
        return side_by_side.describe_layers(cell, dtype, sizes, layers, keep, self.schedule, recomputes)

    def backward_layers_at_once(self, saved: Sequence[Saved]) -> int:
        return side_by_side.backward_layers_at_once(saved)

    def backward_layers(self, calls: Sequence[BackwardCall], masks: Sequence[Array | None]) -> list[Gradients]:
        return side_by_side.backward_layers(calls, masks)

    def describe_backward_layers(self, cell: Cell, dtype: DType, sizes: Sizes, layers: int) -> tuple[str, int]:
        return side_by_side.describe_backward_layers(cell, dtype, sizes, layers, self.schedule, self.recomputes)

    def describe(self, cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
        return layer.describe(cell, dtype, sizes, keep, self.schedule, self.reason, self.recomputes)

    def for_stack(
        self,
        cell: Cell,
        dtype: DType,
        sizes: Sizes,
        layers: int,
        keep: bool,
        device: int | None = None,
        run: Callable[[Any], None] | None = None,
    ) -> Pinned | None:
        if self.schedule is not None:
            return None
        found = for_stack(cell, dtype, sizes, layers, keep, device, run, self.recomputes)
        return None if found is None else replace(found, recomputes=self.recomputes)

    def recomputing(self) -> Pinned:
        return replace(self, recomputes=True)

    def recompute_problem(self, cell: Cell) -> str | None:
        return recompute_problem(cell)

    def free_bytes(self, device: int | None, most: int) -> int | None:
        return free_bytes(device, most)


pinned = Pinned


def recomputing() -> Pinned:
    """See `rnnkit.backends.Backend`."""
    return Pinned(None, recomputes=True)


def for_stack(
    cell: Cell,
    dtype: DType,
    sizes: Sizes,
    layers: int,
    keep: bool,
    device: int | None = None,
    run: Callable[[Any], None] | None = None,
    recomputes: bool = False,
) -> Pinned | None:
    """See `rnnkit.backends.Backend`. recomputes: as of `Pinned`, which the result does not say.

    With `rnnkit.autotune` on, the schedule is the one that was measured.
    """
    import cupy

    if sizes.R != sizes.H or choice.captured():
        return None
    number = cupy.cuda.Device().id if device is None else device
    work = Work(cell, dtype, sizes, keep, recomputes=recomputes)
    if autotuning():
        return _tuned(work, number, layers, run, recomputes)
    found = choice.of_stack(choice.widest(work), number, layers)
    return None if found is None else Pinned(found[0].name, found[1])


def _tuned(work: Work, device: int, layers: int, run: Callable[[Any], None] | None, recomputes: bool) -> Pinned | None:
    """The schedule that was measured to run the stack in the least time; until then the one that is predicted to.

    Measures first where `run` is given and nothing is known. None where one schedule alone serves the work.
    """
    import cupy

    widest = choice.widest(work)
    serving = choice.serving(widest, device)
    if len(serving) < 2:
        return None
    name = choice.fastest(work, device, layers)
    if run is not None:
        if name is None:
            runs = {one: partial(run, Pinned(one, recomputes=recomputes)) for one in serving}
            with cupy.cuda.Device(device):
                name = tuned.fastest(tuned.measure(work, device, runs, layers), serving)
        assert name is not None, "all that serve were measured"
        return Pinned(name)
    predicted = choice.of_stack(widest, device, layers) if name is None else None
    row, why = predicted or choice.chosen(widest, device, name)[:2]
    return Pinned(row.name, choice.about_tuning(work, device, row, why, layers))
