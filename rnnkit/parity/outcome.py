"""Outcome: what a check found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rnnkit.parity.checks import Check, LayerCheck
from rnnkit.testing import Errors


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    status     "ok"; "wrong": over a bound, or other bits in another call; "failed": the backend raised
    why        one line where the status is not "ok", else ""
    arrays     every output and gradient by name -> its worst and RMS error as shares of its bound
    same_bits  whether every call gave the same bits; None where no call ended
    seconds    time of the calls on the backend, compilation and copies to the device included, the oracle not
    """

    check: Check | LayerCheck
    status: str
    why: str = ""
    arrays: dict[str, Errors] = field(default_factory=dict)
    same_bits: bool | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the check passed."""
        return self.status == "ok"

    @property
    def worst(self) -> float:
        """The largest worst share over the arrays; infinite where nothing was compared."""
        return max((e.worst for e in self.arrays.values()), default=math.inf)

    @property
    def rms(self) -> float:
        """The largest RMS share over the arrays; infinite where nothing was compared.

        Not over the elements of all arrays together: a large array would hide the errors of a bias.
        """
        return max((e.rms for e in self.arrays.values()), default=math.inf)

    @property
    def worst_array(self) -> str:
        """The name of the array that has the worst share; "" where nothing was compared."""
        return max(self.arrays, key=lambda name: self.arrays[name].worst, default="")

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every field and property; an infinite number is the string "inf"."""
        return {
            "check": self.check.to_dict(),
            "status": self.status,
            "why": self.why,
            "worst": number(self.worst),
            "worst_array": self.worst_array,
            "rms": number(self.rms),
            "same_bits": self.same_bits,
            "seconds": self.seconds,
            "arrays": {n: {"worst": number(e.worst), "rms": number(e.rms)} for n, e in self.arrays.items()},
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Outcome:
        """The outcome that `to_dict` wrote."""
        kind = LayerCheck if "layer" in fields["check"] else Check
        return cls(
            kind.from_dict(fields["check"]),
            fields["status"],
            fields["why"],
            {name: Errors(float(e["worst"]), float(e["rms"])) for name, e in fields["arrays"].items()},
            fields["same_bits"],
            fields["seconds"],
        )


def number(value: float) -> float | str:
    """`value` for JSON, which has no infinity: that becomes "inf"."""
    return value if math.isfinite(value) else "inf"
