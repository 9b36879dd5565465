"""What the two operators do where PyTorch transforms them: autograd, vmap, and both within a traced model.

Layers called eagerly do not come here: rnnkit/torch/autograd.py calls its Functions. These rules serve calls of the
operators themselves, which is what torch.compile and torch.export record.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from rnnkit.core.option_arguments import parsed
from rnnkit.torch.arrays import Tensor
from rnnkit.torch.autograd import _Layers, _LayersBackward
from rnnkit.torch.dispatch import Stack, Wanted
from rnnkit.torch.operators import LIBRARY

_FORWARD = torch.ops.rnnkit.forward.default
_BACKWARD = torch.ops.rnnkit.backward.default


def _forward_recorded(
    x: Tensor,
    state0: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    *,
    cell: str,
    backend: str | None,
    bidirectional: bool,
    keep: bool,
    layout: str = "",
    rates: Sequence[float] = (),
) -> list[Tensor]:
    """`rnnkit::forward` under autograd. If a gradient is asked for, it keeps what backward needs, whatever `keep`."""
    tensors = (x, *state0, *masks, *weights)
    stack = Stack(cell, backend, bidirectional, len(masks), len(state0), rates)
    arguments = (stack, lengths, *tensors)
    _refuse_forward_mode(tensors)
    if _recorded(tensors):
        results = _apply(_LayersAtLevel, arguments)
        return list(results if keep else results[: 1 + len(parsed(cell)[0].states)])
    with torch._C._AutoDispatchBelowAutograd():
        of_call = (x, state0, weights, masks, lengths)
        return _FORWARD(*of_call, **stack.options, keep=keep, layout=layout)


def _backward_recorded(
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
    """`rnnkit::backward` under autograd: for a double backward."""
    tensors = (dy, *dstate_n, x, *state0, *masks, *weights)
    _refuse_forward_mode(tensors)
    stack = Stack(cell, backend, bidirectional, len(masks), len(state0), rates)
    wanted = Wanted(wants_dx, wants_dweights)
    if _recorded(tensors):
        arguments = (stack, wanted, lengths, reserve, *tensors)
        return list(_apply(_LayersBackwardAtLevel, arguments))
    with torch._C._AutoDispatchBelowAutograd():
        of_call = (dy, dstate_n, x, state0, weights, masks, lengths, reserve)
        return _BACKWARD(*of_call, **stack.options, **wanted.options)


def _recorded(tensors: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _refuse_forward_mode(tensors: Sequence[Tensor | None]) -> None:
    if forward_ad._current_level < 0 or not torch._C._is_fwd_grad_enabled():
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(
            "forward mode (torch.func.jvp, jacfwd, hessian) of rnnkit::forward and rnnkit::backward, the operators "
            "that torch.compile and torch.export record: call the layers outside torch.compile for it"
        )


class _LayersAtLevel(_SingleLevelFunction):
    """`_Layers` at one level of torch.func's transforms: the levels below it record the call for themselves."""

    setup_context = staticmethod(_Layers.setup_context)
    backward = staticmethod(_Layers.backward)

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
            return _Layers.forward(*arguments)


class _LayersBackwardAtLevel(_SingleLevelFunction):
    """`_LayersBackward` at one level, in the same way."""

    setup_context = staticmethod(_LayersBackward.setup_context)
    backward = staticmethod(_LayersBackward.backward)

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
            return _LayersBackward.forward(*arguments)


def _apply(function: Any, arguments: tuple[Any, ...]) -> Sequence[Tensor]:
    """The Function, at the level of torch.func's transforms that PyTorch is at."""
    with _single_level():
        return function.apply(*arguments)


def _single_level() -> AbstractContextManager[Any]:
    if not torch._C._are_functorch_transforms_active():
        return nullcontext()
    from torch._functorch.autograd_function import enable_single_level_autograd_function

    return enable_single_level_autograd_function()


def _forward_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    state0: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    **options: Any,
) -> tuple[list[Tensor], list[int]]:
    """One call whose batch is V*B if no weight is batched and nothing is kept; else one call an element."""
    operands = (x, state0, weights, masks, lengths)
    if options["keep"] or options.get("rates") or any(d is not None for d in in_dims[2]):
        return _each_element(_FORWARD, info, in_dims, operands, options)
    V = info.batch_size

    def folded(tensor: Tensor, vmapped: int | None, batch: int) -> Tensor:
        """The tensor with (V, B) in place of B. batch: the dimension of B, without the vmapped one."""
        first = tensor.expand(V, *tensor.shape) if vmapped is None else tensor.movedim(vmapped, 0)
        return first.movedim(0, batch).flatten(batch, batch + 1)

    results = _FORWARD(
        folded(x, in_dims[0], 1),
        [folded(s, d, 1) for s, d in zip(state0, in_dims[1], strict=True)],
        weights,
        [folded(m, d, 1) for m, d in zip(masks, in_dims[3], strict=True)],
        None if lengths is None else folded(lengths, in_dims[4], 0),
        **options,
    )
    return [r.unflatten(1, (V, -1)) for r in results], [1] * len(results)


def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any, **options: Any) -> tuple[Any, Any]:
    """One call an element: each has gradients of the weights for itself."""
    return _each_element(_BACKWARD, info, in_dims, operands, options)


def _each_element(
    operator: Any, info: Any, in_dims: tuple[Any, ...], operands: tuple[Any, ...], options: dict[str, Any]
) -> tuple[list[Tensor], list[int]]:
    def element(operand: Any, vmapped: Any, k: int) -> Any:
        if isinstance(operand, (list, tuple)):
            return [element(o, d, k) for o, d in zip(operand, vmapped, strict=True)]
        return operand if vmapped is None else operand.select(vmapped, k)

    results = []
    for k in range(info.batch_size):
        results.append(operator(*[element(o, d, k) for o, d in zip(operands, in_dims, strict=True)], **options))
    stacked = [torch.stack(of_all) for of_all in zip(*results, strict=True)]
    return stacked, [0] * len(stacked)


LIBRARY.impl("forward", _forward_recorded, "Autograd")
LIBRARY.impl("backward", _backward_recorded, "Autograd")
torch.library.register_vmap("rnnkit::forward", _forward_vmap, lib=LIBRARY)
torch.library.register_vmap("rnnkit::backward", _backward_vmap, lib=LIBRARY)
