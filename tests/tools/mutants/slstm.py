"""SLSTM_MUTANTS: bugs in the sLSTM, whose states beside h are three: the oracle, the kernels of the CPU, the layer."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

CELLS, KERNEL, BACKEND = "rnnkit/core/cells.py", "kernels/cells/slstm.py", "rnnkit/backends/numba/layer.py"
ORACLE, CPU, API = "tests/oracle/test_slstm.py", "tests/cpu/test_slstm.py", "tests/api/test_slstm.py"

SLSTM_MUTANTS: tuple[Mutant, ...] = (
    row(
        "sLSTM: the first step takes the larger m",
        CELLS,
        "_slstm_forward",
        " & (n_prev != 0)",
        "",
        ORACLE,
        "without_a_step",
    ),
    row("sLSTM: no limit of f", CELLS, "_slstm_forward", "np.minimum(p - m, 0)", "p - m", ORACLE, "overflows"),
    row(
        "sLSTM: the gradient of a sum below 1",
        CELLS,
        "_slstm_backward",
        'np.where(kept["below"], 0, dn - dh * o * c / (n * n))',
        "dn - dh * o * c / (n * n)",
        ORACLE,
        "below_the_least",
    ),
    row(
        "sLSTM: m is held constant", CELLS, "_slstm_backward", "dn * f, dp)", "dn * f, dp * 0)", ORACLE, "gradient_of_m"
    ),
    row(
        "sLSTM: the kernel's m is that of a first step",
        KERNEL,
        "forward",
        "of_f, zero, p, a_i",
        "of_f, zero, a_i, a_i",
        CPU,
        "float32",
    ),
    row(
        "sLSTM: the kernel's n has no least value",
        KERNEL,
        "forward",
        "where_lt(total, one, one, total)",
        "total",
        CPU,
        "least_n",
    ),
    row(
        "sLSTM: the kernel's gradient of n", KERNEL, "backward", "dc * f, dn * f, dp", "dc * f, dn, dp", CPU, "float32"
    ),
    row(
        "sLSTM: c and m change places",
        BACKEND,
        "side_by_side",
        "(states, axis=1)",
        "(states[::-1], axis=1)",
        CPU,
        "float32",
    ),
    row(
        "LastState: one gradient beside dh",
        "rnnkit/nn/containers.py",
        "LastState.backward",
        "*[None] * others",
        "None",
        API,
        "wrappers",
    ),
)
