"""TORCH_MUTANTS: bugs in rnnkit/torch. Their tests need PyTorch, which `make test-peers` installs."""

from __future__ import annotations

import importlib.util

from tests.tools.mutants.planting import Mutant, row

REPLACE, EXPLAIN = "rnnkit/torch/replace.py", "rnnkit/torch/explain.py"


def problem() -> str | None:
    """Why the tests of rnnkit.torch cannot run here, or None."""
    return None if importlib.util.find_spec("torch") else "PyTorch is not installed (make test-peers installs it)"


def _replace(name: str, at: str, old: str, new: str, pick: str, tests: str = "replace") -> Mutant:
    return row(f"torch replace: {name}", REPLACE, at, old, new, f"tests/torch/test_{tests}.py", pick)


def _explain(name: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"torch explain: {name}", EXPLAIN, at, old, new, "tests/torch/test_explain.py", pick)


def _subclasses(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"torch subclasses: {name}", file, at, old, new, "tests/torch/test_subclasses.py", pick)


def _training(name: str, file: str, at: str, old: str, new: str, tests: str, pick: str) -> Mutant:
    return row(f"torch training: {name}", file, at, old, new, f"tests/torch/test_{tests}.py", pick)


def _trajectory(name: str, old: str, new: str, pick: str) -> Mutant:
    tests = "tests/torch/test_trajectory.py"
    return row(f"torch trajectory: {name}", "rnnkit/torch/trajectory.py", "_trajectory", old, new, tests, pick)


def _flagged(name: str, at: str, old: str, new: str, pick: str, file: str = "rnnkit/torch/flagged.py") -> Mutant:
    return row(f"torch flagged: {name}", file, at, old, new, "tests/torch/test_flagged.py", pick)


