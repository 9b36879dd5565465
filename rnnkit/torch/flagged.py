"""`rnnkit::forward_flagged` and `rnnkit::backward_flagged`: a stack of layers with resets or a mask, as one node each.

A traced graph has them where a layer is called with flags (rnnkit/torch/segmented.py runs eager calls). Which calls the
kernels make follows from the values of the flags, so it is decided while the operator runs, by
rnnkit/functional/segments.py. The arguments are those of `rnnkit::forward` and

    reset_state    one tensor (L*D, B, ·) a state, or none for zeros; then there may be no state0
    resets, mask   (T, B) bool on the CPU, or None
    zero_output    whether y is zero at masked steps

The size of the reserve must follow from shapes alone. Groups of segments have less than twice the live steps, so it is
that of twice as many steps. Where the parts of all groups are larger even so, it stays unused, and backward runs the
forward again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import _SingleLevelFunction

from rnnkit.backends import Choice, Sizes
from rnnkit.core import checks as core_checks
from rnnkit.core.cells import Array, Cell, State
from rnnkit.core.devices import array_module
from rnnkit.core.option_arguments import parsed
from rnnkit.functional import segmented, stack, stack_backward
from rnnkit.functional.reserve import Reserve, stack_bytes
from rnnkit.functional.segments import MOST_PADDED, Segments, segments
from rnnkit.torch import checks
from rnnkit.torch.arrays import Tensor, as_array, as_tensors, new_bytes, on_device, parts_of, state_shapes, weight_views
from rnnkit.torch.dispatch import Wanted
from rnnkit.torch.operators import LAYOUT, LIBRARY, _end_gradient, _floats, _noise_of, _sizes, choice_of
from rnnkit.torch.segmented import _WIDENED
from rnnkit.torch.transforms import _apply, _each_element, _recorded, _refuse_forward_mode

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
_FORWARD = torch.ops.rnnkit.forward_flagged.default
_BACKWARD = torch.ops.rnnkit.backward_flagged.default

# Bytes of the reserve per layer and direction beside what twice the steps take: parts of groups begin at lines.
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

    def reserves(self, memory: Tensor) -> list[Reserve] | None:
        """Those of the groups in the memory (bytes,), or None if it is too small."""
        if sum(self.needed) > memory.shape[0]:
            return None
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
    array = as_array(x.contiguous())
    T, B, _ = array.shape
    for given in (state0, reset_state):
        if given:
            checks.states(given, views.ends, B)
    xp: Any = array_module(array)
    states = tuple([as_array(s) for s in state0])
    if not states:
        states = tuple([xp.zeros((slots, B, width), array.dtype) for slots, width in views.ends])
    checked = None if lengths is None else core_checks.lengths(lengths.cpu().numpy(), T, B)
    flags = [
        None if f is None else core_checks.step_flags(name, f.cpu().numpy(), T, B, False, False)
        for name, f in (("resets", resets), ("mask", mask))
    ]
    found = segments(T, B, D, lengths=checked, resets=flags[0], mask=flags[1], repeat=not zero_output)
    dropped, noise = _noise_of(masks, rates)
    dropout = None
    if dropped:
        arrays = [as_array(m) for m in dropped]
        dropout = lambda layer, _: arrays[layer]  # noqa: E731
    call = stack.StackCall(row, choice, array, states, views.layers, checked, dropout, False, None, constants, noise)
    sizes = _sizes(array.shape, weights[1].shape, row)
    shapes = [(T, B, checked)] if found is None else [(g.steps, g.last - g.first, g.lengths) for g in found.groups]
    needed = [
        stack_bytes(choice, row, sizes._replace(T=t, B=b, N=t * b), len(views.layers), D, own is not None)
        for t, b, own in shapes
    ]
    again = tuple([as_array(s) for s in reset_state]) if reset_state else None
    return _Call(found, call, again, dropped, [-(-size // 64) * 64 for size in needed])


def _reserve_bytes(choice: Choice, row: Cell, sizes: Sizes, layers: int, directions: int) -> int:
    """The size of the reserve. T and B may be symbols."""
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
    if keep and layout not in ("", LAYOUT):
        raise RuntimeError("this graph was compiled with other sources of rnnkit: compile the model again")
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
        saves = reserves is not None
        if call.found is None:
            y, state_n, _ = stack.forward(of_stack._replace(keep=saves, reserve=reserves[0] if reserves else None))
        else:
            of_stack = of_stack._replace(keep=saves)
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


def _saved(call: _Call, reserves: list[Reserve] | None) -> segmented.Saved | stack.Saved:
    """What the forward saved, from its reserve, or computed again."""
    masks: list[Array] = [as_array(m) for m in call.dropped]
    of_stack = call.stack._replace(keep=True)
    if call.found is None:
        assert reserves is not None  # twice the steps are more than these
        return stack.restored(of_stack._replace(reserve=reserves[0]), masks)
    if reserves is not None:
        return segmented.restored(of_stack, call.found, call.again, reserves, masks)
    _, _, saved = segmented.forward(of_stack, call.found, call.again)
    assert saved is not None
    return saved


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


class _How:
    """The arguments of a call that are no tensors, and how many of each kind the tensors are."""

    def __init__(self, options: dict[str, Any], counts: Sequence[int]) -> None:
        self.options = options
        self.counts = counts

    def split(self, tensors: Sequence[Any]) -> list[list[Any]]:
        found, first = [], 0
        for count in self.counts:
            found.append(list(tensors[first : first + count]))
            first += count
        return found


class _FlaggedAtLevel(_SingleLevelFunction):
    """The operator with its first derivative, at one level of torch.func's transforms."""

    @staticmethod
    def forward(
        how: _How, lengths: Tensor | None, resets: Tensor | None, mask: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        (x,), *others = how.split(tensors)
        with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():  # the levels below record it for themselves
            return tuple(_FORWARD(x, *others, lengths, resets, mask, **how.options, keep=True, layout=LAYOUT))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.how, *saved = inputs
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[-1], *saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        reserve, lengths, resets, mask, *tensors = ctx.saved_tensors
        (x,), state0, reset_state, weights, masks = ctx.how.split(tensors)
        given = (x, state0, reset_state, weights, masks, lengths, resets, mask, reserve)
        states = len(state0) + len(reset_state)
        asked = ctx.needs_input_grad[4:]  # of x, state0, reset_state, weights and masks
        wanted = Wanted(asked[0], True in asked[1 + states : 1 + states + len(weights)])
        found = _BACKWARD(grads[0], list(grads[1:-1]), *given, **ctx.how.options, **wanted.options)
        return (*[None] * 4, *wanted.filled(found, states, len(weights)), *[None] * len(masks))


class _BackwardAtLevel(_SingleLevelFunction):
    """The operator for the first derivative, where a second one may be asked for, as it may in torch.func.grad.

    Only the second derivative itself is refused.
    """

    @staticmethod
    def forward(how: _How, rest: tuple[Any, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        (dy,), dstate_n, (x,), *others = how.split(tensors)
        with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
            return tuple(_BACKWARD(dy, dstate_n, x, *others, *rest, **how.options))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            "double backward of a traced call with resets or a mask: call the layer outside torch.compile for it"
        )


def _forward_recorded(
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
    **options: Any,
) -> list[Tensor]:
    """Under autograd. If a gradient is asked for, it keeps what backward needs, whatever `keep`."""
    tensors = (x, *state0, *reset_state, *weights, *masks)
    _refuse_forward_mode(tensors)
    if _recorded(tensors):
        how = _How(options, (1, len(state0), len(reset_state), len(weights), len(masks)))
        results = _apply(_FlaggedAtLevel, (how, lengths, resets, mask, *tensors))
        return list(results if keep else results[:-1])
    given = (x, state0, reset_state, weights, masks, lengths, resets, mask)
    with torch._C._AutoDispatchBelowAutograd():
        return _FORWARD(*given, keep=keep, layout=layout, **options)


def _backward_recorded(
    dy: Tensor | None,
    dstate_n: Sequence[Tensor | None],
    x: Tensor,
    state0: Sequence[Tensor],
    reset_state: Sequence[Tensor],
    weights: Sequence[Tensor],
    *rest: Any,
    **options: Any,
) -> list[Tensor]:
    tensors = (dy, *dstate_n, x, *state0, *reset_state, *weights)
    _refuse_forward_mode(tensors)
    if _recorded(tensors):
        counts = (1, len(dstate_n), 1, len(state0), len(reset_state), len(weights))
        return list(_apply(_BackwardAtLevel, (_How(options, counts), rest, *tensors)))
    with torch._C._AutoDispatchBelowAutograd():
        return _BACKWARD(dy, dstate_n, x, state0, reset_state, weights, *rest, **options)


def _forward_vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any, **options: Any) -> tuple[Any, Any]:
    """One call an element."""
    return _each_element(_FORWARD, info, in_dims, operands, options)


def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any, **options: Any) -> tuple[Any, Any]:
    """One call an element: each has gradients of the weights for itself."""
    return _each_element(_BACKWARD, info, in_dims, operands, options)


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("forward_flagged", forward, _device)
    LIBRARY.impl("backward_flagged", backward, _device)
LIBRARY.impl("forward_flagged", _forward_recorded, "Autograd")
LIBRARY.impl("backward_flagged", _backward_recorded, "Autograd")
torch.library.register_fake("rnnkit::forward_flagged", _forward_shapes, lib=LIBRARY)
torch.library.register_fake("rnnkit::backward_flagged", _backward_shapes, lib=LIBRARY)
torch.library.register_vmap("rnnkit::forward_flagged", _forward_vmap, lib=LIBRARY)
torch.library.register_vmap("rnnkit::backward_flagged", _backward_vmap, lib=LIBRARY)
