"""What the layers have in common: a call in the form of torch.nn's, turned into one of the kernels' form.

The layers are subclasses of `torch.nn.RNNBase`, not of `torch.nn.LSTM` and its siblings, since torch.compile refuses to
trace any instance of those. `rnnkit.torch.subclasses` has layers for code that tests for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from rnnkit.core import checks as core_checks
from rnnkit.core.cells import Cell
from rnnkit.core.option_arguments import ARGUMENTS, cell_with, parsed, text_of
from rnnkit.core.regularisation import Regularisation, checked_rates, regularisation_arguments
from rnnkit.functional.step_flags import StepFlags, given_flags
from rnnkit.torch import checks, packed
from rnnkit.torch.arrays import Tensor, forget
from rnnkit.torch.autocast import under_autocast
from rnnkit.torch.autograd import run
from rnnkit.torch.dispatch import Stack
from rnnkit.torch.operators import choice_of
from rnnkit.torch.segmented import on_host, run_segments
from rnnkit.torch.unserved import not_traced, refuse_capture, refuse_torchscript

States = Sequence[Tensor]


class Layers(nn.RNNBase):
    """What the layers add to `torch.nn.RNNBase`. A subclass says which cell it runs.

    backend: name of a backend of `rnnkit.BACKENDS`, or None to choose by the device and dtype. It is an attribute like
    `batch_first`, and no part of the state_dict.
    """

    backend: str | None = None
    strict: bool = False
    peephole: bool = False
    clip: float | None = None
    cell_clip: float | None = None
    coupled: bool = False
    activations: Any = None
    layer_norm: str | None = None
    norm_eps: float | None = None
    _text: str | None = None  # `text_of` the cell, if it has options
    regularisation: Regularisation | None = None
    state_names: ClassVar[tuple[str, ...]] = ("h",)

    def __init__(self, mode: str, *arguments: Any) -> None:
        checks.options(*arguments[:8])
        # Not super(): in rnnkit.torch.subclasses the next class is torch.nn.LSTM, whose constructor takes no mode.
        nn.RNNBase.__init__(self, mode, *arguments)

    @property
    def cell_name(self) -> str:
        """The cell's name in `rnnkit.core.cells.CELLS`."""
        raise NotImplementedError

    def _set_options(self, backend: str | None, strict: Any, given: dict[str, Any]) -> None:
        """Sets what torch.nn's layers do not have, after their constructor. given: some of ARGUMENTS."""
        cell, constants = cell_with(self.cell_name, given)
        if cell.normalises and self.proj_size:
            raise ValueError(f"proj_size must be 0 with layer_norm, got {self.proj_size}")
        for name, value in given.items():
            setattr(self, name, value)
        self.backend = backend
        self.strict = core_checks.flag("strict", strict)
        if cell.options:
            self._text = text_of(cell, constants)
        if cell.unit_weights:
            self._add_unit_weights(cell)
        if self.strict:
            self._check_strict(self._flat_weights[0])

    def _add_unit_weights(self, cell: Cell) -> None:
        """Adds `Cell.unit_parameter` (K, H) to each layer and direction, after the other parameters."""
        bound = self.hidden_size**-0.5
        for names in self._all_weights:
            suffix = names[0].removeprefix("weight_ih")
            like = getattr(self, names[0])
            weight = torch.empty((len(cell.unit_weights), self.hidden_size), dtype=like.dtype, device=like.device)
            name = f"{cell.unit_parameter}{suffix}"
            value = weight if cell.normalises else nn.init.uniform_(weight, -bound, bound)
            self.register_parameter(name, nn.Parameter(value))
            names.append(name)
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._flat_weights = [getattr(self, name) for name in self._flat_weights_names]
        if cell.normalises:
            reset_norms(self, cell)

    def reset_parameters(self) -> None:
        """Draws the parameters anew, as torch.nn.LSTM does. With layer normalisation, gains become 1, and the shift of
        c and the biases 0.

        Examples:
            >>> import rnnkit.torch
            >>> layer = rnnkit.torch.GRU(4, 6, layer_norm="haste", backend="numpy")
            >>> layer.reset_parameters()
            >>> bool((layer.weight_layer_norm_l0 == 1).all())
            True
        """
        nn.RNNBase.reset_parameters(self)
        if self.layer_norm is not None and self._text is not None:
            reset_norms(self, parsed(self._text)[0])

    def _check_strict(self, x: Tensor) -> None:
        if x.device.type in ("cpu", "cuda"):
            choice_of(x.device, x.dtype, self._cell_text(), self.backend, True)

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

        Returns:
            A pair (y, state). y has shape (T, B, D*R) in the layout of the input, or is a PackedSequence if the input
            is one. The state is h_n (L*D, B, R), for LSTM (h_n, c_n), for SLSTM (h_n, c_n, n_n, m_n): the state after
            each row's last step.

        Raises:
            ValueError: a wrong number of dimensions, a dtype that is not the weights', or bad lengths.
            RuntimeError: a wrong shape, or a backend that cannot run here.
            TypeError: a wrong type, or flags that are no booleans.
            NotImplementedError: resets or a mask in a model that is exported, or mapped by torch.vmap.

        Examples:
            >>> import torch, rnnkit.torch
            >>> layer = rnnkit.torch.LSTM(4, 6, batch_first=True)
            >>> y, (h_n, c_n) = layer(torch.ones(3, 5, 4), lengths=[5, 2, 0])
            >>> y.shape, h_n.shape, bool((y[1, 2:] == 0).all())
            (torch.Size([3, 5, 6]), torch.Size([1, 3, 6]), True)
        """
        weights = self._weights()
        flags = given_flags(resets, reset_state, mask, zero_output_for_mask)
        if isinstance(input, PackedSequence):
            if flags is not None:
                raise ValueError("resets, reset_state and mask must be None for a PackedSequence")
            return self._forward_packed(input, hx, lengths, weights)
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
        if flags is not None:
            again = None if reset_state is None else self._reset_state(reset_state, x.shape[1], batched)
            y, state_n = self._run_segments(x, states, again, weights, lengths, flags, batched)
        else:
            checked = None if lengths is None else self._lengths(lengths, x, batched)
            y, state_n = self._run(x, states, weights, checked, None)
        if not batched:
            return y.squeeze(1), self._as_hx(tuple([s.squeeze(1) for s in state_n]))
        return (y.transpose(0, 1) if self.batch_first else y), self._as_hx(state_n)

    def _forward_packed(self, input: PackedSequence, hx: Any, lengths: Any, weights: Sequence[Tensor]) -> Any:
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
        y, state_n = self._run(layout.padded(data), states, weights, layout.lengths, layout)
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
        return run(stack, x, states, weights, masks, lengths)

    @partial(not_traced, reason="resets and a mask decide the shapes of the kernels' calls")
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
        checked = None if lengths is None else self._lengths(lengths, x, batched)
        steps = None if checked is None else checked.numpy()
        segments = on_host(flags).segments(T, B, not batched, self.batch_first, D, steps)
        if segments is None:
            return self._run(x, states, weights, checked, None)
        if states is None and again is not None:
            states = tuple([x.new_zeros(shape) for shape in self._state_shapes(B)])
        count = len(states or ())
        x, states, weights = under_autocast(x, (*(states or ()), *(again or ())), weights)
        checks.one_kind(x, states, weights[0])
        masks, rates = self._all_masks(x, None)
        stack = Stack(self._cell_text(), self.backend, bool(self.bidirectional), len(masks), count, rates)
        return run_segments(stack, x, states[:count], states[count:] or None, weights, masks, segments)

    def _weights(self) -> list[Tensor]:
        """The weights as they are now: parameters, or what a parametrization or another tool put in their place."""
        if torch.compiler.is_compiling():
            return [getattr(self, name) for name in self._flat_weights_names]
        weights = self._flat_weights
        parameters = self._parameters
        for name, weight in zip(self._flat_weights_names, weights, strict=False):
            if parameters.get(name) is not weight:
                self._update_flat_weights()
                return self._flat_weights
        return weights

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        forget(self._flat_weights)
        return super()._apply(fn, recurse)

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels read the weights where they are. torch.nn's method is for cuDNN.

        Examples:
            >>> import rnnkit.torch
            >>> rnnkit.torch.GRU(4, 6).flatten_parameters()
        """

    def _regularise(self, **rates: Any) -> None:
        """Checks and stores the rates of random masks, and the texts of the cells that apply them."""
        found = checked_rates(self.state_names, **rates)
        self.regularisation = found
        if found is not None:
            # Here, since torch.compile does not trace how a text is made.
            cell, constants = parsed(self._text or self.cell_name)
            texts = [text_of(found.cell(cell, training), constants) for training in (False, True)]
            self._texts = tuple(texts)

    def _cell_text(self) -> str:
        """`text_of` the cell, with what its kernels do at random in the present mode."""
        if self.regularisation is not None:
            return self._texts[bool(self.training)]
        return self._text or self.cell_name

    def _all_masks(self, x: Tensor, layout: packed.Layout | None) -> tuple[Sequence[Tensor], Sequence[float]]:
        """The dropout masks between layers, the noise, and the rates: see rnnkit/torch/operators.py.

        The seed is drawn from PyTorch's generator of the CPU, so activation checkpointing, which restores that
        generator, draws the same masks again.
        """
        masks: Sequence[Tensor] = ()
        if self.training and self.dropout and self.num_layers > 1:
            masks = self._masks(x, layout)
        rates = self.regularisation
        if rates is None or not (self.training or rates.zones):
            return masks, ()
        return (*masks, drawn_noise(self.training)), tuple(map(float, rates))

    def _masks(self, x: Tensor, layout: packed.Layout | None) -> list[Tensor]:
        """Dropout masks (T, B, D*R) of the layers but the last, drawn in the order in which torch.nn draws them."""
        width = (self.proj_size or self.hidden_size) * (2 if self.bidirectional else 1)
        masks = []
        for _ in range(self.num_layers - 1):
            if layout is None:
                masks.append(nn.functional.dropout(x.new_ones((*x.shape[:2], width)), self.dropout))
            else:
                masks.append(layout.padded(nn.functional.dropout(x.new_ones((layout.steps, width)), self.dropout)))
        return masks

    __prepare_scriptable__ = refuse_torchscript

    # Checks and layouts

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

    def extra_repr(self) -> str:
        """The arguments in the repr: torch.nn's, and those that it does not have.

        Returns:
            The text between the parentheses of the repr.

        Examples:
            >>> import rnnkit.torch
            >>> rnnkit.torch.GRU(4, 6, reset_after=False).extra_repr()
            '4, 6, reset_after=False'
        """
        return super().extra_repr() + own_repr(self)


