"""A stack of layers with resets inside a sequence and an arbitrary mask, as calls of the stack without both.

The segments (rnnkit/functional/segments.py) of x are gathered once, run through all layers, and y is gathered back
once. Forward and backward have the interface of rnnkit/functional/stack.py. No backend knows of resets or masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rnnkit.backends import Choice
from rnnkit.core.cells import Array, State, Weights, each_weight
from rnnkit.core.devices import array_module
from rnnkit.core.mixed_precision import narrow, wide
from rnnkit.core.regularisation import Noise
from rnnkit.functional import stack, stack_backward
from rnnkit.functional.chunked import Chunked
from rnnkit.functional.reserve import Reserve
from rnnkit.functional.segments import Group, Repeats, Segments
from rnnkit.functional.stack import Directions, StackCall


class Saved(NamedTuple):
    """What `backward` needs: the segments, what the stack saved of each group, and y's shape."""

    segments: Segments
    groups: list[stack.Saved]
    shape: tuple[int, int, int]
    from_reset_state: bool


def forward(
    call: StackCall,
    segments: Segments,
    reset_state: State | None,
    choices: Sequence[Choice] | None = None,
    reserves: Sequence[Reserve] | None = None,
) -> tuple[Array, State, Saved | None]:
    """y, state_n and what `backward` needs, as `stack.forward`. reset_state: as state0, or None for zeros.

    choices: that of each group, where `max_saved_bytes` or `truncate` cuts the call in chunks
    (rnnkit/functional/chunked.py); None for that of the call. reserves: as `StackCall.reserve`, one per group.
    """
    T, B, _ = call.x.shape
    on_host = segments
    segments = segments.on(array_module(call.x))
    directions = len(call.layers[0])
    ys, ends, saved = [], [], []
    for of_group in calls(call, segments, on_host, reset_state, choices, reserves):
        y, end, own = stack.forward(of_group)
        ys.append(y)
        ends.append(end)
        saved.append(own)
    y = outputs(ys, segments, T, B)
    state_n = tuple([row_states(_joined(of_all), segments, directions) for of_all in zip(*ends, strict=True)])
    if not call.keep:
        return y, state_n, None
    return y, state_n, Saved(segments, saved, y.shape, reset_state is not None)  # type: ignore[arg-type]


def restored(
    call: StackCall, segments: Segments, reset_state: State | None, reserves: Sequence[Reserve], masks: list[Array]
) -> Saved:
    """What the forward of `call` saved, from the reserves of its groups: see `stack.restored`."""
    T, B, _ = call.x.shape
    on_host = segments
    segments = segments.on(array_module(call.x))
    of_groups = calls(call, segments, on_host, reset_state, None, reserves)
    saved = [
        stack.restored(of_group, [grouped(mask, group) for mask in masks])
        for group, of_group in zip(segments.groups, of_groups, strict=True)
    ]
    width = len(call.layers[0]) * call.layers[-1][0].weights.w_hh.shape[1]
    return Saved(segments, saved, (T, B, width), reset_state is not None)


def calls(
    call: StackCall,
    segments: Segments,
    on_host: Segments,
    reset_state: State | None,
    choices: Sequence[Choice] | None = None,
    reserves: Sequence[Reserve] | None = None,
) -> Iterator[StackCall]:
    """The call of each group, with the arguments of `forward`. segments: on the device of x; on_host: the same."""
    x = call.x
    T, B, _ = x.shape
    directions = len(call.layers[0])
    starts = [
        segment_states(s, None if reset_state is None else reset_state[k], segments, directions)
        for k, s in enumerate(call.state0)
    ]
    dropout = None if call.dropout is None else _Dropout(call.dropout, T, B)
    for k, group in enumerate(segments.groups):
        choice = call.choice if choices is None else choices[k]
        yield call._replace(
            choice=choice,
            x=_steps_of(x, group, choice, call.noise),
            state0=tuple([s[:, group.first : group.last] for s in starts]),
            lengths=group.lengths,
            dropout=None if dropout is None else dropout.of(group),
            reserve=None if reserves is None else reserves[k],
            noise=None if call.noise is None else noise_of(call.noise, on_host, group),
        )


