"""The overhead of a small call through rnnkit.torch: the plain layer, rnnkit.torch's and torch.nn's, in microseconds.

    python -m bench.torch_calls [--seconds S] [--out DIR]

The layer is so small that its arithmetic takes a microsecond or two: T = 4, B = 1, I = H = 8, one thread. Kinds of
call: forward under no_grad; forward that saves what backward needs (of the PyTorch layers: that autograd records); and
forward+backward, which for PyTorch includes autograd's engine and adding to `.grad`. Every round calls each library in
turn. A library whose results are wrong has no time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import tool_result
from bench.grid import FORWARD_BACKWARD, MAIN_CELLS, Point
from bench.problem import Problem, make_problem, name_states
from bench.table import aligned
from rnnkit.core.cells import CELLS

KINDS = ("forward, no_grad", "forward", "forward+backward")
LIBRARIES = ("rnnkit", "rnnkit.torch", "torch.nn")
T, B, H = 4, 1, 8
CALLS = 100  # between two looks at the clock, in one block of no_grad
NAMES = {"rnn_tanh": "RNN", "gru": "GRU", "lstm": "LSTM"}


def measure(cells: tuple[str, ...], seconds: float, rounds: int = 20) -> dict[str, Any]:
    """{"results": [{"cell", "kind", "library", "status", "us"}]}. seconds: of calls per result, in `rounds` samples."""
    results = []
    for cell in cells:
        point = Point(cell, T, B, H, H, passes=FORWARD_BACKWARD)
        problem = make_problem(point)
        calls = {library: _calls(library, problem) for library in LIBRARIES}
        errors = {lib: tool_result.worst_error(point, problem, found()) for lib, (_, found) in calls.items()}
        for kind in KINDS:
            times = _in_turns([calls[library][0][kind] for library in LIBRARIES], seconds / rounds, rounds)
            for library, samples in zip(LIBRARIES, times, strict=True):
                checked = tool_result.checked(errors[library], {"us": samples})
                results.append({"cell": cell, "kind": kind, "library": library, **checked})
    return tool_result.with_machine(seconds=seconds, results=results)


def _in_turns(calls: list[Callable[[], Any]], seconds: float, rounds: int) -> list[list[float]]:
    """Microseconds per call, one sample per function and round. Each function makes CALLS calls."""
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, own in zip(calls, samples, strict=True):
            call()  # warm
            end = time.perf_counter() + seconds
            started = time.perf_counter()
            count = 0
            while time.perf_counter() < end:
                call()
                count += CALLS
            own.append(1e6 * (time.perf_counter() - started) / count)
    return samples


def _calls(library: str, problem: Problem) -> tuple[dict[str, Callable[[], Any]], Callable[[], dict[str, np.ndarray]]]:
    """Functions that make CALLS calls of each kind, and a function that gives all results and gradients by name."""
    return _plain(problem) if library == "rnnkit" else _torch(library, problem)


def _plain(problem: Problem) -> tuple[dict[str, Callable[[], Any]], Callable[[], dict[str, np.ndarray]]]:
    import rnnkit

    rnnkit.set_num_threads(1)
    cell = problem.point.cell
    layer = getattr(rnnkit, NAMES[cell])(H, H)
    layer.load_state_dict(problem.params, cells=cell)
    x, dy = problem.x, problem.dy
    h0, dh = (problem.state0, problem.dstate_n) if cell == "lstm" else (problem.state0[0], problem.dstate_n[0])

    def no_grad() -> None:
        with rnnkit.no_grad():
            for _ in range(CALLS):
                layer(x)

    def recorded() -> None:
        for _ in range(CALLS):
            layer(x)
        layer.zero_grad()  # or a backward after many calls has to name one of them

    def both() -> None:
        for _ in range(CALLS):
            layer(x)
            layer.backward(dy, dx=False)  # as of a tensor that does not require a gradient

    def found() -> dict[str, np.ndarray]:
        layer.zero_grad()
        y, state_n = layer(x, h0)
        dx, dstate0 = layer.backward(dy, dh)
        return _named(cell, y, state_n, dx, dstate0, layer.grads)

    return dict(zip(KINDS, (no_grad, recorded, both), strict=True)), found


def _torch(library: str, problem: Problem) -> tuple[dict[str, Callable[[], Any]], Callable[[], dict[str, np.ndarray]]]:
    import torch

    import rnnkit.torch

    torch.set_num_threads(1)
    cell = problem.point.cell
    layer = getattr(rnnkit.torch if library == "rnnkit.torch" else torch.nn, NAMES[cell])(H, H)
    layer.load_state_dict({name: torch.from_numpy(p) for name, p in problem.params.items()})
    x = torch.from_numpy(problem.x)
    dy = torch.from_numpy(problem.dy)

    def no_grad() -> None:
        with torch.no_grad():
            recorded()

    def recorded() -> None:
        for _ in range(CALLS):
            layer(x)

    def both() -> None:
        for _ in range(CALLS):
            layer(x)[0].backward(dy)

    def found() -> dict[str, np.ndarray]:
        states = [torch.from_numpy(s).requires_grad_() for s in problem.state0]
        inputs = [x.clone().requires_grad_(), *states, *layer.parameters()]
        y, state_n = layer(inputs[0], tuple(states) if cell == "lstm" else states[0])
        outputs = (y, *(state_n if cell == "lstm" else (state_n,)))
        dx, *rest = torch.autograd.grad(outputs, inputs, (dy, *map(torch.from_numpy, problem.dstate_n)))
        names = [name for name, _ in layer.named_parameters()]
        grads = dict(zip(names, map(_numpy, rest[len(states) :]), strict=True))
        return _named(cell, _numpy(y), state_n, _numpy(dx), tuple(rest[: len(states)]), grads)

    return dict(zip(KINDS, (no_grad, recorded, both), strict=True)), found


def _named(cell: str, y: Any, state_n: Any, dx: Any, dstate0: Any, grads: Any) -> dict[str, np.ndarray]:
    names = CELLS[cell].states
    found = {"y": y, "dx": dx}
    for states, form in ((state_n, "{}_n"), (dstate0, "d{}0")):
        found |= name_states(names, [_numpy(s) for s in (states if isinstance(states, tuple) else (states,))], form)
    return found | {f"d{name}": grad for name, grad in grads.items()}


def _numpy(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else value.detach().numpy()


def render(found: dict[str, Any]) -> str:
    """One row per cell and kind: medians in microseconds, and what rnnkit.torch takes more than the plain layer."""
    by_key = {(r["cell"], r["kind"], r["library"]): r for r in found["results"]}
    rows = [["cell", "call", *(f"{library} us" for library in LIBRARIES), "over rnnkit us", "quartiles"]]
    for cell, kind in dict.fromkeys((r["cell"], r["kind"]) for r in found["results"]):
        of_each = [by_key[cell, kind, library] for library in LIBRARIES]
        medians = [r["us"]["median"] if r["status"] == "ok" else None for r in of_each]
        shown = ["wrong" if m is None else f"{m:.1f}" for m in medians]
        plain, via, _ = medians
        if plain is None or via is None:
            rows.append([cell, kind, *shown, "-", "-"])
            continue
        us = of_each[1]["us"]
        rows.append([cell, kind, *shown, f"{via - plain:.1f}", f"{us['p25'] - plain:.1f} to {us['p75'] - plain:.1f}"])
    wrong = [f"{r['library']} {r['cell']}: {r['why']}" for r in found["results"] if r["status"] == "wrong"]
    return "\n".join([*aligned(rows, {"cell", "call"}), *dict.fromkeys(wrong)])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.torch_calls", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of calls per result")
    parser.add_argument("--out", type=Path, help="writes DIR/<machine>/torch_calls.json")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    found = measure(MAIN_CELLS, options.seconds)
    print(render(found))
    if options.out:
        print(tool_result.save("torch_calls", found, options.out))
    return int(any(r["status"] == "wrong" for r in found["results"] if r["library"].startswith("rnnkit")))


if __name__ == "__main__":
    sys.exit(main())
