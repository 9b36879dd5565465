"""The layers as a loop over steps in PyTorch's own operators: what PyTorch can differentiate to any order.

Used where the kernels have no derivative: double backward and forward mode. The equations are those of
rnnkit/core/cells.py, which the tests hold both to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rnnkit.core.cells import Weights
from rnnkit.core.option_arguments import parsed
from rnnkit.torch.arrays import Tensor, as_weights, parts_of_each, state_shapes
from rnnkit.torch.option_equations import step_of

# One step: (x_side (B, G*H) = x W_ih^T + b_ih, state, weights) -> the new state.
Step = Callable[[Tensor, tuple[Tensor, ...], Weights], tuple[Tensor, ...]]


def _hidden_side(h: Tensor, w: Weights, first: int = 0, end: int | None = None) -> Tensor:
    product = h @ w.w_hh[first:end].T
    return product if w.b_hh is None else product + w.b_hh[first:end]


def _rnn(activation: Callable[[Tensor], Tensor]) -> Step:
    def step(x_side: Tensor, state: tuple[Tensor, ...], w: Weights) -> tuple[Tensor, ...]:
        return (activation(x_side + _hidden_side(state[0], w)),)

    return step


def _gru(x_side: Tensor, state: tuple[Tensor, ...], w: Weights) -> tuple[Tensor, ...]:
    (h,) = state
    x_r, x_z, x_n = x_side.chunk(3, -1)
    h_r, h_z, h_n = _hidden_side(h, w).chunk(3, -1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return ((1 - z) * n + z * h,)


def _gru_reset_before(x_side: Tensor, state: tuple[Tensor, ...], w: Weights) -> tuple[Tensor, ...]:
    (h,) = state
    H = h.shape[-1]
    x_r, x_z, x_n = x_side.chunk(3, -1)
    h_r, h_z = _hidden_side(h, w, 0, 2 * H).chunk(2, -1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + _hidden_side(r * h, w, 2 * H))
    return ((1 - z) * n + z * h,)


def _lstm(x_side: Tensor, state: tuple[Tensor, ...], w: Weights) -> tuple[Tensor, ...]:
    h, c = state
    i, f, g, o = (x_side + _hidden_side(h, w)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    m = torch.sigmoid(o) * torch.tanh(c)
    return (m if w.w_hr is None else m @ w.w_hr.T, c)


def _slstm(x_side: Tensor, state: tuple[Tensor, ...], w: Weights) -> tuple[Tensor, ...]:
    h, c, n, m = state
    a_i, a_f, a_z, a_o = (x_side + _hidden_side(h, w)).chunk(4, -1)
    p = torch.nn.functional.logsigmoid(a_f) + m
    # Where both are equal, the gradient is that of a_i; `torch.maximum` would give half of it to each.
    m = torch.where((a_i < p) & (n != 0), p, a_i)
    i = torch.exp(a_i - m)
    lead = p - m
    # Not `clamp`: releases of PyTorch differ in its gradient at a limit. Here it is that of the argument.
    f = torch.exp(torch.where(lead > 0, 0.0, lead))
    c = f * c + i * torch.tanh(a_z)
    total = f * n + i
    n = torch.where(total < 1, 1.0, total)
    return (torch.sigmoid(a_o) * c / n, c, n, m)


STEPS: dict[str, Step] = {
    "rnn_tanh": _rnn(torch.tanh),
    "rnn_relu": _rnn(torch.relu),
    "gru": _gru,
    "gru_reset_before": _gru_reset_before,
    "lstm": _lstm,
    "slstm": _slstm,
}


def run(stack: Any, lengths: Tensor | None, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """y and the final states of a `Stack` (rnnkit/torch/dispatch.py), as `rnnkit::forward` computes them."""
    states, masks, weights = stack.split(tensors)
    lengths = None if lengths is None else lengths.to(x.device, non_blocking=True)
    directions = 2 if stack.bidirectional else 1
    cell, constants = parsed(stack.cell)
    step = step_of(cell, constants) if cell.options else STEPS[cell.name]
    count = parts_of_each(weights, cell)
    slots = len(weights) // count
    if not states:
        states = [x.new_zeros(shape) for shape in state_shapes(weights, cell, x.shape[1])]
    ends: list[tuple[Tensor, ...]] = []
    for layer in range(slots // directions):
        sides = []
        for direction in range(directions):
            slot = layer * directions + direction
            w = as_weights(weights[slot * count : (slot + 1) * count], cell)
            start = tuple(s[slot] for s in states)
            y, end = _direction(step, x, start, w, lengths, direction == 1, not cell.normalises)
            sides.append(y)
            ends.append(end)
        x = torch.cat(sides, -1)
        if masks and layer < len(masks):
            x = x * masks[layer]
    return (x, *(torch.stack(of_all) for of_all in zip(*ends, strict=True)))


def _direction(
    step: Step,
    x: Tensor,
    state: tuple[Tensor, ...],
    w: Weights,
    lengths: Tensor | None,
    reverse: bool,
    adds_bias: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """adds_bias: whether b_ih is part of x_side, and not added by the step."""
    T, B, _ = x.shape
    if T == 0:
        return x.new_zeros((0, B, w.w_hh.shape[1])), state
    x_side = x @ w.w_ih.T
    if adds_bias and w.b_ih is not None:
        x_side = x_side + w.b_ih
    outputs: list[Any] = [None] * T
    for t in reversed(range(T)) if reverse else range(T):
        new = step(x_side[t], state, w)
        if lengths is None:
            state = new
            outputs[t] = new[0]
            continue
        live = (t < lengths)[:, None]
        state = tuple(torch.where(live, n, s) for n, s in zip(new, state, strict=True))
        outputs[t] = torch.where(live, new[0], torch.zeros_like(new[0]))
    return torch.stack(outputs), state


def _refuse_random_masks(stack: Any) -> None:
    if stack.rates:
        raise NotImplementedError(
            "double backward and forward mode of a layer with zoneout, input, recurrent or weight dropout: it has a "
            "first derivative, by backward, alone"
        )


def forward_mode(
    stack: Any, lengths: Tensor | None, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """The tangents of the results of `run` at x, states, masks and weights. None for a tangent means zeros."""
    _refuse_random_masks(stack)
    return _push(lambda *given: run(stack, lengths, *given), primals, tangents)


def _push(
    function: Callable[..., tuple[Tensor, ...]], primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """J v for the tangents v. By two reverse passes, since PyTorch does not nest forward mode: u -> J^T u is linear,
    and its transpose is J."""
    results, pull = torch.func.vjp(function, *primals)
    _, transposed = torch.func.vjp(lambda *u: pull(u), *map(torch.zeros_like, results))
    return transposed(_filled(primals, tangents))


def backward(
    stack: Any, lengths: Tensor | None, dresults: Sequence[Tensor | None], tensors: Sequence[Tensor]
) -> list[Tensor]:
    """What `rnnkit::backward` computes, all of it. dresults: dy and dstate_n; tensors: x, states, masks and weights."""
    _refuse_random_masks(stack)
    results, pull = torch.func.vjp(lambda *given: run(stack, lengths, *given), *tensors)
    grads = pull(_filled(results, dresults))
    n = 1 + stack.states
    return [*grads[:n], *grads[n + stack.masks :]]


def differentiate_backward(
    stack: Any, wanted: Any, lengths: Tensor | None, tensors: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of `rnnkit::backward`: for each of `tensors`, given those of its results.

    wanted: which results it has, a `Wanted` of rnnkit/torch/dispatch.py. tensors: dy, dstate_n, x, states, masks,
    weights. None among the first two means zeros, and gets None.
    """
    gradients, given = _backward_as_function(stack, wanted, lengths, tensors)
    results, pull = torch.func.vjp(gradients, *given)
    return [None if t is None else g for t, g in zip(tensors, pull(_filled(results, grads)), strict=True)]


