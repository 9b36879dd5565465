"""Numba CUDA kernels with one planted fault each, for tests/cuda/test_numba_ptx.py. Prints them as `numba_ptx` does."""

from __future__ import annotations

import json
from typing import Any

from tests.tools.build_report import numba_ptx


def kernels() -> list[tuple[str, Any, tuple[Any, ...]]]:
    """(name, dispatcher, signature) of float32 kernels: one without a fault, the others named after their fault."""
    from numba import cuda, float32, int32

    @cuda.jit
    def clean(x, y, n):
        i = cuda.grid(1)
        if i < n:
            y[i] = x[i] * float32(0.1)

    @cuda.jit
    def local(x, y, n):
        a = cuda.local.array(64, float32)
        for i in range(64):
            a[i] = x[i]
        a[n] = float32(1)
        a[n + 1] = float32(2)
        y[n] = a[y.size - 1] + a[n + 3]

    @cuda.jit
    def double(x, y, n):
        y[n] = x[n] * 0.1

    @cuda.jit
    def call(x, y, n):
        y[n] = x[n]
        print(n)

    return [(k.py_func.__name__, k, (float32[::1], float32[::1], int32)) for k in (clean, local, double, call)]


def main() -> None:
    if reason := numba_ptx.unavailable():
        print(json.dumps({"unavailable": reason}))
    else:
        print(json.dumps(numba_ptx.report(kernels(), every=False)))


if __name__ == "__main__":
    main()
