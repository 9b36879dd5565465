"""The NumPy oracle against the equations and finite differences, which need no other library.

The forward is compared with `tests.oracle.reference`, and every element of every gradient with a central difference of
the forward in float64. Everything else in the project is compared with the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.cells import CELLS
from rnnkit.functional import direction
from rnnkit.testing import CASES, Case, assert_close, make_inputs, run
from tests.helpers import LAYERS, parts, randn, random_state, slow_except
from tests.oracle import reference

# Sixth-order differences: with this step, truncation and rounding errors are below the float64 tolerance of DTYPES.
STENCIL = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
STEP = 2e-3
# Seeds with which no pre-activation of relu is so close to 0 that a difference crosses the kink.
CELL_SEED, LAYER_SEED = 8, 2
SLSTM_SEED = 0  # with which no difference crosses a kink of the sLSTM


def difference(loss: Callable[[], float], a: np.ndarray) -> np.ndarray:
    """d loss / d a. Changes each element in place and restores it. Wrong if a difference crosses the kink of relu."""
    grad = np.zeros_like(a)
    for index in np.ndindex(a.shape):
        centre = a[index]
        for k, weight in STENCIL:
            a[index] = centre + k * STEP
            above = loss()
            a[index] = centre - k * STEP
            grad[index] += weight * (above - loss()) / STEP
        a[index] = centre
    return grad


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_equals_the_equations(case: Case) -> None:
    inputs = make_inputs(case)
    y, state_n, _ = direction.forward(
        case.cell,
        inputs.x,
        inputs.state0,
        inputs.weights,
        lengths=inputs.lengths,
        reverse=case.reverse,
        backend="numpy",
    )
    want_y, want_n = reference.forward(case.cell, inputs.x, inputs.state0, inputs.weights, inputs.lengths, case.reverse)
    assert_close("y", y, want_y, "float64")
    for name, got, want in zip(CELLS[case.cell].states, state_n, want_n, strict=True):
        assert_close(f"{name}_n", got, want, "float64")


def _small(cell: str, **features: Any) -> Case:
    return Case(cell, T=4, B=3, I=2, H=3, **features)


GRADIENT_CASES = [
    _small(name, reverse=reverse, ragged=ragged)
    for name in CELLS
    for reverse in (False, True)
    for ragged in (False, True)
]
GRADIENT_CASES += [_small(name, bias=False) for name in CELLS]
GRADIENT_CASES += [_small("lstm", P=2, reverse=on, ragged=on) for on in (False, True)]


def assert_finite_differences(case: Case) -> None:
    """Compares every gradient of the case on the NumPy backend with differences of a loss of all results."""
    inputs = make_inputs(case, seed=SLSTM_SEED if case.cell == "slstm" else CELL_SEED)
    got = run(case, inputs, "numpy")
    dy = np.nan_to_num(inputs.dy)  # dy is NaN in the padding; y is zero there, which its product with zero still checks

    def loss() -> float:
        y, state_n, _ = direction.forward(
            case.cell,
            inputs.x,
            inputs.state0,
            inputs.weights,
            lengths=inputs.lengths,
            reverse=case.reverse,
            backend="numpy",
            keep=False,
        )
        return float((y * dy).sum() + sum((s * d).sum() for s, d in zip(state_n, inputs.dstate_n, strict=True)))

    moved = {"dx": inputs.x}
    moved |= {f"d{name}0": s for name, s in zip(CELLS[case.cell].states, inputs.state0, strict=True)}
    moved |= {f"d{name}": w for name, w in inputs.weights._asdict().items() if w is not None}
    assert moved.keys() == {name for name in got if name.startswith("d")}
    for name, a in moved.items():
        assert np.abs(got[name]).max() > 1e-3, f"{name} is zero"
        assert_close(name, got[name], difference(loss, a), "float64", "backward")


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
def test_every_gradient_of_a_cell_equals_the_finite_difference(case: Case) -> None:
    assert_finite_differences(case)


LAYER_CASES = [(name, 0) for name in LAYERS] + [("lstm", 1)]


@pytest.mark.parametrize(("name", "proj_size"), slow_except(LAYER_CASES, ("lstm", 1), unpack=True))
def test_every_gradient_of_two_bidirectional_layers_with_dropout_equals_the_finite_difference(
    name: str, proj_size: int
) -> None:
    projection = {"proj_size": proj_size} if proj_size else {}
    layer = LAYERS[name](
        2, 2, 2, dropout=0.3, bidirectional=True, dtype="float64", backend="numpy", rng=5, **projection
    )
    rng = np.random.default_rng(LAYER_SEED)
    T, B, lengths = 3, 3, [2, 0, 3]
    x, state = randn(rng, T, B, 2), random_state(layer, B, rng)
    dy, dstate = randn(rng, T, B, layer.output_size), random_state(layer, B, rng)
    masks = layer.rng.bit_generator.state

    def call() -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        layer.rng.bit_generator.state = masks
        y, state_n = layer(x, state, lengths)
        return y, parts(state_n)

    def loss() -> float:
        with rnnkit.no_grad():
            y, state_n = call()
        return float((y * dy).sum() + sum((s * d).sum() for s, d in zip(state_n, parts(dstate), strict=True)))

    y, _ = call()
    layer.eval()
    assert not np.array_equal(y, call()[0]), "no element was dropped, so dropout is not tested"
    layer.train().zero_grad()
    call()
    dx, dstate0 = layer.backward(dy, dstate)
    got = {"dx": (dx, x)}
    got |= {f"dstate0[{k}]": pair for k, pair in enumerate(zip(parts(dstate0), parts(state), strict=True))}
    got |= {parameter: (layer.grads[parameter].copy(), layer.params[parameter]) for parameter in layer.params}
    for what, (grad, a) in got.items():
        assert np.abs(grad).max() > 1e-4, f"the gradient of {what} is zero"
        assert_close(what, grad, difference(loss, a), "float64", "backward")
