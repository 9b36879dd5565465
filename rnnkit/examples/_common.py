"""What the five programs share, so that each is left with its subject: options, progress bars, figures, tables.

run = start(parser(__doc__, "next_word"), argv)
layer = rnnkit.LSTM(8, 32, backend=run.backend, **run.layer)
"""

from __future__ import annotations

import argparse
import importlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import rnnkit
from rnnkit.backends import BACKENDS, backend_row, check_backend
from rnnkit.core.devices import resolve_device

# Module -> the name pip knows it by. All are in the extra `examples`; every program needs the first two.
EXTRAS = {"tqdm": "tqdm", "matplotlib": "matplotlib", "sklearn": "scikit-learn"}
USUAL = ("tqdm", "matplotlib")


@dataclass(frozen=True)
class Run:
    """One run of a program: its options, where its arrays live, and its one source of random numbers."""

    args: argparse.Namespace
    backend: str | None
    device: str
    rng: np.random.Generator
    out: Path

    @property
    def layer(self) -> dict[str, Any]:
        """Keywords every layer takes: the device, and the generator that draws the initial parameters."""
        return {"device": self.device, "rng": self.rng}

    def array(self, values: Any, dtype: Any = None) -> Any:
        """`values` as an array on the run's device: NumPy's on the CPU, CuPy's on a card."""
        if self.device == "cpu":
            return np.asarray(values, dtype)
        return importlib.import_module("cupy").asarray(values, dtype)


