"""Recurrent: what RNN, GRU and LSTM share, by torch.nn's shapes, defaults and semantics. NumPy or CuPy arrays.

Layouts are PyTorch's. `weight_ih_l{k}[_reverse]` (G*H, I), `weight_hh_l{k}` (G*H, R), `weight_hr_l{k}` (P, H) under
projection, two biases (G*H,) each; gate order i,f,g,o and r,z,n; R = P under projection, else H.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends import Choice, LayerCache, check_backend, select
from rnnkit.core import checks
from rnnkit.core.cells import CELLS, Cell, Weights
from rnnkit.core.devices import array_module, on_own_device
from rnnkit.functional import stack
from rnnkit.nn.module import Array, Call, Module, grad_enabled, make_rng

# Weights' fields beside the names PyTorch gives them.
PARTS = (
    ("w_ih", "weight_ih"),
    ("w_hh", "weight_hh"),
    ("b_ih", "bias_ih"),
    ("b_hh", "bias_hh"),
    ("w_hr", "weight_hr"),
)


# Arguments a repr leaves out where they have their default, in the order of the constructors.
DEFAULTS = {
    "num_layers": 1,
    "nonlinearity": "tanh",
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
    "proj_size": 0,
    "reset_after": True,
}


def described(layer: Any) -> str:
    """The repr of a recurrent layer or cell: its sizes, what is not as usual, and its row of DTYPES."""
    said = [str(layer.input_size), str(layer.hidden_size)]
    for name, usual in DEFAULTS.items():
        value = getattr(layer, name, usual)
        if value != usual:
            said.append(f"{name}={value!r}")
    return f"{type(layer).__name__}({', '.join(said)}, dtype={layer._dtype.name})"


def uniform_parameters(
    cell: Cell, I: int, H: int, P: int, bias: bool, dtype: np.dtype, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """U(-1/sqrt(H), 1/sqrt(H)) for every parameter of one layer-direction: PyTorch's initial distribution."""
    GH, R = cell.n_gates * H, P or H
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (GH, I), "weight_hh": (GH, R)}
    if bias:
        shapes |= {"bias_ih": (GH,), "bias_hh": (GH,)}
    if P:
        shapes["weight_hr"] = (P, H)
    bound = 1 / math.sqrt(H)
    return {name: rng.uniform(-bound, bound, shape).astype(dtype) for name, shape in shapes.items()}


