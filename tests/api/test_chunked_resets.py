"""max_saved_bytes with resets and a mask: the gradients of the call without a bound, within the bound."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.dtypes import DTYPES
from rnnkit.functional import chunked
from rnnkit.testing import assert_close
from tests.api.resets import Inputs, inputs, kind_of, trained
from tests.helpers import LAYERS, assert_same, parts, random_state, slow_except

KINDS = ("resets", "mask", "resets given mask lengths", "resets mask zero", "resets given lengths")
T, B = 9, 5
# A stack saves y between its layers too, so it takes both directions and two layers.
STACK = {"num_layers": 2, "bidirectional": True, "rng": 1}


def make(name: str, backend: str, **options: Any) -> Any:
    return LAYERS[name](3, 4, **{"dtype": "float64", "backend": backend, **STACK, **options})


def gradients(layer: Any, rng: np.random.Generator, steps: int = T, rows: int = B) -> tuple[Any, Any]:
    dy = rng.standard_normal((steps, rows, layer.output_size)).astype(layer.dtype)
    return dy, random_state(layer, rows, rng)


def in_chunks(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Cuts every group in chunks of this many steps, whatever the bound is."""
    chunks = chunked.Chunks(steps, cuts=False, recomputes=True)
    patch.setattr(chunked, "group_chunks_within", lambda *given: [chunks] * len(given[5].groups))


