"""rnnkit: fused RNN, GRU, LSTM and sLSTM layers with the API of torch.nn, on NumPy and CuPy arrays."""

from rnnkit.core.autotune import autotune
from rnnkit.core.thread_pool import get_num_threads, set_num_threads
from rnnkit.explain import explain
from rnnkit.io import load, save
from rnnkit.io.checkpoint import Checkpoint
from rnnkit.nn.bidirectional import Bidirectional
from rnnkit.nn.compressed import compress
from rnnkit.nn.containers import LastState, Sequential
from rnnkit.nn.embedding import Embedding
from rnnkit.nn.linear import Activation, Linear
from rnnkit.nn.losses import BCEWithLogitsLoss, CrossEntropyLoss, MSELoss, bce_with_logits, cross_entropy, mse
from rnnkit.nn.module import Module, grad_enabled, no_grad, set_grad_enabled
from rnnkit.nn.rnn import GRU, LSTM, RNN
from rnnkit.nn.rnn_cells import GRUCell, LSTMCell, RNNCell
from rnnkit.nn.slstm import SLSTM, SLSTMCell
from rnnkit.nn.trajectory import trajectory
from rnnkit.optim.clipping import clip_grad_norm, clip_grad_value
from rnnkit.optim.optimizers import SGD, Adagrad, Adam
from rnnkit.summary import summary

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Adagrad",
    "Adam",
    "BCEWithLogitsLoss",
    "Bidirectional",
    "Checkpoint",
    "CrossEntropyLoss",
    "Embedding",
    "GRU",
    "GRUCell",
    "LSTM",
    "LSTMCell",
    "LastState",
    "Linear",
    "MSELoss",
    "Module",
    "RNN",
    "RNNCell",
    "SGD",
    "SLSTM",
    "SLSTMCell",
    "Sequential",
    "autotune",
    "bce_with_logits",
    "clip_grad_norm",
    "clip_grad_value",
    "compress",
    "cross_entropy",
    "explain",
    "grad_enabled",
    "get_num_threads",
    "load",
    "mse",
    "no_grad",
    "save",
    "set_grad_enabled",
    "set_num_threads",
    "summary",
    "trajectory",
]
