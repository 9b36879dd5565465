"""Every step's states and gates, from what a fused forward saves for backward."""

from __future__ import annotations

from typing import Any

from rnnkit.core import checks
from rnnkit.core.devices import array_module, on_own_device
from rnnkit.functional import stack
from rnnkit.functional.step_flags import StepFlags, given_flags
from rnnkit.functional.trajectory import Flagged, check_served, checked_layer, every_step
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
        layer: an RNN, GRU, LSTM or SLSTM. `rnnkit.torch.trajectory` takes those of rnnkit.torch.
        x: as the layer takes it.
        h0: initial state, as the layer takes it.
        lengths: number of steps of each row, as the layer takes it.
        of_layer: which of the stacked layers, in [-num_layers, num_layers).
        resets: as the layer takes them.
        reset_state: as the layer takes it.
        mask: as the layer takes it. A masked step has the states that it carries, and gates of zero.

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
    check_recurrent(layer, "rnnkit.torch.trajectory takes those of rnnkit.torch")
    return _trajectory(layer, x, h0, lengths, of_layer, given_flags(resets, reset_state, mask, False), reset_state)


@on_own_device
def _trajectory(
    layer: Recurrent, x: Array, h0: Any, lengths: Any, of_layer: Any, flags: StepFlags | None, reset_state: Any
) -> dict[str, Array]:
    number = checked_layer(of_layer, layer.num_layers)
    choice = layer._choice()
    check_served(choice, layer.cell)
    x, unbatched = layer._time_major("x", x, layer.input_size)
    T, B, _ = x.shape
    checked = checks.lengths(lengths, T, B, unbatched)
    state0 = layer._states(h0, "{}0", B, unbatched)
    xp: Any = array_module(x)
    rates = layer.regularisation
    cell = layer.cell if rates is None else rates.cell(layer.cell, training=False)
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
    flagged = None
    if flags is not None:
        found = flags.segments(T, B, unbatched, layer.batch_first, layer.num_directions, checked)
        again = None
        if reset_state is not None:
            names = "reset_state" if len(cell.states) == 1 else "{} of reset_state"
            again = layer._states(reset_state, names, B, unbatched)
        if found is not None:
            flagged = Flagged(found, again, *flags.checked(T, B, unbatched, layer.batch_first))
    steps = every_step(call, number, flagged)
    return {name: layer._user_layout(values, unbatched) for name, values in steps.items()}
