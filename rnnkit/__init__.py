"""rnnkit: fused RNN, GRU and LSTM layers that drop in where torch.nn's stood, on NumPy and CuPy arrays."""

from rnnkit.layers import GRU, LSTM, RNN
from rnnkit.module import Module, no_grad

__version__ = "0.1.0"

__all__ = ["GRU", "LSTM", "Module", "RNN", "no_grad"]
