"""TORCH_MODULE_MUTANTS: bugs in rnnkit.torch, one or more for each suite of tests/torch that compares with torch.nn."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

ARRAYS, AUTOCAST, AUTOGRAD = "rnnkit/torch/arrays.py", "rnnkit/torch/autocast.py", "rnnkit/torch/autograd.py"
CELLS, CHECKS, EQUATIONS = "rnnkit/torch/cells.py", "rnnkit/torch/checks.py", "rnnkit/torch/equations.py"
LAYERS, PACKED, TRANSFORMS = "rnnkit/torch/recurrent.py", "rnnkit/torch/packed.py", "rnnkit/torch/transforms.py"


def _row(name: str, file: str, at: str, old: str, new: str, suite: str, pick: str) -> Mutant:
    return row(f"torch: {name}", file, at, old, new, f"tests/torch/test_{suite}.py", pick)


TORCH_MODULE_MUTANTS: tuple[Mutant, ...] = (
    _row(
        "state_dicts of the two GRUs are alike",
        LAYERS,
        "mark_reset_before",
        "if not module.reset_after:",
        "if False:",
        "drop_in",
        "two_grus",
    ),
    _row(
        "repr leaves out reset_after",
        LAYERS,
        "own_repr",
        '", reset_after=False"',
        '""',
        "drop_in",
        "repr_shows",
    ),
    _row(
        "hx of another dtype is read as if it had the input's",
        CHECKS,
        "one_kind",
        "other.dtype is not dtype or other.device != device",
        "other.device != device",
        "arguments",
        "calls_of",
    ),
    _row(
        "an error does not say what it got",
        CHECKS,
        "options",
        "must be greater than zero, got {size}",
        "must be greater than zero",
        "arguments",
        "construction_of_layers",
    ),
    _row(
        "rows of a PackedSequence that is not sorted keep their order",
        LAYERS,
        "_forward_packed",
        "if unsorted_indices is not None:",
        "if False:",
        "sequences",
        "test_packed",
    ),
    _row(
        "row-steps of a PackedSequence one place further",
        PACKED,
        "index",
        "n - first)",
        "n - first + (n > 0)) % (self.T * self.B)",
        "sequences",
        "test_packed",
    ),
    _row(
        "dropout of the first layer in every layer",
        LAYERS,
        "_masks",
        "return masks",
        "return masks[:1] * len(masks)",
        "sequences",
        "dropout and GRU and bias",
    ),
    _row(
        "transposed weights are not noticed",
        ARRAYS,
        "are_of",
        "w.data_ptr() if w.is_contiguous() else None",
        "w.data_ptr()",
        "weights",
        "transposed_where",
    ),
    _row(
        "weights of a wrong shape are read",
        CHECKS,
        "weights",
        "if tuple(weight.shape) != shape:",
        "if False:",
        "weights",
        "bad_weights",
    ),
    _row(
        "weights of the last call are used",
        LAYERS,
        "_weights",
        "self._update_flat_weights()",
        "pass",
        "reparametrized",
        "functional_call or parametrize",
    ),
    _row(
        "weak references stay while parameters are swapped",
        CELLS,
        "_Cell._apply",
        "forget(self.parameters(recurse=False))",
        "pass",
        "copies",
        "swap",
    ),
    _row(
        "the gradient of the final state is left out",
        AUTOGRAD,
        "_Layers.backward",
        "*grads[:-1], *tensors",
        "grads[0], *[None] * stack.ends, *tensors",
        "gradients",
        "test_layers and LSTM",
    ),
    _row(
        "double backward of another GRU",
        EQUATIONS,
        "_gru",
        "(1 - z) * n + z * h",
        "z * n + (1 - z) * h",
        "derivatives",
        "gradgradcheck and GRU",
    ),
    _row(
        "forward mode does not end at a row's length",
        EQUATIONS,
        "_direction",
        "t < lengths",
        "t <= lengths",
        "derivatives",
        "forward_mode and RNN",
    ),
    _row(
        "elements of vmap in another order",
        TRANSFORMS,
        "_forward_vmap",
        "return first.movedim(0, batch)",
        "return first.flip(0).movedim(0, batch)",
        "derivatives",
        "vmap and GRU",
    ),
    _row(
        "autocast leaves the states as they are",
        AUTOCAST,
        "under_autocast",
        "tuple([_cast(s, dtype) for s in states])",
        "states",
        "autograd",
        "autocast",
    ),
    _row(
        "a Cell's batch size is not checked",
        CELLS,
        "_check",
        "if state.shape[0] != x.shape[0]:",
        "if False:",
        "module_info",
        "errors and Cell",
    ),
    _row(
        "an unbatched state is not squeezed",
        LAYERS,
        "Layers.forward",
        "tuple([s.squeeze(1) for s in state_n])",
        "tuple(state_n)",
        "module_info",
        "test_forward and GRU",
    ),
)
