"""Numba CUDA: the number of threads and blocks of a scan's launch. Imports no Numba, so it works without a GPU."""

from __future__ import annotations

# The largest of 256, 384 and 512 for which ptxas spills no register of any kernel on any card.
THREADS = 256
WARP = 32
# Rows of the batch that a block serves: each weight that it reads is multiplied by one number of each of them.
ROWS = 4
# With fewer blocks than this Numba warns that the device is underused.
FEWEST_BLOCKS = 128


def launch_shape(B: int, width: int) -> tuple[int, int]:
    """(blocks, threads per block) for B rows of at most `width` units: one block per tile of rows, in whole warps."""
    return max(-(-B // ROWS), FEWEST_BLOCKS), min(THREADS, -(-width // WARP) * WARP)
