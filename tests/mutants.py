"""MUTANTS: the planted bugs, one row each. See `tests.mutation`.

A bug planted in forward and backward alike keeps finite differences content: those rows lean on the written-out
equations. A row names the fewest tests that must see it, so that the table runs in about a minute and a half.
"""

from __future__ import annotations

from tests import emulator, greenlets
from tests.mutants_cpu import CPU_KERNEL_MUTANTS, CPU_OTHER_MUTANTS, HOST_MUTANTS
from tests.mutants_cuda import CUDA_MUTANTS
from tests.mutants_dtypes import DTYPE_MUTANTS
from tests.mutants_gpu import GPU_RUN_MUTANTS
from tests.mutants_interop import INTEROP_MUTANTS
from tests.mutants_numba_cuda import NUMBA_CUDA_MUTANTS
from tests.mutants_parts import PART_MUTANTS
from tests.mutants_sums import CUDA_SUM_MUTANTS, SUM_MUTANTS
from tests.mutation import Edit, Mutant

CELLS, BY_SCAN = "rnnkit/core/cells.py", "rnnkit/backends/by_scan.py"
NUMPY = "rnnkit/backends/numpy.py"
STACK, CHECKS = "rnnkit/functional/stack.py", "rnnkit/core/checks.py"
RECURRENT = "rnnkit/nn/rnn_base.py"
LOADING = "rnnkit/nn/loading.py"

ORACLE = "tests/test_oracle.py"


def _forward(cell: str, name: str, *edits: Edit) -> Mutant:
    return Mutant(name, edits, ORACLE, f"forward_is_the_equations and {cell}-")


def _gradient(cell: str, name: str, *edits: Edit) -> Mutant:
    return Mutant(name, edits, ORACLE, f"every_gradient_of_a_cell and {cell}-")


def _layers(cell: str, name: str, *edits: Edit) -> Mutant:
    return Mutant(name, edits, ORACLE, f"every_gradient_of_two_layers and {cell}-0")


CELL_MUTANTS = (
    _forward(
        "lstm",
        "LSTM: gates i and f swapped, forward and backward",
        Edit(CELLS, "    i, f, g, o = np.split(", "    f, i, g, o = np.split("),
        Edit(CELLS, "            dc * g * i * (1 - i),\n", ""),
        Edit(
            CELLS,
            '            dc * kept["c_prev"] * f * (1 - f),\n',
            '            dc * kept["c_prev"] * f * (1 - f),\n            dc * g * i * (1 - i),\n',
        ),
    ),
    _gradient(
        "lstm",
        "LSTM: gates g and o swapped, backward",
        Edit(
            CELLS,
            "            dc * i * (1 - g * g),\n            dm * tanh_c * o * (1 - o),\n",
            "            dm * tanh_c * o * (1 - o),\n            dc * i * (1 - g * g),\n",
        ),
    ),
    _forward("lstm", "LSTM: the output gate's tanh left out, forward", Edit(CELLS, "m = o * np.tanh(c)", "m = o * c")),
    _gradient(
        "lstm",
        "LSTM: dc not multiplied by f on its way back",
        Edit(CELLS, "(da @ weights.w_hh, dc * f)", "(da @ weights.w_hh, dc)"),
    ),
    _gradient("lstm", "LSTM: dc of the step after not carried", Edit(CELLS, "    dc = dc + dm * o", "    dc = dm * o")),
    _gradient(
        "lstm", "LSTM: dh not carried", Edit(CELLS, "(da @ weights.w_hh, dc * f)", '(0 * kept["h_prev"], dc * f)')
    ),
    _gradient(
        "lstm and P2",
        "LSTM: projection's gradient from c, not from m",
        Edit(CELLS, '"c": c, "m": m}', '"c": c, "m": np.tanh(c)}'),
    ),
    _gradient(
        "lstm and P2",
        "LSTM: dh not taken back through the projection",
        Edit(CELLS, "else dh @ weights.w_hr\n", "else dh @ np.abs(weights.w_hr)\n"),
    ),
    _forward(
        "gru",
        "GRU: z and 1 - z swapped",
        Edit(
            CELLS,
            "    n = np.tanh(x_n + r * h_n)\n    h = (1 - z) * n + z * h_prev\n",
            "    n = np.tanh(x_n + r * h_n)\n    h = z * n + (1 - z) * h_prev\n",
        ),
    ),
    _forward(
        "gru",
        "GRU: r and z swapped, forward",
        Edit(CELLS, "    h_r, h_z, h_n = np.split(", "    h_z, h_r, h_n = np.split("),
    ),
    _gradient(
        "gru",
        "GRU: r left out of the hidden side's gradient",
        Edit(CELLS, "[da_r, da_z, da_n * r]", "[da_r, da_z, da_n]"),
    ),
    _gradient(
        "gru",
        "GRU: bias_hh given the input side's gradient",
        Edit(BY_SCAN, "else narrow(column_sums(dgates_h)", "else narrow(column_sums(dgates_x)"),
    ),
    _forward(
        "gru_reset_before", "GRU, reset before: h not reset", Edit(CELLS, "    rh = r * h_prev\n", "    rh = h_prev\n")
    ),
    _gradient(
        "gru_reset_before",
        "GRU, reset before: r left out of dh",
        Edit(CELLS, "dh * z + drh * r + da", "dh * z + drh + da"),
    ),
    _gradient(
        "gru_reset_before",
        "GRU, reset before: weight_hn's gradient from h, not from r h",
        Edit(CELLS, '(("h_prev", 0, 2), ("rh", 2, 3))', '(("h_prev", 0, 2), ("h_prev", 2, 3))'),
    ),
    _gradient("rnn_tanh", "RNN: wrong slope of tanh", Edit(CELLS, "dh * (1 - h * h)", "dh * (1 - h)")),
    _gradient(
        "rnn_relu", "RNN: relu passes every gradient", Edit(CELLS, "np.where(h <= 0, 0, dh)", "np.where(h < 0, 0, dh)")
    ),
    Mutant(
        "RNN: relu loses a NaN",
        (Edit(CELLS, "np.maximum(a, 0)", "np.where(a > 0, a, 0 * a.dtype.type(1))"),),
        "tests/test_invariances.py",
        "nan_stays and numpy and rnn_relu",
    ),
    _forward(
        "rnn_tanh",
        "bias_hh dropped",
        Edit(CELLS, "return product if weights.b_hh is None else product + weights.b_hh[first:end]", "return product"),
    ),
)

