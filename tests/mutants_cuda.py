"""CUDA_MUTANTS: bugs planted in the CUDA C++ kernels and in the code that launches them. See `tests.mutation`.

They are seen by the emulator: wrong numbers by parity with the oracle, races, stray reads and writes by its checks.
"""

from __future__ import annotations

from tests.mutation import Edit, Mutant

LSTM, GRU, RNN, ROWS = (
    "kernels/cells/lstm.cuh",
    "kernels/cells/gru.cuh",
    "kernels/cells/rnn.cuh",
    "kernels/cuda/rows.cuh",
)
CALL, STEPS, BEFORE = "kernels/cuda/stepwise.cuh", "kernels/cuda/stepwise.cu", "kernels/cuda/stepwise_reset_before.cu"
NUMBERS = "kernels/cuda/numbers.cuh"
RUN, STEPWISE = "rnnkit/backends/cupy/stepwise_run.py", "rnnkit/backends/cupy/stepwise.py"
ARENA, CUBLAS = "rnnkit/backends/cupy/arena.py", "rnnkit/backends/cupy/cublas.py"
PROBLEM = "rnnkit/backends/cupy/problem.py"
SOURCES, CHOICE = "rnnkit/backends/cupy/sources.py", "rnnkit/backends/cupy/schedules.py"

MODULE, OPTIMIZERS = "rnnkit/nn/module.py", "rnnkit/optim/base.py"

PARITY, DEVICE = "tests/test_cupy_backend.py", "tests/test_cupy_device.py"


def _parity(cell: str, name: str, *edits: Edit, dtype: str = "float32") -> Mutant:
    """Seen by one case of a cell, of which the name says T5-B3-I4-H6."""
    return Mutant(name, edits, PARITY, f"test_parity and {cell}-T5-B3-I4-H6 and {dtype}")


def _checked(cell: str, name: str, *edits: Edit) -> Mutant:
    return Mutant(name, edits, DEVICE, f"test_no_race_nor_stray_access and {cell}")


def _backend(pick: str, name: str, *edits: Edit) -> Mutant:
    return Mutant(name, edits, PARITY, pick)


CELL_MUTANTS = (
    _parity(
        "lstm",
        "LSTM kernel: gates i and f swapped",
        Edit(
            LSTM,
            "sigmoid_of(x[0] + u[0]), f = sigmoid_of(x[1] + u[1])",
            "sigmoid_of(x[1] + u[1]), f = sigmoid_of(x[0] + u[0])",
        ),
    ),
    _parity(
        "lstm",
        "LSTM kernel: dc of the step before multiplied by i",
        Edit(LSTM, "dc_prev = dc * f;", "dc_prev = dc * i;"),
    ),
    _parity("lstm", "LSTM kernel: dc from the later step dropped", Edit(LSTM, "dc += dh * o", "dc = dh * o")),
    _parity(
        "lstm",
        "LSTM kernel: df of c rather than c'",
        Edit(LSTM, "dx[1] = dc * c_prev", "dx[1] = dc * (f * c_prev + i * g)"),
    ),
    _parity(
        "gru",
        "GRU kernel: z and 1 - z exchanged",
        Edit(GRU, "h = n + z * (h_prev - n);", "h = h_prev + z * (n - h_prev);"),
    ),
    _parity("gru", "GRU kernel: the hidden side's n without r", Edit(GRU, "du[2] = da_n * r;", "du[2] = da_n;")),
    _parity("gru", "GRU kernel: what passes by the product lost", Edit(GRU, "dh_direct = dh * z;", "dh_direct = 0;")),
    _parity("gru", "GRU kernel: u_n kept after the gate", Edit(GRU, "kept[3] = u[2];", "kept[3] = r * u[2];")),
    _parity(
        "rnn_relu",
        "RNN kernel: relu's slope is 1 at 0",
        Edit(RNN, "dx[0] = kept[0] <= Compute(0)", "dx[0] = kept[0] < Compute(0)"),
    ),
    _parity(
        "rnn_tanh",
        "RNN kernel: the slope of tanh taken at its argument",
        Edit(RNN, "    kept[0] = h;", "    kept[0] = x[0] + u[0];"),
    ),
    _backend(
        "test_infinities and rnn_relu-float32",
        "relu kernel: NaN becomes 0",
        Edit(NUMBERS, "return a <= Compute(0) ? Compute(0) : a;", "return a > Compute(0) ? a : Compute(0);"),
    ),
    _backend(
        "test_a_bias_on_one_side",
        "biases of the two sides exchanged",
        Edit(ROWS, "i < GH ? b_ih : b_hh", "i < GH ? b_hh : b_ih"),
    ),
)

