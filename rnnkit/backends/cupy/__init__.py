"""The CuPy backend: CUDA C++ kernels compiled by NVRTC, and cuBLAS."""

from rnnkit.backends.cupy.layer import (
    backward,
    backward_directions,
    describe,
    describe_layers,
    forward,
    forward_directions,
    forward_layers,
    layers_at_once,
    pinned,
    reserve_bytes,
    saved_in_reserve,
)

__all__ = [
    "backward",
    "backward_directions",
    "describe",
    "describe_layers",
    "forward",
    "forward_directions",
    "forward_layers",
    "layers_at_once",
    "pinned",
    "reserve_bytes",
    "saved_in_reserve",
]
