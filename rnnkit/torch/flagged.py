"""`rnnkit::forward_flagged` and `rnnkit::backward_flagged`: a stack of layers with resets or a mask, as one node each.

A traced graph has them where a layer is called with flags (rnnkit/torch/segmented.py runs eager calls). Which calls the
kernels make follows from the values of the flags, so it is decided while the operator runs, by
rnnkit/functional/segments.py. The arguments are those of `rnnkit::forward` and

    reset_state    one tensor (L*D, B, ·) a state, or none for zeros; then there may be no state0
    resets, mask   (T, B) bool on the CPU, or None
    zero_output    whether y is zero at masked steps

The size of the reserve must follow from shapes alone: `_reserve_bytes`. rnnkit/torch/flagged_transforms.py has the
derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from rnnkit.backends import Choice, Sizes
from rnnkit.core import checks as core_checks
from rnnkit.core.cells import Array, Cell, State
from rnnkit.core.option_arguments import parsed
from rnnkit.functional import segmented, stack, stack_backward
from rnnkit.functional.reserve import Reserve, stack_bytes
from rnnkit.functional.segments import MOST_PADDED, Segments, segments
from rnnkit.torch import checks
from rnnkit.torch.arrays import Tensor, as_array, as_tensors, new_bytes, on_device, parts_of, state_shapes, weight_views
from rnnkit.torch.dispatch import Wanted
from rnnkit.torch.operators import (
    LIBRARY,
    _end_gradient,
    _floats,
    _noise_of,
    _sizes,
    _stack_call,
    check_layout,
    choice_of,
)
from rnnkit.torch.segmented import _WIDENED, refuse_captured_tables

_FLAGS = "Tensor? resets, Tensor? mask"
_HOW = "str cell, str? backend, bool bidirectional, bool zero_output"
LIBRARY.define(
    "forward_flagged(Tensor x, Tensor[] state0, Tensor[] reset_state, Tensor[] weights, Tensor[] masks, "
    f'Tensor? lengths, {_FLAGS}, *, {_HOW}, bool keep, str layout="", float[] rates=[]) -> Tensor[]'
)
LIBRARY.define(
    "backward_flagged(Tensor? dy, Tensor?[] dstate_n, Tensor x, Tensor[] state0, Tensor[] reset_state, "
    f"Tensor[] weights, Tensor[] masks, Tensor? lengths, {_FLAGS}, Tensor reserve, *, {_HOW}, float[] rates=[], "
    "bool wants_dx=True, bool wants_dweights=True) -> Tensor[]"
)

# Bytes of the reserve per layer and direction beside what MOST_PADDED times the steps take: parts of groups begin at
# lines.
_ROUNDING = 16384


class _Call(NamedTuple):
    """A call as the functional form takes it.

    found     its segments, None if nothing is reset or masked
    stack     the call without reserve
    again     the reset state, or None
    dropped   masks of dropout
    needed    bytes of the reserve of each group, or of the whole call
    """

    found: Segments | None
    stack: stack.StackCall
    again: State | None
    dropped: Sequence[Tensor]
    needed: list[int]

    def reserves(self, memory: Tensor) -> list[Reserve]:
        """Those of the groups in the memory (bytes,), which `_reserve_bytes` makes large enough."""
        assert sum(self.needed) <= memory.shape[0]
        whole = Reserve(as_array(memory))
        return [Reserve(whole.take(size)) for size in self.needed]


def _call(
    x: Tensor,
    state0: Sequence[Tensor],
    reset_state: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    mask: Tensor | None,
    *,
    cell: str,
    backend: str | None,
    bidirectional: bool,
    zero_output: bool,
    rates: Sequence[float],
) -> _Call:
    D = 2 if bidirectional else 1
    choice = choice_of(x.device, x.dtype, cell, backend)
    row, constants = parsed(cell)
    views = weight_views(weights, row, D, x.shape[2], constants)
    T, B, _ = x.shape
    if reset_state:
        checks.states(reset_state, views.ends, B)
    steps = None if lengths is None else core_checks.lengths(lengths.cpu().numpy(), T, B)
    flags = [
        None if f is None else core_checks.step_flags(name, f.cpu().numpy(), T, B, False, False)
        for name, f in (("resets", resets), ("mask", mask))
    ]
    found = segments(T, B, D, lengths=steps, resets=flags[0], mask=flags[1], repeat=not zero_output)
    if found is not None:
        refuse_captured_tables(x)
    dropped, noise = _noise_of(masks, rates)
    call = _stack_call(x, state0, views, dropped, lengths, choice, None, noise)
    sizes = _sizes(x.shape, weights[1].shape, row)
    shapes = [(T, B, steps)] if found is None else [(g.steps, g.last - g.first, g.lengths) for g in found.groups]
    needed = [
        stack_bytes(choice, row, sizes._replace(T=t, B=b, N=t * b), len(views.layers), D, own is not None)
        for t, b, own in shapes
    ]
    again = tuple([as_array(s) for s in reset_state]) if reset_state else None
    return _Call(found, call, again, dropped, needed)


def _reserve_bytes(choice: Choice, row: Cell, sizes: Sizes, layers: int, directions: int) -> int:
    """The size of the reserve. T and B may be symbols.

    It is enough for every call: the steps of all groups, padding included, are at most MOST_PADDED times the live ones,
    and what a group saves is a sum of parts (at most six per layer and direction: four of the states, x, and the
    outputs below it) of a fixed number of bytes per step, in whole lines of 64. The longest segment of a group is less
    than half of that of the group before it, so there are at most 2 + log2(T) groups, and _ROUNDING holds 6 * 63 bytes
    for each of 43.
    """
    T = MOST_PADDED * sizes.T
    of_steps = stack_bytes(choice, row, sizes._replace(T=T, N=T * sizes.B), layers, directions, True)
    return of_steps + _ROUNDING * layers * directions


def forward(
    x: Tensor,
    state0: Sequence[Tensor],
    reset_state: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    mask: Tensor | None,
    *,
    keep: bool,
    layout: str = "",
    rates: Sequence[float] = (),
    **how: Any,
) -> list[Tensor]:
    """y (T, B, D*R), the final states (L*D, B, ·), and with `keep` the reserve (bytes,) uint8."""
    if keep:
        check_layout(layout)
    if x.is_cpu and x.dtype in _WIDENED:
        floats = [_floats(tensors) for tensors in (state0, reset_state, weights, masks)]
        wide: Any = (x.float(), *floats, lengths, resets, mask)
        results = forward(*wide, keep=keep, rates=rates, **how)
        return [a if a.dtype == torch.uint8 else a.to(x.dtype) for a in results]
    with on_device(x):
        call = _call(x, state0, reset_state, weights, masks, lengths, resets, mask, rates=rates, **how)
        of_stack = call.stack
        memory = reserves = None
        if keep:
            layers, D = len(of_stack.layers), len(of_stack.layers[0])
            sizes = _sizes(x.shape, weights[1].shape, of_stack.cell)
            memory = new_bytes(x, _reserve_bytes(of_stack.choice, of_stack.cell, sizes, layers, D))
            reserves = call.reserves(memory)
        of_stack = of_stack._replace(keep=keep)
        if call.found is None:
            y, state_n, _ = stack.forward(of_stack._replace(reserve=reserves[0] if reserves else None))
        else:
            y, state_n, _ = segmented.forward(of_stack, call.found, call.again, None, reserves)
        results = as_tensors([y, *state_n])
        return results if memory is None else [*results, memory]


def backward(
    dy: Tensor | None,
    dstate_n: Sequence[Tensor | None],
    x: Tensor,
    state0: Sequence[Tensor],
    reset_state: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    mask: Tensor | None,
    reserve: Tensor,
    *,
    rates: Sequence[float] = (),
    wants_dx: bool = True,
    wants_dweights: bool = True,
    **how: Any,
) -> list[Tensor]:
    """The gradients of x, of state0, of reset_state and of weights. Those not wanted are not in the list."""
    if x.is_cpu and x.dtype in _WIDENED:
        floats = [_floats(tensors) for tensors in (state0, reset_state, weights, masks)]
        wide: Any = (*_floats([dy]), _floats(dstate_n), x.float(), *floats, lengths, resets, mask, reserve)
        grads = backward(*wide, rates=rates, wants_dx=wants_dx, wants_dweights=wants_dweights, **how)
        return [g.to(x.dtype) for g in grads]
    with on_device(x):
        call = _call(x, state0, reset_state, weights, masks, lengths, resets, mask, rates=rates, **how)
        of_stack = call.stack
        ends = tuple([_end_gradient(d, s, False) for d, s in zip(dstate_n, of_stack.state0, strict=True)])
        array = None if dy is None else as_array(dy.contiguous())
        saved = _saved(call, call.reserves(reserve))
        if isinstance(saved, segmented.Saved):
            of_parts = (saved, array, ends, of_stack.layers)
            dx, dstate0, drestart, dweights = segmented.backward(*of_parts, wants_dx, wants_dweights)
        else:
            of_whole = (saved, array, ends, of_stack.layers)
            dx, dstate0, dweights = stack_backward.backward(*of_whole, wants_dx, wants_dweights)
            drestart = None
        if drestart is None:  # nothing was reset
            drestart = tuple([_end_gradient(None, s, False) for s in of_stack.state0])
        parts = [part for layer in dweights for direction in layer for part in parts_of(direction)]
        found = [dx, *dstate0[: len(state0)], *drestart[: len(reset_state)], *parts]
        return as_tensors(Wanted(wants_dx, wants_dweights).of(found, len(state0) + len(reset_state)))


def _saved(call: _Call, reserves: list[Reserve]) -> segmented.Saved | stack.Saved:
    """What the forward saved, from its reserve."""
    masks: list[Array] = [as_array(m) for m in call.dropped]
    of_stack = call.stack._replace(keep=True)
    if call.found is None:
        return stack.restored(of_stack._replace(reserve=reserves[0]), masks)
    return segmented.restored(of_stack, call.found, call.again, reserves, masks)


def _forward_shapes(
    x: Tensor,
    state0: Sequence[Tensor],
    reset_state: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    mask: Tensor | None,
    *,
    cell: str,
    backend: str | None,
    bidirectional: bool,
    zero_output: bool,
    keep: bool,
    layout: str = "",
    rates: Sequence[float] = (),
) -> list[Tensor]:
    D = 2 if bidirectional else 1
    row, _ = parsed(cell)
    sizes = _sizes(x.shape, weights[1].shape, row)
    states = state_shapes(weights, row, sizes.B)
    results = [x.new_empty(shape) for shape in ((sizes.T, sizes.B, D * sizes.R), *states)]
    if not keep:
        return results
    computed = torch.float32 if x.dtype in _WIDENED and x.device.type != "cuda" else x.dtype
    choice = choice_of(x.device, computed, cell, backend)
    size = _reserve_bytes(choice, row, sizes, states[0][0] // D, D)
    return [*results, x.new_empty((size,), dtype=torch.uint8)]


def _backward_shapes(
    dy: Tensor | None,
    dstate_n: Sequence[Tensor | None],
    x: Tensor,
    state0: Sequence[Tensor],
    reset_state: Sequence[Tensor],
    weights: Sequence[Tensor],
    *_: Any,
    wants_dx: bool = True,
    wants_dweights: bool = True,
    **__: Any,
) -> list[Tensor]:
    like = Wanted(wants_dx, wants_dweights).of((x, *state0, *reset_state, *weights), len(state0) + len(reset_state))
    return [t.new_empty(t.shape) for t in like]


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("forward_flagged", forward, _device)
    LIBRARY.impl("backward_flagged", backward, _device)
torch.library.register_fake("rnnkit::forward_flagged", _forward_shapes, lib=LIBRARY)
torch.library.register_fake("rnnkit::backward_flagged", _backward_shapes, lib=LIBRARY)
