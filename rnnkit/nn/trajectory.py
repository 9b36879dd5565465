"""Every step's states and gates, from what a fused forward saves for backward."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkit.core import checks
from rnnkit.core.cells import State
from rnnkit.core.devices import array_module, on_own_device
from rnnkit.core.option_steps import gates_at_limits
from rnnkit.functional import segmented, stack
from rnnkit.functional.segments import Segments
from rnnkit.functional.step_flags import StepFlags, given_flags
from rnnkit.nn.module import Array
from rnnkit.nn.rnn_base import Recurrent, check_recurrent


def trajectory(
    layer: Recurrent,
    x: Array,
    h0: Any = None,
    lengths: Any = None,
    *,
    of_layer: int = -1,
    resets: Any = None,
    reset_state: Any = None,
    mask: Any = None,
) -> dict[str, Array]:
    """Runs a recurrent layer, and returns its states and gates at every step. Not differentiable.

    It is one forward call in evaluation mode, whose saved values are copied out: no second loop over time. So dropout
    is off, zoneout takes its expected value, and `layer.backward` still refers to the call before. In 16-bit dtypes the
    gates are rounded as they are saved.

    Args:
        layer: an RNN, GRU, LSTM or SLSTM.
        x: as the layer takes it.
        h0: initial state, as the layer takes it.
        lengths: number of steps of each row, as the layer takes it.
        of_layer: which of the stacked layers, in [-num_layers, num_layers).
        resets, reset_state, mask: as the layer takes them. A masked step has the states that it carries, and gates of
            zero.

    Returns:
        A dict of arrays (T, B, D*H), in the layout of x and on its device, zero past a row's length: the states after
        each step under "h" (with a projection (T, B, D*P)), for an LSTM "c" and for an SLSTM "c", "n" and "m", and the
        gates after their activations, by the names of `layer.cell.gates`: "i", "f", "g", "o", for a GRU "r", "z", "n",
        for an SLSTM "i", "f", "z", "o". An RNN has "h" alone.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has a bad shape or value, the layer has compressed weights, or its backend does not
            serve this.

    Examples:
        >>> import numpy as np, rnnkit
        >>> lstm = rnnkit.LSTM(4, 6, rng=0)
        >>> x = np.ones((5, 3, 4), np.float32)
        >>> steps = rnnkit.trajectory(lstm, x)
        >>> sorted(steps), steps["c"].shape
        (['c', 'f', 'g', 'h', 'i', 'o'], (5, 3, 6))
        >>> bool((steps["h"] == lstm(x)[0]).all())
        True
    """
    check_recurrent(layer)
    return _trajectory(layer, x, h0, lengths, of_layer, given_flags(resets, reset_state, mask, False), reset_state)


@on_own_device
def _trajectory(
    layer: Recurrent, x: Array, h0: Any, lengths: Any, of_layer: Any, flags: StepFlags | None, reset_state: Any
) -> dict[str, Array]:
    L, D = layer.num_layers, layer.num_directions
    if isinstance(of_layer, checks.NOT_NUMBERS) or not isinstance(of_layer, (int, np.integer)):
        raise TypeError(f"of_layer must be a whole number, got {of_layer!r}")
    if not -L <= of_layer < L:
        raise ValueError(f"of_layer must be in [{-L}, {L}), got {of_layer}")
    choice = layer._choice()
    if not hasattr(choice.backend, "saved_steps"):
        raise ValueError(f"trajectory does not serve the backend {choice.row.name!r}, which does not give saved steps")
    if choice.dtype.weights:
        raise ValueError("trajectory does not serve a layer with compressed weights, which saves nothing for backward")
    if layer.cell.gates_from is None and not set(layer.cell.gates) <= set(layer.cell.saved):
        raise ValueError(f"trajectory does not serve the cell {layer.cell.name}, whose gates are not saved")
    x, unbatched = layer._time_major("x", x, layer.input_size)
    T, B, _ = x.shape
    checked = checks.lengths(lengths, T, B, unbatched)
    state0 = layer._states(h0, "{}0", B, unbatched)
    xp: Any = array_module(x)
    rates = layer.regularisation
    cell = layer.cell if rates is None else rates.cell(layer.cell, training=False)
    gates = [name for name in cell.gates if name not in cell.states]
    call = stack.StackCall(
        cell=cell,
        choice=choice,
        x=xp.ascontiguousarray(x),
        state0=state0,
        layers=layer._caches(),
        lengths=checked,
        keep=True,
        constants=layer._constants,
        noise=None if rates is None else rates.noise(False, layer.rng),
    )
    first = of_layer % L * D
    found = None if flags is None else flags.segments(T, B, unbatched, layer.batch_first, D, checked)
    again = None
    if reset_state is not None:
        names = "reset_state" if len(cell.states) == 1 else "{} of reset_state"
        again = layer._states(reset_state, names, B, unbatched)
    sides: list[dict[str, Array]]
    if found is None:
        sides = _of_call(call, gates, first)
    else:
        sides = _of_segments(call, found, again, gates, first)
        if flags is not None and flags.mask is not None:
            _carry(sides, call, flags, again, first, unbatched, layer.batch_first)
    return {
        name: layer._user_layout(xp.concatenate([steps[name] for steps in sides], axis=2), unbatched)
        for name in (*cell.states, *gates)
    }


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


def _of_segments(
    call: stack.StackCall, found: Segments, again: State | None, gates: list[str], first: int
) -> list[dict[str, Array]]:
    """As `_of_call`, with resets and a mask: zero where a step is masked."""
    T, B, _ = call.x.shape
    tables = found.on(array_module(call.x))
    groups = [_of_call(of_group, gates, first) for of_group in segmented.calls(call, tables, found, again)]
    return [
        {name: segmented.ungrouped([side[name] for side in of_all], tables, T, B) for name in of_all[0]}
        for of_all in zip(*groups, strict=True)
    ]


def _carry(
    sides: list[dict[str, Array]],
    call: stack.StackCall,
    flags: StepFlags,
    again: State | None,
    first: int,
    unbatched: bool,
    batch_first: bool,
) -> None:
    """Writes the states that masked steps carry: those after the nearest live step, or those of the segment's begin."""
    T, B, _ = call.x.shape
    xp: Any = array_module(call.x)
    none = np.zeros((T, B), bool)
    resets = checks.step_flags("resets", flags.resets, T, B, unbatched, batch_first)
    mask = checks.step_flags("mask", flags.mask, T, B, unbatched, batch_first)
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
