"""Converts Keras' recurrent weights to rnnkit's names and layout.

Keras stores a kernel (I, G*U), a recurrent kernel (U, G*U) and a bias. The gates are packed along the last axis, in the
order i,f,c,o (LSTM) and z,r,h (GRU). rnnkit stores PyTorch's (G*H, ·), in the order i,f,g,o and r,z,n. Both update the
GRU by h = z h' + (1 - z) n. One bias becomes bias_ih, with bias_hh zero; a GRU with reset_after=True has both. If
rnnkit has no layer that computes the function of the Keras layer, the conversion raises ValueError with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnkit.core import checks
from rnnkit.core.devices import to_numpy
from rnnkit.nn.module import StateDict


class _Kind(NamedTuple):
    """One Keras layer: number of gates, position of each of rnnkit's gates among Keras', supported activations."""

    gates: int
    order: tuple[int, ...]
    activations: tuple[str, ...]


_KINDS = {
    "SimpleRNN": _Kind(1, (0,), ("tanh", "relu")),
    "LSTM": _Kind(4, (0, 1, 2, 3), ("tanh",)),
    "GRU": _Kind(3, (1, 0, 2), ("tanh",)),
}


def from_keras(
    layer_weights: Sequence[Any],
    kind: str,
    *,
    reset_after: bool | None = None,
    bidirectional: bool = False,
    activation: str = "tanh",
    recurrent_activation: str = "sigmoid",
    layer: int = 0,
    prefix: str = "",
) -> StateDict:
    """Converts the weights of a Keras recurrent layer to a state dict for `load_state_dict`.

    The conversion keeps dtypes and copies every array. The result's `layers` records the cell, so that a layer with
    another cell refuses it.

    Args:
        layer_weights: the list that `keras_layer.get_weights()` returns: kernel (I, G*U), recurrent kernel (U, G*U),
            and, unless use_bias=False, the bias. For Bidirectional the list has both directions, forward before
            backward.
        kind: "SimpleRNN", "LSTM" or "GRU"; for Bidirectional the class of the wrapped layer.
        reset_after: the argument of a Keras GRU. None infers it from the shape of the bias, (2, 3*U) or (3*U,); it is
            required for a GRU without bias.
        bidirectional: whether the weights are those of a Bidirectional; the backward half is named `..._reverse`, as in
            RNN, GRU and LSTM with bidirectional=True. For `rnnkit.Bidirectional`, convert each half separately, with
            the prefixes "forward." and "reverse.".
        activation: the argument of the Keras layer.
        recurrent_activation: the argument of the Keras layer.
        layer: index k of the names' suffix `_l{k}`. Convert the layers of a stack one by one and join the results by
            `|`.
        prefix: prefix of every name, such as "0." for the first module of a Sequential.

    Returns:
        A StateDict in PyTorch's names and layout.

    Raises:
        TypeError: a flag is not a bool.
        ValueError: the weights fit no Keras layer, or rnnkit has no layer for them. The message contains the reason.

    Examples:
        >>> import numpy as np, rnnkit, rnnkit.io
        >>> weights = [np.ones((3, 16)), np.ones((4, 16)), np.zeros(16)]  # of keras.layers.LSTM(4) with 3 inputs
        >>> state = rnnkit.io.from_keras(weights, "LSTM")
        >>> state["weight_ih_l0"].shape
        (16, 3)
        >>> rnnkit.LSTM(3, 4).load_state_dict(state)
        LoadedKeys(missing_keys=[], unexpected_keys=[])
    """
    bidirectional = checks.flag("bidirectional", bidirectional)
    reset_after = None if reset_after is None else checks.flag("reset_after", reset_after)
    row = _check_kind(kind, activation, recurrent_activation, reset_after)
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)) or layer < 0:
        raise ValueError(f"layer must be a whole number of at least 0, got {layer!r}")
    arrays = _check_count(layer_weights, bidirectional)
    per_direction = len(arrays) // (2 if bidirectional else 1)
    cells: set[str] = set()
    arrays_by_name: dict[str, np.ndarray] = {}
    for direction, suffix in enumerate(("", "_reverse")[: 1 + bidirectional]):
        part = arrays[direction * per_direction : (direction + 1) * per_direction]
        cell, converted = _convert(part, kind, row, reset_after, activation)
        cells.add(cell)
        arrays_by_name |= {f"{prefix}{name}_l{layer}{suffix}": value for name, value in converted.items()}
    if len(cells) > 1:
        raise ValueError("layer_weights must have the same reset_after in both directions, got one of each")
    if (
        arrays_by_name[f"{prefix}weight_ih_l{layer}"].shape
        != arrays_by_name[f"{prefix}weight_ih_l{layer}{suffix}"].shape
    ):
        raise ValueError("layer_weights must have the same sizes in both directions; rnnkit's directions share them")
    return StateDict(arrays_by_name, {prefix: {"cell": cells.pop()}})


def _check_kind(kind: str, activation: str, recurrent_activation: str, reset_after: bool | None) -> _Kind:
    row = _KINDS[checks.one_of("kind", kind, tuple(_KINDS))]
    if activation not in row.activations:
        raise ValueError(
            f"activation {activation!r} cannot be converted: "
            f"rnnkit computes a {kind} with {' or '.join(row.activations)} alone"
        )
    if kind != "SimpleRNN" and recurrent_activation != "sigmoid":
        raise ValueError(
            f"recurrent_activation {recurrent_activation!r} cannot be converted: "
            f"rnnkit computes the gates of a {kind} with sigmoid alone"
        )
    if kind != "GRU" and reset_after is not None:
        raise ValueError(f"reset_after is an argument of GRU; for {kind} it must be None, got {reset_after!r}")
    return row


def _check_count(layer_weights: Sequence[Any], bidirectional: bool) -> list[np.ndarray]:
    if isinstance(layer_weights, (str, bytes, Mapping, np.ndarray)) or not isinstance(layer_weights, Sequence):
        kind = type(layer_weights).__name__
        raise ValueError(f"layer_weights must be the list that get_weights() returns, got {kind}")
    counts = (4, 6) if bidirectional else (2, 3)
    if len(layer_weights) not in counts:
        raise ValueError(
            f"layer_weights must be {counts[1]} arrays, or {counts[0]} with use_bias=False, for "
            f"bidirectional={bidirectional}, got {len(layer_weights)}"
        )
    arrays = [to_numpy(weights) for weights in layer_weights]
    for k, value in enumerate(arrays):
        if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
            raise ValueError(f"layer_weights[{k}] must hold real numbers, got dtype {value.dtype}")
    return arrays


def _convert(
    arrays: list[np.ndarray], kind: str, row: _Kind, reset_after: bool | None, activation: str
) -> tuple[str, dict[str, np.ndarray]]:
    """The cell and the arrays of one direction, under names without the layer's index."""
    kernel, recurrent, *rest = arrays
    U = recurrent.shape[0] if recurrent.ndim == 2 else 0
    if not U or recurrent.shape != (U, row.gates * U):
        raise ValueError(f"the recurrent kernel of a {kind} must have shape (U, {row.gates}*U), got {recurrent.shape}")
    if kernel.ndim != 2 or kernel.shape[1] != row.gates * U:
        raise ValueError(
            f"the kernel of a {kind} of {U} units must have shape (I, {row.gates}*U) = (I, {row.gates * U}), "
            f"got {kernel.shape}"
        )
    bias = rest[0] if rest else None
    if kind == "GRU":
        reset_after = _reset_after(bias, U, reset_after)
    packed = {"weight_ih": kernel.T, "weight_hh": recurrent.T}
    if bias is not None:
        shape = (2, 3 * U) if reset_after else (row.gates * U,)
        if bias.shape != shape:
            raise ValueError(f"the bias of a {kind} of {U} units must have shape {shape}, got {bias.shape}")
        two = bias if reset_after else (bias, np.zeros_like(bias))
        packed |= {"bias_ih": two[0], "bias_hh": two[1]}
    cells = {"SimpleRNN": f"rnn_{activation}", "LSTM": "lstm", "GRU": "gru" if reset_after else "gru_reset_before"}
    return cells[kind], {name: _reorder(value, row.order) for name, value in packed.items()}


def _reset_after(bias: np.ndarray | None, U: int, argument: bool | None) -> bool:
    """Whether the weights are those of a GRU with reset_after=True; the two variants are different functions."""
    if bias is None:
        if argument is None:
            raise ValueError("reset_after must be True or False for a GRU without bias: only a bias determines it")
        return argument
    inferred = {(2, 3 * U): True, (3 * U,): False}.get(bias.shape)
    if inferred is None:
        raise ValueError(
            f"the bias of a GRU of {U} units must have shape (2, 3*U) = {(2, 3 * U)} with reset_after=True or "
            f"(3*U,) = {(3 * U,)} with reset_after=False, got {bias.shape}"
        )
    if argument is not None and argument != inferred:
        raise ValueError(
            f"reset_after={argument} does not fit: a bias of shape {bias.shape} is that of a GRU with "
            f"reset_after={inferred}, which is another function and cannot be converted"
        )
    return inferred


def _reorder(value: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """A C-contiguous copy of `value` (G*U, ...) with its gates in `order`."""
    return np.ascontiguousarray(np.concatenate([np.split(value, len(order))[gate] for gate in order]))
