"""RNN, GRU and LSTM, with the names, shapes, defaults and semantics of torch.nn's layers. NumPy or CuPy arrays.

The code that the three share is in `rnnkit.nn.rnn_base`.
"""

from __future__ import annotations

from typing import Any

from rnnkit.core import checks
from rnnkit.nn.rnn_base import Recurrent
from rnnkit.nn.rnn_parameters import PARTS, uniform_parameters

__all__ = ["GRU", "LSTM", "PARTS", "RNN", "Recurrent", "uniform_parameters"]


class RNN(Recurrent):
    """Elman RNN; equivalent of torch.nn.RNN.

    h_t = act(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh) with act tanh or relu (Elman, 1990). Parameters are
    `weight_ih_l{k}` (H, I), `weight_hh_l{k}` (H, H), `bias_ih_l{k}` and `bias_hh_l{k}` (H,), with the suffix `_reverse`
    for the reverse direction. All are drawn from U(-1/sqrt(H), 1/sqrt(H)), as in PyTorch.

    Args:
        input_size: number of features of x at each step, I.
        hidden_size: number of features of the state, H.
        num_layers: number of stacked layers, L.
        nonlinearity: "tanh" or "relu".
        bias: whether the layer has `bias_ih` and `bias_hh`.
        batch_first: whether x and y have shape (B, T, ·) instead of (T, B, ·). States keep their shape.
        dropout: share of the outputs that is zeroed between stacked layers in training mode, in [0, 1].
        bidirectional: whether each layer also runs over the reversed sequence; y concatenates both directions.
        clip: limits the pre-activations of the gates to [-clip, clip], as in ONNX; None for no limit.
        activations: ONNX's activation in place of `nonlinearity`: a sequence of one name, as ("Softsign",), or of one
            tuple with its numbers, as (("Elu", 0.5),). docs/cell-options.md lists them. None for `nonlinearity`.
        input_dropout: share of the features of x that each layer drops in training mode, by one mask per row and call
            for all steps (variational dropout). docs/regularisation.md has the equations of this and what follows.
        recurrent_dropout: the same of h, where it is multiplied by W_hh; the h that a layer carries is not masked.
        mask_per_gate: whether each gate has a mask on h of its own, instead of one for all.
        weight_dropout: share of the elements of W_hh that a call drops in training mode (DropConnect).
        zoneout: share of the units of h that keep their value in a step, in training mode; in evaluation mode h is
            zoneout * (old h) + (1 - zoneout) * (new h).
        dtype: dtype of parameters and arrays: "float64", "float32", "tf32" (float32 arrays; a GPU may round the
            operands of products to TF32), "float16" or "bfloat16" (with sums in float32).
        device: "cpu", "cuda" or "cuda:<index>"; None for the CPU.
        backend: a name in `rnnkit.backends.BACKENDS`, or "cupy:<schedule>" for one schedule of the CuPy backend; None
            for the first backend that serves the device.
        strict: whether to raise an error where no backend with compiled kernels serves the layer, instead of running
            the NumPy oracle.
        rng: a numpy Generator, a seed or None, for the initial parameters, dropout and the seeds of masks.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.
        RuntimeError: the device or the backend cannot be used here.

    Examples:
        >>> import numpy as np, rnnkit
        >>> rnn = rnnkit.RNN(4, 6, rng=0)
        >>> y, h_n = rnn(np.ones((5, 3, 4), np.float32))
        >>> y.shape, h_n.shape
        ((5, 3, 6), (1, 3, 6))
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
        *,
        clip: float | None = None,
        activations: Any = None,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        mask_per_gate: bool = False,
        weight_dropout: float = 0.0,
        zoneout: float = 0.0,
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
        strict: bool = False,
        rng: Any = None,
    ) -> None:
        self.nonlinearity = checks.one_of("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(
            f"rnn_{nonlinearity}",
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            mask_per_gate=mask_per_gate,
            weight_dropout=weight_dropout,
            zoneout=zoneout,
            dtype=dtype,
            device=device,
            backend=backend,
            clip=clip,
            activations=activations,
            strict=strict,
            rng=rng,
        )


class GRU(Recurrent):
    """Gated recurrent unit; equivalent of torch.nn.GRU.

    r = sigmoid(x W_ir^T + b_ir + h' W_hr^T + b_hr) and z likewise; h = (1 - z) n + z h', where h' is the previous
    state. With reset_after=True, n = tanh(x W_in^T + b_in + r (h' W_hn^T + b_hn)), as in PyTorch and cuDNN.
    With reset_after=False, n = tanh(x W_in^T + b_in + (r h') W_hn^T + b_hn), as in Cho et al. (2014), "Learning Phrase
    Representations using RNN Encoder-Decoder"; Keras and ONNX offer both.
    Parameters are those of RNN with 3*H rows; the gate order is r, z, n.

    Args:
        input_size: number of features of x at each step, I.
        hidden_size: number of features of the state, H.
        num_layers: number of stacked layers, L.
        bias: whether the layer has `bias_ih` and `bias_hh`.
        batch_first: whether x and y have shape (B, T, ·) instead of (T, B, ·). States keep their shape.
        dropout: share of the outputs that is zeroed between stacked layers in training mode, in [0, 1].
        bidirectional: whether each layer also runs over the reversed sequence; y concatenates both directions.
        reset_after: whether the reset gate is applied after the recurrent product.
        clip: limits the pre-activations of the gates to [-clip, clip], as in ONNX; None for no limit.
        activations: ONNX's activations of the gates r, z and of n, each a name or a tuple (name, alpha, beta), as
            ("HardSigmoid", ("Elu", 0.5)). docs/cell-options.md lists them. None for ("Sigmoid", "Tanh").
        input_dropout: share of the features of x that each layer drops in training mode, by one mask per row and call
            for all steps (variational dropout). docs/regularisation.md has the equations of this and what follows.
        recurrent_dropout: the same of h, where it is multiplied by W_hh; the h that a layer carries is not masked.
        mask_per_gate: whether each gate has a mask on h of its own, instead of one for all.
        weight_dropout: share of the elements of W_hh that a call drops in training mode (DropConnect).
        zoneout: share of the units of h that keep their value in a step, in training mode; in evaluation mode h is
            zoneout * (old h) + (1 - zoneout) * (new h).
        layer_norm: kind of layer normalisation: "haste" (both sides apart) or "dreamer" (the sum of both sides; other
            gates, without `reset_after`). docs/normalised-cells.md has the equations. Gains are rows of
            `weight_layer_norm_l{k}`; biases are added after them. Not with other options. None for none.
        norm_eps: what layer normalisation adds to variances; None for 1e-5, with "dreamer" 1e-3.
        dtype: dtype of parameters and arrays, see `RNN`.
        device: "cpu", "cuda" or "cuda:<index>"; None for the CPU.
        backend: see `RNN`.
        strict: whether to raise an error where no backend with compiled kernels serves the layer, instead of running
            the NumPy oracle.
        rng: a numpy Generator, a seed or None, for the initial parameters, dropout and the seeds of masks.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.
        RuntimeError: the device or the backend cannot be used here.

    Examples:
        >>> import numpy as np, rnnkit
        >>> gru = rnnkit.GRU(4, 6, bidirectional=True, rng=0)
        >>> y, h_n = gru(np.ones((5, 3, 4), np.float32))
        >>> y.shape, h_n.shape
        ((5, 3, 12), (2, 3, 6))
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
        *,
        reset_after: bool = True,
        clip: float | None = None,
        activations: Any = None,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        mask_per_gate: bool = False,
        weight_dropout: float = 0.0,
        zoneout: float = 0.0,
        layer_norm: str | None = None,
        norm_eps: float | None = None,
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
        strict: bool = False,
        rng: Any = None,
    ) -> None:
        self.reset_after = checks.flag("reset_after", reset_after)
        if layer_norm is not None and not self.reset_after:
            raise ValueError(f"layer_norm must be None with reset_after=False, got {layer_norm!r}")
        super().__init__(
            "gru" if self.reset_after else "gru_reset_before",
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            mask_per_gate=mask_per_gate,
            weight_dropout=weight_dropout,
            zoneout=zoneout,
            dtype=dtype,
            device=device,
            backend=backend,
            clip=clip,
            activations=activations,
            layer_norm=layer_norm,
            norm_eps=norm_eps,
            strict=strict,
            rng=rng,
        )


class LSTM(Recurrent):
    """Long short-term memory; equivalent of torch.nn.LSTM. The state is a pair (h, c).

    i, f, o = sigmoid(x W_i·^T + b_i· + h' W_h·^T + b_h·), g = tanh of the same form, c = f c' + i g, h = o tanh(c),
    where h' and c' are the previous state (Hochreiter and Schmidhuber, 1997; forget gate of Gers et al., 2000). With
    proj_size > 0, h = (o tanh(c)) W_hr^T (Sak et al., 2014).
    Parameters are those of RNN with 4*H rows, and `weight_hr_l{k}` (P, H) with a projection; the gate order is i, f, g,
    o.

    Args:
        input_size: number of features of x at each step, I.
        hidden_size: number of features of the cell state, H.
        num_layers: number of stacked layers, L.
        bias: whether the layer has `bias_ih` and `bias_hh`.
        batch_first: whether x and y have shape (B, T, ·) instead of (T, B, ·). States keep their shape.
        dropout: share of the outputs that is zeroed between stacked layers in training mode, in [0, 1].
        bidirectional: whether each layer also runs over the reversed sequence; y concatenates both directions.
        proj_size: number of features P < H that h is projected to; 0 for no projection.
        peephole: whether i and f also read c', and o reads c, through `weight_peephole_l{k}` (Gers and Schmidhuber,
            2000; ONNX's P).
        clip: limits the pre-activations of the gates to [-clip, clip], as in ONNX; None for no limit.
        cell_clip: limits c to [-cell_clip, cell_clip], as cuDNN and TensorFlow do; None for no limit.
        coupled: whether f = 1 - i, as ONNX's input_forget. The weights of f are then without effect.
        activations: ONNX's activations of the gates i, f, o, of g, and of c in h, each a name or a tuple
            (name, alpha, beta), as ("HardSigmoid", "Tanh", ("Elu", 0.5)). docs/cell-options.md lists them. None for
            ("Sigmoid", "Tanh", "Tanh").
        input_dropout: share of the features of x that each layer drops in training mode, by one mask per row and call
            for all steps (variational dropout). docs/regularisation.md has the equations of this and what follows.
        recurrent_dropout: the same of h, where it is multiplied by W_hh; the h that a layer carries is not masked.
        mask_per_gate: whether each gate has a mask on h of its own, instead of one for all.
        weight_dropout: share of the elements of W_hh that a call drops in training mode (DropConnect).
        zoneout: share of the units of h that keep their value in a step, in training mode; in evaluation mode h is
            zoneout * (old h) + (1 - zoneout) * (new h). Or a pair of shares, of h and of c.
        zoneout_output: "raw" or "zoned": whether the new h is made from c before its zoneout or after it.
        layer_norm: kind of layer normalisation: "haste" carries c itself to the next step, "torch" the normalised one,
            as PyTorch's fastrnns and TensorFlow Addons do. docs/normalised-cells.md has the equations. Gains, and the
            shift of c, are rows of `weight_layer_norm_l{k}`; biases are added after the gains. Not with other options
            or a projection. None for none.
        norm_eps: what layer normalisation adds to variances; None for 1e-5.
        dtype: dtype of parameters and arrays, see `RNN`. With 16-bit dtypes, c is float32 within a call.
        device: "cpu", "cuda" or "cuda:<index>"; None for the CPU.
        backend: see `RNN`.
        strict: whether to raise an error where no backend with compiled kernels serves the layer, instead of running
            the NumPy oracle.
        rng: a numpy Generator, a seed or None, for the initial parameters, dropout and the seeds of masks.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.
        RuntimeError: the device or the backend cannot be used here.

    Examples:
        >>> import numpy as np, rnnkit
        >>> lstm = rnnkit.LSTM(4, 6, batch_first=True, proj_size=2, rng=0)
        >>> y, (h_n, c_n) = lstm(np.ones((3, 5, 4), np.float32), lengths=[5, 2, 4])
        >>> y.shape, h_n.shape, c_n.shape
        ((3, 5, 2), (1, 3, 2), (1, 3, 6))
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
        proj_size: int = 0,
        *,
        peephole: bool = False,
        clip: float | None = None,
        cell_clip: float | None = None,
        coupled: bool = False,
        activations: Any = None,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        mask_per_gate: bool = False,
        weight_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        zoneout_output: str = "raw",
        layer_norm: str | None = None,
        norm_eps: float | None = None,
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
        strict: bool = False,
        rng: Any = None,
    ) -> None:
        super().__init__(
            "lstm",
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            mask_per_gate=mask_per_gate,
            weight_dropout=weight_dropout,
            zoneout=zoneout,
            zoneout_output=zoneout_output,
            dtype=dtype,
            device=device,
            backend=backend,
            peephole=peephole,
            clip=clip,
            cell_clip=cell_clip,
            coupled=coupled,
            activations=activations,
            layer_norm=layer_norm,
            norm_eps=norm_eps,
            strict=strict,
            rng=rng,
        )
