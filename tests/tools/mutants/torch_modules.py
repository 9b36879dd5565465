"""TORCH_MODULE_MUTANTS: bugs in rnnkit.torch, one or more for each suite of tests/torch that compares with torch.nn."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

ARRAYS, AUTOCAST, AUTOGRAD = "rnnkit/torch/arrays.py", "rnnkit/torch/autocast.py", "rnnkit/torch/autograd.py"
CELLS, CHECKS, EQUATIONS = "rnnkit/torch/cell_base.py", "rnnkit/torch/checks.py", "rnnkit/torch/equations.py"
LAYERS, OWN, PACKED, TRANSFORMS = (
    "rnnkit/torch/recurrent.py",
    "rnnkit/torch/own_arguments.py",
    "rnnkit/torch/packed.py",
    "rnnkit/torch/transforms.py",
)


def _row(name: str, file: str, at: str, old: str, new: str, suite: str, pick: str) -> Mutant:
    return row(f"torch: {name}", file, at, old, new, f"tests/torch/test_{suite}.py", pick)


def _truncated(name: str, at: str, old: str, new: str, pick: str = "loop_that_detaches") -> Mutant:
    file = "rnnkit/torch/truncated.py"
    return row(f"torch truncate: {name}", file, at, old, new, "tests/torch/test_truncated.py", pick)


TORCH_MODULE_MUTANTS: tuple[Mutant, ...] = (
    _row(
        "state_dicts of the two GRUs are alike",
        OWN,
        "mark_reset_before",
        "if not module.reset_after:",
        "if False:",
        "drop_in",
        "two_grus",
    ),
    _row(
        "repr leaves out reset_after",
        OWN,
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
        "t * self.B + n - first",
        "(t * self.B + n - first + (n > 0)) % (self.T * self.B)",
        "sequences",
        "test_packed",
    ),
    _row(
        "dropout of the first layer in every layer",
        OWN,
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
        "CellBase._apply",
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
    _row(
        "a packed sequence waits for the device",
        "rnnkit/torch/packed.py",
        "Layout.index",
        "non_blocking=True",
        "non_blocking=False",
        "lengths_on_a_device",
        "waits_for_nothing and lstm_projected",
    ),
    _row(
        "lengths read inside a capture",
        LAYERS,
        "Layers._lengths",
        'refuse_capture("lengths", lengths, "their values are read on the host")',
        "pass",
        "lengths_on_a_device",
        "inside_a_capture and lengths",
    ),
    _row(
        "a captured call has the arena of its stream",
        "rnnkit/backends/cupy/arena.py",
        "current",
        "if capturing(stream):",
        "if False:",
        "cuda_path",
        "captured_call and one_block",
    ),
    _row(
        "parts of a reserve on the card overlap",
        "rnnkit/backends/cupy/saved.py",
        "Memory.array",
        "+= _whole_lines(size)",
        "+= 0",
        "cuda_path",
        "runs_no_forward and one_block",
    ),
    _row(
        "a forward on the card saves beside the reserve",
        "rnnkit/backends/cupy/passes.py",
        "ForwardPass",
        "Memory(call.reserve if call.keep else None)",
        "Memory(None)",
        "cuda_path",
        "runs_no_forward and one_block",
    ),
    _row(
        "no room in a reserve on the card for ragged x",
        "rnnkit/backends/cupy/saved.py",
        "reserve_bytes",
        "if ragged:",
        "if False:",
        "cuda_path",
        "runs_no_forward and one_block",
    ),
    _row(
        "backward on the card runs the forward again",
        "rnnkit/functional/reserve.py",
        "saved_of",
        "if saved_in_reserve is not None:",
        "if False:",
        "cuda_path",
        "runs_no_forward and one_block",
    ),
    _row(
        "compiled graphs of other sources are used",
        "rnnkit/torch/dispatch.py",
        "forward",
        "layout=operators.LAYOUT",
        'layout=""',
        "disk_cache",
        "is_not_used",
    ),
    _row(
        "gradients of each element's weights added up",
        "rnnkit/torch/mapped.py",
        "asks_by_element",
        "bool(vmaps) and",
        "False and",
        "vmap",
        "weights_of_all and rnn_relu",
    ),
    _truncated(
        "a row that ends at a boundary loses the gradient of its state", "_chunks", "on_device > t1", "on_device >= t1"
    ),
    _truncated(
        "the reverse direction cuts at the other end", "_one_direction", "chunks[j - 1].continues", "chunk.continues"
    ),
    _truncated("nothing is cut in ragged batches", "_cut", "torch.where(continues, s.detach(), s)", "s"),
    _truncated("nothing is cut in full batches", "_cut", "[s.detach() for s in states]", "list(states)"),
    _truncated(
        "the initial state is cut too", "_one_direction", "    ys = []", "    ys, state = [], _cut(state, None)"
    ),
    _truncated(
        "padding is reversed too", "_chunks", "torch.where(step < steps, steps - 1 - step, step)", "step.flip(0)"
    ),
    _truncated(
        "dropout of a chunk is that of the first steps",
        "_one_direction",
        "mask[chunk.t0 : chunk.t1]",
        "mask[: chunk.t1 - chunk.t0]",
        "dropout_between",
    ),
    _truncated(
        "zoneout of a chunk is that of the first steps",
        "_noise_from",
        "torch.full((B,), t0)",
        "torch.full((B,), 0)",
        "random_masks",
    ),
)
