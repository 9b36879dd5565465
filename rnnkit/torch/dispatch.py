"""Calls of the two operators, with or without PyTorch's dispatcher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rnnkit.core.option_arguments import parsed
from rnnkit.torch import operators
from rnnkit.torch.arrays import Tensor

_FORWARD = torch.ops.rnnkit.forward.default
_BACKWARD = torch.ops.rnnkit.backward.default
_PLAIN = {torch.Tensor, torch.nn.Parameter}
# Names of their own: to look these up in torch._C takes as long as to call them, and each call asks all of them.
_modes = torch._C._len_torch_dispatch_stack
_transformed = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state
_profiled = torch.autograd._profiler_enabled


class Stack:
    """What a call is beside its tensors.

    cell           `text_of` of rnnkit/core/option_arguments.py: a name of CELLS for a cell without options
    backend        a name of BACKENDS, or None
    bidirectional  whether D is 2
    masks          the number of dropout masks
    states         the number of initial states that are given: 0 for zeros, else `ends`
    by_element     whether each element of a torch.vmap asks for gradients of the weights: rnnkit/torch/mapped.py
    rates          as in rnnkit/torch/operators.py; with them the last mask is the noise

    Not a tuple, which PyTorch would take apart when it is an argument of an autograd Function.
    """

    __slots__ = ("backend", "bidirectional", "by_element", "cell", "masks", "rates", "states")

    def __init__(
        self,
        cell: str,
        backend: str | None,
        bidirectional: bool,
        masks: int,
        states: int,
        rates: Sequence[float] = (),
    ) -> None:
        self.cell = cell
        self.backend = backend
        self.bidirectional = bidirectional
        self.masks = masks
        self.states = states
        self.by_element = False
        self.rates = rates

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `rnnkit::backward`, and with `keep` those of `rnnkit::forward`."""
        plain = {"cell": self.cell, "backend": self.backend, "bidirectional": self.bidirectional}
        return {**plain, "rates": list(self.rates)} if self.rates else plain

    @property
    def ends(self) -> int:
        """The number of final states: that of the cell's states."""
        return len(parsed(self.cell)[0].states)

    def split(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """States, masks and weights."""
        first = self.states
        second = first + self.masks
        return list(tensors[:first]), list(tensors[first:second]), list(tensors[second:])


class Wanted:
    """Which gradients a backward computes, beside those of the initial states: that of x, and those of the weights.

    `rnnkit::backward` returns a list without those that are not wanted. Not a tuple, as `Stack`.
    """

    __slots__ = ("dweights", "dx")

    def __init__(self, dx: bool = True, dweights: bool = True) -> None:
        self.dx = dx
        self.dweights = dweights

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `rnnkit::backward`."""
        return {} if self.dx and self.dweights else {"wants_dx": self.dx, "wants_dweights": self.dweights}

    def of(self, grads: Sequence[Any], states: int) -> list[Any]:
        """Those of the gradients of x, of the states and of the weights that are wanted."""
        first = 0 if self.dx else 1
        end = None if self.dweights else 1 + states
        return list(grads[first:end])

    def filled(self, grads: Sequence[Any], states: int, weights: int) -> list[Any]:
        """The reverse of `of`, with None for the others. weights: how many there are."""
        of_x = [] if self.dx else [None]
        of_weights = [] if self.dweights else [None] * weights
        return [*of_x, *grads, *of_weights]


def forward(
    stack: Stack,
    x: Tensor,
    state0: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    keep: bool,
) -> list[Tensor]:
    """`rnnkit::forward`."""
    tensors = (x, state0, weights, masks, lengths)
    if nobody_watches(x, *state0, *weights):
        return operators.forward(*tensors, **stack.options, keep=keep)
    return _FORWARD(*tensors, **stack.options, keep=keep, layout=operators.LAYOUT)


def backward(
    stack: Stack,
    wanted: Wanted,
    dresults: Sequence[Tensor | None],
    x: Tensor,
    state0: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    reserve: Tensor,
) -> list[Tensor]:
    """`rnnkit::backward`. dresults: the gradients of y and of the final states, None for zeros."""
    given = [d for d in dresults if d is not None]
    # The older vmap of PyTorch batches the gradients alone.
    batched = torch._C._functorch.is_legacy_batchedtensor
    direct = nobody_watches(x, *given, *state0, *weights) and not any([batched(d) for d in given])  # noqa: C419
    call: Any = operators.backward if direct else _BACKWARD
    return call(
        dresults[0],
        list(dresults[1:]),
        x,
        state0,
        weights,
        masks,
        lengths,
        reserve,
        **stack.options,
        **wanted.options,
    )


def nobody_watches(*tensors: Tensor) -> bool:
    """Whether an operator's function may be called without PyTorch's dispatcher, which takes about 10 us.

    Not where the dispatcher has more to do than to call it: for subclasses of Tensor, transforms and modes, while a
    model is traced or profiled.
    """
    if torch.compiler.is_compiling():
        return False
    return (
        _PLAIN.issuperset(map(type, tensors))
        and not _modes()
        and not _transformed()
        and _tracing() is None
        and not _profiled()
        and (tensors[0].is_cpu or tensors[0].is_cuda)
    )
