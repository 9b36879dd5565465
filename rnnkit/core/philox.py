"""Random bits as a function of a counter: Philox4x32-10, and the rule by which bits become drop or keep.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Four counters and two keys, of 32 bits each,
give four words of 32 bits. Nothing is carried from one number to the next, so any part of a mask can be drawn by
itself, in any order and on any device, and drawn again in backward.

kernels/random/philox.py has the same bits for Numba, kernels/random/philox.cuh in CUDA C++.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any

WORDS = 4  # that one counter gives
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # what is added to the keys after each round
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counters: tuple[Array, Array, Array, Array], keys: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
    """The four words of each counter, as uint64 arrays of values below 2^32. Counters are broadcast.

    Args:
        counters: four arrays or numbers of unsigned integers below 2^32.
        keys: two integers below 2^32.
    """
    a, b, c, d = (np.asarray(x, np.uint64) for x in counters)
    k0, k1 = keys
    m0, m1 = map(np.uint64, MULTIPLIERS)
    for _ in range(ROUNDS):
        p0 = a * m0
        p1 = c * m1
        a, b, c, d = (p1 >> _HALF) ^ b ^ np.uint64(k0), p1 & _LOW, (p0 >> _HALF) ^ d ^ np.uint64(k1), p0 & _LOW
        k0 = (k0 + WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + WEYL[1]) & 0xFFFFFFFF
    return a, b, c, d


def keys_of(seed: int) -> tuple[int, int]:
    """The two keys of a seed, an integer in [0, 2^64)."""
    return seed & 0xFFFFFFFF, seed >> 32


def threshold(p: float) -> int:
    """The number of words, of 2^32, that are hits with probability p: a word is a hit if it is less than that.

    An integer, and at most 2^32, which no word reaches: so p = 1 hits everything, p = 0 nothing, and no device rounds.
    """
    return round(p * 2**32)


def hits(seed: int, stream: int, p: float, T: int, rows: Array, times: Array, units: int) -> Array:
    """(T, B, units) uint8, 1 with probability p: NumPy's version of the draw that all devices have.

    Element (t, b, j) is word j % 4 of the counter (j // 4, rows[b], times[b] + t, stream), keyed by the seed.

    Args:
        seed: in [0, 2^64).
        stream: in [0, 2^32).
        p: probability of a 1.
        T: number of steps.
        rows: (B,) integers, what identifies each row.
        times: (B,) integers, the time of each row's step 0.
        units: number of columns.
    """
    blocks = -(-units // WORDS)
    counters = (
        np.arange(blocks, dtype=np.uint64),
        np.asarray(rows, np.uint64)[:, None],
        (np.asarray(times, np.uint64) + np.arange(T, dtype=np.uint64)[:, None])[:, :, None] & _LOW,
        np.uint64(stream),
    )
    words = np.stack(np.broadcast_arrays(*philox(counters, keys_of(seed))), axis=-1)
    flat = words.reshape(T, len(rows), blocks * WORDS)[:, :, :units]
    return (flat < np.uint64(threshold(p))).astype(np.uint8)
