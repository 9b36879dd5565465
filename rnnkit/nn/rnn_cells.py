"""RNNCell, GRUCell and LSTMCell, with the names, shapes, defaults and semantics of torch.nn's cells: one time step.

SLSTMCell, which torch.nn does not have, is in `rnnkit.nn.slstm`. The code that all share is in `rnnkit.nn.step_cell`.
"""

from __future__ import annotations

from typing import Any

from rnnkit.core import checks
from rnnkit.nn.step_cell import StepCell

__all__ = ["GRUCell", "LSTMCell", "RNNCell", "StepCell"]


class RNNCell(StepCell):
    """One step of an Elman RNN; equivalent of torch.nn.RNNCell. The formula is that of `rnnkit.RNN`.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of the state, H.
        bias: whether the cell has `bias_ih` and `bias_hh`.
        nonlinearity: "tanh" or "relu".
        clip: limits the pre-activations of the gates to [-clip, clip], as in ONNX; None for no limit.
        activations: ONNX's activation in place of `nonlinearity`, see `rnnkit.RNN`; None for `nonlinearity`.
        zoneout: share of the units of h that keep their value in a step, see `rnnkit.RNN`. In training mode each call
            draws which.
        dtype: dtype of parameters and arrays, see `rnnkit.RNN`.
        device: "cpu", "cuda" or "cuda:<index>"; None for the CPU.
        backend: see `rnnkit.RNN`.
        strict: whether to raise an error where no backend with compiled kernels serves the cell, instead of running
            the NumPy oracle.
        rng: a numpy Generator, a seed or None, for the initial parameters and what zoneout draws.
        **unknown: others are refused. `input_dropout`, `recurrent_dropout`, `mask_per_gate` and `weight_dropout` are
            of layers alone: their masks are one for all steps of a sequence.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.
        RuntimeError: the device or the backend cannot be used here.

    Examples:
        >>> import numpy as np, rnnkit
        >>> cell = rnnkit.RNNCell(4, 6, rng=0)
        >>> cell(np.ones((3, 4), np.float32)).shape
        (3, 6)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        clip: float | None = None,
        activations: Any = None,
        zoneout: float = 0.0,
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
        strict: bool = False,
        rng: Any = None,
        **unknown: Any,
    ) -> None:
        self.nonlinearity = checks.one_of("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(
            f"rnn_{nonlinearity}",
            input_size=input_size,
            hidden_size=hidden_size,
            bias=bias,
            zoneout=zoneout,
            dtype=dtype,
            device=device,
            backend=backend,
            strict=strict,
            rng=rng,
            unknown=unknown,
            clip=clip,
            activations=activations,
        )


class GRUCell(StepCell):
    """One step of a GRU; equivalent of torch.nn.GRUCell. The formulas are those of `rnnkit.GRU`.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of the state, H.
        bias: whether the cell has `bias_ih` and `bias_hh`.
        reset_after: whether the reset gate is applied after the recurrent product, see `rnnkit.GRU`.
        clip: limits the pre-activations of the gates to [-clip, clip], as in ONNX; None for no limit.
        activations: ONNX's activations of the gates r, z and of n, see `rnnkit.GRU`; None for ("Sigmoid", "Tanh").
        zoneout: share of the units of h that keep their value in a step, see `rnnkit.GRU`. In training mode each call
            draws which.
        layer_norm: kind of layer normalisation, "haste" or "dreamer", see `rnnkit.GRU`; None for none.
        norm_eps: what layer normalisation adds to variances; None for 1e-5, with "dreamer" 1e-3.
        dtype: dtype of parameters and arrays, see `rnnkit.RNN`.
        device: "cpu", "cuda" or "cuda:<index>"; None for the CPU.
        backend: see `rnnkit.RNN`.
        strict: whether to raise an error where no backend with compiled kernels serves the cell, instead of running
            the NumPy oracle.
        rng: a numpy Generator, a seed or None, for the initial parameters and what zoneout draws.
        **unknown: others are refused. `input_dropout`, `recurrent_dropout`, `mask_per_gate` and `weight_dropout` are
            of layers alone: their masks are one for all steps of a sequence.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.
        RuntimeError: the device or the backend cannot be used here.

    Examples:
        >>> import numpy as np, rnnkit
        >>> cell = rnnkit.GRUCell(4, 6, reset_after=False, rng=0)
        >>> cell(np.ones(4, np.float32)).shape
        (6,)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        clip: float | None = None,
        activations: Any = None,
        zoneout: float = 0.0,
        layer_norm: str | None = None,
        norm_eps: float | None = None,
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
        strict: bool = False,
        rng: Any = None,
        **unknown: Any,
    ) -> None:
        self.reset_after = checks.flag("reset_after", reset_after)
        if layer_norm is not None and not self.reset_after:
            raise ValueError(f"layer_norm must be None with reset_after=False, got {layer_norm!r}")
        super().__init__(
            "gru" if self.reset_after else "gru_reset_before",
            input_size=input_size,
            hidden_size=hidden_size,
            bias=bias,
            zoneout=zoneout,
            dtype=dtype,
            device=device,
            backend=backend,
            strict=strict,
            rng=rng,
            unknown=unknown,
            clip=clip,
            activations=activations,
            layer_norm=layer_norm,
            norm_eps=norm_eps,
        )


