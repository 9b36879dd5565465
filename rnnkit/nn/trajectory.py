"""Every step's states and gates, from what a fused forward saves for backward."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkit.core import checks
from rnnkit.core.devices import array_module, on_own_device
from rnnkit.core.option_steps import gates_at_limits
from rnnkit.functional import stack
from rnnkit.nn.module import Array
from rnnkit.nn.rnn_base import Recurrent, check_recurrent


def trajectory(
    layer: Recurrent, x: Array, h0: Any = None, lengths: Any = None, *, of_layer: int = -1
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
    return _trajectory(layer, x, h0, lengths, of_layer)


@on_own_device
def _trajectory(layer: Recurrent, x: Array, h0: Any, lengths: Any, of_layer: Any) -> dict[str, Array]:
    L, D = layer.num_layers, layer.num_directions
    if isinstance(of_layer, checks.NOT_NUMBERS) or not isinstance(of_layer, (int, np.integer)):
        raise TypeError(f"of_layer must be a whole number, got {of_layer!r}")
    if not -L <= of_layer < L:
        raise ValueError(f"of_layer must be in [{-L}, {L}), got {of_layer}")
    choice = layer._choice()
    steps_of = getattr(choice.backend, "saved_steps", None)
    if steps_of is None:
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
    if not T:
        widths = dict(zip(cell.states, layer._state_widths(), strict=True))
        shapes = {name: (0, B, D * widths.get(name, layer.hidden_size)) for name in (*cell.states, *gates)}
        return {name: layer._user_layout(xp.zeros(shape, layer.dtype), unbatched) for name, shape in shapes.items()}
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
    _, state_n, saved = stack.forward(call)
    assert saved is not None
    first = of_layer % L * D
    found: list[dict[str, Array]] = []
    for direction, own in enumerate(saved.directions[of_layer % L]):
        values = steps_of(cell, choice.dtype, own)
        steps = gates_at_limits(cell, layer._constants, {name: values[name] for name in gates})
        for name, ends in zip(cell.states, state_n, strict=True):
            steps[name] = _after(values[f"{name}_prev"], ends[first + direction], checked, direction == 1)
        found.append(steps)
    return {
        name: layer._user_layout(xp.concatenate([steps[name] for steps in found], axis=2), unbatched)
        for name in (*cell.states, *gates)
    }


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
