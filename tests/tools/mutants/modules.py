"""MODULE_MUTANTS: bugs in the equations of the cells, in layers, losses and optimizers, on the CPU and on a device."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

CELLS, CHECKS, DEVICES = "rnnkit/core/cells.py", "rnnkit/core/checks.py", "rnnkit/core/devices.py"
RECURRENT, MODULE, CALLS = "rnnkit/nn/rnn_base.py", "rnnkit/nn/module.py", "rnnkit/nn/calls.py"
BIDIRECTIONAL, CONTAINERS = "rnnkit/nn/bidirectional.py", "rnnkit/nn/containers.py"
EMBEDDING, LINEAR, LOSSES = "rnnkit/nn/embedding.py", "rnnkit/nn/linear.py", "rnnkit/nn/losses.py"
OPTIMIZERS, CLIPPING, GRAD_MODE = "rnnkit/optim/optimizers.py", "rnnkit/optim/clipping.py", "rnnkit/core/grad_mode.py"

INTEROP = "tests/cuda/test_interop.py tests/cuda/test_devices.py"
SIXTEEN_BITS = "tests/api/test_dtypes.py tests/api/test_dtypes_training.py"


def _cell(name: str, at: str, old: str, new: str, cell: str, shown: str) -> Mutant:
    """A bug in the oracle's cells, found by the equations or by finite differences."""
    test = {"equations": "forward_equals_the_equations", "gradients": "every_gradient_of_a_cell"}[shown]
    return row(name, CELLS, at, old, new, "tests/oracle/test_oracle.py", f"{test} and {cell}-")


_CELLS = (
    _cell("LSTM: i and f swapped", "_lstm_forward", "i, f, g, o = np", "f, i, g, o = np", "lstm", "equations"),
    _cell("LSTM: dc not multiplied by f", "_lstm_backward", "dc * f)", "dc)", "lstm", "gradients"),
    _cell(
        "LSTM: the projection's gradient from c, not from m",
        "_lstm_forward",
        '"m": m}',
        '"m": np.tanh(c)}',
        "lstm and P2",
        "gradients",
    ),
    _cell("GRU: z and 1 - z swapped", "_gru_forward", "(1 - z) * n + z *", "z * n + (1 - z) *", "gru", "equations"),
    _cell("GRU: r left out of dgates_h", "_gru_backward", "da_n * r]", "da_n]", "gru", "gradients"),
    _cell(
        "GRU reset before: h is not reset",
        "_gru_before_forward",
        "r * h_prev",
        "h_prev",
        "gru_reset_before",
        "equations",
    ),
    _cell(
        "bias_hh is ignored", "_hidden_side", "product + weights.b_hh[first:end]", "product", "rnn_tanh", "equations"
    ),
    row(
        "RNN: relu maps NaN to 0",
        CELLS,
        "_RELU",
        "np.maximum(a, 0)",
        "np.where(a > 0, a, 0 * a.dtype.type(1))",
        "tests/cpu/test_invariances.py",
        "nan_stays and numpy and rnn_relu",
    ),
)

