"""Modules on CUDA devices, independent of the current device, and moves between them. On tests/tools/fakecupy.

`tests.cuda.standin` replaces the scan. Kernels have separate suites.
"""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core import devices
from rnnkit.functional import direction
from rnnkit.testing import Case, assert_close, make_inputs
from tests.cuda.cuda_helpers import LAYERS
from tests.cuda.standin import numbers, on, pair, stand_in
from tests.helpers import parts, random_state, refused

EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture
def cp() -> Iterator[Any]:
    """The stand-in for CuPy with two devices, the first one current, and a stand-in for the backend."""
    with stand_in(devices=2) as module:
        yield module


# Devices


@EVERY_LAYER
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_layer_runs_on_its_own_device(cp: Any, name: str, bidirectional: bool, rng: np.random.Generator) -> None:
    """Everything is allocated and launched on cuda:1 while cuda:0 is current. Results equal the CPU's."""
    there, here = pair(name, bidirectional=bidirectional)
    x, dy = numbers(rng, 5, 3, 4), numbers(rng, 5, 3, here.output_size)
    state, dstate = random_state(here, 3, rng), random_state(here, 3, rng)
    up = [on(cp, 1, a) for a in (x, dy)]
    state_up, dstate_up = (
        tuple(on(cp, 1, s) for s in s_) if isinstance(s_, tuple) else on(cp, 1, s_) for s_ in (state, dstate)
    )
    before = cp.fake.live_blocks(0)
    y, state_n = there(up[0], state_up, [5, 2, 3])
    dx, dstate0 = there.backward(up[1], dstate_up)
    assert cp.fake.live_blocks(0) == before
    assert cp.cuda.Device().id == 0
    y_here, state_n_here = here(x, state, [5, 2, 3])
    dx_here, dstate0_here = here.backward(dy, dstate)
    got = [y, dx, *parts(state_n), *parts(dstate0), *there.grads.values()]
    want = [y_here, dx_here, *parts(state_n_here), *parts(dstate0_here), *here.grads.values()]
    for a, b in zip(got, want, strict=True):
        assert a.device.id == 1
        assert_close(name, a, b, "float32")


def test_every_module_runs_on_its_own_device(cp: Any, rng: np.random.Generator) -> None:
    def model(device: str | None) -> rnnkit.Module:
        backend = None if device else "numpy"
        gru = rnnkit.GRU(4, 6, batch_first=True, device=device, backend=backend, rng=2)
        return rnnkit.Sequential(
            rnnkit.Embedding(9, 4, device=device, rng=1),
            rnnkit.LSTM(4, 4, 2, dropout=0.5, batch_first=True, device=device, backend=backend, rng=3),
            rnnkit.LastState(rnnkit.Bidirectional(gru, merge="ave")),
            rnnkit.Activation("sigmoid"),
            rnnkit.Linear(6, 3, device=device, rng=4),
        )

    there, here = model("cuda:1"), model(None)
    indices, target = rng.integers(9, size=(5, 7)), rng.integers(3, size=5)
    fns, optimizers = (rnnkit.CrossEntropyLoss(), rnnkit.CrossEntropyLoss()), (rnnkit.Adam(there), rnnkit.Adam(here))
    before = cp.fake.live_blocks(0)
    up = on(cp, 1, indices), on(cp, 1, target)
    for _ in range(3):
        losses = []
        for module, fn, optimizer, (x, t) in zip((there, here), fns, optimizers, (up, (indices, target)), strict=True):
            optimizer.zero_grad()
            losses.append(fn(module(x, lengths=[7, 1, 3, 0, 5]), t))
            module.backward(fn.backward())
            rnnkit.clip_grad_norm(module, 0.5)
            rnnkit.clip_grad_value(module, 0.1)
            optimizer.step()
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert cp.fake.live_blocks(0) == before
    assert cp.cuda.Device().id == 0
    for name, p in there.params.items():
        assert p.device.id == there.grads[name].device.id == 1
        assert_close(name, p, here.params[name], "float32", "backward")


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells_run_on_their_own_device(cp: Any, name: str, rng: np.random.Generator) -> None:
    there = getattr(rnnkit, name)(4, 6, device="cuda:1", rng=1)
    here = getattr(rnnkit, name)(4, 6, backend="numpy", rng=1)
    x, dh = numbers(rng, 3, 4), numbers(rng, 3, 6)
    before = cp.fake.live_blocks(0)
    out, out_here = parts(there(on(cp, 1, x))), parts(here(x))
    dx, _ = there.backward((on(cp, 1, dh), None) if len(out) == 2 else on(cp, 1, dh))
    dx_here, _ = here.backward((dh, None) if len(out) == 2 else dh)
    assert cp.fake.live_blocks(0) == before
    for a, b in zip((*out, dx, *there.grads.values()), (*out_here, dx_here, *here.grads.values()), strict=True):
        assert_close(name, a, b, "float32")


