"""rnnkit on one of its backends, through its public layers.

forward runs under `no_grad`, and on the CPU with frozen parameters, like those of an ONNX Runtime session.
forward+backward clears the gradients first, so they are those of this call, like the result of torch.autograd.grad.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import rnnkit
from bench.grid import Point
from bench.peers import Absent, Prepared
from bench.problem import Problem, make_layer, name_states
from rnnkit.backends import backend_row
from rnnkit.core.devices import to_device, to_numpy


def make(name: str) -> Rnnkit:
    problem = backend_row(name)[0].problem()
    if problem:
        raise Absent(problem)
    return Rnnkit(name)


class Rnnkit:
    def __init__(self, backend: str) -> None:
        self.row, schedule = backend_row(backend)
        self.backend = backend
        self.row.load(schedule)
        self.device = "cpu" if self.row.arrays == "numpy" else "cuda"
        self.versions = {"rnnkit": rnnkit.__version__, "numpy": np.__version__}
        if self.device == "cuda":
            import cupy

            self.versions["cupy"] = cupy.__version__
        elif self.row.name == "numba":
            import numba

            self.versions["numba"] = numba.__version__

    def unsupported(self, point: Point) -> str | None:
        return None if point.dtype in self.row.dtypes else f"the {self.backend} backend does not serve {point.dtype}"

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        rnnkit.set_num_threads(threads)
        point = problem.point
        layer: Any = make_layer(point, self.backend, point.dtype, self.device)
        layer.load_state_dict(problem.params, cells=point.cell)
        if self.device == "cpu" and not point.backward:
            layer.freeze()
        x = self._put(problem.x)
        dy = self._put(problem.dy)
        states = tuple(map(self._put, problem.state0))
        ends = tuple(map(self._put, problem.dstate_n))
        h0, dh_n = (states[0], ends[0]) if len(states) == 1 else (states, ends)
        lengths = problem.lengths
        wait = self._wait()

        def forward() -> Any:
            with rnnkit.no_grad():
                called = layer(x, h0, lengths=lengths)
            wait()
            return called

        def forward_backward() -> Any:
            layer.zero_grad()
            called = (*layer(x, h0, lengths=lengths), *layer.backward(dy, dh_n))
            wait()
            return called

        def results(called: Any) -> dict[str, np.ndarray]:
            names = layer.cell.states
            found = {"y": called[0], **name_states(names, _host(called[1]), "{}_n")}
            if point.backward:
                found |= {"dx": called[2], **name_states(names, _host(called[3]), "d{}0")}
                found |= {f"d{name}": grad for name, grad in layer.grads.items()}
            return {name: to_numpy(a) for name, a in found.items()}

        return Prepared(forward_backward if point.backward else forward, results)

    def _put(self, a: np.ndarray) -> Any:
        return to_device(a, "cpu" if self.device == "cpu" else "cuda:0")

    def _wait(self) -> Any:
        if self.device == "cpu":
            return lambda: None
        import cupy

        return cupy.cuda.get_current_stream().synchronize


def _host(state: Any) -> Any:
    return tuple(map(to_numpy, state)) if isinstance(state, tuple) else to_numpy(state)
