"""The derivatives of a stack of layers, for every way in which PyTorch asks for them.

`run` calls the operator `rnnkit::forward`, through an autograd Function if a derivative may be asked for:

    backward               one call of `rnnkit::backward`, for the gradients that are asked for
    double backward, and   the equations in PyTorch's own operators (rnnkit/torch/equations.py), which PyTorch then
    forward mode           differentiates: right to any order, and as slow as a loop over steps in Python
    vmap                   one call for all elements, but for weights that differ or whose gradients each element asks
                           for: rnnkit/torch/mapped.py

Functions take flat arguments, as autograd requires: a `Stack`, lengths, x, and then the states, masks and weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function, forward_ad

from rnnkit.torch import dispatch, equations, mapped, operators
from rnnkit.torch.arrays import Tensor
from rnnkit.torch.dispatch import Stack, Wanted
from rnnkit.torch.operators import LIBRARY


def run(
    stack: Stack,
    x: Tensor,
    state0: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """y (T, B, D*R) and the final states (L*D, B, ·), differentiable in x, state0 and weights. All time-major.

    state0: one tensor a state, or none for zeros.
    """
    # The most frequent case of `function_for`, without its other questions: for the smallest calls.
    unrecorded = not torch.is_grad_enabled() and forward_ad._current_level < 0
    if unrecorded and dispatch.nobody_watches(x, *state0, *weights):
        y, *state_n = operators.forward(
            x,
            state0,
            weights,
            masks,
            lengths,
            cell=stack.cell,
            backend=stack.backend,
            bidirectional=stack.bidirectional,
            keep=False,
            rates=stack.rates,
        )
        return y, state_n
    function = function_for((x, *state0, *weights))
    if function is not None:
        stack.by_element = function is _LayersBothModes and mapped.asks_by_element(weights)
        # `Function.apply` looks for tensors of torch.func's transforms first, which takes 3 us: there are none.
        apply = super(Function, function).apply if function is _LayersRecorded else function.apply
        y, *state_n, _ = apply(stack, lengths, x, *state0, *masks, *weights)
        return y, state_n
    y, *state_n = dispatch.forward(stack, x, state0, weights, masks, lengths, False)
    return y, state_n


def function_for(tensors: Sequence[Tensor]) -> Any:
    """The autograd Function for a call with these tensors, or None if no derivative can be asked for."""
    if torch.compiler.is_compiling():
        return None  # the operator's own rules are traced: rnnkit/torch/transforms.py
    recorded = torch.is_grad_enabled() and any([t.requires_grad for t in tensors])  # noqa: C419
    if torch._C._are_functorch_transforms_active():
        transforms = torch._C._functorch.get_interpreter_stack() or ()
        only_vmap = all(t.key() == torch._C._functorch.TransformType.Vmap for t in transforms)
        return _LayersBothModes if recorded or not only_vmap else None
    if forward_ad._current_level >= 0:
        return _LayersBothModes
    return _LayersRecorded if recorded else None


class _Layers(Function):
    """y, the final states, and the reserve, which has no derivative."""

    @staticmethod
    def forward(stack: Stack, lengths: Tensor | None, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        states, dropped, weights = stack.split(tensors)
        return tuple(dispatch.forward(stack, x, states, weights, dropped, lengths, True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.stack, *saved = inputs
        reserve = output[-1]
        ctx.mark_non_differentiable(reserve)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(reserve, *saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        reserve, lengths, *tensors = ctx.saved_tensors
        stack = ctx.stack
        asked = ctx.needs_input_grad  # of stack, lengths, x, states, masks and weights
        first = 3 + stack.states + stack.masks
        wanted = Wanted(asked[2], True in asked[first:])
        arguments = (stack, wanted, lengths, reserve, *grads[:-1], *tensors)
        once = torch.compiler.is_compiling() or not (
            torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        )  # without a derivative of this backward
        found = (_LayersBackward.forward if once else _LayersBackward.apply)(*arguments)
        dx, *rest = wanted.filled(found, stack.states, len(asked) - first)
        dstates = rest[: stack.states]
        dweights = rest[stack.states :]
        return (*[None] * 2, dx, *dstates, *[None] * stack.masks, *dweights)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        return mapped.forward(_LayersBothModes, info, in_dims, arguments)


class _LayersRecorded(_Layers):
    """`_Layers` in the form that PyTorch calls faster: without transforms of torch.func, and without forward mode."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        output = _Layers.forward(*arguments)
        _Layers.setup_context(ctx, arguments, output)
        return output

    setup_context = staticmethod(Function.setup_context)


class _LayersBothModes(_Layers):
    """`_Layers` with forward mode, for eager calls: see rnnkit/torch/transforms.py for traced ones."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _Layers.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        lengths, *primals = ctx.saved_tensors
        return (*equations.forward_mode(ctx.stack, lengths, primals, tangents[2:]), None)


class _LayersBackward(Function):
    """The gradients of x, the states and the weights, as far as they are wanted: `rnnkit::backward`."""

    @staticmethod
    def forward(
        stack: Stack,
        wanted: Wanted,
        lengths: Tensor | None,
        reserve: Tensor,
        dy: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        dstate_n, (x, *rest) = tensors[: stack.ends], tensors[stack.ends :]
        states, dropped, weights = stack.split(rest)
        return tuple(dispatch.backward(stack, wanted, (dy, *dstate_n), x, states, weights, dropped, lengths, reserve))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.stack, ctx.wanted, lengths, _, *tensors = inputs
        ctx.save_for_backward(lengths, *tensors)
        ctx.save_for_forward(lengths, *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        lengths, *tensors = ctx.saved_tensors
        return (*[None] * 4, *equations.differentiate_backward(ctx.stack, ctx.wanted, lengths, tensors, grads))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        lengths, *tensors = ctx.saved_tensors
        return equations.forward_mode_of_backward(ctx.stack, ctx.wanted, lengths, tensors, tangents[4:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        return mapped.backward(_LayersBackward, info, in_dims, arguments)


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
    rates: Sequence[float] = (),
    wants_dx: bool = True,
    wants_dweights: bool = True,
) -> list[Tensor]:
    """`rnnkit::backward` inside PyTorch's older vmap, that of `torch.autograd.grad(is_grads_batched=True)`."""
    stack = Stack(cell, backend, bidirectional, len(masks), len(state0), rates)
    grads = equations.backward(stack, lengths, (dy, *dstate_n), (x, *state0, *masks, *weights))
    return Wanted(wants_dx, wants_dweights).of(grads, len(state0))


LIBRARY.impl("backward", _backward_of_batched, "Batched")
