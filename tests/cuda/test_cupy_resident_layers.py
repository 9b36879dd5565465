"""Layers on the schedules that keep W_hh on the chip: both directions in one array, and streams of single steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close
from tests.cuda.cuda_helpers import cuda
from tests.helpers import randn, slow_except
from tests.tools import emulator

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

LAYERS = {
    "lstm": lambda **given: rnnkit.LSTM(3, 20, **given),
    "lstm_projected": lambda **given: rnnkit.LSTM(3, 20, proj_size=18, **given),
    "gru": lambda **given: rnnkit.GRU(3, 20, **given),
    "gru_reset_before": lambda **given: rnnkit.GRU(3, 20, reset_after=False, **given),
}
SCHEDULES = ("cupy:one_block", "cupy:grid")
PAIRS = [(kind, schedule) for kind in LAYERS for schedule in SCHEDULES]


@pytest.fixture(scope="module")
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


def pair_of(kind: str, schedule: str, **given: Any) -> tuple[Any, Any]:
    """The same layer in float32 on the device, and in float64 in NumPy."""
    import cupy

    there = LAYERS[kind](device="cuda:0", backend=schedule, rng=3, **given)
    here = LAYERS[kind](dtype="float64", backend="numpy", rng=3, **given)
    drawn = np.random.default_rng(4)
    for name, parameter in here.params.items():
        parameter[...] = 0.3 * randn(drawn, *parameter.shape)
        there.params[name][...] = cupy.asarray(parameter.astype("float32"))
        parameter[...] = there.params[name].get()
    return there, here


@pytest.mark.parametrize(("kind", "schedule"), slow_except(PAIRS, ("gru", "cupy:one_block"), unpack=True))
def test_both_directions_write_into_one_array(cp: Any, kind: str, schedule: str) -> None:
    """And read the gradient of their half of it."""
    from rnnkit.backends.cupy import passes

    there, here = pair_of(kind, schedule, bidirectional=True)
    drawn = np.random.default_rng(0)
    x = randn(drawn, 5, 4, 3)
    dy = randn(drawn, 5, 4, 2 * (here.proj_size or 20))
    written = []

    def forward(p: Any, call: Any, launcher_of: Any) -> Any:
        found = original(p, call, launcher_of)
        written.append(call.out is not None and found[0] is call.out)
        return found

    original = passes.forward
    with mock.patch.object(passes, "forward", forward):
        for lengths in (None, [3, 5, 0, 4]):
            got, _ = there(cp.asarray(x.astype("float32")), lengths=lengths)
            want, _ = here(x, lengths=lengths)
            assert_close("y", got.get(), want, "float32", "forward")
            there.zero_grad()
            here.zero_grad()
            dx = there.backward(cp.asarray(dy.astype("float32")))
            dx_want = here.backward(dy)
            assert_close("dx", _first(dx).get(), _first(dx_want), "float32", "backward")
            for name, grad in here.grads.items():
                assert_close(name, there.grads[name].get(), grad, "float32", "backward")
    assert written == [True] * 4
    explained = rnnkit.explain(there, cp.zeros((5, 4, 3), "float32")).kernel
    assert f"schedule {schedule.partition(':')[2]}" in explained


def _first(found: Any) -> Any:
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize(("kind", "schedule"), slow_except(PAIRS, ("gru", "cupy:one_block"), unpack=True))
def test_a_stream_of_single_steps(cp: Any, kind: str, schedule: str) -> None:
    """T = 1, B = 1, the state carried: the step itself is one launch, and all steps equal one call of all of them."""
    there, here = pair_of(kind, schedule)
    x = randn(np.random.default_rng(0), 4, 1, 3)
    want, state_want = here(x)
    got = []
    state = None
    with rnnkit.no_grad():
        for t in range(4):
            with cp.fake.counting() as counts:
                y, state = there(cp.asarray(x[t : t + 1].astype("float32")), state)
            got.append(y.get()[0])
            assert counts.launches["forward_chunk"] == 1
            assert not any(name.endswith(("_step", "_output")) for name in counts.launches)
            packs = 2 if kind in ("gru_reset_before", "lstm_projected") else 1
            assert counts.launches["pack_weights"] == packs
            assert sum(counts.launches.values()) == 3 + packs
            assert counts.gemms == 1
            assert not counts.synchronisations
    assert_close("y", np.stack(got), want, "float32", "forward")
    last, last_want = (_first(given) for given in (state, state_want))
    assert_close("h_n", last.get(), last_want, "float32", "forward")
