"""Recurrent: the base class of RNN, GRU, LSTM and SLSTM. NumPy or CuPy arrays.

Layouts are PyTorch's: `weight_ih_l{k}[_reverse]` (G*H, I), `weight_hh_l{k}` (G*H, R), `weight_hr_l{k}` (P, H) with a
projection, two biases (G*H,) each; gate order i,f,g,o and r,z,n. R, the width of h, is P with a projection, else H.
Weights per unit, which PyTorch does not have, are `weight_peephole_l{k}` (3, H), in the order i,f,o; or of a layer with
layer normalisation `weight_layer_norm_l{k}` (K, H), whose rows `layer.cell.unit_weights` names.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends import Choice, LayerCache, Sizes, check_backend, select
from rnnkit.core import checks
from rnnkit.core.cells import Cell, Weights
from rnnkit.core.devices import array_module, on_own_device
from rnnkit.core.option_arguments import cell_with
from rnnkit.core.regularisation import checked_rates
from rnnkit.functional import segmented, stack, stack_backward
from rnnkit.functional.chunked import ChunkArguments
from rnnkit.functional.gates import may_be_large
from rnnkit.functional.step_flags import given_flags
from rnnkit.nn.layouts import CallersLayout
from rnnkit.nn.module import Array, Call, grad_enabled, make_rng
from rnnkit.nn.rnn_parameters import check_proj_size, layer_repr, parameter_names, uniform_parameters


def check_recurrent(layer: Any, for_torch: str = "") -> None:
    """Raises TypeError for what is no recurrent layer of this library, such as a layer of rnnkit.torch.

    for_torch: what a module of PyTorch is told.
    """
    if not isinstance(layer, Recurrent):
        whose = ", a module of PyTorch" if hasattr(layer, "named_modules") else ""
        if whose and for_torch:
            whose = f"{whose}: {for_torch}"
        raise TypeError(f"layer must be an RNN, GRU, LSTM or SLSTM, got {type(layer).__name__}{whose}")


class Recurrent(CallersLayout):
    """Base class of RNN, GRU, LSTM and SLSTM. A subclass names its cell; `rnnkit.functional.stack` runs the layers.

    options: of rnnkit/core/option_arguments.py; each becomes an attribute.
    """

    takes_lengths = True
    takes_dx = True

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
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        mask_per_gate: bool = False,
        weight_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        zoneout_output: str = "raw",
        strict: bool = False,
        **options: Any,
    ) -> None:
        rates: dict[str, Any] = {
            "input_dropout": input_dropout,
            "recurrent_dropout": recurrent_dropout,
            "mask_per_gate": mask_per_gate,
            "weight_dropout": weight_dropout,
            "zoneout": zoneout,
            "zoneout_output": zoneout_output,
        }
        for name, value in (options | rates).items():
            setattr(self, name, value)
        self.strict = checks.flag("strict", strict)
        self.input_size = checks.positive_int("input_size", input_size)
        self.hidden_size = checks.positive_int("hidden_size", hidden_size)
        self.num_layers = checks.positive_int("num_layers", num_layers)
        self.dropout = checks.fraction("dropout", dropout)
        self.proj_size = check_proj_size(proj_size, self.hidden_size)
        self.bias = checks.flag("bias", bias)
        self.batch_first = checks.flag("batch_first", batch_first)
        self.bidirectional = checks.flag("bidirectional", bidirectional)
        check_backend(backend)
        self.rng = make_rng(rng)
        super().__init__(dtype, device)
        self.backend = backend
        self.cell, self._constants = cell_with(cell, options)
        self.regularisation = checked_rates(self.cell.states, **rates)
        if self.proj_size and self.cell.normalises:
            raise ValueError(f"proj_size must be 0 with layer_norm, got {self.proj_size}")
        self._choice()
        if self.dropout and self.num_layers == 1:
            warnings.warn("dropout acts between layers: it does nothing with num_layers=1", stacklevel=3)
        # Parameter names per layer and direction, in the order of the fields of Weights.
        self._weight_names = [
            [tuple(name + _suffix(layer, d) for name in parameter_names(self.cell)) for d in range(self.num_directions)]
            for layer in range(self.num_layers)
        ]
        for layer, direction in self._slots():
            I = self.input_size if layer == 0 else self.output_size
            suffix = _suffix(layer, direction)
            H = self.hidden_size
            P = self.proj_size
            with checks.memory_for(input_size=self.input_size, hidden_size=H):
                drawn = uniform_parameters(self.cell, I, H, P, self.bias, self.dtype, self.rng)
                for name, value in drawn.items():
                    self._add_param(name + suffix, value)

    # Shapes

    @property
    def num_directions(self) -> int:
        """Number of directions, D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Width of y: D*H, or D*P with a projection."""
        return self.num_directions * (self.proj_size or self.hidden_size)

    def __repr__(self) -> str:
        return layer_repr(self)

    def _slots(self) -> list[tuple[int, int]]:
        return [(k, d) for k in range(self.num_layers) for d in range(self.num_directions)]

    def _state_widths(self) -> tuple[int, ...]:
        """Widths of the states: R for h, H for the others."""
        return self.cell.state_widths(self.proj_size or self.hidden_size, self.hidden_size)

    def _sizes(self, T: int, B: int, lengths: np.ndarray | None) -> Sizes:
        """The sizes of a call of the first layer."""
        H = self.hidden_size
        steps = T * B if lengths is None else int(lengths.sum())
        return Sizes(T, B, self.input_size, H, self.proj_size or H, steps)

    def _cell_now(self) -> Cell:
        """The cell with what its kernels do at random in the present mode."""
        return self.cell if self.regularisation is None else self.regularisation.cell(self.cell, self.training)

    def _choice(self) -> Choice:
        return select(self.device, self._dtype.name, self._cell_now().key, self.backend, self.strict)

    def _check_device(self, device: str) -> None:
        select(device, self._dtype.name, self._cell_now().key, self.backend, self.strict)

    def _caches(self) -> list[stack.Directions]:
        """The arrays of each layer and direction, and what a backend derived from them."""
        caches = self._cached_weights
        if caches is None:
            caches = [tuple(map(self._new_cache, row)) for row in self._weight_names]
            self._cached_weights = caches
        return caches

    def _new_cache(self, names: tuple[str, ...]) -> LayerCache:
        return LayerCache(Weights(*map(self._weight, names)), Weights(*map(self._grads.get, names)))

    # Calls

    @on_own_device
    def __call__(
        self,
        x: Array,
        h0: Any = None,
        lengths: Any = None,
        *,
        resets: Any = None,
        reset_state: Any = None,
        mask: Any = None,
        zero_output_for_mask: bool = False,
        truncate: int | None = None,
        max_saved_bytes: int | None = None,
        recompute_gates: bool | None = None,
    ) -> Any:
        """Runs the layer: y, h_n = layer(x, h0, lengths); for LSTM y, (h_n, c_n) = layer(x, (h0, c0), lengths).

        A reversed direction starts at each row's own last step. `backward` reads x again: do not write into x before
        it.

        With `resets` each row is a sequence of segments, which run as rows of their own. docs/resets-and-masks.md has
        the equations.

        On a CUDA device, x and the states are CuPy arrays there, or arrays of any library that offers DLPack or
        `__cuda_array_interface__` (torch, Numba). Those are read in place, in order with CuPy's current stream; y and
        the final states are CuPy arrays, which `torch.from_dlpack` accepts. The call synchronises with the device only
        if `lengths`, `resets` or `mask` is a device array: pass them on the host.

        Args:
            x: (T, B, I), or (B, T, I) with batch_first, or (T, I) unbatched; the layer's dtype.
            h0: initial state, (L*D, B, R), or (L*D, R) for unbatched x; None for zeros. For LSTM a pair (h0, c0), with
                c0 (L*D, B, H); for SLSTM (h0, c0, n0, m0), each (L*D, B, H).
            lengths: number of steps of each row, (B,) integers in [0, T] in any order; for unbatched x also one
                integer. Steps past a row's length are not read. None if every row has T steps.
            resets: (T, B) booleans, in the layout of x without I. Where True, the state is replaced by `reset_state`
                before the step. In the reverse direction, where the step before it in time is the next one, the state
                is replaced after the step. None for no resets.
            reset_state: the state that `resets` sets, shaped as h0; None for zeros. Only with `resets`.
            mask: (T, B) booleans, in the layout of x without I. Where False, x is not read and the state is carried; y
                repeats that of the nearest step before (in the reverse direction after) that is not masked, or is zero
                if there is none since the last reset. None for no mask.
            zero_output_for_mask: whether y is zero where the mask is False, instead of repeated. Keras has the same
                argument. Only with `mask`.
            truncate: number of steps, k: `backward` carries no gradient of a state across a step that is a multiple of
                k (truncated backpropagation through time). The results of the call do not change. k counts steps of x,
                also those that a mask leaves out. None for the whole gradient.
            max_saved_bytes: the most bytes that the call may save for `backward`: with less than it needs, it saves the
                states between chunks of steps, and `backward` runs the forward of each chunk again.
                Not counted are x, y, gradients and dropout masks. In 16 bits the cell state is rounded between chunks.
                With `resets` or a `mask` the tables of the segments count too. On a GPU it first tries whether the
                bound holds without the gates, as `recompute_gates=True` does. None to save everything. Not with
                `truncate`.
            recompute_gates: on a CUDA device, whether `backward` computes the gates of all steps again, by one large
                product for many steps, instead of saving them: see docs/gpu.md. None to do so where saving them would
                not fit: into `max_saved_bytes`, or without it into the device's memory. Other backends always save
                them.

        Returns:
            A pair (y, state). y has shape (T, B, D*R), in the layout of x, and is zero past each row's length. The
            state is h_n (L*D, B, R), for LSTM (h_n, c_n) with c_n (L*D, B, H), for SLSTM (h_n, c_n, n_n, m_n): the
            state after each row's last step.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: an argument has a bad shape, value or device.
            DeviceMemoryError: the device's memory is full.

        Examples:
            >>> import numpy as np, rnnkit
            >>> layer = rnnkit.LSTM(4, 6, rng=0)
            >>> x = np.ones((5, 3, 4), np.float32)
            >>> y, (h_n, c_n) = layer(x, lengths=[5, 2, 0])
            >>> y.shape, h_n.shape, c_n.shape
            ((5, 3, 6), (1, 3, 6), (1, 3, 6))
            >>> bool((y[2:, 1] == 0).all())
            True
            >>> resets = np.zeros((5, 3), bool)
            >>> resets[2, 1] = True
            >>> y, _ = layer(x, resets=resets)
            >>> bool((y[2:, 1] == y[:3, 0]).all())
            True
        """
        x, unbatched = self._time_major("x", x, self.input_size)
        T, B, _ = x.shape
        checked = checks.lengths(lengths, T, B, unbatched)
        found = None
        flags = given_flags(resets, reset_state, mask, zero_output_for_mask)
        if flags is not None:
            found = flags.segments(
                T, B, unbatched, self.batch_first, self.num_directions, checked, truncate is not None
            )
        state0 = self._states(h0, "{}0", B, unbatched)
        restart = None
        if reset_state is not None:
            names = "reset_state" if len(self.cell.states) == 1 else "{} of reset_state"
            restart = self._states(reset_state, names, B, unbatched)
        drop = self._drop if self.training and self.dropout else None
        choice = self._choice()
        keep = grad_enabled() and not self._dtype.weights
        choices = None
        chunking = (truncate, max_saved_bytes, recompute_gates)
        slots = (self.num_layers, self.num_directions)
        if chunking != (None, None, None) or (
            keep and may_be_large(choice, self.cell, T, B, self.input_size, self.hidden_size, *slots)
        ):
            chunks = ChunkArguments(*chunking)
            how = (self._cell_now(), self._sizes(T, B, checked), *slots, keep)
            choice, _ = chunks.with_gates(choice, *how, found)
            if found is None:
                choice = chunks.applied(choice, *how)
            else:
                choices = chunks.of_groups(choice, *how, found)
        x = x if x.flags.c_contiguous else _contiguous(x)
        stack_call = stack.StackCall(
            self.cell, choice, x, state0, self._caches(), checked, drop, keep, None, self._constants
        )
        if self.regularisation is not None:
            noise = self.regularisation.noise(self.training, self.rng)
            stack_call = stack_call._replace(cell=self._cell_now(), noise=noise)
        saved: stack.Saved | segmented.Saved | None
        if found is None:
            y, state_n, saved = stack.forward(stack_call)
        else:
            y, state_n, saved = segmented.forward(stack_call, found, restart, choices)
        self._saved = None if saved is None else _Saved(saved, unbatched, restart is not None)
        return self._user_layout(y, unbatched), self._user_state(state_n, unbatched)

    @on_own_device
    def backward(self, dy: Array | None, dh_n: Any = None, *, call: Call | None = None, dx: bool = True) -> Any:
        """Differentiates a call: dx, dh0 = layer.backward(dy, dh_n).

        For LSTM both states are pairs: dx, (dh0, dc0) = layer.backward(dy, (dh_n, dc_n)); for SLSTM four of each.
        Adds the parameters' gradients to `layer.grads`. Call it before the optimizer's step: it reads the parameters,
        which must still be those of the call. A call can be differentiated any number of times.

        Args:
            dy: gradient of y, with y's shape and dtype; None for zeros.
            dh_n: gradient of the final state, with its shapes; None for zeros, also inside the pair.
            call: the call to differentiate, from `layer.last_call`; None for this thread's most recent call.
            dx: whether to compute the gradient of x. It is not needed where x is data, and takes about a sixth
                of the products of a training step. With False, None is in its place.

        Returns:
            A pair (dx, dh0), for LSTM (dx, (dh0, dc0)), with the shapes of x and of the initial state. For a call with
            `reset_state` a triple, whose last is the gradient of that state.

        Raises:
            RuntimeError: this thread made no call, its most recent call ran under `no_grad()`, or, without `call`,
                several calls are pending since the last backward or `zero_grad()`.
            TypeError: a gradient or `call` has the wrong type or dtype.
            ValueError: a gradient has a bad shape or device, or `call` is of another layer.

        Examples:
            >>> import numpy as np, rnnkit
            >>> layer = rnnkit.GRU(4, 6, rng=0)
            >>> y, h_n = layer(np.ones((5, 3, 4), np.float32))
            >>> dx, dh0 = layer.backward(np.ones_like(y))
            >>> dx.shape, dh0.shape, layer.grads["weight_hh_l0"].shape
            ((5, 3, 4), (1, 3, 6), (18, 6))
        """
        wants_dx = checks.flag("dx", dx)
        saved, unbatched, restarted = self._recalled(call)
        T, B, width = saved.shape
        if dy is not None:
            dy, flat = self._time_major("dy", dy, width)
            if flat != unbatched or tuple(dy.shape) != saved.shape:
                y_shape = (T, width) if unbatched else ((B, T, width) if self.batch_first else (T, B, width))
                raise ValueError(f"dy must have y's shape {y_shape}, got {tuple(self._user_layout(dy, flat).shape)}")
        dstate_n = self._states(dh_n, "d{}_n", B, unbatched)
        with self._adding:  # a backend may add into the gradients itself
            if isinstance(saved, segmented.Saved):
                found_dx, dstate0, drestart, grads = segmented.backward(saved, dy, dstate_n, self._caches(), wants_dx)
            else:
                found_dx, dstate0, grads = stack_backward.backward(saved, dy, dstate_n, self._caches(), wants_dx)
                drestart = None
            for (layer, direction), w in zip(self._slots(), (w for row in grads for w in row), strict=True):
                for name, grad in zip(parameter_names(self.cell), w, strict=True):
                    if grad is not None:
                        total = self._grads[name + _suffix(layer, direction)]
                        total += grad
        users_dx = None if found_dx is None else self._user_layout(found_dx, unbatched)
        found = (users_dx, self._user_state(dstate0, unbatched))
        if not restarted:
            return found
        if drestart is None:  # nothing was reset
            xp: Any = array_module(dstate0[0])
            drestart = tuple([xp.zeros_like(d) for d in dstate0])
        return (*found, self._user_state(drestart, unbatched))

    def _drop(self, _: int, y: Array) -> Array:
        return stack.dropout_mask(y, self.dropout, self.rng)


class _Saved(NamedTuple):
    """What a call saves for backward: what the stack saved, and whether x was unbatched and a reset state was given."""

    saved: stack.Saved | segmented.Saved
    unbatched: bool
    restarted: bool = False


def _contiguous(x: Array) -> Array:
    xp: Any = array_module(x)
    return xp.ascontiguousarray(x)


def _suffix(layer: int, direction: int) -> str:
    return f"_l{layer}" + ("_reverse" if direction else "")
