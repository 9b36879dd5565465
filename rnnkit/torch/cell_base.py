"""What the Cells have in common: one step, its checks, and what torch.nn's cells do not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rnnkit.core.cells import Cell
from rnnkit.core.checks import flag
from rnnkit.core.option_arguments import cell_with, text_of
from rnnkit.core.regularisation import Regularisation, checked_rates
from rnnkit.torch import checks
from rnnkit.torch.arrays import Tensor, forget
from rnnkit.torch.autocast import under_autocast
from rnnkit.torch.autograd import run
from rnnkit.torch.dispatch import Stack
from rnnkit.torch.operators import choice_of
from rnnkit.torch.own_arguments import drawn_noise, own_repr, reset_norms


def step_of_cell(cell: Any, name: str, input: Tensor, hx: tuple[Any, ...] | None, count: int) -> tuple[Tensor, ...]:
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


class CellBase(nn.modules.rnn.RNNCellBase):
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
