"""RNNCell, GRUCell, LSTMCell: one time step, as torch.nn's cells. For decoding, streaming and custom loops.

    h = cell(x, h0)          (h, c) = cell(x, (h0, c0))          dx, dh0 = cell.backward(dh)

x (B, I) or (I,), states (B, H) or (H,), zeros where not given. Parameters `weight_ih` (G*H, I), `weight_hh` (G*H,
H), `bias_ih`, `bias_hh` (G*H,). A cell is a layer of one step, on the same kernels. A loop calls it once per step and
gives backward the call of each, the last first:

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

from rnnkit.backends import Choice, LayerCache, LayerCall, check_backend, select
from rnnkit.core import checks
from rnnkit.core.cells import CELLS, Weights
from rnnkit.core.devices import array_module, current, on_own_device
from rnnkit.functional import direction as ops
from rnnkit.nn.module import Array, Call, Module, grad_enabled, make_rng
from rnnkit.nn.rnn_base import PARTS, described, uniform_parameters

_NAMES = tuple(name for _, name in PARTS)


class _Held(NamedTuple):
    """A cell's arrays and what a backend derived from them, and the choice for the `backend` that was asked for."""

    cache: LayerCache
    choice: Choice
    backend: str | None


class StepCell(Module):
    """What RNNCell, GRUCell and LSTMCell share."""

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
        self.cell, self.backend = CELLS[cell], backend
        self._choice()
        I, H = self.input_size, self.hidden_size
        with checks.memory_for(input_size=I, hidden_size=H):
            for name, value in uniform_parameters(self.cell, I, H, 0, self.bias, self.dtype, generator).items():
                self._add_param(name, value)

    def __repr__(self) -> str:
        return described(self)

    def _choice(self) -> Choice:
        return select(self._device, self._dtype.name, self.cell.name, self.backend)

    def _check_device(self, device: str) -> None:
        select(device, self._dtype.name, self.cell.name, self.backend)

    def _weights(self) -> _Held:
        """What is the same at every call, made once."""
        held = self._held
        if held is None or held.backend is not self.backend:
            weights, grads = (Weights(*map(of.get, _NAMES)) for of in (self._params, self._grads))
            held = _Held(LayerCache(weights, grads), self._choice(), self.backend)
            self._held = held
        return held

    def __call__(self, x: Array, h0: Any = None) -> Any:
        """h = cell(x, h0); for LSTMCell (h, c) = cell(x, (h0, c0)).

        x (B, I) or (I,); h0, c0 (B, H) or (H,), zeros where not given. Returns states as given. On a CUDA device
        arrays are taken and given as by the layers.
        Raises ValueError or TypeError naming the argument.
        """
        if self._device == "cpu":
            return self._step(x, h0)
        with current(self._device):
            return self._step(x, h0)

    def _step(self, x: Array, h0: Any) -> Any:
        # First what streaming gives at each step, as in `_states`: calls of functions are a tenth of a call's time.
        batched = type(x) is np.ndarray and x.dtype is self._dtype.storage and x.ndim == 2 and self._device == "cpu"
        if not batched or x.shape[1] != self.input_size:
            x = self._checked_x(x)
        unbatched = x.ndim == 1
        x = x[None, None] if unbatched else x[None]
        state0 = self._states(h0, ("h0", "c0"), x.shape[1], unbatched)
        if not x.flags.c_contiguous:
            xp: Any = array_module(x)
            x = xp.ascontiguousarray(x)
        held = self._held
        if held is None or held.backend is not self.backend:
            held = self._weights()
        choice, cache = held.choice, held.cache
        call = LayerCall(self.cell, choice.dtype, x, state0, cache.weights, None, False, grad_enabled(), None, cache)
        _, state, saved = ops.run(choice, call)
        slot = self._memory.slot  # as self._saved does: a property would cost a hundredth of the call
        if saved is None:
            slot.kept = None
        else:
            slot.kept = (saved, unbatched)
            slot.pending += 1
        if unbatched:
            return self._given_back(state, unbatched)
        return state[0] if len(state) == 1 else state

    @on_own_device
    def backward(self, dh: Any, *extra: Any, call: Call | None = None) -> Any:
        """dx, dh0 = cell.backward(dh); for LSTMCell dx, (dh0, dc0) = cell.backward((dh, dc)); a None stands for zeros.

        Adds the parameters' gradients into `cell.grads`; call it before the optimizer's step, which changes them.
        Differentiates the last call that this thread made, or `call`, which `cell.last_call` gives after each step.
        Raises RuntimeError before any call or after one under `no_grad()`, and without `call` after several calls since
        the last backward or `zero_grad()`; ValueError or TypeError for a bad gradient or `call`.
        """
        saved, unbatched = self._recalled(call)
        if extra:
            raise TypeError(f"backward takes one argument, the gradient of the state, got {1 + len(extra)}")
        dstate = self._states(dh, ("dh", "dc"), saved.x_shape[1], unbatched)
        with self._adding:  # a backend may add into the gradients itself
            cache = self._weights().cache
            dx, dstate0, dweights = ops.run_backward(saved, None, dstate, cache.weights, cache)
            for name, grad in zip(_NAMES, dweights, strict=True):
                if grad is not None:
                    total = self._grads[name]
                    total += grad
        return (dx[0, 0] if unbatched else dx[0]), self._given_back(dstate0, unbatched)

    def _checked_x(self, x: Array) -> Array:
        x = checks.array("x", x, self._dtype.storage, self._device)
        I, shape = self.input_size, x.shape
        if len(shape) not in (1, 2) or shape[-1] != I:
            raise ValueError(f"x must have shape (B, input_size={I}) or (input_size={I},), got {tuple(x.shape)}")
        return x

    def _states(self, given: Any, names: tuple[str, str], B: int, unbatched: bool) -> tuple[Array, ...]:
        """The states as (B, H) each, checked; None becomes zeros."""
        H, dtype = self.hidden_size, self._dtype.storage
        if self._device == "cpu" and not unbatched:
            # What streaming gives at each step; anything else is looked at one by one.
            count = len(self.cell.states)
            states = given if count == 2 else (given,)
            if type(states) is tuple and len(states) == count:
                shape = (B, H)
                for s in states:
                    if type(s) is not np.ndarray or s.dtype is not dtype or s.shape != shape:
                        break
                else:
                    return states
        wanted, means = ((H,), "(H,)") if unbatched else ((B, H), "(B, H)")
        checked = checks.states(given, names, (wanted,) * len(self.cell.states), dtype, self._device, means)
        xp: Any = array_module(self._params["weight_hh"])
        return tuple([xp.zeros((B, H), dtype) if s is None else s.reshape(B, H) if unbatched else s for s in checked])

    @staticmethod
    def _given_back(state: tuple[Array, ...], unbatched: bool) -> Any:
        state = tuple(s[0] for s in state) if unbatched else state
        return state[0] if len(state) == 1 else state


class RNNCell(StepCell):
    """One step of an Elman RNN, tanh or relu. As torch.nn.RNNCell; the keywords are rnnkit.RNN's."""

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
    """One step of a GRU, in either reset mode. As torch.nn.GRUCell; the keywords are rnnkit.GRU's."""

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
    """One step of an LSTM. As torch.nn.LSTMCell; the keywords are rnnkit.LSTM's. The state is a pair (h, c)."""

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
