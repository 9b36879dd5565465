"""rnnkit.compress: what its copies hold, what they refuse, and their files. tests/cpu/test_compressed.py has values."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.backends import BACKENDS, select
from rnnkit.core.compression import compressed
from tests.helpers import LAYERS

KINDS = ["bfloat16", "int8"]


def make(**options: Any) -> rnnkit.LSTM:
    return rnnkit.LSTM(5, 6, rng=0, backend="numpy", **options)


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((4, 3, 5)).astype(np.float32)


# The matrices


def test_int8_is_the_weight_over_its_rows_scale_rounded_to_even(rng: np.random.Generator) -> None:
    w = rng.standard_normal((7, 40)).astype(np.float32)
    w[1] = 0
    w[2] = [127, *range(-19, 20)]  # the scale is 1: whole numbers stay
    w[3, :6] = [0.5, 1.5, 2.5, -0.5, -1.5, 127]  # ties
    w[3, 6:] = 0
    w[4] *= 1e30
    w[5] = 0
    w[5, 3] = 1e-40  # its scale would be subnormal
    w[6] = -np.abs(w[6])
    m = compressed(w, "int8")
    assert (m.values.dtype, m.scales.dtype, m.shape) == (np.int8, np.float32, (7, 40))
    assert m.scales[1] == m.scales[2] == m.scales[3] == 1
    assert not m.values[1].any()
    np.testing.assert_array_equal(m.values[2], w[2])
    assert m.values[3, :6].tolist() == [0, 2, 2, 0, -2, 127]
    assert m.scales[5] == np.float32(2**-126)
    for row in (0, 4, 6):
        largest = np.abs(w[row]).max()
        assert m.scales[row] == np.float32(largest / np.float32(127))
        assert np.abs(m.values[row]).max() == 127
    exact = m.values.astype(np.float64) * m.scales.astype(np.float64)[:, None]
    assert (np.abs(exact - w) <= m.scales[:, None] * (0.5 + 1e-5)).all()
    np.testing.assert_array_equal(m.astype(np.float64), exact)
    np.testing.assert_array_equal(m.astype(np.float32), exact.astype(np.float32))


def test_bfloat16_is_the_nearest(rng: np.random.Generator) -> None:
    w = rng.standard_normal((3, 200)).astype(np.float32)
    m = compressed(w, "bfloat16")
    assert m.scales is None
    assert (np.abs(m.astype(np.float32) - w) <= 2.0**-8 * np.abs(w)).all()
    neighbours = (w.view(np.uint32) & 0xFFFF0000).view(np.float32)
    apart = np.minimum(np.abs(neighbours - w), np.abs((neighbours.view(np.uint32) + 0x10000).view(np.float32) - w))
    np.testing.assert_array_equal(np.abs(m.astype(np.float32) - w), apart)


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_the_copy_holds_the_small_matrices_and_nothing_else(name: str, weights: str) -> None:
    layer = LAYERS[name](16, 32, num_layers=2, bidirectional=True, backend="numpy", rng=0)
    small = rnnkit.compress(layer, weights)
    assert type(small) is type(layer)
    assert (small.training, layer.training, small.frozen) == (False, True, True)
    assert not small.grads
    shapes = {n: p.shape for n, p in small.params.items() if not n.endswith("_scale")}
    assert shapes == {n: p.shape for n, p in layer.params.items()}
    for n, p in layer.params.items():
        own = small.params[n]
        if p.ndim == 1:
            np.testing.assert_array_equal(own, p)
            continue
        assert own.dtype.name == weights
        assert (weights == "int8") == (n + "_scale" in small.params)
        assert np.shares_memory(own, small._matrices[n].rows)
        expected = p.nbytes // 2 if weights == "bfloat16" else p.nbytes // 4 + 4 * p.shape[0]
        assert small._matrices[n].rows.nbytes == expected
        with pytest.raises(ValueError, match="read-only"):
            own[0] = 0
    assert f"dtype=float32_{weights}" in repr(small)


def test_modules_inside_others_are_compressed(x: np.ndarray) -> None:
    model = rnnkit.Sequential(rnnkit.Bidirectional(make()), rnnkit.LastState(make_wide()), rnnkit.Linear(6, 2, rng=0))
    small = rnnkit.compress(model)
    dtypes = {name: p.dtype.name for name, p in small.params.items()}
    assert dtypes["0.forward.weight_ih_l0"] == dtypes["1.weight_hh_l0"] == "int8"
    assert dtypes["0.reverse.weight_ih_l0_scale"] == dtypes["2.weight"] == "float32"
    assert 0 < np.abs(small(x) - model(x)).max() < 0.01
    assert model.params["1.weight_hh_l0"].dtype == np.float32


def make_wide() -> rnnkit.LSTM:
    return rnnkit.LSTM(12, 6, rng=1, backend="numpy")


@pytest.mark.parametrize("weights", KINDS)
def test_errors_of_outputs_are_small(weights: str, x: np.ndarray) -> None:
    layer = make(num_layers=2)
    y, _ = layer(x)
    error = np.abs(rnnkit.compress(layer, weights)(x)[0] - y).max()
    assert 0 < error < 0.005


# Files and copies


@pytest.mark.parametrize("weights", KINDS)
def test_a_file_a_copy_and_a_pickle_have_the_same_bits(weights: str, x: np.ndarray, tmp_path: Path) -> None:
    small = rnnkit.compress(make(bidirectional=True), weights)
    want, _ = small(x)
    path = tmp_path / "small.safetensors"
    rnnkit.save(small, path)
    state = rnnkit.load(path)
    assert {name: a.dtype for name, a in state.items()} == {name: p.dtype for name, p in small.params.items()}
    other = rnnkit.compress(rnnkit.LSTM(5, 6, bidirectional=True, rng=9, backend="numpy"), weights)
    assert (other(x)[0] != want).any()
    assert other.load_state_dict(state) == ([], [])
    for same in (other, copy.copy(small), copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        np.testing.assert_array_equal(same(x)[0], want)
        assert same.frozen
        for name, matrix in same._matrices.items():
            assert same.params[name] is matrix.values
    whole = rnnkit.LSTM(5, 6, bidirectional=True, rng=9, backend="numpy")
    with pytest.raises(ValueError, match=f"the weights for this layer are {weights}, and its own are not compressed"):
        whole.load_state_dict(state)
    with pytest.raises(ValueError, match="its own are"):
        small.load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match=f"weight_ih_l0 must be {weights} of a compressed layer"):
        small.load_state_dict(dict(whole.state_dict()), strict=False)
    np.testing.assert_array_equal(small(x)[0], want)


def test_a_scale_that_is_not_finite_is_refused(x: np.ndarray) -> None:
    small = rnnkit.compress(make())
    state = small.state_dict()
    state["weight_hh_l0_scale"][3] = np.inf
    with pytest.raises(ValueError, match="weight_hh_l0_scale must be float32 of a compressed layer, all finite"):
        small.load_state_dict(state)


# Refusals


def test_training_is_refused(x: np.ndarray) -> None:
    small = rnnkit.compress(make())
    said = "is not for this LSTM: its weights are compressed to int8, for inference only"
    y, _ = small(x)
    with pytest.raises(RuntimeError, match=f"^backward {said}"):
        small.backward(y)
    with pytest.raises(RuntimeError, match=f"^last_call {said}"):
        _ = small.last_call
    for refused in (
        small.train,
        small.unfreeze,
        lambda: rnnkit.SGD(small, 0.1),
        lambda: rnnkit.clip_grad_norm(small, 1),
    ):
        with pytest.raises(RuntimeError, match=said):
            refused()
    model = rnnkit.compress(rnnkit.Sequential(make(), rnnkit.Linear(6, 2)))
    y = model(x)
    with pytest.raises(RuntimeError, match=said):
        model.backward(y)
    with pytest.raises(RuntimeError, match=said):
        model.train()
    assert not model.training
    assert not small.eval().training
    with pytest.raises(ValueError, match="frozen"):
        small.params["bias_ih_l0"] = np.zeros(24, np.float32)


def test_a_cell_refuses_backward(x: np.ndarray) -> None:
    small = rnnkit.compress(rnnkit.GRUCell(5, 6, backend="numpy"))
    h = small(x[0])
    with pytest.raises(RuntimeError, match="backward is not for this GRUCell"):
        small.backward(h)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="weights must be one of 'bfloat16', 'int8', got 'int4'"):
        rnnkit.compress(make(), "int4")
    with pytest.raises(TypeError, match="module must be a Module of rnnkit, got int"):
        rnnkit.compress(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="module must contain a recurrent layer, got Linear"):
        rnnkit.compress(rnnkit.Linear(2, 3))
    with pytest.raises(ValueError, match="float32 recurrent layers, got LSTM in float64"):
        rnnkit.compress(make(dtype="float64"))
    with pytest.raises(ValueError, match="float32 recurrent layers, got LSTM in float32_int8"):
        rnnkit.compress(rnnkit.compress(make()))
    with pytest.raises(ValueError, match="without zoneout and random masks, got LSTM"):
        rnnkit.compress(make(zoneout=0.1))
    for value in (np.nan, np.inf):
        layer = make()
        layer.params["weight_hh_l0"][3, 2] = value
        for weights in KINDS:
            with pytest.raises(ValueError, match=f"weight_hh_l0 must hold finite numbers, got {value}"):
                rnnkit.compress(layer, weights)
    layer = make()
    layer.params["weight_hh_l0"][3, 2] = np.finfo(np.float32).max
    rnnkit.compress(layer)
    with pytest.raises(ValueError, match="weight_hh_l0 must fit bfloat16, got 3"):
        rnnkit.compress(layer, "bfloat16")


def test_a_layer_of_torch_is_refused_with_a_hint() -> None:
    class Layer:
        def named_modules(self) -> None: ...

    with pytest.raises(TypeError, match=r"layers of rnnkit\.torch have no compressed form"):
        rnnkit.compress(Layer())  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", KINDS)
def test_explain_names_the_weights_and_what_has_no_kernels_for_them(weights: str, x: np.ndarray) -> None:
    small = rnnkit.compress(make(), weights)
    found = rnnkit.explain(small, x)
    assert (found.backend, found.dtype, found.kept_bytes) == ("numpy", f"float32_{weights}", 0)
    size = 2 * 4 * 6 * 11 if weights == "bfloat16" else 4 * 6 * (11 + 8)
    (note,) = found.notes
    assert f"{weights}" in note
    assert f"for inference; {size:,} bytes, of {4 * 4 * 6 * 11:,} in float32" in note
    assert rnnkit.explain(small, x, mask=np.arange(12).reshape(4, 3) % 2 == 0).notes[-1] == note
    for name in ("cupy", "numba_cuda"):
        assert not BACKENDS[name].serves(f"float32_{weights}")
    with pytest.raises(ValueError, match="takes numpy arrays"):
        select("cuda:0", small._dtype.name, "lstm", "numba")
