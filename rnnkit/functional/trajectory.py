"""Every step's states and gates of a stack of layers, from what a forward saves for backward. NumPy or CuPy arrays.

`rnnkit.trajectory` and `rnnkit.torch.trajectory` check their arguments and make the StackCall. All is time-major.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends import Choice
from rnnkit.core import checks
from rnnkit.core.cells import Array, Cell, State
from rnnkit.core.devices import array_module
from rnnkit.core.option_steps import gates_at_limits
from rnnkit.functional import segmented, stack
from rnnkit.functional.segments import Segments


class Flagged(NamedTuple):
    """The resets and the mask of a call.

    segments      what they decide
    reset_state   as state0, or None for zeros
    resets, mask  (T, B) booleans on the host, or None
    """

    segments: Segments
    reset_state: State | None
    resets: np.ndarray | None
    mask: np.ndarray | None


def checked_layer(of_layer: Any, layers: int) -> int:
    """of_layer as one of range(layers). Raises TypeError or ValueError."""
    if isinstance(of_layer, checks.NOT_NUMBERS) or not isinstance(of_layer, (int, np.integer)):
        raise TypeError(f"of_layer must be a whole number, got {of_layer!r}")
    if not -layers <= of_layer < layers:
        raise ValueError(f"of_layer must be in [{-layers}, {layers}), got {of_layer}")
    return int(of_layer) % layers


def check_served(choice: Choice, cell: Cell) -> None:
    """Raises ValueError where a forward does not save the gates."""
    if not hasattr(choice.backend, "saved_steps"):
        raise ValueError(f"trajectory does not serve the backend {choice.row.name!r}, which does not give saved steps")
    if choice.dtype.weights:
        raise ValueError("trajectory does not serve a layer with compressed weights, which saves nothing for backward")
    if cell.gates_from is None and not set(cell.gates) <= set(cell.saved):
        raise ValueError(f"trajectory does not serve the cell {cell.name}, whose gates are not saved")


def every_step(call: stack.StackCall, layer: int, flagged: Flagged | None) -> dict[str, Array]:
    """The states after each step of a layer, and the gates, by name: (T, B, D*H), in memory of their own.

    call: in evaluation mode, with `keep`. flagged: None if nothing is reset or masked.
    """
    cell = call.cell
    gates = [name for name in cell.gates if name not in cell.states]
    first = layer * len(call.layers[0])
    if flagged is None:
        sides = _of_call(call, gates, first)
    else:
        sides = _of_segments(call, flagged, gates, first)
        if flagged.mask is not None:
            _carry(sides, call, flagged, first)
    xp: Any = array_module(call.x)
    return {name: xp.concatenate([steps[name] for steps in sides], axis=2) for name in (*cell.states, *gates)}


def _of_call(call: stack.StackCall, gates: list[str], first: int) -> list[dict[str, Array]]:
    """For each direction of a layer the states after each step, and the gates. first: slot of the layer's states."""
    if not len(call.x):
        return _of_no_steps(call, gates)
    _, state_n, saved = stack.forward(call)
    assert saved is not None
    cell, choice = call.cell, call.choice
    backend: Any = choice.backend
    sides = []
    for direction, own in enumerate(saved.directions[first // len(call.layers[0])]):
        values = backend.saved_steps(cell, choice.dtype, own)
        steps = gates_at_limits(cell, call.constants, {name: values[name] for name in gates})
        for name, ends in zip(cell.states, state_n, strict=True):
            steps[name] = _after(values[f"{name}_prev"], ends[first + direction], call.lengths, direction == 1)
        sides.append(steps)
    return sides


def _of_no_steps(call: stack.StackCall, gates: list[str]) -> list[dict[str, Array]]:
    cell = call.cell
    B = call.x.shape[1]
    xp: Any = array_module(call.x)
    GH, R = call.layers[0][0].weights.w_hh.shape
    H = GH // cell.n_gates
    widths = dict(zip(cell.states, cell.state_widths(R, H), strict=True)) | dict.fromkeys(gates, H)
    return [{name: xp.zeros((0, B, n), call.x.dtype) for name, n in widths.items()} for _ in call.layers[0]]


def _of_segments(call: stack.StackCall, flagged: Flagged, gates: list[str], first: int) -> list[dict[str, Array]]:
    """As `_of_call`, with resets and a mask: zero where a step is masked."""
    T, B, _ = call.x.shape
    found = flagged.segments
    tables = found.on(array_module(call.x))
    of_groups = segmented.calls(call, tables, found, flagged.reset_state)
    groups = [_of_call(of_group, gates, first) for of_group in of_groups]
    return [
        {name: segmented.ungrouped([side[name] for side in of_all], tables, T, B) for name in of_all[0]}
        for of_all in zip(*groups, strict=True)
    ]


def _carry(sides: list[dict[str, Array]], call: stack.StackCall, flagged: Flagged, first: int) -> None:
    """Writes the states that masked steps carry: those after the nearest live step, or those of the segment's begin."""
    T, B, _ = call.x.shape
    xp: Any = array_module(call.x)
    none = np.zeros((T, B), bool)
    _, again, resets, mask = flagged
    inside = ~none if call.lengths is None else np.arange(T)[:, None] < call.lengths
    reset = none if resets is None else resets & inside
    live = inside if mask is None else mask & inside
    rows = np.arange(B)
    for direction, steps in enumerate(sides):
        nearest, restarted = np.full(B, -1), np.zeros(B, bool)
        source, begun = np.zeros((T, B), np.int64), none.copy()
        for t in reversed(range(T)) if direction else range(T):
            if t + direction < T:
                nearest[reset[t + direction]] = -1
                restarted |= reset[t + direction]
            nearest[live[t]] = t
            source[t] = np.where(nearest < 0, -1, nearest * B + rows)
            begun[t] = restarted
        at = xp.asarray(source.ravel())
        for k, name in enumerate(call.cell.states):
            start = call.state0[k][first + direction]
            restart = xp.zeros_like(start) if again is None else again[k][first + direction]
            of_begin = xp.where(xp.asarray(begun[:, :, None]), restart, start)
            after = steps[name]
            carried = after.reshape(T * B, -1).take(xp.maximum(at, 0), axis=0).reshape(after.shape)
            carried = xp.where(xp.asarray((source >= 0)[:, :, None]), carried, of_begin)
            steps[name] = xp.where(xp.asarray(inside[:, :, None]), carried, after)


def _after(before: Array, end: Array, lengths: np.ndarray | None, reverse: bool) -> Array:
    """The states after each step (T, B, ·), from those before it and the final ones (B, ·)."""
    xp: Any = array_module(before)
    T, B, _ = before.shape
    last = np.full(B, T) if lengths is None else lengths
    after = xp.zeros_like(before)
    times = np.arange(T)[:, None]
    if reverse:
        live = xp.asarray((times < last)[:, :, None])
        after[1:] = before[:-1]
        after[:1] = end
        return xp.where(live, after, after.dtype.type(0))
    after[:-1] = before[1:]  # zero from a row's last step on
    return xp.where(xp.asarray((times == last - 1)[:, :, None]), end, after)