SCAN_MUTANTS = (
    _forward(
        "gru",
        "bias_ih dropped",
        Edit(NUMPY, "gates_x[t] if weights.b_ih is None else gates_x[t] + weights.b_ih", "gates_x[t]"),
    ),
    _forward(
        "rnn_tanh", "lengths: one step too many", Edit(NUMPY, "(t < lengths)[:, None]", "(t <= lengths)[:, None]")
    ),
    _gradient(
        "rnn_tanh",
        "lengths: one live step too few in the products",
        Edit(BY_SCAN, "[:, None] < lengths[None, :]", "[:, None] < lengths[None, :] - 1"),
    ),
    _forward(
        "rnn_tanh",
        "the reversed direction runs forward",
        Edit(NUMPY, "range(T - 1, -1, -1) if reverse else range(T)", "range(T)"),
    ),
    _gradient(
        "rnn_tanh",
        "backward of the reversed direction runs forward",
        Edit(NUMPY, "in _order(T, not saved.reverse)", "in _order(T, True)"),
    ),
    _forward(
        "rnn_tanh",
        "y not zero past the end of a row",
        Edit(NUMPY, "y[t] = np.where(live, state[0], 0)", "y[t] = state[0]"),
    ),
    _forward(
        "rnn_tanh",
        "the final state is of step T, not of the row's end",
        Edit(NUMPY, "np.where(live, n, s) for n, s in zip(new", "n for n, s in zip(new"),
    ),
    _gradient(
        "rnn_tanh",
        "the final state's gradient lost",
        Edit(
            NUMPY, "dstate = tuple(np.array(d) for d in dstate_n)", "dstate = tuple(np.zeros_like(d) for d in dstate_n)"
        ),
    ),
    _gradient(
        "lstm",
        "dx written to the wrong rows",
        Edit(BY_SCAN, "    full[live] = flat\n", "    full[live] = flat[::-1]\n"),
    ),
    Mutant(
        "dx past a row's end never written",
        (Edit(BY_SCAN, "full = xp.zeros(", "full = xp.empty("),),
        "tests/test_parity.py",
        "read_before_it_is_written and numpy and gru",
    ),
    Mutant(
        "h0 kept by reference",
        (Edit(NUMPY, "state = tuple(np.array(s) for s in state0)", "state = tuple(state0)"),),
        "tests/test_reentrancy.py",
        "writes_after_the_call and numpy and lstm",
    ),
)

