"""Layers on layers, directions side by side: the pure form of a whole RNN, GRU or LSTM.

Time-major and unchecked: the layers have validated and transposed. States are stacked as in PyTorch, layer by layer and
within a layer forward before reverse. Dropout acts on the outputs of every layer but the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends import Choice, Forward, LayerCache, LayerCall, Sizes, random_masks
from rnnkit.core.cells import Array, Cell, State, Weights
from rnnkit.core.devices import array_module, device_of, to_device
from rnnkit.core.mixed_precision import compute_dtype
from rnnkit.core.regularisation import Noise
from rnnkit.functional.reserve import Reserve, layer_bytes, saved_of

Directions = tuple[LayerCache, ...]  # of one layer: forward, and reverse where it is bidirectional


class Saved(NamedTuple):
    """What `backward` needs: what the backend saved of each layer's directions, the dropout masks, y's shape and the
    call's noise."""

    cell: Cell
    choice: Choice
    directions: list[tuple[Any, ...]]
    masks: list[Array]
    shape: tuple[int, int, int]
    constants: tuple[float, ...] = ()
    noise: Noise | None = None


class StackCall(NamedTuple):
    """A forward of a whole stack.

    x        (T, B, I), C-contiguous
    state0   one array (L*D, B, ·) a state
    lengths  as in LayerCall
    dropout  dropout(layer, y) gives the mask that y of this layer is multiplied by; None for no dropout
    keep     whether to save what `backward` needs
    reserve  where all of that goes, beside the arguments, for `restored` to find it; None to allocate
    constants
             as in LayerCall
    noise    the random masks of zoneout, recurrent and weight dropout, or None
    """

    cell: Cell
    choice: Choice
    x: Array
    state0: State
    layers: list[Directions]
    lengths: np.ndarray | None = None
    dropout: Callable[[int, Array], Array] | None = None
    keep: bool = True
    reserve: Reserve | None = None
    constants: tuple[float, ...] = ()
    noise: Noise | None = None

    def layer_call(self, layer: int, direction: int, x: Array, y: Array | None) -> LayerCall:
        """The call of one layer and direction; y: the memory for both directions' outputs, or None."""
        caches = self.layers[layer]
        cache = caches[direction]
        noise = self.noise
        if noise is not None:
            noise = noise._replace(layer=layer, direction=direction)
            cache = random_masks.masked_weights(noise, cache)
            x = random_masks.masked(x, random_masks.input_mask(noise, x))
        slot = layer * len(caches) + direction
        start = tuple([s[slot] for s in self.state0])
        R = cache.weights.w_hh.shape[1]
        out = None if y is None else y[:, :, direction * R : (direction + 1) * R]
        memory = None
        if self.reserve is not None:
            last = slot == len(self.layers) * len(caches) - 1
            memory = self.reserve.rest() if last else self.reserve.take(self._saved_bytes(cache.weights, x))
        dtype, lengths = self.choice.dtype, self.lengths
        how = (lengths, direction == 1, self.keep, out, cache, memory, self.constants, noise)
        return LayerCall(self.cell, dtype, x, start, cache.weights, *how)

    def _saved_bytes(self, weights: Weights, x: Array) -> int:
        T, B, I = x.shape
        GH, R = weights.w_hh.shape
        sizes = Sizes(T, B, I, GH // self.cell.n_gates, R, T * B)
        return layer_bytes(self.choice, self.cell, sizes, self.lengths is not None)

    def run(self, layer: int, x: Array, y: Array | None) -> list[Forward]:
        """The forward of a layer's directions, each with its outputs in its part of y where that is not None."""
        backend = self.choice.backend
        calls = [self.layer_call(layer, direction, x, y) for direction in range(len(self.layers[layer]))]
        both = getattr(backend, "forward_directions", None) if len(calls) > 1 else None
        # Not zip, which would hold the first direction's own y, already copied to `out`, while the second one runs.
        forwards = iter(both(calls)) if both else map(backend.forward, calls)
        results = []
        for call in calls:
            found, end, saved = next(forwards)
            out = call.out
            if out is not None and found is not out:
                out[...] = found
                found = out
            results.append((found, end, saved))
        return results

    def as_it_runs(self, measures: bool = False) -> StackCall:
        """The call with the backend that runs such a stack: see `for_stack`.

        measures: whether a backend may first run the call, to find the fastest way.
        """
        alone = len(self.layers) == 1 or len(self.layers[0]) > 1 or self.noise is not None
        if alone or not hasattr(self.choice.backend, "for_stack"):
            return self
        drops = self.dropout is not None
        sizes = self._sizes
        run = self.run_once if measures else None
        choice = for_stack(self.choice, self.cell, sizes, len(self.layers), self.keep, drops, self.x.device.id, run)
        return self if choice is self.choice else self._replace(choice=choice)

    def run_once(self, backend: Any) -> None:
        """The passes of the call by another backend, for their time: without dropout, and no gradients are added."""
        from rnnkit.functional.stack_backward import backward  # which imports this file

        layers = [tuple([LayerCache(cache.weights, None) for cache in of_layer]) for of_layer in self.layers]
        choice = self.choice._replace(backend=backend)
        y, state_n, saved = forward(self._replace(choice=choice, layers=layers, dropout=None, reserve=None))
        if saved is not None:
            backward(saved, y, state_n, layers)

    @property
    def _sizes(self) -> Sizes:
        """Of the first layer."""
        T, B, I = self.x.shape
        GH, R = self.layers[0][0].weights.w_hh.shape
        steps = T * B if self.lengths is None else int(self.lengths.sum())
        return Sizes(T, B, I, GH // self.cell.n_gates, R, steps)

    def at_once(self) -> int:
        """How many consecutive layers the backend runs at once: see `rnnkit.backends.Backend`.

        One where there is noise, whose masks on x act between layers.
        """
        layers = len(self.layers)
        alone = layers == 1 or len(self.layers[0]) > 1 or self.noise is not None
        if alone or not hasattr(self.choice.backend, "layers_at_once"):
            return 1
        drops = self.dropout is not None
        return layers_at_once(self.choice, self.cell, self._sizes, layers, self.keep, drops, self.x.device.id)

    def run_at_once(self, first: int, end: int, x: Array) -> tuple[list[Forward], list[Array]]:
        """The forwards of the layers [first, end) in one direction, and the dropout masks between them."""
        xp: Any = array_module(x)
        calls = []
        masks: list[Array | None] = []
        for layer in range(first, end):
            y = self.memory_for_y(layer, x)
            if y is None:
                y = xp.empty((*x.shape[:2], self.layers[layer][0].weights.w_hh.shape[1]), x.dtype)
            drops = self.dropout is not None and layer > first
            masks.append(self.dropout(layer - 1, x) if drops else None)  # type: ignore[misc]
            calls.append(self.layer_call(layer, 0, x, y))
            x = y
        forwards = self.choice.backend.forward_layers(calls, masks)  # type: ignore[attr-defined]
        return forwards, [mask for mask in masks if mask is not None]

    def memory_for_y(self, layer: int, x: Array) -> Array | None:
        """(T, B, D*R) for the outputs of a layer, or None where its backend may allocate them."""
        caches = self.layers[layer]
        shape = (*x.shape[:2], len(caches) * caches[0].weights.w_hh.shape[1])
        if self.reserve is not None and layer < len(self.layers) - 1:
            return self.reserve.take_array(shape, x.dtype)
        if len(caches) == 1:
            return None
        xp: Any = array_module(self.state0[0])
        return xp.empty(shape, x.dtype)


def _saved(call: StackCall, own: list[tuple[Any, ...]], masks: list[Array], shape: tuple[int, int, int]) -> Saved:
    return Saved(call.cell, call.choice, own, masks, shape, call.constants, call.noise)


def forward(call: StackCall) -> tuple[Array, State, Saved | None]:
    """y (T, B, D*R), state_n as state0, and what `backward` needs, or None without `keep`."""
    call = call.as_it_runs(measures=True)
    layers, x, keep = call.layers, call.x, call.keep
    directions = len(layers[0])
    if directions == len(layers) == 1:
        y, end, own = call.choice.backend.forward(call.layer_call(0, 0, x, None))
        state_n = tuple([s[None] for s in end])
        return y, state_n, _saved(call, [(own,)], [], y.shape) if keep else None
    xp: Any = array_module(call.state0[0])
    state_n = tuple(xp.empty_like(s) for s in call.state0)
    saved: list[tuple[Any, ...]] = []
    masks: list[Array] = []
    at_once = call.at_once()
    layer = 0
    while layer < len(layers):
        group = min(at_once, len(layers) - layer)
        if group > 1:
            results, between = call.run_at_once(layer, layer + group, x)
            x = results[-1][0]
            of_layers = [(own,) for _, _, own in results]
            masks += between if keep else []
        else:
            beside = call.memory_for_y(layer, x)
            results = call.run(layer, x, beside)
            x = results[0][0] if beside is None else beside
            of_layers = [tuple([own for _, _, own in results])]
        for slot, (_, end, _) in enumerate(results, layer * directions):
            for whole, part in zip(state_n, end, strict=True):
                whole[slot] = part
        del results
        saved += of_layers
        layer += group
        if call.dropout is not None and layer < len(layers):
            mask = call.dropout(layer - 1, x)
            x *= mask
            if keep:
                masks.append(mask)
            del mask  # frees its memory before the next layer's call
    return x, state_n, _saved(call, saved, masks, x.shape) if keep else None


def for_stack(
    choice: Choice,
    cell: Cell,
    sizes: Sizes,
    layers: int,
    keep: bool,
    drops: bool,
    device: int | None = None,
    run: Callable[[Any], None] | None = None,
) -> Choice:
    """The choice with the backend that runs a stack in one direction: see `rnnkit.backends.Backend`.

    sizes: of the first layer. drops: as in `layers_at_once`.
    """
    asked: Any = getattr(choice.backend, "for_stack", None)
    if asked is None or (drops and not keep):
        return choice
    found = asked(cell, choice.dtype, sizes, layers, keep, device=device, run=run)
    return choice if found is None else choice._replace(backend=found)


def layers_at_once(
    choice: Choice, cell: Cell, sizes: Sizes, layers: int, keep: bool, drops: bool, device: int | None = None
) -> int:
    """How many consecutive layers in one direction run at once: as few groups as there can be, of like sizes.

    drops: whether there is dropout between layers. Without `keep` only one mask exists at a time, so one layer runs.
    """
    asked: Any = getattr(choice.backend, "layers_at_once", None)
    if asked is None or (drops and not keep):
        return 1
    groups = -(-layers // asked(cell, choice.dtype, sizes, layers, keep, device=device))
    return -(-layers // groups)


def restored(call: StackCall, masks: list[Array]) -> Saved:
    """What the forward of `call` saved, from its reserve, which must be at its beginning. masks: those of dropout."""
    assert call.reserve is not None
    call = call.as_it_runs()
    x = call.x
    directions = len(call.layers[0])
    saved = []
    for layer in range(len(call.layers)):
        beside = call.memory_for_y(layer, x) if layer < len(call.layers) - 1 else None
        of_layer = []
        for direction in range(directions):
            of_layer.append(saved_of(call.choice, call.layer_call(layer, direction, x, None)))
        saved.append(tuple(of_layer))
        x = x if beside is None else beside
    T, B, _ = x.shape
    width = directions * call.layers[-1][0].weights.w_hh.shape[1]
    return _saved(call, saved, masks, (T, B, width))


def dropout_mask(x: Array, p: float, rng: np.random.Generator) -> Array:
    """0 with probability p, else 1 / (1 - p), of x's shape and the dtype x is computed in.

    Drawn on the host: the same on every device, and in every dtype. 16 bits would not hold 1 / (1 - p).
    """
    keep = rng.random(x.shape, dtype=np.float32) >= p
    mask = keep.astype(compute_dtype(x.dtype))
    if p < 1:
        mask /= mask.dtype.type(1 - p)
    return to_device(mask, device_of(x))
