"""RNN, GRU and LSTM in place of torch.nn's: same constructors, attributes, state_dict, results and errors."""

from __future__ import annotations

from typing import Any

from torch import nn

from rnnkit.backends import check_backend
from rnnkit.core import checks as core_checks
from rnnkit.torch import checks
from rnnkit.torch.own_arguments import mark_reset_before
from rnnkit.torch.recurrent import Layers


class RNN(Layers):
    """Elman RNN in place of torch.nn.RNN; the formula is that of `rnnkit.RNN`.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of h, H.
        num_layers: number of layers, L.
        nonlinearity: "tanh" or "relu".
        bias: whether the layers have `bias_ih_l{k}` and `bias_hh_l{k}`.
        batch_first: whether input and y are (B, T, ·); the states are (L*D, B, ·) either way.
        dropout: probability of dropout on the output of each layer but the last.
        bidirectional: whether each layer also runs from the end, D = 2.
        device: torch.device of the parameters.
        dtype: torch.dtype of the parameters.
        clip: limit of the pre-activations, as of `rnnkit.RNN`; docs/cell-options.md has this and what follows.
        activations: ONNX's activation of h, as of `rnnkit.RNN`.
        input_dropout: share of the features of the input of each layer that are dropped in training mode, by one mask
            per row and call for all steps. docs/regularisation.md has the equations of this and what follows.
        recurrent_dropout: the same of h, where it is multiplied by W_hh; the h that a layer carries is not masked.
        mask_per_gate: whether each gate has a mask on h of its own, instead of one for all.
        weight_dropout: share of the elements of W_hh that a call drops in training mode (DropConnect).
        zoneout: share of the units of h that keep their value in a step, in training mode; in evaluation mode h is
            zoneout * (old h) + (1 - zoneout) * (new h).
        backend: name of a backend of `rnnkit.BACKENDS`, or None to choose by device and dtype.
        strict: whether to raise an error where no backend with compiled kernels serves the layer.
        **unknown: others, such as proj_size, are refused as torch.nn refuses them.

    Raises:
        ValueError: a bad value.
        TypeError: a wrong type.
        RuntimeError: the backend cannot run here.

    Examples:
        >>> import torch, rnnkit.torch
        >>> layer = rnnkit.torch.RNN(4, 6, nonlinearity="relu")
        >>> y, h_n = layer(torch.ones(5, 3, 4))
        >>> y.shape
        torch.Size([5, 3, 6])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        clip: float | None = None,
        activations: Any = None,
        strict: bool = False,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        mask_per_gate: bool = False,
        weight_dropout: float = 0.0,
        zoneout: float = 0.0,
        backend: str | None = None,
        **unknown: Any,
    ) -> None:
        checks.no_such(type(self).__name__, unknown)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        check_backend(backend)
        self.nonlinearity = nonlinearity
        mode = f"RNN_{nonlinearity.upper()}"
        super().__init__(
            mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )
        self._set_options(backend, strict, {"clip": clip, "activations": activations})
        self._regularise(
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            mask_per_gate=mask_per_gate,
            weight_dropout=weight_dropout,
            zoneout=zoneout,
        )

    @property
    def cell_name(self) -> str:
        """The cell's name in `rnnkit.core.cells.CELLS`."""
        return f"rnn_{self.nonlinearity}"


class GRU(Layers):
    """GRU in place of torch.nn.GRU; the formulas are those of `rnnkit.GRU`.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of h, H.
        num_layers: number of layers, L.
        bias: whether the layers have `bias_ih_l{k}` and `bias_hh_l{k}`.
        batch_first: whether input and y are (B, T, ·); the states are (L*D, B, ·) either way.
        dropout: probability of dropout on the output of each layer but the last.
        bidirectional: whether each layer also runs from the end, D = 2.
        device: torch.device of the parameters.
        dtype: torch.dtype of the parameters.
        reset_after: whether the reset gate acts after the recurrent product, as in torch.nn.GRU, or before it, as in
            Cho et al. (2014), which torch.nn does not have. With False the layer has a buffer `reset_before`, so that
            its state_dict and those of layers with True, or of torch.nn.GRU, refuse each other.
        clip: limit of the gates' pre-activations, as of `rnnkit.GRU`; docs/cell-options.md has this and what follows.
        activations: ONNX's activations of the gates and of n, as of `rnnkit.GRU`.
        input_dropout: share of the features of the input of each layer that are dropped in training mode, by one mask
            per row and call for all steps. docs/regularisation.md has the equations of this and what follows.
        recurrent_dropout: the same of h, where it is multiplied by W_hh; the h that a layer carries is not masked.
        mask_per_gate: whether each gate has a mask on h of its own, instead of one for all.
        weight_dropout: share of the elements of W_hh that a call drops in training mode (DropConnect).
        zoneout: share of the units of h that keep their value in a step, in training mode; in evaluation mode h is
            zoneout * (old h) + (1 - zoneout) * (new h).
        layer_norm: kind of layer normalisation, "haste" or "dreamer", as of `rnnkit.GRU`; docs/normalised-cells.md has
            the equations. Gains are rows of `weight_layer_norm_l{k}`. Not with other options. None for none.
        norm_eps: what layer normalisation adds to variances; None for 1e-5, with "dreamer" 1e-3.
        backend: name of a backend of `rnnkit.BACKENDS`, or None to choose by device and dtype.
        strict: whether to raise an error where no backend with compiled kernels serves the layer.
        **unknown: others, such as proj_size, are refused as torch.nn refuses them.

    Raises:
        ValueError: a bad value.
        TypeError: a wrong type.
        RuntimeError: the backend cannot run here.

    Examples:
        >>> import torch, rnnkit.torch
        >>> layer = rnnkit.torch.GRU(4, 6, bidirectional=True)
        >>> y, h_n = layer(torch.ones(5, 3, 4))
        >>> y.shape, h_n.shape
        (torch.Size([5, 3, 12]), torch.Size([2, 3, 6]))
    """

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
        reset_after: bool = True,
        clip: float | None = None,
        activations: Any = None,
        strict: bool = False,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        mask_per_gate: bool = False,
        weight_dropout: float = 0.0,
        zoneout: float = 0.0,
        layer_norm: str | None = None,
        norm_eps: float | None = None,
        backend: str | None = None,
        **unknown: Any,
    ) -> None:
        checks.no_such(type(self).__name__, unknown)
        self.reset_after = core_checks.flag("reset_after", reset_after)
        if layer_norm is not None and not self.reset_after:
            raise ValueError(f"layer_norm must be None with reset_after=False, got {layer_norm!r}")
        check_backend(backend)
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )
        mark_reset_before(self, device)
        given = {"clip": clip, "activations": activations, "layer_norm": layer_norm, "norm_eps": norm_eps}
        self._set_options(backend, strict, given)
        self._regularise(
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            mask_per_gate=mask_per_gate,
            weight_dropout=weight_dropout,
            zoneout=zoneout,
        )

    @property
    def cell_name(self) -> str:
        """The cell's name in `rnnkit.core.cells.CELLS`."""
        return "gru" if self.reset_after else "gru_reset_before"


