"""Everything that the backward of a stack needs, in one flat array of bytes: the reserve.

`stack.forward` returns Python objects for `stack_backward`. A caller that can keep arrays only, such as an operator of
PyTorch, passes a reserve instead, and `stack.restored` makes the same objects from it. Layer by layer it holds y of the
layer, which is x of the next one (not of the last layer), and then what each direction's backend saves.
"""

from __future__ import annotations

from typing import Any

from rnnkit.backends import Choice, LayerCall, Sizes
from rnnkit.core.cells import Array, Cell

LINE = 64  # parts begin at multiples of this many bytes


class Reserve:
    """A reserve, of which `take` gives one part after the other."""

    def __init__(self, memory: Array) -> None:
        self.memory = memory  # (bytes,) uint8
        self.taken = 0

    def take(self, size: int) -> Array:
        """The next `size` bytes."""
        part = self.memory[self.taken : self.taken + size]
        self.taken += size
        return part

    def rest(self) -> Array:
        """All that is left."""
        return self.memory[self.taken :]

    def take_array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """The next part, as an array."""
        size = dtype.itemsize
        for n in shape:
            size *= n
        return self.take(_whole_lines(size))[:size].view(dtype).reshape(shape)


def layer_bytes(choice: Choice, cell: Cell, sizes: Sizes, ragged: bool) -> int:
    """Bytes of what one layer and direction saves: 0 for a backend that runs its forward again in `saved_of`."""
    reserve_bytes = getattr(choice.backend, "reserve_bytes", None)
    return 0 if reserve_bytes is None else reserve_bytes(cell, choice.dtype, sizes, ragged)


def stack_bytes(choice: Choice, cell: Cell, sizes: Sizes, layers: int, directions: int, ragged: bool) -> int:
    """Bytes of the reserve of a stack; sizes are those of its first layer. T and B may be symbols."""
    total = directions * layer_bytes(choice, cell, sizes, ragged)
    if layers == 1:
        return total
    T, B, _, _, R, _ = sizes
    between = _whole_lines(T * B * directions * R * choice.dtype.storage.itemsize)
    above = sizes._replace(I=directions * R)
    return total + (layers - 1) * (between + directions * layer_bytes(choice, cell, above, ragged))


def saved_of(choice: Choice, call: LayerCall) -> Any:
    """What the forward of `call` returned as `saved`, from `call.reserve`, or computed again."""
    saved_in_reserve = getattr(choice.backend, "saved_in_reserve", None)
    if saved_in_reserve is not None:
        return saved_in_reserve(call)
    _, _, saved = choice.backend.forward(call)
    return saved


def _whole_lines(size: int) -> int:
    return (size + LINE - 1) // LINE * LINE
