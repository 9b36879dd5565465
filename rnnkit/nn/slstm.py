"""SLSTM and SLSTMCell: the scalar xLSTM cell as a layer, and one step of it. NumPy or CuPy arrays."""

from __future__ import annotations

from typing import Any

from rnnkit.nn.rnn_base import Recurrent
from rnnkit.nn.step_cell import StepCell


class SLSTM(Recurrent):
    """sLSTM: an LSTM with exponential gates and a normaliser. The state is a tuple (h, c, n, m).

    With a_· = x W_i·^T + b_i· + h' W_h·^T + b_h· for the gates i, f, z, o, and h', c', n', m' the previous state:
    p = log sigmoid(a_f) + m', m = max(a_i, p), i = exp(a_i - m), f = exp(p - m), c = f c' + i tanh(a_z),
    n = max(f n' + i, 1), h = sigmoid(a_o) c / n (Beck et al., 2024, "xLSTM", in the form of FlashRNN by Poeppel et al.,
    2024). m is a logarithm that keeps exp in range: c and n are divided by e^m.

    n is at least 1 after a step, so n' = 0 marks a unit before its first step. There m = a_i, and f = min(exp(p - m),
    1). A state of zeros, as after a reset, is such a state for all units. docs/slstm.md has the derivatives.

    Parameters are those of LSTM; the gate order is i, f, z, o. There is no projection, and heads of FlashRNN, which are
    blocks on the diagonal of W_hh, are not there.

    Args:
        input_size: number of features of x at each step, I.
        hidden_size: number of features of each state, H.
        num_layers: number of stacked layers, L.
        bias: whether the layer has `bias_ih` and `bias_hh`.
        batch_first: whether x and y have shape (B, T, ·) instead of (T, B, ·). States keep their shape.
        dropout: share of the outputs that is zeroed between stacked layers in training mode, in [0, 1].
        bidirectional: whether each layer also runs over the reversed sequence; y concatenates both directions.
        dtype: dtype of parameters and arrays, see `RNN`. With 16-bit dtypes, c, n and m are float32 within a call.
        device: see `RNN`.
        backend: see `RNN`.
        strict: whether to raise an error where no backend with compiled kernels serves the layer, instead of running
            the NumPy oracle.
        rng: a numpy Generator, a seed or None, for the initial parameters and dropout.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.
        RuntimeError: the device or the backend cannot be used here, or does not serve this layer.

    Examples:
        >>> import numpy as np, rnnkit
        >>> slstm = rnnkit.SLSTM(4, 6, backend="numpy", rng=0)
        >>> y, (h_n, c_n, n_n, m_n) = slstm(np.ones((5, 3, 4), np.float32))
        >>> y.shape, n_n.shape, bool((n_n >= 1).all())
        ((5, 3, 6), (1, 3, 6), True)
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
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
        strict: bool = False,
        rng: Any = None,
    ) -> None:
        super().__init__(
            "slstm",
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            dtype=dtype,
            device=device,
            backend=backend,
            strict=strict,
            rng=rng,
        )


class SLSTMCell(StepCell):
    """One step of an sLSTM, with the state (h, c, n, m). The formulas are those of `rnnkit.SLSTM`.

    A state of None, or of zeros, is that before the first step. Parameters are those of `SLSTM` without the suffix.

    Args:
        input_size: number of features of x, I.
        hidden_size: number of features of each state, H.
        bias: whether the cell has `bias_ih` and `bias_hh`.
        dtype: dtype of parameters and arrays, see `RNN`. States of 16 bits are rounded after each step.
        device: "cpu", "cuda" or "cuda:<index>"; None for the CPU.
        backend: see `RNN`.
        strict: whether to raise an error where no backend with compiled kernels serves the cell, instead of running
            the NumPy oracle.
        rng: a numpy Generator, a seed or None, for the initial parameters.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.
        RuntimeError: the device or the backend cannot be used here, or does not serve this cell.

    Examples:
        >>> import numpy as np, rnnkit
        >>> cell = rnnkit.SLSTMCell(4, 6, backend="numpy", rng=0)
        >>> state = None
        >>> for x_t in np.ones((5, 3, 4), np.float32):
        ...     state = cell(x_t, state)
        >>> h, c, n, m = state
        >>> h.shape, bool((n >= 1).all())
        ((3, 6), True)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
        strict: bool = False,
        rng: Any = None,
    ) -> None:
        super().__init__(
            "slstm",
            input_size=input_size,
            hidden_size=hidden_size,
            bias=bias,
            zoneout=0.0,
            dtype=dtype,
            device=device,
            backend=backend,
            strict=strict,
            rng=rng,
            unknown={},
        )
