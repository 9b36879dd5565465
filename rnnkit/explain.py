"""explain(layer, x): what a call would run, why, and what memory it takes. Nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rnnkit.backends import Sizes
from rnnkit.core import checks
from rnnkit.core.thread_pool import get_num_threads, thread_count_reason
from rnnkit.nn.module import Array, Module, grad_enabled
from rnnkit.nn.rnn import Recurrent
from rnnkit.nn.rnn_cells import StepCell


@dataclass(frozen=True)
class Explanation:
    """What will run and why. Bytes are of one call; print it for a table.

    workspace_bytes  the most that is allocated at one time beyond what the call returns; of the compiled CPU path's,
                     scratch memory and (under no_grad) packed weights stay for later calls, in bounds: see
                     rnnkit/backends/numba/memory.py
    kept_bytes       the part of it that stays until `backward` has run or the next call is made; 0 under no_grad()
    threads          how many the CPU kernels use at most, and threads_why what that follows from; None elsewhere
    """

    layer: str
    backend: str
    kernel: str
    device: str
    dtype: str
    threads: int | None
    workspace_bytes: int
    kept_bytes: int
    why: str
    threads_why: str | None = None

    def __str__(self) -> str:
        shared = "" if self.threads is None else f", up to {self.threads} threads ({self.threads_why})"
        rows = [
            ("layer", self.layer),
            ("backend", self.backend),
            ("kernel", self.kernel),
            ("device", self.device + shared),
            ("dtype", self.dtype),
            ("workspace", f"{self.workspace_bytes:,} bytes, of which {self.kept_bytes:,} kept for backward"),
            ("why", self.why),
        ]
        return "\n".join(f"{name:10}{value}" for name, value in rows)


def layer_drops(layer: Module) -> bool:
    """Whether a call of the layer would drop outputs between its layers."""
    return layer.training and getattr(layer, "dropout", 0.0) > 0


def explain(layer: Module, x: Array, lengths: Any = None) -> Explanation:
    """What `layer(x, lengths=lengths)` would run here. x is checked as by the call itself; its values are not read.

    layer: an RNN, GRU, LSTM or one of their Cells. Raises TypeError for another module, and what the call would raise.
    """
    if isinstance(layer, Recurrent):
        x, unbatched = layer._time_major("x", x, layer.input_size)
        T, B = x.shape[:2]
        checked = checks.lengths(lengths, T, B, unbatched)
        layers, directions, P = layer.num_layers, layer.num_directions, layer.proj_size
    elif isinstance(layer, StepCell):
        x = layer._checked_x(x)
        if lengths is not None:
            raise TypeError("lengths must be None for a Cell, which takes one step")
        checked = None
        T, B, layers, directions, P = 1, (1 if x.ndim == 1 else x.shape[0]), 1, 1, 0
    else:
        raise TypeError(f"layer must be an RNN, GRU, LSTM or one of their Cells, got {type(layer).__name__}")
    choice, keep = layer._choice(), grad_enabled()
    steps = T * B if checked is None else int(checked.sum())
    H, R, size = layer.hidden_size, P or layer.hidden_size, layer.dtype.itemsize
    described = [
        choice.backend.describe(layer.cell, choice.dtype, Sizes(T, B, I, H, R, steps), keep)
        for I in (layer.input_size, directions * R)[: min(layers, 2)]
    ]
    kernel, resident = described[0].kernel, max(d.resident for d in described)
    transient = max(d.transient - d.resident for d in described)
    y = T * B * R * size
    states = 2 * layers * directions * B * (R + (H if len(layer.cell.states) == 2 else 0)) * size
    held = directions * (described[0].kept + (layers - 1) * described[-1].kept)
    own = directions * (described[0].own + (layers - 1) * described[-1].own)
    # One layer's y is the next one's x. Two directions stand in one array, some by way of one of their own.
    between = ((layers - 1) if keep else min(layers - 1, 1)) * directions * y
    running = transient + (0 if directions == 1 or described[0].placed else y)
    if layer_drops(layer) and layers > 1:
        # A mask for every output but the last layer's, drawn from float32 numbers by way of bools; y is not there yet.
        numbers, item = directions * T * B * R, choice.dtype.compute.itemsize
        held += (layers - 1) * numbers * item if keep else 0
        running = max(running, numbers * (max(4, item) + 1) - directions * y)
    copied_x = 0 if x.flags.c_contiguous else x.nbytes
    why = choice.why
    compiled = choice.row.name == "numba"
    if own:
        why += "; weights stay packed, " + (
            "frozen" if layer.frozen else "and each call sees whether they have changed"
        )
    return Explanation(
        layer=repr(layer),
        backend=choice.row.name,
        kernel=kernel,
        device=layer.device,
        dtype=choice.dtype.name,
        threads=get_num_threads() if compiled else None,
        workspace_bytes=resident + own + running + held + between + states + copied_x,
        kept_bytes=(held + between + copied_x) if keep else 0,
        why=why,
        threads_why=thread_count_reason() if compiled else None,
    )
