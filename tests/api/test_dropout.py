"""Dropout: between layers only, in train mode only, scaled, from the layer's generator, the same in backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.functional import stack
from rnnkit.testing import assert_close
from tests.helpers import CPU_BACKENDS, LAYERS, assert_same, parts, randn, random_state, train_step

EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)


def make(name: str, p: float, backend: str, **kwargs: Any) -> Any:
    return LAYERS[name](3, 4, 2, dropout=p, dtype="float64", backend=backend, **({"rng": 11} | kwargs))


@EVERY_LAYER
def test_eval_turns_dropout_off_and_backward_works(name: str, cpu_backend: str, rng: Any) -> None:
    x, dy = randn(rng, 5, 3, 3), randn(rng, 5, 3, 4)
    without = train_step(make(name, 0.0, cpu_backend), x, None, dy, None)
    layer = make(name, 0.5, cpu_backend)
    assert layer.training
    assert not np.array_equal(train_step(layer, x, None, dy, None)["y"], without["y"])
    assert layer.eval() is layer
    assert_same(train_step(layer, x, None, dy, None), without)
    assert layer.train() is layer
    assert not np.array_equal(layer(x)[0], without["y"])


@EVERY_LAYER
def test_dropout_acts_between_layers_only(name: str, cpu_backend: str, rng: Any) -> None:
    """Against three layers by hand, with a mask after each layer except the last, forward and backward."""
    layer = LAYERS[name](3, 4, 3, dropout=0.4, bidirectional=True, dtype="float64", backend=cpu_backend, rng=11)
    x, state = randn(rng, 6, 3, 3), random_state(layer, 3, rng)
    dy, dstate = randn(rng, 6, 3, 8), random_state(layer, 3, rng)
    own = np.random.default_rng()
    own.bit_generator.state = layer.rng.bit_generator.state
    got = train_step(layer, x, state, dy, dstate)

    def part(whole: Any, k: int) -> Any:
        cut = tuple(s[2 * k : 2 * k + 2] for s in parts(whole))
        return cut if len(cut) > 1 else cut[0]

    singles, masks, y = [], [], x
    for k in range(3):
        single = LAYERS[name](y.shape[2], 4, bidirectional=True, dtype="float64", backend=cpu_backend)
        for n, p in single.params.items():
            p[...] = layer.params[n.replace("_l0", f"_l{k}")]
        y, _ = single(y, part(state, k))
        masks.append(np.ones_like(y) if k == 2 else stack.dropout_mask(y, 0.4, own))
        y = y * masks[k]
        singles.append(single)
    assert all(0.2 < (mask == 0).mean() < 0.6 for mask in masks[:2])
    assert_close("y", got["y"], y, "float64")
    dx = dy
    for k in (2, 1, 0):
        dx, _ = singles[k].backward(dx * masks[k], part(dstate, k))
        for n, g in singles[k].grads.items():
            assert_close(n, got["grad " + n.replace("_l0", f"_l{k}")], g, "float64", "backward")
    assert_close("dx", got["dx"], dx, "float64", "backward")


def test_the_mask_keeps_the_mean() -> None:
    x = np.ones((50, 40, 30))
    for p in (0.1, 0.5, 0.9):
        mask = stack.dropout_mask(x, p, np.random.default_rng(0))
        assert mask.shape == x.shape
        assert mask.dtype == x.dtype
        assert set(np.unique(mask)) == {0.0, 1 / (1 - p)}
        # Five standard errors of a Bernoulli mean.
        assert abs((mask == 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / mask.size)
    assert not stack.dropout_mask(x, 1.0, np.random.default_rng(0)).any()


@EVERY_LAYER
def test_probability_1_feeds_zeros_to_the_second_layer(name: str, cpu_backend: str, rng: Any) -> None:
    layer = make(name, 1.0, cpu_backend)
    x, dy, dstate = randn(rng, 5, 3, 3), randn(rng, 5, 3, 4), random_state(layer, 3, rng)
    got = train_step(layer, x, None, dy, None)
    upper = LAYERS[name](4, 4, dtype="float64", backend=cpu_backend)
    for n, p in upper.params.items():
        p[...] = layer.params[n.replace("_l0", "_l1")]
    assert_close("y", got["y"], upper(np.zeros((5, 3, 4)))[0], "float64")
    assert not got["dx"].any()
    assert not got["grad weight_ih_l1"].any()
    assert got["grad weight_hh_l1"].any()
    assert np.isfinite(got["y"]).all()
    assert train_step(layer, x, None, dy, dstate)["dx"].any(), "the first layer's own final state still has a gradient"


@EVERY_LAYER
def test_a_seed_gives_the_same_masks_on_every_backend_and_dtype(name: str, rng: Any) -> None:
    x = randn(rng, 6, 4, 3)
    outputs = []
    for backend in CPU_BACKENDS:
        for dtype in ("float32", "float64"):
            layer = LAYERS[name](3, 8, 3, dropout=0.5, dtype=dtype, backend=backend, rng=3)
            for n, p in layer.params.items():
                p[...] = randn(np.random.default_rng(len(n)), *p.shape) * np.float32(0.5)
            outputs.append((dtype, [layer(x.astype(dtype))[0] for _ in range(2)]))
    want = outputs[-1][1]
    assert outputs[-1][0] == "float64"
    assert not np.array_equal(*want), "the second call must draw masks of its own"
    for dtype, got in outputs:
        for k in range(2):
            assert_close(f"call {k}", got[k], want[k], dtype)


@EVERY_LAYER
def test_the_generator_advances_only_when_masks_are_drawn(name: str, cpu_backend: str, rng: Any) -> None:
    x = randn(rng, 4, 2, 3)
    layer = make(name, 0.5, cpu_backend)
    start = layer.rng.bit_generator.state
    layer.eval()(x)
    assert layer.rng.bit_generator.state == start
    y = layer.train()(x)[0]
    assert layer.rng.bit_generator.state != start
    layer.rng.bit_generator.state = start
    np.testing.assert_array_equal(layer(x)[0], y)
    plain = make(name, 0.0, cpu_backend)
    start = plain.rng.bit_generator.state
    plain(x)
    assert plain.rng.bit_generator.state == start


def test_dropout_with_one_layer_warns_and_does_nothing(cpu_backend: str, rng: Any) -> None:
    with pytest.warns(UserWarning, match="dropout acts between layers: it does nothing with num_layers=1"):
        layer = rnnkit.GRU(3, 4, dropout=0.5, backend=cpu_backend, rng=1)
    x = randn(rng, 4, 2, 3, dtype="float32")
    np.testing.assert_array_equal(layer(x)[0], rnnkit.GRU(3, 4, backend=cpu_backend, rng=1)(x)[0])
