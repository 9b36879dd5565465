"""The cost of resets and masks: forward and backward of a layer with them, beside the same call without them.

    python -m bench.resets [--rounds N] [--out DIR]

Where PyTorch is installed, torch.nn's layer is measured too, which has to step through the resets. All ways alternate,
round by round, and a ratio is one of times of the same round. A call of rnnkit whose result differs from the float64
oracle's has no time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import rnnkit
from bench import tool_result
from bench.table import aligned
from rnnkit.testing import error_ratio

Way = Callable[[], None]


class Shape(NamedTuple):
    """A call: sizes, and the share of steps at which a row is reset."""

    cell: str
    T: int
    B: int
    I: int
    H: int
    resets: float


SHAPES = (
    Shape("gru", 64, 64, 4, 64, 0.1),
    Shape("gru", 128, 64, 64, 128, 0.05),
    Shape("lstm", 128, 64, 64, 128, 0.05),
    Shape("lstm", 128, 64, 128, 256, 0.02),
    Shape("gru", 2048, 8, 32, 64, 0.005),
)
KINDS = {"gru": "GRU", "lstm": "LSTM"}
MASKED = 0.2  # share of steps that the mask leaves out


def flags_of(shape: Shape) -> dict[str, dict[str, Any]]:
    """Arguments of rnnkit's calls by name."""
    drawn = np.random.default_rng(1).random((2, shape.T, shape.B))
    resets, mask = drawn[0] < shape.resets, drawn[1] >= MASKED
    return {
        "plain": {},
        "resets": {"resets": resets},
        "mask": {"mask": mask},
        "mask, zeros": {"mask": mask, "zero_output_for_mask": True},
        "resets and mask": {"resets": resets, "mask": mask},
    }


def ours(shape: Shape, x: np.ndarray, dy: np.ndarray, backend: str, flags: dict[str, Any]) -> tuple[Way, float]:
    """A call with its backward, and its worst error as a share of the tolerance."""
    kind = getattr(rnnkit, KINDS[shape.cell])
    layer = kind(shape.I, shape.H, backend=backend, rng=0)
    oracle = kind(shape.I, shape.H, backend="numpy", dtype="float64", rng=0)
    for name, p in layer.params.items():
        oracle.params[name][...] = p
    want_y, _ = oracle(x.astype("float64"), **flags)
    want_dx, _ = oracle.backward(dy.astype("float64"))
    y, _ = layer(x, **flags)
    dx, _ = layer.backward(dy)
    error = max(error_ratio(y, want_y, "float32"), error_ratio(dx, want_dx, "float32", "backward"))

    def call() -> None:
        layer(x, **flags)
        layer.zero_grad()
        layer.backward(dy)

    return call, error


def torch_steps(shape: Shape, x: np.ndarray, dy: np.ndarray, resets: np.ndarray, threads: int) -> Way | None:
    """torch.nn's layer one step at a time, with a new state where a row is reset. None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    layer = getattr(torch.nn, KINDS[shape.cell])(shape.I, shape.H)
    given, gradient = torch.tensor(x, requires_grad=True), torch.tensor(dy)
    goes_on = torch.tensor(~resets)[:, None, :, None].float()
    zeros = torch.zeros(1, shape.B, shape.H)

    def call() -> None:
        state = (zeros, zeros) if shape.cell == "lstm" else zeros
        ys = []
        for x_t, on in zip(given, goes_on, strict=True):
            state = tuple([s * on for s in state]) if shape.cell == "lstm" else state * on
            y, state = layer(x_t[None], state)
            ys.append(y)
        torch.cat(ys).backward(gradient)

    return call


def measure(shapes: tuple[Shape, ...], rounds: int, backend: str = "numba") -> dict[str, Any]:
    """Per shape and way the milliseconds, and the time over that of the plain call of the same round."""
    results = []
    for shape in shapes:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((shape.T, shape.B, shape.I), dtype=np.float32)
        dy = rng.standard_normal((shape.T, shape.B, shape.H), dtype=np.float32)
        flags = flags_of(shape)
        ways: dict[str, tuple[Way, float]] = {
            name: ours(shape, x, dy, backend, options) for name, options in flags.items()
        }
        stepped = torch_steps(shape, x, dy, flags["resets"]["resets"], rnnkit.get_num_threads())
        if stepped is not None:
            ways["torch.nn, step by step"] = (stepped, 0.0)
        times = alternated({name: way for name, (way, _) in ways.items()}, rounds)
        for name, (_, error) in ways.items():
            over_plain = [a / b for a, b in zip(times[name], times["plain"], strict=True)]
            samples = {"ms": [1e3 * t for t in times[name]], "over_plain": over_plain}
            results.append({**shape._asdict(), "call": name, **tool_result.checked(error, samples)})
    return tool_result.with_machine(backend=backend, results=results)


def alternated(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for k in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if k:
                times[name].append(time.perf_counter() - start)
    return times


def render(found: dict[str, Any]) -> str:
    rows = [["cell", "T", "B", "I", "H", "resets", "call", "ms", "over plain", "quartiles"]]
    for result in found["results"]:
        sizes = [str(result[name]) for name in Shape._fields]
        if result["status"] != "ok":
            rows.append([*sizes, result["call"], result["status"], "-", "-"])
            continue
        ratio = result["over_plain"]
        spread = f"{ratio['p25']:.2f} to {ratio['p75']:.2f}"
        rows.append([*sizes, result["call"], f"{result['ms']['median']:.2f}", f"{ratio['median']:.2f}", spread])
    return "\n".join(aligned(rows, {"cell", "call"}))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.resets", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="calls of each way per shape")
    parser.add_argument("--out", type=Path, help="writes DIR/<machine>/resets.json")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    found = measure(SHAPES, options.rounds)
    print(render(found))
    if options.out:
        print(tool_result.save("resets", found, options.out))
    return int(any(result["status"] != "ok" for result in found["results"]))


if __name__ == "__main__":
    sys.exit(main())
