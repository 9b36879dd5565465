"""Bidirectional: a layer and its mirror side by side, as Keras has it, for any recurrent layer and any merge.

The mirror is an ordinary forward layer that is shown every row turned round within its own length, and whose
outputs are turned back. With merge="concat" and num_layers=1 this is PyTorch's bidirectional=True.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnkit.core import checks
from rnnkit.core.devices import array_module, device_of, on_own_device
from rnnkit.core.mixed_precision import narrow, wide
from rnnkit.nn.calls import backward_of
from rnnkit.nn.module import Array, Call, Module, grad_enabled
from rnnkit.nn.rnn_base import Recurrent

MERGES = ("concat", "sum", "mul", "ave", None)


class Bidirectional(Module):
    """A recurrent layer and its mirror, which reads every row from its own end; their outputs merged, in time order.

    layer  an RNN, GRU or LSTM in one direction; with num_layers > 1 each direction is a stack of its own (in a
           bidirectional=True layer the directions meet between layers). The mirror is made with the layer's
           arguments and has parameters of its own, drawn from the layer's rng.
    merge  "concat" (y as a bidirectional=True layer's), "sum", "mul", "ave", or None (y is a pair): Keras'
           merge_mode

    Parameters are named "forward.<name>" and "reverse.<name>". Raises TypeError for another module or for a layer of
    your own class that keeps an argument under no name, ValueError for a layer that is bidirectional already or an
    unknown merge.
    """

    takes_lengths = True

    def __init__(self, layer: Recurrent, merge: str | None = "concat") -> None:
        if not isinstance(layer, Recurrent):
            raise TypeError(f"layer must be an RNN, GRU or LSTM, got {type(layer).__name__}")
        if layer.bidirectional:
            raise ValueError("layer must have one direction, got one with bidirectional=True")
        self.merge = checks.one_of("merge", merge, MERGES)
        super().__init__(layer._dtype, layer.device)
        self.forward_layer, self.reverse_layer = layer, _mirror(layer)
        self.batch_first = layer.batch_first

    def __repr__(self) -> str:
        return f"Bidirectional({self.forward_layer!r}, merge={self.merge!r})"

    def children(self) -> dict[str, Module]:
        """The layer, "forward", and its mirror, "reverse"."""
        return {"forward": self.forward_layer, "reverse": self.reverse_layer}

    @property
    def device(self) -> str:
        """'cpu' or 'cuda:<index>': the layer's, wherever it was moved."""
        return self.forward_layer.device

    @property
    def _meanings(self) -> Mapping[str, dict[str, Any]]:
        return self._gathered("_meanings", {"": {"merge": self.merge}})

    @property
    def output_size(self) -> int:
        """Width of y (of each y with merge=None): 2*R for "concat", else R."""
        return self.forward_layer.output_size * (2 if self.merge == "concat" else 1)

    @on_own_device
    def __call__(self, x: Array, h0: Any = None, lengths: Any = None) -> Any:
        """y, h_n = bidirectional(x, h0, lengths); for LSTM the state is a pair: y, (h_n, c_n).

        x, lengths  as the layer takes them
        y           (T, B, 2*R) for "concat", (T, B, R) for "sum", "mul" and "ave", in x's layout, zero past each row's
                    length; with merge=None the pair (y_forward, y_reverse)
        h0, h_n     (2*L, B, ·), or (2*L, ·) for unbatched x: per layer forward, then reverse

        x, and with merge=None y, are kept by reference until `backward`: do not write into them in between.
        Raises ValueError or TypeError naming the argument.
        """
        layer = self.forward_layer
        x = checks.array("x", x, self.dtype, self.device)
        time_major, unbatched = layer._time_major("x", x, layer.input_size)
        T, B, _ = time_major.shape
        lengths = checks.lengths(lengths, T, B, unbatched)
        states = self._states(("h0", "c0"), h0, B, unbatched)
        turn = _Turn(lengths, self.batch_first, unbatched)
        self._saved = None
        y_forward, end_forward = layer(x, _half(states, 0), lengths)
        y_reverse, end_reverse = self.reverse_layer(turn(x), _half(states, 1), lengths)
        y_reverse = turn(y_reverse)
        if grad_enabled():
            kept = (self.forward_layer._saved, self.reverse_layer._saved)
            self._saved = _Kept(turn, B, y_forward, y_reverse, kept)
        return merged(self.merge, y_forward, y_reverse), _interleaved(end_forward, end_reverse)

    @on_own_device
    def backward(self, dy: Any, dh_n: Any = None, *, call: Call | None = None) -> Any:
        """dx, dh0 = bidirectional.backward(dy, dh_n); for LSTM dx, (dh0, dc0) = ….backward(dy, (dh_n, dc_n)).

        dy as y, dh_n as h_n; None stands for zeros, also inside a pair. Adds into both layers' grads. Call it before
        the optimizer's step. Differentiates this thread's last call, or `call` (see `last_call`); calls of the
        layer or its mirror by itself do not matter.
        Raises RuntimeError before any call, after one under `no_grad()`, and without `call` after several since the
        last backward or `zero_grad()`; ValueError or TypeError for a bad gradient or `call`.
        """
        turn, B, y_forward, y_reverse, kept = self._recalled(call)
        dy_forward, dy_reverse = merge_gradients("dy", dy, self.merge, y_forward, y_reverse)
        ends = self._states(("dh_n", "dc_n"), dh_n, B, turn.unbatched)
        if dy_reverse is not None:
            dy_reverse = turn(dy_reverse)
        dx_forward, dstart_forward = backward_of(self.forward_layer, kept[0], dy_forward, _half(ends, 0))
        dx_reverse, dstart_reverse = backward_of(self.reverse_layer, kept[1], dy_reverse, _half(ends, 1))
        return dx_forward + turn(dx_reverse), _interleaved(dstart_forward, dstart_reverse)

    def _states(self, names: tuple[str, str], given: Any, B: int, unbatched: bool) -> tuple[Any, ...]:
        """One array or None a state, each (2*L, B, ·). Checked whole, as half of a wrong one might pass for right."""
        layer = self.forward_layer
        slots = 2 * layer.num_layers
        lead, means = ((slots,), "(2*L, width)") if unbatched else ((slots, B), "(2*L, B, width)")
        shapes = [(*lead, width) for width in layer._state_widths()]
        return checks.states(given, names, shapes, self.dtype, self.device, means)


class _Turn(NamedTuple):
    """Turns every row of a sequence round within its own length and leaves padding where it is. Its own inverse."""

    lengths: np.ndarray | None
    batch_first: bool
    unbatched: bool

    def __call__(self, a: Array) -> Array:
        """a (T, B, ·), (B, T, ·) with batch_first, or (T, ·) unbatched -> the same shape."""
        xp: Any = array_module(a)
        swap = self.batch_first and not self.unbatched
        if self.lengths is None:
            return xp.flip(a, 1 if swap else 0)
        a = a.swapaxes(0, 1) if swap else a[:, None] if self.unbatched else a
        steps = np.arange(a.shape[0])[:, None]
        source = np.where(steps < self.lengths, self.lengths - 1 - steps, steps)
        a = a[xp.asarray(source), xp.arange(a.shape[1])]
        return a.swapaxes(0, 1) if swap else a[:, 0] if self.unbatched else a


class _Kept(NamedTuple):
    """What a call keeps: how its rows are turned, the batch size, both outputs in time order, what the layers kept."""

    turn: _Turn
    B: int
    y_forward: Array
    y_reverse: Array
    kept: tuple[Any, Any]


def _mirror(layer: Recurrent) -> Recurrent:
    """A new layer with the layer's own arguments, each of which a layer keeps under its name."""
    kind, by_name = type(layer).__name__, (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(type(layer)).parameters
    lost = [name for name, p in parameters.items() if p.kind not in by_name or not hasattr(layer, name)]
    if lost:
        raise TypeError(
            f"layer must keep each argument of its constructor under its name, for the mirror to be made with; "
            f"{kind} does not keep {', '.join(lost)}"
        )
    arguments = {name: getattr(layer, name) for name in parameters}
    if "dtype" in arguments:
        arguments["dtype"] = layer._dtype.name  # "tf32" too, which the dtype of its arrays would not tell
    if "dropout" in arguments:
        arguments["dropout"] = 0.0  # set below: the layer itself has warned where it does nothing
    mirror = type(layer)(**arguments)
    mirror.dropout = layer.dropout
    mirror.train(layer.training)
    return mirror


def _half(states: tuple[Any, ...], direction: int) -> Any:
    """The states of one direction, as its layer takes them: a pair for LSTM, else one."""
    halves = tuple(None if s is None else s[direction::2] for s in states)
    return halves if len(halves) == 2 else halves[0]


def _interleaved(forward: Any, reverse: Any) -> Any:
    """(L, B, ·) of each direction as (2*L, B, ·), per layer forward then reverse; of a pair, both."""
    if isinstance(forward, tuple):
        return tuple(_interleaved(f, r) for f, r in zip(forward, reverse, strict=True))
    xp: Any = array_module(forward)
    return xp.stack((forward, reverse), axis=1).reshape(2 * forward.shape[0], *forward.shape[1:])


def merged(merge: str | None, forward: Array, reverse: Array) -> Any:
    """Two directions' outputs (..., R) as one, (..., 2*R) for "concat" and (..., R) otherwise; the pair for None."""
    if merge is None:
        return forward, reverse
    if merge == "concat":
        xp: Any = array_module(forward)
        return xp.concatenate((forward, reverse), axis=-1)
    if merge == "mul":
        return forward * reverse
    return forward + reverse if merge == "sum" else _halved(wide(forward) + wide(reverse), forward)


def merge_gradients(
    name: str, d: Any, merge: str | None, forward: Array, reverse: Array
) -> tuple[Array | None, Array | None]:
    """Gradients of both arguments of `merged` from d, that of its result, checked first. None stands for zeros.

    Raises ValueError or TypeError that calls d by `name`.
    """
    if merge is None:
        pair = (None, None) if d is None else d
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{name} must be a pair, as the output is with merge=None, got {type(d).__name__}")
        first, second = (
            check_gradient(f"{name}[{k}]", part, forward, forward.shape[-1]) for k, part in enumerate(pair)
        )
        return first, second
    R = forward.shape[-1]
    d = check_gradient(name, d, forward, 2 * R if merge == "concat" else R)
    if d is None:
        return None, None
    if merge == "concat":
        return d[..., :R], d[..., R:]
    if merge == "mul":
        return d * reverse, d * forward
    half = d if merge == "sum" else _halved(wide(d), d)
    return half, half


def _halved(total: Array, like: Array) -> Array:
    return narrow(0.5 * total, like.dtype)


def check_gradient(name: str, d: Any, output: Array, width: int) -> Array | None:
    """d, when it is None or an array of the output's dtype, device and shape, `width` wide."""
    if d is None:
        return None
    shape = (*output.shape[:-1], width)
    return checks.shaped(name, d, shape, output.dtype, device_of(output), "the output's shape")
