"""rnnkit's layers for PyTorch: `rnnkit.torch.LSTM` in place of `torch.nn.LSTM`, RNN, GRU, Cells, SLSTM.

It is imported only when asked for, since PyTorch is no requirement of rnnkit.
"""

try:
    import torch as _torch

    # vmap of an operator written in Python ends in an internal error of PyTorch 2.5; 2.4 has no register_vmap.
    if tuple(map(int, _torch.__version__.split(".")[:2])) < (2, 6):
        raise ImportError(f"found {_torch.__version__}")
except ImportError as error:
    raise ImportError(f"rnnkit.torch needs PyTorch 2.6 or later (pip install 'torch>=2.6'): {error}") from error

from rnnkit.torch import flagged as _flagged  # noqa: F401  registers two operators
from rnnkit.torch import flagged_transforms as _flagged_transforms  # noqa: F401  registers their rules
from rnnkit.torch import subclasses as subclasses
from rnnkit.torch import transforms as _transforms  # noqa: F401  registers the operators' rules
from rnnkit.torch.cells import GRUCell, LSTMCell, RNNCell
from rnnkit.torch.explain import explain
from rnnkit.torch.layers import GRU, LSTM, RNN
from rnnkit.torch.replace import replace, restore
from rnnkit.torch.report import Report
from rnnkit.torch.slstm import SLSTM, SLSTMCell
from rnnkit.torch.trajectory import trajectory

__all__ = [
    "GRU",
    "GRUCell",
    "LSTM",
    "LSTMCell",
    "RNN",
    "RNNCell",
    "Report",
    "SLSTM",
    "SLSTMCell",
    "explain",
    "replace",
    "restore",
    "trajectory",
]
