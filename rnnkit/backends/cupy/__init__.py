"""The CuPy backend: CUDA C++ kernels compiled by NVRTC, and cuBLAS."""

from rnnkit.backends.cupy.layer import (
    backward,
    backward_directions,
    describe,
    forward,
    forward_directions,
    pinned,
)

__all__ = ["backward", "backward_directions", "describe", "forward", "forward_directions", "pinned"]
