"""Embedding, Linear and Activation: values by hand, gradients by finite differences."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.nn.linear import ACTIVATIONS
from rnnkit.testing import assert_close
from tests.helpers import randn, refused
from tests.oracle.test_oracle import difference

F64 = {"dtype": "float64"}
T, B, I, H = 4, 3, 1, 2
LENGTHS = [3, 0, 4]


def leaves(tree: Any) -> list[np.ndarray]:
    """The arrays of nested tuples, in order."""
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple) else [tree]


def like(tree: Any, rng: np.random.Generator) -> Any:
    """Random arrays in the shape of nested tuples of arrays."""
    return tuple(like(part, rng) for part in tree) if isinstance(tree, tuple) else randn(rng, *tree.shape)


def assert_gradients(
    module: Any, inputs: dict[str, Any], run: Callable[[], Any], back: Callable[[Any], Any], rng: np.random.Generator
) -> None:
    """Checks every gradient element of `inputs`, which `back` returns in that order, and of all parameters."""
    with rnnkit.no_grad():
        upstream = like(run(), rng)

    def loss() -> float:
        with rnnkit.no_grad():
            return float(sum((out * up).sum() for out, up in zip(leaves(run()), leaves(upstream), strict=True)))

    module.zero_grad()  # drops earlier calls
    start = like(tuple(module.grads.values()), rng)
    for grad, value in zip(module.grads.values(), start, strict=True):
        grad[...] = value  # backward must add to it
    run()
    got = leaves(back(upstream))
    for (name, a), g in zip(inputs.items(), got, strict=True):
        assert_close(f"d{name}", g, difference(loss, a), "float64", "backward")
    for (name, p), value in zip(module.params.items(), start, strict=True):
        assert_close(f"d{name}", module.grads[name] - value, difference(loss, p), "float64", "backward")


# Embedding


def test_embedding_looks_up_rows_of_any_shape_and_integer_dtype() -> None:
    embedding = rnnkit.Embedding(4, 2)
    embedding.params["weight"] = np.array([[0, 1], [10, 11], [20, 21], [30, 31]], np.float32)
    for dtype in ("int8", "int32", "int64", "uint8", "uint64"):
        got = embedding(np.array([[3, 0, 3], [1, 1, 2]], dtype))
        want = [[[30, 31], [0, 1], [30, 31]], [[10, 11], [10, 11], [20, 21]]]
        np.testing.assert_array_equal(got, np.array(want, np.float32), strict=True)
    np.testing.assert_array_equal(embedding(np.array(2)), np.array([20, 21], np.float32), strict=True)
    assert embedding(np.zeros((3, 0), int)).shape == (3, 0, 2)


def test_embedding_sums_the_gradients_of_repeated_rows_and_adds_them() -> None:
    embedding = rnnkit.Embedding(4, 2, **F64)
    indices = np.array([[3, 0, 3], [3, 1, 0]])
    dy = np.array([[[1, 10], [2, 20], [4, 40]], [[8, 80], [16, 160], [32, 320]]], np.float64)
    for times in (1, 2):
        embedding(indices)
        assert embedding.backward(dy) is None
        want = times * np.array([[34, 340], [16, 160], [0, 0], [13, 130]], np.float64)
        np.testing.assert_array_equal(embedding.grads["weight"], want, strict=True)
    embedding(np.zeros((3, 0), int))
    embedding.backward(np.zeros((3, 0, 2)))
    np.testing.assert_array_equal(embedding.grads["weight"], want, strict=True)


def test_embedding_copies_its_indices(rng: np.random.Generator) -> None:
    embedding = rnnkit.Embedding(4, 2, **F64)
    indices = np.array([1, 2])
    embedding(indices)
    indices[...] = 0
    embedding.backward(np.ones((2, 2)))
    np.testing.assert_array_equal(embedding.grads["weight"], [[0, 0], [1, 1], [1, 1], [0, 0]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_embedding_gradient_of_a_long_skewed_text(dtype: str, rng: np.random.Generator) -> None:
    embedding = rnnkit.Embedding(10_000, 32, dtype=dtype)
    indices = np.minimum(rng.zipf(1.3, (64, 100)) - 1, 9_999)
    dy = randn(rng, 64, 100, 32, dtype=dtype)
    embedding(indices)
    tracemalloc.start()
    embedding.backward(dy)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    want = np.zeros((10_000, 32))
    np.add.at(want, indices, dy.astype(np.float64))
    assert_close("dweight", embedding.grads["weight"], want, dtype, "backward")
    # No dense temporary: no copy of the table, and no (positions, rows) matrix.
    assert peak < 4 * dy.nbytes


def test_embedding_gradient_by_differences(rng: np.random.Generator) -> None:
    embedding = rnnkit.Embedding(5, 3, rng=rng, **F64)
    indices = rng.integers(0, 4, (3, 4))  # row 4 does not occur
    assert_gradients(embedding, {}, lambda: embedding(indices), lambda up: embedding.backward(up) or (), rng)


def test_embedding_is_initialised_from_a_seeded_standard_normal() -> None:
    one, same = rnnkit.Embedding(300, 40, rng=5), rnnkit.Embedding(300, 40, rng=5, **F64)
    np.testing.assert_array_equal(one.params["weight"], same.params["weight"].astype(np.float32))
    weight = same.params["weight"]
    assert abs(weight.mean()) < 0.03
    assert abs(weight.std() - 1) < 0.03


def test_embedding_refuses_bad_input() -> None:
    embedding = rnnkit.Embedding(4, 2)
    for wrong, message in (
        (np.array([0, 4]), "4"),
        (np.array([1, -1]), "-1"),
        (np.array([2**63], "uint64"), str(2**63)),
    ):
        with refused(IndexError, "indices", "[0, 4)", message):
            embedding(wrong)
    for wrong in (np.array([0.0]), np.array([True]), [0, 1], 1):
        with refused(TypeError, "indices"):
            embedding(wrong)
    with refused(ValueError, "num_embeddings", "0"):
        rnnkit.Embedding(0, 2)
    with refused(TypeError, "embedding_dim", "2.0"):
        rnnkit.Embedding(3, 2.0)
    embedding(np.array([0, 1]))
    with refused(ValueError, "dy", "(2, 2)", "(2, 3)"):
        embedding.backward(np.zeros((2, 3), np.float32))
    with refused(TypeError, "dy", "float32", "float64"):
        embedding.backward(np.zeros((2, 2)))
    assert not embedding.grads["weight"].any()


# Linear and Activation


def test_linear_equals_x_w_transposed_plus_b() -> None:
    linear = rnnkit.Linear(2, 3, **F64)
    linear.params["weight"] = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    linear.params["bias"] = np.array([0.5, 0.25, 0.125])
    x = np.array([[[1.0, 10.0]], [[2.0, -1.0]]])
    want = np.array([[[21.5, 43.25, 65.125]], [[0.5, 2.25, 4.125]]])
    np.testing.assert_array_equal(linear(x), want, strict=True)
    dx = linear.backward(np.array([[[1.0, 0.0, 2.0]], [[0.0, 1.0, -1.0]]]))
    np.testing.assert_array_equal(dx, np.array([[[11.0, 14.0]], [[-2.0, -2.0]]]), strict=True)
    np.testing.assert_array_equal(linear.grads["weight"], [[1.0, 10.0], [2.0, -1.0], [0.0, 21.0]])
    np.testing.assert_array_equal(linear.grads["bias"], [1.0, 1.0, 1.0])


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_gradients_by_differences(shape: tuple[int, ...], bias: bool, rng: np.random.Generator) -> None:
    linear = rnnkit.Linear(3, 2, bias, rng=rng, **F64)
    assert ("bias" in linear.params) is bias
    x = randn(rng, *shape)
    assert linear(x).shape == (*shape[:-1], 2)
    assert_gradients(linear, {"x": x}, lambda: linear(x), linear.backward, rng)


def test_linear_accepts_read_only_and_strided_arrays(rng: np.random.Generator) -> None:
    linear = rnnkit.Linear(3, 2, rng=rng, **F64)
    x, dy = randn(rng, 5, 4, 3), randn(rng, 5, 4, 2)
    want, dwant = linear(x), linear.backward(dy)
    views = [np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1) for a in (x, dy)]
    for view in views:
        view.flags.writeable = False
    assert_close("y", linear(views[0]), want, "float64")
    assert_close("dx", linear.backward(views[1]), dwant, "float64", "backward")


def test_linear_is_initialised_uniformly_within_the_inverse_root_of_its_inputs() -> None:
    one, same = rnnkit.Linear(16, 500, rng=5), rnnkit.Linear(16, 500, rng=5, **F64)
    for name, p in same.params.items():
        np.testing.assert_array_equal(one.params[name], p.astype(np.float32))
        assert 0.24 < np.abs(p).max() <= 0.25
        assert abs(p.mean()) < 0.02
        assert abs(p.std() - 0.25 / 3**0.5) < 0.01


def test_linear_refuses_bad_input() -> None:
    linear = rnnkit.Linear(3, 2)
    with refused(ValueError, "x", "in_features=3", "(2, 4)"):
        linear(np.zeros((2, 4), np.float32))
    with refused(ValueError, "x", "in_features=3", "()"):
        linear(np.array(1, np.float32))
    with refused(TypeError, "x", "float32", "float64"):
        linear(np.zeros((2, 3)))
    with refused(TypeError, "x", "list"):
        linear([0.0, 1.0, 2.0])
    for name, arguments in (("in_features", (0, 2)), ("out_features", (2, -1))):
        with refused(ValueError, name):
            rnnkit.Linear(*arguments)
    linear(np.zeros((4, 3), np.float32))
    with refused(ValueError, "dy", "(4, 2)", "(3, 2)"):
        linear.backward(np.ones((3, 2), np.float32))
    assert not linear.grads["bias"].any()


VALUES = {
    "sigmoid": [0.0, 1 / (1 + np.exp(1.5)), 0.5, 1 / (1 + np.exp(-0.25)), 1.0],
    "tanh": [-1.0, np.tanh(-1.5), 0.0, np.tanh(0.25), 1.0],
    "relu": [0.0, 0.0, 0.0, 0.25, 1000.0],
}


@pytest.mark.parametrize("kind", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activation_values(kind: str, dtype: str) -> None:
    x = np.array([[-1000.0, -1.5, 0.0, 0.25, 1000.0, np.nan]], dtype)
    activation = rnnkit.Activation(kind)
    y = activation(x)
    assert y.dtype == dtype
    assert_close("y", y, np.array([[*VALUES[kind], np.nan]]), dtype)
    dx = activation.backward(np.ones_like(x))
    assert dx.dtype == dtype
    if kind == "relu":
        np.testing.assert_array_equal(dx, [[0, 0, 0, 1, 1, 1]])  # the slope at 0 is 0


@pytest.mark.parametrize("kind", list(ACTIVATIONS))
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 2)], ids=str)
def test_activation_gradients_by_differences(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    x = randn(rng, *shape) if shape else np.array(0.7)
    x += np.sign(x) * 0.02  # keeps away from 0, where relu has no derivative
    activation = rnnkit.Activation(kind)
    assert_gradients(activation, {"x": x}, lambda: activation(x), activation.backward, rng)


def test_activation_refuses_bad_input() -> None:
    with refused(ValueError, "kind", "'sigmoid', 'tanh', 'relu'", "'gelu'"):
        rnnkit.Activation("gelu")
    activation = rnnkit.Activation("tanh")
    with refused(TypeError, "x", "float"):
        activation(0.5)
    with refused(ValueError, "dtype", "int64"):
        activation(np.arange(3))
    activation(np.zeros((2, 3)))
    with refused(ValueError, "dy", "(2, 3)", "(3, 2)"):
        activation.backward(np.zeros((3, 2)))
    with refused(TypeError, "dy", "float64", "float32"):
        activation.backward(np.zeros((2, 3), np.float32))
