"""NORM_MUTANTS: bugs in cells with layer normalisation, rnnkit/core/norm_steps.py and the kernels of the CPU."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

STEPS, KERNELS, CELLS = "rnnkit/core/norm_steps.py", "kernels/cpu/normalised_backward.py", "kernels/cells/normalised.py"
PEERS, CPU = "tests/peers/test_normalised_cells.py", "tests/cpu/test_normalised_cells.py"
SMALL = "oracle and ragged"

NORM_MUTANTS: tuple[Mutant, ...] = (
    row("layer norm: eps is added to the deviation", STEPS, "_normed", ") + eps)", ")) + eps", PEERS, "dreamer"),
    row(
        "layer norm: the sum of d hat is left out",
        STEPS,
        "_normed_backward",
        " - hat * (d * hat).mean(axis=1, keepdims=True)",
        "",
        "tests/oracle/test_normalised_cells.py",
        "difference and torch",
    ),
    row(
        "layer norm: the gain of the other side",
        KERNELS,
        "gates",
        "w_unit + G * block, H)\n            else",
        "w_unit, H)\n            else",
        CPU,
        SMALL,
    ),
    row(
        "layer norm: the gradient of n's hidden bias",
        CELLS,
        "unit_gradients",
        "d[0], d[1], d[3])",
        "d[0], d[1], d[2])",
        CPU,
        SMALL,
    ),
)
