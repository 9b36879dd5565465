"""Random masks on CUDA arrays, without a GPU: the draw's bits, layers of both backends, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.core import philox
from rnnkit.errors import UnsupportedDeviceError
from rnnkit.testing import assert_close
from tests.cuda.cuda_helpers import chunked, cuda
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


PER_GATE: list[tuple[str, dict[str, Any]]] = [
    (kind, {**arguments, "mask_per_gate": True}) for kind, arguments in CASES if "recurrent_dropout" in arguments
]


@on_greenlets
@pytest.mark.parametrize(
    ("kind", "arguments"), slow_except([*CASES, *PER_GATE], CASES[0], PER_GATE[-1], unpack=True), ids=str
)
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


ONE_OF_THEM: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {"zoneout": (0.0, 0.4)}),
    ("LSTM", {"zoneout": (0.0, 0.4), "zoneout_output": "zoned", "proj_size": 4}),
    ("LSTM", {"zoneout": 0.4, "recurrent_dropout": 0.4, "peephole": True, "clip": 0.7}),
    ("GRU", {"zoneout": 0.4, "reset_after": False}),
    ("RNN", {"recurrent_dropout": 0.4, "nonlinearity": "relu"}),
]
ON_CUPY = [*CASES, *PER_GATE[1:4], *ONE_OF_THEM]


class Pair:
    """A layer in both directions on the stand-in's device and its float64 oracle, with the same weights."""

    def __init__(self, cp: Any, kind: str, arguments: dict[str, Any], dtype: str, H: int = 5) -> None:
        make, given = getattr(rnnkit, kind), {"rng": 0, "bidirectional": True, **arguments}
        self.cp, self.dtype = cp, dtype
        self.layer = make(2, H, device="cuda", backend="cupy:stepwise", dtype=dtype, **given)
        self.oracle = make(2, H, backend="numpy", dtype="float64", **given)
        for name, parameter in self.layer.params.items():
            self.oracle.params[name][...] = cp.asnumpy(parameter).astype(np.float64)

    def check(self, rng: np.random.Generator, lengths: list[int] | None = None) -> None:
        """Compares every output and gradient of a call, with other states, gradients and seed than any before."""
        H, R = self.layer.hidden_size, self.layer.proj_size or self.layer.hidden_size
        widths = (R, H) if isinstance(self.layer, rnnkit.LSTM) else (R,)
        x = randn(rng, 5, 3, 2).astype(self.dtype)
        dy = randn(rng, 5, 3, 2 * R).astype(self.dtype)
        states = [tuple(randn(rng, 2, 3, width).astype(self.dtype) for width in widths) for _ in range(2)]
        seed = int(rng.integers(1 << 30))
        got = self._run(self.layer, self.cp.asarray, seed, x, dy, states, lengths)
        want = self._run(self.oracle, lambda a: a.astype(np.float64), seed, x, dy, states, lengths)
        for name, array in want.items():
            kind = "backward" if name.startswith("d") else "forward"
            assert_close(name, self.cp.asnumpy(got[name]), array, self.dtype, kind)

    @staticmethod
    def _run(layer: Any, to: Any, seed: int, x: Any, dy: Any, states: Any, lengths: Any) -> dict[str, Any]:
        start, ends = (tuple(map(to, arrays)) for arrays in states)
        layer.rng = np.random.default_rng(seed)
        layer.zero_grad()
        y, state = layer(to(x), start if len(start) > 1 else start[0], lengths)
        dx, dstate = layer.backward(to(dy), ends if len(ends) > 1 else ends[0])
        found = {"y": y, "dx": dx} | {f"d{name}": gradient for name, gradient in layer.grads.items()}
        for name, value in (("state", state), ("dstate", dstate)):
            parts = value if isinstance(value, (tuple, list)) else (value,)
            found |= {f"{name}{number}": part for number, part in enumerate(parts)}
        return found


@emulated
@pytest.mark.parametrize(("kind", "arguments"), slow_except(ON_CUPY, CASES[0], unpack=True), ids=str)
def test_cupy_is_the_oracle(kind: str, arguments: dict[str, Any], rng: Any) -> None:
    """In both modes, of full and ragged rows, in both directions; later calls replay graphs, with other seeds."""
    with cuda() as cp:
        pair = Pair(cp, kind, arguments, "float32")
        for training in (True, False):
            pair.layer.train(training)
            pair.oracle.train(training)
            for lengths in (None, [4, 1, 5], [2, 5, 1], [1, 3, 2]):
                pair.check(rng, lengths)
        for _ in range(2):
            pair.check(rng)
        with cp.fake.counting() as counts:
            pair.check(rng)
        assert counts.captures == 0
        assert counts.graph_launches == 4


@contextmanager
def wide_kernels() -> Iterator[None]:
    from rnnkit.backends.cupy import stepwise_launch

    with mock.patch.object(stepwise_launch, "WIDE_ELEMENTS", 0):
        yield


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize(("kind", "arguments"), [CASES[1], CASES[4]], ids=str)
def test_wide_kernels_and_chunks_of_cupy_in_other_dtypes(
    kind: str, arguments: dict[str, Any], dtype: str, rng: Any
) -> None:
    pytest.importorskip("ml_dtypes")
    arguments = {**arguments, "proj_size": 4} if "proj_size" in arguments else arguments
    with cuda() as cp, chunked(2), wide_kernels():
        pair = Pair(cp, kind, arguments, dtype, H=8)
        for lengths in (None, [4, 1, 5]):
            with cp.fake.counting() as counts:
                pair.check(rng, lengths)
            steps = {name for name in counts.launches if "_step" in name or "_output" in name}
            assert steps
            assert all(name.endswith("_wide") for name in steps), steps


@emulated
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "arguments"), [CASES[0], CASES[4]], ids=str)
def test_cupy_after_resets_and_in_layers_above(kind: str, arguments: dict[str, Any], rng: Any) -> None:
    resets = np.zeros((5, 3), bool)
    resets[[1, 3, 3], [0, 0, 2]] = True
    with cuda() as cp:
        one = getattr(rnnkit, kind)(2, 5, 2, rng=0, device="cuda", **arguments)
        oracle = getattr(rnnkit, kind)(2, 5, 2, rng=0, backend="numpy", **arguments)
        x = randn(rng, 5, 3, 2, dtype="float32")
        y, _ = one(cp.asarray(x), resets=cp.asarray(resets))
        want, _ = oracle(x, resets=resets)
        assert_close("y", cp.asnumpy(y), want, "float32")
        assert_close("dx", cp.asnumpy(one.backward(y)[0]), oracle.backward(want)[0], "float32", "backward")
        for name, gradient in oracle.grads.items():
            assert_close(name, cp.asnumpy(one.grads[name]), gradient, "float32", "backward")


@emulated
def test_what_is_not_served_is_refused_with_the_reason() -> None:
    with cuda() as cp:
        x = cp.asarray(np.ones((3, 2, 3), np.float32))
        layer = rnnkit.GRU(3, 4, device="cuda", zoneout=0.3)
        assert "schedule stepwise" in rnnkit.explain(layer, x).kernel
        with pytest.raises(UnsupportedDeviceError, match="its kernels have no options"):
            rnnkit.GRU(3, 4, device="cuda", backend="cupy:one_block", zoneout=0.3)(x)