def host(array: Any) -> np.ndarray:
    """An array as NumPy, wherever it lives."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """A parser that says `doc` under --help and has the options all programs share."""
    options = argparse.ArgumentParser(
        prog=f"python -m rnnkit.examples.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--backend", help=f"{', '.join(BACKENDS)} (default: the first that serves the device)")
    options.add_argument("--device", help="cpu, cuda or cuda:<index> (default: that of the backend; cpu without one)")
    options.add_argument("--seed", type=int, default=0, help="of weights, splits and samples (default 0)")
    options.add_argument("--out", type=Path, default=Path("out"), help="folder of the figures (default ./out)")
    return options


def start(
    options: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    needs: Callable[[argparse.Namespace], Sequence[str]] = lambda args: (),
) -> Run:
    """Reads the options and checks, before any work, that backend and device are here and the extras are installed.

    needs: options -> modules of EXTRAS that a run with them imports besides the usual. Without what `--backend` or
    `--device` name, as a GPU, the program says why in one line and ends with status 2.
    """
    args = options.parse_args(argv)
    device = _device_of(args, options)
    if args.seed < 0:
        options.error(f"--seed must be a whole number of at least 0, got {args.seed}")
    check_extras(*USUAL, *needs(args))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        options.error(f"--out must be a folder that can be made or written to: {problem}")
    return Run(args, args.backend, device, np.random.default_rng(args.seed), args.out)


def _device_of(args: argparse.Namespace, options: argparse.ArgumentParser) -> str:
    """The device of the run, made CuPy's current one, so that what a program computes itself is there too."""
    try:
        check_backend(args.backend)
        arrays = backend_row(args.backend)[0].arrays if args.backend else None
        device = resolve_device(args.device or ("cuda" if arrays == "cupy" else "cpu"))
    except ValueError as problem:
        options.error(str(problem))
    except RuntimeError as problem:
        print(f"{options.prog}: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
    if arrays is not None and (arrays == "numpy") != (device == "cpu"):
        options.error(f"--backend {args.backend} takes {arrays} arrays, which are not on --device {args.device}")
    if device != "cpu":
        importlib.import_module("cupy").cuda.Device(int(device[5:])).use()
    return device


def check_extras(*modules: str) -> None:
    """Ends the program with one message that names what is missing and the command that installs it."""
    missing = [EXTRAS[module] for module in modules if not _installed(module)]
    if missing:
        raise SystemExit(f"this program needs {', '.join(missing)}: pip install 'rnnkit[examples]'")


def _installed(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            return False
        raise
    return True


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)


def above_zero(text: str) -> float:
    """An argparse type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


# What is printed


def heading(text: str) -> None:
    """A title on a line of its own."""
    print(f"\n{text}\n{'=' * len(text)}")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows under column names, each column as wide as its widest entry."""
    cells = [[str(c) for c in columns], *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    cells.insert(1, ["-" * w for w in widths])
    for row in cells:
        print("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def compare(rows: Iterable[tuple[str, Any, Any]], atol: float = 0.0, said: str = "published") -> None:
    """A table of (what, published, got). Raises AssertionError where the two differ by more than `atol`."""
    rows = list(rows)
    wrong = []
    for what, published, got in rows:
        if np.shape(published) != np.shape(got) or not np.allclose(got, published, rtol=0, atol=atol):
            wrong.append(what)
    table(("", said, "got"), [(what, _show(p), _show(g)) for what, p, g in rows])
    if wrong:
        raise AssertionError(f"not as {said}: {'; '.join(wrong)}")
    print(f"  all as {said}" + (f", to {atol:g}" if atol else ""))


def _show(value: Any) -> str:
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.8g}"
    return str(value)


def progress(items: Iterable[Any], label: str) -> Any:
    """`items` under a progress bar; `write` on it prints a line without tearing the bar. Quiet where no one watches."""
    from tqdm import tqdm

    return tqdm(items, desc=label, disable=None, leave=False, dynamic_ncols=True)


# Figures


def figure(width: float = 6.4, height: float = 4.0) -> Any:
    """A Matplotlib figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save_figure(made: Any, path: Path) -> Path:
    """Writes a figure as PNG and says where."""
    made.savefig(path, dpi=120)
    print(f"figure: {path}")
    return path


def loss_curve(
    path: Path,
    losses: Mapping[str, Sequence[float]],
    title: str,
    xlabel: str,
    ylabel: str = "loss",
    levels: Mapping[str, float] | None = None,
    smooth: int = 0,
    log: bool = False,
) -> Path:
    """Draws one line a name of `losses`, counted from 1, and a dashed line a name of `levels`.

    smooth: beside a line that jumps, the mean of its last so many values.
    """
    from matplotlib.ticker import MaxNLocator

    made = figure()
    axes = made.add_subplot()
    for name, values in losses.items():
        counted = np.arange(1, len(values) + 1)
        axes.plot(counted, values, label=name, linewidth=1.2, alpha=0.4 if smooth else 1)
        if smooth:
            axes.plot(counted, running_mean(values, smooth), label=f"mean of {smooth}", color="C0")
    for name, level in (levels or {}).items():
        axes.axhline(level, label=name, linestyle="--", color="0.4", linewidth=1)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if log:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return save_figure(made, path)


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """For each value the mean of the last `window` up to it, or of as many as there are."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


# Real text that every CPython ships


def python_documentation() -> str:
    """The language reference behind `help()`: the topics of `pydoc_data.topics`, in sorted order, joined."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def both_ways(codes: np.ndarray, length: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` pieces of a text (count, length) from anywhere in it, half of them reversed; and which are as written.

    A question of order alone: a piece and its reverse hold the same words or characters.
    """
    starts = rng.integers(len(codes) - length + 1, size=count)
    pieces = codes[starts[:, None] + np.arange(length)]
    as_written = rng.random(count) < 0.5
    return np.where(as_written[:, None], pieces, pieces[:, ::-1]), as_written


def learn_both_ways(
    run: Run,
    model: rnnkit.Module,
    loss_fn: Any,
    lr: float,
    codes: np.ndarray,
    length: int,
    yes_above: float,
    label: str,
    max_norm: float = math.inf,
) -> tuple[list[float], float]:
    """Trains a model to tell the two kinds of `both_ways` apart, for `--steps` steps of 64 pieces, by Adam.

    model: (B, length) whole numbers -> (B, 1), above `yes_above` for pieces as written. The first fifth of the text is
    held out. Prints and returns the loss of each step and the share of 2,000 held-out pieces that it gets right.
    """
    held_out, rest = np.split(codes, [len(codes) // 5])
    optimizer, losses = rnnkit.Adam(model, lr=lr), []
    drawn = [both_ways(rest, length, 64, run.rng) for _ in range(run.args.steps)]
    pieces, kinds = (run.array(np.stack(parts)) for parts in zip(*drawn, strict=True))  # to the device, once
    kinds = kinds[:, :, None].astype(np.float32)
    for step in progress(range(run.args.steps), label):
        loss = loss_fn(model(pieces[step]), kinds[step])
        model.zero_grad()
        model.backward(loss_fn.backward())
        rnnkit.clip_grad_norm(model, max_norm)
        optimizer.step()
        losses.append(float(loss))
    x, as_written = both_ways(held_out, length, 2000, run.rng)
    with rnnkit.no_grad():
        output = host(model(run.array(x)))[:, 0]
    right = float(((output > yes_above) == as_written).mean())
    print(f"  loss {losses[0]:.3f} -> {losses[-1]:.3f} in {run.args.steps} steps of 64 pieces of text")
    print(f"  held out: {right:.1%} of {len(x):,} pieces of unseen text right (guessing gets 50%)")
    return losses, right