def test_the_functional_form_runs_where_x_is(cp: Any) -> None:
    case = Case("lstm", P=4, ragged=True)
    there, here = make_inputs(case, "float32", device="cuda:1"), make_inputs(case, "float32")
    before = cp.fake.live_blocks(0)
    found = []
    for inputs, backend in ((there, None), (here, "numpy")):
        y, _, saved = direction.forward(
            "lstm", inputs.x, inputs.state0, inputs.weights, lengths=inputs.lengths, backend=backend
        )
        found.append((y, *direction.backward(saved, inputs.dy, None, inputs.weights)[2]))
    assert cp.fake.live_blocks(0) == before
    for a, b in zip(*found, strict=True):
        assert (a is None and b is None) or not np.any(cp.fake.peek(a) != b)


def test_devices_by_name(cp: Any) -> None:
    assert devices.resolve_device("cuda") == "cuda:0"
    with cp.cuda.Device(1):
        assert devices.resolve_device("cuda") == "cuda:1"
        assert rnnkit.Linear(2, 3, device="cuda").params["weight"].device.id == 1
        assert rnnkit.Linear(2, 3, device="cuda:0").params["weight"].device.id == 0
    with refused(RuntimeError, "device 'cuda:2' cannot be used", "2 CUDA device(s)"):
        rnnkit.Linear(2, 3, device="cuda:2")


# Moving


def test_to_moves_everything_except_saved_calls(cp: Any, rng: np.random.Generator) -> None:
    layer = rnnkit.LSTM(4, 6, rng=1, backend=None)
    model = rnnkit.Sequential(rnnkit.LastState(layer), rnnkit.Linear(6, 1, rng=2))
    model.load_state_dict(model.state_dict())
    optimizer, start = rnnkit.Adam(model, 0.1), model.state_dict()
    x = numbers(rng, 5, 3, 4)
    for device in ("cpu", "cuda", "cuda:1", "cpu", "cuda:1"):
        assert model.to(device) is model
        wanted = {"cuda": "cuda:0"}.get(device, device)
        assert {m.device for m in model._walk()} == {wanted}
        arrays = [*model.params.values(), *model.grads.values()]
        assert {devices.device_of(a) for a in arrays} == {wanted}
        with pytest.raises(RuntimeError, match="needs a call"):
            model.backward(numbers(rng, 3, 1))
        given = x if device == "cpu" else on(cp, int(wanted[-1]), x)
        y = model(given)
        model.backward(y)
        optimizer.step()
        assert {devices.device_of(a) for state in optimizer.state.values() for a in state.values()} == {wanted}
        kept = model.state_dict()
        assert all(isinstance(a, np.ndarray) for a in kept.values())
    model.load_state_dict(start)
    for name, p in model.params.items():
        np.testing.assert_array_equal(p.get(), start[name])
        assert p.device.id == 1


def test_a_call_before_moving_back_and_forth_cannot_be_differentiated(cp: Any, rng: np.random.Generator) -> None:
    layer = rnnkit.Linear(2, 3)
    y = layer(numbers(rng, 4, 2))
    layer.to("cpu")  # already there, so the call is kept
    layer.backward(y)
    layer(numbers(rng, 4, 2))
    layer.to("cuda").to("cpu")
    with refused(RuntimeError, "backward needs a call"):
        layer.backward(y)


