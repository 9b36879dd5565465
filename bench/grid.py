"""The points that are measured. A point is one call of one network on one batch, and a grid is a list of points.

    quick   about a minute: common shapes, forward and forward+backward
    full    every cell, width, batch and length that fits; it lists the points that it leaves out
    cpu     the acceptance grid of the CPU backend, with variants (relu, reset before, projection, two layers, ragged)

The cpu grid has every cell, width and batch with T = 64, I = H and with T = 256, I = 40. The two other pairings of T
and I are measured at H = 128 alone: a longer sequence or a narrower input changes the share of the products outside
the time loop, not the step.

A grid is run and printed in its order.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES

FORWARD, FORWARD_BACKWARD = PASSES = ("forward", "forward+backward")

# A point is left out of a grid when one call would take longer, or hold more memory, than this.
CALL_SECONDS = 1.5
CALL_BYTES = 2**30
# Rates of a slow CPU, for estimates. Only `left out` and the time to go depend on them.
GUESSED_FLOPS = 100e9
GUESSED_WEIGHT_BYTES = 20e9


@dataclass(frozen=True)
class Point:
    """One network and one batch of it: T steps, B rows, I inputs, H hidden units, P projected (0: none)."""

    cell: str
    T: int
    B: int
    I: int
    H: int
    dtype: str = "float32"
    passes: str = FORWARD
    layers: int = 1
    bidirectional: bool = False
    ragged: bool = False
    P: int = 0

    def __str__(self) -> str:
        return f"{self.shape}-{self.dtype}-{self.passes}"

    @property
    def shape(self) -> str:
        """The point without its dtype and pass."""
        return "-".join([self.cell, f"T{self.T}-B{self.B}-I{self.I}-H{self.H}", *self.extras])

    @property
    def extras(self) -> list[str]:
        """The names of the features beyond one plain layer."""
        named = [f"P{self.P}"] if self.P else []
        named += [f"{self.layers}-layer"] if self.layers > 1 else []
        named += ["bidirectional"] if self.bidirectional else []
        return named + (["ragged"] if self.ragged else [])

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def backward(self) -> bool:
        return self.passes == FORWARD_BACKWARD

    def lengths(self) -> np.ndarray | None:
        """Row lengths (B,), uniform on [1, T] with one full row, or None. The same on every call."""
        if not self.ragged:
            return None
        drawn = np.random.default_rng([self.T, self.B]).integers(1, self.T + 1, self.B)
        drawn[0] = self.T
        return drawn

    def steps(self) -> int:
        """Steps of all rows together: T*B, or the sum of the lengths."""
        lengths = self.lengths()
        return self.T * self.B if lengths is None else int(lengths.sum())

    def flop(self) -> int:
        """Floating-point operations of the products, a multiply-add as two; pointwise work is not counted.

        A step of a row is 2 (I + R) G H, and 2 H P for a projection; forward+backward is three times that: every
        product has two more in its backward, one for its operand and one for its weights.
        """
        G = CELLS[self.cell].n_gates
        R = self.P or self.H
        total = 0
        for layer in range(self.layers):
            I = self.I if layer == 0 else R * self.directions
            total += self.directions * 2 * ((I + R) * G * self.H + self.H * self.P)
        return total * self.steps() * (3 if self.backward else 1)

    def guessed_seconds(self) -> float:
        """An estimate of a call's time: its products, or reading the recurrent weights each step when B is small."""
        R = self.P or self.H
        weights = CELLS[self.cell].n_gates * self.H * R * self.itemsize * self.layers * self.directions
        width = self.itemsize / 4
        stream = self.T * weights * (3 if self.backward else 1) / GUESSED_WEIGHT_BYTES
        return max(width * self.flop() / GUESSED_FLOPS, stream)

    def guessed_bytes(self) -> float:
        """An estimate of a call's memory: input, gates and output, and what is saved for backward."""
        G = CELLS[self.cell].n_gates
        a_step = self.I + (G + 1) * self.H + (self.I + (2 * G + 4) * self.H if self.backward else 0)
        return float(self.T * self.B * a_step * self.itemsize * self.layers * self.directions)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].storage.itemsize

    def too_much(self) -> str | None:
        """Why the point is left out of a grid, or None."""
        if self.guessed_seconds() > CALL_SECONDS:
            return f"a call would take about {self.guessed_seconds():.1f} s"
        if self.guessed_bytes() > CALL_BYTES:
            return f"a call would hold about {self.guessed_bytes() / 2**30:.1f} GiB"
        return None

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Point:
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


