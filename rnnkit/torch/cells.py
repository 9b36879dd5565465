"""RNNCell, GRUCell and LSTMCell in place of torch.nn's: one time step.

Subclasses of torch.nn's cells, whose constructors, attributes and checks they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rnnkit.backends import check_backend
from rnnkit.core.cells import Cell
from rnnkit.core.checks import flag
from rnnkit.core.option_arguments import cell_with, text_of
from rnnkit.core.regularisation import Regularisation, checked_rates, refuse_unknown
from rnnkit.torch import checks
from rnnkit.torch.arrays import Tensor, forget
from rnnkit.torch.autocast import under_autocast
from rnnkit.torch.autograd import run
from rnnkit.torch.dispatch import Stack
from rnnkit.torch.operators import choice_of
from rnnkit.torch.own_arguments import drawn_noise, mark_reset_before, own_repr, reset_norms
from rnnkit.torch.unserved import refuse_torchscript


def _step(cell: Any, name: str, input: Tensor, hx: tuple[Any, ...] | None, count: int) -> tuple[Tensor, ...]:
    """One step of a cell with `count` states, batched or not: the new states. name: in CELLS."""
    label = type(cell).__name__
    checks.tensor("input", input)
    if input.dim() not in (1, 2):
        raise ValueError(f"{label}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    for k, state in enumerate(hx or ()):
        checks.tensor("hx" if count == 1 else f"hx[{k}]", state)
        if state.dim() not in (1, 2):
            which = "hidden" if count == 1 else f"hx[{k}]"
            raise ValueError(f"{label}: Expected {which} to be 1D or 2D, got {state.dim()}D instead")
    batched = input.dim() == 2
    x = input if batched else input.unsqueeze(0)
    if hx is None:
        hx = ()
    elif not batched:
        hx = tuple([s.unsqueeze(0) for s in hx])
    _check(cell, x, hx)
    weights: Sequence[Tensor] = [cell.weight_ih, cell.weight_hh]
    if cell.bias_ih is not None:
        weights = [*weights, cell.bias_ih, cell.bias_hh]
    if cell.peephole:
        weights = [*weights, cell.weight_peephole]
    elif cell.layer_norm is not None:
        weights = [*weights, cell.weight_layer_norm]
    x, states, weights = under_autocast(x, hx, weights)
    checks.one_kind(x, states, weights[0])
    name += cell._added
    if cell.strict and not torch.compiler.is_compiling():
        choice_of(x.device, x.dtype, name, cell.backend, True)
    rates = cell.regularisation
    if rates is None:
        masks: Sequence[Tensor] = ()
        stack = Stack(name, cell.backend, False, 0, len(states))
    else:
        masks = (drawn_noise(cell.training),)
        stack = Stack(name, cell.backend, False, 1, len(states), tuple(map(float, rates)))
    _, state_n = run(stack, x.unsqueeze(0), [s.unsqueeze(0) for s in states], weights, masks, None)
    return tuple([s[0] if batched else s[0, 0] for s in state_n])


def _check(cell: Any, x: Tensor, states: tuple[Tensor, ...]) -> None:
    """Raises RuntimeError with torch.nn's messages."""
    if x.shape[1] != cell.input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {x.shape[1]} expected {cell.input_size}")
    for k, state in enumerate(states):
        if state.dim() != 2:
            got = tuple(state.shape)
            raise RuntimeError(f"hidden{k} must be (B, H) = ({x.shape[0]}, {cell.hidden_size}), as input is, got {got}")
        if state.shape[0] != x.shape[0]:
            raise RuntimeError(f"Input batch size {x.shape[0]} doesn't match hidden{k} batch size {state.shape[0]}")
        if state.shape[1] != cell.hidden_size:
            expected = f"got {state.shape[1]}, expected {cell.hidden_size}"
            raise RuntimeError(f"hidden{k} has inconsistent hidden_size: {expected}")


