"""Numba CUDA: how many threads and blocks a scan is launched with. No import of Numba: any machine may ask."""

from __future__ import annotations

# The most of 256, 384 and 512 for which ptxas spills nothing of any kernel on any card.
THREADS = 256
WARP = 32
# Fewer blocks than this, and Numba warns that the device is not filled.
FEWEST_BLOCKS = 128


def launch_shape(B: int, width: int) -> tuple[int, int]:
    """(blocks, threads a block) for B rows of at most `width` units: whole warps, a block a row."""
    return max(B, FEWEST_BLOCKS), min(THREADS, -(-width // WARP) * WARP)