def test_gradients_move_with_the_layer(cp: Any, rng: np.random.Generator) -> None:
    layer = rnnkit.Linear(2, 3, rng=1)
    layer.backward(layer(numbers(rng, 4, 2)))
    before = {name: g.copy() for name, g in layer.grads.items()}
    assert any(g.any() for g in before.values())
    layer.to("cuda:1").to("cuda:0")
    for name, g in layer.grads.items():
        np.testing.assert_array_equal(g.get(), before[name])
        assert g.device.id == 0


@pytest.mark.parametrize("share", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_files_and_state_dicts(cp: Any, share: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    there, here = pair("lstm", "cuda:0")
    x = numbers(rng, 5, 3, 4)
    want = here(x)[0]
    assert_close("a copy", share(there)(cp.asarray(x))[0], want, "float32")
    rnnkit.save(there, tmp_path / "layer")
    other = rnnkit.LSTM(4, 6, 2, backend="numpy", rng=9)
    other.load_state_dict(rnnkit.load(tmp_path / "layer"))
    np.testing.assert_array_equal(other(x)[0], want)
    other.load_state_dict(dict(there.params))  # CuPy arrays
    np.testing.assert_array_equal(other(x)[0], want)


# 16 bits and tf32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "tf32"])
def test_training_in_narrow_dtypes_on_a_device(cp: Any, dtype: str, rng: np.random.Generator) -> None:
    pytest.importorskip("ml_dtypes")
    results = []
    for device in ("cuda:1", None):
        keywords = {"device": device, "dtype": dtype}
        model = rnnkit.Sequential(
            rnnkit.Embedding(9, 4, rng=1, **keywords),
            rnnkit.Bidirectional(rnnkit.GRU(4, 4, backend=None if device else "numpy", rng=2, **keywords)),
            rnnkit.Linear(8, 3, rng=4, **keywords),
            rnnkit.Activation("sigmoid"),
        )
        draw = np.random.default_rng(5)
        x, target = draw.integers(9, size=(7, 5)), draw.random((7, 5, 3)).astype(model.dtype)
        if device:
            x, target = on(cp, 1, x), on(cp, 1, target)
        fn, optimizer, losses = rnnkit.MSELoss(), rnnkit.Adam(model, 0.05), []
        for _ in range(4):
            optimizer.zero_grad()
            losses.append(fn(model(x), target))
            model.backward(fn.backward())
            rnnkit.clip_grad_norm(model, 0.1)
            optimizer.step()
        assert all(p.dtype == model.dtype for p in model.params.values())
        assert losses[-1] < losses[0]
        results.append((losses, model.state_dict()))
    (losses, held), (losses_here, held_here) = results
    np.testing.assert_allclose(losses, losses_here, rtol=2e-2)
    for name, value in held.items():
        assert_close(name, value, held_here[name], "bfloat16", "backward")


def test_explain_names_the_device(cp: Any) -> None:
    layer = rnnkit.LSTM(4, 6, device="cuda:1", dtype="tf32")
    x = on(cp, 1, np.zeros((5, 3, 4), "float32"))
    explained = rnnkit.explain(layer, x)
    assert (explained.backend, explained.device, explained.dtype, explained.threads) == ("cupy", "cuda:1", "tf32", None)
    with refused(ValueError, "x must be on device cuda:1"):
        rnnkit.explain(layer, x.get())


def test_a_backend_of_another_array_type_is_refused(cp: Any) -> None:
    with refused(ValueError, "backend 'numba' takes numpy arrays, got cupy arrays on cuda:0"):
        rnnkit.GRU(3, 4, device="cuda", backend="numba")
    with refused(ValueError, "backend 'cupy' takes cupy arrays, got numpy arrays on cpu"):
        rnnkit.GRU(3, 4, backend="cupy")
    assert importlib.import_module("rnnkit.backends").available("cupy")
