"""PyTorch: torch.nn.RNN, GRU and LSTM on the CPU.

forward runs under eval and inference_mode. forward+backward is one forward and one torch.autograd.grad for every input
and parameter. torch.compile is not used: Dynamo runs these modules eagerly, with equal times.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bench.grid import Point
from bench.peers import Prepared
from bench.problem import Problem, name_states
from rnnkit.core.cells import CELLS


def make(name: str) -> Torch:
    return Torch()


class Torch:
    def __init__(self) -> None:
        self.versions = {"torch": torch.__version__}

    def unsupported(self, point: Point) -> str | None:
        return "torch.nn.GRU has reset after alone" if point.cell == "gru_reset_before" else None

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        torch.set_num_threads(threads)
        point = problem.point
        names = CELLS[problem.point.cell].states
        module = _module(point)
        module.load_state_dict({name: torch.from_numpy(p) for name, p in problem.params.items()})
        x = torch.from_numpy(problem.x)
        dy = torch.from_numpy(problem.dy)
        states = tuple(map(torch.from_numpy, problem.state0))
        ends = tuple(map(torch.from_numpy, problem.dstate_n))
        h0 = states[0] if len(states) == 1 else states
        lengths = None if problem.lengths is None else torch.from_numpy(problem.lengths)

        def run() -> Any:
            if lengths is None:
                return module(x, h0)
            # Sorting and packing are timed: a user with a ragged batch needs them.
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            y, state_n = module(packed, h0)
            return torch.nn.utils.rnn.pad_packed_sequence(y, total_length=point.T)[0], state_n

        def forward() -> Any:
            with torch.inference_mode():
                return (*run(), ())

        def forward_backward() -> Any:
            y, state_n = run()
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


def _module(point: Point) -> torch.nn.Module:
    common = {"bidirectional": point.bidirectional, "dtype": getattr(torch, point.dtype)}
    sizes = (point.I, point.H, point.layers)
    if point.cell.startswith("rnn_"):
        return torch.nn.RNN(*sizes, nonlinearity=point.cell.removeprefix("rnn_"), **common)
    if point.cell == "gru":
        return torch.nn.GRU(*sizes, **common)
    return torch.nn.LSTM(*sizes, proj_size=point.P, **common)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()
