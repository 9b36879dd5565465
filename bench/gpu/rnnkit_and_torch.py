"""The two layers of a throughput point: rnnkit's layer and torch's module, and the float64 reference for both.

The reference is torch's module in float64 on a few rows. Rows are independent. Where gradients flow into those rows
alone, the weight gradients depend on those rows alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import rnnkit
from bench.gpu.cudnn import torch_dtype
from bench.gpu.inputs import PointInputs, Results, Tensor, fresh_lengths, to_cupy, to_torch, torch_device
from bench.grid import Point
from bench.problem import make_layer
from rnnkit.core.cells import CELLS


def truth(n: PointInputs) -> Results:
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
    """torch.nn's module. Its calls return tensors, and `results` names them."""

    def __init__(self, n: PointInputs) -> None:
        self.n = n
        point = n.point
        self.module = _module(point, n.x.device)
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(n.params[name])
        self.x = n.x.clone()
        self.states = tuple(s.clone() for s in n.states)
        self._inputs = [self.x, *self.states, *self.module.parameters()]
        self._h0 = self.states[0] if len(self.states) == 1 else self.states
        self._lengths = None if n.lengths is None else torch.from_numpy(n.lengths)
        self._fresh = fresh_lengths(point)

    def use(self, n: PointInputs) -> None:
        """Sets the inputs of later calls to those of `n`. Only their gradients may differ."""
        self.n = n

    def ready(self, backward: bool) -> Callable[[], tuple[Any, ...]]:
        """The call of a pass. In eval mode cuDNN uses its inference forward, which has no backward."""
        self._prepare(backward)
        return self.forward_backward if backward else self.forward

    def ready_fresh(self, backward: bool) -> Callable[[], tuple[Any, ...]]:
        """The call of a pass over a ragged batch, with new lengths at every call."""
        self._prepare(backward)

        def call() -> tuple[Any, ...]:
            lengths = torch.from_numpy(next(self._fresh))
            return self.forward_backward(lengths) if backward else self.forward(lengths)

        return call

    def ready_packed(self, backward: bool) -> Callable[[], tuple[Any, ...]]:
        """The call of a pass over a batch that is packed before, and whose output stays packed."""
        self._prepare(False)
        rnn = torch.nn.utils.rnn
        given = rnn.pack_padded_sequence(self.x, self._lengths, enforce_sorted=False)
        dy = rnn.pack_padded_sequence(self.n.dy, self._lengths, enforce_sorted=False).data
        self._prepare(backward)
        data = given.data.detach().requires_grad_(backward)
        packed = rnn.PackedSequence(data, given.batch_sizes, given.sorted_indices, given.unsorted_indices)

        def outputs() -> tuple[Tensor, ...]:
            y, state_n = self.module(packed, self._h0)
            return (y.data, *_as_tuple(state_n))

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return outputs()

        def forward_backward() -> tuple[Tensor, ...]:
            found = outputs()
            return (*found, *torch.autograd.grad(found, [data, *self._inputs[1:]], (dy, *self.n.ends)))

        return forward_backward if backward else forward

    def _prepare(self, backward: bool) -> None:
        self.module.train(backward)
        for tensor in self._inputs:
            tensor.requires_grad_(backward)

    def _run(self, lengths: Tensor | None) -> tuple[Tensor, ...]:
        lengths = self._lengths if lengths is None else lengths
        if lengths is None:
            y, state_n = self.module(self.x, self._h0)
        else:
            # Sorting and packing are timed: a user with a ragged batch needs them.
            packed = torch.nn.utils.rnn.pack_padded_sequence(self.x, lengths, enforce_sorted=False)
            y, state_n = self.module(packed, self._h0)
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=self.n.point.T)
        return (y, *_as_tuple(state_n))

    def forward(self, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self._run(lengths)

    def forward_backward(self, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        outputs = self._run(lengths)
        return (*outputs, *torch.autograd.grad(outputs, self._inputs, (self.n.dy, *self.n.ends)))

    def results(self, called: tuple[Tensor, ...]) -> Results:
        states = CELLS[self.n.point.cell].states
        named = ["y", *(f"{s}_n" for s in states), "dx", *(f"d{s}0" for s in states)]
        named += [f"d{name}" for name, _ in self.module.named_parameters()]
        return {name: t.detach() for name, t in zip(named, called, strict=False)}

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """`call` as a CUDA graph. Raises RuntimeError where torch or cuDNN cannot be captured."""
        if torch_device() != "cuda":
            raise RuntimeError("there is no card to capture on")
        before = torch.cuda.current_stream()
        side = torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        side.wait_stream(before)
        with torch.cuda.stream(side):
            for _ in range(3):
                want = call()
        before.wait_stream(side)
        try:
            with torch.cuda.graph(graph):
                held = call()
        finally:  # a failed capture leaves its stream as the current one
            torch.cuda.set_stream(before)
            torch.cuda.synchronize()
        graph.replay()
        if not torch.allclose(held[0].float(), want[0].float(), rtol=0.05, atol=0.05):
            raise RuntimeError("the graph's result is another than the call's")

        def replay(held: Any = held) -> None:  # held: the graph's outputs must stay alive
            graph.replay()

        return replay


class Undrawn(np.random.Generator):
    """Gives zeros in place of random numbers, for weights that are set afterwards on the device."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return np.broadcast_to(np.float32(0), size)


class Ours:
    """rnnkit's layer on CuPy, called as users call it: gradients accumulate in `grads`, which a call clears first."""

    def __init__(self, n: PointInputs, backend: str = "cupy") -> None:
        import cupy

        self.n = n
        point = n.point
        self.layer: Any = make_layer(point, backend, point.dtype, f"cuda:{cupy.cuda.Device().id}", Undrawn())
        for name, p in n.params.items():
            self.layer.params[name][...] = to_cupy(p)
        self.x = to_cupy(n.x)
        states = tuple(map(to_cupy, n.states))
        self._h0 = states[0] if len(states) == 1 else states
        self._fresh = fresh_lengths(point)  # shared by both passes, so no lengths repeat
        self.use(n)

    def use(self, n: PointInputs) -> None:
        """Sets the inputs of later calls to those of `n`. Only their gradients may differ."""
        ends = tuple(map(to_cupy, n.ends))
        self.n = n
        self.dy = to_cupy(n.dy)
        self._dh_n = ends[0] if len(ends) == 1 else ends

    def ready(self, backward: bool) -> Callable[[], tuple[Any, ...]]:
        """The call of a pass."""
        return self.forward_backward if backward else self.forward

    def ready_fresh(self, backward: bool) -> Callable[[], tuple[Any, ...]]:
        """The call of a pass over a ragged batch, with new lengths at every call."""
        call = self.forward_backward if backward else self.forward
        return lambda: call(next(self._fresh))

    def forward(self, lengths: np.ndarray | None = None) -> tuple[Any, ...]:
        lengths = self.n.lengths if lengths is None else lengths
        with rnnkit.no_grad():
            y, state_n = self.layer(self.x, self._h0, lengths=lengths)
        return (y, *_as_tuple(state_n))

    def forward_backward(self, lengths: np.ndarray | None = None) -> tuple[Any, ...]:
        lengths = self.n.lengths if lengths is None else lengths
        self.layer.zero_grad()
        y, state_n = self.layer(self.x, self._h0, lengths=lengths)
        dx, dstate0 = self.layer.backward(self.dy, self._dh_n)
        return (y, *_as_tuple(state_n), dx, *_as_tuple(dstate0), *self.layer.grads.values())

    def results(self, called: tuple[Any, ...]) -> Results:
        states = CELLS[self.n.point.cell].states
        named = ["y", *(f"{s}_n" for s in states), "dx", *(f"d{s}0" for s in states)]
        named += [f"d{name}" for name in self.layer.grads]
        return {name: to_torch(a) for name, a in zip(named, called, strict=False)}


Side = Torch | Ours


def _module(point: Point, device: Any) -> Any:
    """The module, made on the device: drawing large weights on the host takes as long as a point may."""
    sizes = (point.I, point.H, point.layers)
    common = {"bidirectional": point.bidirectional, "device": device, "dtype": torch_dtype(torch, point.dtype)}
    if point.cell.startswith("rnn_"):
        return torch.nn.RNN(*sizes, nonlinearity=point.cell.removeprefix("rnn_"), **common)
    if point.cell == "gru":
        return torch.nn.GRU(*sizes, **common)
    return torch.nn.LSTM(*sizes, proj_size=point.P, **common)


def _as_tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)
