"""Compressed weights (`rnnkit.compress`): the time of calls of few rows, and the error on the example models.

    python -m bench.compressed [--rounds N] [--threads N] [--no-models] [--out DIR]

A call under no_grad with float32 weights that are frozen, with bfloat16 and with int8 ones alternate, round by round,
and a ratio is one of times of the same round. A call whose result differs from the float64 oracle's, which has the
weights that the compressed ones stand for, has no time. bench/compressed_models.py trains the models.

With one thread, times are those of the thread on a core: other programs take nothing of them but caches and the core's
other hardware thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import rnnkit
from bench import tool_result
from bench.compressed_models import LOSSES, of_models
from bench.resets import KINDS
from bench.table import aligned
from rnnkit.testing import error_ratio

WEIGHTS = ("float32", "bfloat16", "int8")
SAMPLE = 0.004  # seconds of calls per time


class Shape(NamedTuple):
    """A call of one layer; I = H."""

    cell: str
    T: int
    B: int
    H: int


SHAPES = (
    *(Shape("lstm", 1, 1, H) for H in (64, 128, 192, 256, 512, 1024, 2048)),
    *(Shape("gru", 1, 1, H) for H in (128, 256, 512, 1024, 2048)),
    *(Shape("lstm", 16, 1, H) for H in (128, 256, 512, 1024, 2048)),
    *(Shape("lstm", 1, 4, H) for H in (256, 1024)),
    *(Shape("lstm", 64, 32, H) for H in (256,)),
)


def layer_of(shape: Shape, weights: str, backend: str) -> Any:
    """A layer whose calls do not check whether packed weights are stale."""
    layer = getattr(rnnkit, KINDS[shape.cell])(shape.H, shape.H, backend=backend, rng=0)
    return layer.freeze() if weights == "float32" else rnnkit.compress(layer, weights)


def oracle_of(layer: Any) -> Any:
    """The layer in float64 on the NumPy backend, with the weights that compressed ones stand for."""
    oracle = type(layer)(layer.input_size, layer.hidden_size, backend="numpy", dtype="float64", rng=0)
    for name, p in oracle.params.items():
        p[...] = layer._weight(name).astype(np.float64)
    return oracle


def bytes_of(layer: Any) -> int:
    """Bytes of the weight matrices, with their scales."""
    return sum(p.nbytes for name, p in layer.params.items() if name.startswith("weight"))


def calls_per_sample(layer: Any, x: np.ndarray, state: Any) -> int:
    started = time.perf_counter()
    for _ in range(3):
        layer(x, state)
    return min(1000, max(1, int(SAMPLE / ((time.perf_counter() - started) / 3))))


def measure(shapes: tuple[Shape, ...], rounds: int, backend: str = "numba") -> list[dict[str, Any]]:
    """Per shape and weights the microseconds of a call, and the time of float32 over it in the same round."""
    clock = time.thread_time if rnnkit.get_num_threads() == 1 else time.perf_counter
    results = []
    for shape in shapes:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((shape.T, shape.B, shape.H), dtype=np.float32)
        h = rng.standard_normal((1, shape.B, shape.H), dtype=np.float32)
        state = (h, h) if shape.cell == "lstm" else h
        wide = (h.astype("float64"),) * 2 if shape.cell == "lstm" else h.astype("float64")
        layers = {weights: layer_of(shape, weights, backend) for weights in WEIGHTS}
        errors = {}
        with rnnkit.no_grad():
            for weights, layer in layers.items():
                want, _ = oracle_of(layer)(x.astype("float64"), wide)
                errors[weights] = error_ratio(layer(x, state)[0], want, "float32")
            counts = {weights: calls_per_sample(layer, x, state) for weights, layer in layers.items()}
            times: dict[str, list[float]] = {weights: [] for weights in WEIGHTS}
            for _ in range(rounds):
                for weights, layer in layers.items():
                    layer(x, state)  # reads the weights into the caches
                    started = clock()
                    for _ in range(counts[weights]):
                        layer(x, state)
                    times[weights].append((clock() - started) / counts[weights])
        for weights, layer in layers.items():
            ahead = [a / b for a, b in zip(times["float32"], times[weights], strict=True)]
            samples = {"us": [1e6 * t for t in times[weights]], "float32_over": ahead}
            sizes = {"weights": weights, "bytes": bytes_of(layer)}
            results.append({**shape._asdict(), **sizes, **tool_result.checked(errors[weights], samples)})
    return results


def render(found: dict[str, Any]) -> str:
    rows = [["cell", "T", "B", "I = H", "weights", "MB", "us", "least", "float32 / it", "quartiles"]]
    for result in found["results"]:
        sizes = [str(result[name]) for name in (*Shape._fields, "weights")] + [f"{result['bytes'] / 1e6:.2f}"]
        if result["status"] != "ok":
            rows.append([*sizes, result["status"], "-", "-", "-"])
            continue
        ratio = result["float32_over"]
        spread = f"{ratio['p25']:.2f} to {ratio['p75']:.2f}"
        us = [f"{result['us'][name]:.1f}" for name in ("median", "min")]
        rows.append([*sizes, *us, f"{ratio['median']:.2f}", spread])
    lines = aligned(rows, {"cell", "weights"})
    if found["models"]:
        models = [["model", "weights", *LOSSES]]
        for result in found["models"]:
            models.append([result["model"], result["weights"], *(f"{result[name]:.6f}" for name in LOSSES)])
        lines += ["", *aligned(models, {"model", "weights"})]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.compressed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="times of each way per shape")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of rnnkit (default 1)")
    parser.add_argument("--no-models", action="store_true", help="leaves the example models out")
    parser.add_argument("--out", type=Path, help="writes DIR/<machine>/compressed.json")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    models = [] if options.no_models else of_models()
    rnnkit.set_num_threads(options.threads)
    results = measure(SHAPES, options.rounds)
    found = tool_result.with_machine(threads=options.threads, results=results, models=models)
    print(render(found))
    if options.out:
        print(tool_result.save("compressed", found, options.out))
    return int(any(result["status"] != "ok" for result in found["results"]))


if __name__ == "__main__":
    sys.exit(main())