def backward(
    saved: Saved,
    dy: Array | None,
    dstate_n: State,
    layers: list[Directions],
    wants_dx: bool = True,
    wants_dweights: bool = True,
) -> tuple[Array | None, State, State | None, list[tuple[Weights, ...]]]:
    """dx, dstate0, the gradients of the reset state or None if it was zeros, and the weights', as `stack_backward`."""
    segments = saved.segments
    T, B, _ = saved.shape
    directions = len(layers[0])
    dys = [None] * len(segments.groups) if dy is None else output_gradients(dy, segments)
    dends = [row_state_gradients(d, segments, directions) for d in dstate_n]
    dxs, dstarts, grads = [], [], None
    for group, own, dy_group in zip(segments.groups, saved.groups, dys, strict=True):
        ends = tuple([d[:, group.first : group.last] for d in dends])
        dx, dstart, dw = stack_backward.backward(own, dy_group, ends, layers, wants_dx, wants_dweights)
        dxs.append(dx)
        dstarts.append(dstart)
        grads = _wide(dw) if grads is None else _added(grads, dw)
    joined = [_joined(of_all) for of_all in zip(*dstarts, strict=True)]
    dstate0 = tuple([start_gradients(d, segments, directions) for d in joined])
    dreset = None
    if saved.from_reset_state:
        dreset = tuple([reset_gradients(d, segments, directions) for d in joined])
    dx = ungrouped(dxs, segments, T, B) if wants_dx else None
    return dx, dstate0, dreset, _narrow(grads, layers)


def noise_of(noise: Noise, segments: Segments, group: Group) -> Noise:
    """The noise of a group: its masks are those of the caller's rows, so a mask over time goes on across a reset.

    segments: with tables on the host.
    """
    of_group = slice(group.first, group.last)
    return noise._replace(rows=segments.rows[of_group], times=segments.times[of_group])


# Steps


def grouped(a: Array, group: Group) -> Array:
    """(T, B, K) of the caller as (steps, rows, K) of a group, C-contiguous."""
    xp: Any = array_module(a)
    if group.source is None:
        return xp.ascontiguousarray(a)
    flat = a.reshape(a.shape[0] * a.shape[1], a.shape[2])
    return flat.take(group.source, axis=0).reshape(group.steps, group.last - group.first, a.shape[2])


class GatheredSteps:
    """(steps, rows, K) of a group as `grouped`, of which each slice is gathered where it is read.

    So a call in chunks of steps has those of one chunk at a time.
    """

    def __init__(self, a: Array, group: Group) -> None:
        self.flat = a.reshape(a.shape[0] * a.shape[1], a.shape[2])
        self.source: Any = group.source
        self.shape = (group.steps, group.last - group.first, a.shape[2])
        self.dtype = a.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, steps: slice) -> Array:
        T, B, K = self.shape
        first, last, _ = steps.indices(T)
        return self.flat.take(self.source[first * B : last * B], axis=0).reshape(last - first, B, K)


def _steps_of(x: Array, group: Group, choice: Choice, noise: Noise | None) -> Array:
    """x of a group: as an array, or where the group runs in chunks gathered by chunk."""
    masked = noise is not None and noise.seed is not None and noise.rates.input_dropout
    if group.source is None or masked or not isinstance(choice.backend, Chunked):
        return grouped(x, group)
    return GatheredSteps(x, group)


def ungrouped(parts: list[Array], segments: Segments, T: int, B: int) -> Array:
    """The inverse of `grouped` of all groups, zero where no step is live."""
    if segments.place is None:
        return parts[0]
    flat = [a.reshape(a.shape[0] * a.shape[1], a.shape[2]) for a in parts]
    xp: Any = array_module(flat[0])
    joined = flat[0] if len(flat) == 1 else xp.concatenate(flat)
    if not len(joined):
        return xp.zeros((T, B, joined.shape[1]), joined.dtype)
    whole = joined.take(segments.place, axis=0)
    if len(segments.empty):
        whole[segments.empty] = 0
    return whole.reshape(T, B, -1)


def outputs(parts: list[Array], segments: Segments, T: int, B: int) -> Array:
    """y (T, B, D*R) of the caller, from that of each group."""
    y = ungrouped(parts, segments, T, B)
    if segments.repeats is not None:
        for columns, repeats in _columns(y.reshape(T * B, -1), segments.repeats):
            columns[repeats.steps] = columns[repeats.source]
    return y


def output_gradients(dy: Array, segments: Segments) -> list[Array]:
    """The transpose of `outputs`: gradients of repeated outputs are added to those of the outputs that they repeat."""
    if segments.repeats is not None:
        xp: Any = array_module(dy)
        T, B, width = dy.shape
        flat = xp.array(wide(dy), order="C").reshape(T * B, width)
        for columns, repeats in _columns(flat, segments.repeats):
            for to, source in repeats.sums:
                columns[to] += columns[source]
        dy = narrow(flat.reshape(T, B, width), dy.dtype)
    return [grouped(dy, group) for group in segments.groups]


