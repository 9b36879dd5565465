"""Cases of cells with layer normalisation, one of each kind."""

from __future__ import annotations

from rnnkit.testing import Case

NORM_CASES = [
    Case("gru+layer_norm=haste", T=4, B=5, I=3, H=19, ragged=True, constants=(1e-2,)),
    Case("gru+layer_norm=dreamer", T=4, B=5, I=3, H=19, reverse=True, ragged=True, constants=(1e-2,)),
    Case("lstm+layer_norm=haste", T=4, B=5, I=3, H=19, reverse=True, ragged=True, constants=(1e-2,)),
    Case("lstm+layer_norm=torch", T=4, B=5, I=3, H=19, ragged=True, constants=(1e-2,)),
]
