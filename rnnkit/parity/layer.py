"""check_layer(layer, x): compares a user's layer, with its own weights, with the same layer on the float64 oracle."""

from __future__ import annotations

import copy
import inspect
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnkit.backends import check_backend
from rnnkit.core import checks
from rnnkit.core.devices import resolve_device, to_device, to_numpy
from rnnkit.core.regularisation import regularisation_arguments
from rnnkit.explain import layer_drops
from rnnkit.nn.module import Array, grad_enabled
from rnnkit.nn.rnn import GRU, LSTM, RNN, Recurrent
from rnnkit.nn.rnn_base import check_recurrent
from rnnkit.nn.slstm import SLSTM
from rnnkit.parity.checks import LayerCheck
from rnnkit.parity.measure import Arrays, compared, error_line, no_overflow_warnings, repeated
from rnnkit.parity.outcome import Outcome

# Arguments of a layer that its copy on the oracle does not share.
_OWN = frozenset(("dropout", "dtype", "device", "backend", "strict", "rng"))


@dataclass
class _Call:
    """The arrays of one forward and backward pass, time-major on the host, in the layer's dtype. Padding is NaN."""

    x: np.ndarray  # (T, B, I)
    state0: tuple[np.ndarray, ...]  # (L*D, B, width of the state) each
    lengths: np.ndarray | None  # (B,)
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
    """Compares forward and backward of a layer with the same layer in float64 on the NumPy oracle.

    A copy of the layer runs, in two calls (on CUDA in three), which must give equal bits. The layer itself is
    unchanged: parameters, gradients, mode, generator and pending calls. The gradients of y and of the final state are
    drawn from a standard normal distribution.

    Args:
        layer: an RNN, GRU, LSTM or SLSTM.
        x: input, as for the layer's call; finite within each row's length.
        state: initial state, as for the layer's call.
        lengths: number of steps of each row, as for the layer's call.
        seed: seed of the gradients, at least 0.
        backend: name of the backend of the copy; None for the layer's.
        device: device of the copy; None for the layer's.

    Returns:
        An Outcome. Its arrays are y, dx, those of each state, as h_n and dh0, and "d" + name of each parameter, with
        the bounds of the layer's dtype in DTYPES. If the backend raises an exception, the status is "failed".

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has a bad shape or value, is not finite, or the layer draws random masks.
        RuntimeError: the call is inside `no_grad()`, or the backend or the device cannot be used here.

    Examples:
        >>> import numpy as np, rnnkit
        >>> from rnnkit.parity import check_layer
        >>> layer = rnnkit.GRU(4, 6, rng=0)
        >>> check_layer(layer, np.ones((5, 3, 4), np.float32)).status
        'ok'
    """
    call = _checked(layer, x, state, lengths, seed)
    duplicate = _duplicate(layer, backend, device)
    choice = duplicate._choice()
    T, B, _ = call.x.shape
    name = duplicate.backend or choice.row.name
    check = LayerCheck(name, choice.dtype.name, repr(layer), duplicate.device, T, B, call.lengths is not None)
    running = "the float64 oracle"
    start = time.perf_counter()
    try:
        with no_overflow_warnings():
            want = _results(_on_numpy(layer, "float64"), call)
        running = name
        start = time.perf_counter()
        sizes = [array.size * layer.dtype.itemsize for array in want.values()]
        calls = repeated(lambda: _results(duplicate, call), duplicate.device, sizes)
    except Exception as problem:  # every exception is reported as a failed check
        why = f"{running} raised {error_line(problem)}"
        return Outcome(check, "failed", why, seconds=time.perf_counter() - start)
    outcome = compared(check, calls, want, time.perf_counter() - start)
    return outcome if outcome.ok else _explained(outcome, layer, call, want)


# Arguments


def _checked(layer: Any, x: Any, state: Any, lengths: Any, seed: Any) -> _Call:
    """Checks every argument and returns the arrays of the call."""
    check_recurrent(layer)
    if layer_drops(layer) and layer.num_layers > 1:
        raise ValueError(
            f"layer must have its dropout off, as after layer.eval(), got dropout={layer.dropout} in training mode"
        )
    if layer.training and layer.regularisation is not None:
        rates = ", ".join(regularisation_arguments(layer.regularisation))
        raise ValueError(f"layer must draw no random masks, as after layer.eval(), got {rates} in training mode")
    layer._check_trainable("check_layer, which runs backward,")
    if not grad_enabled():
        raise RuntimeError("check_layer runs backward: call it outside rnnkit.no_grad()")
    if isinstance(seed, checks.NOT_NUMBERS) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    x, unbatched = layer._time_major("x", x, layer.input_size)
    T, B, _ = x.shape
    checked = checks.lengths(lengths, T, B, unbatched)
    state0 = tuple(np.array(to_numpy(s)) for s in layer._states(state, "{}0", B, unbatched))
    live = np.ones((T, B), bool) if checked is None else np.arange(T)[:, None] < checked
    host = np.array(to_numpy(x))
    _check_finite("x", host[live])
    for letter, value in zip(layer.cell.states, state0, strict=True):
        _check_finite(f"{letter}0", value)
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
    """Raises ValueError if a value is not finite: NaN equals NaN in the comparison, which would hide errors."""
    if not np.isfinite(values.astype(np.float64)).all():
        raise ValueError(f"{name} must be finite (for x within each row's length), got NaN or infinity")


# Layers


def _duplicate(layer: Recurrent, backend: str | None, device: Any) -> Recurrent:
    """A copy of the layer with its own memory, on the requested device and backend; frozen if the layer is."""
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
    """The same layer on the CPU, on the NumPy backend, in the dtype of that name."""
    kind: Any = next(kind for kind in (RNN, GRU, LSTM, SLSTM) if isinstance(layer, kind))
    given = {name: getattr(layer, name) for name in inspect.signature(kind).parameters if name not in _OWN}
    copied: Recurrent = kind(**given, dtype=dtype, backend="numpy", rng=0)
    copied.train(layer.training)  # zoneout takes its expected value in evaluation mode alone
    copied.load_state_dict(layer.state_dict())
    return copied


def _results(layer: Recurrent, call: _Call) -> Arrays:
    """Runs forward and backward from zero gradients. Returns every output and gradient by name, copied to the host."""

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
    arrays = {"y": y, "dx": dx}
    for name, state, dstate in zip(layer.cell.states, parts(state_n), parts(dstate0), strict=True):
        arrays |= {f"{name}_n": state, f"d{name}0": dstate}
    arrays |= {f"d{name}": grad for name, grad in layer.grads.items()}
    return {name: np.array(to_numpy(array)) for name, array in arrays.items()}


def _explained(outcome: Outcome, layer: Recurrent, call: _Call, want: Arrays) -> Outcome:
    """Adds to an outcome over its bounds whether NumPy in the same dtype exceeds them too.

    If it does, the weights amplify rounding errors from step to step in every implementation.
    """
    if outcome.check.dtype == "float64" or outcome.worst <= 1:
        return outcome
    with no_overflow_warnings():
        on_numpy = compared(outcome.check, [_results(_on_numpy(layer, outcome.check.dtype), call)], want, 0.0)
    if on_numpy.worst <= 1:
        return outcome
    share = f"{on_numpy.worst:.3g} times its bound in {on_numpy.worst_array}"
    hint = f"the NumPy backend in {outcome.check.dtype} is at {share}"
    why = f"{outcome.why}; {hint}: these numbers amplify rounding errors"
    return Outcome(outcome.check, outcome.status, why, outcome.arrays, outcome.same_bits, outcome.seconds)
