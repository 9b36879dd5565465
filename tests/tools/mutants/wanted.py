"""WANTED_MUTANTS: bugs in leaving out gradients that nobody asks for: `dx=False`, and requires_grad in PyTorch."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

API, ON_CUDA = "tests/api/test_wanted_gradients.py", "tests/cuda/test_cupy_wanted.py"
AUTOGRAD, DISPATCH = "rnnkit/torch/autograd.py", "rnnkit/torch/dispatch.py"


def _api(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"wanted gradients: {name}", file, at, old, new, API, pick)


def _cupy(name: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"wanted gradients: {name}", "rnnkit/backends/cupy/backward_pass.py", at, old, new, ON_CUDA, pick)


def _torch(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"torch wanted gradients: {name}", file, at, old, new, "tests/torch/test_wanted_gradients.py", pick)


WANTED_MUTANTS: tuple[Mutant, ...] = (
    _api(
        "layers above the first leave dx out",
        "rnnkit/functional/stack_backward.py",
        "backward",
        "wants_dx or number > 0",
        "wants_dx or number > 1",
        "layers_above",
    ),
    _api(
        "by_scan computes dx either way",
        "rnnkit/backends/by_scan.py",
        "backward",
        "if call.wants_dx else None",
        "if call.wants_dx or True else None",
        "no_product",
    ),
    _api(
        "numba packs W_ih either way",
        "kernels/cpu/gradients.py",
        "make_gradients.gradients",
        "if a.dx:\n            panels",
        "if True:\n            panels",
        "packs_no_weights",
    ),
    _api(
        "numba adds up no weights' gradients without dx",
        "kernels/cpu/gradients.py",
        "make_gradients.gradients",
        "if not d.w_ih:",
        "if not a.dx:",
        "same_bits and numba and full",
    ),
    _api(
        "every module of a Sequential leaves dx out",
        "rnnkit/nn/containers.py",
        "Sequential.backward",
        "if module is first else {}",
        "if True else {}",
        "containers and linear",
    ),
    _api(
        "a module of a user is given dx",
        "rnnkit/nn/calls.py",
        "backward_of",
        "if not module.takes_dx:",
        "if False:",
        "containers and user",
    ),
    _api(
        "a subclass is given dx that its backward does not take",
        "rnnkit/nn/module.py",
        "Module.__init_subclass__",
        'own is not None and "takes_dx"',
        'False and "takes_dx"',
        "of_its_own",
    ),
    _api(
        "dx of a chunk is written without memory for it",
        "rnnkit/functional/chunked.py",
        "Chunked.backward",
        "if dx is not None:",
        "if True:",
        "truncated and numpy",
    ),
    _cupy(
        "the product of dx is launched either way",
        "BackwardPass.__init__",
        "if call.wants_dx else None",
        "",
        "launches",
    ),
    _cupy(
        "no sums of weights without dx",
        "BackwardPass.__init__",
        "if call.wants_dweights else None",
        "if call.wants_dx else None",
        "same_bits",
    ),
)

TORCH_WANTED_MUTANTS: tuple[Mutant, ...] = (
    _torch(
        "a compiled call with resets looks at its weights for x",
        "rnnkit/torch/flagged_transforms.py",
        "_FlaggedAtLevel.backward",
        "Wanted(asked[0]",
        "Wanted(asked[1 + states]",
        "compiled_with_resets",
    ),
    _torch("x is read at the place of lengths", AUTOGRAD, "_Layers.backward", "asked[2]", "asked[1]", "eager and GRU"),
    _torch(
        "all weights must ask",
        AUTOGRAD,
        "_Layers.backward",
        "True in asked[first:]",
        "all(asked[first:])",
        "one_weight",
    ),
    _torch(
        "the states' gradients are lost without dx",
        DISPATCH,
        "Wanted.of",
        "0 if self.dx else 1",
        "0",
        "second_order and False-True",
    ),
    _torch(
        "vmap computes what the weights' gradients cost",
        "rnnkit/torch/mapped.py",
        "backward",
        "Wanted(wanted.dx, False)",
        "Wanted(True, False)",
        "torch_func",
    ),
    _torch(
        "the operator computes dx either way",
        "rnnkit/torch/operators.py",
        "backward",
        "(*given, wants_dx, wants_dweights)",
        "(*given, True, wants_dweights)",
        "first_layer",
    ),
)
