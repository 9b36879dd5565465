"""The stages of one time step: what differs from cell to cell inside the time loops of kernels/cpu/scan.py.

A step has one product on the hidden side and a pointwise stage, and may have a second product whose operand the first
stage computes:

    projection          m = o tanh(c), then h = m W_hr^T
    reset before        r h', then n = tanh(x_n + (r h') W_hn^T + b_hn)

`ForwardStages` and `BackwardStages` are compiled functions. They take a (a `Forward` or `Backward`), s (its `Shape`), p
(the thread's `Part`), share (a `Share`), w (the thread's `Packed` weights) and step. The members of a group read each
other's units of h at the next step, from the other of two states that are written in turn, so one barrier per step is
enough; with a second product there is another one between the stages.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.rows import row_functions


class Share(NamedTuple):
    """One thread's part of a row: `units` of H from unit0 on, `outputs` of R from output0 on.

    row_g: bytes of a row of gates (forward) or of their gradients (backward)
    """

    units: int
    outputs: int
    unit0: int
    output0: int
    row_g: int


class Packed(NamedTuple):
    """Addresses of this thread's packed weights: input side, hidden side, second product, and z of a reset-before
    GRU."""

    x: int
    h: int
    second: int
    z: int


class Step(NamedTuple):
    """One step: its time, the offset of its rows in packed arrays, the end of its live rows in this group, their
    number, and whether weights are walked backwards, which alternates.

    Forward only: addresses of the gates (of the thread's first row), of the hidden side where it is kept apart, of row
    0 of the state before and after the step, and of the operand of the hidden product: the state before, or with
    dropout on h what it was multiplied to.
    """

    t: int
    at: int
    end: int
    rows: int
    odd: int
    gates: int
    side: int
    h: int
    h_new: int
    operand: int


class ForwardStages(NamedTuple):
    """pack(a, s, p); packed(a, s, share) -> Packed; first, between, second(a, s, p, share, w, step).

    `between` computes what depends on neither stage, while members wait for each other.
    """

    pack: Any
    packed: Any
    first: Any
    between: Any
    second: Any


class BackwardStages(NamedTuple):
    """pack(a, s, p); packed(a, s, share) -> Packed; and in the order of a step, each (a, s, p, share, w, step):

    second_rows, second_product where there is a second product, first_rows, first_product.
    """

    pack: Any
    packed: Any
    second_rows: Any
    second_product: Any
    first_rows: Any
    first_product: Any


def share_maker(cell: Any, dtype: str) -> Any:
    """share_of(s, p, whole): the thread's share.

    Rows of gates are of all H units and operands where `whole`, else of the share and computed.
    """
    computed_size = formats(dtype).computed.itemsize
    operand_size = formats(dtype).operand.itemsize
    first_unit = row_functions(dtype).first_unit
    G = cell.n_gates

    @inner
    def share_of(s, p, whole):
        unit0 = first_unit(s.H, s.members, p.member)
        output0 = first_unit(s.R, s.members, p.member)
        units = first_unit(s.H, s.members, p.member + 1) - unit0
        outputs = first_unit(s.R, s.members, p.member + 1) - output0
        row_g = G * s.H * operand_size if whole else G * units * computed_size
        return Share(units, outputs, unit0, output0, row_g)

    return share_of


def cell_states(dtype: str, forward: bool) -> Any:
    """cells_of(a, s): address of the cell states c (B, H) or their gradients, in the caller's order.

    Where the caller's array has the format of computed numbers, they are in the array of the results.
    """
    if formats(dtype).mixed:

        @inner
        def cells_of(a, s):
            return a.workspace + s.cells

    elif forward:

        @inner
        def cells_of(a, s):
            return a.c_n

    else:

        @inner
        def cells_of(a, s):
            return a.dc0

    return cells_of


@inner
def operands_of(a, s):
    """Address of the operands of a second product: those of every row-step where they are saved, else of one step."""
    return a.saved.operand if s.keep else a.workspace + s.exchanged
