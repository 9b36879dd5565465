"""The products of one step of a cell, as the resident schedules compute them: kernels/cuda/resident_stage.cuh."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from rnnkit.core.cells import CELLS, Array, Cell, Weights
from rnnkit.kernels.cells import HEADERS


class Product(NamedTuple):
    """The sums of a step's row: `outputs` numbers for each of `units` units, over K columns."""

    outputs: int
    units: int
    K: int


class Matrix(NamedTuple):
    """Rows of a weight: `gates` times `units` rows of K columns, from row `first` of `array` on."""

    array: Array
    first: int
    gates: int
    units: int
    K: int


class Step(NamedTuple):
    """A cell with its sizes. R = P under projection, else H."""

    cell: Cell
    H: int
    R: int
    projected: bool

    @classmethod
    def of(cls, given: Any) -> Step:
        """Of a `problem.Problem`."""
        return cls(given.cell, given.H, given.R, given.projected)

    @property
    def first_gates(self) -> int:
        """Gates of the first product."""
        _, _, end = self.cell.products[0]
        return end

    @property
    def stages(self) -> int:
        """Products of a step; under exchange between blocks, its messages."""
        return 2 if self.projected or self.cell.resets_before else 1

    @property
    def forward(self) -> tuple[Product, ...]:
        """The products of a forward step, first the one of h."""
        first = Product(self.first_gates, self.H, self.R)
        return (first, Product(1, self.R, self.H))[: self.stages]

    @property
    def backward(self) -> tuple[Product, ...]:
        """The same products with their weights transposed."""
        first = Product(1, self.R, self.first_gates * self.H)
        return (first, Product(1, self.H, self.R))[: self.stages]

    def matrices(self, weights: Weights) -> tuple[Matrix, ...]:
        """The weights of the products of a forward step."""
        first = Matrix(weights.w_hh, 0, self.first_gates, self.H, self.R)
        if self.projected:
            return first, Matrix(weights.w_hr, 0, 1, self.R, self.H)
        if self.cell.resets_before:
            return first, Matrix(weights.w_hh, self.first_gates * self.H, 1, self.R, self.H)
        return (first,)

    def sized(self, H: int) -> Step:
        """The largest step of H units that the same kernels compute."""
        return self._replace(H=H, R=H)


def cell_problem(cell: Cell) -> str | None:
    """Why the resident schedules do not serve a cell, or None."""
    if cell.options:
        return f"cell {cell.key}: its kernels have no options"
    if cell.n_cell_states > 1:
        return f"cell {cell.key}: its kernels keep one state beside h, the cell has {', '.join(cell.states[1:])}"
    return None


def variants() -> Iterator[Step]:
    """A step of each kind that has kernels of its own, with sizes of 1."""
    for cell in (CELLS[name] for name in HEADERS):
        if cell_problem(cell):
            continue
        yield Step(cell, 1, 1, projected=False)
        if cell.projects:
            yield Step(cell, 1, 1, projected=True)
