"""Bidirectional: runs a recurrent layer over a sequence and its reversal, with any merge, as Keras does.

The reverse layer is an ordinary forward layer. Each row of its input is reversed within the row's own length, and so is
each row of its output. With merge="concat" and num_layers=1 this is PyTorch's bidirectional=True.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnkit.core import checks
from rnnkit.core.devices import array_module, device_of, on_own_device
from rnnkit.core.mixed_precision import narrow, wide
from rnnkit.nn.calls import backward_of, dx_options
from rnnkit.nn.module import Array, Call, Module, grad_enabled
from rnnkit.nn.rnn_base import Recurrent, check_recurrent

MERGES = ("concat", "sum", "mul", "ave", None)


class Bidirectional(Module):
    """Runs a recurrent layer and a second one that reads every row from its last step; merges both outputs.

    With num_layers > 1 each direction is a separate stack; in a layer with bidirectional=True the directions are
    concatenated between layers. The reverse layer is constructed with the layer's arguments and draws its own
    parameters from the layer's rng. Parameters are named "forward.<name>" and "reverse.<name>". Keras calls the
    argument merge_mode.

    Args:
        layer: an RNN, GRU, LSTM or SLSTM in one direction; it becomes the forward layer.
        merge: "concat" for y (T, B, 2*R), "sum", "mul" or "ave" for y (T, B, R), None for a pair (y_forward,
            y_reverse).

    Raises:
        TypeError: `layer` is another module, or its class does not store each constructor argument under its name.
        ValueError: `layer` is bidirectional already, or `merge` is unknown.

    Examples:
        >>> import numpy as np, rnnkit
        >>> layer = rnnkit.Bidirectional(rnnkit.GRU(4, 6, rng=0), merge="sum")
        >>> y, h_n = layer(np.ones((5, 3, 4), np.float32))
        >>> y.shape, h_n.shape
        ((5, 3, 6), (2, 3, 6))
    """

    takes_lengths = True
    takes_dx = True

    def __init__(self, layer: Recurrent, merge: str | None = "concat") -> None:
        check_recurrent(layer)
        if layer.bidirectional:
            raise ValueError("layer must have one direction, got one with bidirectional=True")
        self.merge = checks.one_of("merge", merge, MERGES)
        super().__init__(layer._dtype, layer.device)
        self.forward_layer = layer
        self.reverse_layer = _reverse_layer_of(layer)
        self.batch_first = layer.batch_first

    def __repr__(self) -> str:
        return f"Bidirectional({self.forward_layer!r}, merge={self.merge!r})"

    def children(self) -> dict[str, Module]:
        """The forward and the reverse layer.

        Returns:
            {"forward": forward layer, "reverse": reverse layer}.

        Examples:
            >>> import rnnkit
            >>> rnnkit.Bidirectional(rnnkit.RNN(2, 3)).children()["reverse"]
            RNN(2, 3, dtype=float32)
        """
        return {"forward": self.forward_layer, "reverse": self.reverse_layer}

    @property
    def device(self) -> str:
        """Device of both layers: 'cpu' or 'cuda:<index>'."""
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
        """Runs both layers: y, h_n = bidirectional(x, h0, lengths); for LSTM y, (h_n, c_n).

        `backward` reads x again, and with merge=None also y: do not write into them before it.

        Args:
            x: as for the layer, (T, B, I), (B, T, I) with batch_first, or (T, I) unbatched.
            h0: initial states, (2*L, B, R), or (2*L, R) for unbatched x: forward, then reverse, per layer. None for
                zeros. For LSTM a pair (h0, c0).
            lengths: number of steps of each row, (B,) integers in [0, T]; None if every row has T steps.

        Returns:
            A pair (y, state). y has shape (T, B, 2*R) for "concat", (T, B, R) for "sum", "mul" and "ave", in the layout
            of x, and is zero past each row's length; with merge=None y is a pair. The state has the shapes of the
            initial state.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: an argument has a bad shape, value or device.

        Examples:
            >>> import numpy as np, rnnkit
            >>> layer = rnnkit.Bidirectional(rnnkit.LSTM(4, 6, rng=0))
            >>> y, (h_n, c_n) = layer(np.ones((5, 3, 4), np.float32), lengths=[5, 1, 3])
            >>> y.shape, h_n.shape
            ((5, 3, 12), (2, 3, 6))
        """
        layer = self.forward_layer
        x = checks.array("x", x, self.dtype, self.device)
        time_major, unbatched = layer._time_major("x", x, layer.input_size)
        T, B, _ = time_major.shape
        lengths = checks.lengths(lengths, T, B, unbatched)
        states = self._states("{}0", h0, B, unbatched)
        reverse = _ReverseRows(lengths, self.batch_first, unbatched)
        self._saved = None
        y_forward, end_forward = layer(x, _states_of(states, 0), lengths)
        y_reverse, end_reverse = self.reverse_layer(reverse(x), _states_of(states, 1), lengths)
        y_reverse = reverse(y_reverse)
        if grad_enabled():
            by_layers = (self.forward_layer._saved, self.reverse_layer._saved)
            self._saved = _Saved(reverse, B, y_forward, y_reverse, by_layers)
        return merged(self.merge, y_forward, y_reverse), _interleaved(end_forward, end_reverse)

    @on_own_device
    def backward(self, dy: Any, dh_n: Any = None, *, call: Call | None = None, dx: bool = True) -> Any:
        """Differentiates a call: dx, dh0 = bidirectional.backward(dy, dh_n); for LSTM dx, (dh0, dc0).

        Adds to the gradients of both layers. Call it before the optimizer's step. Separate calls of the forward or the
        reverse layer in between do not matter.

        Args:
            dy: gradient of y, with y's shape; with merge=None a pair. None for zeros, also inside a pair.
            dh_n: gradient of the final state, with its shapes; None for zeros, also inside a pair.
            call: the call to differentiate, from `last_call`; None for this thread's most recent call.
            dx: whether to compute the gradient of x, which is not needed where x is data. With False, None is in its
                place.

        Returns:
            A pair (dx, dh0), for LSTM (dx, (dh0, dc0)), with the shapes of x and of the initial state.

        Raises:
            RuntimeError: this thread made no call, its most recent call ran under `no_grad()`, or, without `call`,
                several calls are pending since the last backward or `zero_grad()`.
            TypeError: a gradient or `call` has the wrong type or dtype.
            ValueError: a gradient has a bad shape or device, or `call` is of another module.

        Examples:
            >>> import numpy as np, rnnkit
            >>> layer = rnnkit.Bidirectional(rnnkit.GRU(4, 6, rng=0))
            >>> y, h_n = layer(np.ones((5, 3, 4), np.float32))
            >>> dx, dh0 = layer.backward(np.ones_like(y))
            >>> dx.shape, dh0.shape
            ((5, 3, 4), (2, 3, 6))
        """
        options = dx_options(dx)
        reverse, B, y_forward, y_reverse, by_layers = self._recalled(call)
        dy_forward, dy_reverse = merge_gradients("dy", dy, self.merge, y_forward, y_reverse)
        dstates = self._states("d{}_n", dh_n, B, reverse.unbatched)
        if dy_reverse is not None:
            dy_reverse = reverse(dy_reverse)
        of_forward = (by_layers[0], dy_forward, _states_of(dstates, 0))
        of_reverse = (by_layers[1], dy_reverse, _states_of(dstates, 1))
        dx_forward, dstate_forward = backward_of(self.forward_layer, *of_forward, **options)
        dx_reverse, dstate_reverse = backward_of(self.reverse_layer, *of_reverse, **options)
        found_dx = None if options else dx_forward + reverse(dx_reverse)
        return found_dx, _interleaved(dstate_forward, dstate_reverse)

    def _states(self, names: str, state: Any, B: int, unbatched: bool) -> tuple[Any, ...]:
        """The states, an array (2*L, B, ·) or None each. They are checked before they are split per direction, because
        half of a wrong state can have a valid shape."""
        layer = self.forward_layer
        slots = 2 * layer.num_layers
        lead = (slots,) if unbatched else (slots, B)
        means = "(2*L, width)" if unbatched else "(2*L, B, width)"
        shapes = [(*lead, width) for width in layer._state_widths()]
        named = [names.format(letter) for letter in layer.cell.states]
        return checks.states(state, named, shapes, self.dtype, self.device, means)


class _ReverseRows(NamedTuple):
    """Reverses every row of a sequence within its own length; padding stays in place. It is its own inverse."""

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


class _Saved(NamedTuple):
    """What a call saves for backward; the outputs are in time order."""

    reverse: _ReverseRows
    B: int
    y_forward: Array
    y_reverse: Array
    by_layers: tuple[Any, Any]


def _reverse_layer_of(layer: Recurrent) -> Recurrent:
    """A new layer with the layer's constructor arguments, read from its attributes of the same names."""
    kind = type(layer).__name__
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(type(layer)).parameters
    missing = [name for name, p in parameters.items() if p.kind not in by_name or not hasattr(layer, name)]
    if missing:
        raise TypeError(
            f"layer must store each constructor argument in an attribute of the same name, so that the reverse layer "
            f"can be constructed; {kind} does not store {', '.join(missing)}"
        )
    arguments = {name: getattr(layer, name) for name in parameters}
    if "dtype" in arguments:
        arguments["dtype"] = layer._dtype.name  # "tf32" too: the dtype of its arrays is float32
    if "dropout" in arguments:
        arguments["dropout"] = 0.0  # set below; the constructor would repeat the warning of the layer itself
    reverse = type(layer)(**arguments)
    reverse.dropout = layer.dropout
    reverse.train(layer.training)
    return reverse


