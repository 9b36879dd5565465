"""Training in the 16-bit dtypes: losses, optimizers and their float32 parameters, clipping, and training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close
from tests.api.test_dtypes import SHORT, drawn, twin, wide
from tests.helpers import LAYERS

# Losses


@SHORT
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", [rnnkit.mse, rnnkit.bce_with_logits, rnnkit.cross_entropy])
def test_losses(dtype: str, reduction: str, loss: Any, rng: np.random.Generator) -> None:
    pred = drawn(rng, dtype, 400, 5)
    target = rng.integers(5, size=400) if loss is rnnkit.cross_entropy else abs(drawn(rng, dtype, 400, 5)) / 8
    exact_target = target if loss is rnnkit.cross_entropy else wide(target)
    value, d = loss(pred, target.astype(target.dtype), reduction)
    exact, d_exact = loss(wide(pred), exact_target, reduction)
    assert isinstance(value, float)
    assert d.dtype == pred.dtype
    assert value == pytest.approx(exact, rel=1e-5)  # the sum is in float32, without 16-bit rounding
    assert_close("gradient", d, d_exact, dtype)


def test_losses_beyond_the_range_of_float16() -> None:
    pred, target = np.full((1000,), 200, np.float16), np.zeros(1000, np.float16)
    value, d = rnnkit.mse(pred, target)
    assert value == 40000
    assert float(d[0]) == pytest.approx(0.4, rel=1e-3)
    assert rnnkit.mse(pred, target, "sum")[0] == 4e7
    assert rnnkit.bce_with_logits(pred * 300, target, "sum")[0] == pytest.approx(6e7)


# Optimizers and clipping


def optimizer_of(kind: str, model: Any, lr: float = 0.1) -> Any:
    momentum = {"momentum": 0.9} if kind == "momentum" else {}
    name = {"sgd": "SGD", "momentum": "SGD", "adagrad": "Adagrad", "adam": "Adam"}[kind]
    return getattr(rnnkit, name)(model, lr, **momentum)


KINDS = pytest.mark.parametrize("kind", ["sgd", "momentum", "adagrad", "adam"])


@SHORT
@KINDS
def test_optimizers_follow_float64(dtype: str, kind: str, rng: np.random.Generator) -> None:
    """After a hundred small steps the parameter is the float64 one, rounded once."""
    model = rnnkit.Linear(6, 5, dtype=dtype, rng=1)
    exact = twin(model)
    optimizers = optimizer_of(kind, model, 1e-3), optimizer_of(kind, exact, 1e-3)
    for _ in range(100):
        for name, grad in model.grads.items():
            grad[...] = 1 + 0.1 * rng.standard_normal(grad.shape)
            exact.grads[name][...] = grad
        for optimizer in optimizers:
            optimizer.step()
    for name, p in model.params.items():
        assert p.dtype == model.dtype
        state = optimizers[0].state[(0, name)]
        assert {held.dtype for held in state.values()} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(p, state["master"].astype(p.dtype))
        assert_close(f"master of {name}", state["master"], exact.params[name], "float32", "backward")


@SHORT
def test_steps_below_half_a_unit_in_the_last_place_add_up(dtype: str) -> None:
    model = rnnkit.Linear(1, 1, bias=False, dtype=dtype)
    weight = model.params["weight"]
    weight[...] = 1
    model.grads["weight"][...] = 1
    optimizer = rnnkit.SGD(model, 2.0**-14)
    for _ in range(2**10):
        optimizer.step()
    assert float(weight.item()) == 1 - 2.0**-4


@SHORT
def test_writing_a_parameter_updates_its_float32_master(dtype: str) -> None:
    model = rnnkit.Linear(2, 1, bias=False, dtype=dtype)
    model.params["weight"][...] = 1
    model.grads["weight"][...] = 1
    optimizer = rnnkit.SGD(model, 2.0**-14)
    optimizer.step()
    assert wide(model.params["weight"]).tolist() == [[1, 1]]
    model.params["weight"][0, 0] = 2.5
    optimizer.step()
    assert optimizer.state[(0, "weight")]["master"].tolist() == [[2.5 - 2.0**-14, 1 - 2.0**-13]]
    model.load_state_dict({"weight": [[np.float64(4), 8]]})
    optimizer.lr = 0.5
    optimizer.step()
    assert wide(model.params["weight"]).tolist() == [[3.5, 7.5]]


@KINDS
def test_squares_below_the_range_of_float16_are_not_lost(kind: str) -> None:
    """The square of a gradient of 2^-14 underflows in float16. Adam and Adagrad still take steps of about lr."""
    model = rnnkit.Linear(1, 1, bias=False, dtype="float16")
    model.params["weight"][...] = 0
    model.grads["weight"][...] = 2.0**-14
    optimizer_of(kind, model, 0.5).step()
    want = -0.5 if kind in ("adam", "adagrad") else -(2.0**-15)
    assert float(model.params["weight"].item()) == pytest.approx(want, rel=1e-3)


@SHORT
def test_clipping(dtype: str) -> None:
    model = rnnkit.Linear(2, 1, bias=False, dtype=dtype)
    grad = model.grads["weight"]
    grad[...] = [[300, -400]]  # squares beyond float16
    assert rnnkit.clip_grad_norm(model, 1e-3) == 500
    assert_close("scaled", grad, np.array([[6e-4, -8e-4]]), dtype, "backward")
    assert wide(grad)[0, 0] == pytest.approx(6e-4, rel=4e-3)
    grad[...] = [[300, -400]]
    rnnkit.clip_grad_value(model, 1e6)
    assert wide(grad).tolist() == [[300, -400]]
    rnnkit.clip_grad_value(model, 2)
    assert wide(grad).tolist() == [[2, -2]]
    grad[...] = [[np.nan, 1]]
    rnnkit.clip_grad_value(model, 0.5)
    np.testing.assert_array_equal(wide(grad), [[np.nan, 0.5]])
    assert grad is model.grads["weight"]


@SHORT
@pytest.mark.parametrize("name", ["rnn_tanh", "gru", "lstm"])
def test_a_small_net_learns(dtype: str, name: str, rng: np.random.Generator) -> None:
    """Training to classify whether a sequence rises or falls, entirely in 16 bits."""
    model = rnnkit.Sequential(
        rnnkit.LastState(LAYERS[name](1, 8, dtype=dtype, backend="numpy", rng=1)),
        rnnkit.Linear(8, 1, dtype=dtype, rng=2),
    )
    x = drawn(rng, dtype, 6, 64, 1)
    target = (x[-1] > x[0]).astype(x.dtype)
    loss_fn, optimizer, losses = rnnkit.BCEWithLogitsLoss(), rnnkit.Adam(model, 0.02), []
    for _ in range(150):
        optimizer.zero_grad()
        losses.append(loss_fn(model(x), target))
        model.backward(loss_fn.backward())
        rnnkit.clip_grad_norm(model, 5.0)
        optimizer.step()
    assert 0.6 < losses[0] < 0.8
    assert losses[-1] < 0.3
