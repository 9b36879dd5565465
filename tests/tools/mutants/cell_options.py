"""OPTION_MUTANTS: bugs in cells with options, rnnkit/core/option_steps.py and kernels/cells/with_options.py."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

STEPS, ARGUMENTS = "rnnkit/core/option_steps.py", "rnnkit/core/option_arguments.py"
KERNELS, GATES, SUMS = "kernels/cells/with_options.py", "kernels/cells/gates.py", "kernels/cpu/unit_gradients.py"
ORACLE, CPU, LAYERS = (f"tests/{folder}/test_cell_options.py" for folder in ("oracle", "cpu", "api"))
SMALL = "oracle and peephole and ragged and not P9"

OPTION_MUTANTS: tuple[Mutant, ...] = (
    row(
        "options: o reads c'",
        STEPS,
        "_lstm_forward",
        "p_o * c\n",
        "p_o * c_prev\n",
        ORACLE,
        "onnx and peephole and forward",
    ),
    row(
        "options: no gradient at the clip",
        STEPS,
        "slope",
        "np.abs(a) > self.clip",
        "np.abs(a) >= self.clip",
        ORACLE,
        "passes",
    ),
    row(
        "options: c is not limited backward",
        STEPS,
        "_lstm_backward",
        "n.cell_clip, 0, dc",
        "n.cell_clip, dc, dc",
        ORACLE,
        "difference and cell_clip",
    ),
    row("options: a negative clip is accepted", ARGUMENTS, "_positive", "not 0 <", "not -9 <", LAYERS, "bad_value"),
    row(
        "options: numba passes at and beyond the clip",
        GATES,
        "opened",
        "beyond, -infinity, zero, slope",
        "beyond, -infinity, slope(y, k), slope",
        CPU,
        "beyond_the_clip",
    ),
    row(
        "options: numba forgets the peephole of o",
        KERNELS,
        "backward",
        "dc = dc + da_o * w[2]",
        "dc = dc + da_o * w[0]",
        CPU,
        "equals and ragged and clip",
    ),
    row(
        "options: numba sums only the last row-step",
        SUMS,
        "add",
        "new = total + y",
        "new = y",
        CPU,
        "equals and ragged and clip",
    ),
)
