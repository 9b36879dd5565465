"""Resets and masks of the layers: calls of `run` with the segments as rows, between gathers that autograd sees.

So eager calls run; traced ones are one operator, rnnkit/torch/flagged.py. The gathers are linear, and the transpose of
each is another: rnnkit/functional/segmented.py has both. So derivatives of any order go through them and `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function

from rnnkit.core.cells import Array
from rnnkit.functional import segmented
from rnnkit.functional.segments import Group, Segments
from rnnkit.functional.step_flags import StepFlags
from rnnkit.torch.arrays import Tensor, as_array, as_tensor, on_device
from rnnkit.torch.autograd import run
from rnnkit.torch.dispatch import Stack
from rnnkit.torch.unserved import refuse_capture

# On the CPU, calls with resets or a mask compute tensors of these dtypes in float32 and round at the end, so that the
# sums over segments and repeated outputs are rounded once.
_WIDENED = (torch.float16, torch.bfloat16)


def on_host(flags: StepFlags) -> StepFlags:
    """The flags with arrays on the host in place of tensors. Tensors on a device are copied, which synchronises."""
    return flags._replace(resets=on_host_array("resets", flags.resets), mask=on_host_array("mask", flags.mask))


def on_host_array(name: str, value: Any) -> Any:
    """The value as an array on the host if it is a tensor, else as it is. name: for an error."""
    if not isinstance(value, torch.Tensor):
        return value
    _refuse_traced(name, value)
    functorch = torch._C._functorch
    while functorch.is_gradtrackingtensor(value):  # made inside torch.func.grad or jvp
        value = functorch.get_unwrapped(value)
    if functorch.is_functorch_wrapped_tensor(value):
        raise NotImplementedError(f"{name} mapped by torch.vmap: its values decide the shapes of the kernels' calls")
    refuse_capture(name, value, "its values are read on the host")
    with torch._C._DisableFuncTorch():  # inside torch.func.jvp a copy would have no values
        return value.cpu().numpy()


def _refuse_traced(name: str, tensor: Tensor) -> None:
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        raise NotImplementedError(
            f"{name} is a tensor without values: with resets or a mask, the values of those decide the shapes of the "
            "kernels' calls. torch.compile and torch.export record such a call as one node"
        )


def refuse_captured_tables(x: Tensor) -> None:
    """Raises in a capture of a call whose segments are not its rows."""
    refuse_capture("resets or a mask of an input", x, "a replay would read where their steps are from host memory")


def _on_device(segments: Segments, x: Tensor) -> Segments:
    refuse_captured_tables(x)
    import cupy

    with on_device(x):
        return segments.on(cupy)


class Linear(NamedTuple):
    """A linear function of arrays, and its transpose."""

    function: Callable[..., Sequence[Array]]
    transpose: Callable[..., Sequence[Array]]


class _Applied(Function):
    """`Linear` for tensors."""

    @staticmethod
    def forward(linear: Linear, *tensors: Tensor) -> tuple[Tensor, ...]:
        with on_device(tensors[0]):
            return tuple([as_tensor(a) for a in linear.function(*map(as_array, tensors))])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.linear = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return (None, *_Applied.apply(Linear(ctx.linear.transpose, ctx.linear.function), *grads))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _Applied.apply(ctx.linear, *tangents[1:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], linear: Linear, *tensors: Tensor) -> tuple[Any, Any]:
        results = []
        for k in range(info.batch_size):
            element = [t if d is None else t.select(d, k) for t, d in zip(tensors, in_dims[1:], strict=True)]
            results.append(_Applied.apply(linear, *element))
        stacked = tuple([torch.stack(of_all) for of_all in zip(*results, strict=True)])
        return stacked, (0,) * len(stacked)


def run_segments(
    stack: Stack,
    x: Tensor,
    state0: Sequence[Tensor],
    reset_state: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    segments: Segments,
) -> tuple[Tensor, Sequence[Tensor]]:
    """As `rnnkit.torch.autograd.run`, with resets and a mask. reset_state: as state0, or None for zeros.

    Without initial states, as `run` may be called, there is no reset state either.
    """
    if x.is_cpu and x.dtype in _WIDENED:
        wide = [
            [t.float() if t.is_floating_point() else t for t in tensors]
            for tensors in ((x,), state0, reset_state or (), weights, masks)
        ]
        (x32,), states, again, weights, masks = wide
        y, state_n = run_segments(stack, x32, states, again or None, weights, masks, segments)
        return y.to(x.dtype), [s.to(x.dtype) for s in state_n]
    _refuse_traced("input", x)
    tables = segments if x.is_cpu else _on_device(segments, x)
    sizes = [group.last - group.first for group in segments.groups]
    directions = 2 if stack.bidirectional else 1
    starts = [
        _starts(s, None if reset_state is None else reset_state[k], tables, directions).split(sizes, 1)
        for k, s in enumerate(state0)
    ]
    ys, ends = [], []
    xs = _grouped(x, tables)
    noise: Tensor | None = None
    if stack.rates:
        *masks, noise = masks
    masks_of = [_grouped(mask, tables) for mask in masks]
    for k, group in enumerate(segments.groups):
        lengths = None if group.lengths is None else torch.from_numpy(group.lengths)
        of_group = [m[k] for m in masks_of]
        if noise is not None:
            of_group.append(_noise_of(noise, segments, group))
        y, end = run(stack, xs[k], [s[k] for s in starts], weights, of_group, lengths)
        ys.append(y)
        ends.append(end)
    joined = [torch.cat(of_all, 1) for of_all in zip(*ends, strict=True)]
    return _outputs(ys, tables, x.shape), [_ends(s, tables, directions) for s in joined]


def _noise_of(noise: Tensor, segments: Segments, group: Group) -> Tensor:
    """The noise of a group, whose masks are those of the caller's rows. segments: with tables on the host."""
    if not noise.numel():
        return noise
    of_group = slice(group.first, group.last)
    return torch.cat([noise, *(torch.from_numpy(a[of_group]) for a in (segments.rows, segments.times))])


