"""PyTorch's own descriptions of its six recurrent modules (ModuleInfo), run on rnnkit.torch's modules.

`torch.testing._internal.common_modules` has, for each module, constructor arguments, inputs, a reference function, and
calls that must fail. PyTorch's test suite runs these checks over them on torch.nn's modules.
"""

from __future__ import annotations

import importlib.util
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from tests.required import unless_required

torch = pytest.importorskip("torch")
unless_required("peers", None if importlib.util.find_spec("expecttest") else "expecttest is not installed")
pytest.importorskip("expecttest")
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db  # noqa: E402
from torch.testing._internal.common_utils import freeze_rng_state, noncontiguous_like  # noqa: E402

import rnnkit.torch  # noqa: E402
from tests.torch.pairs import close, label, tensors, total  # noqa: E402

# The import switches assignments to torch.backends' flags off, for the whole process. Not `torch.backends.__allow...`:
# other modules take the place of `torch.backends`, and an assignment to their attributes changes nothing.
torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True

pytestmark = pytest.mark.peers

KINDS = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")
INFOS = {kind: next(i for i in module_db if i.module_cls is getattr(torch.nn, kind)) for kind in KINDS}
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
EACH_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class Case:
    """One ModuleInput: our module, torch.nn's in float64 with the same weights, and the inputs."""

    def __init__(self, kind: str, given: Any, dtype: Any, training: bool) -> None:
        arguments, options = given.constructor_input.args, given.constructor_input.kwargs
        self.kind = kind
        self.given = given
        self.ours = getattr(rnnkit.torch, kind)(*arguments, **options, device="cpu", dtype=dtype)
        self.theirs = getattr(torch.nn, kind)(*arguments, **options, device="cpu", dtype=dtype)
        self.theirs.load_state_dict(self.ours.state_dict())
        self.theirs.double()
        self.ours.train(training), self.theirs.train(training)
        self.arguments = given.forward_input.args
        assert not given.forward_input.kwargs


def cases(kind: str, dtype: Any, requires_grad: bool = False, training: bool = False) -> Iterator[Case]:
    """The cases of a module, packed sequences included."""
    info = INFOS[kind]
    options = {"with_packed_sequence": True} if kind in ("RNN", "GRU") else {}
    torch.manual_seed(0)
    given = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training, **options
    )
    for one in given:
        yield Case(kind, one, dtype, training)


def changed(value: Any, change: Any) -> Any:
    """The value with `change` applied to its tensors."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return value._replace(data=change(value.data))
    return tuple(changed(part, change) for part in value) if isinstance(value, tuple) else value


def wide(value: Any) -> Any:
    return changed(value, lambda t: t.detach().double().requires_grad_(t.requires_grad))


def test_there_are_cases() -> None:
    assert {kind: sum(1 for _ in cases(kind, torch.float32)) for kind in KINDS} == {
        "RNN": 64,
        "GRU": 32,
        "LSTM": 32,
        "RNNCell": 3,
        "GRUCell": 2,
        "LSTMCell": 2,
    }


@EACH_KIND
@EACH_DTYPE
@pytest.mark.parametrize("training", [True, False])
def test_forward(kind: str, dtype: Any, training: bool) -> None:
    """As torch.nn's module, and as ModuleInfo's reference function."""
    for case in cases(kind, dtype, training=training):
        with freeze_rng_state():
            result = case.ours(*case.arguments)
        close(result, case.theirs(*wide(case.arguments)))
        if case.given.reference_fn is not None and isinstance(case.arguments[0], torch.Tensor):
            reference = case.given.reference_fn(case.ours, *case.arguments)
            close(result, reference)


@EACH_KIND
@EACH_DTYPE
def test_gradients(kind: str, dtype: Any) -> None:
    for case in cases(kind, dtype, requires_grad=True, training=True):
        found = []
        for module, arguments in ((case.ours, case.arguments), (case.theirs, wide(case.arguments))):
            inputs = [t for t in tensors(arguments) if t.requires_grad]
            assert inputs
            found.append(torch.autograd.grad(total(module(*arguments)), [*inputs, *module.parameters()]))
        close(found[0], found[1], "backward", label(case.given.constructor_input.kwargs))


@EACH_KIND
@EACH_DTYPE
def test_non_contiguous_inputs(kind: str, dtype: Any) -> None:
    """Inputs and gradients of results that are not contiguous: the same results and gradients."""
    for case in cases(kind, dtype, requires_grad=True, training=True):
        strided = changed(case.arguments, lambda t: noncontiguous_like(t).detach().requires_grad_(t.requires_grad))
        found = []
        for arguments in (case.arguments, strided):
            results = tensors(case.ours(*arguments))
            torch.manual_seed(1)
            cotangents = [torch.randn_like(r) for r in results]
            if arguments is strided:
                cotangents = [noncontiguous_like(c) for c in cotangents]
            inputs = [t for t in tensors(arguments) if t.requires_grad]
            grads = torch.autograd.grad(results, [*inputs, *case.ours.parameters()], cotangents)
            found.append((results, grads))
        close(found[0][0], found[1][0])
        close(found[0][1], found[1][1], "backward")


@EACH_KIND
def test_inputs_are_not_written_to(kind: str) -> None:
    for case in cases(kind, torch.float32, requires_grad=True, training=True):
        before = [t.detach().clone() for t in tensors(case.arguments)]
        versions = [t._version for t in tensors(case.arguments)]
        result = case.ours(*case.arguments)
        total(result).backward()
        assert all(torch.equal(a, b) for a, b in zip(tensors(case.arguments), before, strict=True))
        assert [t._version for t in tensors(case.arguments)] == versions


@EACH_KIND
def test_construction_draws_and_places_parameters(kind: str) -> None:
    """`dtype` and `device` reach every parameter; a seed gives torch.nn's numbers; a default dtype is used."""
    for case in cases(kind, torch.float64):
        arguments, options = case.given.constructor_input.args, case.given.constructor_input.kwargs
        assert all(p.dtype is torch.float64 and p.is_cpu for p in case.ours.parameters())
        meta = getattr(rnnkit.torch, kind)(*arguments, **options, device="meta", dtype=torch.float16)
        assert all(p.dtype is torch.float16 and p.is_meta for p in meta.parameters())
        with torch.device("meta"):
            assert all(p.is_meta for p in getattr(rnnkit.torch, kind)(*arguments, **options).parameters())
        torch.manual_seed(6)
        ours = getattr(rnnkit.torch, kind)(*arguments, **options)
        torch.manual_seed(6)
        theirs = getattr(torch.nn, kind)(*arguments, **options)
        assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
        assert repr(ours) == repr(theirs) == str(ours)