class LSTM(Layers):
    """LSTM in place of torch.nn.LSTM; the formulas are those of `rnnkit.LSTM`.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of c, H, and of h without a projection.
        num_layers: number of layers, L.
        bias: whether the layers have `bias_ih_l{k}` and `bias_hh_l{k}`.
        batch_first: whether input and y are (B, T, ·); the states are (L*D, B, ·) either way.
        dropout: probability of dropout on the output of each layer but the last.
        bidirectional: whether each layer also runs from the end, D = 2.
        proj_size: number of features of h with a projection, P; 0 for none.
        device: torch.device of the parameters.
        dtype: torch.dtype of the parameters.
        peephole: whether i, f and o also read c, as of `rnnkit.LSTM`; docs/cell-options.md has this and what follows.
        clip: limit of the gates' pre-activations.
        cell_clip: limit of c.
        coupled: whether f is 1 - i.
        activations: ONNX's activations of the gates, of g, and of c in h.
        input_dropout: share of the features of the input of each layer that are dropped in training mode, by one mask
            per row and call for all steps. docs/regularisation.md has the equations of this and what follows.
        recurrent_dropout: the same of h, where it is multiplied by W_hh; the h that a layer carries is not masked.
        mask_per_gate: whether each gate has a mask on h of its own, instead of one for all.
        weight_dropout: share of the elements of W_hh that a call drops in training mode (DropConnect).
        zoneout: share of the units of h that keep their value in a step, in training mode; in evaluation mode h is
            zoneout * (old h) + (1 - zoneout) * (new h). Or a pair of shares, of h and of c.
        zoneout_output: "raw" or "zoned": whether the new h is made from c before its zoneout or after it.
        layer_norm: kind of layer normalisation, "haste" or "torch", as of `rnnkit.LSTM`; docs/normalised-cells.md has
            the equations. Gains, and the shift of c, are rows of `weight_layer_norm_l{k}`. Not with other options or a
            projection. None for none.
        norm_eps: what layer normalisation adds to variances; None for 1e-5.
        backend: name of a backend of `rnnkit.BACKENDS`, or None to choose by device and dtype.
        strict: whether to raise an error where no backend with compiled kernels serves the layer.

    Raises:
        ValueError: a bad value.
        TypeError: a wrong type.
        RuntimeError: the backend cannot run here.

    Examples:
        >>> import torch, rnnkit.torch
        >>> layer = rnnkit.torch.LSTM(4, 6, num_layers=2, proj_size=5)
        >>> y, (h_n, c_n) = layer(torch.ones(5, 3, 4))
        >>> y.shape, h_n.shape, c_n.shape
        (torch.Size([5, 3, 5]), torch.Size([2, 3, 5]), torch.Size([2, 3, 6]))
    """

    state_names = ("h", "c")
    cell_name = "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        peephole: bool = False,
        clip: float | None = None,
        cell_clip: float | None = None,
        coupled: bool = False,
        activations: Any = None,
        strict: bool = False,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        mask_per_gate: bool = False,
        weight_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        zoneout_output: str = "raw",
        layer_norm: str | None = None,
        norm_eps: float | None = None,
        backend: str | None = None,
    ) -> None:
        check_backend(backend)
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        given = {"peephole": peephole, "clip": clip, "cell_clip": cell_clip, "coupled": coupled}
        norm = {"layer_norm": layer_norm, "norm_eps": norm_eps}
        self._set_options(backend, strict, {**given, **norm, "activations": activations})
        self._regularise(
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            mask_per_gate=mask_per_gate,
            weight_dropout=weight_dropout,
            zoneout=zoneout,
            zoneout_output=zoneout_output,
        )

    # The checks of two states are torch.nn's.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args
    permute_hidden = nn.LSTM.permute_hidden
