"""What each option of a cell costs over the plain cell, on the CPU: forward and backward of one layer.

    python -m bench.cell_options [--T 64] [--B 32] [--H 128] [--rounds 30] [--threads N] [--rows NAME ...]
    python -m bench.cell_options --peers [--no-compile] ...

Each row is first compared with the float64 oracle at a small size; a row that is wrong is not timed. The plain cell and
the one with options run in turns, and a ratio is of two neighbouring times. The table has the median of the ratios and
their quartiles. The bar is 1.3, with layer normalisation 1.6.

With --peers, the second table has what people run today (bench/option_loops.py), as times rnnkit's: needs PyTorch, and
for one column Keras and JAX. torch.compile takes minutes per row for its unrolled loop; --no-compile leaves it out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import rnnkit
from bench.table import aligned
from rnnkit.functional import direction
from rnnkit.testing import Case, make_inputs, parity

BAR = 1.3
LAYERS = {"lstm": rnnkit.LSTM, "gru": rnnkit.GRU}
NORM_BAR = 1.6  # layer normalisation reads each row several times more, and saves more of it


class Row(NamedTuple):
    """A cell with options, as its key and constants, or a layer with rates of random masks, beside the plain cell or
    another one."""

    name: str
    cell: str
    constants: tuple[float, ...] = ()
    rates: tuple[tuple[str, Any], ...] = ()
    bar: float = BAR
    beside: str = ""

    @property
    def plain(self) -> str:
        return self.beside or self.cell.partition("+")[0]


ROWS = (
    Row("peephole", "lstm+peephole"),
    Row("clip", "lstm+clip", (3.0,)),
    Row("cell_clip", "lstm+cell_clip", (3.0,)),
    Row("coupled", "lstm+coupled"),
    Row("hard activations", "lstm+activations=HardSigmoid,Softsign,Softsign", (0.2, 0.5)),
    Row("clip of a GRU", "gru+clip", (3.0,)),
    Row("Softplus of an RNN", "rnn_tanh+activations=Softplus"),
    Row("zoneout", "lstm", rates=(("zoneout", (0.05, 0.05)),)),
    Row("zoneout of a GRU", "gru", rates=(("zoneout", 0.05),)),
    Row("recurrent dropout", "lstm", rates=(("recurrent_dropout", 0.2),)),
    Row("mask per gate", "lstm", rates=(("recurrent_dropout", 0.2), ("mask_per_gate", True))),
    Row("input and weight dropout", "lstm", rates=(("input_dropout", 0.2), ("weight_dropout", 0.2))),
    Row("layer_norm haste", "lstm+layer_norm=haste", (1e-5,), bar=NORM_BAR),
    Row("layer_norm torch", "lstm+layer_norm=torch", (1e-5,), bar=NORM_BAR),
    Row("layer_norm haste of a GRU", "gru+layer_norm=haste", (1e-5,), bar=NORM_BAR),
    Row("layer_norm dreamer", "gru+layer_norm=dreamer", (1e-3,), bar=NORM_BAR),
    Row("sLSTM beside LSTM", "slstm", beside="lstm"),
)


def wrong(row: Row) -> str | None:
    """What differs from the oracle, or None."""
    if row.rates:
        x = np.random.default_rng(0).standard_normal((6, 7, 19)).astype(np.float32)
        (y, dx), (want, wanted) = (_outcome(layer_of(row, 19, backend), x) for backend in ("numba", "numpy"))
        close = np.allclose(y, want, rtol=0, atol=1e-5) and np.allclose(dx, wanted, rtol=0, atol=1e-4)
        return None if close else "differs from the oracle"
    case = Case(row.cell, T=6, B=7, I=5, H=19, ragged=True, constants=row.constants)
    over = {name: share for name, share in parity("numba", case, "float32").items() if not share <= 1}
    return f"differs from the oracle: {over}" if over else None


def layer_of(row: Row, H: int, backend: str) -> Any:
    """A layer with the rates of a row."""
    return LAYERS[row.cell](H, H, backend=backend, rng=0, **dict(row.rates))


def _outcome(layer: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, _ = layer(x)
    return y, layer.backward(y)[0]


def layer_call(row: Row, sizes: dict[str, int]) -> Callable[[], None]:
    """Forward and backward of a layer."""
    layer = layer_of(row, sizes["H"], "numba")
    x = np.random.default_rng(0).standard_normal((sizes["T"], sizes["B"], sizes["H"])).astype(np.float32)

    def call() -> None:
        _outcome(layer, x)

    return call


def call_of(cell: str, constants: tuple[float, ...], sizes: dict[str, int]) -> Callable[[], None]:
    """Forward and backward of one layer and direction."""
    inputs = make_inputs(Case(cell, **sizes), "float32")

    def call() -> None:
        given = (inputs.x, inputs.state0, inputs.weights)
        _, _, saved = direction.forward(cell, *given, backend="numba", constants=constants)
        assert saved is not None
        direction.backward(saved, inputs.dy, inputs.dstate_n, inputs.weights)

    return call


def ratios(row: Row, sizes: dict[str, int], rounds: int) -> tuple[list[float], list[float]]:
    """Times of the plain cell in ms, and for each the time with options over it."""
    if row.rates:
        plain, own = layer_call(row._replace(rates=()), sizes), layer_call(row, sizes)
    else:
        plain, own = call_of(row.plain, (), sizes), call_of(row.cell, row.constants, sizes)
    for call in (plain, own, plain, own):
        call()
    times, found = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        plain()
        middle = time.perf_counter()
        own()
        times.append(1e3 * (middle - start))
        found.append((time.perf_counter() - middle) / (middle - start))
    return times, found


def measure(rows: tuple[Row, ...], sizes: dict[str, int], rounds: int) -> list[list[str]]:
    """A table: one row per option."""
    table = [["option", "cell", "plain ms", "ratio", "quartiles", "bar"]]
    for row in rows:
        problem = wrong(row)
        if problem is not None:
            table.append([row.name, row.cell, "-", "-", problem, "-"])
            continue
        times, found = ratios(row, sizes, rounds)
        low, middle, high = np.percentile(found, [25, 50, 75])
        verdict = "met" if middle <= row.bar else "missed"
        table.append([row.name, row.cell, f"{np.median(times):.3f}", f"{middle:.2f}", f"{low:.2f} {high:.2f}", verdict])
    return table


def times_beside(row: Row, sizes: dict[str, int], rounds: int, compiles: bool) -> list[str]:
    """The cells of the second table: rnnkit's time in ms, and of each way the median of its time over rnnkit's."""
    from bench import option_loops

    own = layer_call(row, sizes) if row.rates else call_of(row.cell, row.constants, sizes)
    loop = option_loops.loop_of(row)
    ways: list[Callable[[], None] | None] = [own, None, None, option_loops.keras_call(row, sizes)]
    if loop is not None:
        problem = option_loops.wrong(row, loop)
        if problem is not None:
            return [row.name, problem, "-", "-", "-"]
        ways[1] = option_loops.loop_call(row, loop, sizes, False)
        ways[2] = option_loops.loop_call(row, loop, sizes, True) if compiles else None
    samples: list[list[float]] = [[] for _ in ways]
    for way in ways:
        for _ in range(3 if way else 0):  # compiles
            way()  # type: ignore[misc]
    for _ in range(rounds):
        for way, found in zip(ways, samples, strict=True):
            if way is not None:
                start = time.perf_counter()
                way()
                found.append(time.perf_counter() - start)
    cells = [_ratio_cell(found, samples[0]) for found in samples[1:]]
    return [row.name, f"{1e3 * np.median(samples[0]):.3f}", *cells]


def _ratio_cell(times: list[float], own: list[float]) -> str:
    if not times:
        return "-"
    low, middle, high = np.percentile(np.divide(times, own), [25, 50, 75])
    return f"{middle:.1f} ({low:.1f} {high:.1f})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cell_options", description=(__doc__ or "").splitlines()[0])
    sizes_help = (("T", 64, "steps"), ("B", 32, "rows of the batch"), ("H", 128, "units, and features of x"))
    for name, default, means in (*sizes_help, ("rounds", 30, "timed calls of each")):
        parser.add_argument(f"--{name}", type=_positive, default=default, help=f"{means} (default: {default})")
    parser.add_argument("--threads", type=_positive, default=None, help="of the CPU kernels")
    names = [row.name for row in ROWS]
    parser.add_argument(
        "--rows", nargs="+", choices=names, metavar="NAME", help=f"all by default, or some of: {', '.join(names)}"
    )
    parser.add_argument("--peers", action="store_true", help="the second table: loops in PyTorch, and Keras")
    parser.add_argument("--no-compile", action="store_true", help="with --peers: without torch.compile")
    options = parser.parse_args(arguments)
    if options.no_compile and not options.peers:
        parser.error("--no-compile is only for --peers")
    if options.threads:
        rnnkit.set_num_threads(options.threads)
    sizes = {"T": options.T, "B": options.B, "I": options.H, "H": options.H}
    chosen = tuple(row for row in ROWS if options.rows is None or row.name in options.rows)
    shape = f"T={options.T} B={options.B} I=H={options.H}"
    print(f"float32, {shape}, {rnnkit.get_num_threads()} threads, forward and backward")
    if options.peers:
        return _print_peers(chosen, sizes, options.rounds, not options.no_compile)
    table = measure(chosen, sizes, options.rounds)
    print("\n".join(aligned(table, {"option", "cell"})))
    return int(any(row[-1] == "-" for row in table))


def _positive(text: str) -> int:
    """An argparse type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)


def _print_peers(rows: tuple[Row, ...], sizes: dict[str, int], rounds: int, compiles: bool) -> int:
    from bench import option_loops

    option_loops.set_threads(rnnkit.get_num_threads())
    table = [["option", "rnnkit ms", "torch loop", "compiled loop", "Keras"]]
    for row in rows:
        table.append(times_beside(row, sizes, rounds, compiles))
        print(f"{len(table) - 1} of {len(rows)}: {'  '.join(table[-1])}", file=sys.stderr, flush=True)
    print("\n".join(aligned(table, {"option"})))
    return int(any("differs" in line[1] for line in table))


if __name__ == "__main__":
    sys.exit(main())
