"""RNNCell, GRUCell and LSTMCell in place of torch.nn's: one time step.

Subclasses of torch.nn's cells, whose constructors, attributes and checks they have.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from rnnkit.backends import check_backend
from rnnkit.core.checks import flag
from rnnkit.core.regularisation import refuse_unknown
from rnnkit.torch import checks
from rnnkit.torch.arrays import Tensor
from rnnkit.torch.cell_base import CellBase, step_of_cell
from rnnkit.torch.own_arguments import mark_reset_before
from rnnkit.torch.unserved import refuse_torchscript


class RNNCell(CellBase, nn.RNNCell):
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
        return step_of_cell(self, f"rnn_{self.nonlinearity}", input, None if hx is None else (hx,), 1)[0]


class GRUCell(CellBase, nn.GRUCell):
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
        return step_of_cell(self, name, input, None if hx is None else (hx,), 1)[0]


class LSTMCell(CellBase, nn.LSTMCell):
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
        h, c = step_of_cell(self, "lstm", input, None if hx is None else checks.pair(hx, input.dim() == 1, 1), 2)
        return h, c
