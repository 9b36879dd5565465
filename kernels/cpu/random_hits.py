"""Masks of regularisation on the CPU: bytes that are 1 with a probability, drawn by Philox4x32-10.

A block of four units is one counter, so the loop over blocks is a loop over vectors of counters, which LLVM vectorises.
rnnkit/core/philox.py says what the counters are.
"""

from __future__ import annotations

from typing import Any

from numba import types

from rnnkit.kernels.cpu.jit import inner, native
from rnnkit.kernels.random.philox import make

_philox = make(inner)
_BYTES = types.uint8[:, :, ::1]
_INDEX = types.int64[::1]
_INT = types.int64


@native(("random_hits",), (_BYTES, _INDEX, _INDEX, *[_INT] * 4))
def _draw(out, rows, times, k0, k1, stream, limit):
    T, B, units = out.shape
    whole = units // 4
    for t in range(T):
        for b in range(B):
            row = rows[b]
            time = (times[b] + t) & 0xFFFFFFFF
            for q in range(whole):
                w0, w1, w2, w3 = _philox(q, row, time, stream, k0, k1)
                out[t, b, 4 * q] = w0 < limit
                out[t, b, 4 * q + 1] = w1 < limit
                out[t, b, 4 * q + 2] = w2 < limit
                out[t, b, 4 * q + 3] = w3 < limit
            if 4 * whole < units:
                words = _philox(whole, row, time, stream, k0, k1)
                for j in range(4 * whole, units):
                    out[t, b, j] = words[j - 4 * whole] < limit


draw_hits: Any = _draw