def forward_mode_of_backward(
    stack: Any, wanted: Any, lengths: Tensor | None, tensors: Sequence[Tensor | None], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """The tangents of the results of `rnnkit::backward`, given those of `tensors`, see `differentiate_backward`."""
    gradients, given = _backward_as_function(stack, wanted, lengths, tensors)
    return _push(gradients, given, tangents)


def _backward_as_function(
    stack: Any, wanted: Any, lengths: Tensor | None, tensors: Sequence[Tensor | None]
) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """`rnnkit::backward` as a function of `tensors`, and these with a zero in place of each None."""
    _refuse_random_masks(stack)
    first = 1 + stack.ends
    n = 1 + stack.states
    zero = tensors[first].new_zeros(())

    def gradients(*given: Tensor) -> tuple[Tensor, ...]:
        results, pull = torch.func.vjp(lambda *primals: run(stack, lengths, *primals), *given[first:])
        dresults = [torch.zeros_like(r) if t is None else d for r, t, d in zip(results, tensors, given, strict=False)]
        of_all = pull(tuple(dresults))
        of_inputs = (*of_all[:n], *of_all[n + stack.masks :])  # not those of the masks, as `rnnkit::backward`
        return tuple(wanted.of(of_inputs, stack.states))

    return gradients, [zero if t is None else t for t in tensors]


def _filled(like: Sequence[Tensor], given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(a) if b is None else b for a, b in zip(like, given, strict=True))
