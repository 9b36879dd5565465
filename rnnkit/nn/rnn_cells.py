"""RNNCell, GRUCell and LSTMCell: one time step, as torch.nn's cells. For decoding, streaming and custom loops.

    h = cell(x, h0)          (h, c) = cell(x, (h0, c0))          dx, dh0 = cell.backward(dh)

x (B, I) or (I,), states (B, H) or (H,). Parameters are `weight_ih` (G*H, I), `weight_hh` (G*H, H), `bias_ih` and
`bias_hh` (G*H,). A cell runs the same kernels as a layer. A loop calls the cell once per step, and then passes the
handle of each call to backward, in reverse order:

    h, calls = h0, []
    for x_t in x:
        h = cell(x_t, h)
        calls.append(cell.last_call)
    for call in reversed(calls):
        dx_t, dh = cell.backward(dh, call=call)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends import BackwardCall, Choice, LayerCache, LayerCall, check_backend, select
from rnnkit.core import checks
from rnnkit.core.cells import CELLS, Weights
from rnnkit.core.devices import array_module, current, on_own_device
from rnnkit.nn.module import Array, Call, Module, grad_enabled, make_rng
from rnnkit.nn.rnn_base import PARTS, layer_repr, uniform_parameters

_NAMES = tuple(name for _, name in PARTS)


class _CachedWeights(NamedTuple):
    """A cell's arrays and what a backend derived from them, and the backend chosen for the attribute `backend`."""

    cache: LayerCache
    choice: Choice
    backend: str | None


