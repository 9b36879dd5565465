"""Cases of cells with layer normalisation, one of each kind."""

from __future__ import annotations

from rnnkit.testing import OPTION_CASES

NORM_CASES = [case for case in OPTION_CASES if "layer_norm" in case.cell]
