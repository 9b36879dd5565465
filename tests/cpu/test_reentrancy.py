"""Backward differentiates the layer's last call, or the call of the given `saved`, and no other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.cells import CELLS
from rnnkit.functional import direction
from rnnkit.testing import Case, make_inputs, run
from tests.helpers import LAYERS, assert_same, parts, randn, random_state, train_step

EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)


def setup(name: str, backend: str, seed: int) -> tuple[Any, dict[str, Any]]:
    layer = LAYERS[name](3, 4, 2, dropout=0.3, bidirectional=True, backend=backend, rng=seed)
    rng = np.random.default_rng(seed)
    return layer, {
        "x": randn(rng, 5, 3, 3, dtype="float32"),
        "state": random_state(layer, 3, rng),
        "dy": randn(rng, 5, 3, 8, dtype="float32"),
        "dstate": random_state(layer, 3, rng),
        "lengths": [5, 2, 0],
    }


@EVERY_LAYER
def test_backward_differentiates_the_last_call(name: str, cpu_backend: str, rng: Any) -> None:
    layer, given = setup(name, cpu_backend, 1)
    layer.eval()
    want = train_step(layer, **given)
    layer(randn(rng, 2, 6, 3, dtype="float32"))
    assert_same(train_step(layer, **given), want)
    longer = {"x": randn(rng, 7, 2, 3, dtype="float32"), "dy": randn(rng, 7, 2, 8, dtype="float32")}
    layer(longer["x"])
    assert layer.backward(longer["dy"])[0].shape == (7, 2, 3)


@EVERY_LAYER
def test_layers_share_no_state(name: str, cpu_backend: str) -> None:
    wants = [train_step(layer, **given) for layer, given in (setup(name, cpu_backend, seed) for seed in (1, 2))]
    pairs = [setup(name, cpu_backend, seed) for seed in (1, 2)]
    ys = [layer(given["x"], given["state"], given["lengths"])[0] for layer, given in pairs]
    for (layer, given), y, want in reversed(list(zip(pairs, ys, wants, strict=True))):
        dx, _ = layer.backward(given["dy"], given["dstate"])
        np.testing.assert_array_equal(y, want["y"])
        np.testing.assert_array_equal(dx, want["dx"])
        for n, g in layer.grads.items():
            np.testing.assert_array_equal(g, want[f"grad {n}"], err_msg=n)


@EVERY_LAYER
def test_writes_of_the_caller_after_a_call_do_not_change_backward(name: str, cpu_backend: str) -> None:
    """The caller may write to returned outputs and states, and reuse its initial state (h0[...] = h_n)."""
    layer, given = setup(name, cpu_backend, 1)
    layer.eval()
    want = train_step(layer, **given)
    layer.zero_grad()
    lengths = np.array(given["lengths"])
    y, state_n = layer(given["x"], given["state"], lengths)
    for scribbled in (y, lengths, *parts(state_n), *parts(given["state"])):
        scribbled[...] = 77
    dx, dstate0 = layer.backward(given["dy"], given["dstate"])
    np.testing.assert_array_equal(dx, want["dx"])
    for k, d in enumerate(parts(dstate0)):
        np.testing.assert_array_equal(d, want[f"dstate0[{k}]"])
    for n, g in layer.grads.items():
        np.testing.assert_array_equal(g, want[f"grad {n}"], err_msg=n)
    for scribbled in (dx, *parts(dstate0)):
        scribbled[...] = 77
    again, _ = layer.backward(given["dy"], given["dstate"])
    np.testing.assert_array_equal(again, want["dx"])


@EVERY_LAYER
def test_concurrent_threads_with_a_layer_each_give_the_sequential_results(name: str, cpu_backend: str) -> None:
    seeds = range(6)
    wants = [train_step(layer, **given) for layer, given in (setup(name, cpu_backend, s) for s in seeds)]
    start = threading.Barrier(len(seeds))

    def work(seed: int) -> list[dict[str, np.ndarray]]:
        layer, given = setup(name, cpu_backend, seed)
        masks = layer.rng.bit_generator.state
        start.wait()
        results = []
        for _ in range(8):
            layer.rng.bit_generator.state = masks
            results.append(train_step(layer, **given))
        return results

    with ThreadPoolExecutor(len(seeds)) as pool:
        for want, results in zip(wants, pool.map(work, seeds), strict=True):
            for got in results:
                assert_same(got, want)


@pytest.mark.parametrize("cell", CELLS)
def test_the_functional_form_has_no_state(cell: str, cpu_backend: str) -> None:
    """Each `saved` gives the gradients of its forward, in any order, any number of times, in any thread."""
    cases = [Case(cell, T=T, ragged=True, reverse=T == 3, P=4 if CELLS[cell].projects else 0) for T in (3, 5, 4)]
    inputs = [make_inputs(case, "float32", seed) for seed, case in enumerate(cases)]
    pristine = [make_inputs(case, "float32", seed) for seed, case in enumerate(cases)]
    wants = [run(case, i, cpu_backend) for case, i in zip(cases, inputs, strict=True)]
    saved = []
    for case, i in zip(cases, inputs, strict=True):
        how = {"lengths": i.lengths, "reverse": case.reverse, "backend": cpu_backend}
        saved.append(direction.forward(cell, i.x, i.state0, i.weights, **how)[2])

    def answer(k: int) -> tuple[int, Any]:
        return k, direction.backward(saved[k], inputs[k].dy, inputs[k].dstate_n, inputs[k].weights)

    with ThreadPoolExecutor(4) as pool:
        for k, (dx, dstate0, dweights) in [answer(2), answer(0), *pool.map(answer, [1, 0, 2, 1, 0, 2])]:
            np.testing.assert_array_equal(dx, wants[k]["dx"])
            np.testing.assert_array_equal(dstate0[0], wants[k]["dh0"])
            np.testing.assert_array_equal(dweights.w_hh, wants[k]["dw_hh"])
            np.testing.assert_array_equal(dweights.w_ih, wants[k]["dw_ih"])
    for given, was in zip(inputs, pristine, strict=True):
        for name in ("x", "dy", "lengths"):
            np.testing.assert_array_equal(getattr(given, name), getattr(was, name), err_msg=name)
        for name in ("state0", "dstate_n", "weights"):
            for now, then in zip(getattr(given, name), getattr(was, name), strict=True):
                assert (now is None) == (then is None)
                if now is not None:
                    np.testing.assert_array_equal(now, then, err_msg=name)


@EVERY_LAYER
def test_no_grad_saves_nothing_and_gives_the_same_results(name: str, cpu_backend: str) -> None:
    layer, given = setup(name, cpu_backend, 1)
    masks = layer.rng.bit_generator.state
    y = layer(given["x"], given["state"], given["lengths"])[0]
    layer.rng.bit_generator.state = masks
    with rnnkit.no_grad():
        np.testing.assert_array_equal(layer(given["x"], given["state"], given["lengths"])[0], y)
    with pytest.raises(RuntimeError, match=r"outside rnnkit\.no_grad"):
        layer.backward(given["dy"])
    assert not any(g.any() for g in layer.grads.values())
