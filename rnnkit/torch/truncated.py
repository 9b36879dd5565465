"""Truncated backpropagation through time of the layers: calls of `run` on chunks of steps, and cuts between them.

So all derivatives, transforms and devices are those of `run`. The state is carried through the whole sequence; at a
boundary, a step that is a multiple of k, it is detached for the rows that continue across it (Williams and Peng, Neural
Computation 2, 1990). A stack in one direction runs chunk by chunk as a whole, since a step of a layer needs no later
step of the layer below. In two directions it runs layer by layer and direction by direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from rnnkit.core import checks
from rnnkit.functional.step_flags import StepFlags
from rnnkit.torch.arrays import Tensor
from rnnkit.torch.autograd import function_for, run
from rnnkit.torch.dispatch import Stack


def checked_truncate(layer: Any, truncate: Any, flags: StepFlags | None) -> int:
    """`truncate` as an int, where a call of the layer can have it."""
    k = checks.positive_int("truncate", truncate)
    if flags is not None:
        raise ValueError(f"truncate must be None with resets, reset_state or mask, got {k}")
    if layer.bidirectional and layer.training and layer.regularisation is not None:
        raise NotImplementedError(
            f"truncate={k} in training mode of a bidirectional layer with zoneout, input_dropout, recurrent_dropout or "
            "weight_dropout: rnnkit's plain layers serve it"
        )
    return k


def run_truncated(
    stack: Stack,
    x: Tensor,
    state0: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    layers: int,
    k: int,
) -> tuple[Tensor, Sequence[Tensor]]:
    """As `rnnkit.torch.autograd.run`, with gradients of states cut at steps that are multiples of k.

    layers: L. Where no derivative can be asked for, or no step is cut, this is one call of `run`.
    """
    # While a graph is traced, `function_for` does not say whether a derivative can be asked for.
    recorded = torch.compiler.is_compiling() or function_for((x, *state0, *weights)) is not None
    if x.shape[0] <= k or not recorded:
        return run(stack, x, state0, weights, masks, lengths)
    chunks = _chunks(x, lengths, k, stack.bidirectional)
    if not stack.bidirectional:
        return _one_direction(stack, x, state0, weights, masks, chunks)
    *dropped, noise = masks if stack.rates else (*masks, None)
    of_direction = [] if noise is None else [noise]
    count = len(weights) // (2 * layers)
    ends = []
    for layer in range(layers):
        sides = []
        for slot in (2 * layer, 2 * layer + 1):
            start = [s[slot : slot + 1] for s in state0]
            own = weights[slot * count : (slot + 1) * count]
            y, end = _one_direction(stack, x, start, own, of_direction, chunks, slot % 2 == 1)
            sides.append(y)
            ends.append(end)
        x = torch.cat(sides, -1)
        if layer < len(dropped):
            x = x * dropped[layer]
    return x, [torch.cat(of_all) for of_all in zip(*ends, strict=True)]


class _Chunk(NamedTuple):
    """The steps t0 to t1 - 1, and of rows of different lengths:

    lengths    (B,) the number of steps of each row in the chunk, on the host
    continues  (B, 1) which rows have steps after it
    reversal   ((t1 - t0) B,) for each step of a row, in reverse order, its place in the chunk; padding stays in place
    """

    t0: int
    t1: int
    lengths: Tensor | None = None
    continues: Tensor | None = None
    reversal: Tensor | None = None


def _chunks(x: Tensor, lengths: Tensor | None, k: int, reverses: bool) -> list[_Chunk]:
    """reverses: whether `reversal` is needed. It is made once for all layers, as autograd saves it."""
    T, B, _ = x.shape
    spans = [(t, min(T, t + k)) for t in range(0, T, k)]
    if lengths is None:
        return [_Chunk(*span) for span in spans]
    on_device = lengths.to(x.device, non_blocking=True)
    chunks = []
    for t0, t1 in spans:
        reversal = None
        if reverses:
            steps = on_device.clamp(t0, t1) - t0
            step = torch.arange(t1 - t0, device=x.device)[:, None]
            source = torch.where(step < steps, steps - 1 - step, step)
            reversal = (source * B + torch.arange(B, device=x.device)).flatten()
        chunks.append(_Chunk(t0, t1, lengths.clamp(t0, t1) - t0, (on_device > t1)[:, None], reversal))
    return chunks


def _one_direction(
    stack: Stack,
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    chunks: Sequence[_Chunk],
    reverse: bool = False,
) -> tuple[Tensor, Sequence[Tensor]]:
    """The layers of these weights in one direction."""
    *dropped, noise = masks if stack.rates else (*masks, None)
    ys = []
    order = range(len(chunks))
    for j in reversed(order) if reverse else order:
        chunk = chunks[j]
        part = [mask[chunk.t0 : chunk.t1] for mask in dropped]
        if noise is not None:
            part.append(_noise_from(noise, x.shape[1], chunk.t0))
        steps = x[chunk.t0 : chunk.t1]
        given = _reversed(steps, chunk) if reverse else steps
        of_chunk = Stack(stack.cell, stack.backend, False, len(part), len(state), stack.rates)
        y, state = run(of_chunk, given, state, weights, part, chunk.lengths)
        ys.append(_reversed(y, chunk) if reverse else y)
        if j != order[0 if reverse else -1]:
            state = _cut(state, chunks[j - 1].continues if reverse else chunk.continues)
    return torch.cat(ys[::-1] if reverse else ys), state


def _cut(states: Sequence[Tensor], continues: Tensor | None) -> list[Tensor]:
    """The states at a boundary, detached for the rows that continue across it; None for all rows.

    The state of another row is its final one, or in the reverse direction its initial one.
    """
    if continues is None:
        return [s.detach() for s in states]
    return [torch.where(continues, s.detach(), s) for s in states]


def _reversed(a: Tensor, chunk: _Chunk) -> Tensor:
    """(t1 - t0, B, K) with the steps of each row in reverse order."""
    if chunk.reversal is None:
        return a.flip(0)
    # Not `gather`, for which autograd saves `a` too.
    return a.flatten(0, 1).index_select(0, chunk.reversal).view(a.shape)


def _noise_from(noise: Tensor, B: int, t0: int) -> Tensor:
    """The noise of a chunk, whose masks are those of the steps from t0: see rnnkit/torch/operators.py."""
    if not noise.numel():
        return noise
    return torch.cat([noise, torch.arange(B), torch.full((B,), t0)])
