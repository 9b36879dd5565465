"""Outputs and every gradient against JAX: the equations of the five cells in JAX, differentiated by JAX.

The JAX side shares with rnnkit only PyTorch's layout of the weights. It scans over time with `jax.lax.scan` in float64
and keeps a row's state past its end, so `jax.grad` also gives the gradients of ragged rows.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from rnnkit.testing import CASES, Case, Inputs, assert_close, make_inputs, run
from tests.helpers import CPU_BACKENDS, randn

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402, after importorskip

pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def logistic(a: Any) -> Any:
    return 1 / (1 + jnp.exp(-a))


def rnn(activation: Callable[[Any], Any]) -> Callable[..., Any]:
    def step(x: Any, state: Any, w: dict[str, Any]) -> Any:
        (h,) = state
        return (activation(w["w_ih"] @ x + w["b_ih"] + w["w_hh"] @ h + w["b_hh"]),)

    return step


def gates(w: dict[str, Any], count: int) -> Iterator[tuple[Any, Any, Any, Any]]:
    """One gate at a time: its rows of W_ih, W_hh, b_ih, b_hh."""
    for k in range(count):
        rows = slice(k * (w["w_ih"].shape[0] // count), (k + 1) * (w["w_ih"].shape[0] // count))
        yield w["w_ih"][rows], w["w_hh"][rows], w["b_ih"][rows], w["b_hh"][rows]


def lstm(x: Any, state: Any, w: dict[str, Any]) -> Any:
    h, c = state
    i, f, g, o = (W @ x + U @ h + b + d for W, U, b, d in gates(w, 4))
    c = logistic(f) * c + logistic(i) * jnp.tanh(g)
    h = logistic(o) * jnp.tanh(c)
    return (w["w_hr"] @ h if "w_hr" in w else h), c


def gru(x: Any, state: Any, w: dict[str, Any]) -> Any:
    (h,) = state
    (W_r, U_r, b_r, d_r), (W_z, U_z, b_z, d_z), (W_n, U_n, b_n, d_n) = gates(w, 3)
    r = logistic(W_r @ x + b_r + U_r @ h + d_r)
    z = logistic(W_z @ x + b_z + U_z @ h + d_z)
    n = jnp.tanh(W_n @ x + b_n + r * (U_n @ h + d_n))
    return ((1 - z) * n + z * h,)


def gru_reset_before(x: Any, state: Any, w: dict[str, Any]) -> Any:
    (h,) = state
    (W_r, U_r, b_r, d_r), (W_z, U_z, b_z, d_z), (W_n, U_n, b_n, d_n) = gates(w, 3)
    r = logistic(W_r @ x + b_r + U_r @ h + d_r)
    z = logistic(W_z @ x + b_z + U_z @ h + d_z)
    n = jnp.tanh(W_n @ x + b_n + U_n @ (r * h) + d_n)
    return ((1 - z) * n + z * h,)


def slstm(x: Any, state: Any, w: dict[str, Any]) -> Any:
    """From a state whose n is at least 1."""
    h, c, n, m = state
    a_i, a_f, a_z, a_o = (W @ x + b + U @ h + d for W, U, b, d in gates(w, 4))
    p = jax.nn.log_sigmoid(a_f) + m
    m = jnp.maximum(a_i, p)
    i, f = jnp.exp(a_i - m), jnp.exp(p - m)
    c, n = f * c + i * jnp.tanh(a_z), jnp.maximum(f * n + i, 1)
    return (logistic(a_o) * c / n, c, n, m)


STEPS: dict[str, Callable[..., Any]] = {
    "rnn_tanh": rnn(jnp.tanh),
    "rnn_relu": rnn(lambda a: jnp.where(a > 0, a, 0)),
    "lstm": lstm,
    "gru": gru,
    "gru_reset_before": gru_reset_before,
    "slstm": slstm,
}


def forward(case: Case, live: Any, x: Any, state0: Any, weights: dict[str, Any]) -> tuple[Any, Any]:
    """y (T, B, R) and the final states, one row at a time under vmap; live (T, B): steps within their rows."""
    GH = weights["w_ih"].shape[0]
    w = {"b_ih": jnp.zeros(GH), "b_hh": jnp.zeros(GH), **weights}

    def row(x: Any, live: Any, state0: Any) -> tuple[Any, Any]:
        def step(state: Any, given: tuple[Any, Any]) -> tuple[Any, Any]:
            x_t, is_live = given
            new = STEPS[case.cell](x_t, state, w)
            state = tuple(jnp.where(is_live, n, s) for n, s in zip(new, state, strict=True))
            return state, jnp.where(is_live, state[0], 0)

        end, y = jax.lax.scan(step, state0, (x, live), reverse=case.reverse)
        return y, end

    return jax.vmap(row, in_axes=(1, 1, 0), out_axes=(1, 0))(x, live, state0)


def wanted(case: Case, inputs: Inputs) -> dict[str, Any]:
    """Every output and gradient of the case from JAX, by the names of rnnkit.testing."""
    T, B, _ = inputs.x.shape
    lengths = np.full(B, T) if inputs.lengths is None else inputs.lengths
    live = np.arange(T)[:, None] < lengths
    x, dy = (np.where(live[:, :, None], a, 0) for a in (inputs.x, inputs.dy))
    weights = {name: w for name, w in inputs.weights._asdict().items() if w is not None}

    def loss(x: Any, state0: Any, weights: Any) -> tuple[Any, Any]:
        y, end = forward(case, live, x, state0, weights)
        total = (y * dy).sum() + sum((s * d).sum() for s, d in zip(end, inputs.dstate_n, strict=True))
        return total, (y, end)

    (dx, dstate0, dweights), (y, end) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(x, inputs.state0, weights)
    assert dx.dtype == np.float64
    found = {"y": y, "dx": dx}
    for name, n, d in zip("hcnm", end, dstate0, strict=False):
        found |= {f"{name}_n": n, f"d{name}0": d}
    found |= {f"d{name}": d for name, d in dweights.items()}
    return {name: np.asarray(value) for name, value in found.items()}


def check(case: Case, inputs: Inputs) -> None:
    """Compares every CPU backend with JAX, which compiles once."""
    want = wanted(case, inputs)
    for backend in CPU_BACKENDS:
        got = run(case, inputs, backend)
        assert set(got) == set(want)
        for name, value in want.items():
            kind = "forward" if name == "y" or name.endswith("_n") else "backward"
            assert_close(f"{backend} {case} {name}", got[name], value, "float64", kind)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_every_gradient(case: Case) -> None:
    check(case, make_inputs(case, "float64", seed=7))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", STEPS)
def test_a_longer_ragged_batch(cell: str, reverse: bool, rng: np.random.Generator) -> None:
    """Twenty steps, so that early steps matter in late ones, and unsorted lengths."""
    case = Case(cell, T=20, B=6, I=5, H=8, reverse=reverse, ragged=True)
    inputs = make_inputs(case, "float64", seed=8)
    inputs.lengths = np.array([3, 20, 0, 11, 1, 19])
    padding = np.arange(20)[:, None] >= inputs.lengths
    inputs.x, inputs.dy = randn(rng, 20, 6, 5), randn(rng, 20, 6, 8)
    inputs.x[padding] = inputs.dy[padding] = np.nan
    check(case, inputs)
