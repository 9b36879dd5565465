"""ONNX: `torch.onnx.export` with rnnkit's layers as ONNX's own LSTM, GRU and RNN nodes, one a layer.

ONNX has both directions of a layer in one node, the gates of LSTM in the order i, o, f, c (here i, f, g, o), and
those of GRU in the order z, r, h (here r, z, n). A runtime then runs its own kernels: it does not need rnnkit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rnnkit.core.cell_options import ROLES, activations_of
from rnnkit.core.cells import Cell
from rnnkit.core.option_arguments import parsed
from rnnkit.torch import operators as _operators  # noqa: F401  defines rnnkit::forward
from rnnkit.torch.arrays import parts_of_each

Value = Any  # a value of the ONNX graph: type checkers run without onnxscript

_INT32 = 6  # onnx.TensorProto.INT32

# cell -> ONNX's operator, its attributes, and which of our gates is at each place of ONNX's order.
NODES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "rnn_tanh": ("RNN", {"activations": ["Tanh"]}, (0,)),
    "rnn_relu": ("RNN", {"activations": ["Relu"]}, (0,)),
    "gru": ("GRU", {"linear_before_reset": 1}, (1, 0, 2)),
    "gru_reset_before": ("GRU", {"linear_before_reset": 0}, (1, 0, 2)),
    "lstm": ("LSTM", {}, (0, 3, 1, 2)),
}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export(dynamo=True)` takes as `custom_translation_table`, for models with rnnkit's layers.

    Put the model into evaluation mode first: a layer with dropout is refused, and so are an SLSTM and a layer with a
    projection, cell_clip or layer_norm, which ONNX does not have. Peepholes, clip, coupled and activations are
    exported.

    Raises:
        ImportError: onnxscript is not installed.

    Examples:
        >>> import torch, rnnkit.torch
        >>> from rnnkit.torch.onnx import translation_table
        >>> model = rnnkit.torch.GRU(4, 6).eval()
        >>> def export(path: str) -> None:
        ...     torch.onnx.export(
        ...         model, (torch.ones(5, 3, 4),), path, dynamo=True, custom_translation_table=translation_table()
        ...     )
    """
    try:
        from onnxscript import opset18
    except ImportError as error:
        raise ImportError("export to ONNX needs onnxscript (pip install onnxscript)") from error

    def forward(
        x: Value,
        state0: Sequence[Value],
        weights: Sequence[Value],
        masks: Sequence[Value],
        lengths: Value | None = None,
        *,
        cell: str,
        backend: str | None = None,
        bidirectional: bool = False,
        keep: bool = False,
        layout: str = "",
        rates: Sequence[float] = (),
    ) -> list[Value]:
        if rates:
            raise ValueError("a layer with zoneout or dropout on x, h or W_hh cannot be exported to ONNX")
        if masks:
            raise ValueError("a layer with dropout cannot be exported to ONNX: call eval() on the model first")
        directions = 2 if bidirectional else 1
        row, _ = parsed(cell)
        if row.name not in NODES:
            raise ValueError(f"a layer of the cell {row.name} cannot be exported to ONNX, which has no node for it")
        if row.normalises:
            raise ValueError("a layer with layer_norm cannot be exported to ONNX, whose nodes do not normalise")
        count = parts_of_each(weights, row)
        if count - bool(row.unit_weights) in (3, 5):
            raise ValueError("an LSTM with proj_size cannot be exported to ONNX, whose LSTM has no projection")
        if row.options.cell_clip:
            raise ValueError("an LSTM with cell_clip cannot be exported to ONNX, whose clip does not act on c")
        layers = len(weights) // (count * directions)
        return _stack(opset18, cell, x, state0, weights, lengths, layers, directions)

    return {torch.ops.rnnkit.forward.default: forward}


