"""The CuPy backend: CUDA C++ kernels compiled by NVRTC, and cuBLAS."""

from rnnkit.backends.cupy.every_step import saved_steps
from rnnkit.backends.cupy.free_memory import free_bytes
from rnnkit.backends.cupy.layer import backward, describe, forward, saved_in_reserve
from rnnkit.backends.cupy.one_schedule import for_stack, pinned, recomputing
from rnnkit.backends.cupy.recompute_buffers import recompute_problem
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
    "free_bytes",
    "layers_at_once",
    "pinned",
    "recompute_problem",
    "recomputing",
    "reserve_bytes",
    "saved_in_reserve",
    "saved_steps",
]