STEP_MUTANTS = (
    _checked(
        "lstm",
        "forward_step: y of the next row",
        Edit(STEPS, "*y_at(call, t, b, B, R, j) = out;", "*y_at(call, t, b + 1, B, R, j) = out;"),
    ),
    _parity(
        "gru",
        "forward_step: h' kept after the step",
        Edit(STEPS, "call->h_prev[step * H + j] = before;", "call->h_prev[step * H + j] = h[at] = store(Compute(0));"),
    ),
    _parity(
        "lstm",
        "forward_step: c kept for c'",
        Edit(STEPS, "call->c_prev[step * H + j] = c_prev;", "call->c_prev[step * H + j] = new_c;"),
    ),
    _backend(
        "test_parity and lstm-T5-B3-I4-H6-P4 and float32",
        "forward_step: h' not kept under projection",
        Edit(STEPS, "if (m && call->h_prev)", "if (false)"),
    ),
    _backend(
        "test_chunks and True-lstm",
        "the chunk's first time step forgotten",
        Edit(CALL, "call->y + ((call->t0 + t)", "call->y + ((Index)t"),
    ),
    _backend(
        "test_chunks and True-lstm",
        "the chunk's first live step forgotten",
        Edit(STEPS, "call->kept[(step * K + k) * H + j] = store", "call->kept[((n + b) * K + k) * H + j] = store"),
    ),
    _backend(
        "test_gradients_of_any_strides and lstm",
        "strides of dy exchanged",
        Edit(
            CALL,
            "(call->t0 + t) * call->dy_t + row * call->dy_b + k",
            "(call->t0 + t) * call->dy_b + row * call->dy_t + k",
        ),
    ),
    _backend(
        "test_parity and ragged and lstm and float32",
        "order of ragged rows ignored in y",
        Edit(
            CALL,
            "  const Index row = call->order ? call->order[b] : b;\n  return call->y",
            "  const Index row = b;\n  return call->y",
        ),
    ),
    _parity("lstm", "backward_step: dy dropped", Edit(STEPS, "dh[at] + dy_at(call, t, b, j)", "dh[at]")),
    _parity(
        "gru_reset_before",
        "reset before: rh of the new h",
        Edit(BEFORE, "store(r * load(before))", "store(z * load(before))"),
    ),
    _parity("gru_reset_before", "reset before: dh by way of r lost", Edit(BEFORE, "dh[at] * z + d * r", "dh[at] * z")),
    _parity(
        "gru_reset_before", "reset before: z not left for the second launch", Edit(BEFORE, "      u[z_at] = z;\n", "")
    ),
    _parity(
        "lstm",
        "load of float16: through an integer",
        Edit(NUMBERS, "return __half2float(v);", "return (float)(int)__half2float(v);"),
        dtype="float16",
    ),
)

ROW_MUTANTS = (
    _checked("gru", "column_sums: no barrier before the sum", Edit(ROWS, ".value();\n  __syncthreads();", ".value();")),
    _checked(
        "gru",
        "column_sums: no barrier between halves",
        Edit(ROWS, "threadIdx.x];\n    __syncthreads();\n  }", "threadIdx.x];\n  }"),
    ),
    _backend(
        "test_parity and lstm-T4-B7 and float32",
        "column_sums: half the rows of a block lost",
        Edit(ROWS, "int half = 4;", "int half = 2;"),
    ),
    _backend(
        "test_chunks and lstm",
        "add_parts: earlier chunks lost",
        Edit(ROWS, "if (!first) sum = total[k];", ""),
    ),
    _backend(
        "test_parity and ragged and lstm and float32",
        "pack_rows: rows unsorted",
        Edit(ROWS, "packed[n * K + i] = src[(t * B + order[b])", "packed[n * K + i] = src[(t * B + b)"),
    ),
    _checked(
        "rnn_tanh", "unpack_rows: reads past the live rows", Edit(ROWS, "b < rows ? packed", "b <= rows ? packed")
    ),
    _backend(
        "test_parity and ragged and gru and float32",
        "final states left in the order of storage",
        Edit(ROWS, "dst[(order ? order[b] : b) * K + k] = Convert", "dst[b * K + k] = Convert"),
    ),
    _checked(
        "rnn_tanh",
        "forward_begin: one bias short",
        Edit(ROWS, "i < 2 * GH; i +=", "i < 2 * GH - 1; i +="),
    ),
)

