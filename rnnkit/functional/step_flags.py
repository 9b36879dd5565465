"""The arguments of a call that say something of each step: resets and a mask."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit.core import checks
from rnnkit.functional.segments import Segments, segments


def given_flags(resets: Any, reset_state: Any, mask: Any, zero_output_for_mask: Any) -> StepFlags | None:
    """The arguments of a call, or None if none of them was given."""
    if resets is None and reset_state is None and mask is None and zero_output_for_mask is False:
        return None
    return StepFlags(resets, reset_state is not None, mask, zero_output_for_mask)


class StepFlags(NamedTuple):
    """Arguments of a call of a layer, as they were given, unchecked. restarts: whether a reset state was given."""

    resets: Any
    restarts: bool
    mask: Any
    zero_output_for_mask: Any

    def segments(
        self,
        T: int,
        B: int,
        unbatched: bool,
        batch_first: bool,
        directions: int,
        lengths: np.ndarray | None,
        spans: bool = False,
    ) -> Segments | None:
        """Checks them, and returns what they decide; None if nothing is reset or masked. spans: as for `segments`.

        Raises ValueError or TypeError that name the argument.
        """
        zero = self.zeroes()
        resets, mask = self.checked(T, B, unbatched, batch_first)
        return segments(T, B, directions, lengths=lengths, resets=resets, mask=mask, repeat=not zero, spans=spans)

    def checked(
        self, T: int, B: int, unbatched: bool, batch_first: bool
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """resets and mask as (T, B) on the host, each None if it was not given. Raises as `segments`."""
        resets = checks.step_flags("resets", self.resets, T, B, unbatched, batch_first)
        mask = checks.step_flags("mask", self.mask, T, B, unbatched, batch_first)
        return resets, mask

    def zeroes(self) -> bool:
        """`zero_output_for_mask`, checked beside the other arguments but for the flags themselves."""
        zero = checks.flag("zero_output_for_mask", self.zero_output_for_mask)
        if zero and self.mask is None:
            raise ValueError("zero_output_for_mask must be False without a mask, got True")
        if self.restarts and self.resets is None:
            raise ValueError("reset_state must be None without resets")
        return zero
