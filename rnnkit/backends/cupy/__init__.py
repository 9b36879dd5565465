"""The CuPy backend: CUDA C++ kernels compiled by NVRTC, and cuBLAS."""

from rnnkit.backends.cupy.every_step import saved_steps
from rnnkit.backends.cupy.layer import backward, describe, forward, saved_in_reserve
from rnnkit.backends.cupy.one_schedule import for_stack, pinned
from rnnkit.backends.cupy.saved import reserve_bytes
from rnnkit.backends.cupy.side_by_side import (
    backward_directions,
    backward_layers,
    backward_layers_at_once,
    describe_backward_layers,
    describe_layers,
    forward_directions,
    forward_layers,
    layers_at_once,
)

__all__ = [
    "backward",
    "backward_directions",
    "backward_layers",
    "backward_layers_at_once",
    "describe",
    "describe_backward_layers",
    "describe_layers",
    "for_stack",
    "forward",
    "forward_directions",
    "forward_layers",
    "layers_at_once",
    "pinned",
    "reserve_bytes",
    "saved_in_reserve",
    "saved_steps",
]