def _states_of(states: tuple[Any, ...], direction: int) -> Any:
    """The states of one direction, as the layer's call takes them: a tuple if there are several, else one array."""
    halves = tuple(None if s is None else s[direction::2] for s in states)
    return halves if len(halves) > 1 else halves[0]


def _interleaved(forward: Any, reverse: Any) -> Any:
    """(L, B, ·) of each direction -> (2*L, B, ·), forward then reverse per layer; of a tuple, each of it."""
    if isinstance(forward, tuple):
        return tuple(_interleaved(f, r) for f, r in zip(forward, reverse, strict=True))
    xp: Any = array_module(forward)
    return xp.stack((forward, reverse), axis=1).reshape(2 * forward.shape[0], *forward.shape[1:])


def merged(merge: str | None, forward: Array, reverse: Array) -> Any:
    """The outputs (..., R) of both directions as one: (..., 2*R) for "concat", a pair for None, else (..., R)."""
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
    """Gradients of both arguments of `merged`, from the gradient `d` of its result. None stands for zeros.

    Raises ValueError or TypeError if `d`, called `name` in the message, does not fit.
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
    """Returns `d` if it is None or an array like `output`, with a last axis of `width`."""
    if d is None:
        return None
    shape = (*output.shape[:-1], width)
    return checks.shaped(name, d, shape, output.dtype, device_of(output), "the output's shape")
