"""Outcome: the result of a check."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rnnkit.parity.checks import Check, LayerCheck
from rnnkit.testing import Errors


@dataclass(frozen=True)
class Outcome:
    """The result of one check.

    Attributes:
        check: the check.
        status: "ok"; "wrong" (an array is over its bound, or its bits differ between calls); "failed" (the backend
            raised).
        why: one line if the status is not "ok", else "".
        arrays: name of each output and gradient -> its worst and RMS error as shares of its bound.
        same_bits: whether every call gave equal bits; None if no call finished.
        seconds: duration of the calls on the backend, with compilation and copies to the device, without the oracle.

    Examples:
        >>> from rnnkit.parity import Check, run
        >>> from rnnkit.testing import Case
        >>> outcome = run(Check("numpy", "float32", Case("gru"), "cpu"))
        >>> outcome.status, outcome.same_bits, outcome.worst <= 1
        ('ok', True, True)
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
        """The largest share over all elements of all arrays; infinite if nothing was compared."""
        return max((e.worst for e in self.arrays.values()), default=math.inf)

    @property
    def rms(self) -> float:
        """The largest RMS share over the arrays; infinite if nothing was compared.

        It is not the RMS over the elements of all arrays together, in which a large array would hide the errors of a
        bias.
        """
        return max((e.rms for e in self.arrays.values()), default=math.inf)

    @property
    def worst_array(self) -> str:
        """The name of the array with the worst share; "" if nothing was compared."""
        return max(self.arrays, key=lambda name: self.arrays[name].worst, default="")

    def to_dict(self) -> dict[str, Any]:
        """The fields and properties as a JSON object; an infinite number becomes the string "inf".

        Returns:
            A dict.

        Examples:
            >>> from rnnkit.parity import Check, Outcome
            >>> from rnnkit.testing import Case
            >>> Outcome(Check("numpy", "float32", Case("gru"), "cpu"), "failed", "raised").to_dict()["worst"]
            'inf'
        """
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
        """The outcome that `to_dict` converted.

        Args:
            fields: the result of `to_dict`.

        Returns:
            An equal Outcome.

        Examples:
            >>> from rnnkit.parity import Check, Outcome
            >>> from rnnkit.testing import Case
            >>> outcome = Outcome(Check("numpy", "float32", Case("gru"), "cpu"), "failed", "raised")
            >>> Outcome.from_dict(outcome.to_dict()) == outcome
            True
        """
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
    """Converts a number for JSON, which has no infinity: infinity becomes the string "inf"."""
    return value if math.isfinite(value) else "inf"
