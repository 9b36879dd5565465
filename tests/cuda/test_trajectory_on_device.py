"""rnnkit.trajectory of layers on a CUDA device, without a GPU: both backends' kernels, against the oracle's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close
from tests.api.resets import inputs
from tests.cuda.cuda_helpers import cuda
from tests.cuda.standin import stand_in
from tests.cuda.test_numba_cuda import device
from tests.helpers import parts, randn, random_state, slow_except
from tests.tools import emulator, greenlets

emulated = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))
on_greenlets = pytest.mark.skipif(greenlets.available() is not None, reason=str(greenlets.available()))

CASES: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"proj_size": 3}),
    ("LSTM", {"peephole": True, "cell_clip": 0.4}),
    ("LSTM", {"clip": 0.1, "coupled": True}),
    ("GRU", {"clip": 0.1, "activations": ("Sigmoid", "Softsign")}),
    ("LSTM", {"coupled": True, "activations": ("HardSigmoid", "Tanh", "Softsign")}),
    ("LSTM", {"zoneout": (0.3, 0.2), "recurrent_dropout": 0.3}),
    ("LSTM", {"zoneout": (0.3, 0.2), "zoneout_output": "zoned"}),
    ("GRU", {}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"reset_after": False, "zoneout": 0.4}),
    ("RNN", {}),
]
T, B, I, H = 5, 3, 4, 6


def check(cp: Any, kind: str, options: dict[str, Any], backend: str, layers: int, bidirectional: bool) -> None:
    """Of each layer, for full and ragged rows."""
    shape = {"num_layers": layers, "bidirectional": bidirectional, "rng": 0, **options}
    there = getattr(rnnkit, kind)(I, H, device="cuda", backend=backend, **shape)
    here = getattr(rnnkit, kind)(I, H, backend="numpy", **shape)
    rng = np.random.default_rng(1)
    x, state = randn(rng, T, B, I, dtype="float32"), parts(random_state(here, B, rng))
    up = tuple(map(cp.asarray, state))
    for lengths in (None, [3, 0, 5]):
        for k in range(layers):
            want = rnnkit.trajectory(here, x, state if len(state) > 1 else state[0], lengths, of_layer=k)
            got = rnnkit.trajectory(there, cp.asarray(x), up if len(up) > 1 else up[0], lengths, of_layer=k)
            assert list(got) == list(want)
            for name, value in want.items():
                assert isinstance(got[name], cp.ndarray)
                assert_close(name, cp.asnumpy(got[name]), value, "float32")


def check_first_steps(cp: Any, backend: str) -> None:
    """Of an sLSTM, from zeros, where its equations have a case of their own."""
    there = rnnkit.SLSTM(I, H, device="cuda", backend=backend, rng=0)
    here = rnnkit.SLSTM(I, H, backend="numpy", rng=0)
    x = 3 * randn(np.random.default_rng(2), T, B, I, dtype="float32")
    got = rnnkit.trajectory(there, cp.asarray(x), lengths=[3, 0, 5])
    for name, value in rnnkit.trajectory(here, x, lengths=[3, 0, 5]).items():
        assert_close(name, cp.asnumpy(got[name]), value, "float32")


@emulated
@pytest.mark.parametrize(("kind", "options"), slow_except(CASES, *CASES[:2], unpack=True), ids=str)
def test_cupy(kind: str, options: dict[str, Any]) -> None:
    with cuda() as cp:
        check(cp, kind, options, "cupy:stepwise", 1, True)
        check(cp, kind, options, "cupy", 2, False)


@emulated
def test_cupy_of_the_slstm() -> None:
    with cuda() as cp:
        check(cp, "SLSTM", {}, "cupy:stepwise", 1, True)
        check_first_steps(cp, "cupy:stepwise")


@emulated
def test_cupy_with_resets_and_a_mask(rng: np.random.Generator) -> None:
    with cuda() as cp:
        there = rnnkit.LSTM(I, H, bidirectional=True, device="cuda", backend="cupy", rng=0)
        here = rnnkit.LSTM(I, H, bidirectional=True, backend="numpy", rng=0)
        given = inputs(here, rng, T=T, B=B, kinds="resets given mask lengths")
        flags = {"resets": given.resets, "mask": given.mask}
        states = [tuple(map(cp.asarray, parts(s))) for s in (given.h0, given.reset_state)]
        got = rnnkit.trajectory(there, cp.asarray(given.x), states[0], given.lengths, reset_state=states[1], **flags)
        want = rnnkit.trajectory(here, given.x, given.h0, given.lengths, reset_state=given.reset_state, **flags)
        for name, value in want.items():
            assert_close(name, cp.asnumpy(got[name]), value, "float32")


@on_greenlets
@pytest.mark.slow
def test_first_steps_of_the_slstm_on_numba_cuda() -> None:
    with device(1) as (cp, _):
        check_first_steps(cp, "numba_cuda")


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["one_block", "grid"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_schedules_that_keep_the_weights_on_the_chip(kind: str, schedule: str) -> None:
    with cuda() as cp:
        check(cp, kind, {}, f"cupy:{schedule}", 1, False)


@on_greenlets
@pytest.mark.parametrize(
    ("kind", "options"), slow_except([*CASES, ("SLSTM", {})], CASES[0], CASES[3], unpack=True), ids=str
)
def test_numba_cuda(kind: str, options: dict[str, Any]) -> None:
    with device(1) as (cp, _):
        check(cp, kind, options, "numba_cuda", 1, True)


@emulated
def test_nothing_synchronises_and_arguments_are_refused() -> None:
    with cuda() as cp:
        layer = rnnkit.GRU(I, H, device="cuda", backend="cupy", rng=0)
        x = cp.asarray(np.ones((T, B, I), np.float32))
        with cp.fake.counting() as counts:
            rnnkit.trajectory(layer, x, lengths=[3, 0, 5])
        assert sum(counts.synchronisations.values()) == 0
        with pytest.raises(ValueError, match="x must be on"):
            rnnkit.trajectory(layer, np.ones((T, B, I), np.float32))


def test_a_backend_without_saved_steps_is_refused() -> None:
    with stand_in() as cp:
        layer = rnnkit.GRU(I, H, device="cuda")
        with pytest.raises(ValueError, match="trajectory does not serve the backend 'cupy'"):
            rnnkit.trajectory(layer, cp.asarray(np.ones((T, B, I), np.float32)))
