"""The backward of a stack: layer by layer from the last one, or groups of layers at once where the backend offers that.

Time-major and unchecked, as `rnnkit.functional.stack`, whose forward it follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rnnkit.backends import BackwardCall, Gradients, random_masks
from rnnkit.core.cells import Array, State, Weights
from rnnkit.core.devices import array_module
from rnnkit.core.mixed_precision import narrow
from rnnkit.core.regularisation import Noise
from rnnkit.functional.stack import Directions, Saved


def backward(
    saved: Saved,
    dy: Array | None,
    dstate_n: State,
    layers: list[Directions],
    wants_dx: bool = True,
    wants_dweights: bool = True,
) -> tuple[Array | None, State, list[tuple[Weights, ...]]]:
    """dy (T, B, D*R) or None, dstate_n as state_n -> dx, dstate0, and the weights' gradients per direction.

    Gradients that the backend has added to those of the layers are None, and so are those that are not wanted. dx of
    the layers above the first one is dy of the layer below, and always computed.
    """
    if len(layers) == len(layers[0]) == 1:
        only = _backward_calls(saved, 0, dy, dstate_n, layers, wants_dx, wants_dweights)
        ((dx, dstart, dweights),) = _run_backward(saved, 0, only)
        return dx, tuple([d[None] for d in dstart]), [(dweights,)]
    dstate0: list[list[Array]] = [[] for _ in dstate_n]
    grads: list[tuple[Weights, ...]] = []
    at_once = _backward_at_once(saved)
    layer = len(layers)  # the last one whose gradients are known
    while layer > 0:
        group = min(at_once, layer)
        numbers = range(layer - 1, layer - 1 - group, -1)
        calls = [
            _backward_calls(saved, number, dy, dstate_n, layers, wants_dx or number > 0, wants_dweights)
            for number in numbers
        ]
        if group > 1:
            found: Any = _run_backward_at_once(saved, layer, calls)
        else:
            found = [_run_backward(saved, layer - 1, calls[0])]
        layer -= group
        for results in found:
            dx, layer_grads, layer_dstate0 = None, [], []
            for dx_part, dstart, dw in results:
                dx = dx_part if dx is None else dx + dx_part
                layer_grads.append(dw)
                layer_dstate0.append(dstart)
            for k, stacked in enumerate(dstate0):
                stacked[:0] = [d[k] for d in layer_dstate0]
            grads.insert(0, tuple(layer_grads))
        del found, calls  # with dx of the layers above
        dy = dx
        if saved.masks and layer > 0:
            dy = narrow(dx * saved.masks[layer - 1], dx.dtype)  # type: ignore[union-attr]
    xp: Any = array_module(dstate0[0][0])
    return dy, tuple(xp.stack(d) for d in dstate0), grads


def _backward_at_once(saved: Saved) -> int:
    """How many consecutive layers the backend runs at once in backward: see `rnnkit.backends.Backend`.

    One where there is noise, whose masks on x act between layers.
    """
    asked: Any = getattr(saved.choice.backend, "backward_layers_at_once", None)
    if asked is None or len(saved.directions) == 1 or len(saved.directions[0]) > 1 or saved.noise is not None:
        return 1
    return asked([own for (own,) in saved.directions])


def _backward_calls(
    saved: Saved,
    layer: int,
    dy: Array | None,
    dstate_n: State,
    layers: list[Directions],
    wants_dx: bool,
    wants_dweights: bool,
) -> list[BackwardCall]:
    """The calls of a layer's directions."""
    calls = []
    for direction, cache in enumerate(layers[layer]):
        if saved.noise is not None:
            cache = random_masks.masked_weights(saved.noise._replace(layer=layer, direction=direction), cache)
        slot = layer * len(layers[layer]) + direction
        R = cache.weights.w_hh.shape[1]
        dy_part = None if dy is None else dy[:, :, direction * R : (direction + 1) * R]
        ends = tuple(d[slot] for d in dstate_n)
        own = saved.directions[layer][direction]
        given = (own, dy_part, ends, cache.weights, cache, saved.constants, wants_dx, wants_dweights)
        calls.append(BackwardCall(saved.cell, saved.choice.dtype, *given))
    return calls


def _run_backward(saved: Saved, layer: int, calls: list[BackwardCall]) -> Iterable[Gradients]:
    """The gradients of a layer's directions."""
    backend = saved.choice.backend
    both = getattr(backend, "backward_directions", None) if len(calls) > 1 else None
    results = both(calls) if both else map(backend.backward, calls)
    return results if saved.noise is None else _unmasked(results, saved.noise._replace(layer=layer))


def _run_backward_at_once(saved: Saved, end: int, calls: list[list[BackwardCall]]) -> list[list[Gradients]]:
    """The gradients of the layers before `end` in one direction, the last layer first. Only its call has its dy."""
    first = [of_layer[0] for of_layer in calls]
    given = [first[0], *(call._replace(dy=None) for call in first[1:])]
    masks = [saved.masks[layer - 1] if saved.masks else None for layer in range(end - 1, end - len(calls), -1)]
    results = saved.choice.backend.backward_layers(given, [*masks, None])  # type: ignore[attr-defined]
    return [[found] for found in results]


def _unmasked(results: Iterable[Gradients], noise: Noise) -> Iterator[Gradients]:
    """The gradients of a layer's directions, of x and W_hh before they were masked."""
    for direction, found in enumerate(results):
        yield random_masks.unmasked(noise._replace(direction=direction), found)