class LSTMCell(StepCell):
    """One step of an LSTM, with the state (h, c); equivalent of torch.nn.LSTMCell. The formulas are `rnnkit.LSTM`'s.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of each state, H.
        bias: whether the cell has `bias_ih` and `bias_hh`.
        peephole: whether i and f also read c', and o reads c, through `weight_peephole` (Gers and Schmidhuber, 2000;
            ONNX's P).
        clip: limits the pre-activations of the gates to [-clip, clip], as in ONNX; None for no limit.
        cell_clip: limits c to [-cell_clip, cell_clip], as cuDNN and TensorFlow do; None for no limit.
        coupled: whether f = 1 - i, as ONNX's input_forget. The weights of f are then without effect.
        activations: ONNX's activations of the gates i, f, o, of g, and of c in h, see `rnnkit.LSTM`; None for
            ("Sigmoid", "Tanh", "Tanh").
        zoneout: share of the units of h that keep their value in a step, or a pair of shares, of h and of c, see
            `rnnkit.LSTM`. In training mode each call draws which.
        zoneout_output: "raw" or "zoned": whether the new h is made from c before its zoneout or after it.
        layer_norm: kind of layer normalisation, "haste" or "torch", see `rnnkit.LSTM`; None for none.
        norm_eps: what layer normalisation adds to variances; None for 1e-5.
        dtype: dtype of parameters and arrays, see `rnnkit.RNN`.
        device: "cpu", "cuda" or "cuda:<index>"; None for the CPU.
        backend: see `rnnkit.RNN`.
        strict: whether to raise an error where no backend with compiled kernels serves the cell, instead of running
            the NumPy oracle.
        rng: a numpy Generator, a seed or None, for the initial parameters and what zoneout draws.
        **unknown: others are refused. `input_dropout`, `recurrent_dropout`, `mask_per_gate` and `weight_dropout` are
            of layers alone: their masks are one for all steps of a sequence.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.
        RuntimeError: the device or the backend cannot be used here.

    Examples:
        >>> import numpy as np, rnnkit
        >>> cell = rnnkit.LSTMCell(4, 6, rng=0)
        >>> state = None
        >>> for x_t in np.ones((5, 3, 4), np.float32):
        ...     state = cell(x_t, state)
        >>> state[0].shape
        (3, 6)
        >>> rnnkit.LSTMCell(4, 6, peephole=True, rng=0).params["weight_peephole"].shape
        (3, 6)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
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
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
        strict: bool = False,
        rng: Any = None,
        **unknown: Any,
    ) -> None:
        super().__init__(
            "lstm",
            input_size=input_size,
            hidden_size=hidden_size,
            bias=bias,
            zoneout=zoneout,
            zoneout_output=zoneout_output,
            dtype=dtype,
            device=device,
            backend=backend,
            strict=strict,
            rng=rng,
            unknown=unknown,
            peephole=peephole,
            clip=clip,
            cell_clip=cell_clip,
            coupled=coupled,
            activations=activations,
            layer_norm=layer_norm,
            norm_eps=norm_eps,
        )
