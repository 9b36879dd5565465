"""Layers on layers, directions side by side: the pure form of a whole RNN, GRU or LSTM.

Time-major and unchecked: `layers` has validated and transposed. States are stacked as in PyTorch, layer by layer and
within a layer forward before reverse. Dropout acts on the outputs of every layer but the last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends import BackwardCall, Choice, LayerCache, LayerCall
from rnnkit.core.cells import Array, Cell, State, Weights
from rnnkit.core.devices import array_module, device_of, to_device
from rnnkit.core.mixed_precision import compute_dtype, narrow

Directions = tuple[LayerCache, ...]  # of one layer: forward, and reverse where it is bidirectional


class Saved(NamedTuple):
    """What `backward` needs: what the backend saved of each layer's directions, the dropout masks, and y's shape."""

    cell: Cell
    choice: Choice
    directions: list[tuple[Any, ...]]
    masks: list[Array]
    shape: tuple[int, int, int]


def forward(
    cell: Cell,
    choice: Choice,
    x: Array,
    state0: State,
    layers: list[Directions],
    *,
    lengths: np.ndarray | None = None,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
    keep: bool = True,
) -> tuple[Array, State, Saved | None]:
    """x (T, B, I), state0 a tuple of (L*D, B, ·) -> y (T, B, D*R), state_n, saved. No dropout without rng."""
    xp: Any = array_module(x)
    x = xp.ascontiguousarray(x)
    directions = len(layers[0])
    if directions == len(layers) == 1:
        start = tuple([s[0] for s in state0])
        cache = layers[0][0]
        call = LayerCall(cell, choice.dtype, x, start, cache.weights, lengths, False, keep, None, cache)
        y, end, saved = choice.backend.forward(call)
        state_n = tuple([s[None] for s in end])
        return y, state_n, Saved(cell, choice, [(saved,)], [], y.shape) if keep else None
    state_n = tuple(xp.empty_like(s) for s in state0)
    kept: list[tuple[Any, ...]] = []
    masks: list[Array] = []
    for layer, caches in enumerate(layers):
        saveds, R = [], caches[0].weights.w_hh.shape[1]
        beside = xp.empty((*x.shape[:2], directions * R), x.dtype) if directions > 1 else None
        for d, cache in enumerate(caches):
            slot = layer * directions + d
            start = tuple(s[slot] for s in state0)
            out = None if beside is None else beside[:, :, d * R : (d + 1) * R]
            call = LayerCall(cell, choice.dtype, x, start, cache.weights, lengths, d == 1, keep, out, cache)
            y, end, saved = choice.backend.forward(call)
            if out is not None and y is not out:
                out[...] = y
                y = out
            del call  # the next layer's call must not keep this one's x alive
            for whole, part in zip(state_n, end, strict=True):
                whole[slot] = part
            saveds.append(saved)
        x = y if beside is None else beside
        kept.append(tuple(saveds))
        if dropout and rng is not None and layer < len(layers) - 1:
            mask = dropout_mask(x, dropout, rng)
            x *= mask
            if keep:
                masks.append(mask)
            del mask  # frees its memory before the next layer's call
    return x, state_n, Saved(cell, choice, kept, masks, x.shape) if keep else None


def backward(
    saved: Saved,
    dy: Array | None,
    dstate_n: State,
    layers: list[Directions],
) -> tuple[Array, State, list[tuple[Weights, ...]]]:
    """dy (T, B, D*R) or None, dstate_n as state_n -> dx, dstate0, and the weights' gradients per direction.

    Gradients that the backend has added to those of the layers are None.
    """
    choice = saved.choice
    directions = len(layers[0])
    dstate0: list[list[Array]] = [[] for _ in dstate_n]
    grads: list[tuple[Weights, ...]] = []
    for layer in range(len(layers) - 1, -1, -1):
        dx, layer_grads, layer_dstate0 = None, [], []
        for d, cache in enumerate(layers[layer]):
            slot = layer * directions + d
            R = cache.weights.w_hh.shape[1]
            dy_part = None if dy is None else dy[:, :, d * R : (d + 1) * R]
            ends = tuple(end[slot] for end in dstate_n)
            own = saved.directions[layer][d]
            dx_part, dstart, dw = choice.backend.backward(
                BackwardCall(saved.cell, choice.dtype, own, dy_part, ends, cache.weights, cache)
            )
            dx = dx_part if dx is None else dx + dx_part
            layer_grads.append(dw)
            layer_dstate0.append(dstart)
        for k, stacked in enumerate(dstate0):
            stacked[:0] = [d[k] for d in layer_dstate0]
        grads.insert(0, tuple(layer_grads))
        dy = dx
        if saved.masks and layer > 0:
            dy = narrow(dx * saved.masks[layer - 1], dx.dtype)  # type: ignore[union-attr]
    xp: Any = array_module(dy)
    return dy, tuple(xp.stack(d) for d in dstate0), grads


def dropout_mask(x: Array, p: float, rng: np.random.Generator) -> Array:
    """0 with probability p, else 1 / (1 - p), of x's shape and the dtype x is computed in.

    Drawn on the host: the same on every device, and in every dtype. 16 bits would not hold 1 / (1 - p).
    """
    keep = rng.random(x.shape, dtype=np.float32) >= p
    mask = keep.astype(compute_dtype(x.dtype))
    if p < 1:
        mask /= mask.dtype.type(1 - p)
    return to_device(mask, device_of(x))
