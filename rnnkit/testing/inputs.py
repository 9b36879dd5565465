"""The arrays of a case: random numbers, the same in every dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnkit.core.cells import Array, State, Weights, cell_of
from rnnkit.core.devices import to_device, to_numpy
from rnnkit.core.dtypes import resolve_dtype
from rnnkit.testing.cases import Case

WIDE_TANH = 100  # for a larger H, make_inputs halves the recurrent weights of rnn_tanh


@dataclass
class Inputs:
    """The arrays of one forward and backward pass: random numbers, different in every row and never all zero.

    Attributes:
        x: (T, B, I).
        state0: initial state, a tuple in the order of the cell's states, with h0 (B, R) and others (B, H); R is P with
            a projection, else H.
        weights: a `rnnkit.core.cells.Weights`.
        lengths: number of steps of each row, (B,), or None.
        dy: gradient of y, (T, B, R).
        dstate_n: gradient of the final state, with the shapes of state0.

    Examples:
        >>> from rnnkit.testing import Case, make_inputs
        >>> make_inputs(Case("gru")).x.shape
        (5, 3, 4)
    """

    x: Array
    state0: State
    weights: Weights
    lengths: np.ndarray | None
    dy: Array
    dstate_n: State


def make_inputs(case: Case, dtype: Any = "float64", seed: int = 0, device: str = "cpu") -> Inputs:
    """Draws the inputs of a case: the same numbers in every dtype, up to its rounding.

    Padding of x and dy is NaN, because nothing may read it. float32 and float64 inputs hold equal numbers.

    Args:
        case: the case.
        dtype: a name in DTYPES or a NumPy dtype.
        seed: seed of the random numbers.
        device: "cpu" or "cuda:<index>".

    Returns:
        An `Inputs` on that device.

    Raises:
        ValueError: the dtype is unknown.

    Examples:
        >>> from rnnkit.testing import Case, make_inputs
        >>> make_inputs(Case("lstm"), "float32").weights.w_ih.shape
        (24, 4)
    """
    rng = np.random.default_rng([seed, case.T, case.B, case.I, case.H])
    storage = resolve_dtype(dtype).storage
    cell = cell_of(case.cell)
    GH = cell.n_gates * case.H
    R = case.P or case.H

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        # Rounded to float32, so that a float64 run and a float32 run start from equal numbers.
        return (scale * rng.standard_normal(shape)).astype(np.float32).astype(storage)

    k = case.H**-0.5
    # The recurrent matrix has a spectral radius near 1. In a wide tanh layer, which has no gates, a rounding error
    # would then not decay over the following steps, and would hide the error of a kernel. So its weights are halved.
    recurrent = 0.5 * k if case.cell == "rnn_tanh" and case.H > WIDE_TANH else k
    biases = (draw(GH, scale=0.5), draw(GH, scale=0.5)) if case.bias else (None, None)
    weights = Weights(
        draw(GH, case.I, scale=k),
        draw(GH, R, scale=recurrent),
        biases[0],
        biases[1],
        draw(case.P, case.H, scale=k) if case.P else None,
    )
    widths = cell.state_widths(R, case.H)
    state0 = tuple(draw(case.B, w, scale=0.5) for w in widths)
    if "n" in cell.states:  # a sum that is 0 before the first step, and at least 1 after it
        n0 = (1 + np.abs(state0[2].astype(np.float32))).astype(storage)
        state0 = (*state0[:2], n0, *state0[3:])
    dstate_n = tuple(draw(case.B, w) for w in widths)
    x = draw(case.T, case.B, case.I)
    dy = draw(case.T, case.B, R)
    if cell.unit_weights:
        weights = weights._replace(w_unit=draw(len(cell.unit_weights), case.H))
    lengths = None
    if case.ragged:
        lengths = rng.integers(0, case.T + 1, case.B)
        lengths[0] = case.T
        if case.B > 1:
            lengths[1] = 0
        x[np.arange(case.T)[:, None] >= lengths] = np.nan
        dy[np.arange(case.T)[:, None] >= lengths] = np.nan

    def put(a: Any) -> Any:
        return None if a is None else to_device(a, device)

    return Inputs(
        put(x),
        tuple(map(put, state0)),
        Weights(*map(put, weights)),
        lengths,
        put(dy),
        tuple(map(put, dstate_n)),
    )


def widened(inputs: Inputs) -> Inputs:
    """Converts inputs to float64 on the host, as the oracle takes them.

    Args:
        inputs: inputs in any dtype, on any device.

    Returns:
        An `Inputs` with the same numbers in float64, in NumPy arrays.

    Examples:
        >>> from rnnkit.testing import Case, make_inputs, widened
        >>> widened(make_inputs(Case("gru"), "float32")).x.dtype
        dtype('float64')
    """

    def wide(a: Any) -> Any:
        return None if a is None else to_numpy(a).astype(np.float64)

    def wide_all(arrays: Any) -> Any:
        return tuple(map(wide, arrays))

    return Inputs(
        wide(inputs.x),
        wide_all(inputs.state0),
        Weights(*wide_all(inputs.weights)),
        inputs.lengths,
        wide(inputs.dy),
        wide_all(inputs.dstate_n),
    )
