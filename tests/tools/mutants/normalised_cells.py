"""NORM_MUTANTS: bugs in cells with layer normalisation, rnnkit/core/norm_steps.py and the kernels.

TORCH_NORM_MUTANTS: bugs in them in rnnkit/torch.
"""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

STEPS, KERNELS, CELLS = "rnnkit/core/norm_steps.py", "kernels/cpu/normalised_backward.py", "kernels/cells/normalised.py"
PEERS, CPU = "tests/peers/test_normalised_cells.py", "tests/cpu/test_normalised_cells.py"
CUPY, TORCH = "tests/cuda/test_cupy_normalised.py", "tests/torch/test_normalised_cells.py"
CELLS_IN_TORCH = "tests/torch/test_step_options.py"
CUDA = "kernels/cuda/stepwise_norm"
NUMBA_CUDA = "tests/cuda/test_numba_cuda_normalised.py"
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
    row(
        "layer norm on cupy: eps is added to the deviation",
        f"{CUDA}.cuh",
        "",
        "sqrt_of(squares[i] / count + eps)",
        "(sqrt_of(squares[i] / count) + eps)",
        CUPY,
        "equals_the_oracles and lstm and haste",
    ),
    row(
        "layer norm on cupy: a barrier is missing before the parts of a sum are written again",
        f"{CUDA}.cuh",
        "",
        "__syncthreads();  // the parts of the sums before have been read",
        "",
        CUPY,
        "no_race and lstm and haste",
    ),
    row(
        "layer norm on cupy: the second mean is not subtracted",
        f"{CUDA}.cu",
        "",
        "- means[0] - hat * means[1]);\n    if (!RK_CARRIES)",
        "- means[0]);\n    if (!RK_CARRIES)",
        CUPY,
        "equals_the_oracles and lstm and haste",
    ),
    row(
        "layer norm on cupy: rows that have ended keep the gradients of others",
        f"{CUDA}.cu",
        "",
        "now[b * GH + g * H + j] = store(Compute(0));",
        "(void)now;",
        CUPY,
        "equals_the_oracles and lstm and haste",
    ),
    row(
        "layer norm on cupy: the bias of the hidden side has the sums of the input side",
        f"{CUDA}.cu",
        "",
        "side == 1 && g == 2 ? 3 : g;",
        "g;",
        CUPY,
        "equals_the_oracles and gru and haste",
    ),
    row(
        "layer norm on Numba CUDA: a barrier of the sums is missing",
        "kernels/numba_cuda/block_sums.py",
        "block_sum",
        "total = parts[0]\n    cuda.syncthreads()",
        "total = parts[0]",
        NUMBA_CUDA,
        "equals_the_oracles and gru and haste",
    ),
    row(
        "layer norm on Numba CUDA: n on the hidden side has the gradient of the input side",
        "kernels/numba_cuda/scan_norm_backward.py",
        "gate_gradient",
        "side == 1 and g == 2",
        "side == 2 and g == 2",
        NUMBA_CUDA,
        "equals_the_oracles and gru and haste",
    ),
)

TORCH_NORM_MUTANTS: tuple[Mutant, ...] = (
    row(
        "layer norm in torch: the equations add b_ih to x W_ih^T",
        "rnnkit/torch/equations.py",
        "run",
        "not cell.normalises",
        "True",
        TORCH,
        "derivatives and LSTM and not haste",
    ),
    row(
        "layer norm in torch: gains are drawn as weights are",
        "rnnkit/torch/own_arguments.py",
        "reset_parameters",
        "reset_norms(self, parsed(self._text)[0])",
        "pass",
        TORCH,
        "parameters_are_those",
    ),
    row(
        "layer norm in torch's Cells: the gains are not passed on",
        "rnnkit/torch/cell_base.py",
        "step_of_cell",
        "elif cell.layer_norm is not None:",
        "elif False:",
        CELLS_IN_TORCH,
        "steps_with_layer_norm and gru and haste",
    ),
    row(
        "layer norm in torch's Cells: gains are drawn as weights are",
        "rnnkit/torch/cell_base.py",
        "CellBase.reset_parameters",
        "reset_norms(self, self._norms)",
        "pass",
        CELLS_IN_TORCH,
        "parameters_and_copies",
    ),
    row(
        "layer norm in torch: the state of c is the one before its normalisation",
        "rnnkit/torch/norm_equations.py",
        "_lstm",
        "shifted if carries else c",
        "c",
        TORCH,
        "derivatives and LSTM and not haste",
    ),
)
