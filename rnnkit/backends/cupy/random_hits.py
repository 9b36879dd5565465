"""Masks of regularisation on the current device, by the kernel of kernels/cuda/random_hits.cu."""

from __future__ import annotations

import numpy as np

from rnnkit.backends.cupy import modules, sources
from rnnkit.core import philox
from rnnkit.core.cells import Array


def drawn(seed: int, stream: int, p: float, T: int, rows: np.ndarray, times: np.ndarray, units: int) -> Array:
    """See `philox.hits`. rows and times are copied to the device, which does not synchronise."""
    import cupy

    B = len(rows)
    out = cupy.empty((T, B, units), np.uint8)
    if not out.size:
        return out
    given = cupy.asarray(np.stack([rows, times]).astype(np.int64))
    keys = [np.uint32(key) for key in philox.keys_of(seed)]
    limit = np.uint64(philox.threshold(p))
    sizes = [np.int64(n) for n in (T, B, units)]
    kernel = modules.kernels(sources.random_hits())["random_hits"]
    shape = modules.over(T * B * -(-units // philox.WORDS))
    kernel(*shape, (out, given[0], given[1], *sizes, *keys, np.uint32(stream), limit))
    return out