LAYER_MUTANTS = (
    _layers(
        "gru",
        "states stacked direction by direction",
        *(
            Edit(
                STACK,
                f"{before} = layer * directions + direction{after}",
                f"{before} = direction * len(weights) + layer{after}",
            )
            for before, after in (("slot, first", ","), ("slot", "\n"))
        ),
    ),
    Mutant(
        "states stacked direction by direction, forward and backward alike",
        tuple(
            Edit(
                STACK,
                f"{before} = layer * directions + direction{after}",
                f"{before} = direction * len(weights) + layer{after}",
            )
            for before, after in (("slot, first", ","), ("slot", "\n"))
        ),
        "tests/test_layers.py",
        "state_is_the_output and numpy",
    ),
    _layers("rnn_tanh", "dx of one direction lost", Edit(STACK, "dx_part if dx is None else dx + dx_part", "dx_part")),
    _layers(
        "rnn_tanh",
        "dropout left out of backward",
        Edit(STACK, "narrow(dx * saved.masks[layer - 1], dx.dtype)", "dx * 1"),
    ),
    Mutant(
        "dropout: another layer's mask in backward",
        (Edit(STACK, "saved.masks[layer - 1]", "saved.masks[-layer]"),),
        "tests/test_dropout.py",
        "acts_between and numpy and gru",
    ),
    Mutant(
        "dropout after the last layer",
        (Edit(STACK, "layer < len(weights) - 1", "layer < len(weights)"),),
        "tests/test_dropout.py",
        "acts_between and numpy and gru",
    ),
    Mutant(
        "dropout not scaled up",
        (Edit(STACK, "mask /= mask.dtype.type(1 - p)", "mask *= 1"),),
        "tests/test_dropout.py",
        "mask_keeps",
    ),
    Mutant(
        "dropout in eval mode",
        (Edit(RECURRENT, "if self.training and self.dropout", "if self.dropout"),),
        "tests/test_dropout.py",
        "eval_turns and numpy and gru",
    ),
    Mutant(
        "gradients overwritten, not added",
        (Edit(RECURRENT, "total += grad\n", "total[...] = grad\n"),),
        "tests/test_layers.py",
        "gradients_add_up and numpy and gru",
    ),
    Mutant(
        "batch_first: outputs left time-major",
        (
            Edit(
                RECURRENT,
                "return a.swapaxes(0, 1) if self.batch_first else a\n\n    def _user_state",
                "return a\n\n    def _user_state",
            ),
        ),
        "tests/test_layers.py",
        "batch_first and numpy and gru",
    ),
    Mutant(
        "initial parameters of a wrong bound",
        (Edit(RECURRENT, "bound = 1 / math.sqrt(H)", "bound = 1 / math.sqrt(I)"),),
        "tests/test_layers.py",
        "initial and lstm",
    ),
    Mutant(
        "initial parameters all of one sign",
        (Edit(RECURRENT, "rng.uniform(-bound, bound, shape)", "rng.uniform(0, bound, shape)"),),
        "tests/test_layers.py",
        "initial and lstm",
    ),
    Mutant(
        "no_grad does nothing",
        (Edit(RECURRENT, "keep=grad_enabled()", "keep=True"),),
        "tests/test_reentrancy.py",
        "no_grad_keeps and numpy and gru",
    ),
    Mutant(
        "another dtype passes",
        (Edit(CHECKS, "if value.dtype != dtype:", "if value.dtype.kind != dtype.kind:"),),
        "tests/test_bad_input.py",
        "test_x and gru",
    ),
    Mutant(
        "negative lengths pass",
        (Edit(CHECKS, "(got < 0) | (got > T)", "got > T"),),
        "tests/test_bad_input.py",
        "test_lengths and gru",
    ),
    Mutant(
        "load_state_dict: extra keys pass",
        (Edit(LOADING, "if strict and (missing or extra):", "if strict and missing:"),),
        "tests/test_state_dict.py",
        "test_load_state_dict and gru",
    ),
)


CACHE_MUTANTS = (
    Mutant(
        "kernels of different processes under one symbol",
        (Edit("kernels/cpu/jit.py", '    function.__qualname__ += f".{name}"\n', ""),),
        "tests/test_kernels.py",
        "several_processes",
    ),
)

MUTANTS: tuple[Mutant, ...] = (
    *(*CELL_MUTANTS, *SCAN_MUTANTS, *LAYER_MUTANTS, *PART_MUTANTS, *HOST_MUTANTS, *CACHE_MUTANTS),
    *(*DTYPE_MUTANTS, *INTEROP_MUTANTS, *SUM_MUTANTS),
)

# Those of the CUDA backends, with what keeps their tests from running here: `make test-kernels` has them.
KERNEL_MUTANTS: tuple[tuple[tuple[Mutant, ...], str | None], ...] = (
    ((*CUDA_MUTANTS, *CUDA_SUM_MUTANTS), emulator.available()),
    (NUMBA_CUDA_MUTANTS, greenlets.available()),
    (CPU_KERNEL_MUTANTS, None),
)

# Those that `make mutation` alone plants.
OTHER_MUTANTS: tuple[Mutant, ...] = (*CPU_OTHER_MUTANTS, *GPU_RUN_MUTANTS)
