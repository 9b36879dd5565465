"""Code that the programs share: options, progress bars, figures, tables.

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

# Module -> name of its distribution on PyPI. All are in the extra `examples`; every program needs REQUIRED.
EXTRAS = {"tqdm": "tqdm", "matplotlib": "matplotlib", "sklearn": "scikit-learn"}
# The same for the programs that use PyTorch, and the extra `torch-examples`.
TORCH_EXTRAS = {"tqdm": "tqdm", "matplotlib": "matplotlib", "sb3_contrib": "sb3-contrib", "gymnasium": "gymnasium"}
REQUIRED = ("tqdm", "matplotlib")


@dataclass(frozen=True)
class Run:
    """One run of a program: its options, backend, device, random generator and output folder."""

    args: argparse.Namespace
    backend: str | None
    device: str
    rng: np.random.Generator
    out: Path

    @property
    def layer(self) -> dict[str, Any]:
        """Keyword arguments of every layer: the device, and the generator that draws the initial parameters."""
        return {"device": self.device, "rng": self.rng}

    def array(self, values: Any, dtype: Any = None) -> Any:
        """`values` as an array on the run's device: NumPy's on the CPU, CuPy's on a GPU."""
        if self.device == "cpu":
            return np.asarray(values, dtype)
        return importlib.import_module("cupy").asarray(values, dtype)


def host(array: Any) -> np.ndarray:
    """`array` as a NumPy array on the host."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """An argument parser with `doc` as its description and the options that all programs share."""
    options = argparse.ArgumentParser(
        prog=f"python -m rnnkit.examples.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--backend", help=f"{', '.join(BACKENDS)} (default: the first that serves the device)")
    options.add_argument("--device", help="cpu, cuda or cuda:<index> (default: that of the backend; cpu without one)")
    options.add_argument("--seed", type=int, default=0, help="seed of weights, splits and samples (default 0)")
    options.add_argument("--out", type=Path, default=Path("out"), help="folder of the figures (default ./out)")
    return options


def start(
    options: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    needs: Callable[[argparse.Namespace], Sequence[str]] = lambda args: (),
) -> Run:
    """Parses the options and checks, before any work, the backend, the device and the installed packages.

    If the backend or the device cannot be used here, the program prints the reason and exits with status 2.

    Args:
        options: the parser.
        argv: the arguments; None for those of the command line.
        needs: options -> further modules of EXTRAS that a run with these options imports.

    Returns:
        The Run.
    """
    args = options.parse_args(argv)
    device = _device_of(args, options)
    if args.seed < 0:
        options.error(f"--seed must be a whole number of at least 0, got {args.seed}")
    check_extras(*REQUIRED, *needs(args))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        options.error(f"--out must be a folder that can be created or written to: {problem}")
    return Run(args, args.backend, device, np.random.default_rng(args.seed), args.out)


def _device_of(args: argparse.Namespace, options: argparse.ArgumentParser) -> str:
    """The device of the run. It becomes CuPy's current device, because a program may compute with CuPy itself."""
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


def check_extras(*modules: str, extra: str = "examples") -> None:
    """Exits with one message that names the missing packages and the command that installs them."""
    names = TORCH_EXTRAS if extra == "torch-examples" else EXTRAS
    missing = [names[module] for module in modules if not _installed(module)]
    if missing:
        raise SystemExit(f"this program needs {', '.join(missing)}: pip install 'rnnkit[{extra}]'")


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


# Output


def heading(text: str) -> None:
    """Prints a title."""
    print(f"\n{text}\n{'=' * len(text)}")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints rows under column names, each column as wide as its widest entry."""
    cells = [[str(c) for c in columns], *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    cells.insert(1, ["-" * w for w in widths])
    for row in cells:
        print("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def compare(rows: Iterable[tuple[str, Any, Any]], atol: float = 0.0, reference: str = "published") -> None:
    """Prints a table of (name, expected, actual). Raises AssertionError if two differ by more than `atol`.

    reference: the heading of the expected values.
    """
    rows = list(rows)
    wrong = []
    for name, expected, actual in rows:
        if np.shape(expected) != np.shape(actual) or not np.allclose(actual, expected, rtol=0, atol=atol):
            wrong.append(name)
    table(("", reference, "got"), [(name, _format(e), _format(a)) for name, e, a in rows])
    if wrong:
        raise AssertionError(f"not as {reference}: {'; '.join(wrong)}")
    print(f"  all as {reference}" + (f", to {atol:g}" if atol else ""))


def _format(value: Any) -> str:
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.8g}"
    return str(value)


def progress(items: Iterable[Any], label: str) -> Any:
    """Wraps `items` in a progress bar with a method `write`. It is silent if stderr is not a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=label, disable=None, leave=False, dynamic_ncols=True)


