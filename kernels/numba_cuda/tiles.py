"""Numba CUDA: the product of the first stage of a step, forward and backward, by tiles in shared memory."""

from __future__ import annotations

from typing import Any

from rnnkit.core.cells import Cell
from rnnkit.kernels.numba_cuda.launch_shape import ROWS
from rnnkit.kernels.numba_cuda.numbers import constant, cuda, device, tile_products

# Numbers of each row in a tile of shared memory.
TILE = 128


def first_gates(cell: Cell) -> int:
    """How many gates the first product of a step computes: all of them, or r and z of a GRU that resets before."""
    _, _, end = cell.products[0]
    return end


def mask_of_last(cell: Cell) -> int:
    """Which of the masks on h is that of the last gate."""
    return cell.n_gates - 1 if cell.options.mask_per_gate else 0


def tiled_product(dtype: str, count: int, number: Any):
    """product(sums, tile, source, w, K, j, H, first, end, lengths, s): adds a step's products to the sums of a thread.

    sums, tile  as in `tile_products`, of the units j, j + H, …; nothing is added where j >= H
    w           its first K rows are multiplied
    number      number(source, s, steps, b, k) is the operand of row b, which has this number of steps, at its step s

    Every thread of the block calls it, since it waits for all of them.
    """
    zero = constant(dtype, 0)
    add_products = tile_products(dtype, count)

    @device
    def product(sums, tile, source, w, K, j, H, first, end, lengths, s):
        thread = cuda.threadIdx.x
        threads = cuda.blockDim.x
        for k in range(0, K, TILE):
            steps = min(TILE, K - k)
            for r in range(ROWS):
                b = first + r
                live = b < end and s < lengths[b]
                for i in range(thread, steps, threads):
                    tile[i, r] = number(source, s, lengths[b], b, k + i) if live else zero
            cuda.syncthreads()
            if j < H:
                add_products(sums, thread, tile, steps, w, k, j, H)
            cuda.syncthreads()

    return product
