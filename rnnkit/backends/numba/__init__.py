"""The Numba backend: fused CPU scans, compiled by Numba."""

from rnnkit.backends.numba.layer import backward, describe, forward

__all__ = ["backward", "describe", "forward"]
