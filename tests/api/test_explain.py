"""explain() names the backend that runs, and its memory equals what the allocator counts."""

from __future__ import annotations

import contextlib
import tracemalloc

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.numba import layer as numba
from tests.helpers import share_everything, slow_except

LAYERS = (
    (rnnkit.RNN, {}),
    (rnnkit.GRU, {}),
    (rnnkit.GRU, {"reset_after": False}),
    (rnnkit.LSTM, {}),
    (rnnkit.LSTM, {"proj_size": 20}),
)
SHAPES = (
    {},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3},
    {"batch_first": True},
    {"num_layers": 3, "dropout": 0.5},
)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_workspace_equals_the_allocated_memory(kind, options, shape, keep, cpu_backend, monkeypatch):
    share_everything(monkeypatch, 2)  # on busy cores a call would use fewer threads and less memory
    layer = kind(48, 64, backend=cpu_backend, rng=0, **options, **shape)
    x = np.zeros((40, 16, 48), np.float32)
    with contextlib.nullcontext() if keep else rnnkit.no_grad():
        explained = rnnkit.explain(layer, x)
        layer(x)  # compiles, and fills the caches
        layer._saved = None
        numba.workspaces.clear()  # which the compiled path keeps for later calls
        numba.packed_weights.clear()
        tracemalloc.start()
        y, state = layer(x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    states = state if isinstance(state, tuple) else (state,)
    taken = peak - y.nbytes - sum(s.nbytes for s in states)
    assert explained.backend == cpu_backend
    assert (explained.kept_bytes > 0) == keep
    # The compiled path states a bound. The oracle's temporaries depend on NumPy's version.
    # Python objects take some kilobytes per call, which are not workspace.
    low = 1.0 if cpu_backend == "numba" else 0.9
    assert low * (taken - 8192) <= explained.workspace_bytes <= 1.25 * taken


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_workspace_in_16_bits_includes_the_float32_arithmetic(kind, options, shape, keep):
    layer = kind(48, 64, dtype="float16", backend="numpy", rng=0, **options, **shape)
    x = np.zeros((40, 16, 48), np.float16)
    with contextlib.nullcontext() if keep else rnnkit.no_grad():
        explained = rnnkit.explain(layer, x)
        layer(x)
        layer._saved = None
        numba.workspaces.clear()  # which the compiled path keeps for later calls
        numba.packed_weights.clear()
        tracemalloc.start()
        y, state = layer(x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        layer_kept = layer._saved
    taken = peak - y.nbytes - sum(s.nbytes for s in (state if isinstance(state, tuple) else (state,)))
    assert (layer_kept is not None) == (explained.kept_bytes > 0) == keep
    assert 0.9 * (taken - 8192) <= explained.workspace_bytes <= 1.25 * taken


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("shape", [SHAPES[0], *slow_except(SHAPES[1:3])], ids=str)
@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_workspace_with_lengths(kind, options, shape, keep, cpu_backend, monkeypatch):
    share_everything(monkeypatch, 2)
    layer = kind(48, 64, backend=cpu_backend, rng=0, **options, **shape)
    x = np.zeros((400, 16, 48), np.float32)
    lengths = np.random.default_rng(0).integers(0, 401, 16)
    with contextlib.nullcontext() if keep else rnnkit.no_grad():
        explained = rnnkit.explain(layer, x, lengths)
        layer(x, lengths=lengths)
        layer._saved = None
        numba.workspaces.clear()  # which the compiled path keeps for later calls
        numba.packed_weights.clear()
        tracemalloc.start()
        y, state = layer(x, lengths=lengths)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    taken = peak - y.nbytes - sum(s.nbytes for s in (state if isinstance(state, tuple) else (state,)))
    # The oracle's bound is less exact, since its temporaries depend on NumPy's version.
    low, high = (0.98, 1.5) if cpu_backend == "numba" else (0.85, 1.9)
    assert low * (taken - 8192) <= explained.workspace_bytes <= high * taken


def test_the_kernel_of_a_single_step_is_named():
    x = np.zeros((3, 8), np.float32)
    assert "step, weights as they are" in rnnkit.explain(rnnkit.LSTMCell(8, 16, backend="numba"), x).kernel
    layer = rnnkit.LSTM(8, 16, backend="numba")
    assert "step, weights as they are" in rnnkit.explain(layer, x[None]).kernel
    assert "scan, " in rnnkit.explain(layer, np.stack([x, x])).kernel


def test_inference_memory_does_not_grow_with_time():
    layer = rnnkit.LSTM(8, 64, backend="numba", rng=0)
    with rnnkit.no_grad():
        short, long = (rnnkit.explain(layer, np.zeros((T, 4, 8), np.float32)) for T in (1_000, 100_000))
    assert long.workspace_bytes == short.workspace_bytes
    assert long.kept_bytes == 0


def test_the_text_of_explain():
    text = str(rnnkit.explain(rnnkit.GRU(3, 4), np.zeros((2, 5, 3), np.float32)))
    for word in ("backend", "numba", "kernel", "gru", "workspace", "saved for backward", "why", "threads"):
        assert word in text


def test_explain_accepts_cells_and_rejects_other_modules():
    assert "lstm" in rnnkit.explain(rnnkit.LSTMCell(3, 4), np.zeros((2, 3), np.float32)).kernel
    with pytest.raises(TypeError, match="layer must be an RNN, GRU, LSTM, SLSTM or a Cell, got Linear"):
        rnnkit.explain(rnnkit.Linear(3, 4), np.zeros((2, 3), np.float32))


def test_explain_checks_x_as_a_call_does():
    with pytest.raises(ValueError, match=r"x must have shape .*input_size=3.*got \(2, 5, 4\)"):
        rnnkit.explain(rnnkit.GRU(3, 4), np.zeros((2, 5, 4), np.float32))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    "shape", [{}, {"num_layers": 2, "bidirectional": True}, {"num_layers": 3, "dropout": 0.5}], ids=str
)
@pytest.mark.parametrize("kind", ["resets", "mask", "the first step"])
def test_workspace_with_resets_and_a_mask(kind, shape, keep, cpu_backend, monkeypatch):
    share_everything(monkeypatch, 2)
    layer = rnnkit.LSTM(48, 64, backend=cpu_backend, rng=0, **shape)
    x = np.zeros((40, 16, 48), np.float32)
    drawn = np.random.default_rng(1).random((40, 16))
    flags = {"resets": drawn < 0.05} if kind == "resets" else {"mask": drawn < 0.7}
    if kind == "the first step":
        flags = {"resets": (drawn < 0.5) & (np.arange(40) == 0)[:, None]}
    with contextlib.nullcontext() if keep else rnnkit.no_grad():
        explained = rnnkit.explain(layer, x, **flags)
        layer(x, **flags)
        layer._saved = None
        numba.workspaces.clear()
        numba.packed_weights.clear()
        tracemalloc.start()
        y, state = layer(x, **flags)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    taken = peak - y.nbytes - sum(s.nbytes for s in state)
    assert explained.backend == cpu_backend
    assert (explained.kept_bytes > 0) == keep
    assert 0.9 * (taken - 32768) <= explained.workspace_bytes <= 1.35 * taken
    (note,) = explained.notes
    assert ("at the first step alone" if kind == "the first step" else "segments run as rows, in") in note


def test_resets_and_a_mask_in_words():
    layer = rnnkit.GRU(3, 4, 2, backend="numpy", rng=0)
    x = np.zeros((6, 2, 3), np.float32)
    resets = np.zeros((6, 2), bool)
    resets[2, 0] = True
    (note,) = rnnkit.explain(layer, x, resets=resets).notes
    assert note == (
        "resets and mask: 3 segments run as rows, in 1 call of 6 steps for each layer and direction; 12 of 18 steps "
        "are live; x and y are gathered once for all layers"
    )
    assert rnnkit.explain(layer, x).notes == ()
    (note,) = rnnkit.explain(layer, x, mask=np.ones((6, 2), bool)).notes
    assert note == "nothing is reset or masked: the call is the one without resets and mask"
    with pytest.raises(TypeError, match="resets must be None for a Cell"):
        rnnkit.explain(rnnkit.GRUCell(3, 4), x[0], resets=resets[0])
    with pytest.raises(ValueError, match="mask must have shape"):
        rnnkit.explain(layer, x, mask=resets.T)