@pytest.mark.parametrize("steps", [1, 3, 50])
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("name", slow_except(LAYERS, "lstm", "gru"))
def test_chunks_change_nothing(
    name: str, kinds: str, steps: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make(name, "numpy")
    given = inputs(layer, rng, T, B, kinds)
    ends = gradients(layer, rng)
    whole = trained(layer, given, *ends)
    in_chunks(monkeypatch, steps)
    found = trained(layer, given, *ends, max_saved_bytes=1)
    assert found.keys() == whole.keys()
    for result, want in whole.items():
        assert_close(result, found[result], want, "float64", kind_of(result))


@pytest.mark.parametrize(
    ("name", "dtype"),
    slow_except(
        [("lstm", "float32"), ("gru", "float32"), ("gru_reset_before", "float32"), ("rnn_tanh", "float32"),
         ("lstm", "float16"), ("gru", "bfloat16")],
        ("lstm", "float32"),
        unpack=True,
    ),
)  # fmt: skip
def test_compiled_chunks(name: str, dtype: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    if DTYPES[dtype].storage.itemsize == 2:
        pytest.importorskip("ml_dtypes")
    layer, exact = make(name, "numba", dtype=dtype), make(name, "numpy")
    exact.load_state_dict({n: p.astype(np.float64) for n, p in layer.params.items()}, cells=layer.cell.name)
    for kinds in ("resets given mask lengths", "resets"):
        given = inputs(layer, rng, T, B, kinds)
        dy, ends = gradients(layer, rng)
        wide = Inputs(*[_wide(value) for value in given])
        whole = trained(exact, wide, _wide(dy), _wide(ends))
        with monkeypatch.context() as patch:
            in_chunks(patch, 2)
            found = trained(layer, given, dy, ends, max_saved_bytes=1)
        for result, want in whole.items():
            assert_close(result, found[result], want, dtype, kind_of(result))


def _wide(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_wide, value))
    floats = isinstance(value, np.ndarray) and value.dtype.kind not in "bi"
    return value.astype(np.float64) if floats else value


@pytest.mark.parametrize("backend", slow_except(["numpy", "numba"], "numpy"))
def test_random_masks_are_those_of_the_whole_call(
    backend: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"input_dropout": 0.3, "recurrent_dropout": 0.3, "weight_dropout": 0.2, "zoneout": 0.3, "dropout": 0.4}
    layer = make("lstm", backend, **rates)
    given = inputs(layer, rng, T, B, "resets given mask lengths")
    ends = gradients(layer, rng)
    layer.rng = np.random.default_rng(5)
    whole = trained(layer, given, *ends)
    layer.rng = np.random.default_rng(5)
    in_chunks(monkeypatch, 2)
    found = trained(layer, given, *ends, max_saved_bytes=1)
    for result, want in whole.items():
        assert_close(result, found[result], want, "float64", kind_of(result))


def test_bytes_that_suffice_and_flags_without_effect_leave_the_call_as_it_is(rng: np.random.Generator) -> None:
    layer = make("gru", "numpy")
    given = inputs(layer, rng, T, B, "resets mask lengths")
    ends = gradients(layer, rng)
    assert_same(trained(layer, given, *ends, max_saved_bytes=10**9), trained(layer, given, *ends))
    flags = {"resets": given.resets, "mask": given.mask, "lengths": given.lengths}
    assert rnnkit.explain(layer, given.x, max_saved_bytes=10**9, **flags) == rnnkit.explain(layer, given.x, **flags)
    none = np.zeros((T, B), bool)
    x = np.ones((400, B, 3))
    found = rnnkit.explain(layer, x, resets=np.zeros((400, B), bool), max_saved_bytes=300_000)
    assert "run again in backward" in found.kernel
    assert rnnkit.explain(layer, given.x, resets=none).kernel == rnnkit.explain(layer, given.x).kernel


def _held(function: Any) -> tuple[Any, int, int]:
    """The function's result, what it allocated that still exists, and its peak, in bytes."""
    tracemalloc.start()
    result = function()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return result, held, peak


def flags_of(kind: str, steps: int, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    if kind == "episodes":  # of about 100 steps
        return {"resets": rng.random((steps, rows)) < 0.01}
    if kind == "first":  # no table of steps
        resets = np.zeros((steps, rows), bool)
        resets[0, ::2] = True
        return {"resets": resets}
    return {"resets": rng.random((steps, rows)) < 0.003, "mask": rng.random((steps, rows)) < 0.8}


@pytest.mark.parametrize(
    ("name", "kind"),
    slow_except(
        [(n, k) for n in ("gru", "lstm") for k in ("episodes", "first", "mask")], ("gru", "episodes"), unpack=True
    ),
)
def test_the_bound_holds(name: str, kind: str, rng: np.random.Generator) -> None:
    """Measured: what the call leaves beside its results, and what it and backward take at most at one time."""
    steps, rows, width = 1000, 4, 16
    layer = LAYERS[name](3 * width, width, num_layers=2, bidirectional=name == "gru", backend="numba", rng=1)
    x = rng.standard_normal((steps, rows, 3 * width)).astype(np.float32)
    dy = np.ones((steps, rows, layer.output_size), np.float32)
    flags = flags_of(kind, steps, rows, rng)
    most = 1_600_000 if name == "gru" else 1_300_000
    for more in ({}, {"max_saved_bytes": most}):  # compiles, and fills caches
        layer(x, **flags, **more)
        layer.backward(dy)
    _, full, _ = _held(lambda: layer(x, **flags))
    _, _, of_backward = _held(lambda: layer.backward(dy))
    (y, state_n), held, _ = _held(lambda: layer(x, **flags, max_saved_bytes=most))
    held -= sum(a.nbytes for a in (y, *parts(state_n)))
    slack = 60_000  # Python's objects: a call per chunk and group
    assert held <= most + slack < full
    _, _, peak = _held(lambda: layer.backward(dy))
    assert peak <= of_backward + most + slack
    said = rnnkit.explain(layer, x, max_saved_bytes=most, **flags)
    assert "run again in backward" in said.kernel
    assert said.kept_bytes <= most
    assert said.kept_bytes < rnnkit.explain(layer, x, **flags).kept_bytes / 2


def test_x_is_gathered_by_chunk(rng: np.random.Generator) -> None:
    """With wide inputs a gathered copy of x would be most of what is saved."""
    layer = rnnkit.GRU(256, 4, backend="numpy", rng=1)
    x = rng.standard_normal((300, 4, 256)).astype(np.float32)
    resets = rng.random((300, 4)) < 0.02
    layer(x, resets=resets, max_saved_bytes=150_000)
    (y, h_n), held, _ = _held(lambda: layer(x, resets=resets, max_saved_bytes=150_000))
    assert held - y.nbytes - h_n.nbytes <= 150_000 + 60_000 < x.nbytes


@pytest.mark.parametrize("kind", ["episodes", "first", "mask"])
def test_least_bytes_are_said_and_are_enough(kind: str, rng: np.random.Generator) -> None:
    layer = rnnkit.LSTM(8, 16, num_layers=2, backend="numpy", rng=1)
    x = rng.standard_normal((100, 2, 8)).astype(np.float32)
    flags = flags_of(kind, 100, 2, rng)
    with pytest.raises(ValueError, match=r"max_saved_bytes must be at least [\d,]+ for this call, got 1,000") as caught:
        layer(x, max_saved_bytes=1000, **flags)
    least = int(str(caught.value).split()[5].replace(",", ""))
    y, _ = layer(x, max_saved_bytes=least, **flags)
    assert_close("y", y, layer(x, **flags)[0], "float32")
    with rnnkit.no_grad():
        layer(x, max_saved_bytes=least, **flags)
    with pytest.raises(ValueError, match="at least"):
        rnnkit.explain(layer, x, max_saved_bytes=least - 1, **flags)


def test_no_steps_and_layouts(rng: np.random.Generator) -> None:
    layer = rnnkit.LSTM(4, 6, batch_first=True, backend="numpy", rng=1)
    y, _ = layer(np.ones((3, 0, 4), np.float32), resets=np.zeros((3, 0), bool), max_saved_bytes=10**6)
    assert y.shape == (3, 0, 6)
    x = rng.standard_normal((3, 200, 4)).astype(np.float32)
    resets = rng.random((3, 200)) < 0.02
    found = []
    for more in ({}, {"max_saved_bytes": 60_000}):
        layer.zero_grad()
        y, _ = layer(x, resets=resets, **more)
        found.append({"y": y, "dx": layer.backward(np.ones_like(y))[0]})
    for name, want in found[0].items():
        assert_close(name, found[1][name], want, "float32", "forward" if name == "y" else "backward")
    alone, _ = layer(x[0], resets=resets[0], max_saved_bytes=30_000)
    assert_close("y of one row", alone, found[0]["y"][0], "float32")


def test_a_mask_without_a_step() -> None:
    layer = rnnkit.GRU(4, 6, backend="numpy", rng=1)
    x = np.ones((50, 3, 4), np.float32)
    h0 = np.ones((1, 3, 6), np.float32)
    y, h_n = layer(x, h0, mask=np.zeros((50, 3), bool), max_saved_bytes=4000)
    assert not y.any()
    np.testing.assert_array_equal(h_n, h0)
    dx, dh0 = layer.backward(np.ones_like(y), h0)
    assert not dx.any()
    np.testing.assert_array_equal(dh0, h0)
