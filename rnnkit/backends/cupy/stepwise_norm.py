"""Layer normalisation in schedule D: a block has a row at a time. See kernels/cuda/stepwise_norm.cuh and .cu.

The statistics that forward saves are in `SavedStates.operand`, which no cell that normalises has another use for.
"""

from __future__ import annotations

from rnnkit.backends.cupy import sources
from rnnkit.backends.cupy.launcher import Launcher, address, i32
from rnnkit.backends.cupy.modules import MOST_BLOCKS, THREADS, Shape, over
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.saved import SavedStates
from rnnkit.backends.cupy.sources import Kernel
from rnnkit.core.cells import Cell, Weights

# In place of kernels/cuda/stepwise.cu.
FILES = ("cuda/stepwise_norm.cuh", "cuda/stepwise_norm.cu")
KERNELS = (*sources.pointwise_kernels("forward_step", "backward_step", "set_norm"), Kernel("norm_sums", (32, 8, 1)))


def rows_by_blocks(rows: int, units: int) -> Shape:
    """The grid for a block per row. Its threads depend on the units alone, and so does the order of sums."""
    return (min(MOST_BLOCKS, rows),), (min(THREADS, 32 * -(-units // 32)),)


def begin(launcher: Launcher, weights: Weights) -> None:
    """Writes norm_eps, the weights per unit and the biases after the Call."""
    p = launcher.p
    units = len(p.cell.unit_weights) * p.H
    arrays = (address(weights.w_unit), address(weights.b_ih), address(weights.b_hh))
    (eps,) = map(p.dtype.compute.type, p.constants)
    launcher.launch("set_norm", over(units + 2 * p.GH), launcher["call"], *arrays, units, p.GH, eps)


def extras(cell: Cell, H: int) -> int:
    """The numbers after the Call."""
    return 1 + cell.n_unit_sums * H


def backward_sizes(p: Problem) -> dict[str, int]:
    """Bytes of the buffers of a backward."""
    return {"dv": p.chunk_rows * p.cell.n_norm_gradients * p.H * p.compute_bytes}


def sums(launcher: Launcher, name: str, chunk: Chunk, states: SavedStates, shape: Shape) -> None:
    """Writes to "partials" the parts of the sums, over a chunk whose steps have just run, of one of `Weights`."""
    p = launcher.p
    K = len(p.cell.unit_weights)
    G = p.cell.n_gates
    first, count = {"w_unit": (0, K), "b_ih": (K, G), "b_hh": (K + G, G)}[name]
    values = launcher.array(states.values).at(chunk.n0).address
    given = (launcher["partials"], launcher["dv"], values, chunk.N, i32(p.H), i32(first), i32(count))
    launcher.launch("norm_sums", shape, *given)
