"""The Numba CUDA backend: one launch per sequence, on CuPy arrays."""

from rnnkit.backends.numba_cuda.layer import backward, describe, forward, saved_steps

__all__ = ["backward", "describe", "forward", "saved_steps"]
