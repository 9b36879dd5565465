"""SLSTMCell: one step of SLSTM, with its bits, its gradients in a loop, its files and its errors."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close
from tests.helpers import assert_same, random_state, refused, slow_except

I, H, B, T = 3, 4, 3, 5
NAMES = ("h", "c", "n", "m")


def pair(dtype: str, backend: str, bias: bool = True) -> tuple[Any, Any]:
    """A Cell and a layer with its weights."""
    cell = rnnkit.SLSTMCell(I, H, bias, dtype=dtype, backend=backend, rng=1)
    layer = rnnkit.SLSTM(I, H, bias=bias, dtype=dtype, backend=backend)
    layer.load_state_dict({f"{n}_l0": p for n, p in cell.params.items()}, cells="slstm")
    return cell, layer


def one(state: Any) -> Any:
    return tuple(s[0] for s in state)


@pytest.mark.parametrize(
    ("backend", "dtype", "bias"),
    slow_except(
        [
            ("numpy", "float64", True),
            ("numpy", "float16", False),
            ("numba", "float32", True),
            ("numba", "bfloat16", True),
        ],
        ("numpy", "float64", True),
        unpack=True,
    ),
)
def test_the_bits_are_those_of_a_layer_of_one_step(
    backend: str, dtype: str, bias: bool, rng: np.random.Generator
) -> None:
    """Forward and backward, from states of which one row has had no step, and from none."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    cell, layer = pair(dtype, backend, bias)
    x = rng.standard_normal((B, I)).astype(cell.dtype)
    given, dstate = random_state(layer, B, rng), random_state(layer, B, rng)
    for s in given[1:3]:
        s[:, 0] = 0
    for state in (given, None):
        cell.zero_grad(), layer.zero_grad()
        new = cell(x, None if state is None else one(state))
        _, want = layer(x[None], state)
        assert_same(dict(zip(NAMES, new, strict=True)), dict(zip(NAMES, one(want), strict=True)))
        dx, dstate0 = cell.backward(one(dstate))
        want_dx, want_d0 = layer.backward(None, dstate)
        np.testing.assert_array_equal(dx, want_dx[0])
        assert_same(dict(zip(NAMES, dstate0, strict=True)), dict(zip(NAMES, one(want_d0), strict=True)))
        assert_same({f"{n}_l0": g for n, g in cell.grads.items()}, layer.grads)
        assert all(np.abs(g.astype(float)).max() > 0 for n, g in cell.grads.items() if state or n != "weight_hh")


def test_a_loop_is_the_layer(rng: np.random.Generator) -> None:
    cell, layer = pair("float64", "numpy")
    x, dy = rng.standard_normal((T, B, I)), rng.standard_normal((T, B, H))
    dends = random_state(layer, B, rng)
    y, ends = layer(x)
    want_dx, want_d0 = layer.backward(dy, dends)
    state, calls = None, []
    for t in range(T):
        state = cell(x[t], state)
        calls.append(cell.last_call)
        assert_close("h", state[0], y[t], "float64")
    for got, want in zip(state, one(ends), strict=True):
        assert_close("end", got, want, "float64")
    dh, dc, dn, dm = one(dends)
    for t in reversed(range(T)):
        dx, (dh, dc, dn, dm) = cell.backward((dh + dy[t], dc, dn, dm), call=calls[t])
        assert_close("dx", dx, want_dx[t], "float64", "backward")
    for got, want in zip((dh, dc, dn, dm), one(want_d0), strict=True):
        assert_close("dstate", got, want, "float64", "backward")
    for name, grad in cell.grads.items():
        assert_close(name, grad, layer.grads[f"{name}_l0"], "float64", "backward")


def test_unbatched_copies_files_and_descriptions(tmp_path: Path, rng: np.random.Generator) -> None:
    cell, layer = pair("float32", "numpy")
    x, state = rng.standard_normal((B, I)).astype("float32"), one(random_state(layer, B, rng))
    want = cell(x, list(state))
    alone = cell(x[0], tuple(s[0] for s in state))
    for name, got, whole in zip(NAMES, alone, want, strict=True):
        assert got.shape == (H,)
        assert_close(name, got, whole[0], "float32")
    cell.zero_grad()
    cell(x, state)
    by_parts = cell.backward((state[0], None, state[2], None))
    cell(x, state)
    zero = np.zeros((B, H), np.float32)
    whole = cell.backward((state[0], zero, state[2], zero))
    np.testing.assert_array_equal(by_parts[0], whole[0])
    rnnkit.save(cell, tmp_path / "cell.safetensors")
    other = rnnkit.SLSTMCell(I, H, backend="numpy", rng=2)
    other.load_state_dict(rnnkit.load(tmp_path / "cell.safetensors"))
    for twin in (other, copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert_same(dict(zip(NAMES, twin(x, state), strict=True)), dict(zip(NAMES, want, strict=True)))
    assert repr(cell) == "SLSTMCell(3, 4, dtype=float32)"
    assert "slstm" in rnnkit.explain(cell, x).kernel
    assert rnnkit.summary(cell, (None, I)).total == 4 * H * (I + H + 2)


def test_what_is_refused(rng: np.random.Generator) -> None:
    cell, layer = pair("float32", "numpy")
    x, (h, c, n, m) = np.zeros((B, I), np.float32), one(random_state(layer, B, rng))
    with refused(TypeError, "the state of this layer must be 4 arrays (h0, c0, n0, m0), got 2 arrays"):
        cell(x, (h, c))
    with refused(TypeError, "must be 4 arrays", "got ndarray"):
        cell(x, h)
    with refused(ValueError, f"m0 must have shape (B, H) = ({B}, {H}), got ({B}, 1)"):
        cell(x, (h, c, n, m[:, :1]))
    cell(x)
    with refused(TypeError, "must be 4 arrays (dh, dc, dn, dm), got 3 arrays"):
        cell.backward((h, c, n))
    lstm = rnnkit.LSTMCell(I, H, backend="numpy")
    with refused(ValueError, "those of a lstm cell, and it is a slstm"):
        cell.load_state_dict(lstm.state_dict())
    with refused(ValueError, "weights of an LSTM have the same names", "cells='slstm'"):
        cell.load_state_dict(dict(lstm.state_dict()))
    with refused(TypeError, "SLSTMCell", "use SLSTM"):
        rnnkit.Sequential(cell)
    with refused(ValueError, "has no compiled kernels"):
        rnnkit.SLSTMCell(I, H, backend="numpy", strict=True)
    for unknown in ("zoneout", "peephole", "recurrent_dropout"):
        with refused(TypeError, unknown):
            rnnkit.SLSTMCell(I, H, **{unknown: 0.1})
