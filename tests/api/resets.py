"""The equations of resets and masks as a loop over steps, and calls of layers beside it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit.core.cells import Weights
from rnnkit.core.devices import to_numpy
from rnnkit.functional import stack
from rnnkit.nn.rnn import PARTS
from tests.helpers import parts, randn, random_state


class Inputs(NamedTuple):
    """Arguments of a call, time-major; flags (T, B) or None."""

    x: np.ndarray
    h0: Any
    lengths: Any = None
    resets: Any = None
    reset_state: Any = None
    mask: Any = None
    zero_output_for_mask: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of a call."""
        return {name: value for name, value in self._asdict().items() if name not in ("x", "h0")}


def inputs(layer: Any, rng: np.random.Generator, T: int = 7, B: int = 5, kinds: str = "resets mask lengths") -> Inputs:
    """Random arguments with what `kinds` names: resets, given (the reset state), mask, zero, lengths."""
    names = kinds.split()
    lengths = None
    if "lengths" in names:
        lengths = rng.integers(0, T + 1, B)
        lengths[:3] = (T, 0, max(T - 2, 0))[:B]
    return Inputs(
        x=randn(rng, T, B, layer.input_size, dtype=layer.dtype),
        h0=random_state(layer, B, rng),
        lengths=lengths,
        resets=rng.random((T, B)) < 0.3 if "resets" in names else None,
        reset_state=random_state(layer, B, rng) if "given" in names else None,
        mask=rng.random((T, B)) < 0.7 if "mask" in names else None,
        zero_output_for_mask="zero" in names,
    )


def by_steps(layer: Any, given: Inputs, masks: list[np.ndarray] | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """y and the final states by the equations, one step of one direction at a time. masks: those of dropout."""
    x = given.x
    T, B, _ = x.shape
    starts = parts(given.h0)
    again = [np.zeros_like(s) for s in starts] if given.reset_state is None else parts(given.reset_state)
    lengths = np.full(B, T) if given.lengths is None else np.asarray(given.lengths)
    resets = np.zeros((T, B), bool) if given.resets is None else given.resets
    mask = np.ones((T, B), bool) if given.mask is None else given.mask
    ends = [np.empty_like(s) for s in starts]
    D = layer.num_directions
    for k in range(layer.num_layers):
        sides = []
        for d in range(D):
            suffix = f"_l{k}" + "_reverse" * d
            w = Weights(*[layer.params.get(name + suffix) for _, name in PARTS])
            slot = k * D + d
            state = tuple(s[slot] for s in starts)
            y = np.zeros((T, B, starts[0].shape[2]), x.dtype)
            output = np.zeros((B, starts[0].shape[2]), x.dtype)
            for t in reversed(range(T)) if d else range(T):
                inside = (t < lengths)[:, None]
                # Where a segment begins in this direction: at a reset; backwards where the step after is a reset.
                if d == 0:
                    begins = inside & resets[t][:, None]
                else:
                    begins = (t + 1 < lengths)[:, None] & (resets[t + 1][:, None] if t + 1 < T else False)
                state = tuple(np.where(begins, a[slot], s) for a, s in zip(again, state, strict=True))
                output = np.where(begins, 0, output)
                x_side = x[t] @ w.w_ih.T + (0 if w.b_ih is None else w.b_ih)
                new, _ = layer.cell.forward(x_side, state, w)
                live = inside & mask[t][:, None]
                state = tuple(np.where(live, n, s) for n, s in zip(new, state, strict=True))
                output = np.where(live, new[0], output)
                y[t] = np.where(live | (inside & (not given.zero_output_for_mask)), output, 0)
            sides.append(y)
            for whole, part in zip(ends, state, strict=True):
                whole[slot] = part
        x = np.concatenate(sides, -1)
        if masks is not None and k < layer.num_layers - 1:
            x = x * masks[k]
    return x, ends


def drawn_masks(layer: Any, T: int, B: int, seed: int) -> list[np.ndarray]:
    """The dropout masks of the first call of a layer made with rng=seed: what its parameters leave of the generator."""
    rng = np.random.default_rng(seed)
    type(layer)(layer.input_size, layer.hidden_size, layer.num_layers, bidirectional=layer.bidirectional, rng=rng)
    like = np.empty((T, B, layer.output_size), layer.dtype)
    return [stack.dropout_mask(like, layer.dropout, rng) for _ in range(layer.num_layers - 1)]


def trained(layer: Any, given: Inputs, dy: Any, dstate: Any, **more: Any) -> dict[str, np.ndarray]:
    """Forward and backward from cleared gradients: every output and gradient by name. more: arguments of the call."""
    layer.zero_grad()
    y, state_n = layer(given.x, given.h0, **given.options, **more)
    dx, *dstates = layer.backward(dy, dstate)
    found = {"y": y, "dx": dx}
    found |= {f"state_n[{k}]": s for k, s in enumerate(parts(state_n))}
    for name, d in zip(("dstate0", "dreset_state"), dstates, strict=False):
        found |= {f"{name}[{k}]": s for k, s in enumerate(parts(d))}
    found |= {f"grad {name}": g for name, g in layer.grads.items()}
    return {name: np.array(to_numpy(value)) for name, value in found.items()}


def kind_of(name: str) -> str:
    """Whose tolerance a result of `trained` has."""
    return "forward" if name == "y" or name.startswith("state_n") else "backward"
