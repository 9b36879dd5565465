"""What the layers of `rnnkit.torch` have beside torch.nn's: options of cells, random masks, a backend, strict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from rnnkit.core import checks as core_checks
from rnnkit.core.cells import Cell
from rnnkit.core.option_arguments import ARGUMENTS, cell_with, parsed, text_of
from rnnkit.core.regularisation import Regularisation, checked_rates, regularisation_arguments
from rnnkit.torch import packed
from rnnkit.torch.arrays import Tensor
from rnnkit.torch.operators import choice_of


class OwnArguments(nn.RNNBase):
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

    def _evaluation_text(self) -> str:
        """`_cell_text` in evaluation mode, whatever the present mode is."""
        return self._cell_text() if self.regularisation is None else self._texts[False]

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
