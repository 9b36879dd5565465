"""StepCell: what RNNCell, GRUCell, LSTMCell and SLSTMCell share. One step; for decoding, streaming and custom loops.

    h = cell(x, h0)          (h, c) = cell(x, (h0, c0))          dx, dh0 = cell.backward(dh)

x (B, I) or (I,), states (B, H) or (H,). Parameters are `weight_ih` (G*H, I), `weight_hh` (G*H, H), `bias_ih` and
`bias_hh` (G*H,), and those of options, as the layers' without a suffix: `weight_peephole` (3, H) or `weight_layer_norm`
(K, H). A cell runs the same kernels as a layer. A loop calls the cell once per step, and then passes the
handle of each call to backward, in reverse order:

    h, calls = h0, []
    for x_t in x:
        h = cell(x_t, h)
        calls.append(cell.last_call)
    for call in reversed(calls):
        dx_t, dh = cell.backward(dh, call=call)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends import BackwardCall, Choice, LayerCache, LayerCall, check_backend, select
from rnnkit.core import checks
from rnnkit.core.cells import Cell, Weights
from rnnkit.core.devices import array_module, current, on_own_device
from rnnkit.core.option_arguments import cell_with
from rnnkit.core.regularisation import Noise, checked_rates, refuse_unknown
from rnnkit.nn.module import Array, Call, Module, grad_enabled, make_rng
from rnnkit.nn.rnn_parameters import layer_repr, parameter_names, uniform_parameters


class _CachedWeights(NamedTuple):
    """What the calls of a cell have in common.

    cache            its arrays, and what a backend derived from them
    choice, backend  the backend that was chosen for the attribute `backend`
    cell, constants  as in LayerCall
    noise            as in LayerCall, of a call in evaluation mode: None without zoneout
    """

    cache: LayerCache
    choice: Choice
    backend: str | None
    cell: Cell
    constants: tuple[float, ...]
    noise: Noise | None


class StepCell(Module):
    """Base class of RNNCell, GRUCell, LSTMCell and SLSTMCell.

    unknown: keyword arguments that the class does not have. options: of rnnkit/core/option_arguments.py; each becomes
    an attribute.
    """

    def __init__(
        self,
        cell: str,
        *,
        input_size: int,
        hidden_size: int,
        bias: bool,
        zoneout: Any,
        zoneout_output: str = "raw",
        dtype: Any,
        device: Any,
        backend: str | None,
        strict: bool,
        rng: Any,
        unknown: Mapping[str, Any],
        **options: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, unknown)
        for name, value in options.items():
            setattr(self, name, value)
        self.zoneout = zoneout
        self.zoneout_output = zoneout_output
        self.strict = checks.flag("strict", strict)
        self.input_size = checks.positive_int("input_size", input_size)
        self.hidden_size = checks.positive_int("hidden_size", hidden_size)
        self.bias = checks.flag("bias", bias)
        check_backend(backend)
        generator = make_rng(rng)
        super().__init__(dtype, device)
        self.cell, self._constants = cell_with(cell, options)
        self._state_names = tuple([f"{name}0" for name in self.cell.states])
        self._gradient_names = tuple([f"d{name}" for name in self.cell.states])
        self.regularisation = checked_rates(self.cell.states, zoneout=zoneout, zoneout_output=zoneout_output)
        if self.regularisation is not None:
            self.rng = generator  # a checkpoint stores it
        self.backend = backend
        self._choice()
        I = self.input_size
        H = self.hidden_size
        with checks.memory_for(input_size=I, hidden_size=H):
            for name, value in uniform_parameters(self.cell, I, H, 0, self.bias, self.dtype, generator).items():
                self._add_param(name, value)

    def __repr__(self) -> str:
        return layer_repr(self)

    def _cell_now(self) -> Cell:
        """The cell with what its kernels do at random."""
        return self.cell if self.regularisation is None else self.regularisation.cell(self.cell, self.training)

    def _choice(self) -> Choice:
        return select(self._device, self._dtype.name, self._cell_now().key, self.backend, self.strict)

    def _check_device(self, device: str) -> None:
        select(device, self._dtype.name, self._cell_now().key, self.backend, self.strict)

    def _weights(self) -> _CachedWeights:
        """The part of a call that does not change between calls. It is cached."""
        cached = self._cached_weights
        if cached is None or cached.backend is not self.backend:
            names = parameter_names(self.cell)
            weights, grads = (Weights(*map(of, names)) for of in (self._weight, self._grads.get))
            rates = self.regularisation
            noise = None if rates is None else Noise(rates, None)
            cell = self._cell_now()
            cache = LayerCache(weights, grads)
            cached = _CachedWeights(cache, self._choice(), self.backend, cell, self._constants, noise)
            self._cached_weights = cached
        return cached

    def __call__(self, x: Array, h0: Any = None) -> Any:
        """Runs one step: h = cell(x, h0); for LSTMCell (h, c) = cell(x, (h0, c0)), for SLSTMCell with (h, c, n, m).

        On a CUDA device, arrays of other libraries are accepted as by RNN, GRU and LSTM.

        Args:
            x: (B, I), or (I,) unbatched; the cell's dtype.
            h0: state before the step, (B, H), or (H,) for unbatched x; None for zeros. For LSTMCell a pair (h0, c0),
                for SLSTMCell (h0, c0, n0, m0).

        Returns:
            The state after the step, with the shapes of the state before it: h, for LSTMCell (h, c), for SLSTMCell
            (h, c, n, m).

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
        state0 = self._states(h0, self._state_names, B, unbatched)
        cached = self._cached_weights
        if cached is None or cached.backend is not self.backend:
            cached = self._weights()
        cache, choice, _, cell, constants, noise = cached
        if noise is not None and self.training:
            noise = noise.rates.noise(True, self.rng)
        keep = grad_enabled() and not self._dtype.weights
        fields = (cell, choice.dtype, x, state0, cache.weights, None, False, keep, None, cache, None, constants, noise)
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
    def backward(self, dh: Any, *extra: Any, call: Call | None = None, dx: bool = True) -> Any:
        """Differentiates a step: dx, dh0 = cell.backward(dh); for LSTMCell dx, (dh0, dc0) = cell.backward((dh, dc)).

        Adds the parameters' gradients to `cell.grads`. Call it before the optimizer's step: it reads the parameters,
        which must still be those of the call.

        Args:
            dh: gradient of the state after the step, with its shape; for LSTMCell a pair (dh, dc), for SLSTMCell
                (dh, dc, dn, dm). None for zeros, also inside these.
            *extra: not accepted; a separate second gradient raises TypeError.
            call: the call to differentiate, from `cell.last_call`; None for this thread's most recent call.
            dx: whether to compute the gradient of x, which is not needed where x is data. With False, None is in its
                place.

        Returns:
            A pair (dx, dh0), for LSTMCell (dx, (dh0, dc0)), for SLSTMCell (dx, (dh0, dc0, dn0, dm0)), with the shapes
            of x and of the state before the step.

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
        wants_dx = checks.flag("dx", dx)
        choice, own, B, unbatched = self._recalled(call)
        if extra:
            raise TypeError(f"backward takes one argument, the gradient of the state, got {1 + len(extra)}")
        dstate = self._states(dh, self._gradient_names, B, unbatched)
        with self._adding:  # a backend may add into the gradients itself
            cached = self._weights()
            cache = cached.cache
            given = (own, None, dstate, cache.weights, cache, cached.constants, wants_dx)
            found_dx, dstate0, dweights = choice.backend.backward(BackwardCall(cached.cell, choice.dtype, *given))
            for name, grad in zip(parameter_names(self.cell), dweights, strict=True):
                if grad is not None:
                    total = self._grads[name]
                    total += grad
        users_dx = None if found_dx is None else found_dx[0, 0] if unbatched else found_dx[0]
        return users_dx, self._user_state(dstate0, unbatched)

    def _checked_x(self, x: Array) -> Array:
        x = checks.array("x", x, self._dtype.storage, self._device)
        I = self.input_size
        shape = x.shape
        if len(shape) not in (1, 2) or shape[-1] != I:
            raise ValueError(f"x must have shape (B, input_size={I}) or (input_size={I},), got {tuple(x.shape)}")
        xp: Any = array_module(x)
        return xp.ascontiguousarray(x)

    def _states(self, state: Any, names: tuple[str, ...], B: int, unbatched: bool) -> tuple[Array, ...]:
        """The states as checked arrays (B, H) each; None becomes zeros."""
        H = self.hidden_size
        dtype = self._dtype.storage
        if self._device == "cpu" and not unbatched:
            # Fast path for the most common arguments. The checks below report what is wrong with others.
            count = len(self.cell.states)
            states = state if count > 1 else (state,)
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
