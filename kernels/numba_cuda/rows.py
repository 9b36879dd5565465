"""Numba CUDA: what every scan does with the rows of its block, and the types of its arrays."""

from __future__ import annotations

from types import SimpleNamespace

from numba import types

from rnnkit.kernels.numba_cuda.launch_shape import ROWS
from rnnkit.kernels.numba_cuda.numbers import COMPUTE, STORAGE, constant, cuda, device


@device
def rows_of_block(B):
    """The rows [first, end) of this block; none of a block past the batch."""
    first = cuda.blockIdx.x * ROWS
    return first, min(first + ROWS, B)


@device
def most_steps(lengths, first, end):
    """The steps of the longest of the rows [first, end); 0 if there are none."""
    most = 0
    for b in range(first, end):
        most = max(most, lengths[b])
    return most


@device
def time_of(s, steps, descending):
    """The time of step s of a row with this number of steps."""
    return steps - 1 - s if descending else s


def row_ends(dtype: str):
    """end_rows(h, y, lengths, reverse, first, end): h of each row's last step, and zeros in y past it."""
    storage = STORAGE[dtype]
    zero = constant(dtype, 0)

    @device
    def end_rows(h, y, lengths, reverse, first, end):
        for b in range(first, end):
            steps = lengths[b]
            for k in range(cuda.threadIdx.x, h.shape[1], cuda.blockDim.x):
                if steps > 0:
                    h[b, k] = y[time_of(steps - 1, steps, reverse), b, k]
                for t in range(steps, y.shape[0]):
                    y[t, b, k] = storage(zero)

    return end_rows


def argument_types(dtype: str) -> SimpleNamespace:
    """The Numba types of a scan's arguments: S1 is an array of storage with one axis, C3 of compute with three, …"""
    S = STORAGE[dtype]
    C = COMPUTE[dtype]
    return SimpleNamespace(
        flag=types.boolean,
        lengths=types.int64[::1],
        S1=S[::1],
        S2=S[:, ::1],
        S3=S[:, :, ::1],
        C1=C[::1],
        C2=C[:, ::1],
        C3=C[:, :, ::1],
        U3=types.uint8[:, :, ::1],
    )
