"""explain(layer, x): the backend and kernels that a call would run, why, and its memory. Nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rnnkit.backends import Choice, Sizes
from rnnkit.core import checks
from rnnkit.core.cells import Cell
from rnnkit.core.thread_pool import get_num_threads, thread_count_reason
from rnnkit.functional.chunked import ChunkArguments, Chunked
from rnnkit.functional.segments import Group, Segments
from rnnkit.functional.stack import for_stack, layers_at_once
from rnnkit.functional.step_flags import StepFlags, given_flags
from rnnkit.nn.module import Array, Module, grad_enabled
from rnnkit.nn.rnn import Recurrent
from rnnkit.nn.step_cell import StepCell


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
        rates: the rates of the processor from which the division over threads is estimated, why those, and whether they
            were measured; None for other backends. See docs/install.md.
        notes: what else is to know about the call: of `rnnkit.torch.explain`.

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
    rates: str | None = None
    notes: tuple[str, ...] = ()

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
            *([("rates", self.rates)] if self.rates else []),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{name:10}{value}" for name, value in rows)


def layer_drops(layer: Module) -> bool:
    """Whether a call of the layer would apply dropout."""
    return layer.training and getattr(layer, "dropout", 0.0) > 0


def explain(
    layer: Recurrent | StepCell,
    x: Array,
    lengths: Any = None,
    *,
    resets: Any = None,
    mask: Any = None,
    truncate: int | None = None,
    max_saved_bytes: int | None = None,
    recompute_gates: bool | None = None,
) -> Explanation:
    """Describes what a call of the layer with these arguments would run here, without running it.

    x is checked as in a call; its values are not read.

    Args:
        layer: an RNN, GRU, LSTM, SLSTM, RNNCell, GRUCell, LSTMCell or SLSTMCell.
        x: the input of the call.
        lengths: number of steps of each row, as in the call; None for a cell.
        resets: where the state is reset, as in the call; None for a cell. The notes say how they run.
        mask: which steps are not masked, as in the call; None for a cell.
        truncate: as in the call; None for a cell. The kernel says in which chunks the call runs.
        max_saved_bytes: as in the call; None for a cell.
        recompute_gates: as in the call; None for a cell. On a GPU a note says whether the gates are saved, and why.

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
    chunks = ChunkArguments(truncate, max_saved_bytes, recompute_gates)
    if isinstance(layer, StepCell):
        for name, value in {"lengths": lengths, "resets": resets, "mask": mask, **chunks._asdict()}.items():
            if value is not None:
                raise TypeError(f"{name} must be None for a Cell, which takes one step")
    flags = given_flags(resets, None, mask, False)
    x, sizes, layers, directions, segments = _checked_call(layer, x, lengths, flags, truncate is not None)
    choice = layer._choice()
    cell = layer._cell_now()
    keep = grad_enabled() and not choice.dtype.weights
    choices = None
    choice, gates = chunks.with_gates(choice, cell, sizes, layers, directions, keep, segments)
    if segments is None:
        choice = chunks.applied(choice, cell, sizes, layers, directions, keep)
    else:
        choices = chunks.of_groups(choice, cell, sizes, layers, directions, keep, segments)
    masks = drawing = 0
    if layer_drops(layer) and layers > 1:
        # A mask per layer but the last, from float32 random numbers and an array of bools.
        elements = directions * sizes.T * sizes.B * sizes.R
        item = choice.dtype.compute.itemsize
        masks = (layers - 1) * elements * item if keep or segments is not None else 0
        drawing = elements * (max(4, item) + 1)
    copied_x = 0 if x.flags.c_contiguous else x.nbytes
    call = CallSizes(
        choice,
        cell,
        sizes,
        layers,
        directions,
        keep,
        masks=masks,
        drawing=drawing,
        copies=copied_x,
        copied=copied_x,
        noise=_is_noisy(layer),
    )
    about = (repr(layer), layer.device, _about_packed_weights(layer))
    notes = _about_compression(layer) + (() if gates is None or isinstance(layer, StepCell) else (gates.words,))
    if segments is not None and choices is not None:
        found = _of_segments(call, segments, choices, about)
        return replace(found, notes=found.notes + notes)
    return explanation(call, *about, ((NOTHING_FLAGGED,) if flags is not None else ()) + notes)


NOTHING_FLAGGED = "nothing is reset or masked: the call is the one without resets and mask"


