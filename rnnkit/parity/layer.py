"""check_layer(layer, x): a layer of a user, with its own weights, against the same layer on the float64 oracle."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnkit.backends import check_backend
from rnnkit.core import checks
from rnnkit.core.devices import resolve_device, to_device, to_numpy
from rnnkit.explain import layer_drops
from rnnkit.nn.module import Array, grad_enabled
from rnnkit.nn.rnn import GRU, LSTM, RNN, Recurrent
from rnnkit.parity.checks import LayerCheck
from rnnkit.parity.measure import Arrays, judged, quiet, repeated, said
from rnnkit.parity.outcome import Outcome


@dataclass
class _Call:
    """The numbers of one forward and backward, time-major on the host, in the layer's dtype. Padding is NaN."""

    x: np.ndarray  # (T, B, I)
    state0: tuple[np.ndarray, ...]  # (L*D, B, width of the state) each
    lengths: np.ndarray | None
    dy: np.ndarray  # (T, B, width of y)
    dstate_n: tuple[np.ndarray, ...]
    unbatched: bool


def check_layer(
    layer: Recurrent,
    x: Array,
    state: Any = None,
    lengths: Any = None,
    *,
    seed: int = 0,
    backend: str | None = None,
    device: Any = None,
) -> Outcome:
    """Forward and backward of `layer` for these arguments, against the same layer in float64 on the NumPy oracle.

    layer: an RNN, GRU or LSTM with any options. It is left as it was: parameters, gradients, mode, generator and what
    its `backward` answers; a copy of it runs, in two calls (on CUDA three), which must give the same bits.
    x, state, lengths: as the layer's call takes them. The gradients of y and of the final states that backward takes
    are standard normal, drawn from `seed`, a whole number of at least 0.
    backend, device: where the copy runs, as of the layer's constructor; by default those of the layer.
    Gives an Outcome whose arrays are y, h_n, c_n, dx, dh0, dc0 and "d" + the name of each parameter, with the bounds of
    the layer's dtype in DTYPES. Whatever the backend raises gives the status "failed".
    Raises TypeError or ValueError naming the argument for a bad one, among them a layer whose dropout is on and numbers
    that are not finite; RuntimeError inside `no_grad()` and for a backend or device that cannot be used here.
    """
    call = _checked(layer, x, state, lengths, seed)
    duplicate = _duplicate(layer, backend, device)
    choice = duplicate._choice()
    T, B, _ = call.x.shape
    name = duplicate.backend or choice.row.name
    check = LayerCheck(name, choice.dtype.name, repr(layer), duplicate.device, T, B, call.lengths is not None)
    at, start = "the float64 oracle", time.perf_counter()
    try:
        with quiet():
            want = _answers(_on_numpy(layer, "float64"), call)
        at, start = name, time.perf_counter()
        sizes = [array.size * layer.dtype.itemsize for array in want.values()]
        calls = repeated(lambda: _answers(duplicate, call), duplicate.device, sizes)
    except Exception as problem:  # a tool that reports failures must report every kind of them
        return Outcome(check, "failed", f"{at} raised {said(problem)}", seconds=time.perf_counter() - start)
    outcome = judged(check, calls, want, time.perf_counter() - start)
    return outcome if outcome.ok else _explained(outcome, layer, call, want)


# Arguments


def _checked(layer: Any, x: Any, state: Any, lengths: Any, seed: Any) -> _Call:
    """Every argument checked, and the numbers of the call."""
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer must be an RNN, GRU or LSTM, got {type(layer).__name__}")
    if layer_drops(layer) and layer.num_layers > 1:
        raise ValueError(
            f"layer must have its dropout off, as after layer.eval(), got dropout={layer.dropout} in training mode"
        )
    if not grad_enabled():
        raise RuntimeError("check_layer runs backward: call it outside rnnkit.no_grad()")
    if isinstance(seed, checks.NOT_NUMBERS) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    x, unbatched = layer._time_major("x", x, layer.input_size)
    T, B, _ = x.shape
    checked = checks.lengths(lengths, T, B, unbatched)
    state0 = tuple(np.array(to_numpy(s)) for s in layer._states(state, ("h0", "c0"), B, unbatched, zeros=True))
    live = np.ones((T, B), bool) if checked is None else np.arange(T)[:, None] < checked
    host = np.array(to_numpy(x))
    _check_finite("x", host[live])
    for name, value in zip(("h0", "c0"), state0, strict=False):
        _check_finite(name, value)
    for name, value in layer.params.items():
        _check_finite(name, to_numpy(value))
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32).astype(layer.dtype)

    dy = draw(T, B, layer.output_size)
    host[~live] = np.nan
    dy[~live] = np.nan
    return _Call(host, state0, checked, dy, tuple(draw(*s.shape) for s in state0), unbatched)