class _Cell(nn.modules.rnn.RNNCellBase):
    """What the Cells add to torch.nn's."""

    backend: str | None = None
    strict: bool = False
    peephole: bool = False
    clip: float | None = None
    cell_clip: float | None = None
    coupled: bool = False
    activations: Any = None
    layer_norm: str | None = None
    norm_eps: float | None = None
    _added: str = ""  # what options and zoneout add to the name of the cell: see `text_of`
    _norms: Cell | None = None  # the cell, if it normalises
    regularisation: Regularisation | None = None

    def _set_options(
        self, name: str, backend: str | None, strict: Any, given: dict[str, Any], zoneout: Any, output: Any = "raw"
    ) -> None:
        """Sets what torch.nn's cells do not have, after their constructor.

        name: of the cell in CELLS. given: some of ARGUMENTS. output: `zoneout_output`.
        """
        cell, constants = cell_with(name, given)
        rates = checked_rates(cell.states, zoneout=zoneout, zoneout_output=output)
        cell = cell if rates is None else rates.cell(cell, self.training)
        for argument, value in given.items():
            setattr(self, argument, value)
        self.backend = backend
        self.strict = flag("strict", strict)
        self.regularisation = rates
        self._added = text_of(cell, constants).removeprefix(name)
        like = self.weight_ih
        if cell.unit_weights:
            bound = self.hidden_size**-0.5
            weight = torch.empty((len(cell.unit_weights), self.hidden_size), dtype=like.dtype, device=like.device)
            value = weight if cell.normalises else nn.init.uniform_(weight, -bound, bound)
            self.register_parameter(cell.unit_parameter, nn.Parameter(value))
        if cell.normalises:
            self._norms = cell
            reset_norms(self, cell)
        if self.strict and like.device.type in ("cpu", "cuda"):
            choice_of(like.device, like.dtype, name + self._added, backend, True)

    def reset_parameters(self) -> None:
        """Draws the parameters anew, as torch.nn's cells do. With layer normalisation, gains become 1, and the shift of
        c and the biases 0.

        Examples:
            >>> import rnnkit.torch
            >>> cell = rnnkit.torch.GRUCell(4, 6, layer_norm="haste", backend="numpy")
            >>> cell.reset_parameters()
            >>> bool((cell.weight_layer_norm == 1).all())
            True
        """
        super().reset_parameters()
        if self._norms is not None:
            reset_norms(self, self._norms)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        forget(self.parameters(recurse=False))
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        forget(self.parameters(recurse=False))
        super()._load_from_state_dict(*arguments)

    def extra_repr(self) -> str:
        """The arguments in the repr: torch.nn's, and those that it does not have.

        Returns:
            The text between the parentheses of the repr.

        Examples:
            >>> import rnnkit.torch
            >>> rnnkit.torch.GRUCell(4, 6, reset_after=False).extra_repr()
            '4, 6, reset_after=False'
        """
        return super().extra_repr() + own_repr(self)