_LAYERS = (
    row(
        "dropout in eval mode",
        RECURRENT,
        "Recurrent.__call__",
        "if self.training and self.dropout",
        "if self.dropout",
        "tests/api/test_dropout.py",
        "eval_turns and numpy and gru",
    ),
    row(
        "gradients of a layer are overwritten, not added",
        RECURRENT,
        "Recurrent.backward",
        "total += grad",
        "total[...] = grad",
        "tests/api/test_layers.py",
        "gradients_accumulate_until and numpy and gru",
    ),
    row(
        "batch_first: outputs are time-major",
        "rnnkit/nn/layouts.py",
        "_user_layout",
        "a.swapaxes(0, 1) if self.batch_first else a",
        "a",
        "tests/api/test_layers.py",
        "batch_first and numpy and gru",
    ),
    row(
        "initial parameters have a wrong bound",
        "rnnkit/nn/rnn_parameters.py",
        "uniform_parameters",
        "math.sqrt(H)",
        "math.sqrt(I)",
        "tests/api/test_layers.py",
        "initial and lstm",
    ),
    row(
        "no_grad saves what backward needs",
        RECURRENT,
        "Recurrent.__call__",
        "keep=grad_enabled()",
        "keep=True",
        "tests/cpu/test_reentrancy.py",
        "no_grad_saves and numpy and gru",
    ),
    row(
        "x of another dtype is accepted",
        CHECKS,
        "array",
        "if value.dtype != dtype:",
        "if value.dtype.kind != dtype.kind:",
        "tests/api/test_bad_input.py",
        "test_x and gru",
    ),
    row(
        "negative lengths are accepted",
        CHECKS,
        "lengths",
        "(got < 0) | (got > T)",
        "got > T",
        "tests/api/test_bad_input.py",
        "test_lengths and gru",
    ),
    row(
        "load_state_dict: unknown names are accepted",
        "rnnkit/nn/loading.py",
        "checked_load",
        "if strict and (missing or extra):",
        "if strict and missing:",
        "tests/api/test_state_dict.py",
        "test_load_state_dict and gru",
    ),
    row(
        "Cells: gradients of h and c are swapped",
        "rnnkit/nn/step_cell.py",
        "StepCell.backward",
        "None, dstate,",
        "None, dstate[::-1],",
        "tests/api/test_steps.py",
        "values_and_gradients and numpy and LSTM",
    ),
    row(
        "Bidirectional: a row's last step is not reversed",
        BIDIRECTIONAL,
        "_ReverseRows.__call__",
        "steps < self.lengths,",
        "steps < self.lengths - 1,",
        "tests/api/test_bidirectional.py",
        "concat_is_the_bidirectional_layer and ragged and numpy and gru",
    ),
    row(
        "Bidirectional: gradients of mul are swapped",
        BIDIRECTIONAL,
        "merge_gradients",
        "d * reverse, d * forward",
        "d * forward, d * reverse",
        "tests/api/test_bidirectional.py",
        "bidirectional_gradients_by_differences and mul and numpy and gru",
    ),
    row(
        "Sequential: lengths are passed to no module",
        CONTAINERS,
        "Sequential.__call__",
        "and module.takes_lengths",
        "and not module",
        "tests/api/test_containers.py",
        "sequential_calls_its_modules and numpy",
    ),
)

_CALLS = (
    row(
        "threads share the saved values of a call",
        CALLS,
        "ThreadSlots",
        "(threading.local)",
        "",
        "tests/api/test_shared_layers.py",
        "call_of_its_own_thread and Linear",
    ),
    row(
        "backward differentiates the last of several calls",
        CALLS,
        "_recalled",
        "calls > 1",
        "calls > 9",
        "tests/api/test_several_uses.py",
        "without_call_is_refused and Linear",
    ),
    row(
        "a forked child waits for a lock of the parent's thread",
        CALLS,
        "_release_locks_in_child",
        "lock._at_fork_reinit()",
        "lock.acquire(blocking=False)",
        "tests/api/test_shared_layers.py",
        "forked_child",
    ),
    row(
        "gradients are added without a lock",
        MODULE,
        "Module._add_grad",
        "with self._adding:",
        "if True:",
        "tests/api/test_shared_layers.py",
        "hold_the_lock_while_adding",
    ),
    row(
        "no_grad: an exception from a signal handler at its end leaves it on",
        GRAD_MODE,
        "_Mode.__exit__",
        "block.lock.__exit__",
        "lambda *_: block.lock.release()",
        "tests/api/test_grad_mode.py",
        "after_an_interrupt",
    ),
)

