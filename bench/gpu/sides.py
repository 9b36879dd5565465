"""One point on both sides: the numbers, rnnkit's layer, torch's module, and the float64 truth they are held to.

Numbers are made by torch on the device, so that a large point costs no copy. The truth is torch's module in float64 on
a few rows: rows do not see each other, and where gradients flow into those rows alone, so do the weights' gradients.
Where torch sees no card the same code runs on the CPU, which is how it is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import rnnkit
from bench.gpu.cudnn import torch_dtype
from bench.grid import Point
from bench.problem import CHECKED_ROWS, FORWARD_NAMES, make_layer, param_shapes
from rnnkit._device import to_numpy
from rnnkit.cells import CELLS
from rnnkit.dtypes import DTYPES

Tensor = Any
Results = dict[str, Tensor]


def torch_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def to_cupy(tensor: Tensor) -> Any:
    """A CuPy array over a tensor of the card; a copy of one on the CPU."""
    import cupy

    return cupy.from_dlpack(tensor.detach()) if tensor.is_cuda else cupy.asarray(to_numpy(tensor))


def to_torch(array: Any) -> Tensor:
    """The inverse."""
    if torch_device() == "cuda":
        return torch.from_dlpack(array)
    host = to_numpy(array)
    if host.dtype.name == "bfloat16":
        return torch.from_numpy(host.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(host.copy())


@dataclass
class Numbers:
    """Everything a point takes, as torch tensors in its storage dtype.

    x (T, B, I), zero past a row's end; states and ends (L*D, B, width), one each for h and, in an LSTM, c; params by
    torch's names; dy (T, B, D*R); rows: those that are checked.
    """

    point: Point
    x: Tensor
    states: tuple[Tensor, ...]
    params: dict[str, Tensor]
    dy: Tensor
    ends: tuple[Tensor, ...]
    lengths: np.ndarray | None
    rows: list[int]


def numbers(point: Point) -> Numbers:
    """The numbers of a point, the same in every dtype up to its rounding."""
    device, dtype = torch_device(), torch_dtype(torch, point.dtype)
    generator = torch.Generator(device).manual_seed(point.T * 31 + point.B * 7 + point.H)
    T, B, R = point.T, point.B, point.P or point.H
    slots, bound = point.layers * point.directions, 1 / math.sqrt(point.H)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    def uniform(shape: tuple[int, ...]) -> Tensor:
        return ((torch.rand(shape, generator=generator, device=device) * 2 - 1) * bound).to(dtype)

    widths = (R, point.H)[: len(CELLS[point.cell].states)]
    x, dy = draw(T, B, point.I), draw(T, B, R * point.directions)
    lengths = point.lengths()
    if lengths is not None:
        past = torch.arange(T, device=device)[:, None] >= torch.from_numpy(lengths).to(device)
        x[past], dy[past] = 0, 0
    rows = sorted(set(np.linspace(0, B - 1, min(B, CHECKED_ROWS)).astype(int).tolist()))
    states, ends = (tuple(0.5 * draw(slots, B, width) for width in widths) for _ in range(2))
    params = {name: uniform(shape) for name, shape in param_shapes(point).items()}
    return Numbers(point, x, states, params, dy, ends, lengths, rows)


def for_check(n: Numbers) -> Numbers:
    """The same, with gradients that flow into the checked rows alone."""

    def masked(d: Tensor) -> Tensor:
        kept = torch.zeros_like(d)
        kept[:, n.rows] = d[:, n.rows]
        return kept

    return replace(n, dy=masked(n.dy), ends=tuple(map(masked, n.ends)))


def truth(n: Numbers) -> Results:
    """The float64 results of the checked rows."""

    def wide(t: Tensor) -> Tensor:
        return t[:, n.rows].double()

    small = replace(
        n,
        point=replace(n.point, dtype="float64", B=len(n.rows)),
        x=wide(n.x),
        states=tuple(map(wide, n.states)),
        params={name: p.double() for name, p in n.params.items()},
        dy=wide(n.dy),
        ends=tuple(map(wide, n.ends)),
        lengths=None if n.lengths is None else n.lengths[n.rows],
    )
    side = Torch(small)
    return side.results(side.ready(backward=True)())


class Torch:
    """torch.nn's module. Its calls give tensors; `results` names them."""

    def __init__(self, n: Numbers) -> None:
        self.n, point = n, n.point
        self.module = _module(point).to(n.x.device, torch_dtype(torch, point.dtype))
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(n.params[name])
        self.x = n.x.clone()
        self.states = tuple(s.clone() for s in n.states)
        self._inputs = [self.x, *self.states, *self.module.parameters()]
        self._h0 = self.states[0] if len(self.states) == 1 else self.states
        self._lengths = None if n.lengths is None else torch.from_numpy(n.lengths)

    def use(self, n: Numbers) -> None:
        """Takes the gradients of `n` from now on."""
        self.n = n

    def ready(self, backward: bool) -> Callable[[], tuple[Any, ...]]:
        """The call of a pass. cuDNN has a forward of its own for inference, and no backward of it."""
        self.module.train(backward)
        for tensor in self._inputs:
            tensor.requires_grad_(backward)
        return self.forward_backward if backward else self.forward

    def _run(self) -> tuple[Tensor, ...]:
        if self._lengths is None:
            y, state_n = self.module(self.x, self._h0)
        else:
            # Sorting and packing is what a user with ragged rows pays, so it is in the clock.
            packed = torch.nn.utils.rnn.pack_padded_sequence(self.x, self._lengths, enforce_sorted=False)
            y, state_n = self.module(packed, self._h0)
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=self.n.point.T)
        return (y, *(state_n if isinstance(state_n, tuple) else (state_n,)))

    def forward(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self._run()

    def forward_backward(self) -> tuple[Tensor, ...]:
        outputs = self._run()
        return (*outputs, *torch.autograd.grad(outputs, self._inputs, (self.n.dy, *self.n.ends)))

    def results(self, called: tuple[Tensor, ...]) -> Results:
        states = CELLS[self.n.point.cell].states
        named = ["y", *(f"{s}_n" for s in states), "dx", *(f"d{s}0" for s in states)]
        named += [f"d{name}" for name, _ in self.module.named_parameters()]
        return {name: t.detach() for name, t in zip(named, called, strict=False)}

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """`call` as a CUDA graph. Raises RuntimeError where torch or cuDNN will not be captured."""
        if torch_device() != "cuda":
            raise RuntimeError("there is no card to capture on")
        before, side, graph = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(before)
        with torch.cuda.stream(side):
            for _ in range(3):
                want = call()
        before.wait_stream(side)
        try:
            with torch.cuda.graph(graph):
                held = call()
        finally:  # a capture that fails leaves its own stream as the current one
            torch.cuda.set_stream(before)
            torch.cuda.synchronize()
        graph.replay()
        if not torch.allclose(held[0].float(), want[0].float(), rtol=0.05, atol=0.05):
            raise RuntimeError("the graph's result is another than the call's")

        def replay(held: Any = held) -> None:  # what it holds, the graph writes to
            graph.replay()

        return replay


class Ours:
    """rnnkit's layer on CuPy, as a user has it: gradients are added into `grads`, and cleared before."""

    def __init__(self, n: Numbers, backend: str = "cupy") -> None:
        import cupy

        self.n, point = n, n.point
        self.layer: Any = make_layer(point, backend, point.dtype, f"cuda:{cupy.cuda.Device().id}")
        for name, p in n.params.items():
            self.layer.params[name][...] = to_cupy(p)
        self.x = to_cupy(n.x)
        states = tuple(map(to_cupy, n.states))
        self._h0 = states[0] if len(states) == 1 else states
        self.use(n)

    def use(self, n: Numbers) -> None:
        """Takes the gradients of `n` from now on."""
        ends = tuple(map(to_cupy, n.ends))
        self.n, self.dy, self._dh_n = n, to_cupy(n.dy), ends[0] if len(ends) == 1 else ends

    def ready(self, backward: bool) -> Callable[[], tuple[Any, ...]]:
        """The call of a pass."""
        return self.forward_backward if backward else self.forward

    def forward(self) -> tuple[Any, ...]:
        with rnnkit.no_grad():
            y, state_n = self.layer(self.x, self._h0, lengths=self.n.lengths)
        return (y, *_as_tuple(state_n))

    def forward_backward(self) -> tuple[Any, ...]:
        self.layer.zero_grad()
        y, state_n = self.layer(self.x, self._h0, lengths=self.n.lengths)
        dx, dstate0 = self.layer.backward(self.dy, self._dh_n)
        return (y, *_as_tuple(state_n), dx, *_as_tuple(dstate0), *self.layer.grads.values())

    def results(self, called: tuple[Any, ...]) -> Results:
        states = CELLS[self.n.point.cell].states
        named = ["y", *(f"{s}_n" for s in states), "dx", *(f"d{s}0" for s in states)]
        named += [f"d{name}" for name in self.layer.grads]
        return {name: to_torch(a) for name, a in zip(named, called, strict=False)}


Side = Torch | Ours


def errors(n: Numbers, got: Results, want: Results) -> dict[str, float]:
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


def _module(point: Point) -> Any:
    sizes = (point.I, point.H, point.layers)
    if point.cell.startswith("rnn_"):
        nonlinearity = point.cell.removeprefix("rnn_")
        return torch.nn.RNN(*sizes, nonlinearity=nonlinearity, bidirectional=point.bidirectional)
    if point.cell == "gru":
        return torch.nn.GRU(*sizes, bidirectional=point.bidirectional)
    return torch.nn.LSTM(*sizes, proj_size=point.P, bidirectional=point.bidirectional)


def _as_tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)
