"""A CUDA backend with no kernels, for tests of what stands around one: it computes with NumPy on tests/tools/fakecupy.

It reads what the fake's device memory holds, which counts as no transfer, and insists on what a backend may rely on.
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
    """The row of a backend that computes with NumPy on arrays of the fake."""

    def load(self, schedule: str | None = None) -> Any:
        return types.SimpleNamespace(forward=_forward, backward=_backward, describe=oracle.describe)


def _down(a: Any) -> Any:
    """What device memory holds, as NumPy; the array must be CuPy's, on the current device."""
    if a is None:
        return None
    import cupy

    assert isinstance(a, cupy.ndarray)
    assert a.device.id == cupy.cuda.Device().id, "launched with another device current"
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
    """The fake CuPy, with stand-ins for the backends of those names; gives the module."""
    rows = {name: StandIn(name, "cupy", tuple(DTYPES), "a stand-in", lambda: None, lambda: CELLS) for name in names}
    with mock.patch.dict(BACKENDS, rows), fakecupy.installed(devices=devices, **options) as module:
        yield module


def on(cp: Any, device: int, a: np.ndarray) -> Any:
    with cp.cuda.Device(device):
        return cp.asarray(a)


def numbers(rng: np.random.Generator, *shape: int, dtype: Any = "float32") -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def pair(name: str, device: str = "cuda:1", **kwargs: Any) -> tuple[Any, Any]:
    """A layer on a device and the same one on the host: T, B, I, H = 5, 3, 4, 6 in two layers."""
    there = LAYERS[name](4, 6, 2, device=device, rng=1, **kwargs)
    here = LAYERS[name](4, 6, 2, backend="numpy", rng=1, **kwargs)
    return there, here
