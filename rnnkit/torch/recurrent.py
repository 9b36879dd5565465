"""What the layers have in common: a call in the form of torch.nn's, turned into one of the kernels' form.

The layers are subclasses of `torch.nn.RNNBase`, not of `torch.nn.LSTM` and its siblings, since torch.compile refuses to
trace any instance of those. `rnnkit.torch.subclasses` has layers for code that tests for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from rnnkit.core import checks as core_checks
from rnnkit.functional.step_flags import StepFlags, given_flags
from rnnkit.torch import checks, packed
from rnnkit.torch.arrays import Tensor, forget
from rnnkit.torch.autocast import under_autocast
from rnnkit.torch.autograd import run
from rnnkit.torch.dispatch import Stack
from rnnkit.torch.operators import LAYOUT
from rnnkit.torch.own_arguments import OwnArguments
from rnnkit.torch.segmented import on_host, on_host_array, run_segments
from rnnkit.torch.truncated import checked_truncate, run_truncated
from rnnkit.torch.unserved import refuse_capture, refuse_torchscript

States = Sequence[Tensor]


class Layers(OwnArguments):
    """The calls of RNN, GRU, LSTM and SLSTM. A subclass says which cell it runs."""

    def __init__(self, mode: str, *arguments: Any) -> None:
        checks.options(*arguments[:8])
        # Not super(): in rnnkit.torch.subclasses the next class is torch.nn.LSTM, whose constructor takes no mode.
        nn.RNNBase.__init__(self, mode, *arguments)

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Any = None,
        resets: Any = None,
        reset_state: Any = None,
        mask: Any = None,
        zero_output_for_mask: bool = False,
        truncate: int | None = None,
    ) -> Any:
        """Runs the layer, as the `forward` of torch.nn's layer does.

        Args:
            input: (T, B, I), or (B, T, I) with batch_first, or (T, I) unbatched; or a PackedSequence.
            hx: initial state (L*D, B, R), or (L*D, R) for an unbatched input; None for zeros. For LSTM a pair (h0, c0),
                with c0 (L*D, B, H); for SLSTM (h0, c0, n0, m0). R is proj_size if that is not 0, else H.
            lengths: number of steps of each row, (B,) integers in [0, T] in any order, a tensor or a list; None if
                every row has T steps. Steps past a row's length are not read, and y is zero there. Not with a
                PackedSequence, which has its own. torch.nn's layers do not have this argument, nor those below.
            resets: (T, B) booleans, in the layout of the input without I, a tensor or a list. Where True, the state is
                replaced by `reset_state` before the step. In the reverse direction, where the step before it in time
                is the next one, the state is replaced after the step. None for no resets.
            reset_state: the state that `resets` sets, shaped as hx; None for zeros. Only with `resets`.
            mask: (T, B) booleans, in the layout of the input without I. Where False, the input is not read and the
                state is carried; y repeats that of the nearest step before (in the reverse direction after) that is
                not masked, or is zero if there is none since the last reset. None for no mask.
            zero_output_for_mask: whether y is zero where the mask is False, instead of repeated. Keras has the same
                argument. Only with `mask`.
            truncate: k, to carry no gradient of a state across a step that is a multiple of k, in every layer and both
                directions; y and the final states are those without it. None for full backpropagation. Not with
                `resets` or `mask`. Williams and Peng, Neural Computation 2 (1990).

        Returns:
            A pair (y, state). y has shape (T, B, D*R) in the layout of the input, or is a PackedSequence if the input
            is one. The state is h_n (L*D, B, R), for LSTM (h_n, c_n), for SLSTM (h_n, c_n, n_n, m_n): the state after
            each row's last step.

        Raises:
            ValueError: a wrong number of dimensions, a dtype that is not the weights', or bad lengths or `truncate`.
            RuntimeError: a wrong shape, or a backend that cannot run here.
            TypeError: a wrong type, or flags that are no booleans.
            NotImplementedError: resets or a mask that torch.vmap maps, or `truncate` in training mode of a
                bidirectional layer with zoneout or with dropout of x, h or W_hh.

        Examples:
            >>> import torch, rnnkit.torch
            >>> layer = rnnkit.torch.LSTM(4, 6, batch_first=True)
            >>> y, (h_n, c_n) = layer(torch.ones(3, 5, 4), lengths=[5, 2, 0])
            >>> y.shape, h_n.shape, bool((y[1, 2:] == 0).all())
            (torch.Size([3, 5, 6]), torch.Size([1, 3, 6]), True)
        """
        weights = self._weights()
        flags = given_flags(resets, reset_state, mask, zero_output_for_mask)
        if truncate is not None:
            truncate = checked_truncate(self, truncate, flags)
        if isinstance(input, PackedSequence):
            if flags is not None:
                raise ValueError("resets, reset_state and mask must be None for a PackedSequence")
            return self._forward_packed(input, hx, lengths, weights, truncate)
        x, states, batched = self._time_major(input, hx)
        if flags is not None:
            again = None if reset_state is None else self._reset_state(reset_state, x.shape[1], batched)
            run_flags = self._run_flagged if torch.compiler.is_compiling() else self._run_segments
            y, state_n = run_flags(x, states, again, weights, lengths, flags, batched)
        else:
            checked = None if lengths is None else self._lengths(lengths, x, batched)
            y, state_n = self._run(x, states, weights, checked, None, truncate)
        if not batched:
            return y.squeeze(1), self._as_hx(tuple([s.squeeze(1) for s in state_n]))
        return (y.transpose(0, 1) if self.batch_first else y), self._as_hx(state_n)

    def _forward_packed(
        self, input: PackedSequence, hx: Any, lengths: Any, weights: Sequence[Tensor], truncate: int | None
    ) -> Any:
        if lengths is not None:
            raise ValueError("lengths must be None for a PackedSequence, which has its own")
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if not torch.compiler.is_compiling():
            refuse_capture("a PackedSequence", data, "a replay would read its batch_sizes from host memory")
        states = None if hx is None else self._states_given(hx, False)
        if states is not None and sorted_indices is not None:
            states = tuple([s.index_select(1, sorted_indices) for s in states])
        # torch.compile cannot read B from batch_sizes.
        rows = states[0].shape[1] if states else None if sorted_indices is None else sorted_indices.shape[0]
        if torch.compiler.is_compiling():
            self._check(data[None], rows, states, None)
        else:
            self._check(data, None, states, batch_sizes)
        layout = packed.Layout(batch_sizes, data.shape[0], rows, data.device)
        y, state_n = self._run(layout.padded(data), states, weights, layout.lengths, layout, truncate)
        if unsorted_indices is not None:
            state_n = tuple([s.index_select(1, unsorted_indices) for s in state_n])
        output = PackedSequence(layout.packed(y), batch_sizes, sorted_indices, unsorted_indices)
        return output, self._as_hx(state_n)

    def _run(
        self,
        x: Tensor,
        states: States | None,
        weights: Sequence[Tensor],
        lengths: Tensor | None,
        layout: packed.Layout | None,
        truncate: int | None = None,
    ) -> tuple[Tensor, States]:
        """Time-major and checked. layout: of a PackedSequence, to draw its dropout as torch.nn does."""
        states = states or ()
        if torch._C._is_any_autocast_enabled():
            x, states, weights = under_autocast(x, states, weights)
        weight = weights[0]
        if states or x.dtype is not weight.dtype or x.device != weight.device:
            checks.one_kind(x, states, weight)
        masks, rates = self._all_masks(x, layout) if self.dropout or self.regularisation else ((), ())
        if self.strict and not torch.compiler.is_compiling():
            self._check_strict(x)
        stack = Stack(self._cell_text(), self.backend, bool(self.bidirectional), len(masks), len(states), rates)
        if truncate is not None:
            return run_truncated(stack, x, states, weights, masks, lengths, self.num_layers, truncate)
        return run(stack, x, states, weights, masks, lengths)

    def _run_segments(
        self,
        x: Tensor,
        states: States | None,
        again: States | None,
        weights: Sequence[Tensor],
        lengths: Any,
        flags: StepFlags,
        batched: bool,
    ) -> tuple[Tensor, States]:
        """As `_run`, with resets and a mask. again: the reset state, or None for zeros."""
        T, B, _ = x.shape
        D = 2 if self.bidirectional else 1
        if isinstance(lengths, torch.Tensor):
            checks.lengths(lengths, x)
            lengths = on_host_array("lengths", lengths)
        steps = None if lengths is None else core_checks.lengths(lengths, T, B, not batched)
        checked = None if steps is None else torch.from_numpy(steps)
        segments = on_host(flags).segments(T, B, not batched, self.batch_first, D, steps)
        if segments is None and again is None:
            return self._run(x, states, weights, checked, None)
        if states is None and again is not None:
            states = tuple([x.new_zeros(shape) for shape in self._state_shapes(B)])
        count = len(states or ())
        x, states, weights = under_autocast(x, (*(states or ()), *(again or ())), weights)
        checks.one_kind(x, states, weights[0])
        if segments is None:
            return self._run(x, _with_unused(states[:count], states[count:]), weights, checked, None)
        masks, rates = self._all_masks(x, None)
        if self.strict:
            self._check_strict(x)
        stack = Stack(self._cell_text(), self.backend, bool(self.bidirectional), len(masks), count, rates)
        return run_segments(stack, x, states[:count], states[count:] or None, weights, masks, segments)

    def _run_flagged(
        self,
        x: Tensor,
        states: States | None,
        again: States | None,
        weights: Sequence[Tensor],
        lengths: Any,
        flags: StepFlags,
        batched: bool,
    ) -> tuple[Tensor, States]:
        """As `_run_segments`, in a graph that PyTorch traces: as one node, whose flags have no values yet."""
        zero = flags.zeroes()
        checked = None if lengths is None else self._lengths(lengths, x, batched)
        given = []
        for name in ("resets", "mask"):
            value = getattr(flags, name)
            given.append(None if value is None else checks.step_flags(name, value, x, batched, self.batch_first))
        if states is None and again is not None:
            states = tuple([x.new_zeros(shape) for shape in self._state_shapes(x.shape[1])])
        count = len(states or ())
        x, states, weights = under_autocast(x, (*(states or ()), *(again or ())), weights)
        checks.one_kind(x, states, weights[0])
        masks, rates = self._all_masks(x, None)
        y, *state_n = torch.ops.rnnkit.forward_flagged(
            x,
            list(states[:count]),
            list(states[count:]),
            weights,
            masks,
            checked,
            *given,
            cell=self._cell_text(),
            backend=self.backend,
            bidirectional=bool(self.bidirectional),
            zero_output=zero,
            keep=False,
            layout=LAYOUT,
            rates=list(rates),
        )
        return y, state_n

    def _weights(self) -> list[Tensor]:
        """The weights as they are now: parameters, or what a parametrization or another tool put in their place."""
        if torch.compiler.is_compiling():
            return [getattr(self, name) for name in self._flat_weights_names]
        weights = self._flat_weights
        # map, as this runs in each call. `_flat_weights` may have fewer entries, where an attribute is missing.
        if all(map(is_, map(self._parameters.get, self._flat_weights_names), weights)):
            return weights
        self._update_flat_weights()
        return self._flat_weights

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        forget(self._flat_weights)
        return super()._apply(fn, recurse)

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels read the weights where they are. torch.nn's method is for cuDNN.

        Examples:
            >>> import rnnkit.torch
            >>> rnnkit.torch.GRU(4, 6).flatten_parameters()
        """

    __prepare_scriptable__ = refuse_torchscript

    # Checks and layouts

    def _time_major(self, input: Any, hx: Any) -> tuple[Tensor, States | None, bool]:
        """Checks a padded input and hx. Returns x (T, B, I), the states (L*D, B, ·) or None, and if input had B."""
        checks.tensor("input", input, "a torch.Tensor or a PackedSequence")
        dimensions = input.dim()
        if dimensions not in (2, 3):
            name = type(self).__name__
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {dimensions}D tensor instead")
        batched = dimensions == 3
        states = None
        if hx is not None:
            states = self._states_given(hx, not batched)
            checks.dimensions(dimensions, states)
        if not batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
            states = states and tuple([s.unsqueeze(1) for s in states])
        x = input.transpose(0, 1) if self.batch_first else input
        self._check(input, x.shape[1], states, None)
        return x, states, batched

    def _states_given(self, hx: Any, unbatched: bool) -> States:
        """hx as a tuple of tensors."""
        if len(self.state_names) == 2:
            return checks.pair(hx, unbatched, 3)
        checks.tensor("hx", hx)
        return (hx,)

    @staticmethod
    def _as_hx(states: States) -> Any:
        return tuple(states) if len(states) > 1 else states[0]

    def _state_shapes(self, B: int) -> list[tuple[int, int, int]]:
        slots = self.num_layers * (2 if self.bidirectional else 1)
        h = (slots, B, self.proj_size or self.hidden_size)
        count = len(self.state_names)
        return [h] if count == 1 else [h, *[(slots, B, self.hidden_size)] * (count - 1)]

    def _reset_state(self, reset_state: Any, B: int, batched: bool) -> States:
        """reset_state as a tuple of tensors (L*D, B, ·)."""
        try:
            states = self._states_given(reset_state, not batched)
        except (TypeError, RuntimeError) as problem:
            raise type(problem)(f"reset_state: {problem}") from None
        found = []
        for state, shape in zip(states, self._state_shapes(B), strict=True):
            expected = shape if batched else (shape[0], shape[2])
            if tuple(state.shape) != expected:
                raise RuntimeError(f"reset_state must have the shape {expected}, as hx, got {tuple(state.shape)}")
            found.append(state if batched else state.unsqueeze(1))
        return tuple(found)

    def _check(self, input: Tensor, B: int | None, states: States | None, batch_sizes: Tensor | None) -> None:
        """Raises what torch.nn raises for a wrong shape or dtype. B: None for a PackedSequence."""
        fits = B is not None and input.dtype is self._flat_weights[0].dtype and input.shape[2] == self.input_size
        if fits and (states is None or [s.shape for s in states] == self._state_shapes(B)):  # type: ignore[arg-type]
            return  # the usual case, in less time than torch.nn's checks take
        if states is None:
            self.check_input(input, batch_sizes)
        else:
            self.check_forward_args(input, self._as_hx(states), batch_sizes)

    def _lengths(self, lengths: Any, x: Tensor, batched: bool) -> Tensor | None:
        """Lengths (B,) as an int64 tensor, or None if every row has T steps."""
        if isinstance(lengths, torch.Tensor):
            checks.lengths(lengths, x)
            # The only copy of a call and its backward: the order of the rows and the launches are decided on the host.
            # torch.compile cannot trace the third question. The operator checks the values.
            if (
                torch.compiler.is_compiling()
                or lengths.is_meta
                or torch._C._functorch.is_functorch_wrapped_tensor(lengths)
            ):
                return lengths.reshape(-1).to("meta" if lengths.is_meta else "cpu", torch.int64)
            refuse_capture("lengths", lengths, "their values are read on the host")
            lengths = lengths.cpu().numpy()
        T, B, _ = x.shape
        checked = core_checks.lengths(lengths, T, B, not batched)
        return None if checked is None else torch.from_numpy(checked)


def _with_unused(states: States, again: States) -> States:
    """The states, as functions of a reset state that no step takes. So its gradient is zeros, as in a call with resets.

    Without this it would have no gradient or zeros, depending on the values of the flags.
    """
    return tuple([torch.cat((s, a[:, :0]), 1) for s, a in zip(states, again, strict=True)])
