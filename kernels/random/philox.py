"""Philox4x32-10 (Salmon et al., SC 2011), one scalar source for the CPU and for Numba CUDA, which supply `jit`.

Words are int64 with values below 2^32: kernels pass all integers as int64. A product of two words wraps, and its upper
half is masked, so its bits are those of the unsigned product. LLVM knows that the factors have 32 bits, and multiplies
vectors of them. rnnkit/core/philox.py has the same function in NumPy, philox.cuh in CUDA C++.
"""

from __future__ import annotations

from typing import Any

from rnnkit.core.philox import MULTIPLIERS, ROUNDS, WEYL

M0, M1 = MULTIPLIERS
W0, W1 = WEYL
LOW = 0xFFFFFFFF


def make(jit: Any) -> Any:
    """philox(a, b, c, d, k0, k1): the four words of a counter."""

    @jit
    def philox(a, b, c, d, k0, k1):
        for _ in range(ROUNDS):
            p0 = a * M0
            p1 = c * M1
            a = ((p1 >> 32) & LOW) ^ b ^ k0
            b = p1 & LOW
            c = ((p0 >> 32) & LOW) ^ d ^ k1
            d = p0 & LOW
            k0 = (k0 + W0) & LOW
            k1 = (k1 + W1) & LOW
        return a, b, c, d

    return philox
