"""Helpers of several suites: a layer of every cell, random states, and a record of a layer's state."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from rnnkit.backends import BACKENDS
from rnnkit.backends.numba import estimate, prepared
from rnnkit.core import thread_pool
from rnnkit.warmup import LAYERS as LAYERS

CPU_BACKENDS = [
    row.name
    for row in BACKENDS.values()
    if row.arrays == "numpy" and importlib.util.find_spec(f"rnnkit.backends.{row.name}") is not None
]


def slow_except(values: Iterable[Any], *quick: Any, unpack: bool = False) -> list[Any]:
    """`values` as parameters of a test. `make test` runs those in `quick`; the others are marked slow.

    unpack: each value is a tuple with one entry per parameter name.
    """
    slow = pytest.mark.slow
    return [v if v in quick else pytest.param(*(v if unpack else (v,)), marks=slow) for v in values]


# Marks that replace the fixture `cpu_backend`: one backend in `make test`, all of them in `make test-all`.
ONE_BACKEND = pytest.mark.parametrize("cpu_backend", slow_except(CPU_BACKENDS, CPU_BACKENDS[0]))
THE_ORACLE = pytest.mark.parametrize("cpu_backend", slow_except(CPU_BACKENDS, "numpy"))


def randn(rng: np.random.Generator, *shape: int, dtype: Any = "float64") -> np.ndarray:
    """Standard normal numbers that are exact in float32, so that float32 and float64 start from the same ones."""
    return rng.standard_normal(shape).astype(np.float32).astype(dtype)


def random_state(layer: Any, B: int | None, rng: np.random.Generator) -> Any:
    """A random state for `layer`: h (slots, B, R), others (slots, B, H), n at least 1. B is None for unbatched."""
    slots = layer.num_layers * layer.num_directions
    batch = () if B is None else (B,)
    R = layer.proj_size or layer.hidden_size
    h = randn(rng, slots, *batch, R, dtype=layer.dtype)
    if len(layer.cell.states) == 1:
        return h
    others = [randn(rng, slots, *batch, layer.hidden_size, dtype=layer.dtype) for _ in layer.cell.states[1:]]
    if "n" in layer.cell.states:
        others[1] = (1 + np.abs(others[1].astype(np.float32))).astype(layer.dtype)
    return (h, *others)


def parts(state: Any) -> tuple[np.ndarray, ...]:
    """A layer's state as a tuple, of one array or several."""
    return state if isinstance(state, tuple) else (state,)


def layer_after_a_call(name: str, **kwargs: Any) -> Any:
    """A layer with gradients, a call to differentiate and drawn dropout masks. T, B, I, H = 4, 3, 5, 6."""
    layer = LAYERS[name](5, 6, 2, dropout=0.5, backend="numpy", rng=1, **kwargs)
    shape = (3, 4, 5) if layer.batch_first else (4, 3, 5)
    y, _ = layer(randn(np.random.default_rng(2), *shape, dtype="float32"))
    layer.backward(y)
    return layer


def train_step(
    layer: Any, x: np.ndarray, state: Any, dy: Any, dstate: Any, lengths: Any = None
) -> dict[str, np.ndarray]:
    """Forward and backward from cleared gradients: every output and gradient by name, copied."""
    layer.zero_grad()
    y, state_n = layer(x, state, lengths)
    dx, dstate0 = layer.backward(dy, dstate)
    results = {"y": y, "dx": dx}
    results |= {f"state_n[{k}]": s for k, s in enumerate(parts(state_n))}
    results |= {f"dstate0[{k}]": s for k, s in enumerate(parts(dstate0))}
    results |= {f"grad {name}": g for name, g in layer.grads.items()}
    return {name: np.array(value) for name, value in results.items()}


def assert_same(got: dict[str, Any], want: dict[str, Any], *, in_order: bool = False) -> None:
    """Equal names, and under each name equal dtypes, shapes and bits. in_order: the names' order is compared too."""
    assert set(got) == set(want)
    assert not in_order or list(got) == list(want)
    for name, value in want.items():
        one, other = np.asarray(got[name]), np.asarray(value)
        np.testing.assert_array_equal(one, other, err_msg=name, strict=True)
        assert one.tobytes() == other.tobytes(), f"{name}: equal numbers with different bits"


def record(layer: Any) -> dict[str, Any]:
    """What a failing call must not change: parameters, gradients, generator, mode, and the result of backward."""
    grads = {name: g.copy() for name, g in layer.grads.items()}
    found: dict[str, Any] = {f"param {name}": p.copy() for name, p in layer.params.items()}
    found |= {f"grad {name}": g for name, g in grads.items()}
    found["rng"], found["training"] = str(layer.rng.bit_generator.state), layer.training
    try:
        layer.zero_grad()
        y_width = layer.output_size
        saved_shape = None if layer._saved is None else layer._saved.saved.shape
        if saved_shape is not None:
            T, B, _ = saved_shape
            shape = (T, y_width) if layer._saved.unbatched else ((B, T, y_width) if layer.batch_first else saved_shape)
            dx, dstate0 = layer.backward(np.linspace(-1, 1, T * B * y_width, dtype=layer.dtype).reshape(shape))
            found["dx"] = dx
            found |= {f"dstate0[{k}]": s for k, s in enumerate(parts(dstate0))}
            found |= {f"backward {name}": g.copy() for name, g in layer.grads.items()}
    finally:
        for name, g in layer.grads.items():
            g[...] = grads[name]
    return found


@contextmanager
def refused(error: type[Exception], *words: str, by: Any = None) -> Iterator[None]:
    """The body must raise exactly `error` with every word of `words`, and must not change the layer `by`."""
    before = None if by is None else record(by)
    with pytest.raises(error) as caught:
        yield
    assert caught.type is error, f"{caught.type.__name__}, not {error.__name__}: {caught.value}"
    message = str(caught.value)
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in the message: {message}"
    if before is not None:
        assert_same(record(by), before)


def share_everything(patch: pytest.MonkeyPatch, threads: int) -> None:
    """Divides any amount of work among `threads` threads, regardless of the machine's cores and load."""
    settings = {"_threads": threads, "PARALLEL_FROM_US": 0, "WAKE_FROM_US": 0, "BACKOFF_S": (0.0, 0.0)}
    for name, value in (settings | dict.fromkeys(("READY_WAIT_US", "WOKEN_WAIT_US"), 1e7)).items():
        patch.setattr(thread_pool, name, value)
    patch.setattr(estimate, "THREAD_US", 0.0)
    prepared.forget()
