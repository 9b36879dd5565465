"""The pointwise part of each cell, per target: it computes the new state of a step from the pre-activations.

One row per cell and target. The facts about a cell (its gates, its states, what it saves) are in
`rnnkit.core.cells.CELLS`, and are not repeated here.

    POINTWISE[cell](jit, act)   the Python source, which Numba compiles for the CPU and for CUDA: `jit` compiles a
                                function, `act` holds the target's activations. A namespace with forward and backward,
                                whose c_prev and dc are tuples of all states beside h where there are several; or for a
                                GRU that resets before the stages of `gru.make_reset_before`
    OPTIONED[cell](jit, act, cell)
                                the same of a cell with options
    HEADERS[cell]               the CUDA C++ header with `struct Cell`, and the macros that it is compiled with
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from rnnkit.core.cells import Cell
from rnnkit.kernels.cells import gru, lstm, normalised, rnn, slstm, with_options

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
    "slstm": slstm.make,
}

OPTIONED = with_options.MAKE

HEADERS: dict[str, Header] = {
    "rnn_tanh": Header("cells/rnn.cuh"),
    "rnn_relu": Header("cells/rnn.cuh", (("RK_RNN_RELU", "1"),)),
    "gru": Header("cells/gru.cuh"),
    "gru_reset_before": Header("cells/gru_reset_before.cuh"),
    "lstm": Header("cells/lstm.cuh"),
    "slstm": Header("cells/slstm.cuh"),
}


def pointwise_of(cell: Cell, jit: Any, act: Any) -> SimpleNamespace:
    """The pointwise functions of a cell with its options, with the arguments of `with_options.py` in every cell.

    prepared(k): the constants of a call as the functions take them. Cells that normalise have the functions of
    `normalised.py` instead.
    """
    if cell.normalises:
        return normalised.make(jit, act, cell)
    if cell.options.changes_formulas:
        return OPTIONED[cell.name](jit, act, cell)
    return _plain(jit, POINTWISE[cell.name](jit, act))


def _plain(jit: Any, made: SimpleNamespace) -> SimpleNamespace:
    """The functions of a plain cell with arguments for what it does not have."""
    found = {"prepared": jit(lambda k: k)}
    if hasattr(made, "forward"):
        forward, backward = made.forward, made.backward
        found["forward"] = jit(lambda x, u, h_prev, c_prev, w, k: forward(x, u, h_prev, c_prev))
        found["backward"] = jit(lambda saved, h_prev, c_prev, dh, dc, w, k: backward(saved, h_prev, c_prev, dh, dc))
        return SimpleNamespace(**found)
    reset = made.reset
    update = made.update
    gates = made.gates
    output = made.output
    output_backward, gates_backward = made.output_backward, made.gates_backward
    found["reset"] = jit(lambda a_r, h_prev, k: reset(a_r, h_prev))
    found["update"] = jit(lambda a_z, k: update(a_z))
    found["gates"] = jit(lambda a_r, a_z, h_prev, k: gates(a_r, a_z, h_prev))
    found["output"] = jit(lambda a_n, z, h_prev, k: output(a_n, z, h_prev))
    found["output_backward"] = jit(lambda z, n, h_prev, dh, k: output_backward(z, n, h_prev, dh))
    found["gates_backward"] = jit(lambda r, z, h_prev, dh, drh, k: gates_backward(r, z, h_prev, dh, drh))
    return SimpleNamespace(**found)
