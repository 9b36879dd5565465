"""Numba CUDA: the arithmetic of a scan. Activations, sums over a row, and tuples of one number per gate.

Storage is the type of array elements, compute the type of the arithmetic. They differ for float16, which is widened to
float32 when it is loaded.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import numba.cuda
import numpy as np
from numba import types

from rnnkit.kernels.numba_cuda.launch_shape import THREADS

cuda: Any = numba.cuda  # Any: a type checker sees Numba's simulator, which lacks some names
STORAGE: dict[str, Any] = {"float64": types.float64, "float32": types.float32, "float16": types.float16}
COMPUTE: dict[str, Any] = {"float64": types.float64, "float32": types.float32, "float16": types.float32}


def device(function):
    """A function that kernels call. Numba compiles it with the first kernel that does."""
    return cuda.jit(function, device=True)


@cache
def activations(dtype: str) -> SimpleNamespace:
    """sigmoid(a), tanh(a), relu(a), passed(h, dh), the gradient of relu, and one: scalars of the compute type.

    For cells with options: where_lt(a, b, x, y), x where a < b, else y; where_le; negative_abs(a); number(value), a
    constant of the compute type.
    They are correct at NaN, at infinities, and where exp overflows: 1 / (1 + inf) = 0.
    """
    zero = constant(dtype, 0)
    one = constant(dtype, 1)

    @device
    def sigmoid(a):
        return one / (one + math.exp(-a))

    @device
    def tanh(a):
        return math.tanh(a)

    @device
    def relu(a):
        return zero if a <= zero else a  # a NaN is not <= 0

    @device
    def passed(h, dh):
        return zero if h <= zero else dh

    @device
    def where_lt(a, b, x, y):
        return x if a < b else y

    @device
    def where_le(a, b, x, y):
        return x if a <= b else y

    @device
    def negative_abs(a):
        return -abs(a)

    return SimpleNamespace(
        sigmoid=sigmoid,
        tanh=tanh,
        relu=relu,
        passed=passed,
        one=one,
        where_lt=where_lt,
        where_le=where_le,
        negative_abs=negative_abs,
        number=lambda value: constant(dtype, value),
    )


def constant(dtype: str, value: float):
    """A number of the compute type. Numba types a literal 1.0 as float64, and every expression with it as float64."""
    return np.dtype(str(COMPUTE[dtype])).type(value)


@cache
def dot(dtype: str):
    """dot(a, b, total): total + a . b, in order. b is usually a column, so neighbouring threads read neighbours."""
    compute = COMPUTE[dtype]

    @device
    def dot_from(a, b, total):
        k = types.uint64(0)
        end = types.uint64(a.shape[0])
        while k < end:
            total += compute(a[k]) * compute(b[k])
            k += types.uint64(1)
        return total

    return dot_from


@cache
def tuples(dtype: str, count: int) -> SimpleNamespace:
    """Functions on tuples of `count` numbers, one per gate. Tuples stay in registers; local arrays may not.

    load(row, j, H), store(values, row, j, H)     elements j, j + H, j + 2H, … of a row
    add(p, q)                                     elementwise
    add_scaled(p, a, q)                           p + a q
    """
    compute = COMPUTE[dtype]
    storage = STORAGE[dtype]
    if count == 1:

        @device
        def load(row, j, H):
            return (compute(row[j]),)

        @device
        def store(values, row, j, H):
            row[j] = storage(values[0])

        @device
        def add(p, q):
            return (p[0] + q[0],)

        @device
        def add_scaled(p, a, q):
            return (p[0] + a * q[0],)

    else:
        rest = tuples(dtype, count - 1)
        load_rest = rest.load
        store_rest = rest.store
        add_rest = rest.add
        add_scaled_rest = rest.add_scaled

        @device
        def load(row, j, H):
            return (compute(row[j]), *load_rest(row, j + H, H))

        @device
        def store(values, row, j, H):
            row[j] = storage(values[0])
            store_rest(values[1:], row, j + H, H)

        @device
        def add(p, q):
            return (p[0] + q[0], *add_rest(p[1:], q[1:]))

        @device
        def add_scaled(p, a, q):
            return (p[0] + a * q[0], *add_scaled_rest(p[1:], a, q[1:]))

    return SimpleNamespace(load=load, store=store, add=add, add_scaled=add_scaled)


def computed_tuples(dtype: str, count: int) -> SimpleNamespace:
    """`tuples` of numbers that are stored in the compute dtype."""
    return tuples("float64" if COMPUTE[dtype] is types.float64 else "float32", count)


def cell_states(dtype: str, count: int) -> SimpleNamespace:
    """load(row, j, H), store(states, row, j, H): the `count` states of unit j beside h, which are H elements apart.

    They are as the pointwise functions have them: a number where there is one state, else a tuple.
    """
    if count == 0:
        return SimpleNamespace(load=None, store=None)
    if count > 1:
        return computed_tuples(dtype, count)

    @device
    def load(row, j, H):
        return row[j]

    @device
    def store(state, row, j, H):
        row[j] = state

    return SimpleNamespace(load=load, store=store)


@cache
def tile_products(dtype: str, count: int):
    """add_products(sums, thread, tile, steps, w, k, j, H): the products of a tile of rows with `count` columns of w.

    sums (ROWS, count*THREADS)  a thread's own: += tile[:steps, r] times w[k : k + steps] at columns j, j + H, j + 2H, …
    tile (TILE, ROWS)           both are shared memory of the compute type. A weight is read once for all rows
    """
    numbers = tuples(dtype, count)
    load = numbers.load
    add_scaled = numbers.add_scaled
    own = computed_tuples(dtype, count)
    load_own = own.load
    store_own = own.store

    @device
    def add_products(sums, thread, tile, steps, w, k, j, H):
        a = load_own(sums[0], thread, THREADS)
        b = load_own(sums[1], thread, THREADS)
        c = load_own(sums[2], thread, THREADS)
        d = load_own(sums[3], thread, THREADS)
        i = types.uint64(0)
        end = types.uint64(steps)
        while i < end:
            weights = load(w[types.uint64(k) + i], j, H)
            a = add_scaled(a, tile[i, 0], weights)
            b = add_scaled(b, tile[i, 1], weights)
            c = add_scaled(c, tile[i, 2], weights)
            d = add_scaled(d, tile[i, 3], weights)
            i += types.uint64(1)
        store_own(a, sums[0], thread, THREADS)
        store_own(b, sums[1], thread, THREADS)
        store_own(c, sums[2], thread, THREADS)
        store_own(d, sums[3], thread, THREADS)

    return add_products