class StepCell(Module):
    """Base class of RNNCell, GRUCell and LSTMCell."""

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        bias: bool,
        dtype: Any,
        device: Any,
        backend: str | None,
        rng: Any,
    ) -> None:
        self.input_size = checks.positive_int("input_size", input_size)
        self.hidden_size = checks.positive_int("hidden_size", hidden_size)
        self.bias = checks.flag("bias", bias)
        check_backend(backend)
        generator = make_rng(rng)
        super().__init__(dtype, device)
        self.cell = CELLS[cell]
        self.backend = backend
        self._choice()
        I = self.input_size
        H = self.hidden_size
        with checks.memory_for(input_size=I, hidden_size=H):
            for name, value in uniform_parameters(self.cell, I, H, 0, self.bias, self.dtype, generator).items():
                self._add_param(name, value)

    def __repr__(self) -> str:
        return layer_repr(self)

    def _choice(self) -> Choice:
        return select(self._device, self._dtype.name, self.cell.key, self.backend)

    def _check_device(self, device: str) -> None:
        select(device, self._dtype.name, self.cell.key, self.backend)

    def _weights(self) -> _CachedWeights:
        """The part of a call that does not change between calls. It is cached."""
        cached = self._cached_weights
        if cached is None or cached.backend is not self.backend:
            weights, grads = (Weights(*map(of, _NAMES)) for of in (self._weight, self._grads.get))
            cached = _CachedWeights(LayerCache(weights, grads), self._choice(), self.backend)
            self._cached_weights = cached
        return cached

    def __call__(self, x: Array, h0: Any = None) -> Any:
        """Runs one step: h = cell(x, h0); for LSTMCell (h, c) = cell(x, (h0, c0)).

        On a CUDA device, arrays of other libraries are accepted as by RNN, GRU and LSTM.

        Args:
            x: (B, I), or (I,) unbatched; the cell's dtype.
            h0: state before the step, (B, H), or (H,) for unbatched x; None for zeros. For LSTMCell a pair (h0, c0).

        Returns:
            The state after the step, with the shapes of the state before it: h, or for LSTMCell (h, c).

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: an argument has a bad shape or device.

        Examples:
            >>> import numpy as np, rnnkit
            >>> cell = rnnkit.LSTMCell(4, 6, rng=0)
            >>> h, c = cell(np.ones((3, 4), np.float32))
            >>> h.shape, c.shape
            ((3, 6), (3, 6))
        """
        if self._device == "cpu":
            return self._step(x, h0)
        with current(self._device):
            return self._step(x, h0)

    def _step(self, x: Array, h0: Any) -> Any:
        # The most common arguments first, as in `_states`: function calls take a tenth of the time of a step.
        usual = type(x) is np.ndarray and x.dtype is self._dtype.storage and self._device == "cpu" and x.ndim == 2
        if not usual or x.shape[1] != self.input_size or not x.flags.c_contiguous:
            x = self._checked_x(x)
        unbatched = x.ndim == 1
        x = x[None, None] if unbatched else x[None]
        B = x.shape[1]
        state0 = self._states(h0, ("h0", "c0"), B, unbatched)
        cached = self._cached_weights
        if cached is None or cached.backend is not self.backend:
            cached = self._weights()
        cache, choice, _ = cached
        keep = grad_enabled() and not self._dtype.weights
        fields = (self.cell, choice.dtype, x, state0, cache.weights, None, False, keep, None, cache, None, (), None)
        call: LayerCall = tuple.__new__(LayerCall, fields)  # LayerCall(*fields) would take 2% of the call more
        _, state, own = choice.backend.forward(call)
        slot = self._thread_slots.slot  # inlined self._saved: the property would take 1% of the call
        if keep:
            slot.saved = (choice, own, B, unbatched)
            slot.pending += 1
        else:
            slot.saved = None
        if unbatched:
            return self._user_state(state, unbatched)
        return state[0] if len(state) == 1 else state

    @on_own_device
    def backward(self, dh: Any, *extra: Any, call: Call | None = None) -> Any:
        """Differentiates a step: dx, dh0 = cell.backward(dh); for LSTMCell dx, (dh0, dc0) = cell.backward((dh, dc)).

        Adds the parameters' gradients to `cell.grads`. Call it before the optimizer's step: it reads the parameters,
        which must still be those of the call.

        Args:
            dh: gradient of the state after the step, with its shape; for LSTMCell a pair (dh, dc). None for zeros, also
                inside the pair.
            *extra: not accepted; a separate second gradient raises TypeError.
            call: the call to differentiate, from `cell.last_call`; None for this thread's most recent call.

        Returns:
            A pair (dx, dh0), for LSTMCell (dx, (dh0, dc0)), with the shapes of x and of the state before the step.

        Raises:
            RuntimeError: this thread made no call, its most recent call ran under `no_grad()`, or, without `call`,
                several calls are pending since the last backward or `zero_grad()`.
            TypeError: a gradient or `call` has the wrong type or dtype.
            ValueError: a gradient has a bad shape or device, or `call` is of another cell.

        Examples:
            >>> import numpy as np, rnnkit
            >>> cell = rnnkit.GRUCell(4, 6, rng=0)
            >>> h = cell(np.ones((3, 4), np.float32))
            >>> dx, dh0 = cell.backward(np.ones_like(h))
            >>> dx.shape, dh0.shape
            ((3, 4), (3, 6))
        """
        choice, own, B, unbatched = self._recalled(call)
        if extra:
            raise TypeError(f"backward takes one argument, the gradient of the state, got {1 + len(extra)}")
        dstate = self._states(dh, ("dh", "dc"), B, unbatched)
        with self._adding:  # a backend may add into the gradients itself
            cache = self._weights().cache
            dx, dstate0, dweights = choice.backend.backward(
                BackwardCall(self.cell, choice.dtype, own, None, dstate, cache.weights, cache)
            )
            for name, grad in zip(_NAMES, dweights, strict=True):
                if grad is not None:
                    total = self._grads[name]
                    total += grad
        return (dx[0, 0] if unbatched else dx[0]), self._user_state(dstate0, unbatched)

    def _checked_x(self, x: Array) -> Array:
        x = checks.array("x", x, self._dtype.storage, self._device)
        I = self.input_size
        shape = x.shape
        if len(shape) not in (1, 2) or shape[-1] != I:
            raise ValueError(f"x must have shape (B, input_size={I}) or (input_size={I},), got {tuple(x.shape)}")
        xp: Any = array_module(x)
        return xp.ascontiguousarray(x)

    def _states(self, state: Any, names: tuple[str, str], B: int, unbatched: bool) -> tuple[Array, ...]:
        """The states as checked arrays (B, H) each; None becomes zeros."""
        H = self.hidden_size
        dtype = self._dtype.storage
        if self._device == "cpu" and not unbatched:
            # Fast path for the most common arguments. The checks below report what is wrong with others.
            count = len(self.cell.states)
            states = state if count == 2 else (state,)
            if type(states) is tuple and len(states) == count:
                shape = (B, H)
                for s in states:
                    if type(s) is not np.ndarray or s.dtype is not dtype or s.shape != shape:
                        break
                else:
                    return states
        shape_of_each: tuple[int, ...] = (H,) if unbatched else (B, H)
        means = "(H,)" if unbatched else "(B, H)"
        checked = checks.states(state, names, (shape_of_each,) * len(self.cell.states), dtype, self._device, means)
        xp: Any = array_module(self._params["weight_hh"])
        return tuple([xp.zeros((B, H), dtype) if s is None else s.reshape(B, H) if unbatched else s for s in checked])

    @staticmethod
    def _user_state(state: tuple[Array, ...], unbatched: bool) -> Any:
        state = tuple(s[0] for s in state) if unbatched else state
        return state[0] if len(state) == 1 else state


