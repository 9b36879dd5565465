"""After the backward loop: the gradients of the weights per unit, each a sum over all row-steps.

The threads share the units, so no sum is split, and bits do not depend on their number. Four row-steps are added up
first, and those sums with compensation (Kahan, 1965), which takes four operations, two loads and two stores each: the
error does not grow with the row-steps.
"""

from __future__ import annotations

from typing import Any

from rnnkit.kernels.cells import pointwise_of
from rnnkit.kernels.cpu.activations import activations
from rnnkit.kernels.cpu.arguments import read_extras
from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.memory import minimum
from rnnkit.kernels.cpu.rows import row_functions


def unit_gradient_room(cell: Any, H: int, threads: int, lanes: int) -> int:
    """How many computed numbers of memory a thread needs: two per weight of its units, in whole vectors."""
    vectors_of_all = -(-H // lanes)
    return 2 * cell.n_unit_sums * -(-vectors_of_all // threads) * lanes


def make_unit_gradients(cell: Any, dtype: str) -> Any:
    """unit_gradients(a, s, p, index): a a `Backward`, s its `Shape`, p the thread's `Part`. All have synchronised.

    Nothing where no gradients of weights are wanted.
    """
    if not cell.unit_weights:

        @inner
        def nothing(a, s, p, index):
            pass

        return nothing

    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    v = form.computed
    pointwise = pointwise_of(cell, inner, activations(v.dtype))
    prepared = pointwise.prepared
    unit_gradients_of = pointwise.unit_gradients
    load_numbers = v.load_numbers
    first_unit = row_functions(dtype).first_unit
    zero = v.zero
    K = cell.n_unit_sums
    NORM = cell.normalises
    HAS_C = cell.has_c
    G = cell.n_norm_gradients if NORM else cell.n_gates
    SAVED = cell.n_saved
    CONSTANTS = len(cell.constants)
    STORED = stored.itemsize
    COMPUTED = v.itemsize
    lanes = v.lanes
    load_sums = v.whole.load
    store_sums = v.whole.store
    add_blocks = v.add_blocks
    source = v if NORM else operand
    SOURCE = source.itemsize
    store_result = stored.first.store

    def units(part):
        load_values = getattr(stored, part).load_blocks
        load_gates = getattr(source, part).load_blocks
        load_c = getattr(v, part).load

        @inner
        def summands(a, step, j, n, H, k):
            """What a row-step adds for the units from j on."""
            saved = load_values(a.saved.values + (SAVED * step * H + j) * STORED, H * STORED, n, SAVED)
            gradients = a.dprojected if NORM else a.dgates_x
            da = load_gates(gradients + (G * step * H + j) * SOURCE, H * SOURCE, n, G)
            c_prev = load_c(a.saved.c_prev + (step * H + j) * COMPUTED, n) if HAS_C else zero()
            return unit_gradients_of(saved, c_prev, da, k)

        @inner
        def four(a, first, j, n, H, k):
            """The sum of four row-steps. Without a loop, so that their sums are in registers one after the other."""
            one = add_blocks(summands(a, first, j, n, H, k), summands(a, first + 1, j, n, H, k))
            two = add_blocks(summands(a, first + 2, j, n, H, k), summands(a, first + 3, j, n, H, k))
            return add_blocks(one, two)

        return summands, four

    whole, four_whole = units("whole")
    last, four_last = units("first")

    @inner
    def add(value, sums, rest):
        """sums += value, with what rounding has lost so far in `rest`."""
        total = load_sums(sums, lanes)
        y = value - load_sums(rest, lanes)
        new = total + y
        store_sums((new - total) - y, rest, lanes)
        store_sums(new, sums, lanes)

    @inner
    def add_all(values, sums, rest, width):
        """values: one a sum; the next sum is `width` numbers on."""
        for m in range(K):
            add(values[m], sums + m * width * COMPUTED, rest + m * width * COMPUTED)

    @inner
    def unit_gradients(a, s, p, index):
        if not a.dweights.w_ih:
            return
        extras = read_extras(a.extras)
        k = prepared(load_numbers(extras.constants, CONSTANTS))
        H = s.H
        u0 = first_unit(H, p.threads, index)
        u1 = first_unit(H, p.threads, index + 1)
        width = (u1 - u0 + lanes - 1) // lanes * lanes
        sums = a.workspace + s.own + index * s.own_size
        rest = sums + K * width * COMPUTED
        for j in range(0, 2 * K * width, lanes):
            store_sums(zero(), sums + j * COMPUTED, lanes)
        end = u1 - (u1 - u0) % lanes
        fours = s.N // 4 * 4
        for first in range(0, fours, 4):
            for j in range(u0, end, lanes):
                at = (j - u0) * COMPUTED
                add_all(four_whole(a, first, j, lanes, H, k), sums + at, rest + at, width)
            if end < u1:
                at = (end - u0) * COMPUTED
                add_all(four_last(a, first, end, u1 - end, H, k), sums + at, rest + at, width)
        for step in range(fours, s.N):
            for j in range(u0, end, lanes):
                at = (j - u0) * COMPUTED
                add_all(whole(a, step, j, lanes, H, k), sums + at, rest + at, width)
            if end < u1:
                at = (end - u0) * COMPUTED
                add_all(last(a, step, end, u1 - end, H, k), sums + at, rest + at, width)
        for m in range(K):
            for j in range(u0, u1, lanes):
                value = load_sums(sums + (m * width + j - u0) * COMPUTED, lanes)
                store_result(value, extras.dw_unit + (m * H + j) * STORED, minimum(lanes, u1 - j))

    return unit_gradients