# Figures


def figure(width: float = 6.4, height: float = 4.0) -> Any:
    """A Matplotlib figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    new = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(new)
    return new


def save_figure(drawn: Any, path: Path) -> Path:
    """Writes a figure as PNG and prints its path."""
    drawn.savefig(path, dpi=120)
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
    """Draws and saves one line per entry of `losses`, and a dashed horizontal line per entry of `levels`.

    smooth: window of a running mean that is drawn too; 0 for none.
    """
    from matplotlib.ticker import MaxNLocator

    drawn = figure()
    axes = drawn.add_subplot()
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
    return save_figure(drawn, path)


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """For each value the mean of the `window` values up to it, or of all values up to it if there are fewer."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


# Text that is part of every CPython


def python_documentation() -> str:
    """The language reference behind `help()`: the topics of `pydoc_data.topics`, sorted and joined."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def draw_pieces(codes: np.ndarray, length: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count` random pieces of a text, (count, length), each reversed with probability 1/2, and which are not.

    Classifying them depends on the order only: a piece and its reversal contain the same words or characters.
    """
    starts = rng.integers(len(codes) - length + 1, size=count)
    pieces = codes[starts[:, None] + np.arange(length)]
    in_order = rng.random(count) < 0.5
    return np.where(in_order[:, None], pieces, pieces[:, ::-1]), in_order


def learn_order(
    run: Run,
    model: rnnkit.Module,
    loss_fn: Any,
    lr: float,
    codes: np.ndarray,
    length: int,
    *,
    yes_above: float,
    label: str,
    max_norm: float = math.inf,
) -> tuple[list[float], float]:
    """Trains a model to classify the pieces of `draw_pieces`, by Adam, for `--steps` steps of 64 pieces.

    The first fifth of the text is held out.

    Args:
        run: the run.
        model: (B, length) integers -> (B, 1), above `yes_above` for pieces that are not reversed.
        loss_fn: the loss.
        lr: the learning rate.
        codes: the text, (N,) integers.
        length: length of a piece.
        yes_above: threshold of the output.
        label: label of the progress bar.
        max_norm: gradients are clipped to this norm.

    Returns:
        The loss of each step, and the share of 2,000 held-out pieces that are classified correctly. Both are printed
        too.
    """
    held_out, rest = np.split(codes, [len(codes) // 5])
    optimizer = rnnkit.Adam(model, lr=lr)
    losses: list[float] = []
    drawn = [draw_pieces(rest, length, 64, run.rng) for _ in range(run.args.steps)]
    pieces, kinds = (run.array(np.stack(parts)) for parts in zip(*drawn, strict=True))  # one copy to the device
    kinds = kinds[:, :, None].astype(np.float32)
    for step in progress(range(run.args.steps), label):
        loss = loss_fn(model(pieces[step]), kinds[step])
        model.zero_grad()
        model.backward(loss_fn.backward())
        rnnkit.clip_grad_norm(model, max_norm)
        optimizer.step()
        losses.append(float(loss))
    x, in_order = draw_pieces(held_out, length, 2000, run.rng)
    with rnnkit.no_grad():
        output = host(model(run.array(x)))[:, 0]
    right = float(((output > yes_above) == in_order).mean())
    print(f"  loss {losses[0]:.3f} -> {losses[-1]:.3f} in {run.args.steps} steps of 64 pieces of text")
    print(f"  held out: {right:.1%} of {len(x):,} pieces of unseen text right (guessing: 50%)")
    return losses, right
