"""Losses: values by hand, gradients by finite differences, extreme logits, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close
from tests.helpers import randn, refused
from tests.oracle.test_oracle import difference

FUNCTIONS = {
    rnnkit.MSELoss: rnnkit.mse,
    rnnkit.BCEWithLogitsLoss: rnnkit.bce_with_logits,
    rnnkit.CrossEntropyLoss: rnnkit.cross_entropy,
}


def arguments(loss: Any, shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
    """Predictions and a target that fit the loss."""
    pred = randn(rng, *shape, dtype=dtype)
    if loss is rnnkit.cross_entropy:
        return pred, rng.integers(0, shape[-1], shape[:-1])
    if loss is rnnkit.bce_with_logits:
        return pred, rng.random(shape).astype(dtype)
    return pred, randn(rng, *shape, dtype=dtype)


def test_mse_by_hand() -> None:
    pred, target = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[1.0, 0.0], [4.0, 2.0]])
    loss, dpred = rnnkit.mse(pred, target)
    assert loss == (0 + 4 + 1 + 9) / 4
    np.testing.assert_array_equal(dpred, [[0, 1], [-0.5, 1.5]])
    loss, dpred = rnnkit.mse(pred, target, "sum")
    assert loss == 14
    np.testing.assert_array_equal(dpred, [[0, 4], [-2, 6]])


def test_bce_with_logits_by_hand() -> None:
    logits, target = np.array([0.0, math.log(3), -math.log(3)]), np.array([1.0, 0.25, 1.0])
    each = [math.log(2), 0.25 * math.log(4 / 3) + 0.75 * math.log(4), math.log(4)]
    slope = np.array([-0.5, 0.5, -0.75])
    for reduction, count in (("mean", 3), ("sum", 1)):
        loss, dlogits = rnnkit.bce_with_logits(logits, target, reduction)
        assert_close("loss", np.array(loss), np.array(math.fsum(each) / count), "float64")
        assert_close("dlogits", dlogits, slope / count, "float64", "backward")


def test_cross_entropy_by_hand() -> None:
    logits, target = np.log(np.array([[1.0, 2.0, 5.0], [3.0, 3.0, 6.0]])), np.array([1, 2])
    for reduction, count in (("mean", 2), ("sum", 1)):
        loss, dlogits = rnnkit.cross_entropy(logits, target, reduction)
        assert_close("loss", np.array(loss), np.array((math.log(4) + math.log(2)) / count), "float64")
        want = np.array([[0.125, -0.75, 0.625], [0.25, 0.25, -0.5]]) / count
        assert_close("dlogits", dlogits, want, "float64", "backward")
    loss, dlogits = rnnkit.cross_entropy(logits[0], np.array(1))
    assert_close("loss of one", np.array(loss), np.array(math.log(4)), "float64")
    assert dlogits.shape == (3,)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=lambda f: f.__name__)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)], ids=str)
def test_gradients_by_differences(function: Any, reduction: str, shape: Any, rng: np.random.Generator) -> None:
    pred, target = arguments(function, shape, "float64", rng)
    kept = pred.copy()
    _, dpred = function(pred, target, reduction)
    np.testing.assert_array_equal(pred, kept)
    want = difference(lambda: function(pred, target, reduction)[0], pred)
    assert_close("dpred", dpred, want, "float64", "backward")


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=lambda f: f.__name__)
def test_float32_follows_float64(function: Any, rng: np.random.Generator) -> None:
    pred, target = arguments(function, (50, 7), "float32", rng)
    wide = target if target.dtype.kind == "i" else target.astype(np.float64)
    loss, dpred = function(pred, target)
    want, dwant = function(pred.astype(np.float64), wide)
    assert dpred.dtype == np.float32
    assert isinstance(loss, float)
    assert_close("loss", np.array(loss), np.array(want), "float32")
    assert_close("dpred", dpred, dwant, "float32", "backward")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_logits_give_exact_losses(dtype: str) -> None:
    logits = np.array([1e4, 1e4, -1e4, -1e4, -50.0], dtype)
    target = np.array([1, 0, 1, 0, 0], dtype)
    loss, d = rnnkit.bce_with_logits(logits, target, "sum")
    assert loss == 2e4
    np.testing.assert_array_equal(d[:4], [0, 1, -1, 0])
    # Here the half-angle form of the sigmoid would give 0.
    assert_close("d / exp(-50)", d[4:] * math.exp(50), np.ones(1), dtype, "backward")
    far, even = np.array([[1e4, -1e4, 0]], dtype), np.array([[-1e4, 1e4, 1e4]], dtype)
    assert rnnkit.cross_entropy(far, np.array([1]))[0] == 2e4
    assert_close("loss", np.array(rnnkit.cross_entropy(even, np.array([2]))[0]), np.array(math.log(2)), dtype)
    _, d = rnnkit.cross_entropy(np.concatenate([far, even]), np.array([1, 2]), "sum")
    np.testing.assert_array_equal(d, [[1, -1, 0], [0, 0.5, -0.5]])
    masked = np.array([[0.0, -np.inf]], dtype)
    loss, d = rnnkit.cross_entropy(masked, np.array([0]))
    assert loss == 0
    np.testing.assert_array_equal(d, [[0, 0]])
    assert rnnkit.cross_entropy(masked, np.array([1]))[0] == math.inf


# x, t, and PyTorch's loss and gradient
INFINITE = [
    (math.inf, 0.0, math.inf, 1.0),
    (math.inf, 0.5, math.inf, 0.5),
    (math.inf, 1.0, math.nan, 0.0),
    (-math.inf, 0.0, math.nan, 0.0),
    (-math.inf, 0.5, math.nan, -0.5),
    (-math.inf, 1.0, math.nan, -1.0),
]


@pytest.mark.parametrize(("x", "t", "loss", "slope"), INFINITE)
def test_infinite_logits_are_as_in_pytorch(x: float, t: float, loss: float, slope: float) -> None:
    got, d = rnnkit.bce_with_logits(np.array([x]), np.array([t]))
    np.testing.assert_array_equal([got, d[0]], [loss, slope])


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=lambda f: f.__name__)
def test_nan_stays_in_its_row_of_the_gradient_and_makes_the_loss_nan(function: Any, rng: np.random.Generator) -> None:
    pred, target = arguments(function, (3, 4), "float64", rng)
    _, clean = function(pred, target, "sum")
    pred[1, 2] = np.nan
    loss, d = function(pred, target, "sum")
    assert math.isnan(loss)
    assert np.isnan(d[1, 2])
    np.testing.assert_array_equal(d[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=lambda f: f.__name__)
def test_the_mean_of_an_empty_array_is_nan(function: Any, rng: np.random.Generator) -> None:
    pred, target = arguments(function, (0, 4), "float64", rng)
    loss, d = function(pred, target)
    assert math.isnan(loss)
    assert d.shape == (0, 4)
    assert function(pred, target, "sum")[0] == 0


@pytest.mark.parametrize("kind", FUNCTIONS, ids=lambda k: k.__name__)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_classes_equal_the_functions(kind: Any, reduction: str, rng: np.random.Generator) -> None:
    fn = kind(reduction=reduction)
    with refused(RuntimeError, "backward", kind.__name__, "no_grad"):
        fn.backward()
    pred, target = arguments(FUNCTIONS[kind], (3, 4), "float64", rng)
    want, dwant = FUNCTIONS[kind](pred, target, reduction)
    assert fn(pred, target) == want
    for _ in range(2):
        np.testing.assert_array_equal(fn.backward(), dwant)
    with rnnkit.no_grad():
        assert fn(pred, target) == want
    with refused(RuntimeError, "backward", kind.__name__, "no_grad"):
        fn.backward()


def test_a_mask_excludes_the_padding_of_ragged_rows(rng: np.random.Generator) -> None:
    logits, target = arguments(rnnkit.cross_entropy, (3, 2, 4), "float64", rng)
    live = np.arange(3)[:, None] < np.array([3, 1])
    loss, dlive = rnnkit.cross_entropy(logits[live], target[live])
    dlogits = np.zeros_like(logits)
    dlogits[live] = dlive
    want = [rnnkit.cross_entropy(logits[t, b], target[t, b, ...])[0] for t, b in np.argwhere(live)]
    assert_close("loss", np.array(loss), np.array(np.mean(want)), "float64")
    assert not dlogits[1:, 1].any()


def test_losses_refuse_bad_input() -> None:
    a, b, indices = np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(2, int)
    for function, name in ((rnnkit.mse, "pred"), (rnnkit.bce_with_logits, "logits")):
        with refused(ValueError, "target", "(2, 3)", "(3,)"):
            function(a, b[0])  # shapes are not broadcast
        with refused(TypeError, "target", "float64", "float32"):
            function(a, b.astype(np.float32))
        with refused(TypeError, "target", "list"):
            function(a, [[0.0] * 3] * 2)
        with refused(TypeError, name, "int64"):
            function(a.astype(int), b)
        with refused(TypeError, name, "complex64"):
            function(a.astype(np.complex64), b)
        with refused(TypeError, "target", "float16", "float64"):
            function(a.astype(np.float16), b)
    for wrong, message in ((np.array([0, 3]), "3"), (np.array([-100, 0]), "-100")):
        with refused(IndexError, "target", "[0, 3)", message):
            rnnkit.cross_entropy(a, wrong)
    with refused(TypeError, "target", "float64"):
        rnnkit.cross_entropy(a, np.zeros(2))
    with refused(ValueError, "target", "(2,)", "(3,)"):
        rnnkit.cross_entropy(a, np.zeros(3, int))
    with refused(ValueError, "logits", "(..., K)", "(2, 0)"):
        rnnkit.cross_entropy(a[:, :0], indices)
    for kind, function in FUNCTIONS.items():
        with refused(ValueError, "reduction", "'mean', 'sum'", "'none'"):
            kind("none")
        with refused(ValueError, "reduction", "'none'"):
            function(a, b, "none")


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("subclass", [np.matrix, np.ma.array])
def test_array_subclasses_with_other_arithmetic_are_refused(subclass: Any) -> None:
    plain = np.array([[0.5, 2.0], [1.0, -3.0]])
    other = subclass(plain)
    message = f"must be a plain NumPy array, got {type(other).__name__} (use np.asarray)"
    with refused(TypeError, f"pred {message}"):
        rnnkit.mse(other, plain)
    with refused(TypeError, f"target {message}"):
        rnnkit.mse(plain, other)
    with refused(TypeError, f"target {message}"):
        rnnkit.cross_entropy(plain, subclass(np.array([0, 1])))
    with refused(TypeError, f"x {message}"):
        rnnkit.Activation("tanh")(other)
    with refused(TypeError, f"x {message}"):
        rnnkit.Linear(2, 3, dtype="float64")(other)
    with refused(TypeError, f"lengths {message}"):
        rnnkit.GRU(2, 3, backend="numpy")(np.zeros((2, 2, 2), "float32"), lengths=subclass(np.array([1, 2])))
    layer = rnnkit.Linear(2, 2, dtype="float64")
    with refused(TypeError, f"weight {message}"):
        layer.params["weight"] = other
    layer.load_state_dict({"weight": other, "bias": np.zeros(2)})
    np.testing.assert_array_equal(layer.params["weight"], plain)


def test_a_memory_map_is_accepted(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "x", "float64", "w+", shape=(2, 2))
    mapped[...] = [[0.5, 2.0], [1.0, -3.0]]
    assert rnnkit.mse(mapped, np.zeros((2, 2)))[0] == 14.25 / 4