@EACH_KIND
@pytest.mark.parametrize("training", [True, False])
def test_pickle_and_save(kind: str, training: bool) -> None:
    for case in cases(kind, torch.float32, training=training):
        result = case.ours(*case.arguments)
        file = io.BytesIO()
        torch.save(case.ours, file)
        file.seek(0)
        for made in (pickle.loads(pickle.dumps(case.ours)), torch.load(file, weights_only=False)):
            assert made.training == training
            again = made(*case.arguments)
            assert all(torch.equal(a, b) for a, b in zip(tensors(again), tensors(result), strict=True))


@EACH_KIND
def test_training_and_evaluation_are_equal_without_dropout(kind: str) -> None:
    for case in cases(kind, torch.float32):
        result = case.ours.train()(*case.arguments)
        again = case.ours.eval()(*case.arguments)
        assert all(torch.equal(a, b) for a, b in zip(tensors(again), tensors(result), strict=True))


@EACH_KIND
@pytest.mark.parametrize("swapping", [True, False])
def test_to(kind: str, swapping: bool) -> None:
    """`.to()` there and back by parameters that are replaced or swapped, with and without gradients."""
    made = list(cases(kind, torch.float32))[:6]
    torch.__future__.set_swap_module_params_on_conversion(swapping)
    try:
        for case in made:
            with torch.no_grad():
                result = case.ours(*case.arguments)
            ids = [id(p) for p in case.ours.parameters()]
            case.ours.to(torch.float64)
            close(case.ours(*wide(case.arguments)), case.theirs(*wide(case.arguments)))
            case.ours.to(torch.float32).to("cpu")
            assert [id(p) for p in case.ours.parameters()] == ids
            close(case.ours(*case.arguments), result)
            total(case.ours(*case.arguments)).backward()
            case.ours.to(torch.float64)
            assert all(p.grad.dtype is torch.float64 for p in case.ours.parameters())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@EACH_KIND
@EACH_DTYPE
def test_errors(kind: str, dtype: Any) -> None:
    """ModuleInfo's error inputs: the type of error, and the message."""
    info = INFOS[kind]
    given = info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False)
    assert given
    for one in given:
        arguments, options = (
            one.module_error_input.constructor_input.args,
            one.module_error_input.constructor_input.kwargs,
        )
        if one.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(one.error_type, match=one.error_regex):
                getattr(rnnkit.torch, kind)(*arguments, **options)
            continue
        module = getattr(rnnkit.torch, kind)(*arguments, **options)
        forward = one.module_error_input.forward_input
        with pytest.raises(one.error_type, match=one.error_regex):
            module(*forward.args, **forward.kwargs)