class RNNCell(_Cell, nn.RNNCell):
    """One step of an Elman RNN in place of torch.nn.RNNCell; the formula is that of `rnnkit.RNN`.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of h, H.
        bias: whether the cell has `bias_ih` and `bias_hh`.
        nonlinearity: "tanh" or "relu".
        device: torch.device of the parameters.
        dtype: torch.dtype of the parameters.
        clip: limit of the pre-activation, as of `rnnkit.RNN`; docs/cell-options.md has this and what follows.
        activations: ONNX's activation of h, as of `rnnkit.RNN`.
        zoneout: share of the units of h that keep their value in a step, see docs/regularisation.md. In training mode
            each call draws which.
        backend: name of a backend of `rnnkit.BACKENDS`, or None to choose by device and dtype.
        strict: whether to raise an error where no backend with compiled kernels serves the cell.
        **unknown: others are refused. `input_dropout`, `recurrent_dropout`, `mask_per_gate` and `weight_dropout` are
            of layers alone: their masks are one for all steps of a sequence.

    Examples:
        >>> import torch, rnnkit.torch
        >>> rnnkit.torch.RNNCell(4, 6)(torch.ones(3, 4)).shape
        torch.Size([3, 6])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
        *,
        clip: float | None = None,
        activations: Any = None,
        zoneout: float = 0.0,
        backend: str | None = None,
        strict: bool = False,
        **unknown: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, unknown)
        check_backend(backend)
        super().__init__(input_size, hidden_size, bias, nonlinearity, device, dtype)
        name = f"rnn_{nonlinearity}" if nonlinearity in ("tanh", "relu") else "rnn_tanh"  # forward refuses others
        self._set_options(name, backend, strict, {"clip": clip, "activations": activations}, zoneout)

    __prepare_scriptable__ = refuse_torchscript

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Takes one step.

        Args:
            input: (B, I), or (I,) unbatched.
            hx: the state before the step, (B, H) or (H,); None for zeros.

        Returns:
            The state after the step, of the shape of hx.

        Raises:
            ValueError: a wrong number of dimensions.
            RuntimeError: a wrong shape, dtype or device, or a backend that cannot run here.

        Examples:
            >>> import torch, rnnkit.torch
            >>> rnnkit.torch.RNNCell(4, 6)(torch.ones(4)).shape
            torch.Size([6])
        """
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}. It must be 'tanh' or 'relu'.")
        return _step(self, f"rnn_{self.nonlinearity}", input, None if hx is None else (hx,), 1)[0]


class GRUCell(_Cell, nn.GRUCell):
    """One step of a GRU in place of torch.nn.GRUCell; the formulas are those of `rnnkit.GRU`.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of h, H.
        bias: whether the cell has `bias_ih` and `bias_hh`.
        device: torch.device of the parameters.
        dtype: torch.dtype of the parameters.
        reset_after: whether the reset gate acts after the recurrent product, see `rnnkit.torch.GRU`. With False the
            cell has a buffer `reset_before`, as `rnnkit.torch.GRU` has.
        clip: limit of the gates' pre-activations, as of `rnnkit.GRU`; docs/cell-options.md has this and what follows.
        activations: ONNX's activations of the gates and of n, as of `rnnkit.GRU`.
        zoneout: share of the units of h that keep their value in a step, see docs/regularisation.md. In training mode
            each call draws which.
        layer_norm: kind of layer normalisation, "haste" or "dreamer", as of `rnnkit.GRU`; docs/normalised-cells.md has
            the equations. Gains are rows of `weight_layer_norm`. Not with other options or zoneout. None for none.
        norm_eps: what layer normalisation adds to variances; None for 1e-5, with "dreamer" 1e-3.
        backend: name of a backend of `rnnkit.BACKENDS`, or None to choose by device and dtype.
        strict: whether to raise an error where no backend with compiled kernels serves the cell.
        **unknown: others are refused. `input_dropout`, `recurrent_dropout`, `mask_per_gate` and `weight_dropout` are
            of layers alone: their masks are one for all steps of a sequence.

    Examples:
        >>> import torch, rnnkit.torch
        >>> rnnkit.torch.GRUCell(4, 6)(torch.ones(3, 4), torch.zeros(3, 6)).shape
        torch.Size([3, 6])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        reset_after: bool = True,
        clip: float | None = None,
        activations: Any = None,
        zoneout: float = 0.0,
        layer_norm: str | None = None,
        norm_eps: float | None = None,
        backend: str | None = None,
        strict: bool = False,
        **unknown: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, unknown)
        after = flag("reset_after", reset_after)
        if layer_norm is not None and not after:
            raise ValueError(f"layer_norm must be None with reset_after=False, got {layer_norm!r}")
        check_backend(backend)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.reset_after = after
        mark_reset_before(self, device)
        name = "gru" if self.reset_after else "gru_reset_before"
        given = {"clip": clip, "activations": activations, "layer_norm": layer_norm, "norm_eps": norm_eps}
        self._set_options(name, backend, strict, given, zoneout)

    __prepare_scriptable__ = refuse_torchscript

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Takes one step.

        Args:
            input: (B, I), or (I,) unbatched.
            hx: the state before the step, (B, H) or (H,); None for zeros.

        Returns:
            The state after the step, of the shape of hx.

        Raises:
            ValueError: a wrong number of dimensions.
            RuntimeError: a wrong shape, dtype or device, or a backend that cannot run here.

        Examples:
            >>> import torch, rnnkit.torch
            >>> rnnkit.torch.GRUCell(4, 6)(torch.ones(4)).shape
            torch.Size([6])
        """
        name = "gru" if self.reset_after else "gru_reset_before"
        return _step(self, name, input, None if hx is None else (hx,), 1)[0]


