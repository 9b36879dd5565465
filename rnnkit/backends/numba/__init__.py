"""The Numba backend: fused CPU scans, compiled by Numba."""

from rnnkit.backends.numba.layer import backward, describe, forward, reserve_bytes, saved_in_reserve, saved_steps

__all__ = ["backward", "describe", "forward", "reserve_bytes", "saved_in_reserve", "saved_steps"]