class Recurrent(Module):
    """What RNN, GRU and LSTM share. A subclass names its cell; the rest is here and in `rnnkit.functional.stack`."""

    takes_lengths = True

    def __init__(
        self,
        cell: str,
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int = 0,
        dtype: Any,
        device: Any,
        backend: str | None,
        rng: Any,
    ) -> None:
        self.input_size = checks.positive_int("input_size", input_size)
        self.hidden_size = checks.positive_int("hidden_size", hidden_size)
        self.num_layers = checks.positive_int("num_layers", num_layers)
        self.dropout = checks.fraction("dropout", dropout)
        self.proj_size = _check_proj_size(proj_size, self.hidden_size)
        self.bias = checks.flag("bias", bias)
        self.batch_first = checks.flag("batch_first", batch_first)
        self.bidirectional = checks.flag("bidirectional", bidirectional)
        check_backend(backend)
        self.rng = make_rng(rng)
        super().__init__(dtype, device)
        self.backend = backend
        self.cell = CELLS[cell]
        self._choice()
        if self.dropout and self.num_layers == 1:
            warnings.warn("dropout acts between layers: it does nothing with num_layers=1", stacklevel=3)
        # Of each layer and direction, in the order of Weights.
        self._weight_names = [
            [tuple(name + _suffix(layer, d) for _, name in PARTS) for d in range(self.num_directions)]
            for layer in range(self.num_layers)
        ]
        for layer, direction in self._slots():
            I = self.input_size if layer == 0 else self.output_size
            suffix = _suffix(layer, direction)
            H, P = self.hidden_size, self.proj_size
            with checks.memory_for(input_size=self.input_size, hidden_size=H):
                drawn = uniform_parameters(self.cell, I, H, P, self.bias, self.dtype, self.rng)
                for name, value in drawn.items():
                    self._add_param(name + suffix, value)

    # Shapes

    @property
    def num_directions(self) -> int:
        """D: 2 when bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Width of y: D*H, or D*P under projection."""
        return self.num_directions * (self.proj_size or self.hidden_size)

    def __repr__(self) -> str:
        return described(self)

    def _slots(self) -> list[tuple[int, int]]:
        return [(k, d) for k in range(self.num_layers) for d in range(self.num_directions)]

    def _state_widths(self) -> tuple[int, ...]:
        """Width of each state: R for h, H for c."""
        return (self.proj_size or self.hidden_size, self.hidden_size)[: len(self.cell.states)]

    def _choice(self) -> Choice:
        return select(self.device, self._dtype.name, self.cell.name, self.backend)

    def _check_device(self, device: str) -> None:
        select(device, self._dtype.name, self.cell.name, self.backend)

    def _caches(self) -> list[stack.Directions]:
        """The arrays of each layer and direction, and what a backend derived from them."""
        held = self._held
        if held is None:
            held = [tuple(map(self._new_cache, row)) for row in self._weight_names]
            self._held = held
        return held

    def _new_cache(self, names: tuple[str, ...]) -> LayerCache:
        return LayerCache(Weights(*map(self._params.get, names)), Weights(*map(self._grads.get, names)))

    # Calls

    @on_own_device
    def __call__(self, x: Array, h0: Any = None, lengths: Any = None) -> Any:
        """y, h_n = layer(x, h0, lengths); for LSTM the state is a pair: y, (h_n, c_n) = layer(x, (h0, c0), lengths).

        x        (T, B, I), or (B, T, I) with batch_first, or (T, I) unbatched
        h0, c0   (L*D, B, R), (L*D, B, H), or without B when x is unbatched; zeros where not given
        lengths  (B,) whole numbers in [0, T], any order, or one where x is unbatched: steps past a row's length are
                 not seen
        y        (T, B, D*R) in x's layout, zero past each row's length; h_n, c_n as h0, c0: the state at each row's end

        A reversed direction starts at each row's own end. x is kept by reference until `backward`: do not write into
        it in between. Raises ValueError or TypeError naming the argument.

        On a CUDA device x and the states are CuPy arrays there, or any library's that offer DLPack or
        `__cuda_array_interface__` (torch, Numba), taken without a copy and in order with CuPy's current stream; y and
        the states are CuPy arrays, which `torch.from_dlpack` takes. A call waits for the device only to read lengths
        that are on it: give them on the host.
        """
        x, unbatched = self._time_major("x", x, self.input_size)
        T, B, _ = x.shape
        checked = checks.lengths(lengths, T, B, unbatched)
        state0 = self._states(h0, ("h0", "c0"), B, unbatched, zeros=True)
        rng = self.rng if self.training and self.dropout else None
        y, state_n, saved = stack.forward(
            self.cell,
            self._choice(),
            x,
            state0,
            self._caches(),
            lengths=checked,
            dropout=self.dropout,
            rng=rng,
            keep=grad_enabled(),
        )
        self._saved = None if saved is None else _Kept(saved, unbatched)
        return self._user_layout(y, unbatched), self._user_state(state_n, unbatched)

    @on_own_device
    def backward(self, dy: Array | None, dh_n: Any = None, *, call: Call | None = None) -> Any:
        """dx, dh0 = layer.backward(dy, dh_n); for LSTM dx, (dh0, dc0) = layer.backward(dy, (dh_n, dc_n)).

        dy as y, dh_n as h_n; None stands for zeros, also inside the pair. Adds the parameters' gradients into
        `layer.grads`. Differentiates the last call that this thread made, any number of times, or `call`, which
        `layer.last_call` gives after each call. Call it before the optimizer's step: parameters changed since the call
        would mix its activations with new weights.
        Raises RuntimeError before any call or after one under `no_grad()`, and without `call` after several calls since
        the last backward or `zero_grad()`, for dy may then be of any of them; ValueError or TypeError for a bad
        gradient or `call`.
        """
        saved, unbatched = self._recalled(call)
        T, B, width = saved.shape
        if dy is not None:
            dy, flat = self._time_major("dy", dy, width)
            if flat != unbatched or tuple(dy.shape) != saved.shape:
                y_shape = (T, width) if unbatched else ((B, T, width) if self.batch_first else (T, B, width))
                raise ValueError(f"dy must have y's shape {y_shape}, got {_shape_as_given(dy, flat, self)}")
        dstate_n = self._states(dh_n, ("dh_n", "dc_n"), B, unbatched, zeros=False)
        with self._adding:  # a backend may add into the gradients itself
            dx, dstate0, grads = stack.backward(saved, dy, dstate_n, self._caches())
            for (layer, direction), w in zip(self._slots(), (w for row in grads for w in row), strict=True):
                for part, name in PARTS:
                    grad = getattr(w, part)
                    if grad is not None:
                        total = self._grads[name + _suffix(layer, direction)]
                        total += grad
        return self._user_layout(dx, unbatched), self._user_state(dstate0, unbatched)

    # Between the caller's layout and (T, B, ·)

    def _time_major(self, name: str, a: Array, width: int) -> tuple[Array, bool]:
        a = checks.array(name, a, self.dtype, self.device)
        layout = "(B, T, {w})" if self.batch_first else "(T, B, {w})"
        letter = "input_size" if name == "x" else "width of y"
        if a.ndim not in (2, 3) or a.shape[-1] != width:
            layout = layout.format(w=f"{letter}={width}")
            raise ValueError(f"{name} must have shape {layout} or (T, {letter}={width}), got {tuple(a.shape)}")
        if a.ndim == 2:
            return a[:, None, :], True
        return (a.swapaxes(0, 1) if self.batch_first else a), False

    def _states(
        self, given: Any, names: tuple[str, str], B: int, unbatched: bool, zeros: bool
    ) -> tuple[Array | None, ...]:
        """The states as (L*D, B, ·) each, checked; None becomes zeros or stays, as asked."""
        widths, slots = self._state_widths(), self.num_layers * self.num_directions
        if self._device == "cpu" and not unbatched and given is not None:
            # What is nearly always given; anything else is looked at one by one.
            states, dtype = given if len(widths) == 2 else (given,), self._dtype.storage
            if type(states) is tuple and len(states) == len(widths):
                for s, width in zip(states, widths, strict=True):
                    if type(s) is not np.ndarray or s.shape != (slots, B, width) or s.dtype != dtype:
                        break
                else:
                    return states
        lead, means = ((slots,), "(L*D, width)") if unbatched else ((slots, B), "(L*D, B, width)")
        checked = checks.states(given, names, [(*lead, w) for w in widths], self.dtype, self.device, means)
        xp: Any = array_module(next(iter(self._params.values())))
        whole: list[Array | None] = []
        for s, width in zip(checked, widths, strict=True):
            nothing = xp.zeros((slots, B, width), self.dtype) if zeros else None
            whole.append(nothing if s is None else s.reshape(slots, B, width))
        return tuple(whole)

    def _user_layout(self, a: Array, unbatched: bool) -> Array:
        if unbatched:
            return a[:, 0]
        return a.swapaxes(0, 1) if self.batch_first else a

    def _user_state(self, state: tuple[Array, ...], unbatched: bool) -> Any:
        state = tuple(s[:, 0] for s in state) if unbatched else state
        return state[0] if len(state) == 1 else state


class _Kept(NamedTuple):
    """What a call keeps: what the stack saved, and whether x came unbatched."""

    saved: stack.Saved
    unbatched: bool


def _suffix(layer: int, direction: int) -> str:
    return f"_l{layer}" + ("_reverse" if direction else "")


def _check_proj_size(proj_size: Any, hidden_size: int) -> int:
    if isinstance(proj_size, checks.NO_NUMBERS) or not isinstance(proj_size, (int, np.integer)):
        raise TypeError(f"proj_size must be a whole number, got {proj_size!r}")
    if not 0 <= proj_size < hidden_size:
        raise ValueError(f"proj_size must be in [0, hidden_size={hidden_size}), got {proj_size}")
    return int(proj_size)


def _shape_as_given(a: Array, unbatched: bool, layer: Recurrent) -> tuple[int, ...]:
    return tuple(layer._user_layout(a, unbatched).shape)
