"""The sLSTM on the compiled CPU backend: values against the oracle, threads, memory. Its states beside h are three."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest

import rnnkit
from rnnkit.core.dtypes import DTYPES
from rnnkit.testing import Case, assert_close, errors, kind_of, make_inputs, parity, run, widened
from tests.helpers import assert_same, randn, random_state, share_everything, slow_except, train_step

SMALL = Case("slstm", T=4, B=5, I=3, H=19, ragged=True)
CASES = [
    SMALL,
    replace(SMALL, reverse=True, bias=False),
    replace(SMALL, T=6, B=7, H=33, reverse=True),
    replace(SMALL, T=3, B=2, H=70, ragged=False),
    replace(SMALL, T=3, B=1, H=1, ragged=False),
]
STEPS = [replace(SMALL, T=1, B=B, H=H, ragged=ragged) for B, H, ragged in ((3, 6, False), (20, 35, True))]


def assert_parity(case: Case, dtype: str) -> None:
    over = {name: ratio for name, ratio in parity("numba", case, dtype).items() if not ratio <= 1}
    assert not over, over


@pytest.mark.parametrize("dtype", slow_except(["float32", "float64"], "float32"))
def test_every_output_and_gradient_equals_the_oracles(dtype: str) -> None:
    for case in CASES:
        assert_parity(case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_single_steps(dtype: str) -> None:
    for case in STEPS:
        assert_parity(case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits(dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    for case in (*CASES, STEPS[1]):
        assert_parity(case, dtype)


def assert_equals_the_oracle(case: Case, n0: np.ndarray) -> None:
    inputs = make_inputs(case, "float32")
    inputs.state0 = (*inputs.state0[:2], n0.astype(np.float32), inputs.state0[3])
    got, want = run(case, inputs, "numba"), run(case, widened(inputs), "numpy")
    for name, value in want.items():
        assert_close(name, got[name], value, "float32", kind_of(name))


def test_units_without_a_step_and_below_the_least_n() -> None:
    rng = np.random.default_rng(0)
    for n0 in (np.zeros((5, 19)), rng.integers(0, 2, (5, 19)), rng.uniform(0.05, 0.9, (5, 19))):
        assert_equals_the_oracle(SMALL, n0)


def test_pre_activations_far_from_zero() -> None:
    """Gates that are open and closed to the last bit, from states and from zeros."""
    growth = DTYPES["float32"].growth(200)
    for a_i in (-200.0, 200.0):
        for a_f in (-200.0, 200.0):
            inputs = make_inputs(SMALL, "float32")
            bias = np.repeat([a_i, a_f, 0.0, 0.0], SMALL.H).astype(np.float32)
            inputs.weights = inputs.weights._replace(b_ih=bias)
            for state0 in (inputs.state0, tuple(np.zeros_like(s) for s in inputs.state0)):
                inputs.state0 = state0
                got, want = run(SMALL, inputs, "numba"), run(SMALL, widened(inputs), "numpy")
                for name, value in want.items():
                    assert errors(got[name], value, "float32", kind_of(name), growth).worst <= 1, name


def test_no_uninitialised_memory_is_read(poison: Callable[[], AbstractContextManager[None]]) -> None:
    inputs = make_inputs(SMALL, "float32")
    want = run(SMALL, inputs, "numba")
    with poison():
        assert_same(run(SMALL, inputs, "numba"), want)


def test_threads_that_share_units_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [replace(SMALL, B=1, H=70, ragged=False), replace(SMALL, B=9, H=40)]
    inputs = [make_inputs(case, "float32") for case in cases]
    share_everything(monkeypatch, 1)
    one = [run(case, given, "numba") for case, given in zip(cases, inputs, strict=True)]
    share_everything(monkeypatch, 3)
    for case, given, want in zip(cases, inputs, one, strict=True):
        assert_same(run(case, given, "numba"), want)


def test_two_bidirectional_layers_with_dropout_equal_the_oracle() -> None:
    results = []
    for backend, dtype in (("numba", "float32"), ("numpy", "float64")):
        layer = rnnkit.SLSTM(3, 9, 2, dropout=0.4, bidirectional=True, dtype=dtype, backend=backend, rng=3)
        drawn = np.random.default_rng(4)
        for parameter in layer.params.values():
            parameter[...] = randn(drawn, *parameter.shape) * np.float32(0.3)
        x, state = randn(drawn, 6, 4, 3, dtype=dtype), random_state(layer, 4, drawn)
        dy, dstate = randn(drawn, 6, 4, 18, dtype=dtype), random_state(layer, 4, drawn)
        results.append(train_step(layer, x, state, dy, dstate, [3, 6, 0, 5]))
    got, want = results
    for what in want:
        forward = what == "y" or what.startswith("state_n")
        assert_close(what, got[what], want[what], "float32", "forward" if forward else "backward")


def test_chunks_and_resets(rng: np.random.Generator) -> None:
    """A call that saves the states between chunks gives what the plain one gives; a reset starts from zeros."""
    T, B = 40, 3
    layer = rnnkit.SLSTM(4, 9, rng=0)
    x, dy = (randn(rng, T, B, width, dtype="float32") for width in (4, 9))
    state, dstate = random_state(layer, B, rng), random_state(layer, B, rng)
    plain = train_step(layer, x, state, dy, dstate)
    bytes_of = rnnkit.explain(layer, x).kept_bytes
    layer.zero_grad()
    with pytest.raises(ValueError, match="max_saved_bytes must be at least"):
        layer(x, state, max_saved_bytes=16)
    layer(x, state, max_saved_bytes=bytes_of // 2)
    dx, dstate0 = layer.backward(dy, dstate)
    assert_close("dx", dx, plain["dx"], "float32", "backward")
    for k, d in enumerate(dstate0):
        assert_close("dstate0", d, plain[f"dstate0[{k}]"], "float32", "backward")
    for name, grad in layer.grads.items():
        assert_close(name, grad, plain[f"grad {name}"], "float32", "backward")
    resets = np.zeros((T, B), bool)
    resets[25, 1] = True
    y, _ = layer(x, state, resets=resets)
    np.testing.assert_array_equal(y[:, [0, 2]], plain["y"][:, [0, 2]])
    np.testing.assert_array_equal(y[:25, 1], plain["y"][:25, 1])
    again, _ = layer(x[25:, 1:2])
    np.testing.assert_array_equal(y[25:, 1], again[:, 0])


def test_explain_names_the_kernel() -> None:
    layer = rnnkit.SLSTM(4, 6, strict=True, rng=0)
    found = rnnkit.explain(layer, np.ones((5, 3, 4), np.float32))
    assert found.backend == "numba"
    assert found.kernel.startswith("slstm scan")
