"""Between the layout of a caller of a recurrent layer and (T, B, ·): batch_first, unbatched, states or none."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkit.core import checks
from rnnkit.core.cells import Cell
from rnnkit.core.devices import array_module
from rnnkit.nn.module import Array, Module


class CallersLayout(Module):
    """What a recurrent layer checks and converts, of its arguments and its results."""

    cell: Cell
    batch_first: bool
    num_layers: int
    num_directions: Any
    _state_widths: Any

    def _time_major(self, name: str, a: Array, width: int) -> tuple[Array, bool]:
        a = checks.array(name, a, self.dtype, self.device)
        layout = "(B, T, {w})" if self.batch_first else "(T, B, {w})"
        letter = "input_size" if name == "x" else "width of y"
        if a.ndim not in (2, 3) or a.shape[-1] != width:
            layout = layout.format(w=f"{letter}={width}")
            raise ValueError(f"{name} must have shape {layout} or (T, {letter}={width}), got {tuple(a.shape)}")
        if a.ndim == 2:
            return a[:, None, :], True
        return (a.swapaxes(0, 1) if self.batch_first else a), False

    def _states(self, state: Any, names: str, B: int, unbatched: bool) -> tuple[Array, ...]:
        """The states as checked arrays (L*D, B, ·) each; None becomes zeros. names: with {} for the state's letter."""
        widths = self._state_widths()
        slots = self.num_layers * self.num_directions
        if state is None:
            like: Any = np if self._device == "cpu" else array_module(next(iter(self._params.values())))
            return tuple([like.zeros((slots, B, width), self._dtype.storage) for width in widths])
        if self._device == "cpu" and not unbatched:
            # Fast path for the most common arguments. The checks below report what is wrong with others.
            states = state if len(widths) > 1 else (state,)
            dtype = self._dtype.storage
            if type(states) is tuple and len(states) == len(widths):
                for s, width in zip(states, widths, strict=True):
                    if type(s) is not np.ndarray or s.shape != (slots, B, width) or s.dtype != dtype:
                        break
                else:
                    return states
        lead = (slots,) if unbatched else (slots, B)
        means = "(L*D, width)" if unbatched else "(L*D, B, width)"
        named = [names.format(letter) for letter in self.cell.states]  # for errors alone
        checked = checks.states(state, named, [(*lead, w) for w in widths], self.dtype, self.device, means)
        xp: Any = array_module(next(iter(self._params.values())))
        return tuple(
            xp.zeros((slots, B, width), self.dtype) if s is None else s.reshape(slots, B, width)
            for s, width in zip(checked, widths, strict=True)
        )

    def _user_layout(self, a: Array, unbatched: bool) -> Array:
        if unbatched:
            return a[:, 0]
        return a.swapaxes(0, 1) if self.batch_first else a

    def _user_state(self, state: tuple[Array, ...], unbatched: bool) -> Any:
        state = tuple(s[:, 0] for s in state) if unbatched else state
        return state[0] if len(state) == 1 else state