class RNNCell(StepCell):
    """One step of an Elman RNN; equivalent of torch.nn.RNNCell. The formula is that of `rnnkit.RNN`.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of the state, H.
        bias: whether the cell has `bias_ih` and `bias_hh`.
        nonlinearity: "tanh" or "relu".
        dtype: dtype of parameters and arrays, see `rnnkit.RNN`.
        device: "cpu", "cuda" or "cuda:<index>"; None for the CPU.
        backend: see `rnnkit.RNN`.
        rng: a numpy Generator, a seed or None, for the initial parameters.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.
        RuntimeError: the device or the backend cannot be used here.

    Examples:
        >>> import numpy as np, rnnkit
        >>> cell = rnnkit.RNNCell(4, 6, rng=0)
        >>> cell(np.ones((3, 4), np.float32)).shape
        (3, 6)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
        rng: Any = None,
    ) -> None:
        self.nonlinearity = checks.one_of("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(f"rnn_{nonlinearity}", input_size, hidden_size, bias, dtype, device, backend, rng)


class GRUCell(StepCell):
    """One step of a GRU; equivalent of torch.nn.GRUCell. The formulas are those of `rnnkit.GRU`.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of the state, H.
        bias: whether the cell has `bias_ih` and `bias_hh`.
        reset_after: whether the reset gate is applied after the recurrent product, see `rnnkit.GRU`.
        dtype: dtype of parameters and arrays, see `rnnkit.RNN`.
        device: "cpu", "cuda" or "cuda:<index>"; None for the CPU.
        backend: see `rnnkit.RNN`.
        rng: a numpy Generator, a seed or None, for the initial parameters.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.
        RuntimeError: the device or the backend cannot be used here.

    Examples:
        >>> import numpy as np, rnnkit
        >>> cell = rnnkit.GRUCell(4, 6, reset_after=False, rng=0)
        >>> cell(np.ones(4, np.float32)).shape
        (6,)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
        rng: Any = None,
    ) -> None:
        self.reset_after = checks.flag("reset_after", reset_after)
        cell = "gru" if self.reset_after else "gru_reset_before"
        super().__init__(cell, input_size, hidden_size, bias, dtype, device, backend, rng)


class LSTMCell(StepCell):
    """One step of an LSTM, with the state (h, c); equivalent of torch.nn.LSTMCell. The formulas are `rnnkit.LSTM`'s.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of each state, H.
        bias: whether the cell has `bias_ih` and `bias_hh`.
        dtype: dtype of parameters and arrays, see `rnnkit.RNN`.
        device: "cpu", "cuda" or "cuda:<index>"; None for the CPU.
        backend: see `rnnkit.RNN`.
        rng: a numpy Generator, a seed or None, for the initial parameters.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.
        RuntimeError: the device or the backend cannot be used here.

    Examples:
        >>> import numpy as np, rnnkit
        >>> cell = rnnkit.LSTMCell(4, 6, rng=0)
        >>> state = None
        >>> for x_t in np.ones((5, 3, 4), np.float32):
        ...     state = cell(x_t, state)
        >>> state[0].shape
        (3, 6)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
        rng: Any = None,
    ) -> None:
        super().__init__("lstm", input_size, hidden_size, bias, dtype, device, backend, rng)
