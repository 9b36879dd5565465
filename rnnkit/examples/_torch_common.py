"""Code that the programs for PyTorch share: one program run twice, with torch.nn's layers and with rnnkit's.

    found = compare("torch_tagger", make, args)

`make(layers)` builds the program: `layers` is the module torch.nn or rnnkit.torch, which is all that differs. It
returns a function that does one training step and returns its loss. The two programs take turns, step by step, so that
a slow moment of the machine meets both.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rnnkit.torch
from rnnkit.examples import _common as common

LAYERS = {"torch.nn": torch.nn, "rnnkit": rnnkit.torch}
Step = Callable[[], float]


@dataclass
class Comparison:
    """The losses and the times of each step, by the name of the layers. Times are in seconds.

    Attributes:
        name: the program.
        unit: what a step handles, in words.
        units: how many of them a step handles.
        warmup: the number of first steps, which compile code, that the ratios leave out.
        losses: the loss of each step.
        wall: elapsed time of each step.
        cpu: processor time of each step, of all threads of the process.
        figure: the plot.
    """

    name: str
    unit: str
    units: int
    warmup: int
    losses: dict[str, list[float]] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    figure: Path | None = None

    def timed(self, layers: str) -> np.ndarray:
        """Elapsed times without those of the first steps."""
        return np.asarray(self.wall[layers][self.warmup :])

    @property
    def ratio(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of torch.nn's time over rnnkit's, of steps side by side."""
        low, middle, high = np.percentile(self.timed("torch.nn") / self.timed("rnnkit"), (25, 50, 75))
        return float(low), float(middle), float(high)

    @property
    def cpu_ratio(self) -> float:
        """torch.nn's processor time over rnnkit's."""
        theirs, ours = (sum(self.cpu[layers][self.warmup :]) for layers in LAYERS)
        return theirs / ours

    @property
    def difference(self) -> float:
        """The largest difference of the two losses of a step, as a share of the larger one."""
        theirs, ours = (np.asarray(self.losses[layers]) for layers in LAYERS)
        return float(np.max(np.abs(theirs - ours) / np.maximum(np.abs(theirs), np.abs(ours))))


def parser(doc: str | None, name: str, steps: int, dtype: bool = True) -> argparse.ArgumentParser:
    """An argument parser with the options that the programs share.

    steps: the default number of steps.
    dtype: whether the program has a choice of dtype.
    """
    options = argparse.ArgumentParser(
        prog=f"python -m rnnkit.examples.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--layers", choices=(*LAYERS, "both"), default="both", help="whose layers (default both)")
    options.add_argument("--steps", type=common.positive, default=steps, help=f"training steps (default {steps})")
    options.add_argument("--warmup", type=int, default=3, help="first steps that are not timed (default 3)")
    options.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default 0)")
    options.add_argument("--threads", type=common.positive, help="of PyTorch and of rnnkit (default: theirs)")
    options.add_argument("--out", type=Path, default=Path("out"), help="folder of the figure (default ./out)")
    if dtype:
        options.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="default float32")
    return options


def parse(options: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; the numbers of threads are set."""
    args = options.parse_args(argv)
    common.check_extras(*common.REQUIRED, extra="torch-examples")
    if not 0 <= args.warmup < args.steps:
        options.error(f"--warmup must be at least 0 and below --steps {args.steps}, got {args.warmup}")
    if args.threads:
        torch.set_num_threads(args.threads)
        rnnkit.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def compare(
    name: str, make: Callable[[Any], Step], args: argparse.Namespace, unit: str = "rows", units: int = 1
) -> Comparison:
    """Runs the program with the layers of `--layers`, prints a table and draws a plot.

    Both programs start from the same seed, and each has random numbers of its own from then on.
    """
    found = Comparison(name, unit, units, args.warmup)
    chosen = [layers for layers in LAYERS if args.layers in (layers, "both")]
    steps, generators = {}, {}
    for layers in chosen:
        generators[layers] = Generators(args.seed)
        with generators[layers]():
            steps[layers] = make(LAYERS[layers])
        found.losses[layers], found.wall[layers], found.cpu[layers] = [], [], []
    for k in common.progress(range(args.steps), name):
        for layers in chosen if k % 2 == 0 else reversed(chosen):
            with generators[layers]():
                wall, cpu = time.perf_counter(), time.process_time()
                loss = steps[layers]()
                found.wall[layers].append(time.perf_counter() - wall)
                found.cpu[layers].append(time.process_time() - cpu)
            found.losses[layers].append(loss)
    show(found, chosen)
    found.figure = draw(found, chosen, args.out / f"{name}.png")
    return found


class Generators:
    """The global generators of PyTorch, NumPy and Python as one program of several sees them."""

    def __init__(self, seed: int) -> None:
        with self._outside_kept():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - stable-baselines3 draws from it
            random.seed(seed)
            self._states = _states()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """A block in which they go on from where the last block left them."""
        with self._outside_kept():
            _restore(self._states)
            yield
            self._states = _states()

    @staticmethod
    @contextmanager
    def _outside_kept() -> Iterator[None]:
        outside = _states()
        try:
            yield
        finally:
            _restore(outside)


def _states() -> tuple[Any, Any, Any]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _restore(states: tuple[Any, Any, Any]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])


def show(found: Comparison, chosen: Sequence[str]) -> None:
    """Prints the losses and times."""
    common.heading(found.name)
    rows = []
    for layers in chosen:
        low, middle, high = np.percentile(found.timed(layers), (25, 50, 75))
        quartiles = f"{1e3 * low:.2f} to {1e3 * high:.2f}"
        losses = found.losses[layers]
        first, last = f"{losses[0]:.6g}", f"{losses[-1]:.6g}"
        rows.append((layers, f"{1e3 * middle:.2f}", quartiles, f"{found.units / middle:,.0f}", first, last))
    common.table(("layers", "ms per step", "quartiles", f"{found.unit} per s", "first loss", "last loss"), rows)
    if len(chosen) == 2:
        low, middle, high = found.ratio
        print(f"  torch.nn's time over rnnkit's: {middle:.2f} (quartiles {low:.2f} to {high:.2f})")
        print(f"  torch.nn's processor time over rnnkit's: {found.cpu_ratio:.2f}")
        print(f"  the losses differ by at most {found.difference:.1e} of themselves in {len(losses)} steps")


def draw(found: Comparison, chosen: Sequence[str], path: Path) -> Path:
    """Draws the losses and the times."""
    drawn = common.figure(9.0, 3.8)
    left, right = drawn.subplots(1, 2, width_ratios=(2, 1))
    styles = {"torch.nn": {"linewidth": 3.0, "color": "C1", "alpha": 0.5}, "rnnkit": {"linewidth": 1.0, "color": "C0"}}
    for layers in chosen:
        left.plot(np.arange(1, len(found.losses[layers]) + 1), found.losses[layers], label=layers, **styles[layers])
    left.set(title=f"{found.name}: the loss", xlabel="step", ylabel="loss")
    left.grid(alpha=0.3)
    left.legend()
    times = [1e3 * found.timed(layers) for layers in chosen]
    right.boxplot(times, tick_labels=list(chosen), showfliers=False, widths=0.5, medianprops={"color": "black"})
    right.set(title="the time of a step", ylabel="ms", ylim=(0, None))
    right.grid(alpha=0.3, axis="y")
    return common.save_figure(drawn, path)
