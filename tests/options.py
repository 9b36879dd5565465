"""Cases of cells with options, for the tests of every backend."""

from __future__ import annotations

from rnnkit.core.cell_options import ACTIVATIONS
from rnnkit.testing import Case

# alpha, and beta where there is one, of the activations that have some.
NUMBERS = {
    "Affine": (0.6, 0.1),
    "LeakyRelu": (0.2,),
    "ThresholdedRelu": (0.3,),
    "ScaledTanh": (1.2, 0.7),
    "HardSigmoid": (0.3, 0.4),
    "Elu": (0.8,),
}


def with_activations(cell: str, *names: str, clip: float | None = None, **sizes: int | bool) -> Case:
    """A case of a cell with these activations, and a clip if one is given."""
    key = cell + ("" if clip is None else "+clip") + f"+activations={','.join(names)}"
    numbers = (() if clip is None else (clip,)) + tuple(n for name in names for n in NUMBERS.get(name, ()))
    return Case(key, constants=numbers, **sizes)  # type: ignore[arg-type]


# Every option, alone and with the others, of every cell; full and ragged, both directions, projected.
OPTION_CASES = (
    Case("lstm+peephole+clip+cell_clip", constants=(0.7, 0.5), ragged=True),
    Case("lstm+peephole+clip+cell_clip", 1, constants=(0.7, 0.5)),
    Case("lstm+peephole", T=6, B=7, I=3, H=19, P=9, reverse=True, ragged=True),
    Case("lstm+clip", constants=(0.6,), reverse=True),
    Case("lstm+cell_clip", constants=(0.4,), bias=False),
    Case("lstm+coupled", T=4, B=7, I=5, H=16, ragged=True),
    Case("lstm+peephole+coupled", P=4),
    with_activations("lstm", "HardSigmoid", "Softsign", "Elu", clip=0.8),
    with_activations("gru", "HardSigmoid", "Softsign", clip=0.8, reverse=True),
    with_activations("gru", "Softplus", "ScaledTanh", T=6, B=7, I=3, H=19, ragged=True),
    with_activations("gru_reset_before", "HardSigmoid", "Softsign", clip=0.8, ragged=True),
    with_activations("gru_reset_before", "Softplus", "ScaledTanh", T=1),
    Case("rnn_tanh+clip", constants=(0.5,), reverse=True, ragged=True),
    Case("rnn_relu+clip", constants=(0.5,)),
)

# Each of ONNX's activations in a place where its slope and its numbers count.
ACTIVATION_CASES = tuple(with_activations("rnn_tanh", name) for name in ACTIVATIONS if name != "Tanh")