def _grouped(a: Tensor, segments: Segments) -> Sequence[Tensor]:
    """(T, B, K) as (steps, rows, K) of each group."""
    if segments.place is None:
        return [a]
    T, B, _ = a.shape

    def gather(array: Array) -> list[Array]:
        return [segmented.grouped(array, group) for group in segments.groups]

    def scatter(*parts: Array) -> list[Array]:
        return [segmented.ungrouped(list(parts), segments, T, B)]

    return _Applied.apply(Linear(gather, scatter), a)


def _outputs(ys: Sequence[Tensor], segments: Segments, shape: Any) -> Tensor:
    if segments.place is None:
        return ys[0]
    T, B, _ = shape

    def scatter(*parts: Array) -> list[Array]:
        return [segmented.outputs(list(parts), segments, T, B)]

    def gather(dy: Array) -> list[Array]:
        return segmented.output_gradients(dy, segments)

    (y,) = _Applied.apply(Linear(scatter, gather), *ys)
    return y


def _starts(state0: Tensor, reset_state: Tensor | None, segments: Segments, directions: int) -> Tensor:
    """(L*D, B, ·) as the initial states (L*D, S, ·) of all segments."""

    def gather(state: Array, again: Array | None = None) -> list[Array]:
        return [segmented.segment_states(state, again, segments, directions)]

    def scatter(dstates: Array) -> list[Array]:
        dstate0 = segmented.start_gradients(dstates, segments, directions)
        if reset_state is None:
            return [dstate0]
        return [dstate0, segmented.reset_gradients(dstates, segments, directions)]

    given = [state0] if reset_state is None else [state0, reset_state]
    (states,) = _Applied.apply(Linear(gather, scatter), *given)
    return states


def _ends(states: Tensor, segments: Segments, directions: int) -> Tensor:
    """(L*D, S, ·) of all segments as the final states (L*D, B, ·) of the rows."""

    def gather(array: Array) -> list[Array]:
        return [segmented.row_states(array, segments, directions)]

    def scatter(dstate: Array) -> list[Array]:
        return [segmented.row_state_gradients(dstate, segments, directions)]

    (rows,) = _Applied.apply(Linear(gather, scatter), states)
    return rows
