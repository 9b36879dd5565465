"""Zoneout, recurrent dropout and weight dropout: their rates, and what the random masks of a call are made of.

    zoneout            Krueger et al., ICLR 2017 (arXiv 1606.01305)
    recurrent dropout  on x and on h, one mask for all steps: Gal and Ghahramani, NIPS 2016 (arXiv 1512.05287)
    weight dropout     one mask on W_hh per call: Merity et al., ICLR 2018 (arXiv 1708.02182), after DropConnect

A mask is a function of a counter (rnnkit/core/philox.py), and is drawn again wherever it is needed: in backward, in a
chunk that runs twice, on any device and for any order of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rnnkit.core import checks
from rnnkit.core.cells import Cell

# What a mask is for: part of its stream of counters.
INPUT, HIDDEN, WEIGHT, ZONEOUT_H, ZONEOUT_C = range(5)

# Streams per layer and direction: 8 kinds of masks of 8 gates.
_KINDS = _GATES = 8

# Arguments of layers whose masks are one for all steps of a call.
OF_SEQUENCES = ("input_dropout", "recurrent_dropout", "mask_per_gate", "weight_dropout")

# A seed is an integer in [0, SEEDS].
SEEDS = 2**64 - 1


class Regularisation(NamedTuple):
    """The rates of a layer, each in [0, 1]: of x, h, W_hh that are dropped, and of h and c that zoneout keeps.

    mask_per_gate  whether each gate's product has a mask on h of its own
    zoned_output   whether h is made from c after zoneout, instead of before
    """

    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    mask_per_gate: bool = False
    zoned_output: bool = False

    @property
    def drops(self) -> bool:
        """Whether there is dropout, which acts in training alone."""
        return bool(self.input_dropout or self.recurrent_dropout or self.weight_dropout)

    @property
    def zones(self) -> bool:
        """Whether there is zoneout, which acts in training and evaluation."""
        return bool(self.zoneout_h or self.zoneout_c)

    def noise(self, training: bool, rng: np.random.Generator) -> Noise | None:
        """The noise of a call, or None for a plain one. Draws a seed in training alone."""
        if training and (self.drops or self.zones):
            return Noise(self, int(rng.integers(0, SEEDS, dtype=np.uint64)))
        return Noise(self, None) if self.zones else None

    def cell(self, cell: Cell, training: bool) -> Cell:
        """The cell with what its kernels do at random, beside the options that it has.

        Raises ValueError if an option of the cell excludes it.
        """
        drops = training and bool(self.recurrent_dropout)
        options = replace(
            cell.options,
            zoneout_h=bool(self.zoneout_h),
            zoneout_c=bool(self.zoneout_c),
            zoned_output=self.zoned_output,
            recurrent_dropout=drops,
            mask_per_gate=drops and self.mask_per_gate,
        )
        return cell.with_options(options)


class Noise(NamedTuple):
    """The masks of a call, or of one of its layers and directions. Element (row, unit) of a mask at a time is word
    `unit % 4` of the counter (unit // 4, row, time, stream) with the key `seed`.

    seed              drawn once per call; None in evaluation mode, where zoneout takes the expected value
    layer, direction  part of the stream, as what the mask is for is, and its gate
    rows              (B,) int64 the caller's row of each row; None for 0 to B - 1
    times             (B,) int64 the time of each row's first step; None for 0
    t0                the time of the first step, in a chunk of a call
    """

    rates: Regularisation
    seed: int | None
    layer: int = 0
    direction: int = 0
    rows: np.ndarray | None = None
    times: np.ndarray | None = None
    t0: int = 0

    def stream(self, kind: int, gate: int = 0) -> int:
        """The last word of the counters of a mask."""
        return (((2 * self.layer + self.direction) * _KINDS + kind) * _GATES + gate) & 0xFFFFFFFF

    def row_numbers(self, B: int) -> np.ndarray:
        """(B,) int64, the caller's row of each row."""
        return np.arange(B) if self.rows is None else self.rows

    def first_times(self, B: int) -> np.ndarray:
        """(B,) int64, the time of each row's first step."""
        return (np.zeros(B, np.int64) if self.times is None else self.times) + self.t0


def checked_rates(
    states: tuple[str, ...],
    *,
    input_dropout: Any = 0.0,
    recurrent_dropout: Any = 0.0,
    mask_per_gate: Any = False,
    weight_dropout: Any = 0.0,
    zoneout: Any = 0.0,
    zoneout_output: Any = "raw",
) -> Regularisation | None:
    """The arguments of a layer, checked; None if all of them are off. states: those of its cell.

    Raises TypeError or ValueError that names the argument.
    """
    of_x = checks.fraction("input_dropout", input_dropout)
    of_h = checks.fraction("recurrent_dropout", recurrent_dropout)
    of_weights = checks.fraction("weight_dropout", weight_dropout)
    zone_h, zone_c = _zoneout_rates(zoneout)
    if zone_c and "c" not in states:
        raise ValueError(f"zoneout must be one rate for a layer without c, got {zoneout!r}")
    per_gate = checks.flag("mask_per_gate", mask_per_gate)
    if per_gate and not recurrent_dropout:
        raise ValueError("mask_per_gate must be False without recurrent_dropout, got True")
    zoned = checks.one_of("zoneout_output", zoneout_output, ("raw", "zoned")) == "zoned"
    if zoned and not zone_c:
        raise ValueError("zoneout_output must be 'raw' without zoneout of c, got 'zoned'")
    found = Regularisation(of_x, of_h, of_weights, zone_h, zone_c, per_gate, zoned)
    return found if found.drops or found.zones else None


def refuse_unknown(cell: str, unknown: Mapping[str, Any]) -> None:
    """Raises TypeError for keyword arguments that a Cell does not have. cell: the name of its class."""
    for name in unknown:
        if name in OF_SEQUENCES:
            raise TypeError(
                f"{cell} has no {name}: its mask is one for all steps of a sequence, and a Cell takes one step. "
                f"{cell.removesuffix('Cell')} has it"
            )
        raise TypeError(f"{cell}() got an unexpected keyword argument {name!r}")


def _zoneout_rates(zoneout: Any) -> tuple[float, float]:
    """Of h and of c."""
    if not isinstance(zoneout, (tuple, list)):
        return checks.fraction("zoneout", zoneout), 0.0
    if len(zoneout) != 2:
        raise ValueError(f"zoneout must be a rate or a pair of rates, of h and of c, got {zoneout!r}")
    return checks.fraction("zoneout of h", zoneout[0]), checks.fraction("zoneout of c", zoneout[1])


def regularisation_arguments(rates: Regularisation | None) -> list[str]:
    """The arguments of a constructor that are not off, for a repr."""
    if rates is None:
        return []
    names = ("input_dropout", "recurrent_dropout", "mask_per_gate", "weight_dropout")
    found = [f"{name}={getattr(rates, name)!r}" for name in names if getattr(rates, name)]
    if rates.zones:
        found.append(f"zoneout={(rates.zoneout_h, rates.zoneout_c) if rates.zoneout_c else rates.zoneout_h!r}")
    return [*found, "zoneout_output='zoned'"] if rates.zoned_output else found
