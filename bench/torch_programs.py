"""Four PyTorch programs with torch.nn's layers and with rnnkit's: the time of a training step, and the losses.

    python -m bench.torch_programs [--programs NAME ...] [--threads N] [--out DIR]

The programs are rnnkit.examples.torch_*. Each runs in a process of its own, with both libraries' layers in turns, step
by step. The ratio is torch.nn's time over rnnkit's of two steps side by side: its median and quartiles. A program whose
first losses differ by more than the tolerance of float32 has no time. They need `pip install '.[torch-examples]'`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench import machine, tool_result
from bench.table import aligned
from rnnkit.testing import error_ratio

# Program -> its options here.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "torch_characters": ("--steps", "150"),
    "torch_recurrent_ppo": ("--steps", "25"),
    "torch_tagger": ("--steps", "80"),
    "torch_compiled": ("--steps", "150"),
}
PACKAGES = ("torch", "sb3-contrib", "stable-baselines3", "gymnasium", "numpy", "numba")
CHECKED = 5  # steps whose losses must agree: from then on rounding errors may grow


def measure(program: str, options: Sequence[str], figures: Path) -> dict[str, Any]:
    """Runs a program in this process, and returns its entry of the result file."""
    found = importlib.import_module(f"rnnkit.examples.{program}").main([*options, "--out", str(figures)])
    about = {"program": program, "options": " ".join(options), "unit": found.unit, "units": found.units}
    theirs, ours = found.losses["torch.nn"], found.losses["rnnkit"]
    error = error_ratio(ours[:CHECKED], theirs[:CHECKED], "float32", "backward")
    if not error <= 1:
        return about | {"status": "wrong", "why": f"the losses differ by {error:.3g} times the tolerance"}
    times = {layers: tool_result.quantiles([1e3 * t for t in found.timed(layers)]) for layers in found.wall}
    low, middle, high = (float(f"{value:.4g}") for value in found.ratio)
    return about | {
        "status": "ok",
        "ms": times,
        "ratio": {"p25": low, "median": middle, "p75": high},
        "cpu_ratio": float(f"{found.cpu_ratio:.4g}"),
        "losses": {"first": ours[0], "last": ours[-1], "difference": found.difference},
    }


def measure_all(programs: Sequence[str], extra: Sequence[str], figures: Path) -> list[dict[str, Any]]:
    """The entries of several programs, each in a new process."""
    entries = []
    for program in programs:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            entries.append(pool.submit(measure, program, (*PROGRAMS[program], *extra), figures).result())
    return entries


def render(entries: Sequence[dict[str, Any]]) -> str:
    """One row per program: milliseconds per step (median) of each, their ratio, and what the losses differ by."""
    rows = [["program", "torch.nn ms", "rnnkit ms", "rnnkit per s", "ratio", "quartiles", "CPU ratio", "losses differ"]]
    for entry in entries:
        if entry["status"] != "ok":
            rows.append([entry["program"], entry["why"], *["-"] * 6])
            continue
        theirs, ours = (entry["ms"][layers]["median"] for layers in ("torch.nn", "rnnkit"))
        ratio = entry["ratio"]
        rate = f"{1e3 * entry['units'] / ours:,.0f} {entry['unit']}"
        spread = f"{ratio['p25']:.2f} to {ratio['p75']:.2f}"
        shares = [f"{ratio['median']:.2f}", spread, f"{entry['cpu_ratio']:.2f}", f"{entry['losses']['difference']:.0e}"]
        rows.append([entry["program"], f"{theirs:.1f}", f"{ours:.1f}", rate, *shares])
    return "\n".join(aligned(rows, {"program"}))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.torch_programs", description=__doc__)
    parser.add_argument("--programs", nargs="+", choices=tuple(PROGRAMS), default=tuple(PROGRAMS))
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    parser.add_argument("--out", type=Path, help="writes DIR/<machine>/torch_programs.json")
    parser.add_argument("--figures", type=Path, help="folder of the plots (default: none are kept)")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    head = tool_result.with_machine(
        threads=options.threads, versions={name: importlib.metadata.version(name) for name in PACKAGES}
    )
    with tempfile.TemporaryDirectory() as folder:
        entries = measure_all(options.programs, ("--threads", str(options.threads)), options.figures or Path(folder))
    print(render(entries))
    if options.out:
        print(tool_result.save("torch_programs", head | {"results": entries}, options.out))
    return int(any(entry["status"] != "ok" for entry in entries))


if __name__ == "__main__":
    sys.exit(main())
