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

cuda: Any = numba.cuda  # Any: a type checker sees Numba's simulator, which lacks some names
STORAGE: dict[str, Any] = {"float64": types.float64, "float32": types.float32, "float16": types.float16}
COMPUTE: dict[str, Any] = {"float64": types.float64, "float32": types.float32, "float16": types.float32}


def device(function):
    """A function that kernels call. Numba compiles it with the first kernel that does."""
    return cuda.jit(function, device=True)


@cache
def activations(dtype: str) -> SimpleNamespace:
    """sigmoid(a), tanh(a), relu(a), passed(h, dh), the gradient of relu, and one: scalars of the compute type.

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

    return SimpleNamespace(sigmoid=sigmoid, tanh=tanh, relu=relu, passed=passed, one=one)


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
    products(a, w, bias, j, H)                    bias + a w at those columns of w
    """
    compute = COMPUTE[dtype]
    storage = STORAGE[dtype]
    dot_from = dot(dtype)
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
        def products(a, w, bias, j, H):
            return (dot_from(a, w[:, j], compute(bias[j])),)

    else:
        rest = tuples(dtype, count - 1)
        load_rest = rest.load
        store_rest = rest.store
        add_rest = rest.add
        products_rest = rest.products

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
        def products(a, w, bias, j, H):
            return (dot_from(a, w[:, j], compute(bias[j])), *products_rest(a, w, bias, j + H, H))

    return SimpleNamespace(load=load, store=store, add=add, products=products)