def _columns(flat: Array, of_each: list[Repeats]) -> list[tuple[Array, Repeats]]:
    """(T*B, D*R) as the columns of each direction, with what belongs to it."""
    R = flat.shape[1] // len(of_each)
    return [(flat[:, d * R : (d + 1) * R], value) for d, value in enumerate(of_each)]


# States: (L*D, B, ·) of the caller and (L*D, S, ·) of the segments


def segment_states(state0: Array, reset_state: Array | None, segments: Segments, directions: int) -> Array:
    """The initial states of all segments."""
    xp: Any = array_module(state0)
    slots, _, width = state0.shape
    if reset_state is None:
        states = xp.zeros((slots, segments.total, width), state0.dtype)
    else:
        states = reset_state.take(segments.rows, axis=1)
    for d, ends in enumerate(segments.ends):
        states[d::directions, ends.starts] = state0[d::directions, ends.start_rows]
    return states


def row_states(states: Array, segments: Segments, directions: int) -> Array:
    """The final states of the caller's rows."""
    xp: Any = array_module(states)
    slots, _, width = states.shape
    found = xp.empty((slots, len(segments.ends[0].ends), width), states.dtype)
    for d, ends in enumerate(segments.ends):
        found[d::directions] = states[d::directions, ends.ends]
    return found


def row_state_gradients(dstate_n: Array, segments: Segments, directions: int) -> Array:
    """The transpose of `row_states`."""
    xp: Any = array_module(dstate_n)
    slots, _, width = dstate_n.shape
    found = xp.zeros((slots, segments.total, width), dstate_n.dtype)
    for d, ends in enumerate(segments.ends):
        found[d::directions, ends.ends] = dstate_n[d::directions]
    return found


def start_gradients(dstates: Array, segments: Segments, directions: int) -> Array:
    """The gradient of the initial state: zero for rows that do not start from it."""
    xp: Any = array_module(dstates)
    slots, _, width = dstates.shape
    found = xp.zeros((slots, len(segments.ends[0].ends), width), dstates.dtype)
    for d, ends in enumerate(segments.ends):
        found[d::directions, ends.start_rows] = dstates[d::directions, ends.starts]
    return found


def reset_gradients(dstates: Array, segments: Segments, directions: int) -> Array:
    """The gradient of the reset state: for each row the sum over the segments that start from it."""
    xp: Any = array_module(dstates)
    slots, _, width = dstates.shape
    by_segment = xp.array(wide(dstates))
    found = xp.zeros((slots, len(segments.ends[0].ends), width), by_segment.dtype)
    for d, (pairs, firsts, rows) in enumerate(segments.row_sums):
        part = by_segment[d::directions]
        for to, source in pairs:
            part[:, to] += part[:, source]
        found[d::directions, rows] = part[:, firsts]
    return narrow(found, dstates.dtype)


def _joined(parts: tuple[Array, ...]) -> Array:
    xp: Any = array_module(parts[0])
    return parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=1)


# Dropout and weights


class _Dropout:
    """The dropout masks of a call, drawn for the caller's (T, B): they do not depend on resets or the mask."""

    def __init__(self, draw: Callable[[int, Array], Array], T: int, B: int) -> None:
        self.draw = draw
        self.shape = (T, B)
        self.drawn: dict[int, Array] = {}

    def of(self, group: Group) -> Callable[[int, Array], Array]:
        """`StackCall.dropout` of a group."""

        def mask(layer: int, y: Array) -> Array:
            if layer not in self.drawn:
                xp: Any = array_module(y)
                like = xp.broadcast_to(xp.zeros(1, y.dtype), (*self.shape, y.shape[2]))
                self.drawn[layer] = self.draw(layer, like)
            return grouped(self.drawn[layer], group)

        return mask


Grads = list[tuple[Weights, ...]]


def _each(function: Callable[..., Array], *grads: Grads) -> Grads:
    """The function of all gradients that belong to one weight. None, added to the layer's already, stays None."""
    return [
        tuple([each_weight(function, *of_direction) for of_direction in zip(*of_layer, strict=True)])
        for of_layer in zip(*grads, strict=True)
    ]


def _wide(grads: Grads) -> Grads:
    return _each(wide, grads)


def _added(sums: Grads, grads: Grads) -> Grads:
    return _each(lambda a, b: a + b, sums, grads)


def _narrow(sums: Grads | None, layers: list[Directions]) -> Grads:
    assert sums is not None  # there is at least one group
    return _each(lambda a: narrow(a, layers[0][0].weights.w_hh.dtype), sums)
