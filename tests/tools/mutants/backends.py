"""BACKEND_MUTANTS: bugs in rnnkit/functional, rnnkit/backends and kernels/, found by parity with the oracle.

The emulator finds those of CUDA C++ and tests/tools/greenlets those of Numba CUDA, without a GPU, including races and
accesses out of bounds. A mutant of kernels/cpu compiles its kernels, for about ten seconds.
"""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

STACK, BY_SCAN, NUMPY = "rnnkit/functional/stack.py", "rnnkit/backends/by_scan.py", "rnnkit/backends/numpy.py"
NUMBA, POOL = "rnnkit/backends/numba/layer.py", "rnnkit/core/thread_pool.py"
SCAN, MATMUL = "kernels/cpu/scan.py", "kernels/cpu/matmul.py"
ARENA, CUBLAS = "rnnkit/backends/cupy/arena.py", "rnnkit/backends/cupy/cublas.py"
ROWS, SUMS = "kernels/cuda/rows.cu", "kernels/cuda/rows.cuh"
MODULES = "rnnkit/backends/cupy/modules.py"
NUMBA_CUDA = "kernels/numba_cuda/"


def _oracle(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(name, file, at, old, new, "tests/oracle/test_oracle.py", pick)


def _numba(name: str, file: str, at: str, old: str, new: str, case: str) -> Mutant:
    pick = f"numba and float64 and {case}"
    return row(f"numba: {name}", file, at, old, new, "tests/cpu/test_parity.py", pick)


def _cpu(name: str, file: str, at: str, old: str, new: str, tests: str, pick: str) -> Mutant:
    return row(f"numba: {name}", file, at, old, new, f"tests/cpu/test_{tests}.py", pick)


def _cupy(name: str, file: str, at: str, old: str, new: str, pick: str, tests: str = "backend") -> Mutant:
    return row(f"cupy: {name}", file, at, old, new, f"tests/cuda/test_cupy_{tests}.py", pick)


def _numba_cuda(name: str, file: str, at: str, old: str, new: str, pick: str, tests: str = "numba_cuda") -> Mutant:
    return row(f"Numba CUDA: {name}", file, at, old, new, f"tests/cuda/test_{tests}.py", pick)


_ORACLE = (
    _oracle(
        "lengths: one step too many",
        NUMPY,
        "_live",
        "t < lengths",
        "t <= lengths",
        "forward_equals_the_equations and rnn_tanh-",
    ),
    _oracle(
        "lengths: one live step too few in the products",
        BY_SCAN,
        "_live_steps",
        "< lengths[None, :]",
        "< lengths[None, :] - 1",
        "every_gradient_of_a_cell and rnn_tanh-",
    ),
    _oracle(
        "the reversed direction runs forward",
        NUMPY,
        "_order",
        "range(T - 1, -1, -1) if reverse else range(T)",
        "range(T)",
        "forward_equals_the_equations and rnn_tanh-",
    ),
    _oracle(
        "y not zero past the end of a row",
        NUMPY,
        "scan_forward",
        "np.where(live, state[0], 0)",
        "state[0]",
        "forward_equals_the_equations and rnn_tanh-",
    ),
    _oracle(
        "the final state's gradient is dropped",
        NUMPY,
        "scan_backward",
        "np.array(d) for d in dstate_n",
        "np.zeros_like(d) for d in dstate_n",
        "every_gradient_of_a_cell and rnn_tanh-",
    ),
    row(
        "dx past a row's end is not written",
        BY_SCAN,
        "_scatter",
        "xp.zeros(",
        "xp.empty(",
        "tests/cpu/test_parity.py",
        "no_uninitialised_memory and numpy and gru",
    ),
    row(
        "h0 kept by reference",
        NUMPY,
        "scan_forward",
        "np.array(s) for s in",
        "s for s in",
        "tests/cpu/test_reentrancy.py",
        "after_a_call and numpy and lstm",
    ),
)

_STACK = (
    row(
        "states of a layer stacked over those of the layer below",
        STACK,
        "forward",
        "enumerate(results, layer * directions)",
        "enumerate(results, layer)",
        "tests/api/test_layers.py",
        "state_is_the_output and numpy",
    ),
    row(
        "dropout: backward uses the mask of another layer",
        "rnnkit/functional/stack_backward.py",
        "backward",
        "saved.masks[layer - 1]",
        "saved.masks[-layer]",
        "tests/api/test_dropout.py",
        "acts_between and numpy and gru",
    ),
    row(
        "needs: NUMBA_DISABLE_JIT is not checked",
        "rnnkit/backends/needs.py",
        "_jit_problem",
        "if _numba().config.DISABLE_JIT",
        "if False",
        "tests/cpu/test_needs.py",
        "oracle_runs and jit",
    ),
)

_NUMBA_HOST = (
    _numba(
        "the final gradient of c is dropped",
        NUMBA,
        "backward",
        "side_by_side(call.dstate_n[1:])",
        "0 * call.dstate_n[1]",
        "lstm-T5",
    ),
    _cpu(
        "packed weights for another number of workers are used",
        NUMBA,
        "",
        "plan.members, w_ih.shape",
        "w_ih.shape",
        "packed_weights",
        "another_division",
    ),
    _cpu(
        "a member's share of the units is larger than needed",
        "kernels/cpu/rows.py",
        "first_unit",
        "(width + lanes - 1) // lanes * member // members * lanes",
        "width * member // members // lanes * lanes",
        "plans",
        "balanced_share",
    ),
    _cpu(
        "a group of a ragged batch has no rows",
        "rnnkit/backends/ragged.py",
        "bounds",
        "bounds[-1] + 1",
        "bounds[-1]",
        "plans",
        "ragged",
    ),
    _cpu(
        "threads count as reading only their own weights from the third-level cache",
        "rnnkit/backends/numba/host.py",
        "read_us",
        "total <= self.shared_bytes",
        "own <= self.shared_bytes",
        "plans",
        "caches_of_the_system",
    ),
    _cpu(
        "the rows of the largest group are not counted whole",
        "rnnkit/backends/numba/estimate.py",
        "step_us",
        "-(-work.B // groups)",
        "work.B // groups",
        "plans",
        "largest_group_decides",
    ),
    _cpu(
        "packed weights are used by the id of a freed array",
        "rnnkit/backends/numba/memory.py",
        "set_trusted",
        "r() is a",
        "r is not a",
        "frozen",
        "reused_id",
    ),
    _cpu(
        "an exception right after the thread pool is claimed leaves it claimed",
        POOL,
        "run_on_pool",
        "OWNER in claims and claims[OWNER] is launch",
        "reserved > 1",
        "interrupts",
        "no_point_of_a_call and training",
    ),
    _cpu(
        "a call that fails leaves the thread pool claimed",
        POOL,
        "run_on_pool",
        "del claims[OWNER]",
        "pass",
        "sharing",
        "releases_the_pool",
    ),
    _cpu(
        "a preempted worker is used again at once",
        POOL,
        "_back_off",
        "self._reduced if now < self._backoff_until else ready",
        "ready",
        "crowding",
        "omitted_during_the_backoff",
    ),
)

_NUMBA_KERNELS = (
    _numba(
        "x is read without its row order",
        "kernels/cpu/rows.py",
        "pack_x",
        "a.x + caller_step(a.rows, s, t, r) *",
        "a.x + (at + r) *",
        "rnn_tanh-T5",
    ),
    _numba(
        "a row's final state is one step late",
        SCAN,
        "make_forward",
        "(count if s.reverse else",
        "(count if True else",
        "lstm-T5",
    ),
    _cpu(
        "a single step omits the remainder of K after whole vectors",
        "kernels/cpu/dot_products.py",
        "dot_products",
        'icmp_signed(">", left, number(0))',
        'icmp_signed(">", left, number(1))',
        "parity",
        "numba and T1-",
    ),
    _cpu(
        "bfloat16 is cut, not rounded",
        "kernels/cpu/conversions.py",
        "_narrow_bfloat16",
        "builder.add(odd, _all(lanes, 0x7FFF))",
        "odd",
        "sixteen_bits",
        "nearest_even and bfloat16",
    ),
    _cpu(
        "pairs: the last k of an odd K is left out",
        MATMUL,
        "products",
        'icmp_signed("!=", left, number(0))',
        'icmp_signed(">", left, number(1))',
        "sixteen_bits",
        "several_tiles and lstm and bfloat16",
    ),
    _cpu(
        "16 bits: the final cell state is the initial one",
        SCAN,
        "make_forward",
        "range(IN_WORKSPACE)",
        "range(0)",
        "sixteen_bits",
        "several_tiles and lstm and bfloat16",
    ),
    _cpu(
        "16 bits: a thread's sums of a bias and of weights share memory",
        "kernels/cpu/gradients.py",
        "make_gradients",
        "total = room + whole_lines((m1 - m0) * COMPUTED)",
        "total = room",
        "sixteen_bits",
        "several_tiles and lstm and bfloat16",
    ),
    _cpu(
        "workers read the state while others write it",
        SCAN,
        "make_forward",
        "odd = (s0 + k) & 1",
        "odd = s0 & 1",
        "sharing",
        "divided_units_equal and lstm and float32",
    ),
    _cpu(
        "a change of W_hh is not detected",
        "kernels/cpu/packed_weights.py",
        "are_packed",
        "digest(w.w_hh, gates * s.H * row_bytes(s.R), 2, index, p.threads)",
        "0",
        "packed_weights",
        "every_change and RNN",
    ),
    _cpu(
        "a panel after the last one is read",
        MATMUL,
        "product_prefetching",
        "panels - 1 - k",
        "panels - k",
        "products",
        "float32",
    ),
    _cpu(
        "a sum over steps restarts at each span",
        "kernels/cpu/matmul_large.py",
        "large_products",
        "accumulate(span, out, count, True)",
        "accumulate(span, out, count, False)",
        "sums",
        "every_cell and numba and gru and 32845",
    ),
    _cpu(
        "a wrong digit in tanh's polynomial",
        "kernels/cpu/activations.py",
        "_TABLE",
        "0.33331276261387518",
        "0.33332276261387518",
        "activations",
        "float32",
    ),
)

_CUPY_KERNELS = (
    _cupy(
        "LSTM: i reads the input of f",
        "kernels/cells/lstm.cuh",
        "forward",
        "i = sigmoid_of(x[0] + u[0])",
        "i = sigmoid_of(x[1] + u[0])",
        "test_parity and lstm-T5-B3-I4-H6 and float32",
    ),
    _cupy(
        "GRU reset before: dh through r is dropped",
        "kernels/cells/gru_reset_before.cuh",
        "gates_backward",
        "dh * z + drh * r",
        "dh * z",
        "test_parity and gru_reset_before-T5-B3-I4-H6 and float32",
    ),
    _cupy(
        "packing ignores the order of ragged rows",
        ROWS,
        "pack_rows",
        "order[b]",
        "b",
        "test_parity and ragged and lstm and float32",
    ),
    _cupy(
        "reads past the live rows",
        ROWS,
        "unpack_rows",
        "b < rows ? packed",
        "b <= rows ? packed",
        "test_no_race_and_no_access_out_of_bounds and rnn_tanh",
        "device",
    ),
    _cupy(
        "no barrier before a sum",
        ROWS,
        "column_sums",
        ".value(); __syncthreads();",
        ".value();",
        "test_no_race_and_no_access_out_of_bounds and gru",
        "device",
    ),
    _cupy(
        "sums of earlier chunks are dropped",
        ROWS,
        "add_parts",
        "if (!first) sum = total[k];",
        "",
        "test_chunks and lstm",
    ),
    _cupy(
        "the compensation of a sum is dropped",
        SUMS,
        "value",
        "sum - sum == Compute(0) ? sum + lost : sum",
        "sum",
        "later_chunks",
        "sums",
    ),
    _cupy(
        "rows that have ended take part in a step",
        "kernels/cuda/call.cuh",
        "live_rows",
        "(int)(call.offsets[at + 1] - first)",
        "most",
        "graphs_serve_lengths and lstm",
        "stepwise",
    ),
    _cupy(
        "gradients of rows that are not live are not cleared",
        "kernels/cuda/stepwise.cu",
        "clear_gates",
        "store_units<V>(now + gate_at(b, g, j, H), zeros);",
        ";",
        "graphs_serve_lengths and lstm",
        "stepwise",
    ),
    _cupy(
        "a thread of a wide kernel skips a unit",
        "kernels/cuda/units.cuh",
        "store_units",
        "for (int i = 0; i < V; ++i)",
        "for (int i = 0; i < V - (V > 1); ++i)",
        "test_wide_kernels and lstm and float32",
        "stepwise",
    ),
    _cupy(
        "float16 loaded through an integer",
        "kernels/cuda/numbers.cuh",
        "",
        "__half2float(v)",
        "(float)(int)__half2float(v)",
        "test_parity and lstm-T5-B3-I4-H6 and float16",
    ),
)

_CUPY_HOST = (
    _cupy(
        "graphs of other weights are used",
        "rnnkit/backends/cupy/stepwise_launch.py",
        "",
        "where, operands, self.layout",
        "where, self.layout",
        "test_graphs_are_not_used",
    ),
    _cupy(
        "graphs survive a reallocation of the workspace",
        ARENA,
        "reserve",
        "self._graphs.clear()",
        "pass",
        "test_graphs_are_dropped",
    ),
    _cupy(
        "the reverse direction does not wait for what came before it",
        "rnnkit/backends/cupy/side_by_side.py",
        "_beside",
        "there.wait_event(here.record())",
        "pass",
        "reverse_direction_waits",
        "stepwise",
    ),
    _cupy(
        "nothing waits for the reverse direction",
        "rnnkit/backends/cupy/side_by_side.py",
        "_beside",
        "here.wait_event(done)",
        "pass",
        "directions_run_side_by_side",
        "stepwise",
    ),
    _cupy(
        "the slowest schedule is chosen",
        "rnnkit/backends/cupy/schedules.py",
        "choose",
        "best = min(",
        "best = max(",
        "choices_of_real_cards",
        "choice",
    ),
    _cupy(
        "work beyond the multiprocessors costs nothing",
        "rnnkit/backends/cupy/cost.py",
        "resident_seconds",
        "-(-blocks // max(1, at_once))",
        "1",
        "more_blocks_than_fit",
        "choice",
    ),
    _cupy(
        "gradients replace those of the layer",
        "rnnkit/backends/cupy/weight_sums.py",
        "_add_product",
        "add=self.adds or self.done > 0",
        "add=self.done > 0",
        "gradients_are_added and float32",
        "stepwise",
    ),
    _cupy(
        "cooperative launches that do not fit are launched",
        MODULES,
        "__call__",
        "prod(grid) > most",
        "prod(grid) < 0",
        "cooperative_launch_that_does_not_fit",
        "modules",
    ),
    _cupy(
        "shared memory is opted in to on the first device only",
        MODULES,
        "module",
        "cupy.cuda.runtime.getDevice()",
        "0",
        "opted_in_to_on_each_device",
        "modules",
    ),
    _cupy(
        "tags are used again before their memory is cleared",
        ARENA,
        "epochs",
        "self._memory.fill(0)",
        "pass",
        "epochs_of_counters",
        "modules",
    ),
    _cupy("one arena for all streams", ARENA, "current", "stream.ptr", "0", "test_streams_do_not_share", "device"),
    _cupy("tf32 computed in float32", CUBLAS, "COMPUTE", '"tf32": 77', '"tf32": 68', "test_tf32_rounds"),
)

_NUMBA_CUDA = (
    _numba_cuda(
        "no barrier between the two products of a step",
        NUMBA_CUDA + "scan_forward.py",
        "make_forward",
        "store_states(c_before, c_prev[t, b], j, H) cuda.syncthreads()",
        "store_states(c_before, c_prev[t, b], j, H)",
        "no_races_and_no_index and gru_reset_before-T3-B4-I2-H5",
    ),
    _numba_cuda(
        "no barrier between writing a tile and reading it",
        NUMBA_CUDA + "tiles.py",
        "product",
        "cuda.syncthreads() if j < H: add_products",
        "if j < H: add_products",
        "no_races_and_no_index and gru-T3-B4-I2-H5",
    ),
    _numba_cuda(
        "no barrier between reading a tile and writing the next one",
        NUMBA_CUDA + "tiles.py",
        "product",
        "add_products(sums, thread, tile, steps, w, k, j, H) cuda.syncthreads()",
        "add_products(sums, thread, tile, steps, w, k, j, H)",
        "more_units_than_threads and gru-T2-B1-I2-H289",
    ),
    _numba_cuda(
        "the last row of a tile takes another one's numbers",
        NUMBA_CUDA + "numbers.py",
        "tile_products",
        "tile[i, 3]",
        "tile[i, 2]",
        "no_races_and_no_index and gru-T3-B4-I2-H5",
    ),
    _numba_cuda(
        "a block past the batch computes a row",
        NUMBA_CUDA + "rows.py",
        "rows_of_block",
        "min(first + ROWS, B)",
        "first + ROWS",
        "no_races_and_no_index and rnn_tanh-T3-B4-I2-H5",
    ),
    _numba_cuda(
        "y past a row's end is not written",
        NUMBA_CUDA + "rows.py",
        "end_rows",
        "range(steps, y.shape[0])",
        "range(steps + 1, y.shape[0])",
        "every_output_and_gradient and gru-T5-B3-I4-H6-ragged-float32",
    ),
    _numba_cuda(
        "launched on the null stream",
        "rnnkit/backends/numba_cuda/launch.py",
        "launch",
        "cupy.cuda.get_current_stream().ptr",
        "0",
        "current_stream",
        "numba_cuda_host",
    ),
)

BACKEND_MUTANTS = (
    *_ORACLE,
    *_STACK,
    *_NUMBA_HOST,
    *_NUMBA_KERNELS,
    *_CUPY_KERNELS,
    *_CUPY_HOST,
    *_NUMBA_CUDA,
)