def _stack(
    op: Any,
    cell: str,
    x: Value,
    state0: Sequence[Value],
    weights: Sequence[Value],
    lengths: Value | None,
    layers: int,
    directions: int,
) -> list[Value]:
    """y and the final states, as `rnnkit::forward`: one node a layer."""
    count = len(weights) // (layers * directions)
    steps = None if lengths is None else op.Cast(lengths, to=_INT32)
    ends: list[list[Value]] = []
    for layer in range(layers):
        first = layer * directions * count
        parts = [weights[k : k + count] for k in range(first, first + directions * count, count)]
        slots = [op.Constant(value_ints=[n]) for n in (layer * directions, (layer + 1) * directions, 0)]
        start = [op.Slice(s, *slots) if layers > 1 else s for s in state0]
        y, *end = _layer(op, cell, x, start, parts, steps)
        # (T, D, B, H) -> (T, B, D*H): 0 copies a dimension
        x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        ends.append(end)
    return [x, *(of_all[0] if layers == 1 else op.Concat(*of_all, axis=0) for of_all in zip(*ends, strict=True))]


def _layer(
    op: Any, cell: str, x: Value, start: Sequence[Value], parts: Sequence[Sequence[Value]], steps: Value | None
) -> list[Value]:
    """Y (T, D, B, H) and the final states (D, B, H) of one layer. parts: the weights of each direction."""
    row, constants = parsed(cell)
    name, attributes, gates = NODES[row.name]
    directions = len(parts)
    if row.options:
        attributes = {**attributes, **_option_attributes(row, constants)}
    attributes = {key: v * directions if isinstance(v, list) else v for key, v in attributes.items()}
    w = _directions(op, [_in_order(op, p[0], gates) for p in parts])
    r = _directions(op, [_in_order(op, p[1], gates) for p in parts])
    b = None
    peepholes = None
    if row.unit_weights:
        peepholes = _directions(op, [_peepholes(op, p[-1]) for p in parts])
        parts = [p[:-1] for p in parts]
    if len(parts[0]) == 4:
        sides = [op.Concat(_in_order(op, p[2], gates), _in_order(op, p[3], gates), axis=0) for p in parts]
        b = _directions(op, sides)
    node = getattr(op, name)
    direction = "bidirectional" if directions == 2 else "forward"
    hidden_size = int(parts[0][1].shape[1])
    states = list(start)
    if peepholes is not None:
        states = [*(states or (None, None)), peepholes]
    results = node(x, w, r, b, steps, *states, direction=direction, hidden_size=hidden_size, **attributes)
    y, *end = results
    if steps is not None and start:
        # ONNX Runtime's final states of a row of zero steps are zeros.
        zero = op.Cast(op.Constant(value_int=0), to=_INT32)
        live = op.Unsqueeze(op.Greater(steps, zero), op.Constant(value_ints=[1]))  # (B, 1)
        end = [op.Where(live, e, s) for e, s in zip(end, start, strict=True)]
    return [y, *end]


def _option_attributes(cell: Cell, constants: tuple[float, ...]) -> dict[str, Any]:
    """ONNX's attributes for the options of a cell. Lists are of one direction."""
    named = dict(zip(cell.constants, constants, strict=True))
    found: dict[str, Any] = {}
    if cell.options.clip:
        found["clip"] = named["clip"]
    if cell.options.coupled:
        found["input_forget"] = 1
    if cell.options.activations:
        names = activations_of(cell.name, cell.options)
        found["activations"] = list(names)
        for number in ("alpha", "beta"):
            has = [f"{number}_{role}" for role in ROLES if f"{number}_{role}" in named]
            if has:
                found[f"activation_{number}"] = [named[name] for name in has]
    return found


def _peepholes(op: Any, weight: Value) -> Value:
    """(3, H) in the order i, f, o as ONNX's (3*H,) in the order i, o, f."""
    ordered = op.Gather(weight, op.Constant(value_ints=[0, 2, 1]), axis=0)
    return op.Reshape(ordered, op.Constant(value_ints=[-1]))


def _in_order(op: Any, weight: Value, gates: tuple[int, ...]) -> Value:
    """(G*H, ·) with the gates in ONNX's order."""
    if len(gates) == 1:
        return weight
    H = int(weight.shape[0]) // len(gates)
    rows = [gate * H + row for gate in gates for row in range(H)]
    return op.Gather(weight, op.Constant(value_ints=rows), axis=0)


def _directions(op: Any, of_each: Sequence[Value]) -> Value:
    """One array for each direction as one, the direction first."""
    axes = op.Constant(value_ints=[0])
    with_axis = [op.Unsqueeze(a, axes) for a in of_each]
    return with_axis[0] if len(with_axis) == 1 else op.Concat(*with_axis, axis=0)
