"""The derivatives of a stack of layers, for every way in which PyTorch asks for them.

`run` calls the operator `rnnkit::forward`, through an autograd Function if a derivative may be asked for:

    backward               one call of `rnnkit::backward`
    double backward, and   the equations in PyTorch's own operators (rnnkit/torch/equations.py), which PyTorch then
    forward mode           differentiates: right to any order, and as slow as a loop over steps in Python
    vmap                   one call for a whole batch of inputs if only that is asked for; one call an element otherwise

Functions take flat arguments, as autograd requires: a `Stack`, lengths, x, and then the states, masks and weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import Function, forward_ad

from rnnkit.core.cells import CELLS
from rnnkit.torch import equations
from rnnkit.torch.arrays import Tensor
from rnnkit.torch.operators import LIBRARY

_FORWARD = torch.ops.rnnkit.forward.default
_BACKWARD = torch.ops.rnnkit.backward.default


class Stack(NamedTuple):
    """What a call is beside its tensors.

    cell           a name of CELLS
    backend        a name of BACKENDS, or None
    bidirectional  whether D is 2
    masks          the number of dropout masks
    """

    cell: str
    backend: str | None
    bidirectional: bool
    masks: int

    @property
    def states(self) -> int:
        """The number of states: 1, or 2 with c."""
        return len(CELLS[self.cell].states)

    def split(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """States, masks and weights."""
        first = self.states
        second = first + self.masks
        return list(tensors[:first]), list(tensors[first:second]), list(tensors[second:])


def run(
    stack: Stack,
    x: Tensor,
    state0: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """y (T, B, D*R) and the final states (L*D, B, ·), differentiable in x, state0 and weights. All time-major."""
    tensors = (*state0, *masks, *weights)
    if torch.compiler.is_compiling():
        y, *state_n = _Layers.apply(*stack, lengths, x, *tensors)[:-1]
        return y, state_n
    if _derivative_asked((x, *tensors)):
        y, *state_n = _LayersBothModes.apply(*stack, lengths, x, *tensors)[:-1]
        return y, state_n
    y, *state_n = _FORWARD(
        x,
        state0,
        weights,
        masks,
        lengths,
        cell=stack.cell,
        backend=stack.backend,
        bidirectional=stack.bidirectional,
        keep=False,
    )[:-1]
    return y, state_n


def _derivative_asked(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd records here, or a transform of torch.func or forward mode may."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return True
    return forward_ad._current_level >= 0 or _transforms_other_than_vmap()


def _transforms_other_than_vmap() -> bool:
    active = torch._C._functorch.get_interpreter_stack()
    return active is not None and any(i.key() != torch._C._functorch.TransformType.Vmap for i in active)


class _Layers(Function):
    """y, the final states, and the reserve, which has no derivative."""

    @staticmethod
    def forward(
        cell: str,
        backend: str | None,
        bidirectional: bool,
        masks: int,
        lengths: Tensor | None,
        x: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        states, dropped, weights = Stack(cell, backend, bidirectional, masks).split(tensors)
        return tuple(
            _FORWARD(
                x,
                states,
                weights,
                dropped,
                lengths,
                cell=cell,
                backend=backend,
                bidirectional=bidirectional,
                keep=True,
            )
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        cell, backend, bidirectional, masks, lengths, x, *tensors = inputs
        ctx.stack = (cell, backend, bidirectional, masks)
        reserve = output[-1]
        ctx.mark_non_differentiable(reserve)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(lengths, reserve, x, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        lengths, reserve, x, *tensors = ctx.saved_tensors
        stack = Stack(*ctx.stack)
        dy, *dstate_n = grads[:-1]
        arguments = (*stack, lengths, reserve, dy, *dstate_n, x, *tensors)
        # torch.compile differentiates once; under `torch.no_grad` nobody differentiates again.
        once = torch.compiler.is_compiling()
        dx, *rest = (_LayersBackward.forward if once else _LayersBackward.apply)(*arguments)
        dstates = rest[: stack.states]
        dweights = rest[stack.states :]
        return (*[None] * 5, dx, *dstates, *[None] * stack.masks, *dweights)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        return _each_element(_LayersBothModes, info, in_dims, arguments)


class _LayersBothModes(_Layers):
    """`_Layers` with forward mode. torch.compile does not take a Function that has it."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _Layers.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[4:])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        lengths, *primals = ctx.saved_tensors
        stack = Stack(*ctx.stack)
        return (*equations.forward_mode(stack, lengths, primals, tangents[5:]), None)


class _LayersBackward(Function):
    """The gradients of x, the states and the weights: `rnnkit::backward`."""

    @staticmethod
    def forward(
        cell: str,
        backend: str | None,
        bidirectional: bool,
        masks: int,
        lengths: Tensor | None,
        reserve: Tensor,
        dy: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        stack = Stack(cell, backend, bidirectional, masks)
        dstate_n, (x, *rest) = tensors[: stack.states], tensors[stack.states :]
        states, dropped, weights = stack.split(rest)
        return tuple(
            _BACKWARD(
                dy,
                dstate_n,
                x,
                states,
                weights,
                dropped,
                lengths,
                reserve,
                cell=cell,
                backend=backend,
                bidirectional=bidirectional,
            )
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        cell, backend, bidirectional, masks, lengths, _, *tensors = inputs
        ctx.stack = (cell, backend, bidirectional, masks)
        ctx.save_for_backward(lengths, *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        lengths, *tensors = ctx.saved_tensors
        stack = Stack(*ctx.stack)
        gradients = equations.differentiate_backward(stack, lengths, tensors, grads)
        return (*[None] * 6, *gradients)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        return _each_element(_LayersBackward, info, in_dims, arguments)


def _each_element(function: Any, info: Any, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    """vmap of a Function by one call an element."""
    results = []
    for k in range(info.batch_size):
        element = [a if d is None else a.select(d, k) for a, d in zip(arguments, in_dims, strict=True)]
        results.append(function.apply(*element))
    stacked = tuple(torch.stack(of_all) for of_all in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _backward_of_batched(
    dy: Tensor | None,
    dstate_n: Sequence[Tensor | None],
    x: Tensor,
    state0: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    reserve: Tensor,
    *,
    cell: str,
    backend: str | None,
    bidirectional: bool,
) -> list[Tensor]:
    """`rnnkit::backward` inside PyTorch's older vmap, that of `torch.autograd.grad(is_grads_batched=True)`."""
    stack = Stack(cell, backend, bidirectional, len(masks))
    return equations.backward(stack, lengths, (dy, *dstate_n), (x, *state0, *masks, *weights))


LIBRARY.impl("backward", _backward_of_batched, "Batched")
