"""One step of a Cell: rnnkit's RNNCell, GRUCell and LSTMCell, and torch.nn's. For bench.cell_calls, not in PEERS.

    rnnkit, torch              forward under no_grad and inference_mode; forward+backward
    rnnkit_grad, torch_grad    forward with gradients enabled, which saves what the backward needs

The points have T = 1. A Cell returns its state and no separate y, so the state is checked as both, and the incoming
gradients of both are added up before the call.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

import rnnkit
from bench.grid import Point
from bench.peers import Prepared
from bench.problem import Problem, name_states
from rnnkit.core.cells import CELLS

PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
KINDS = {"rnn_tanh": "RNNCell", "gru": "GRUCell", "lstm": "LSTMCell"}


def make(name: str) -> Cells:
    side, _, grad = name.partition("_")
    if side == "torch":
        import torch

        return TorchCells({"torch": torch.__version__}, bool(grad))
    return RnnkitCells({"rnnkit": rnnkit.__version__, "numpy": np.__version__}, bool(grad))


class Cells:
    """Shared by both libraries. grad: whether a forward saves what the backward needs."""

    def __init__(self, versions: dict[str, str], grad: bool) -> None:
        self.versions = versions
        self.grad = grad

    def unsupported(self, point: Point) -> str | None:
        if point.T != 1 or point.extras or point.cell not in KINDS:
            return "a Cell is one step of one plain layer"
        return "forward+backward is measured without _grad" if self.grad and point.backward else None

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        """The call of one step, and its results by a layer's names and shapes."""
        call = self.make_call(problem, threads)
        names = CELLS[problem.point.cell].states

        def results(called: Any) -> dict[str, np.ndarray]:
            state, dx, dstate0, grads = called()
            found = {"y": state[0][None], **name_states(names, [s[None] for s in state], "{}_n")}
            if problem.point.backward:
                found |= {"dx": dx[None], **name_states(names, [d[None] for d in dstate0], "d{}0")}
                found |= {f"d{name}_l0": grads[name] for name in PARTS}
            return found

        return Prepared(call, results)

    def make_call(self, problem: Problem, threads: int) -> Any:
        """A call that returns a function of no arguments: state, dx, dstate0 and the gradients, as NumPy arrays."""
        raise NotImplementedError


def _inputs(problem: Problem) -> tuple[np.ndarray, tuple[np.ndarray, ...], tuple[np.ndarray, ...], dict[str, Any]]:
    """x (B, I), the states (B, H), the gradients of the new states (B, H), and the parameters by a Cell's names."""
    state0 = tuple(s[0] for s in problem.state0)
    dstate = [d[0] for d in problem.dstate_n]
    dstate[0] = dstate[0] + problem.dy[0]
    return problem.x[0], state0, tuple(dstate), {name: problem.params[f"{name}_l0"] for name in PARTS}


class RnnkitCells(Cells):
    def make_call(self, problem: Problem, threads: int) -> Any:
        rnnkit.set_num_threads(threads)
        point = problem.point
        x, states, ends, params = _inputs(problem)
        cell: Any = getattr(rnnkit, KINDS[point.cell])(point.I, point.H, dtype=point.dtype)
        cell.load_state_dict(params, cells=point.cell)
        h0, dh = (states, ends) if len(states) > 1 else (states[0], ends[0])

        def found(state: Any, dx: Any = None, dstate0: Any = None) -> Any:
            return lambda: (_tuple(state), dx, _tuple(dstate0), cell.grads)

        def forward() -> Any:
            with rnnkit.no_grad():
                return found(cell(x, h0))

        def forward_backward() -> Any:
            cell.zero_grad()
            return found(cell(x, h0), *cell.backward(dh))

        if point.backward:
            return forward_backward
        return (lambda: found(cell(x, h0))) if self.grad else forward


class TorchCells(Cells):
    def make_call(self, problem: Problem, threads: int) -> Any:
        import torch

        torch.set_num_threads(threads)
        point = problem.point
        arrays = _inputs(problem)
        x = torch.from_numpy(arrays[0])
        params = {name: torch.from_numpy(p) for name, p in arrays[3].items()}
        states, ends = (tuple(map(torch.from_numpy, a)) for a in arrays[1:3])
        cell = getattr(torch.nn, KINDS[point.cell])(point.I, point.H, dtype=getattr(torch, point.dtype))
        cell.load_state_dict(params)
        h0 = states if len(states) > 1 else states[0]
        inputs = [x, *states, *(getattr(cell, name) for name in PARTS)]
        if point.backward:
            for tensor in inputs:
                tensor.requires_grad_()

        def found(state: Any, gradients: Any = ()) -> Any:
            def arrays() -> Any:
                given = [g.numpy() for g in gradients]
                ended = 1 + len(states)
                named = dict(zip(PARTS, given[ended:], strict=False))
                return tuple(s.detach().numpy() for s in _tuple(state)), *(given[:1] or [None]), given[1:ended], named

            return arrays

        def forward_backward() -> Any:
            state = cell(x, h0)
            return found(state, torch.autograd.grad(_tuple(state), inputs, ends))

        def forward() -> Any:
            with contextlib.nullcontext() if self.grad else torch.inference_mode():
                return found(cell(x, h0))

        return forward_backward if point.backward else forward


def _tuple(state: Any) -> Any:
    return state if isinstance(state, tuple) or state is None else (state,)
