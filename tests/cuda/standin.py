"""A CUDA backend without kernels, for tests of the code around a backend: NumPy on the arrays of tests/tools/fakecupy.

It reads the simulated device memory directly, which is not counted as a transfer. It asserts what a backend may assume.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

from rnnkit.backends import BACKENDS, BackendRow, BackwardCall, Forward, Gradients, LayerCall
from rnnkit.backends import numpy as oracle
from rnnkit.core.cells import CELLS, Weights
from rnnkit.core.dtypes import DTYPES
from tests.helpers import LAYERS
from tests.tools import fakecupy


@dataclass(frozen=True)
class StandIn(BackendRow):
    """The row of a backend that computes with NumPy on simulated device arrays."""

    def load(self, schedule: str | None = None) -> Any:
        return types.SimpleNamespace(forward=_forward, backward=_backward, describe=oracle.describe)


def _down(a: Any) -> Any:
    """The contents of a CuPy array, which must be on the current device, as NumPy."""
    if a is None:
        return None
    import cupy

    assert isinstance(a, cupy.ndarray)
    assert a.device.id == cupy.cuda.Device().id, "launched while another device is current"
    return np.array(cupy.fake.peek(a))


def _up(a: Any) -> Any:
    import cupy

    return None if a is None else cupy.asarray(a)


def _all(move: Any, arrays: Any) -> Any:
    return tuple(map(move, arrays))


def _forward(call: LayerCall) -> Forward:
    assert call.x.flags.c_contiguous
    assert call.lengths is None or isinstance(call.lengths, np.ndarray)
    weights = Weights(*_all(_down, call.weights))
    down = call._replace(x=_down(call.x), state0=_all(_down, call.state0), weights=weights, out=None)
    y, state_n, saved = oracle.forward(down)
    return _up(y), _all(_up, state_n), saved


def _backward(call: BackwardCall) -> Gradients:
    weights = Weights(*_all(_down, call.weights))
    down = call._replace(dy=_down(call.dy), dstate_n=_all(_down, call.dstate_n), weights=weights)
    dx, dstate0, dweights = oracle.backward(down)
    return Gradients(_up(dx), _all(_up, dstate0), Weights(*_all(_up, dweights)))


@contextmanager
def stand_in(devices: int = 1, names: tuple[str, ...] = ("cupy",), **options: Any) -> Iterator[Any]:
    """Installs the stand-in for CuPy and replaces the named backends. Yields the module."""
    rows = {name: StandIn(name, "cupy", tuple(DTYPES), "a stand-in", lambda: None, lambda: CELLS) for name in names}
    with mock.patch.dict(BACKENDS, rows), fakecupy.installed(devices=devices, **options) as module:
        yield module


def on(cp: Any, device: int, a: np.ndarray) -> Any:
    with cp.cuda.Device(device):
        return cp.asarray(a)


def numbers(rng: np.random.Generator, *shape: int, dtype: Any = "float32") -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def pair(name: str, device: str = "cuda:1", **kwargs: Any) -> tuple[Any, Any]:
    """A two-layer module on a device, and the same one on the CPU. T, B, I, H = 5, 3, 4, 6."""
    there = LAYERS[name](4, 6, 2, device=device, rng=1, **kwargs)
    here = LAYERS[name](4, 6, 2, backend="numpy", rng=1, **kwargs)
    return there, here
