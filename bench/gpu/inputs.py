"""The inputs of one point on the device, and the error of a result.

torch makes the inputs on the device, so a large point needs no copy. Where torch has no CUDA device, the same code runs
on the CPU, which is how it is tested.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bench.gpu.cudnn import torch_dtype
from bench.grid import Point
from bench.problem import CHECKED_ROWS, FORWARD_NAMES, param_shapes
from rnnkit.core.cells import CELLS
from rnnkit.core.devices import to_numpy
from rnnkit.core.dtypes import DTYPES

Tensor = Any
Results = dict[str, Tensor]


def torch_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def to_cupy(tensor: Tensor) -> Any:
    """A CuPy array that shares a CUDA tensor's memory; a copy of a CPU tensor."""
    import cupy

    return cupy.from_dlpack(tensor.detach()) if tensor.is_cuda else cupy.asarray(to_numpy(tensor))


def to_torch(array: Any) -> Tensor:
    """The inverse of `to_cupy`."""
    if torch_device() == "cuda":
        return torch.from_dlpack(array)
    host = to_numpy(array)
    if host.dtype.name == "bfloat16":
        return torch.from_numpy(host.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(host.copy())


@dataclass
class PointInputs:
    """The inputs of a point, as torch tensors in its storage dtype.

    x (T, B, I), zero past a row's end; states and ends (L*D, B, width), one each for h and, in an LSTM, c; params by
    torch's names; dy (T, B, D*R); lengths (B,) on the host, or None for equal lengths; rows: the checked rows.
    """

    point: Point
    x: Tensor
    states: tuple[Tensor, ...]
    params: dict[str, Tensor]
    dy: Tensor
    ends: tuple[Tensor, ...]
    lengths: np.ndarray | None
    rows: list[int]


def point_inputs(point: Point) -> PointInputs:
    """The inputs of a point, equal in every dtype up to rounding."""
    device = torch_device()
    dtype = torch_dtype(torch, point.dtype)
    generator = torch.Generator(device).manual_seed(point.T * 31 + point.B * 7 + point.H)
    T = point.T
    B = point.B
    R = point.P or point.H
    slots = point.layers * point.directions
    bound = 1 / math.sqrt(point.H)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    def uniform(shape: tuple[int, ...]) -> Tensor:
        return ((torch.rand(shape, generator=generator, device=device) * 2 - 1) * bound).to(dtype)

    widths = (R, point.H)[: len(CELLS[point.cell].states)]
    x = draw(T, B, point.I)
    dy = draw(T, B, R * point.directions)
    lengths = point.lengths()
    if lengths is not None:
        past = torch.arange(T, device=device)[:, None] >= torch.from_numpy(lengths).to(device)
        x[past] = 0
        dy[past] = 0
    rows = sorted(set(np.linspace(0, B - 1, min(B, CHECKED_ROWS)).astype(int).tolist()))
    states, ends = (tuple(0.5 * draw(slots, B, width) for width in widths) for _ in range(2))
    params = {name: uniform(shape) for name, shape in param_shapes(point).items()}
    return PointInputs(point, x, states, params, dy, ends, lengths, rows)


def for_check(n: PointInputs) -> PointInputs:
    """The same inputs, with gradients that flow into the checked rows alone."""

    def masked(d: Tensor) -> Tensor:
        kept = torch.zeros_like(d)
        kept[:, n.rows] = d[:, n.rows]
        return kept

    return replace(n, dy=masked(n.dy), ends=tuple(map(masked, n.ends)))


def fresh_lengths(point: Point) -> Iterator[np.ndarray]:
    """Yields new row lengths (B,) for every call, as batches of data have them. rnnkit and torch get equal ones."""
    rng = np.random.default_rng([point.T, point.B, 1])
    while True:
        drawn = rng.integers(1, point.T + 1, point.B)
        drawn[0] = point.T
        yield drawn


def errors(n: PointInputs, got: Results, want: Results) -> dict[str, float]:
    """Worst error of every array of `got` as a share of its tolerance in DTYPES; at most 1 passes."""
    by_row = (*FORWARD_NAMES, "dx", "dh0", "dc0")
    found = {}
    for name, a in got.items():
        kind = "forward" if name in FORWARD_NAMES else "backward"
        found[name] = error(a[:, n.rows] if name in by_row else a, want[name], n.point.dtype, kind)
    return found


def error(got: Tensor, want: Tensor, dtype: str, kind: str) -> float:
    """`rnnkit.testing.error_ratio`, on the device."""
    tolerance = getattr(DTYPES[dtype], kind)
    if got.shape != want.shape:
        return math.inf
    bound = tolerance.rtol * want.abs() + tolerance.atol * max(1.0, float(want.abs().max()))
    ratio = float(((got.double() - want).abs() / bound).max())
    return ratio if not math.isnan(ratio) else math.inf
