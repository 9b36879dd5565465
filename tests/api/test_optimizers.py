"""Optimizers and clipping: steps by hand, in place, on every parameter; bad input."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close
from tests.helpers import randn, refused

GRADS = (2.0, -1.0, 0.5)


def one_number(value: float = 1.0, dtype: str = "float64") -> rnnkit.Linear:
    """A model of a single parameter."""
    model = rnnkit.Linear(1, 1, bias=False, dtype=dtype)
    model.params["weight"][...] = value
    return model


def trace(optimizer: Any, model: rnnkit.Linear) -> list[float]:
    """The parameter after each step of GRADS."""
    found = []
    for grad in GRADS:
        optimizer.zero_grad()
        model.grads["weight"] += grad
        optimizer.step()
        found.append(float(model.params["weight"][0, 0]))
    return found


def test_sgd_by_hand() -> None:
    model = one_number()
    assert trace(rnnkit.SGD(model, 0.25), model) == [0.5, 0.75, 0.625]


def test_sgd_with_momentum_by_hand() -> None:
    model = one_number()
    # v = 2, then 0, then 0.5
    assert trace(rnnkit.SGD(model, 0.25, momentum=0.5), model) == [0.5, 0.5, 0.375]


def test_adagrad_by_hand() -> None:
    model = one_number()
    want = [1 - 0.5, 0, 0]
    want[1] = want[0] + 0.5 / math.sqrt(5)
    want[2] = want[1] - 0.25 / math.sqrt(5.25)
    assert_close("p", np.array(trace(rnnkit.Adagrad(model, 0.5), model)), np.array(want), "float64")


def test_adam_by_hand() -> None:
    model = one_number()
    p, m, v, want = 1.0, 0.0, 0.0, []
    for t, g in enumerate(GRADS, start=1):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        p -= 0.5 * (m / (1 - 0.8**t)) / (math.sqrt(v / (1 - 0.9**t)) + 1e-3)
        want.append(p)
    got = trace(rnnkit.Adam(model, 0.5, betas=(0.8, 0.9), eps=1e-3), model)
    assert_close("p", np.array(got), np.array(want), "float64")


@pytest.mark.parametrize("kind", [rnnkit.Adagrad, rnnkit.Adam])
def test_eps_is_added_outside_the_square_root(kind: Any) -> None:
    model = one_number()
    model.grads["weight"][...] = 2.0
    kind(model, 1.0, eps=6.0).step()
    assert_close("p", model.params["weight"], np.array([[1 - 2 / (2 + 6)]]), "float64")


def make(kind: str, model: Any) -> Any:
    return {
        "sgd": lambda: rnnkit.SGD(model, 0.1),
        "momentum": lambda: rnnkit.SGD(model, 0.1, 0.9),
        "adagrad": lambda: rnnkit.Adagrad(model, 0.1),
        "adam": lambda: rnnkit.Adam(model, 0.1),
    }[kind]()


KINDS = ["sgd", "momentum", "adagrad", "adam"]


def three_models(dtype: str = "float64") -> list[rnnkit.Module]:
    """A nested model, and two models with the same parameter names."""
    return [
        rnnkit.Sequential(
            rnnkit.Embedding(5, 3, dtype=dtype, rng=1),
            rnnkit.LastState(rnnkit.GRU(3, 4, dtype=dtype, backend="numpy", rng=2)),
        ),
        rnnkit.Linear(4, 2, dtype=dtype, rng=3),
        rnnkit.Linear(4, 2, dtype=dtype, rng=4),
    ]


def fill_grads(models: list[rnnkit.Module], rng: np.random.Generator) -> None:
    for model in models:
        for grad in model.grads.values():
            grad[...] = randn(rng, *grad.shape, dtype=grad.dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_parameter_is_updated_in_place_and_independently(kind: str, dtype: str, rng: np.random.Generator) -> None:
    models = three_models(dtype)
    optimizer = make(kind, models)
    arrays = [p for model in models for p in model.params.values()]
    alone = [(one_number(dtype=dtype), p) for p in arrays]
    for model, p in alone:
        model.params["weight"][...] = p.flat[-1]
    single = [make(kind, model) for model, _ in alone]
    for _ in range(3):
        fill_grads(models, rng)
        grads = [g for model in models for g in model.grads.values()]
        kept = [g.copy() for g in grads]
        for (model, _), g in zip(alone, grads, strict=True):
            model.grads["weight"][...] = g.flat[-1]
        before = [p.copy() for p in arrays]
        optimizer.step()
        for step in single:
            step.step()
        for p, old, g, was in zip(arrays, before, grads, kept, strict=True):
            assert (p != old).all()
            np.testing.assert_array_equal(g, was)  # gradients are not changed
    after = [p for model in models for p in model.params.values()]
    assert all(a is b for a, b in zip(after, arrays, strict=True))
    for model, p in alone:
        assert p.dtype == dtype
        np.testing.assert_array_equal(p.flat[-1], model.params["weight"][0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_float32_follows_float64(kind: str, rng: np.random.Generator) -> None:
    narrow, wide = three_models("float32"), three_models("float64")
    for a, b in zip(narrow, wide, strict=True):
        b.load_state_dict(a.state_dict())
    optimizers = make(kind, narrow), make(kind, wide)
    for _ in range(5):
        fill_grads(narrow, rng)
        for a, b in zip(narrow, wide, strict=True):
            for name, grad in a.grads.items():
                b.grads[name][...] = grad
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(narrow, wide, strict=True):
        for name, p in a.params.items():
            assert_close(name, p, b.params[name], "float32")


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_allocates_no_array_of_a_parameters_size(kind: str) -> None:
    model = rnnkit.Linear(300, 300, rng=1)
    optimizer = make(kind, model)
    optimizer.step()
    tracemalloc.start()
    optimizer.step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < model.params["weight"].nbytes / 10


@pytest.mark.parametrize("kind", KINDS)
def test_zero_grad_clears_every_module(kind: str, rng: np.random.Generator) -> None:
    models = three_models()
    fill_grads(models, rng)
    make(kind, models).zero_grad()
    assert not any(g.any() for model in models for g in model.grads.values())


def test_the_learning_rate_may_change_between_steps() -> None:
    model = one_number()
    optimizer = rnnkit.SGD(model, 0.25)
    model.grads["weight"][...] = 1
    optimizer.step()
    optimizer.lr = 0.5
    optimizer.step()
    assert model.params["weight"][0, 0] == 0.25
    with refused(ValueError, "lr", "-1"):
        optimizer.lr = -1
    assert optimizer.lr == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_model_learns(kind: str, cpu_backend: str, rng: np.random.Generator) -> None:
    """Training to classify whether a sequence rises or falls, which needs right gradients and steps."""
    model = rnnkit.Sequential(
        rnnkit.LastState(rnnkit.LSTM(1, 8, backend=cpu_backend, rng=1)), rnnkit.Linear(8, 1, rng=2)
    )
    x = rng.standard_normal((6, 64, 1)).astype(np.float32)
    target = (x[-1] > x[0]).astype(np.float32)
    loss_fn, optimizer = rnnkit.BCEWithLogitsLoss(), make(kind, model)
    if kind == "sgd":
        optimizer.lr = 1.0
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        losses.append(loss_fn(model(x), target))
        model.backward(loss_fn.backward())
        rnnkit.clip_grad_norm(model, 5.0)
        optimizer.step()
    assert 0.6 < losses[0] < 0.8
    assert losses[-1] < 0.4


def test_clip_grad_norm_scales_all_gradients_together() -> None:
    models = [rnnkit.Linear(2, 1, dtype="float64"), rnnkit.Linear(1, 1, bias=False)]

    def start() -> None:
        models[0].grads["weight"][...] = [[1.0, -2.0]]
        models[0].grads["bias"][...] = 4.0
        models[1].grads["weight"][...] = 2.0

    start()
    assert rnnkit.clip_grad_norm(models, 5.0) == 5.0
    factor = 5 / (5 + 1e-6)
    np.testing.assert_array_equal(models[0].grads["weight"], np.array([[1.0, -2.0]]) * factor)
    for max_norm in (6.0, math.inf):
        start()
        assert rnnkit.clip_grad_norm(models, max_norm) == 5.0
        assert models[0].grads["bias"][0] == 4.0
    assert rnnkit.clip_grad_norm(models, 0.5) == 5.0
    assert_close("bias", models[0].grads["bias"], np.array([0.4 / (1 + 2e-7)]), "float64", "backward")
    assert_close("weight", models[1].grads["weight"], np.array([[0.2]]), "float32", "backward")
    assert rnnkit.clip_grad_norm(models[1], 10.0) == pytest.approx(0.2)
    models[1].grads["weight"][...] = 1e30  # its square overflows in float32
    assert rnnkit.clip_grad_norm(models[1], math.inf) == pytest.approx(1e30)
    models[1].grads["weight"][...] = np.nan
    assert math.isnan(rnnkit.clip_grad_norm(models, 1.0))
    assert np.isnan(models[0].grads["bias"]).all()


@pytest.mark.parametrize(
    ("grad", "max_norm", "norm", "left"),
    [
        ([3.0, -4.0], math.inf, 5.0, [3.0, -4.0]),
        ([3.0, math.inf], 1.0, math.inf, [0.0, math.nan]),
        ([3.0, math.inf], math.inf, math.inf, [math.nan, math.nan]),
        ([3.0, math.nan], 1.0, math.nan, [math.nan, math.nan]),
        ([3.0, -4.0], 0.0, 5.0, [0.0, -0.0]),
    ],
)
def test_clip_grad_norm_of_infinite_gradients_and_with_limit_0(
    grad: list[float], max_norm: float, norm: float, left: list[float]
) -> None:
    """As torch.nn.utils.clip_grad_norm_."""
    model = rnnkit.Linear(2, 1, bias=False, dtype="float64")
    model.grads["weight"][...] = grad
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(rnnkit.clip_grad_norm(model, max_norm), norm)
    np.testing.assert_array_equal(model.grads["weight"], [left])


def test_arguments_that_torch_accepts_are_accepted() -> None:
    """lr = 0, as at the end of a schedule; momentum >= 1; eps = 0; clipping at 0."""
    for kind in (rnnkit.SGD, rnnkit.Adagrad, rnnkit.Adam):
        model = one_number(2.0)
        optimizer = kind(model, 0.0)
        model.grads["weight"][...] = 1.0
        optimizer.step()
        assert model.params["weight"][0, 0] == 2.0
        optimizer.lr = 0.5
        optimizer.lr = 0
        optimizer.step()
        assert model.params["weight"][0, 0] == 2.0
    model = one_number(0.0)
    heavy = rnnkit.SGD(model, 1.0, momentum=2.0)
    for want in (-1.0, -4.0, -11.0):  # velocities 1, 3, 7
        model.grads["weight"][...] = 1.0
        heavy.step()
        assert model.params["weight"][0, 0] == want
    for kind in (rnnkit.Adagrad, rnnkit.Adam):
        model = one_number(0.0)
        model.grads["weight"][...] = 8.0
        kind(model, lr=0.25, eps=0.0).step()
        assert_close("a step of lr", model.params["weight"], np.array([[-0.25]]), "float64")
    rnnkit.clip_grad_value(model, 0)
    assert model.grads["weight"][0, 0] == 0


def test_clip_grad_value_clips_each_number() -> None:
    model = rnnkit.Linear(4, 1, bias=False)
    grad = model.grads["weight"]
    grad[...] = [[-7.0, 5.0, 0.25, np.nan]]
    assert rnnkit.clip_grad_value(model, 5) is None
    np.testing.assert_array_equal(grad, [[-5.0, 5.0, 0.25, np.nan]])
    assert model.grads["weight"] is grad
    rnnkit.clip_grad_value([model], 0.125)
    np.testing.assert_array_equal(grad, [[-0.125, 0.125, 0.125, np.nan]])


def test_optimizers_refuse_bad_input() -> None:
    model = rnnkit.Linear(2, 2)
    for kind in (rnnkit.SGD, rnnkit.Adagrad, rnnkit.Adam):
        for wrong in (-0.1, math.nan, math.inf):
            with refused(ValueError, "lr must be at least 0 and finite", repr(wrong)):
                kind(model, wrong)
        for wrong in ("0.1", None, True, [0.1]):
            with refused(TypeError, "lr must be a number that is at least 0", repr(wrong)):
                kind(model, wrong)
        with refused(TypeError, "model", "dict"):
            kind({}, 0.1)
        with refused(TypeError, "model", "ndarray"):
            kind([model.params["weight"]], 0.1)
        with refused(ValueError, "model", "parameters"):
            kind(rnnkit.Activation("tanh"), 0.1)
        with refused(ValueError, "model", "parameters"):
            kind([], 0.1)
        with refused(ValueError, "model", "several"):
            kind([rnnkit.Sequential(model), model], 0.1)
    for wrong in (-0.1, math.nan, math.inf):
        with refused(ValueError, "momentum must be at least 0 and finite", repr(wrong)):
            rnnkit.SGD(model, 0.1, wrong)
    for wrong in (-0.1, 1.0, math.nan):
        with refused(ValueError, "betas[0]", "[0, 1)"):
            rnnkit.Adam(model, betas=(wrong, 0.9))
        with refused(ValueError, "betas[1]", "[0, 1)"):
            rnnkit.Adam(model, betas=(0.9, wrong))
    for wrong in (0.9, (0.9,), (0.9, 0.9, 0.9)):
        with refused(TypeError, "betas", "pair"):
            rnnkit.Adam(model, betas=wrong)
    for kind in (rnnkit.Adagrad, rnnkit.Adam):
        with refused(ValueError, "eps must be at least 0"):
            kind(model, eps=-1e-8)
    for clip, name in ((rnnkit.clip_grad_norm, "max_norm"), (rnnkit.clip_grad_value, "value")):
        for wrong in (-1, math.nan):
            with refused(ValueError, f"{name} must be at least 0", repr(wrong)):
                clip(model, wrong)
        with refused(TypeError, name, "'1'"):
            clip(model, "1")
        with refused(TypeError, "model", "float"):
            clip(1.0, 1.0)


def test_adagrad_accepts_eps_only_by_keyword() -> None:
    with pytest.raises(TypeError, match="positional"):
        rnnkit.Adagrad(rnnkit.Linear(2, 3), 0.1, 1e-10)
