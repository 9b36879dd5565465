"""RNN, GRU and LSTM: torch.nn's layers, by their names, shapes, defaults and semantics. NumPy or CuPy arrays.

What the three share is in `rnnkit.nn.rnn_base`.
"""

from __future__ import annotations

from typing import Any

from rnnkit.core import checks
from rnnkit.nn.rnn_base import PARTS, Recurrent, uniform_parameters

__all__ = ["GRU", "LSTM", "PARTS", "RNN", "Recurrent", "uniform_parameters"]


class RNN(Recurrent):
    """Elman RNN: h = act(x W_ih^T + b_ih + h' W_hh^T + b_hh), act tanh or relu. As torch.nn.RNN.

    dtype: a row of `rnnkit.core.dtypes.DTYPES`: "float64", "float32", "tf32" (float32 whose products a card may round
    to TF32), "float16" or "bfloat16" (sums and cell state in float32); every array given must hold it. device: "cpu" or
    "cuda[:index]". backend: None for the first that serves, a name in `rnnkit.backends.BACKENDS`, or "cupy:<schedule>"
    for one schedule of the CuPy backend. rng: a numpy Generator or a seed, for the initial parameters, U(-1/sqrt(H),
    1/sqrt(H)), and for dropout between layers. Raises TypeError or ValueError naming a bad argument, RuntimeError for a
    device or backend that cannot be used here.
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
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
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
            dtype=dtype,
            device=device,
            backend=backend,
            rng=rng,
        )


class GRU(Recurrent):
    """Gated recurrent unit; h = (1 - z) n + z h'. As torch.nn.GRU.

    reset_after=True: n = tanh(x_n + r (h' W_hn^T + b_hn)), PyTorch's and cuDNN's form.
    reset_after=False: n = tanh(x_n + (r h') W_hn^T + b_hn), as in Cho et al. (2014); Keras' and ONNX's other form.
    The other arguments and errors are RNN's.
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
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
        rng: Any = None,
    ) -> None:
        self.reset_after = checks.flag("reset_after", reset_after)
        super().__init__(
            "gru" if self.reset_after else "gru_reset_before",
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
            rng=rng,
        )


class LSTM(Recurrent):
    """Long short-term memory; c = f c' + i g, h = o tanh(c), and h W_hr^T under projection. As torch.nn.LSTM.

    proj_size: P < hidden_size projects h to P features (Sak et al. 2014); 0 does not. The state is a pair (h, c).
    The other arguments and errors are RNN's.
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
        dtype: Any = "float32",
        device: Any = None,
        backend: str | None = None,
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
            dtype=dtype,
            device=device,
            backend=backend,
            rng=rng,
        )
