"""What the operators of rnnkit/torch/flagged.py do where PyTorch transforms them: a first derivative, and vmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import _SingleLevelFunction

from rnnkit.torch.arrays import Tensor
from rnnkit.torch.dispatch import Wanted
from rnnkit.torch.operators import LAYOUT, LIBRARY
from rnnkit.torch.transforms import _apply, _each_element, _recorded, _refuse_forward_mode

_FORWARD = torch.ops.rnnkit.forward_flagged.default
_BACKWARD = torch.ops.rnnkit.backward_flagged.default


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


LIBRARY.impl("forward_flagged", _forward_recorded, "Autograd")
LIBRARY.impl("backward_flagged", _backward_recorded, "Autograd")
torch.library.register_vmap("rnnkit::forward_flagged", _forward_vmap, lib=LIBRARY)
torch.library.register_vmap("rnnkit::backward_flagged", _backward_vmap, lib=LIBRARY)
