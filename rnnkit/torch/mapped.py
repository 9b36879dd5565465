"""torch.vmap of calls whose derivatives are recorded: one call of the kernels for all elements, where that is right.

The batch of that call is V*B. Its reserve is not made of parts per element, so it is given to all elements at once, as
a tensor (V, bytes) whose elements are the same memory, by which backward knows it. One call per element remains where
the weights differ between elements, where random masks are drawn, and where each element asks for gradients of the
weights, as in vmap(grad) over the parameters: the kernels add these up over the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rnnkit.torch.arrays import Tensor
from rnnkit.torch.dispatch import Stack, Wanted


def asks_by_element(weights: Sequence[Tensor]) -> bool:
    """Whether a transform such as torch.func.grad follows a weight inside of a vmap."""
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    vmaps = [t.level() for t in transforms if t.key() == torch._C._functorch.TransformType.Vmap]
    return bool(vmaps) and any(_followed_from(w) > min(vmaps) for w in weights)


def _followed_from(tensor: Tensor) -> int:
    """The innermost level at which a derivative of the tensor is recorded, or 0."""
    functorch = torch._C._functorch
    level = 0
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_gradtrackingtensor(tensor):
            level = max(level, functorch.maybe_get_level(tensor))
        tensor = functorch.get_unwrapped(tensor)
    return level


def forward(function: Any, info: Any, in_dims: Sequence[Any], arguments: Sequence[Any]) -> tuple[Any, Any]:
    """The rule of vmap for `_Layers`, with the arguments stack, lengths, x, states, masks and weights."""
    stack: Stack = arguments[0]
    count = 3 + stack.states + stack.masks
    if stack.rates or stack.by_element or any(d is not None for d in in_dims[count:]):
        return each_element(function, info, in_dims, arguments)
    V = info.batch_size
    y, *state_n, reserve = function.apply(
        stack,
        _folded(arguments[1], in_dims[1], V, 0),
        *_all_folded(arguments[2:count], in_dims[2:count], V),
        *arguments[count:],
    )
    results = [_unfolded(r, V) for r in (y, *state_n)]
    return (*results, reserve.expand(V, *reserve.shape)), (*[1] * len(results), 0)


def backward(function: Any, info: Any, in_dims: Sequence[Any], arguments: Sequence[Any]) -> tuple[Any, Any]:
    """The rule of vmap for `_LayersBackward`, with the arguments stack, wanted, lengths, reserve, dy, dstate_n, x,
    states, masks and weights."""
    stack: Stack = arguments[0]
    wanted: Wanted = arguments[1]
    reserve = arguments[3]
    count = 6 + stack.ends + stack.states + stack.masks
    if in_dims[3] is None or reserve.movedim(in_dims[3], 0).stride(0) != 0:
        return each_element(function, info, in_dims, arguments)
    V = info.batch_size
    weights = arguments[count:]
    results = function.apply(
        stack,
        Wanted(wanted.dx, False),
        _folded(arguments[2], in_dims[2], V, 0),
        reserve.select(in_dims[3], 0),
        *_all_folded(arguments[4:count], in_dims[4:count], V),
        *weights,
    )
    found = [_unfolded(r, V) for r in results]
    # Nobody asks for those of the weights, see `asks_by_element`.
    zeros = [w.new_zeros(()).expand(w.shape) for w in weights] if wanted.dweights else []
    return (*found, *zeros), (*[1] * len(found), *[None] * len(zeros))


def _all_folded(tensors: Sequence[Any], dims: Sequence[Any], V: int) -> list[Any]:
    return [_folded(t, d, V, 1) for t, d in zip(tensors, dims, strict=True)]


def _folded(tensor: Any, vmapped: int | None, V: int, batch: int) -> Any:
    """The tensor with V*B in place of B, or None. batch: the dimension of B, without the vmapped one."""
    if tensor is None:
        return None
    first = tensor.expand(V, *tensor.shape) if vmapped is None else tensor.movedim(vmapped, 0)
    return first.movedim(0, batch).flatten(batch, batch + 1)


def _unfolded(tensor: Tensor, V: int) -> Tensor:
    return tensor.unflatten(1, (V, tensor.shape[1] // V))


def each_element(function: Any, info: Any, in_dims: Sequence[Any], arguments: Sequence[Any]) -> tuple[Any, Any]:
    """The rule of vmap by one call per element."""
    results = []
    for k in range(info.batch_size):
        element = [a if d is None else a.select(d, k) for a, d in zip(arguments, in_dims, strict=True)]
        results.append(function.apply(*element))
    stacked = tuple(torch.stack(of_all) for of_all in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)