def _check_finite(name: str, values: np.ndarray) -> None:
    """NaN equals NaN in a comparison: numbers that are not finite would hide errors."""
    if not np.isfinite(values.astype(np.float64)).all():
        raise ValueError(f"{name} must be finite (for x within each row's length), got NaN or infinity")


# Layers


def _duplicate(layer: Recurrent, backend: str | None, device: Any) -> Recurrent:
    """A copy of the layer in memory of its own, frozen where the layer is, on the device and backend asked for."""
    check_backend(backend)
    target = layer.device if device is None else resolve_device(device)
    duplicate = copy.deepcopy(layer)
    if backend is not None:
        duplicate.backend = backend
    duplicate.to(target)
    if layer.frozen and target == "cpu":
        duplicate.freeze()
    return duplicate


def _on_numpy(layer: Recurrent, dtype: str) -> Recurrent:
    """The same layer on the CPU by the NumPy backend, in the dtype of that name."""
    options: dict[str, Any] = {
        "num_layers": layer.num_layers,
        "bias": layer.bias,
        "batch_first": layer.batch_first,
        "bidirectional": layer.bidirectional,
        "dtype": dtype,
        "backend": "numpy",
        "rng": 0,
    }
    kind: Any
    if isinstance(layer, RNN):
        kind, options["nonlinearity"] = RNN, layer.nonlinearity
    elif isinstance(layer, GRU):
        kind, options["reset_after"] = GRU, layer.reset_after
    else:
        kind, options["proj_size"] = LSTM, layer.proj_size
    made: Recurrent = kind(layer.input_size, layer.hidden_size, **options)
    made.load_state_dict(layer.state_dict())
    return made


def _answers(layer: Recurrent, call: _Call) -> Arrays:
    """Forward and backward from zero gradients: every output and gradient by name, copied to the host."""

    def put(array: np.ndarray) -> Any:
        return to_device(array.astype(layer.dtype), layer.device)

    def put_state(state: tuple[np.ndarray, ...]) -> Any:
        return layer._user_state(tuple(put(s) for s in state), call.unbatched)

    def parts(state: Any) -> tuple[Any, ...]:
        return state if isinstance(state, tuple) else (state,)

    layer.zero_grad()
    x = layer._user_layout(put(call.x), call.unbatched)
    y, state_n = layer(x, put_state(call.state0), call.lengths)
    dy = layer._user_layout(put(call.dy), call.unbatched)
    dx, dstate0 = layer.backward(dy, put_state(call.dstate_n))
    found = {"y": y, "dx": dx}
    for name, end, start in zip(layer.cell.states, parts(state_n), parts(dstate0), strict=True):
        found |= {f"{name}_n": end, f"d{name}0": start}
    found |= {f"d{name}": grad for name, grad in layer.grads.items()}
    return {name: np.array(to_numpy(array)) for name, array in found.items()}


def _explained(outcome: Outcome, layer: Recurrent, call: _Call, want: Arrays) -> Outcome:
    """The outcome of a layer over its bounds; says where NumPy in the same dtype is over them too.

    Weights that amplify rounding errors from step to step do so in every implementation.
    """
    if outcome.check.dtype == "float64" or outcome.worst <= 1:
        return outcome
    with quiet():
        plain = judged(outcome.check, [_answers(_on_numpy(layer, outcome.check.dtype), call)], want, 0.0)
    if plain.worst <= 1:
        return outcome
    hint = f"the NumPy backend in {outcome.check.dtype} is at {plain.worst:.3g} times its bound in {plain.worst_array}"
    why = f"{outcome.why}; {hint}: these numbers amplify rounding errors"
    return Outcome(outcome.check, outcome.status, why, outcome.arrays, outcome.same_bits, outcome.seconds)
