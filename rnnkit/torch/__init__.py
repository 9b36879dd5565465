"""rnnkit's layers for PyTorch: `rnnkit.torch.LSTM` in place of `torch.nn.LSTM`, and its siblings.

It is imported only when asked for, since PyTorch is no requirement of rnnkit.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("rnnkit.torch needs PyTorch (pip install torch)") from error

from rnnkit.torch import subclasses as subclasses
from rnnkit.torch import transforms as _transforms  # noqa: F401  registers the operators' rules
from rnnkit.torch.cells import GRUCell, LSTMCell, RNNCell
from rnnkit.torch.explain import explain
from rnnkit.torch.layers import GRU, LSTM, RNN
from rnnkit.torch.replace import replace, restore
from rnnkit.torch.report import Report

__all__ = [
    "GRU",
    "GRUCell",
    "LSTM",
    "LSTMCell",
    "RNN",
    "RNNCell",
    "Report",
    "explain",
    "replace",
    "restore",
]
