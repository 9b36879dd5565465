"""Keras' recurrent weights under rnnkit's names, in rnnkit's layout.

Keras keeps a kernel (I, G*U), a recurrent kernel (U, G*U) and a bias, gates packed along the last axis in the order
i,f,c,o (LSTM) and z,r,h (GRU); rnnkit keeps PyTorch's (G*H, ·), in the order i,f,g,o and r,z,n. Both update the GRU by
h = z h' + (1 - z) n. One bias becomes bias_ih with bias_hh zero; a GRU with reset_after=True has both. Where rnnkit
computes another function than the Keras layer, there is no conversion, and the ValueError says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnkit.core import checks
from rnnkit.core.devices import to_numpy
from rnnkit.nn.module import StateDict


class _Kind(NamedTuple):
    """One Keras layer: its number of gates, where each of rnnkit's gates lies among them, and what it may apply."""

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
    """A rnnkit state dict from `keras_layer.get_weights()`, for `load_state_dict`.

    layer_weights   the list Keras gives: kernel (I, G*U), recurrent kernel (U, G*U), and, unless use_bias=False, the
                    bias; twice as long for Bidirectional, forward before backward
    kind            "SimpleRNN", "LSTM" or "GRU", of the layer inside where it is Bidirectional
    reset_after     GRU only; None reads it off the bias, (2, 3U) or (3U,), and must be said where there is no bias
    bidirectional   names the backward half `..._reverse`, as RNN, GRU and LSTM with bidirectional=True do. For the
                    container `rnnkit.Bidirectional` convert each half alone, under prefix "forward." and "reverse."
    activation, recurrent_activation    the Keras layer's, by name
    layer           index k of the names' `_l{k}`: convert a stack layer by layer and join the results with `|`
    prefix          put before every name, as "0." for the first child of a Sequential

    A conversion keeps dtypes and copies every array. The cell goes into the result's `.layers`, so that a layer of
    another cell refuses it. Raises ValueError with the reason for weights that fit no Keras layer or that rnnkit has no
    layer for.
    """
    bidirectional = checks.flag("bidirectional", bidirectional)
    reset_after = None if reset_after is None else checks.flag("reset_after", reset_after)
    row = _check_kind(kind, activation, recurrent_activation, reset_after)
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)) or layer < 0:
        raise ValueError(f"layer must be a whole number of at least 0, got {layer!r}")
    arrays = _check_count(layer_weights, bidirectional)
    per_direction = len(arrays) // (2 if bidirectional else 1)
    cells: set[str] = set()
    found: dict[str, np.ndarray] = {}
    for direction, suffix in enumerate(("", "_reverse")[: 1 + bidirectional]):
        part = arrays[direction * per_direction : (direction + 1) * per_direction]
        cell, converted = _convert(part, kind, row, reset_after, activation)
        cells.add(cell)
        found |= {f"{prefix}{name}_l{layer}{suffix}": value for name, value in converted.items()}
    if len(cells) > 1:
        raise ValueError("layer_weights must have the same reset_after in both directions, got one of each")
    if found[f"{prefix}weight_ih_l{layer}"].shape != found[f"{prefix}weight_ih_l{layer}{suffix}"].shape:
        raise ValueError("layer_weights must have the same sizes in both directions; rnnkit's directions share them")
    return StateDict(found, {prefix: {"cell": cells.pop()}})


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
        raise ValueError(f"layer_weights must be the list that get_weights() gives, got {kind}")
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
    """Cell and arrays of one direction, under names without the layer's index."""
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


def _reset_after(bias: np.ndarray | None, U: int, said: bool | None) -> bool:
    """Which GRU the weights are of; the two are different functions, so that neither can stand for the other."""
    if bias is None:
        if said is None:
            raise ValueError("reset_after must be True or False for a GRU without bias: its weights do not tell")
        return said
    shows = {(2, 3 * U): True, (3 * U,): False}.get(bias.shape)
    if shows is None:
        raise ValueError(
            f"the bias of a GRU of {U} units must have shape (2, 3*U) = {(2, 3 * U)} with reset_after=True or "
            f"(3*U,) = {(3 * U,)} with reset_after=False, got {bias.shape}"
        )
    if said is not None and said != shows:
        raise ValueError(
            f"reset_after={said} does not fit: a bias of shape {bias.shape} is that of a GRU with reset_after={shows}, "
            "which is another function and has no equal in the other form"
        )
    return shows


def _reorder(value: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """A row-major copy of value (G*U, ...) with its gates in `order`."""
    return np.ascontiguousarray(np.concatenate([np.split(value, len(order))[gate] for gate in order]))
