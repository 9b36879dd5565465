"""PyTorch on the CPU: torch.nn.RNN, GRU and LSTM, and rnnkit's layers for PyTorch, eager and compiled.

forward runs under eval and inference_mode. forward+backward is one forward and one torch.autograd.grad for every input
and parameter. torch.nn's modules are not compiled: Dynamo runs them eagerly, with equal times.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch

import rnnkit
import rnnkit.torch
from bench.grid import Point
from bench.peers import Absent, Prepared
from bench.problem import Problem, name_states
from rnnkit.backends import BACKENDS
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES

VIA_TORCH, COMPILED = "via torch", "via torch, compiled"


def make(name: str) -> Torch:
    return Torch() if name == "torch" else ViaTorch(name == COMPILED)


class Torch:
    """torch.nn's modules."""

    def __init__(self) -> None:
        self.versions = {"torch": torch.__version__}

    def unsupported(self, point: Point) -> str | None:
        return "torch.nn.GRU has reset after alone" if point.cell == "gru_reset_before" else None

    def module(self, point: Point) -> torch.nn.Module:
        """The point's module, with weights of its own."""
        common = {"bidirectional": point.bidirectional, "dtype": getattr(torch, point.dtype)}
        sizes = (point.I, point.H, point.layers)
        if point.cell.startswith("rnn_"):
            return torch.nn.RNN(*sizes, nonlinearity=point.cell.removeprefix("rnn_"), **common)
        if point.cell == "gru":
            return torch.nn.GRU(*sizes, **common)
        return torch.nn.LSTM(*sizes, proj_size=point.P, **common)

    def caller(self, module: torch.nn.Module, lengths: np.ndarray | None) -> Any:
        """(x, h0) -> y, state_n."""
        if lengths is None:
            return module
        host = torch.from_numpy(lengths)

        def ragged(x: torch.Tensor, h0: Any) -> Any:
            # Sorting and packing are timed: a user with a ragged batch needs them.
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, host, enforce_sorted=False)
            y, state_n = module(packed, h0)
            return torch.nn.utils.rnn.pad_packed_sequence(y, total_length=x.shape[0])[0], state_n

        return ragged

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        torch.set_num_threads(threads)
        point = problem.point
        names = CELLS[problem.point.cell].states
        module = self.module(point)
        params = {name: _tensor(p) for name, p in problem.params.items()}
        module.load_state_dict(dict(module.named_buffers()) | params)
        x = _tensor(problem.x)
        dy = _tensor(problem.dy)
        states = tuple(map(_tensor, problem.state0))
        ends = tuple(map(_tensor, problem.dstate_n))
        h0 = states[0] if len(states) == 1 else states
        run = self.caller(module, problem.lengths)

        def forward() -> Any:
            with torch.inference_mode():
                return (*run(x, h0), ())

        def forward_backward() -> Any:
            y, state_n = run(x, h0)
            outputs = (y, *(state_n if isinstance(state_n, tuple) else (state_n,)))
            return y, state_n, torch.autograd.grad(outputs, inputs, (dy, *ends))

        inputs = [x, *states, *module.parameters()]
        if point.backward:
            for tensor in inputs:
                tensor.requires_grad_()
        else:
            module.eval()

        def results(called: Any) -> dict[str, np.ndarray]:
            y, state_n, gradients = called
            state_n = tuple(_numpy(s) for s in state_n) if isinstance(state_n, tuple) else _numpy(state_n)
            found = {"y": _numpy(y), **name_states(names, state_n, "{}_n")}
            named = ["dx", *(f"d{n}0" for n in names), *(f"d{n}" for n, _ in module.named_parameters())]
            return found | {name: _numpy(g) for name, g in zip(named, gradients, strict=False)}

        return Prepared(forward_backward if point.backward else forward, results)


class ViaTorch(Torch):
    """rnnkit.torch's modules."""

    def __init__(self, compiled: bool) -> None:
        super().__init__()
        self.versions |= {"rnnkit": rnnkit.__version__, "numba": numba.__version__}
        self.compiled = compiled
        problem = BACKENDS["numba"].problem()
        if problem:
            raise Absent(problem)

    def unsupported(self, point: Point) -> str | None:
        served = point.dtype in BACKENDS["numba"].dtypes
        return None if served else f"rnnkit.torch is measured on the numba backend, which does not serve {point.dtype}"

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        rnnkit.set_num_threads(threads)
        return super().prepare(problem, threads)

    def module(self, point: Point) -> torch.nn.Module:
        common: Any = {"bidirectional": point.bidirectional, "dtype": getattr(torch, point.dtype)}
        sizes = (point.I, point.H, point.layers)
        if point.cell.startswith("rnn_"):
            return rnnkit.torch.RNN(*sizes, nonlinearity=point.cell.removeprefix("rnn_"), **common)
        if point.cell.startswith("gru"):
            return rnnkit.torch.GRU(*sizes, reset_after=point.cell == "gru", **common)
        return rnnkit.torch.LSTM(*sizes, proj_size=point.P, **common)

    def caller(self, module: torch.nn.Module, lengths: np.ndarray | None) -> Any:
        called: Any = module
        if self.compiled:
            torch.compiler.reset()  # what is compiled counts against a limit, over all modules of a class
            called = torch.compile(module, fullgraph=True, dynamic=False)
        if lengths is None:
            return called
        host = torch.from_numpy(lengths)
        return lambda x, h0: called(x, h0, lengths=host)


def _tensor(a: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory. PyTorch does not know NumPy's bfloat16, so its bits pass as whole numbers."""
    return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) if a.dtype == "bfloat16" else torch.from_numpy(a)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(DTYPES["bfloat16"].storage)
    return tensor.numpy()
