"""SLSTM, the scalar xLSTM cell, as a layer and as a Cell in the manner of torch.nn, which has none."""

from __future__ import annotations

from typing import Any

import torch

from rnnkit.backends import check_backend
from rnnkit.core.cells import CELLS
from rnnkit.torch import checks
from rnnkit.torch.arrays import Tensor
from rnnkit.torch.cell_base import CellBase, step_of_cell
from rnnkit.torch.recurrent import Layers, States
from rnnkit.torch.unserved import refuse_torchscript


class SLSTM(Layers):
    """sLSTM, with the state (h, c, n, m); the formulas are those of `rnnkit.SLSTM` (Beck et al., 2024, "xLSTM").

    Parameters have the names, shapes and initial values of those of an LSTM; the gate order is i, f, z, o. The layer
    has a buffer `slstm`, so that its state_dict and those of an LSTM refuse each other. docs/slstm.md has the equations
    and their derivatives.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of each state, H.
        num_layers: number of layers, L.
        bias: whether the layers have `bias_ih_l{k}` and `bias_hh_l{k}`.
        batch_first: whether input and y are (B, T, ·); the states are (L*D, B, ·) either way.
        dropout: probability of dropout on the output of each layer but the last.
        bidirectional: whether each layer also runs from the end, D = 2.
        device: torch.device of the parameters.
        dtype: torch.dtype of the parameters.
        backend: name of a backend of `rnnkit.BACKENDS`, or None to choose by device and dtype.
        strict: whether to raise an error where no backend with compiled kernels serves the layer.

    Raises:
        ValueError: a bad value.
        TypeError: a wrong type.
        RuntimeError: the backend cannot run here.

    Examples:
        >>> import torch, rnnkit.torch
        >>> layer = rnnkit.torch.SLSTM(4, 6, backend="numpy")
        >>> y, (h_n, c_n, n_n, m_n) = layer(torch.ones(5, 3, 4))
        >>> y.shape, n_n.shape, bool((n_n >= 1).all())
        (torch.Size([5, 3, 6]), torch.Size([1, 3, 6]), True)
    """

    cell_name = "slstm"
    state_names = CELLS["slstm"].states

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        strict: bool = False,
        backend: str | None = None,
    ) -> None:
        check_backend(backend)
        # torch.nn.RNNBase takes the modes that it knows: LSTM gives the shapes.
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )
        self.mode = "SLSTM"
        _mark(self, device)
        self._set_options(backend, strict, {})

    def _states_given(self, hx: Any, unbatched: bool) -> States:
        return checks.several(hx, self.state_names)

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        """Checks shapes, as torch.nn.LSTM does.

        Args:
            input: (T, B, I), in the layout of the layer, or the data (N, I) of a PackedSequence.
            hidden: the states (h, c, n, m), (L*D, B, H) each.
            batch_sizes: those of a PackedSequence, or None.

        Raises:
            RuntimeError: a wrong shape.
            ValueError: the input has another dtype than the weights.

        Examples:
            >>> import torch, rnnkit.torch
            >>> layer = rnnkit.torch.SLSTM(4, 6, backend="numpy")
            >>> layer.check_forward_args(torch.ones(5, 3, 4), (torch.zeros(1, 3, 6),) * 4, None)
        """
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        for k, state in enumerate(hidden):
            self.check_hidden_size(state, expected, f"Expected hidden[{k}] size {{}}, got {{}}")

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        """Brings the rows of the states into another order, as torch.nn.LSTM does for a PackedSequence.

        Args:
            hx: the states (h, c, n, m), (L*D, B, H) each.
            permutation: the index of each new row (B,), or None.

        Returns:
            The states in that order; hx itself if `permutation` is None.

        Examples:
            >>> import torch, rnnkit.torch
            >>> layer = rnnkit.torch.SLSTM(4, 6, backend="numpy")
            >>> h, *_ = layer.permute_hidden((torch.arange(3.0).view(1, 3, 1),) * 4, torch.tensor([2, 0, 1]))
            >>> h.flatten()
            tensor([2., 0., 1.])
        """
        return hx if permutation is None else tuple([state.index_select(1, permutation) for state in hx])


class SLSTMCell(CellBase):
    """One step of an sLSTM, as `rnnkit.torch.LSTMCell` is one of an LSTM; the formulas are those of `rnnkit.SLSTM`.

    Parameters have the names, shapes and initial values of those of an LSTMCell; the gate order is i, f, z, o. The Cell
    has a buffer `slstm`, as `rnnkit.torch.SLSTM` has.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of each state, H.
        bias: whether the cell has `bias_ih` and `bias_hh`.
        device: torch.device of the parameters.
        dtype: torch.dtype of the parameters.
        backend: name of a backend of `rnnkit.BACKENDS`, or None to choose by device and dtype.
        strict: whether to raise an error where no backend with compiled kernels serves the cell.

    Raises:
        ValueError: a bad value.
        TypeError: a wrong type.
        RuntimeError: the backend cannot run here.

    Examples:
        >>> import torch, rnnkit.torch
        >>> cell = rnnkit.torch.SLSTMCell(4, 6, backend="numpy")
        >>> h, c, n, m = cell(torch.ones(3, 4))
        >>> h.shape, bool((n == 1).all())
        (torch.Size([3, 6]), True)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str | None = None,
        strict: bool = False,
    ) -> None:
        check_backend(backend)
        super().__init__(input_size, hidden_size, bias, len(CELLS["slstm"].gates), device, dtype)
        _mark(self, device)
        self._set_options("slstm", backend, strict, {}, 0.0)

    __prepare_scriptable__ = refuse_torchscript

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Takes one step.

        Args:
            input: (B, I), or (I,) unbatched.
            hx: the states before the step, a tuple (h, c, n, m) of (B, H) or (H,) each; None for zeros.

        Returns:
            The states after the step, a tuple (h, c, n, m) of the shapes of hx.

        Raises:
            ValueError: a wrong number of dimensions.
            TypeError: hx is no tuple of tensors.
            RuntimeError: a wrong shape, dtype or device, or a backend that cannot run here.

        Examples:
            >>> import torch, rnnkit.torch
            >>> cell = rnnkit.torch.SLSTMCell(4, 6, backend="numpy")
            >>> cell(torch.ones(4), cell(torch.ones(4)))[2].shape
            torch.Size([6])
        """
        names = CELLS["slstm"].states
        states = None if hx is None else checks.several(hx, names)
        h, c, n, m = step_of_cell(self, "slstm", input, states, len(names))
        return h, c, n, m


def _mark(module: Any, device: Any) -> None:
    """Gives a layer or Cell the buffer that its state_dict shows: its parameters are named and shaped as an LSTM's."""
    module.register_buffer("slstm", torch.ones((), dtype=torch.bool, device=device))
