"""Numba CUDA: a whole sequence in one launch, a block per four batch rows. The readable counterpart of the CUDA C++.

A step has one product, or two. The second one is the projection, or the product that r h' waits for in a GRU that
resets before; FIRST is the number of gates of the first one.

    forward     for every unit: its gates' products h W_hh, then the cell, or the gates r and z and r h'
                second product: (o tanh(c)) W_hr, or (r h') W_hn, then n and h
    backward    last step first. Second product: dh W_hr, or the gradients of z and n, then those of n times W_hn
                for every unit the cell, or the gradient of r; then dh += du W_hh over the gates of the first product

Thread i of a block has the units i, i + threads, i + 2 threads, … of all its rows, so H is arbitrary. The product of
the first stage is tiled: the block copies a tile of h (backward: of du) of its ROWS rows to shared memory, and each
weight that a thread reads is multiplied by a number of every row. A thread's sums wait in shared memory, where no other
thread reads them, for a loop over the rows. What one thread writes and all read (h, du, and the operands and gradients
of a second product) is in arrays with one entry per step, mostly the results themselves (y, dgates_h), so one barrier
between writing and reading is enough. Without `keep` the arrays of a second product have one entry for all steps, and
the barrier after it protects them. What only its own thread accesses (c, dc, dh) needs no barrier. No sum runs across
threads, so the results do not depend on the order of threads.

A row has its own number of steps, and its own t in each of them. It ends after them: the block goes on with the others,
and no block waits for another. Blocks past the batch do nothing; they exist because Numba warns about small grids.

S is the dtype's storage, C its compute; n_c is the number of states beside h, which c has side by side. All arrays are
C-contiguous. Numba has no optional arguments, so an array that a cell or a call does not use is passed with one
element: c's arrays under RNN and GRU, those of a projection without one, what is saved without `keep`.

    lengths (B,) int64                      the steps of each row
    gates_x (T, B, G*H) C                   x W_ih^T
    bias_x, bias_h (G*H) S                  b_ih, b_hh
    w (R, G*H), w_proj (H, P) S             forward: W_hh and W_hr transposed, so that neighbouring threads read
                                            neighbouring elements
    w (G*H, R), w_proj (P, H) S             backward: untransposed, for the same reason
    h (B, R) S, c (B, n_c*H) C              in: the initial states; out: the final ones
    y (T, B, R) S                           zero past a row's end
    saved (T, B, n_saved*H) S               the values that the row of CELLS names, with `keep`
    h_prev (T, B, R) S                      h before each step, with `keep`
    c_prev (T, B, n_c*H) C                  c before each step, with `keep`
    m (T, B, H) S                           operand of the second product: o tanh(c) or r h'
    saved, m                                without `keep` (1, B, ·): one step, for cells that have a second product
    dy (T, B, R) S                          read if has_dy
    dgates_x, dgates_h (T, B, G*H) S        out; one array unless the cell splits its sides
    dh (B, R), dc (B, n_c*H) C              in: gradients of the final states; out: of the initial ones
    dproj (T, B, P) S                       out, under projection: the gradient of its output

Of cells with zoneout or dropout on h (rnnkit/core/noise_steps.py), with the rows of the batch:

    hidden (1 or G, B, R) C                 the mask on h in the first product, and in r h'; or one for each gate
    zone_h (T, B, R), zone_c (T, B, H)      uint8, 1 where old values are kept; or (1, 1, ·) for every step and row
    shares (2,) C                           the share of h and of c that is kept there
    direct (B, R) C                         backward: what zoneout passes by
    extras (n + K*H) C                      the n constants of a cell with options, then its weights per unit
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

from rnnkit.core.cells import CELLS, Cell
from rnnkit.kernels.cells import POINTWISE, Make
from rnnkit.kernels.numba_cuda.numbers import STORAGE
from rnnkit.kernels.numba_cuda.rows import argument_types
from rnnkit.kernels.numba_cuda.scan_backward import make_backward
from rnnkit.kernels.numba_cuda.scan_forward import make_forward


def kernels(cell: Cell, dtype: str) -> SimpleNamespace:
    """forward and backward of a cell and dtype. Numba compiles each at its first launch."""
    return _kernels(cell, POINTWISE[cell.name], dtype)


@cache
def _kernels(cell: Cell, make: Make, dtype: str) -> SimpleNamespace:
    """make: the row of POINTWISE, in the key of the cache."""
    return SimpleNamespace(forward=make_forward(cell, dtype), backward=make_backward(cell, dtype))


def signatures(dtype: str) -> dict[str, tuple[Any, ...]]:
    """The Numba types of each kernel's arguments, the same for every cell."""
    a = argument_types(dtype)
    noise = (a.U3, a.U3, a.C1)
    given = (a.C3, a.lengths, a.flag, a.flag, a.flag, a.S1, a.S1, a.S2, a.S2)
    gradients = (a.S3, a.flag, a.lengths, a.flag, a.flag, a.S2, a.S2)
    states = (a.S3, a.S3, a.C3)
    results = (a.S3, a.S3, a.C2, a.C2, a.S3)
    return {
        "forward": (*given, a.S2, a.C2, a.S3, *states, a.S3, a.C1, a.C3, *noise),
        "backward": (*gradients, *states, *results, a.C1, a.C3, a.C2, *noise),
    }


def compilable() -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Every kernel and dtype: its name, its dispatcher, not compiled yet, and the Numba types of its arguments."""
    for cell in (CELLS[name] for name in POINTWISE):
        for dtype in STORAGE:
            for name, signature in signatures(dtype).items():
                yield f"{name}-{cell.name}-{dtype}", getattr(kernels(cell, dtype), name), signature
