"""Resets and masks of layers on a CUDA device, without a GPU: on the simulated CuPy, with the kernels of both backends.

The equations are tested in tests/api/test_resets.py, on the CPU. Here each CUDA backend is compared with the oracle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.devices import to_device
from rnnkit.testing import assert_close
from tests.api.resets import Inputs, inputs, kind_of, trained
from tests.cuda.cuda_helpers import LAYERS, cuda
from tests.cuda.standin import on, pair, stand_in
from tests.helpers import random_state, refused, slow_except
from tests.tools import emulator, fakecupy, greenlets


def on_card(value: Any) -> Any:
    """Floating-point arrays on the device, at any depth."""
    if isinstance(value, tuple):
        return tuple(map(on_card, value))
    return to_device(value, "cuda:0") if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def assert_oracle(there: Any, here: Any, given: Inputs, rng: np.random.Generator, **more: Any) -> None:
    T, B, _ = given.x.shape
    dy = rng.standard_normal((T, B, here.output_size)).astype(here.dtype)
    dends = random_state(here, B, rng)
    want = trained(here, given, dy, dends, **more)
    got = trained(there, Inputs(*map(on_card, given)), on_card(dy), on_card(dends), **more)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert_close(name, got[name], value, "float32", kind_of(name))


@pytest.mark.parametrize("kinds", ["resets given mask lengths", "resets mask zero"])
@pytest.mark.parametrize("name", LAYERS)
def test_cupy_gives_what_the_oracle_gives(name: str, kinds: str, rng: np.random.Generator) -> None:
    if emulator.available():
        pytest.skip(str(emulator.available()))
    with cuda():
        there, here = pair(name, "cuda:0", bidirectional=True)
        assert_oracle(there, here, inputs(here, rng, kinds=kinds), rng)


@pytest.mark.parametrize("name", slow_except(["gru_reset_before", "lstm"], "lstm"))
def test_numba_cuda_gives_what_the_oracle_gives(name: str, rng: np.random.Generator) -> None:
    if greenlets.available():
        pytest.skip(str(greenlets.available()))
    with fakecupy.installed(), greenlets.installed(0, False):
        there = LAYERS[name](4, 6, 2, device="cuda:0", backend="numba_cuda", rng=1)
        here = LAYERS[name](4, 6, 2, backend="numpy", rng=1)
        assert_oracle(there, here, inputs(here, rng, T=5, B=3, kinds="resets given mask lengths"), rng)


@pytest.mark.parametrize("backend", ["cupy", pytest.param("numba_cuda", marks=pytest.mark.slow)])
def test_gradients_that_are_cut_every_k_steps(backend: str, rng: np.random.Generator) -> None:
    missing = emulator.available() if backend == "cupy" else greenlets.available()
    if missing:
        pytest.skip(str(missing))
    with cuda() if backend == "cupy" else fakecupy.installed():
        if backend == "numba_cuda":
            with greenlets.installed(0, False):
                _check_truncated(backend, rng)
        else:
            _check_truncated(backend, rng)


def _check_truncated(backend: str, rng: np.random.Generator) -> None:
    there, here = (
        rnnkit.LSTM(4, 6, bidirectional=True, rng=1, **where)
        for where in ({"device": "cuda:0", "backend": backend}, {"backend": "numpy"})
    )
    given = inputs(here, rng, T=7, B=3, kinds="resets given mask lengths")
    assert_oracle(there, here, given, rng, truncate=3)


@pytest.mark.parametrize("where", ["host", "device", "list"])
def test_flags_synchronise_only_if_they_are_on_the_device(where: str, rng: np.random.Generator) -> None:
    with stand_in(devices=2) as cp:
        there, here = pair("lstm", "cuda:1")
        given = inputs(here, rng, T=5, B=3, kinds="resets mask")
        up = {"host": np.array, "list": np.ndarray.tolist, "device": lambda a: on(cp, 1, a)}[where]
        x = on(cp, 1, given.x)
        state = tuple(on(cp, 1, s) for s in given.h0)
        flags = {"resets": up(given.resets), "mask": up(given.mask)}
        with cp.fake.counting() as counts:
            y, _ = there(x, state, **flags)
            there.backward(y)
        assert sum(counts.synchronisations.values()) == (2 if where == "device" else 0)
        assert_close("y", y, here(given.x, given.h0, **given.options)[0], "float32")
        with refused(ValueError, "resets must have shape (T, B) = (5, 3), got (3, 5)"):
            there(x, state, resets=on(cp, 1, given.resets.T))


def test_flags_of_a_layer_on_the_cpu_may_be_on_a_device(rng: np.random.Generator) -> None:
    with stand_in() as cp:
        layer = rnnkit.GRU(3, 4, backend="numpy", rng=1)
        given = inputs(layer, rng, kinds="resets")
        want, _ = layer(given.x, given.h0, resets=given.resets)
        got, _ = layer(given.x, given.h0, resets=cp.asarray(given.resets))
        np.testing.assert_array_equal(got, want)