MAIN_CELLS = ("rnn_tanh", "gru", "lstm")
BENCHED = tuple(name for name in CELLS if name != "slstm")  # the cells that a peer has
CPU_WIDTHS = (32, 64, 100, 128, 256, 512, 1024)
CPU_BATCHES = (1, 4, 8, 32, 64, 128)
CPU_WHOLE_AT = 128


def _quick() -> Iterator[Point]:
    # One layer, I = H: a single row, two usual batches, and one whose weights exceed the L2 cache.
    for cell, (T, B, H) in itertools.product(MAIN_CELLS, ((128, 1, 128), (128, 32, 128), (64, 32, 256), (64, 64, 512))):
        yield Point(cell, T, B, H, H)


def _variants(T: int, B: int, H: int) -> Iterator[Point]:
    """The points that are not one plain layer of a main cell, at one size."""
    yield Point("rnn_relu", T, B, H, H)
    yield Point("gru_reset_before", T, B, H, H)
    yield Point("lstm", T, B, H, H, P=H // 2)
    for cell in MAIN_CELLS:
        yield Point(cell, T, B, H, H, layers=2, bidirectional=True)
        if B > 1:
            yield Point(cell, T, B, H, H, ragged=True)


def _full() -> Iterator[Point]:
    for cell, H, B, T in itertools.product(
        MAIN_CELLS, (64, 128, 256, 512, 1024, 2048), (1, 8, 32, 128, 512), (64, 256, 1024)
    ):
        yield Point(cell, T, B, H, H)
    for B, H in ((1, 128), (32, 128), (32, 512)):
        yield from _variants(64, B, H)


def _cpu() -> Iterator[Point]:
    for cell, H, B in itertools.product(MAIN_CELLS, CPU_WIDTHS, CPU_BATCHES):
        yield Point(cell, 64, B, H, H)
        yield Point(cell, 256, B, 40, H)
        if H == CPU_WHOLE_AT:
            yield Point(cell, 64, B, 40, H)
            yield Point(cell, 256, B, H, H)
    for B, H in itertools.product((1, 4, 32, 128), (100, 128, 512)):
        yield from _variants(64, B, H)


@dataclass(frozen=True)
class Grid:
    """A named list of shapes, which `points` repeats for each pass, and how long to measure each."""

    name: str
    about: str
    points: Callable[[], Iterable[Point]]
    seconds: float  # of timed calls per point and peer
    rounds: int
    slow_too: bool  # whether peers that are slow are measured by default


GRIDS: dict[str, Grid] = {
    grid.name: grid
    for grid in (
        Grid("quick", "about a minute", _quick, 0.1, 3, True),
        Grid("full", "the whole grid, an hour or two per dtype", _full, 0.6, 3, False),
        Grid("cpu", "the acceptance grid of the CPU backend, half an hour per dtype", _cpu, 0.08, 3, False),
    )
}


def points(
    grid: str, dtype: str, passes: Iterable[str] = PASSES, cells: Iterable[str] = (), every: int = 1
) -> tuple[list[Point], list[tuple[Point, str]]]:
    """The points of a grid in a dtype, and those left out, each with its reason.

    cells: names in BENCHED or beginnings of some ("rnn" is both nonlinearities, "gru" both resets); empty for all.
    every: keeps about one shape in `every`, drawn by a checksum of its name, so that no size is favoured.
    """
    wanted = tuple(cells)
    kept = []
    left_out = []
    for shape in GRIDS[grid].points():
        if (wanted and not shape.cell.startswith(wanted)) or crc32(shape.shape.encode()) % every:
            continue
        # The passes of one shape follow each other, so that they share its oracle.
        for one_pass in passes:
            point = dataclasses.replace(shape, dtype=dtype, passes=one_pass)
            reason = point.too_much()
            if reason:
                left_out.append((point, reason))
            else:
                kept.append(point)
    return kept, left_out
