"""summary: a model's layers in a table, with output shapes and two counts of parameters.

rnnkit and PyTorch give every gate two biases. Keras gives one to SimpleRNN, to LSTM and to GRU with reset before, and
two to GRU with reset after; its count stands beside, for comparing with figures published for Keras.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np

from rnnkit.nn.bidirectional import Bidirectional
from rnnkit.nn.containers import LastState, Sequential
from rnnkit.nn.embedding import Embedding
from rnnkit.nn.linear import Activation, Linear
from rnnkit.nn.module import Module
from rnnkit.nn.rnn_base import Recurrent
from rnnkit.nn.rnn_cells import StepCell

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Row:
    """One layer. output_shape has None for an open size, and is None where not known (a pair, a Module of your own)."""

    name: str
    layer: str
    output_shape: Shape | None
    parameters: int
    keras_parameters: int


@dataclass(frozen=True)
class Summary:
    """The rows of a model, their totals, and the table as text: print it."""

    rows: tuple[Row, ...]

    @property
    def total(self) -> int:
        """Parameters, two biases a gate."""
        return sum(row.parameters for row in self.rows)

    @property
    def total_keras(self) -> int:
        """Parameters as Keras counts them."""
        return sum(row.keras_parameters for row in self.rows)

    def __str__(self) -> str:
        table = [("", "layer", "output shape", "parameters", "Keras parameters")]
        for row in self.rows:
            counts = (f"{row.parameters:,}", f"{row.keras_parameters:,}")
            table.append((row.name, row.layer, _shape_text(row.output_shape), *counts))
        table.append(("", "total", "", f"{self.total:,}", f"{self.total_keras:,}"))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for cells in table:
            texts = [c.ljust(w) for c, w in zip(cells[:3], widths[:3], strict=True)]
            numbers = [c.rjust(w) for c, w in zip(cells[3:], widths[3:], strict=True)]
            lines.append("  ".join(texts + numbers).rstrip())
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    __repr__ = __str__


def summary(model: Module, input_shape: tuple[int | None, ...]) -> Summary:
    """What a model is made of. Nothing is run.

    input_shape: the shape x would have in a call, the batch included where x has one, None for a size left open. So for
    batch_first layers (None, T, I), for others (T, None, I), (T, I) for an unbatched x, (None, T) for indices.
    Raises TypeError for what is no Module or no such shape, ValueError naming the layer that the shape does not fit.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a Module, got {type(model).__name__}")
    rows: list[Row] = []
    _collect(model, "", _checked_shape(input_shape), rows)
    return Summary(tuple(rows))


@singledispatch
def output_shape(module: Module, shape: Shape) -> Shape | None:
    """The shape a module gives for an input of `shape`; None where not known. Register your own Modules' here."""
    return None


@output_shape.register
def _(module: Embedding, shape: Shape) -> Shape:
    return (*shape, module.embedding_dim)


@output_shape.register
def _(module: Linear, shape: Shape) -> Shape:
    return (*_fitting(module, shape, module.in_features)[:-1], module.out_features)


@output_shape.register
def _(module: Activation, shape: Shape) -> Shape:
    return shape


@output_shape.register
def _(module: Recurrent, shape: Shape) -> Shape:
    return (*_sequence(module, shape, module.input_size)[:-1], module.output_size)


@output_shape.register
def _(module: StepCell, shape: Shape) -> Shape:
    return (*_fitting(module, shape, module.input_size)[:-1], module.hidden_size)


@output_shape.register
def _(module: Bidirectional, shape: Shape) -> Shape | None:
    y = (*_sequence(module, shape, module.forward_layer.input_size)[:-1], module.output_size)
    return None if module.merge is None else y


@output_shape.register
def _(module: LastState, shape: Shape) -> Shape | None:
    y = output_shape(module.layer, shape)
    time = 1 if module.layer.batch_first and len(shape) == 3 else 0
    return None if y is None else (*y[:time], *y[time + 1 :])


def keras_parameters(module: Module) -> int:
    """Parameters of a module as Keras counts them: one bias a gate, two for GRU with reset after.

    A projected LSTM, which Keras lacks, is counted with one bias too.
    """
    return _own_keras_parameters(module) + sum(map(keras_parameters, module.children().values()))


def _own_keras_parameters(module: Module) -> int:
    """Without those of its children."""
    one_bias = isinstance(module, (Recurrent, StepCell)) and not getattr(module, "reset_after", False)
    own = module._params.items()
    return sum(math.prod(p.shape) for name, p in own if not (one_bias and name.startswith("bias_hh")))


def _collect(module: Module, name: str, shape: Shape | None, rows: list[Row]) -> Shape | None:
    """Adds the module's rows, one a layer that a user would name, and gives the shape that goes on."""
    if isinstance(module, Sequential):
        for position, child in module.children().items():
            shape = _collect(child, f"{name}.{position}".lstrip("."), shape, rows)
        return shape
    out = None if shape is None else output_shape(module, shape)
    whole = isinstance(module, (Bidirectional, LastState)) or not module.children()
    if whole:
        rows.append(Row(name, _title(module), out, _parameters(module), keras_parameters(module)))
        return out
    if module._params:  # a Module of one's own, with parameters beside its children's
        own = sum(math.prod(p.shape) for p in module._params.values())
        rows.append(Row(name, _title(module), out, own, _own_keras_parameters(module)))
    for child_name, child in module.children().items():
        _collect(child, f"{name}.{child_name}".lstrip("."), None, rows)
    return out


def _parameters(module: Module) -> int:
    return sum(math.prod(p.shape) for p in module.params.values())


def _title(module: Module) -> str:
    """The layer in a few words: its class, what it wraps, and its kind."""
    if isinstance(module, LastState):
        return f"LastState({_title(module.layer)})"
    if isinstance(module, Bidirectional):
        return f"Bidirectional({_title(module.forward_layer)}, {module.merge!r})"
    return f"Activation({module.kind!r})" if isinstance(module, Activation) else type(module).__name__


def _checked_shape(shape: Any) -> Shape:
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"input_shape must be a tuple of sizes and None, got {shape!r}")
    for size in shape:
        whole = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
        if size is not None and not (whole and size >= 0):
            raise TypeError(f"input_shape must hold whole numbers of at least 0 or None, got {size!r} in {shape!r}")
    return tuple(None if size is None else int(size) for size in shape)


def _fitting(module: Module, shape: Shape, width: int) -> Shape:
    if not shape or shape[-1] not in (None, width):
        raise ValueError(f"input_shape does not fit: {_title(module)} takes (..., {width}), got {_shape_text(shape)}")
    return shape


def _sequence(module: Module, shape: Shape, width: int) -> Shape:
    if len(shape) not in (2, 3):
        raise ValueError(f"input_shape does not fit: {_title(module)} takes 2 or 3 axes, got {_shape_text(shape)}")
    return _fitting(module, shape, width)


def _shape_text(shape: Shape | None) -> str:
    return "?" if shape is None else f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
