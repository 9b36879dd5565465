"""The error of the CPU path's sigmoid and tanh in ulp: `python -m bench.activation_error [--dtype float32] [--all]`.

float32: every 101st of the 2^32 bit patterns, or with --all every one, against float64. float64: a million values, or
with --all twenty million, against np.longdouble where that is wider. The values have every magnitude. They are dense
where the functions bend, and where the exponent k of the range reduction changes. An ulp is the gap between the dtype's
numbers at the exact value: 2^-149 (2^-1074) below the normal numbers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from rnnkit.kernels.cpu.activations import activations
from rnnkit.kernels.cpu.jit import entry
from rnnkit.kernels.cpu.simd import vectors

NAMES = ("sigmoid", "tanh")
LOWEST = {"sigmoid": 0, "tanh": -1}
EDGES = (0.5, 1.0, 1.5, 2.0)  # of the histogram, in ulp
BLOCK = 1 << 14  # values at a time: the workspace fits the L2 cache
EVERY = 101  # a prime, so every exponent and all low bits occur


@cache
def kernel(name: str, dtype: str) -> Callable[[np.ndarray, np.ndarray], None]:
    """over(x, y): y = the activation of x, two contiguous arrays of `dtype` and of one size."""
    v = vectors(dtype)
    function = getattr(activations(dtype), name)
    load = v.first.load
    store = v.first.store
    lanes = v.lanes
    size = v.itemsize

    @entry(("bench", name, dtype))
    def over(x, y):
        for j in range(0, x.size, lanes):
            n = x.size - j
            store(function(load(x.ctypes.data + j * size, n)), y.ctypes.data + j * size, n)

    return over


def exactly(name: str, x: np.ndarray) -> np.ndarray:
    """The activation of x in the next wider type: float64 of float32, np.longdouble of float64."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # invalid: a signalling NaN made wider
        wide: Any = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
        return np.tanh(wide) if name == "tanh" else 1 / (1 + np.exp(-wide))


def gaps(want: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """One ulp of `dtype` at each value of `want`, a wider type."""
    info = np.finfo(dtype)
    if want.dtype == np.float64:  # a power of two is its exponent's bits alone
        binade = (want.view(np.int64) & 0x7FF0_0000_0000_0000).view(np.float64)
    else:
        binade = np.ldexp(want.dtype.type(1), np.frexp(want)[1] - 1)
    return np.maximum(binade, want.dtype.type(info.tiny)) * want.dtype.type(info.eps)


def errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want| in ulp of got's dtype; infinite where only one of them is NaN."""
    off = np.abs(got - want) / gaps(want, got.dtype)
    lost = np.isnan(off)
    if lost.any():
        off[lost] = np.where(np.isnan(got[lost]) & np.isnan(want[lost]), 0, np.inf)
    return off


class Tally:
    """The errors of one activation so far: the largest one and its x, the histogram, and where y decreases."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name = name
        self.dtype = dtype
        self.values = 0
        self.worst = -1.0
        self.at = np.nan
        self.within = np.zeros(len(EDGES), np.int64)
        self.falls = 0
        self.deepest = 0.0
        self.outside = 0

    def add(self, x: np.ndarray) -> None:
        """Adds the values x, in increasing order, with NaN anywhere."""
        y = np.empty_like(x)
        kernel(self.name, self.dtype)(x, y)
        off = errors(y, exactly(self.name, x))
        self.values += x.size
        self.within += [np.count_nonzero(off <= edge) for edge in EDGES]
        worst = off.argmax()
        if off[worst] > self.worst:
            self.worst = float(off[worst])
            self.at = x[worst]
        down = np.flatnonzero(y[1:] < y[:-1])
        self.falls += int(down.size)
        depth = (y[down] - y[down + 1]) / np.spacing(np.abs(y[down + 1]))
        self.deepest = max(self.deepest, float(depth.max(initial=0)))
        self.outside += int(np.count_nonzero((y > 1) | (y < LOWEST[self.name])))

    def __str__(self) -> str:
        shares = ", ".join(f"<= {e:g}: {n / self.values:.3%}" for e, n in zip(EDGES, self.within, strict=True))
        return (
            f"{self.name}, {self.dtype}, {self.values:,} values: at most {self.worst:.3f} ulp, at x = {self.at}\n"
            f"    share within these ulp: {shares}\n"
            f"    outside its range: {self.outside}; below the previous y: {self.falls:,}, by {self.deepest:.0f} "
            "ulp at most"
        )


def patterns(every: int) -> Iterator[np.ndarray]:
    """Every `every`-th float32 value, with NaN, in increasing blocks."""
    for sign in (0, 1 << 31):
        for start in range(sign, sign + (1 << 31), BLOCK * every):
            bits = np.arange(start, min(start + BLOCK * every, sign + (1 << 31)), every, dtype=np.uint32)
            yield np.ascontiguousarray(bits[:: -1 if sign else 1]).view(np.float32)


def samples(rounds: int) -> Iterator[np.ndarray]:
    """float64 values, a million per round, in increasing blocks."""
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        steps = rng.integers(-2200, 2200, 100_000) * (np.log(2) / 4)  # where k of either function changes, and between
        x = np.concatenate([
            rng.choice([-1.0, 1.0], 250_000) * 2.0 ** rng.uniform(-1074, 1024, 250_000),
            rng.choice([-1.0, 1.0], 200_000) * 2.0 ** rng.uniform(-30, 10, 200_000),
            rng.uniform(-750, 50, 150_000),
            rng.uniform(-20, 20, 200_000),
            rng.standard_normal(100_000),
            steps + np.spacing(steps) * rng.integers(-50, 51, steps.size),
            [0.0, -0.0, np.inf, -np.inf, np.nan],
        ])  # fmt: skip
        x.sort()
        yield from np.array_split(x, x.size // BLOCK)


def measure(dtype: str, whole: bool, show: bool = False) -> list[Tally]:
    """Tallies of sigmoid and tanh, over all float32 values or a sample. show: prints the progress on stderr."""
    tallies = [Tally(name, dtype) for name in NAMES]
    began = time.monotonic()
    every, rounds = (1, 20) if whole else (EVERY, 1)
    blocks = patterns(every) if dtype == "float32" else samples(rounds)
    total = 2**32 // every if dtype == "float32" else 1_000_005 * rounds
    for n, x in enumerate(blocks):
        for tally in tallies:
            tally.add(x)
        if show and n % 256 == 0:
            share = tallies[0].values / total
            spent = time.monotonic() - began
            print(f"\r{dtype}: {share:4.0%}, {spent / share - spent:4.0f} s to go", end="", file=sys.stderr, flush=True)
    if show:
        print(f"\r{'':40}\r", end="", file=sys.stderr)
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.activation_error", description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", choices=("float32", "float64"), help="default: both")
    parser.add_argument("--all", action="store_true", help="every float32 value, twenty million float64: takes minutes")
    options = parser.parse_args()
    for dtype in [options.dtype] if options.dtype else ["float32", "float64"]:
        if dtype == "float64" and np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps:
            print("float64: no wider type to compare with on this host", file=sys.stderr)
            continue
        for tally in measure(dtype, options.all, show=sys.stderr.isatty()):
            print(tally)


if __name__ == "__main__":
    main()
