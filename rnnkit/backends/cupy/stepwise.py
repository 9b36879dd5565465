"""Schedule D, "stepwise": one cuBLAS product and one fused pointwise launch per step, in CUDA graphs.

It serves every shape and dtype on every card, and is the baseline for faster schedules. Per chunk (`problem.Chunk`),
one product computes x W_ih^T before the steps. In backward dW_ih, dW_hh, dx and the biases' gradients follow the steps
of each chunk, so the workspace does not grow with T. A step accesses only buffers of the arena, and reaches the arrays
of its call through a Call in device memory: kernels/cuda/call.cuh.
"""

from __future__ import annotations

from rnnkit.backends.cupy import backward_pass, cost, passes, stepwise_launch
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.cost import Rates
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.saved import Saved
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.cupy.sources import STORAGES, Build
from rnnkit.backends.cupy.stepwise_buffers import workspace_sizes
from rnnkit.backends.cupy.stepwise_launch import StepLauncher
from rnnkit.backends.interface import BackwardCall, Gradients, LayerCall, Sizes
from rnnkit.core.cells import Array, Cell, State
from rnnkit.core.dtypes import DType
from rnnkit.kernels.cells import HEADERS


def problem(work: Work, card: CardFacts) -> str | None:
    """None: it serves everything."""
    return None


def seconds(work: Work, card: CardFacts, rates: Rates) -> float:
    """See `schedules.ScheduleModule`."""
    T, B, _, H, R, N = work.sizes
    rows = -(-N // max(1, T))
    step = cost.stepwise_step(work.cell, work.dtype, card, rates, (min(rows, B), H, R))
    # And one launch that fills the Call of each pass.
    return (1 + work.keep) * (T * step + rates.node)


def builds() -> tuple[Build, ...]:
    """A module per cell and storage dtype."""
    return tuple(stepwise_launch.build(cell, storage) for cell in HEADERS for storage in STORAGES)


def forward(p: Problem, call: LayerCall) -> tuple[Array, State, Saved]:
    """y (T, B, R), the final states, and what `backward` needs."""
    sizes = workspace_sizes(p, backward=False)
    return passes.forward(p, call, lambda arena, table: StepLauncher(p, arena, sizes, table))


def backward(p: Problem, call: BackwardCall) -> Gradients:
    """The gradients of one forward; call.saved is its `Saved`."""
    sizes = workspace_sizes(p, backward=True)
    return backward_pass.backward(p, call, lambda arena, table: StepLauncher(p, arena, sizes, table))


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> tuple[str, int, int]:
    """See `rnnkit.backends.Backend.describe`. The workspace is the stream's arena, sized for the larger pass."""
    p = Problem.of_sizes(cell, dtype, sizes)
    workspaces = tuple(workspace_sizes(p, backward=way) for way in ((False, True) if keep else (False,)))
    return f"up to {p.graph_steps} steps per graph", *passes.memory(p, sizes, keep, workspaces)