def mark_reset_before(module: Any, device: Any) -> None:
    """Gives a GRU or GRUCell with reset_after=False the buffer that its state_dict shows.

    The two kinds of GRU have parameters of equal names and shapes, and are different functions.
    """
    if not module.reset_after:
        module.register_buffer("reset_before", torch.ones((), dtype=torch.bool, device=device))


def reset_norms(module: Any, cell: Cell) -> None:
    """Sets the gains of a layer or Cell to 1, the shift of c and the biases to 0, as torch.nn.LayerNorm begins."""
    for name, parameter in module.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        if not name.startswith(cell.unit_parameter):
            continue
        nn.init.ones_(parameter)
        if cell.has_c:
            nn.init.zeros_(parameter.detach()[cell.unit_weights.index("b_c")])


def drawn_noise(training: bool) -> Tensor:
    """The noise of a call without resets: see rnnkit/torch/operators.py."""
    if training:
        return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device="cpu")
    return torch.empty((0,), dtype=torch.int64, device="cpu")


def own_repr(module: Any) -> str:
    """The arguments of a layer or Cell that torch.nn does not have, for its repr."""
    own = "" if getattr(module, "reset_after", True) else ", reset_after=False"
    for name, default in {**ARGUMENTS, "strict": False}.items():
        value = getattr(module, name, default)
        own += "" if value == default else f", {name}={value!r}"
    own += "".join(f", {text}" for text in regularisation_arguments(getattr(module, "regularisation", None)))
    return own if module.backend is None else f"{own}, backend={module.backend!r}"