_PIECES = (
    row(
        "Embedding: the last of an odd number of equal indices is dropped",
        EMBEDDING,
        "_sums_by_row",
        "(left[heads] > step)",
        "(left[heads] > step + 1)",
        "tests/api/test_modules.py",
        "embedding_sums_the_gradients",
    ),
    row(
        "Linear: the bias's gradient is a mean",
        LINEAR,
        "Linear.backward",
        "column_sums(rows))",
        "column_sums(rows) / len(rows))",
        "tests/api/test_modules.py",
        "linear_gradients_by_differences",
    ),
    row(
        "losses: the gradient of a mean is that of the sum",
        LOSSES,
        "_reduced",
        "narrow(d / count,",
        "narrow(d,",
        "tests/api/test_losses.py",
        "gradients_by_differences and mean and mse",
    ),
    row(
        "cross-entropy: the largest logit is not subtracted",
        LOSSES,
        "_softmax_loss",
        "flat - flat.max(axis=1, keepdims=True)",
        "flat.copy()",
        "tests/api/test_losses.py",
        "extreme_logits",
    ),
    row(
        "Adam: no bias correction of the first moment",
        OPTIMIZERS,
        "Adam._update",
        "scratch *= self.lr / (1 - b1**self.t)",
        "scratch *= self.lr",
        "tests/api/test_optimizers.py",
        "adam_by_hand",
    ),
    row(
        "optimizer state: loaded arrays are not copied",
        "rnnkit/optim/state.py",
        "_checked_array",
        'np.array(array, order="C")',
        "array",
        "tests/api/test_optimizer_state.py",
        "continues_from_a_state_dict and float32 and adam",
    ),
    row(
        "an optimizer's step stops half way at a read-only parameter",
        "rnnkit/optim/base.py",
        "Optimizer.step",
        "check_writable(name, p)",
        "pass",
        "tests/cpu/test_frozen.py",
        "nothing_writes",
    ),
    row(
        "clip_grad_norm: gradients below the limit are scaled up",
        CLIPPING,
        "clip_grad_norm",
        "not factor >= 1",
        "factor",
        "tests/api/test_optimizers.py",
        "clip_grad_norm_scales",
    ),
)

_SUMS = (
    row(
        "16 bits: losses are summed in 16 bits",
        "rnnkit/core/mixed_precision.py",
        "wide",
        "a.astype(compute_dtype(a.dtype), copy=False)",
        "a",
        SIXTEEN_BITS,
        "losses_beyond_float16 or test_losses",
    ),
    row(
        "16 bits: updates are added to the rounded parameter",
        "rnnkit/optim/base.py",
        "Optimizer._step_of",
        "wide, where=written)",
        "wide)",
        SIXTEEN_BITS,
        "steps_below_half",
    ),
    row(
        "long sums: a column is one chain of additions",
        "rnnkit/core/long_sums.py",
        "column_sums",
        "N <= COLUMN_ROWS",
        "True",
        "tests/cpu/test_sums.py",
        "linear_over and 1000000-5-3-equal",
    ),
    row(
        "long sums: a loss on a GPU is summed in float32",
        "rnnkit/core/long_sums.py",
        "total",
        "a.sum(dtype=np.float64)",
        "a.sum()",
        "tests/cuda/test_cupy_sums.py",
        "losses_are_summed",
    ),
)

_DEVICES = (
    row(
        "a layer runs on the current device, not on its own",
        DEVICES,
        "on_own_device",
        "current(module._device)",
        "current('cpu')",
        INTEROP,
        "a_layer_runs_on_its_own_device",
    ),
    row(
        "backward differentiates a call on another device",
        MODULE,
        "Module.to",
        "module._thread_slots = ThreadSlots()",
        "pass",
        INTEROP,
        "to_moves_everything or back_and_forth",
    ),
    row(
        "out of memory leaves half of a model moved",
        MODULE,
        "Module.to",
        "module._check_device(target)",
        "module._check_device(target); module._device = target",
        "tests/cuda/test_cupy_device.py",
        "out_of_memory_changes_nothing",
    ),
    row(
        "an array of another library is copied to the host",
        DEVICES,
        "adopted",
        "return cupy.from_dlpack(value)",
        "return cupy.asarray(cupy.from_dlpack(value).get())",
        INTEROP,
        "used_without_a_copy",
    ),
    row(
        "Embedding synchronises on its indices",
        EMBEDDING,
        "Embedding.__call__",
        'self.device == "cpu": check_range("indices",',
        'True: check_range("indices",',
        INTEROP,
        "does_not_synchronise",
    ),
    row(
        "cross_entropy accepts a target outside the classes",
        LOSSES,
        "_softmax_loss",
        "(picked < 0) | (picked >= K)",
        "picked < 0",
        INTEROP,
        "target_outside",
    ),
    row(
        "a layer on the CPU accepts a CuPy array",
        CHECKS,
        "located",
        "if actual != device:",
        "if actual != device and device != 'cpu':",
        INTEROP,
        "on_the_wrong_device",
    ),
)

MODULE_MUTANTS = (*_CELLS, *_LAYERS, *_CALLS, *_PIECES, *_SUMS, *_DEVICES)