LAUNCH_MUTANTS = (
    _backend(
        "test_graphs_are_not_taken",
        "graphs: not told apart by their weights",
        Edit(RUN, "address(weights.w_hh), address(weights.w_hr)", "0, 0"),
    ),
    _backend(
        "test_graphs_of_one_layer",
        "graphs: not told apart by direction",
        Edit(RUN, "p.B, p.H, p.R, p.reverse)", "p.B, p.H, p.R)"),
    ),
    _backend(
        "test_graphs_of_one_layer",
        "graphs: not told apart by lengths",
        Edit(PROBLEM, "p.counts[t0:t1].tobytes() if self.ragged else None", "None"),
    ),
    _backend(
        "test_graphs_are_dropped",
        "graphs: kept when the work space moves",
        Edit(ARENA, "            self._graphs.clear()\n", ""),
    ),
    _backend(
        "test_launches_of_a_step",
        "graphs: never used",
        Edit(ARENA, "            if key not in self._seen:", "            if True:"),
    ),
    Mutant(
        "one arena for all streams",
        (Edit(ARENA, "getDevice(), stream.ptr)", "getDevice(), 0)"),),
        DEVICE,
        "test_streams_do_not_share",
    ),
    _backend(
        "test_threads",
        "arenas shared by threads",
        Edit(
            ARENA, "_local = threading.local()", "from types import SimpleNamespace\n\n_local: Any = SimpleNamespace()"
        ),
    ),
    _backend(
        "test_chunks and lstm",
        "chunks of the way back in the order of the scan",
        Edit(PROBLEM, "reversed(starts) if self.reverse != backward else", "reversed(starts) if self.reverse else"),
    ),
    _parity("gru", "the product of dh replaces what passes by it", Edit(RUN, "p.GH, add=splits(p.cell))", "p.GH)")),
    _parity(
        "gru_reset_before",
        "W_hn taken for W_hr",
        Edit(RUN, "rows_by_weights(rh, w_hh.at(2 * H),", "rows_by_weights(rh, w_hh,"),
    ),
    _backend(
        "test_chunks_of_16_bit",
        "16-bit gradients rounded chunk by chunk",
        Edit(PROBLEM, "self.slice_rows >= self.N and self.stored == self.computed", "self.slice_rows >= self.N"),
    ),
    _backend(
        "test_chunks and lstm",
        "weight gradients of the last chunk alone",
        Edit(STEPWISE, "add=self.done > 0)", "add=False)"),
    ),
    _backend("test_tf32_rounds", "tf32 computed in float32", Edit(CUBLAS, '"tf32": 77', '"tf32": 68')),
    _backend(
        "test_tf32_rounds", "float32 computed in tf32", Edit(CUBLAS, '"float32": 68, "tf32"', '"float32": 77, "tf32"')
    ),
    _parity(
        "gru_reset_before",
        "a matrix that begins inside another: its first column forgotten",
        Edit(CUBLAS, "(row * self.ld + column)", "(row * self.ld)"),
    ),
    Mutant(
        "bfloat16 sent to cards that have none",
        (Edit(SOURCES, '("RK_BFLOAT16", 80)', '("RK_BFLOAT16", 70)'),),
        DEVICE,
        "test_cards_that_are_not_served",
    ),
)

MEMORY_MUTANTS = (
    Mutant(
        "a full card has moved half of a model",
        (
            Edit(
                MODULE,
                "            module._check_device(target)\n",
                "            module._check_device(target)\n            module._device = target\n",
            ),
        ),
        "tests/test_cupy_device.py",
        "full_card_leaves",
    ),
    Mutant(
        "an optimizer's step counts before it has its memory",
        (
            Edit(
                OPTIMIZERS,
                "        parameters = list(parameters_of",
                "        self._begin_step()\n        parameters = list(parameters_of",
            ),
            Edit(
                OPTIMIZERS,
                "        self._begin_step()\n        for key, p, grad in parameters:",
                "        for key, p, grad in parameters:",
            ),
        ),
        "tests/test_cupy_device.py",
        "full_card_leaves",
    ),
)

CUDA_MUTANTS = (*CELL_MUTANTS, *STEP_MUTANTS, *ROW_MUTANTS, *LAUNCH_MUTANTS, *MEMORY_MUTANTS)