class LSTMCell(_Cell, nn.LSTMCell):
    """One step of an LSTM in place of torch.nn.LSTMCell; the formulas are those of `rnnkit.LSTM`.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of h and c, H.
        bias: whether the cell has `bias_ih` and `bias_hh`.
        device: torch.device of the parameters.
        dtype: torch.dtype of the parameters.
        peephole: whether i, f and o also read c, as of `rnnkit.LSTM`; docs/cell-options.md has this and what follows.
        clip: limit of the gates' pre-activations.
        cell_clip: limit of c.
        coupled: whether f is 1 - i.
        activations: ONNX's activations of the gates, of g, and of c in h.
        zoneout: share of the units of h that keep their value in a step, or a pair of shares, of h and of c, see
            docs/regularisation.md. In training mode each call draws which.
        zoneout_output: "raw" or "zoned": whether the new h is made from c before its zoneout or after it.
        layer_norm: kind of layer normalisation, "haste" or "torch", as of `rnnkit.LSTM`; docs/normalised-cells.md has
            the equations. Gains, and the shift of c, are rows of `weight_layer_norm`. Not with other options or
            zoneout. None for none.
        norm_eps: what layer normalisation adds to variances; None for 1e-5.
        backend: name of a backend of `rnnkit.BACKENDS`, or None to choose by device and dtype.
        strict: whether to raise an error where no backend with compiled kernels serves the cell.
        **unknown: others are refused. `input_dropout`, `recurrent_dropout`, `mask_per_gate` and `weight_dropout` are
            of layers alone: their masks are one for all steps of a sequence.

    Examples:
        >>> import torch, rnnkit.torch
        >>> h, c = rnnkit.torch.LSTMCell(4, 6)(torch.ones(3, 4))
        >>> h.shape, c.shape
        (torch.Size([3, 6]), torch.Size([3, 6]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        peephole: bool = False,
        clip: float | None = None,
        cell_clip: float | None = None,
        coupled: bool = False,
        activations: Any = None,
        zoneout: float | tuple[float, float] = 0.0,
        zoneout_output: str = "raw",
        layer_norm: str | None = None,
        norm_eps: float | None = None,
        backend: str | None = None,
        strict: bool = False,
        **unknown: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, unknown)
        check_backend(backend)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        given = {"peephole": peephole, "clip": clip, "cell_clip": cell_clip, "coupled": coupled}
        norm = {"layer_norm": layer_norm, "norm_eps": norm_eps}
        options = {**given, **norm, "activations": activations}
        self._set_options("lstm", backend, strict, options, zoneout, zoneout_output)

    __prepare_scriptable__ = refuse_torchscript

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Takes one step.

        Args:
            input: (B, I), or (I,) unbatched.
            hx: the states before the step, a pair (h, c) of (B, H) or (H,) each; None for zeros.

        Returns:
            The states after the step, a pair (h, c) of the shapes of hx.

        Raises:
            ValueError: a wrong number of dimensions.
            RuntimeError: a wrong shape, dtype or device, or a backend that cannot run here.

        Examples:
            >>> import torch, rnnkit.torch
            >>> h, c = rnnkit.torch.LSTMCell(4, 6)(torch.ones(4))
            >>> h.shape, c.shape
            (torch.Size([6]), torch.Size([6]))
        """
        checks.tensor("input", input)
        h, c = _step(self, "lstm", input, None if hx is None else checks.pair(hx, input.dim() == 1, 1), 2)
        return h, c