def segments_note(segments: Segments) -> str:
    """How resets and a mask run."""
    if segments.place is None:
        return "resets: at the first step alone, so the rows run as they are, some from the reset state"
    groups = segments.groups
    steps = sum(g.steps * (g.last - g.first) for g in groups)
    calls = "1 call" if len(groups) == 1 else f"{len(groups)} calls"
    longest = ", ".join(str(g.steps) for g in groups)
    return (
        f"resets and mask: {segments.total:,} segments run as rows, in {calls} of {longest} steps for each layer and "
        f"direction; {segments.row_steps:,} of {steps:,} steps are live; x and y are gathered once for all layers"
    )


def _of_segments(
    call: CallSizes, segments: Segments, choices: list[Choice], about: tuple[str, str, str]
) -> Explanation:
    """The Explanation of a call with resets or a mask: of its calls together, with what is gathered for them.

    choices: of each group, chunked where `max_saved_bytes` or `truncate` cuts the call.
    """
    sizes = call.sizes
    item = call.choice.dtype.storage.itemsize
    width = call.directions * sizes.R * item
    first: Any = choices[0].backend
    chunked = isinstance(first, Chunked) and first.chunks.recomputes

    def of_group(group: Group, choice: Choice) -> Explanation:
        T, B = group.steps, group.last - group.first
        N = T * B if group.lengths is None else int(group.lengths.sum())
        gathered = 0 if group.source is None else T * B * sizes.I * item
        masks = call.masks * T * B // max(1, sizes.T * sizes.B) if call.keep and group.source is not None else 0
        own = call._replace(
            choice=choice,
            sizes=sizes._replace(T=T, B=B, N=N),
            masks=masks,
            drawing=0,
            copies=gathered,
            copied=gathered,
        )
        if chunked:  # the steps of one chunk are gathered at a time
            backend: Any = choice.backend
            own = own._replace(copies=gathered // max(1, -(-T // backend.chunks.steps)), copied=0)
        return explanation(own, *about)

    outputs = [g.steps * (g.last - g.first) * width for g in segments.groups]
    calls = [of_group(g, choice) for g, choice in zip(segments.groups, choices, strict=True)]
    found = together(calls, outputs if segments.place is not None else [0])
    states = call.layers * call.directions * segments.total * sum(call.cell.state_widths(sizes.R, sizes.H)) * item
    states = 0 if chunked else states  # the first of those that the chunks save
    tables = 0 if segments.place is None else 8 * (sum(outputs) // max(1, width) + sizes.T * sizes.B)
    more = states + tables + call.copies + call.masks
    return replace(
        found,
        workspace_bytes=max(found.workspace_bytes, call.drawing) + more,
        kept_bytes=found.kept_bytes + (tables if call.keep else 0),
        notes=(segments_note(segments),),
    )


def together(calls: list[Explanation], outputs: list[int]) -> Explanation:
    """The Explanation of calls one after the other, whose outputs of these bytes are gathered at the end."""
    held = peak = 0
    for call, output in zip(calls, outputs, strict=True):
        peak = max(peak, held + call.workspace_bytes + output)
        held += call.kept_bytes + output
    gathered = sum(outputs) if len(outputs) > 1 else 0
    kept = sum(call.kept_bytes for call in calls)
    return replace(calls[0], workspace_bytes=max(peak, held + gathered), kept_bytes=kept)


class CallSizes(NamedTuple):
    """A call of a stack of layers, and what it allocates beside its kernels. In bytes:

    masks     the dropout masks that exist until the call ends, or with `keep` until backward
    drawing   the most that drawing a mask takes
    copies    copies of arguments that exist while the call runs
    copied    those of them that exist until backward, if `keep`
    reserve   the reserve (rnnkit/functional/reserve.py) in which the call saves what backward needs, or None
    noise     whether there are random masks (rnnkit/core/regularisation.py)
    """

    choice: Choice
    cell: Cell
    sizes: Sizes
    layers: int
    directions: int
    keep: bool
    masks: int
    drawing: int
    copies: int
    copied: int
    reserve: int | None = None
    noise: bool = False


def explanation(
    call: CallSizes, layer: str, device: str, packed_weights: str, notes: tuple[str, ...] = ()
) -> Explanation:
    """The `Explanation` of a call. packed_weights: what to say of packed weights that are cached, if there are any."""
    choice, cell, sizes, layers, directions, keep = call[:6]
    stacked = layers > 1 and directions == 1 and not call.noise
    if stacked:
        choice = for_stack(choice, cell, sizes, layers, keep, call.drawing > 0)
        call = call._replace(choice=choice)
    T, B, _, H, R, _ = sizes
    size = choice.dtype.storage.itemsize
    described = [
        choice.backend.describe(cell, choice.dtype, sizes._replace(I=I), keep)
        for I in (sizes.I, directions * R)[: min(layers, 2)]
    ]
    resident = max(d.resident for d in described)
    transient = max(d.transient - d.resident for d in described)
    y = T * B * R * size
    states = 2 * layers * directions * B * sum(cell.state_widths(R, H)) * size
    saved = directions * (described[0].kept + (layers - 1) * described[-1].kept)
    own = directions * (described[0].own + (layers - 1) * described[-1].own)
    # y of each layer is x of the next one. Two directions share one array; some backends first write a separate one.
    at_once = layers_at_once(choice, cell, sizes, layers, keep, call.drawing > 0) if stacked else 1
    between = ((layers - 1) if keep else min(layers - 1, at_once)) * directions * y
    words, more = _at_once(call, at_once) if stacked else (("", ""), 0)
    beside = [of_stack or alone for of_stack, alone in zip(words, described[0].alone, strict=True)]
    transient += more
    running = transient * (directions if described[0].beside else 1)
    running += 0 if directions == 1 or described[0].placed else y
    running = max(running, call.drawing - directions * y)  # y of the layer is not allocated while its mask is drawn
    held = saved + between
    if call.reserve is not None:
        held = call.reserve
        # A backend that does not save in the reserve saves beside it until the call ends.
        running += 0 if hasattr(choice.backend, "reserve_bytes") else saved
    compiled = choice.row.name == "numba"
    return Explanation(
        layer=layer,
        backend=choice.row.name,
        kernel=described[0].kernel + "".join(beside),
        device=device,
        dtype=choice.dtype.name,
        threads=get_num_threads() if compiled else None,
        workspace_bytes=resident + own + running + held + call.masks + states + call.copies,
        kept_bytes=(held + call.masks + call.copied) if keep else 0,
        why=choice.why + (packed_weights if own else ""),
        threads_why=thread_count_reason() if compiled else None,
        rates=described[0].rates,
        notes=notes,
    )


def _at_once(call: CallSizes, layers: int) -> tuple[tuple[str, str], int]:
    """How the backend runs layers of a stack at once, forward and backward, and the bytes beyond those of one layer.

    layers: at once in the forward pass.
    """
    choice, cell, sizes, count, _, keep = call[:6]
    backend: Any = choice.backend
    forward, more = backend.describe_layers(cell, choice.dtype, sizes, layers, keep) if layers > 1 else ("", 0)
    if not keep or not hasattr(backend, "describe_backward_layers"):
        return (forward, ""), more
    backward, more_back = backend.describe_backward_layers(cell, choice.dtype, sizes, count)
    return (forward, backward), max(more, more_back)


def _is_noisy(layer: Any) -> bool:
    """Whether a call of the layer has random masks beside those of dropout between layers."""
    rates = getattr(layer, "regularisation", None)
    return rates is not None and (rates.zones or (layer.training and rates.drops))


def _checked_call(
    layer: Any, x: Array, lengths: Any, flags: StepFlags | None, spans: bool
) -> tuple[Array, Sizes, int, int, Segments | None]:
    """Checks the arguments of a call. Returns x, the sizes of its first layer, L, D and the segments, with `spans`."""
    if isinstance(layer, Recurrent):
        x, unbatched = layer._time_major("x", x, layer.input_size)
        T, B = x.shape[:2]
        checked = checks.lengths(lengths, T, B, unbatched)
        D = layer.num_directions
        segments = None if flags is None else flags.segments(T, B, unbatched, layer.batch_first, D, checked, spans)
        return x, layer._sizes(T, B, checked), layer.num_layers, D, segments
    if isinstance(layer, StepCell):
        x = layer._checked_x(x)
        B = 1 if x.ndim == 1 else x.shape[0]
        return x, Sizes(1, B, layer.input_size, layer.hidden_size, layer.hidden_size, B), 1, 1, None
    hint = "; for a layer of PyTorch there is rnnkit.torch.explain" if hasattr(layer, "named_modules") else ""
    raise TypeError(f"layer must be an RNN, GRU, LSTM, SLSTM or a Cell, got {type(layer).__name__}{hint}")


def _about_compression(layer: Module) -> tuple[str, ...]:
    """A note on compressed weights, if the layer has them."""
    matrices = layer._matrices.values()
    if not matrices:
        return ()
    size = sum(m.rows.nbytes for m in matrices)
    whole = sum(4 * m.shape[0] * m.shape[1] for m in matrices)
    scaled = ", a scale per row" if layer._dtype.weights == "int8" else ""
    return (f"weights: {layer._dtype.weights}{scaled}, for inference; {size:,} bytes, of {whole:,} in float32",)


def _about_packed_weights(layer: Any) -> str:
    if layer.frozen:
        return "; packed weights are cached, and the parameters are frozen"
    return "; packed weights are cached, and each call checks whether they are stale"
