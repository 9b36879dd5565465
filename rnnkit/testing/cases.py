"""Cases to check, and the tables of them: CASES, OPTION_CASES of cells with options, and LARGE_CASES for GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from rnnkit.core.cells import CELLS


@dataclass(frozen=True)
class Case:
    """One layer in one direction to check: its cell, its sizes and its options.

    Attributes:
        cell: a name in `rnnkit.core.cells.CELLS`, or the key of a cell with options.
        T: number of steps.
        B: number of rows of the batch.
        I: number of input features.
        H: number of features of the state.
        P: number of features of the projection; 0 for none.
        bias: whether the cell has biases.
        reverse: whether it runs from each row's last step to the first.
        ragged: whether the rows have different lengths.
        constants: the numbers that the cell's options need, see `Cell.constants`.

    Examples:
        >>> from rnnkit.testing import Case
        >>> str(Case("lstm", T=5, B=3, I=4, H=6, ragged=True))
        'lstm-T5-B3-I4-H6-ragged'
    """

    cell: str
    T: int = 5
    B: int = 3
    I: int = 4
    H: int = 6
    P: int = 0
    bias: bool = True
    reverse: bool = False
    ragged: bool = False
    constants: tuple[float, ...] = ()

    def __str__(self) -> str:
        flags = [f for f in ("reverse", "ragged") if getattr(self, f)]
        flags += [] if self.bias else ["nobias"]
        sizes = f"T{self.T}-B{self.B}-I{self.I}-H{self.H}" + (f"-P{self.P}" if self.P else "")
        return "-".join([self.cell, sizes, *flags])


def _cases() -> tuple[Case, ...]:
    cases = []
    for cell in CELLS.values():
        for reverse in (False, True):
            for ragged in (False, True):
                cases.append(Case(cell.name, reverse=reverse, ragged=ragged))
        cases.append(Case(cell.name, bias=False, T=3, B=2, I=3, H=5))
        # Sizes below and above vector widths and tiles; one row, one step, one unit.
        for T, B, I, H in (
            (1, 1, 1, 1),
            (3, 1, 7, 17),
            (4, 7, 5, 16),
            (3, 13, 9, 33),
            (2, 5, 3, 70),
            (2, 25, 2, 64),
        ):
            cases.append(Case(cell.name, T, B, I, H, reverse=T == 3, ragged=B == 7))
        cases.append(Case(cell.name, 6, 7, 3, 9, reverse=True, ragged=True))  # many different lengths in [0, T]
        if cell.projects:
            for reverse in (False, True):
                cases.append(Case(cell.name, P=4, reverse=reverse, ragged=reverse))
            cases.append(Case(cell.name, T=3, B=7, I=5, H=35, P=18))
    return tuple(cases)


CASES: tuple[Case, ...] = _cases()

# Cells with options: each kind of layer normalisation, and each of the other options once.
OPTION_CASES: tuple[Case, ...] = (
    Case("gru+layer_norm=haste", T=4, B=5, I=3, H=19, ragged=True, constants=(1e-2,)),
    Case("gru+layer_norm=dreamer", T=4, B=5, I=3, H=19, reverse=True, ragged=True, constants=(1e-2,)),
    Case("lstm+layer_norm=haste", T=4, B=5, I=3, H=19, reverse=True, ragged=True, constants=(1e-2,)),
    Case("lstm+layer_norm=torch", T=4, B=5, I=3, H=19, ragged=True, constants=(1e-2,)),
    Case("lstm+peephole+clip+cell_clip", T=4, B=7, I=5, H=35, constants=(0.7, 0.5), ragged=True),
    Case("lstm+peephole+coupled", T=6, B=7, I=3, H=19, P=9, reverse=True),
    Case("gru+clip+activations=HardSigmoid,Softsign", T=4, B=5, I=3, H=19, constants=(0.8, 0.3, 0.4)),
    Case("rnn_tanh+clip", T=4, B=5, I=3, H=19, constants=(0.5,), ragged=True),
)

# For GPUs: several chunks of steps, several thread blocks per row, sizes that are not multiples of a tile. The relu
# RNN and the sLSTM are excluded. Their gradients jump where rounding changes the sign of a pre-activation, or of the
# difference of two, and at these sizes it changes some.
LARGE_CASES: tuple[Case, ...] = tuple(
    Case(cell, T, B, I, H, reverse=reverse, ragged=ragged)
    for cell, row in CELLS.items()
    if not row.jumps
    for T, B, I, H, reverse, ragged in (
        (64, 64, 256, 1024, False, False),
        (256, 8, 64, 128, True, False),
        (100, 33, 100, 250, True, True),
        (256, 16, 128, 512, False, True),
    )
)
