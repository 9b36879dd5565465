"""Random masks on CUDA arrays, without a GPU: the draw's bits, layers of both backends, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core import philox
from rnnkit.testing import assert_close
from tests.cuda.cuda_helpers import cuda
from tests.helpers import randn, slow_except
from tests.tools import emulator, fakecupy, greenlets

emulated = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))
on_greenlets = pytest.mark.skipif(greenlets.available() is not None, reason=str(greenlets.available()))

CASES: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {"recurrent_dropout": 0.4, "zoneout": (0.3, 0.2)}),
    ("LSTM", {"recurrent_dropout": 0.4, "zoneout": (0.3, 0.2), "proj_size": 3}),
    ("LSTM", {"zoneout": (0.3, 0.2), "zoneout_output": "zoned"}),
    ("GRU", {"recurrent_dropout": 0.4, "zoneout": 0.3, "input_dropout": 0.2, "weight_dropout": 0.2}),
    ("GRU", {"recurrent_dropout": 0.4, "zoneout": 0.3, "reset_after": False}),
    ("RNN", {"recurrent_dropout": 0.4, "zoneout": 0.3}),
]


@emulated
def test_the_draw_has_the_bits_of_the_oracle(rng: Any) -> None:
    with cuda() as cp:
        from rnnkit.backends.cupy.random_hits import drawn

        for units, p in ((1, 0.3), (5, 0.0), (66, 0.7), (8, 1.0)):
            seed = int(rng.integers(0, 2**64 - 1, dtype=np.uint64))
            mask = (seed, 4_000_000_123, p, 3, rng.integers(0, 2**32, 4), rng.integers(0, 2**31, 4), units)
            assert np.array_equal(cp.asnumpy(drawn(*mask)), philox.hits(*mask))


@emulated
def test_input_and_weight_dropout_on_cupy(rng: Any) -> None:
    """They need no kernels of a backend, and weights that change between calls are masked anew."""
    rates = {"input_dropout": 0.3, "weight_dropout": 0.3}
    x = randn(rng, 5, 2, 3, dtype="float32")
    with cuda() as cp:
        layer = rnnkit.GRU(3, 4, 2, rng=0, device="cuda", **rates)
        oracle = rnnkit.GRU(3, 4, 2, rng=0, backend="numpy", **rates)
        for _ in range(2):
            y, _ = layer(cp.asarray(x))
            want, _ = oracle(x)
            assert_close("y", cp.asnumpy(y), want, "float32")
            assert_close("dx", cp.asnumpy(layer.backward(y)[0]), oracle.backward(want)[0], "float32", "backward")
            for name, gradient in oracle.grads.items():
                assert_close(name, cp.asnumpy(layer.grads[name]), gradient, "float32", "backward")
            oracle.params["weight_hh_l0"] *= 0.5
            layer.params["weight_hh_l0"] *= 0.5


@on_greenlets
@pytest.mark.parametrize(("kind", "arguments"), slow_except(CASES, CASES[0], CASES[4], unpack=True), ids=str)
def test_numba_cuda_is_the_oracle(kind: str, arguments: dict[str, Any], rng: Any) -> None:
    T, B, I, H = 4, 3, 2, 5
    x = randn(rng, T, B, I)
    with fakecupy.installed() as cp, greenlets.installed(None, False):
        layer = getattr(rnnkit, kind)(I, H, rng=0, device="cuda", backend="numba_cuda", dtype="float64", **arguments)
        oracle = getattr(rnnkit, kind)(I, H, rng=0, backend="numpy", dtype="float64", **arguments)
        h0 = randn(rng, 1, B, layer.proj_size or H)
        state: Any = (h0, randn(rng, 1, B, H)) if kind == "LSTM" else h0
        on_device = tuple(map(cp.asarray, state)) if kind == "LSTM" else cp.asarray(state)
        for training in (True, False):
            y, _ = layer.train(training)(cp.asarray(x), on_device, [4, 1, 2])
            want, _ = oracle.train(training)(x, state, [4, 1, 2])
            assert_close("y", cp.asnumpy(y), want, "float64")
            dx, _ = layer.backward(y, on_device)
            wanted, _ = oracle.backward(want, state)
            assert_close("dx", cp.asnumpy(dx), wanted, "float64", "backward")
        for name, gradient in oracle.grads.items():
            assert_close(name, cp.asnumpy(layer.grads[name]), gradient, "float64", "backward")


@emulated
def test_what_is_not_served_is_refused_with_the_reason() -> None:
    with cuda():
        for arguments in ({"zoneout": 0.3}, {"recurrent_dropout": 0.3}):
            with pytest.raises(ValueError, match="'cupy' does not serve the cell gru with"):
                rnnkit.GRU(3, 4, device="cuda", backend="cupy", **arguments)
