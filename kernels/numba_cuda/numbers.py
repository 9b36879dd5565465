"""Numba CUDA: the numbers a scan is made of. Activations, sums over a row, and tuples of one number a gate.

Storage is what arrays hold, compute what everything between a load and a store runs in: they differ for float16, which
is widened to float32 where it is loaded.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import numba.cuda
import numpy as np
from numba import types

cuda: Any = numba.cuda  # Any: to a type checker it is Numba's simulator, which lacks some of it
STORAGE: dict[str, Any] = {"float64": types.float64, "float32": types.float32, "float16": types.float16}
COMPUTE: dict[str, Any] = {"float64": types.float64, "float32": types.float32, "float16": types.float32}


def device(function):
    """A function that kernels call; compiled with the first kernel that does."""
    return cuda.jit(function, device=True)


@cache
def activations(dtype: str) -> SimpleNamespace:
    """sigmoid(a), tanh(a), relu(a), passed(h, dh), the gradient of relu, and one: scalars of the dtype's compute.

    Right at NaN, at the infinities, and where exp overflows: 1 / (1 + inf) is the 0 it should be.
    """
    zero, one = constant(dtype, 0), constant(dtype, 1)

    @device
    def sigmoid(a):
        return one / (one + math.exp(-a))

    @device
    def tanh(a):
        return math.tanh(a)

    @device
    def relu(a):
        return zero if a <= zero else a  # a NaN is not

    @device
    def passed(h, dh):
        return zero if h <= zero else dh

    return SimpleNamespace(sigmoid=sigmoid, tanh=tanh, relu=relu, passed=passed, one=one)


def constant(dtype: str, value: float):
    """A number of the dtype's compute. A plain 1.0 is a float64 to Numba, and would make float64 of all it meets."""
    return np.dtype(str(COMPUTE[dtype])).type(value)


@cache
def dot(dtype: str):
    """dot(a, b, total): total + a . b, in order. Rows of one length; b is as a rule a column, so that neighbouring
    threads read neighbouring numbers."""
    compute = COMPUTE[dtype]

    @device
    def dot_from(a, b, total):
        k, end = types.uint64(0), types.uint64(a.shape[0])
        while k < end:
            total += compute(a[k]) * compute(b[k])
            k += types.uint64(1)
        return total

    return dot_from


@cache
def tuples(dtype: str, count: int) -> SimpleNamespace:
    """Functions on tuples of `count` numbers, one a gate. Tuples stay in registers, as arrays may not.

    load(row, j, H), store(values, row, j, H)     the numbers at j, j + H, j + 2H, … of a row
    add(p, q)                                     number by number
    products(a, w, bias, j, H)                    bias + a w, at those columns of w
    """
    compute, storage, dot_from = COMPUTE[dtype], STORAGE[dtype], dot(dtype)
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
        load_rest, store_rest, add_rest, products_rest = rest.load, rest.store, rest.add, rest.products

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
