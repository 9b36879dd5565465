"""explain(layer, x): the backend and kernels that a call would run, why, and its memory. Nothing is computed."""

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
    """What a call would run, why, and the memory it needs. Print it for a table. Sizes are in bytes.

    Attributes:
        layer: the layer's repr.
        backend: name of the backend.
        kernel: the kernels or the schedule.
        device: "cpu" or "cuda:<index>".
        dtype: name of the row in DTYPES.
        threads: the largest number of threads of the CPU kernels; None for other backends.
        workspace_bytes: the peak of allocated memory beyond what the call returns. Of it, the compiled CPU backend
            caches its workspace and (under no_grad) packed weights for later calls, within the bounds in
            rnnkit/backends/numba/memory.py.
        kept_bytes: the part of workspace_bytes that is saved for `backward` until it runs or the next call; 0 under
            no_grad().
        why: why this backend was chosen.
        threads_why: what determines `threads`; None for other backends.

    Examples:
        >>> import numpy as np, rnnkit
        >>> layer = rnnkit.LSTM(4, 6, backend="numpy")
        >>> explanation = rnnkit.explain(layer, np.ones((5, 3, 4), np.float32))
        >>> explanation.backend, explanation.dtype, explanation.threads
        ('numpy', 'float32', None)
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
        threads = "" if self.threads is None else f", up to {self.threads} threads ({self.threads_why})"
        rows = [
            ("layer", self.layer),
            ("backend", self.backend),
            ("kernel", self.kernel),
            ("device", self.device + threads),
            ("dtype", self.dtype),
            ("workspace", f"{self.workspace_bytes:,} bytes, of which {self.kept_bytes:,} saved for backward"),
            ("why", self.why),
        ]
        return "\n".join(f"{name:10}{value}" for name, value in rows)


def layer_drops(layer: Module) -> bool:
    """Whether a call of the layer would apply dropout."""
    return layer.training and getattr(layer, "dropout", 0.0) > 0


def explain(layer: Recurrent | StepCell, x: Array, lengths: Any = None) -> Explanation:
    """Describes what `layer(x, lengths=lengths)` would run here, without running it.

    x is checked as in a call; its values are not read.

    Args:
        layer: an RNN, GRU, LSTM, RNNCell, GRUCell or LSTMCell.
        x: the input of the call.
        lengths: number of steps of each row, as in the call; None for a cell.

    Returns:
        An `Explanation`; print it for a table.

    Raises:
        TypeError: `layer` is another module, or an argument has the wrong type or dtype.
        ValueError: an argument has a bad shape, value or device.

    Examples:
        >>> import numpy as np, rnnkit
        >>> layer = rnnkit.GRU(4, 6, backend="numpy")
        >>> rnnkit.explain(layer, np.ones((5, 3, 4), np.float32)).kernel
        'gru in NumPy, one step at a time'
    """
    x, T, B, layers, directions, P, row_steps = _checked_call(layer, x, lengths)
    choice = layer._choice()
    keep = grad_enabled()
    H = layer.hidden_size
    R = P or H
    size = layer.dtype.itemsize
    described = [
        choice.backend.describe(layer.cell, choice.dtype, Sizes(T, B, I, H, R, row_steps), keep)
        for I in (layer.input_size, directions * R)[: min(layers, 2)]
    ]
    kernel = described[0].kernel
    resident = max(d.resident for d in described)
    transient = max(d.transient - d.resident for d in described)
    y = T * B * R * size
    states = 2 * layers * directions * B * (R + (H if len(layer.cell.states) == 2 else 0)) * size
    saved = directions * (described[0].kept + (layers - 1) * described[-1].kept)
    own = directions * (described[0].own + (layers - 1) * described[-1].own)
    # y of each layer is x of the next one. Two directions share one array; some backends first write a separate one.
    between = ((layers - 1) if keep else min(layers - 1, 1)) * directions * y
    running = transient + (0 if directions == 1 or described[0].placed else y)
    if layer_drops(layer) and layers > 1:
        # A mask per layer but the last, from float32 random numbers and an array of bools. y is not allocated then.
        elements = directions * T * B * R
        item = choice.dtype.compute.itemsize
        saved += (layers - 1) * elements * item if keep else 0
        running = max(running, elements * (max(4, item) + 1) - directions * y)
    copied_x = 0 if x.flags.c_contiguous else x.nbytes
    compiled = choice.row.name == "numba"
    return Explanation(
        layer=repr(layer),
        backend=choice.row.name,
        kernel=kernel,
        device=layer.device,
        dtype=choice.dtype.name,
        threads=get_num_threads() if compiled else None,
        workspace_bytes=resident + own + running + saved + between + states + copied_x,
        kept_bytes=(saved + between + copied_x) if keep else 0,
        why=choice.why + (_about_packed_weights(layer) if own else ""),
        threads_why=thread_count_reason() if compiled else None,
    )


def _checked_call(layer: Any, x: Array, lengths: Any) -> tuple[Array, int, int, int, int, int, int]:
    """Checks the arguments of a call. Returns x, T, B, L, D, P (0 for none) and the number of row-steps."""
    if isinstance(layer, Recurrent):
        x, unbatched = layer._time_major("x", x, layer.input_size)
        T, B = x.shape[:2]
        checked = checks.lengths(lengths, T, B, unbatched)
        row_steps = T * B if checked is None else int(checked.sum())
        return x, T, B, layer.num_layers, layer.num_directions, layer.proj_size, row_steps
    if isinstance(layer, StepCell):
        x = layer._checked_x(x)
        if lengths is not None:
            raise TypeError("lengths must be None for a Cell, which takes one step")
        B = 1 if x.ndim == 1 else x.shape[0]
        return x, 1, B, 1, 1, 0, B
    raise TypeError(f"layer must be an RNN, GRU, LSTM or one of their Cells, got {type(layer).__name__}")


def _about_packed_weights(layer: Any) -> str:
    if layer.frozen:
        return "; packed weights are cached, and the parameters are frozen"
    return "; packed weights are cached, and each call checks whether they are stale"
