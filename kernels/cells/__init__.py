"""The pointwise part of each cell, per target: it computes the new state of a step from the pre-activations.

One row per cell and target. The facts about a cell (its gates, its states, what it saves) are in
`rnnkit.core.cells.CELLS`, and are not repeated here.

    POINTWISE[cell](jit, act)   the Python source, which Numba compiles for the CPU and for CUDA: `jit` compiles a
                                function, `act` holds the target's activations. A namespace with forward and backward,
                                or for a GRU that resets before the stages of `gru.make_reset_before`
    HEADERS[cell]               the CUDA C++ header with `struct Cell`, and the macros that it is compiled with
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from rnnkit.kernels.cells import gru, lstm, rnn

Make = Callable[[Any, Any], SimpleNamespace]


class Header(NamedTuple):
    """A file, absolute or relative to the folder kernels, and macros."""

    file: str
    defines: tuple[tuple[str, str], ...] = ()


POINTWISE: dict[str, Make] = {
    "rnn_tanh": lambda jit, act: rnn.make(jit, act, "tanh"),
    "rnn_relu": lambda jit, act: rnn.make(jit, act, "relu"),
    "gru": gru.make,
    "gru_reset_before": gru.make_reset_before,
    "lstm": lstm.make,
}

HEADERS: dict[str, Header] = {
    "rnn_tanh": Header("cells/rnn.cuh"),
    "rnn_relu": Header("cells/rnn.cuh", (("RK_RNN_RELU", "1"),)),
    "gru": Header("cells/gru.cuh"),
    "gru_reset_before": Header("cells/gru_reset_before.cuh"),
    "lstm": Header("cells/lstm.cuh"),
}
