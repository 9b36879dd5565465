"""summary: a table of a model's layers, with output shapes and two parameter counts.

rnnkit and PyTorch have two biases per gate. Keras has one in SimpleRNN, in LSTM and in GRU with reset_after=False, and
two in GRU with reset_after=True. The second count follows Keras, for comparison with figures published for Keras.
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
from rnnkit.nn.step_cell import StepCell

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Row:
    """One layer of a summary.

    Attributes:
        name: name of the layer in the model, such as "0.layer".
        layer: its class and main arguments.
        output_shape: shape of its output, with None for an open size; None if unknown (a pair, or a user's own Module).
        parameters: number of parameters.
        keras_parameters: number of parameters by Keras' count.

    Examples:
        >>> import rnnkit
        >>> rnnkit.summary(rnnkit.Linear(3, 2), (None, 3)).rows[0].output_shape
        (None, 2)
    """

    name: str
    layer: str
    output_shape: Shape | None
    parameters: int
    keras_parameters: int


@dataclass(frozen=True)
class Summary:
    """The layers of a model and their totals. Print it for a table.

    Attributes:
        rows: one Row per layer.

    Examples:
        >>> import rnnkit
        >>> print(rnnkit.summary(rnnkit.Sequential(rnnkit.GRU(4, 6), rnnkit.Linear(6, 1)), (None, 3, 4)))
           layer   output shape  parameters  Keras parameters
        -----------------------------------------------------
        0  GRU     (None, 3, 6)         216               216
        1  Linear  (None, 3, 1)           7                 7
        -----------------------------------------------------
           total                        223               223
    """

    rows: tuple[Row, ...]

    @property
    def total(self) -> int:
        """Number of parameters, with two biases per gate."""
        return sum(row.parameters for row in self.rows)

    @property
    def total_keras(self) -> int:
        """Number of parameters by Keras' count."""
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
    """Summarises a model without running it.

    Args:
        model: a Module.
        input_shape: shape of x in a call, including the batch, with None for an open size: (None, T, I) for batch_first
            layers, (T, None, I) for others, (T, I) for an unbatched x, (None, T) for indices.

    Returns:
        A `Summary`; print it for a table.

    Raises:
        TypeError: `model` is not a Module, or `input_shape` is not a tuple of integers and None.
        ValueError: the shape does not fit a layer, which the message names.

    Examples:
        >>> import rnnkit
        >>> rnnkit.summary(rnnkit.LSTM(4, 6, batch_first=True), (None, 10, 4)).total
        288
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a Module, got {type(model).__name__}")
    rows: list[Row] = []
    _collect(model, "", _checked_shape(input_shape), rows)
    return Summary(tuple(rows))


@singledispatch
def output_shape(module: Module, shape: Shape) -> Shape | None:
    """The output shape of a module for an input shape.

    It is a `functools.singledispatch` function: register your own Modules.

    Args:
        module: a Module.
        shape: shape of its input, with None for an open size.

    Returns:
        The shape of its output, or None if unknown.

    Examples:
        >>> import rnnkit
        >>> from rnnkit.summary import output_shape
        >>> class Double(rnnkit.Module):
        ...     pass
        >>> @output_shape.register
        ... def _(module: Double, shape: tuple) -> tuple:
        ...     return shape
        >>> output_shape(Double(), (None, 3))
        (None, 3)
    """
    return None


@output_shape.register
def _(module: Embedding, shape: Shape) -> Shape:
    return (*shape, module.embedding_dim)


@output_shape.register
def _(module: Linear, shape: Shape) -> Shape:
    return (*_checked_width(module, shape, module.in_features)[:-1], module.out_features)


@output_shape.register
def _(module: Activation, shape: Shape) -> Shape:
    return shape


@output_shape.register
def _(module: Recurrent, shape: Shape) -> Shape:
    return (*_checked_sequence(module, shape, module.input_size)[:-1], module.output_size)


@output_shape.register
def _(module: StepCell, shape: Shape) -> Shape:
    return (*_checked_width(module, shape, module.input_size)[:-1], module.hidden_size)


@output_shape.register
def _(module: Bidirectional, shape: Shape) -> Shape | None:
    y = (*_checked_sequence(module, shape, module.forward_layer.input_size)[:-1], module.output_size)
    return None if module.merge is None else y


@output_shape.register
def _(module: LastState, shape: Shape) -> Shape | None:
    y = output_shape(module.layer, shape)
    time = 1 if module.layer.batch_first and len(shape) == 3 else 0
    return None if y is None else (*y[:time], *y[time + 1 :])


def keras_parameters(module: Module) -> int:
    """Number of parameters by Keras' count: one bias per gate, two for GRU with reset_after=True.

    A projected LSTM, which Keras lacks, is counted with one bias too.
    """
    return _own_keras_parameters(module) + sum(map(keras_parameters, module.children().values()))


def _own_keras_parameters(module: Module) -> int:
    """Number of the module's own parameters by Keras' count, without its children's."""
    one_bias = isinstance(module, (Recurrent, StepCell)) and not getattr(module, "reset_after", False)
    own = module._params.items()
    return sum(math.prod(p.shape) for name, p in own if not (one_bias and name.startswith("bias_hh")))


def _collect(module: Module, name: str, shape: Shape | None, rows: list[Row]) -> Shape | None:
    """Appends a row for each layer that a user would name, and returns the shape of the output."""
    if isinstance(module, Sequential):
        for position, child in module.children().items():
            shape = _collect(child, f"{name}.{position}".lstrip("."), shape, rows)
        return shape
    out = None if shape is None else output_shape(module, shape)
    one_row = isinstance(module, (Bidirectional, LastState)) or not module.children()
    if one_row:
        rows.append(Row(name, _title(module), out, _parameters(module), keras_parameters(module)))
        return out
    if module._params:  # a user's Module with parameters of its own and children
        own = sum(math.prod(p.shape) for p in module._params.values())
        rows.append(Row(name, _title(module), out, own, _own_keras_parameters(module)))
    for child_name, child in module.children().items():
        _collect(child, f"{name}.{child_name}".lstrip("."), None, rows)
    return out


def _parameters(module: Module) -> int:
    return sum(math.prod(p.shape) for p in module.params.values())


def _title(module: Module) -> str:
    """The layer's class, the class of the layer that it wraps, and its kind."""
    if isinstance(module, LastState):
        return f"LastState({_title(module.layer)})"
    if isinstance(module, Bidirectional):
        return f"Bidirectional({_title(module.forward_layer)}, {module.merge!r})"
    return f"Activation({module.kind!r})" if isinstance(module, Activation) else type(module).__name__


def _checked_shape(shape: Any) -> Shape:
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"input_shape must be a tuple of sizes and None, got {shape!r}")
    for size in shape:
        is_integer = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
        if size is not None and not (is_integer and size >= 0):
            raise TypeError(f"input_shape must hold whole numbers of at least 0 or None, got {size!r} in {shape!r}")
    return tuple(None if size is None else int(size) for size in shape)


def _checked_width(module: Module, shape: Shape, width: int) -> Shape:
    if not shape or shape[-1] not in (None, width):
        raise ValueError(f"input_shape does not fit: {_title(module)} takes (..., {width}), got {_shape_text(shape)}")
    return shape


def _checked_sequence(module: Module, shape: Shape, width: int) -> Shape:
    if len(shape) not in (2, 3):
        raise ValueError(f"input_shape does not fit: {_title(module)} takes 2 or 3 axes, got {_shape_text(shape)}")
    return _checked_width(module, shape, width)


def _shape_text(shape: Shape | None) -> str:
    return "?" if shape is None else f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
