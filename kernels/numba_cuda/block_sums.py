"""Numba CUDA: sums and moments over the threads of a block, of the cells that normalise."""

from __future__ import annotations

import math
from functools import cache

from rnnkit.kernels.numba_cuda.numbers import COMPUTE, constant, cuda, device


@device
def block_sum(parts, value):
    """The sum of each thread's value, the same bits in all of them. parts (THREADS,): shared memory."""
    thread = cuda.threadIdx.x
    width = cuda.blockDim.x
    parts[thread] = value
    cuda.syncthreads()
    while width > 1:
        half = (width + 1) // 2
        if thread + half < width:
            parts[thread] += parts[thread + half]
        cuda.syncthreads()
        width = half
    total = parts[0]
    cuda.syncthreads()
    return total


@cache
def moments_over(dtype: str, blocks: int):
    """moments(parts, row, H, eps): the mean of `blocks` blocks of H numbers, and 1 / sqrt(var + eps)."""
    compute = COMPUTE[dtype]
    zero = constant(dtype, 0)
    one = constant(dtype, 1)

    @device
    def moments(parts, row, H, eps):
        count = compute(blocks * H)
        total = zero
        for j in range(cuda.threadIdx.x, H, cuda.blockDim.x):
            for g in range(blocks):
                total += row[g * H + j]
        mean = block_sum(parts, total) / count
        squares = zero
        for j in range(cuda.threadIdx.x, H, cuda.blockDim.x):
            for g in range(blocks):
                centred = row[g * H + j] - mean
                squares += centred * centred
        return mean, one / compute(math.sqrt(block_sum(parts, squares) / count + eps))

    return moments
