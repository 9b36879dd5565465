"""The CuPy backend: CUDA C++ kernels compiled by NVRTC, and cuBLAS."""

from rnnkit.backends.cupy.layer import backward, describe, forward, pinned

__all__ = ["backward", "describe", "forward", "pinned"]
