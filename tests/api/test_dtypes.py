"""The 16-bit dtypes and tf32 in the whole library: values against float64, sums in float32, files, optimizers."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.backends import BACKENDS, select
from rnnkit.core.dtypes import DTYPES, resolve_dtype
from rnnkit.io import safetensors_format
from rnnkit.testing import assert_close
from tests.helpers import LAYERS, random_state, refused, train_step

needs_ml_dtypes = pytest.mark.skipif(
    importlib.util.find_spec("ml_dtypes") is None, reason="bfloat16 needs the package ml_dtypes"
)
SHORT = pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=needs_ml_dtypes)])
NARROW = pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=needs_ml_dtypes), "tf32"])


def drawn(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    """Standard normal numbers, rounded to the dtype."""
    return rng.standard_normal(shape).astype(resolve_dtype(dtype).storage)


def wide(a: Any) -> Any:
    return None if a is None else tuple(map(wide, a)) if isinstance(a, tuple) else np.asarray(a).astype(np.float64)


def twin(module: Any, **changed: Any) -> Any:
    """The same module in float64, with the same parameters."""
    kinds = {rnnkit.Linear: ("in_features", "out_features"), rnnkit.Embedding: ("num_embeddings", "embedding_dim")}
    other = type(module)(*(getattr(module, name) for name in kinds[type(module)]), dtype="float64", **changed)
    other.load_state_dict(module.state_dict())
    return other


# Recurrent layers


@NARROW
@pytest.mark.parametrize("name", LAYERS)
def test_layers_equal_the_oracle(name: str, dtype: str) -> None:
    """Two bidirectional layers, ragged, with dropout, from the same numbers and masks."""
    results: list[dict[str, np.ndarray]] = []
    given: list[Any] = []
    for kind in (dtype, "float64"):
        layer = LAYERS[name](3, 9, 2, dropout=0.4, bidirectional=True, dtype=kind, backend="numpy", rng=3)
        if not given:
            draw = np.random.default_rng(4)
            for parameter in layer.params.values():
                parameter[...] = 0.15 * draw.standard_normal(parameter.shape)
            x, dy = drawn(draw, dtype, 6, 4, 3), drawn(draw, dtype, 6, 4, 18)
            state, dstate = random_state(layer, 4, draw), random_state(layer, 4, draw)
            given, held = [x, state, dy, dstate], layer.state_dict()
        else:
            layer.load_state_dict(held)
            given = [wide(a) for a in given]
        results.append(train_step(layer, *given, [3, 6, 0, 5]))
    got, want = results
    for what in want:
        assert got[what].dtype == resolve_dtype(dtype).storage
        forward = what == "y" or what.startswith("state_n")
        assert_close(what, got[what], want[what], dtype, "forward" if forward else "backward")


@NARROW
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells_equal_the_oracle(name: str, dtype: str, rng: np.random.Generator) -> None:
    cell = getattr(rnnkit, name)(3, 5, dtype=dtype, backend="numpy", rng=1)
    exact = getattr(rnnkit, name)(3, 5, dtype="float64", backend="numpy")
    exact.load_state_dict(cell.state_dict())
    x, h, c, dh, dc = (drawn(rng, dtype, 4, width) for width in (3, 5, 5, 5, 5))
    state, dstate = ((h, c), (dh, dc)) if name == "LSTMCell" else (h, dh)
    found = []
    for one, given in ((cell, (x, state, dstate)), (exact, tuple(map(wide, (x, state, dstate))))):
        out = one(*given[:2])
        dx, dstate0 = one.backward(given[2])
        as_tuple = [*out] if isinstance(out, tuple) else [out]
        ends = [*dstate0] if isinstance(dstate0, tuple) else [dstate0]
        found.append((as_tuple, [dx, *ends, *one.grads.values()]))
    for kind, gots, wants in (("forward", found[0][0], found[1][0]), ("backward", found[0][1], found[1][1])):
        for got, want in zip(gots, wants, strict=True):
            assert got.dtype == resolve_dtype(dtype).storage
            assert_close(name, got, want, dtype, kind)


@SHORT
@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
def test_merges(dtype: str, merge: str, rng: np.random.Generator) -> None:
    layer = rnnkit.Bidirectional(rnnkit.GRU(3, 4, dtype=dtype, backend="numpy", rng=1), merge)
    exact = rnnkit.Bidirectional(rnnkit.GRU(3, 4, dtype="float64", backend="numpy"), merge)
    exact.load_state_dict(layer.state_dict())
    x, dy = drawn(rng, dtype, 5, 3, 3), drawn(rng, dtype, 5, 3, layer.output_size)
    lengths = [5, 2, 3]
    (y, h_n), (y_exact, h_exact) = layer(x, None, lengths), exact(wide(x), None, lengths)
    assert_close("y", y, y_exact, dtype)
    assert_close("h_n", h_n, h_exact, dtype)
    for got, want in zip(layer.backward(dy), exact.backward(wide(dy)), strict=True):
        assert got.dtype == layer.dtype
        assert_close("backward", got, want, dtype, "backward")


def test_the_average_of_large_outputs_does_not_overflow() -> None:
    layer = rnnkit.Bidirectional(rnnkit.RNN(1, 1, nonlinearity="relu", dtype="float16", backend="numpy"), "ave")
    for parameter in layer.params.values():
        parameter[...] = 0
    for name in ("forward.weight_ih_l0", "reverse.weight_ih_l0"):
        layer.params[name][...] = 1
    y, _ = layer(np.full((1, 1, 1), 60000, np.float16))
    assert float(y[0, 0, 0]) == 60000


def test_containers_and_copies_have_the_dtype_tf32() -> None:
    layer = rnnkit.GRU(3, 4, dtype="tf32", backend="numpy", rng=0)
    for module in (
        rnnkit.Bidirectional(layer),
        rnnkit.LastState(layer),
        rnnkit.Sequential(rnnkit.Activation("relu"), layer),
        rnnkit.Bidirectional(layer).reverse_layer,
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
    ):
        assert module._dtype == DTYPES["tf32"]
        assert module.dtype == np.float32
        assert "tf32" in repr(module)
    assert all(p.dtype == np.float32 for p in layer.state_dict().values())
    again = rnnkit.GRU(3, 4, backend="numpy")
    again.load_state_dict(layer.state_dict())
    x = np.ones((2, 1, 3), np.float32)
    np.testing.assert_array_equal(again(x)[0], layer(x)[0])
    explained = rnnkit.explain(layer, x)
    assert explained.dtype == "tf32"
    assert "no TF32" in explained.why
    rnnkit.Sequential(layer, rnnkit.Linear(4, 2))  # accepted, since both have float32 arrays


# Linear, Embedding, Activation


@NARROW
def test_linear(dtype: str, rng: np.random.Generator) -> None:
    layer = rnnkit.Linear(40, 7, dtype=dtype, rng=1)
    exact = twin(layer)
    x, dy = drawn(rng, dtype, 5, 6, 40), drawn(rng, dtype, 5, 6, 7)
    y = layer(x)
    assert y.dtype == layer.dtype
    assert_close("y", y, exact(wide(x)), dtype)
    dx, dx_exact = layer.backward(dy), exact.backward(wide(dy))
    assert dx.dtype == layer.dtype
    assert_close("dx", dx, dx_exact, dtype, "backward")
    for name, grad in layer.grads.items():
        assert_close(name, grad, exact.grads[name], dtype, "backward")


@SHORT
def test_sums_over_a_batch_are_in_float32(dtype: str) -> None:
    """A sum of 4,096 ones: a 16-bit accumulator stops at 2,048 in float16 and at 256 in bfloat16."""
    N = 4096
    layer = rnnkit.Linear(1, 1, dtype=dtype)
    layer(np.ones((N, 1), layer.dtype))
    layer.backward(np.ones((N, 1), layer.dtype))
    assert [float(g.item()) for g in layer.grads.values()] == [N, N]
    table = rnnkit.Embedding(3, 2, dtype=dtype)
    table(np.ones(N, int))
    table.backward(np.ones((N, 2), table.dtype))
    np.testing.assert_array_equal(table.grads["weight"].astype(float), [[0, 0], [N, N], [0, 0]])
    rnn = rnnkit.RNN(1, 1, nonlinearity="relu", dtype=dtype, backend="numpy")
    for parameter in rnn.params.values():
        parameter[...] = 0
    rnn.params["weight_ih_l0"][...] = 1
    rnn(np.ones((1, N, 1), rnn.dtype))
    rnn.backward(np.ones((1, N, 1), rnn.dtype))
    assert float(rnn.grads["bias_ih_l0"].item()) == float(rnn.grads["weight_ih_l0"].item()) == N


@SHORT
def test_embedding(dtype: str, rng: np.random.Generator) -> None:
    layer = rnnkit.Embedding(6, 4, dtype=dtype, rng=1)
    exact = twin(layer)
    indices = rng.integers(6, size=(9, 5))
    y = layer(indices)
    assert y.dtype == layer.dtype
    np.testing.assert_array_equal(wide(y), exact(indices))
    dy = drawn(rng, dtype, 9, 5, 4)
    layer.backward(dy)
    exact.backward(wide(dy))
    half_unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]  # rounded once, from a float32 sum
    np.testing.assert_allclose(wide(layer.grads["weight"]), exact.grads["weight"], rtol=1.01 * half_unit, atol=1e-6)


@SHORT
@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "relu"])
def test_activation(dtype: str, kind: str, rng: np.random.Generator) -> None:
    layer, exact = rnnkit.Activation(kind), rnnkit.Activation(kind)
    x, dy = 3 * drawn(rng, dtype, 50), drawn(rng, dtype, 50)
    y = layer(x)
    assert y.dtype == x.dtype
    assert_close("y", y, exact(wide(x)), dtype)
    dx, dx_exact = layer.backward(dy), exact.backward(wide(dy))
    assert dx.dtype == x.dtype
    assert_close("dx", dx, dx_exact, dtype, "backward")


# State dicts and files


@SHORT
def test_files_keep_16_bits(dtype: str, tmp_path: Path) -> None:
    layer = rnnkit.LSTM(3, 4, 2, dtype=dtype, backend="numpy", rng=1)
    other = rnnkit.LSTM(3, 4, 2, dtype=dtype, backend="numpy", rng=2)
    path = tmp_path / "layer.safetensors"
    rnnkit.save(layer, path)
    held, _ = safetensors_format.read(path)
    assert {value.dtype for value in held.values()} == {layer.dtype}
    other.load_state_dict(rnnkit.load(path))
    for name, p in layer.params.items():
        np.testing.assert_array_equal(other.params[name].view(np.uint16), p.view(np.uint16))
    wider = rnnkit.LSTM(3, 4, 2, backend="numpy")
    wider.load_state_dict(rnnkit.load(path))
    for name, p in layer.params.items():
        np.testing.assert_array_equal(wider.params[name], p.astype(np.float32))


def test_numbers_too_large_for_float16_are_refused() -> None:
    layer = rnnkit.Linear(2, 1, bias=False, dtype="float16")
    before = layer.params["weight"].copy()
    with refused(ValueError, "weight must fit dtype float16, got 70000"):
        layer.load_state_dict({"weight": np.array([[1.0, 70000.0]])})
    np.testing.assert_array_equal(layer.params["weight"], before)
    layer.load_state_dict({"weight": np.array([[65504.0, -np.inf]])})


@SHORT
def test_params_refuse_another_dtype(dtype: str) -> None:
    layer = rnnkit.Linear(2, 1, dtype=dtype)
    with refused(TypeError, f"weight must have dtype {dtype}, got float32"):
        layer.params["weight"] = np.zeros((1, 2), np.float32)
    with refused(TypeError, f"x must have dtype {dtype}, got float32"):
        layer(np.zeros((1, 2), np.float32))


@SHORT
@pytest.mark.parametrize("share", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(dtype: str, share: Any, rng: np.random.Generator) -> None:
    layer = rnnkit.GRU(3, 4, dtype=dtype, backend="numpy", rng=1)
    other, x = share(layer), drawn(rng, dtype, 5, 2, 3)
    np.testing.assert_array_equal(other(x)[0].view(np.uint16), layer(x)[0].view(np.uint16))
    assert f"dtype={dtype}" in repr(other)


def test_bfloat16_without_ml_dtypes_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ml_dtypes" else find(name))
    with refused(ValueError, "dtype bfloat16 needs the package ml_dtypes (pip install ml_dtypes)"):
        rnnkit.GRU(3, 4, dtype="bfloat16")


def test_the_error_for_an_unserved_dtype_lists_the_served_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(BACKENDS["numba"], dtypes=("float32", "float64", "tf32"))
    monkeypatch.setitem(BACKENDS, "numba", row)
    select.cache_clear()
    with refused(ValueError, "backend 'numba' serves float32, float64, tf32, got dtype float16"):
        rnnkit.GRU(3, 4, dtype="float16", backend="numba")
    explained = rnnkit.explain(rnnkit.GRU(3, 4, dtype="float16"), np.zeros((2, 1, 3), np.float16))
    assert explained.backend == "numpy"
    assert "numba: does not serve float16" in explained.why
    select.cache_clear()