_FLAGGED = (
    _flagged(
        "outputs repeat whatever is asked for", "_call", "repeat=not zero_output", "repeat=True", "projected-True"
    ),
    _flagged(
        "all groups save in one place",
        "_Call.reserves",
        "Reserve(whole.take(size))",
        "Reserve(whole.memory)",
        "parts_of_the_reserve",
    ),
    _flagged("tables are captured", "_call", "refuse_captured_tables(x)", "pass", "inside_a_capture"),
    row(
        "torch segments: tables are captured",
        "rnnkit/torch/segmented.py",
        "_on_device",
        "refuse_captured_tables(x)",
        "pass",
        "tests/torch/test_lengths_on_a_device.py",
        "inside_a_capture and input",
    ),
    _flagged(
        "a reserve has room for half of the steps",
        "_reserve_bytes",
        "MOST_PADDED * sizes.T",
        "sizes.T // 2",
        "room_for",
    ),
    _flagged(
        "a double backward gives zeros",
        "_backward_recorded",
        "if _recorded(tensors):",
        "if False:",
        "refused",
        "rnnkit/torch/flagged_transforms.py",
    ),
    _flagged(
        "the reset state has the gradient of the initial one",
        "backward",
        "*drestart[: len(reset_state)]",
        "*dstate0[: len(reset_state)]",
        "at_any_size and lstm",
    ),
    _flagged("a graph of other sources runs", "forward", "check_layout(layout)", "pass", "refused"),
    _flagged(
        "flags of batch_first are not transposed",
        "step_flags",
        "found = found.transpose(0, 1)",
        "pass",
        "at_any_size and projected",
        "rnnkit/torch/checks.py",
    ),
)
TORCH_MUTANTS: tuple[Mutant, ...] = (
    *_FLAGGED,
    _replace(
        "parametrizations lost",
        "_set_base_class",
        "is_parametrized(module)",
        "False",
        "computed_stay_computed and weight_norm",
    ),
    _replace("backend left behind", "_restoration", '"backend", "reset_after", _MARK', "_MARK,", "round_trip"),
    _replace(
        "a module at two places taken twice",
        "_recurrent",
        "found.setdefault(id(part), (part, []))",
        "found.setdefault(len(found), (part, []))",
        "model_computes_the_same",
    ),
    _replace(
        "a forward that was set is lost",
        "_own_attributes",
        '"forward" in own',
        "False",
        "cannot_be_swapped",
        "replace_left",
    ),
    _replace(
        "layers built as ours restored",
        "_restoration",
        "_MARK not in vars(layer)",
        "False",
        "built_as_ours",
        "replace_left",
    ),
    _explain(
        "the reserve left out",
        "_Noting.__torch_dispatch__",
        'results[-1].nbytes if kwargs["keep"] else 0',
        "0",
        "allocators and float32 and numba and gru",
    ),
    _explain(
        "the index of packed rows left out",
        "_explanation",
        "copied += 8 * steps",
        "copied += 0",
        "allocators and packed and numpy and rnn",
    ),
    _explain(
        "dropout drawn from the caller's generator",
        "explain",
        "torch.random.fork_rng(devices), _Noting()",
        "_Noting()",
        "draws_no_numbers",
    ),
    _subclasses(
        "torch.nn's constructor is given the mode",
        "rnnkit/torch/recurrent.py",
        "Layers.__init__",
        "nn.RNNBase.__init__(self, mode, *arguments)",
        "super().__init__(mode, *arguments)",
        "they_are_both",
    ),
    _subclasses(
        "TorchScript fails without a word about restore",
        "rnnkit/torch/cells.py",
        "LSTMCell",
        "__prepare_scriptable__ = refuse_torchscript",
        "",
        "torchscript and LSTMCell",
    ),
    _training(
        "weights that FSDP cannot free",
        "rnnkit/torch/arrays.py",
        "weight_as_array",
        "np.asarray(_Memory(weight.detach()))",
        "weight.detach().numpy()",
        "distributed",
        "resizable",
    ),
    _training(
        "the checkpoint written in place",
        "rnnkit/examples/torch_distributed.py",
        "save",
        'path.with_suffix(".new")',
        "path",
        "distributed",
        "interrupted",
    ),
    _training(
        "the optimizer not restored",
        "rnnkit/examples/torch_distributed.py",
        "load",
        'optimizer.load_state_dict(saved["optimizer"])',
        "pass",
        "distributed",
        "killed",
    ),
    _training(
        "dropout of packed rows drawn for the padding too",
        "rnnkit/torch/own_arguments.py",
        "OwnArguments._masks",
        "layout.padded(nn.functional.dropout(x.new_ones((layout.steps, width)), self.dropout))",
        "nn.functional.dropout(x.new_ones((*x.shape[:2], width)), self.dropout)",
        "programs",
        "losses_agree and characters",
    ),
    _training(
        "packed rows one step too long",
        "rnnkit/torch/packed.py",
        "Layout.lengths",
        "self._batch_sizes[:, None] > torch",
        "self._batch_sizes[:, None] >= torch",
        "libraries",
        "opacus and gru",
    ),
    row(
        "torch Cells: zoneout draws nothing in training mode",
        "rnnkit/torch/cell_base.py",
        "step_of_cell",
        "drawn_noise(cell.training)",
        "drawn_noise(False)",
        "tests/torch/test_step_options.py",
        "values_and_gradients and zoneout",
    ),
    row(
        "torch Cells: peepholes are not passed on",
        "rnnkit/torch/cell_base.py",
        "step_of_cell",
        "if cell.peephole:",
        "if False:",
        "tests/torch/test_step_options.py",
        "values_and_gradients and coupled",
    ),
    row(
        "torch: a reset state that no step takes has no gradient",
        "rnnkit/torch/recurrent.py",
        "_with_unused",
        "torch.cat((s, a[:, :0]), 1)",
        "s",
        "tests/torch/test_resets.py",
        "no_step_takes",
    ),
    row(
        "torch: flags made inside torch.func.grad are taken for mapped ones",
        "rnnkit/torch/segmented.py",
        "on_host_array",
        "functorch.is_gradtrackingtensor(value)",
        "False",
        "tests/torch/test_resets.py",
        "made_inside",
    ),
    row(
        "traced resets: the derivatives of a recorded backward are silently zero",
        "rnnkit/torch/flagged_transforms.py",
        "_BackwardAtLevel.backward",
        "raise NotImplementedError",
        "return (None,) * len(ctx.needs_input_grad)\n        raise NotImplementedError",
        "tests/torch/test_flagged.py",
        "transforms",
    ),
    _flagged(
        "lower levels do not record forward",
        "_FlaggedAtLevel.forward",
        "torch.enable_grad(), ",
        "",
        "second",
        "rnnkit/torch/flagged_transforms.py",
    ),
    _flagged(
        "lower levels do not record backward",
        "_BackwardAtLevel.forward",
        "torch.enable_grad(), ",
        "",
        "second",
        "rnnkit/torch/flagged_transforms.py",
    ),
    _trajectory("no reset state", "flagged is not None and again", "False", "bits and gru and given"),
    _trajectory("zoneout is left out", "rates is not None and rates.zones", "False", "bits and zoneout and mask"),
    _trajectory("flags compute in 16 bits", "else segmented._WIDENED", "else ()", "16_bits"),
)
