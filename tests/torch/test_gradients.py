"""Gradients of every input and weight, those of the final states included, beside torch.nn's in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

from tests.torch.pairs import (  # noqa: E402
    CELLS,
    CONFIGS,
    LAYERS,
    close,
    close_gradients,
    gradients,
    label,
    pair,
    states,
    tensors,
    total,
)

pytestmark = pytest.mark.peers
F64 = torch.float64

EACH_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
EACH_CONFIG = pytest.mark.parametrize(("kind", "options"), CONFIGS, ids=label)


def in_float64(module: Any, *inputs: Any) -> tuple[Any, ...]:
    """Copies of a module and of the inputs in float64."""

    def wide(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(wide, value))
        return value.detach().double().requires_grad_(value.requires_grad)

    return copy.deepcopy(module).double(), *map(wide, inputs)


def check(ours: Any, theirs: Any, *inputs: Any) -> None:
    """Results and all gradients of ours are those of torch.nn in float64."""
    theirs, *wide = in_float64(theirs, *inputs)
    got, want = gradients(ours, *inputs), gradients(theirs, *wide)
    close(got[0], want[0])
    close_gradients(got[1], want[1])


@EACH_DTYPE
@EACH_CONFIG
def test_layers(kind: str, options: dict[str, Any], dtype: Any) -> None:
    ours, theirs = pair(kind, 4, 6, dtype=dtype, **options)
    x = torch.randn(5, 3, 4, dtype=dtype, requires_grad=True)
    hx = states(ours, 5 if ours.batch_first else 3, dtype, requires_grad=True)
    check(ours, theirs, x, hx)
    check(ours, theirs, x)
    check(ours, theirs, x[0].detach().requires_grad_(True), states(ours, None, dtype, requires_grad=True))


@EACH_DTYPE
@pytest.mark.parametrize("kind", LAYERS)
def test_a_larger_layer(kind: str, dtype: Any) -> None:
    """Sizes at which weights are packed and the work is shared by threads."""
    ours, theirs = pair(kind, 40, 72, num_layers=2, bidirectional=True, dtype=dtype)
    x = torch.randn(30, 9, 40, dtype=dtype, requires_grad=True)
    check(ours, theirs, x, states(ours, 9, dtype, requires_grad=True))


@EACH_DTYPE
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str, bias: bool, dtype: Any) -> None:
    ours, theirs = pair(kind, 4, 6, bias=bias, dtype=dtype)
    x = torch.randn(3, 4, dtype=dtype, requires_grad=True)
    check(ours, theirs, x, states(ours, 3, dtype, requires_grad=True))
    check(ours, theirs, x)
    check(ours, theirs, x[0].detach().requires_grad_(True), states(ours, None, dtype, requires_grad=True))
    if kind == "RNNCell":
        check(*pair(kind, 4, 6, nonlinearity="relu", dtype=dtype), x, states(ours, 3, dtype, requires_grad=True))


@EACH_CONFIG
@pytest.mark.parametrize("ordered", [True, False])
def test_packed_sequences(kind: str, options: dict[str, Any], ordered: bool) -> None:
    ours, theirs = pair(kind, 4, 6, **options)
    lengths = [5, 4, 4, 1] if ordered else [1, 4, 5, 4]
    shape = (4, 5, 4) if ours.batch_first else (5, 4, 4)
    x = torch.randn(shape, dtype=F64, requires_grad=True)
    hx = states(ours, 4, requires_grad=True)
    found = []
    for module in (ours, theirs):
        packed = pack_padded_sequence(x, lengths, batch_first=ours.batch_first, enforce_sorted=ordered)
        result = module(packed, hx)
        wanted = [x, *tensors(hx), *module.parameters()]
        found.append((result, torch.autograd.grad(total(result), wanted)))
    close(found[0][0], found[1][0])
    close(found[0][1], found[1][1], "backward")


@EACH_CONFIG
def test_gradients_of_some_results_only(kind: str, options: dict[str, Any]) -> None:
    """Of y alone, of the final states alone, and of one of two states: what is not used gives no gradient."""
    ours, theirs = pair(kind, 4, 6, **options)
    x = torch.randn(5, 3, 4, dtype=F64, requires_grad=True)
    hx = states(ours, 5 if ours.batch_first else 3, requires_grad=True)
    count = len(tensors(ours(x, hx)))
    for k in range(count):
        found = []
        for module in (ours, theirs):
            result = tensors(module(x, hx))[k]
            wanted = [x, *tensors(hx), *module.parameters()]
            grads = torch.autograd.grad(total(result), wanted, allow_unused=True)
            found.append([torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True)])
        close(found[0], found[1], "backward", f"result {k}")


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_backward_adds_to_grad_in_train_and_eval(kind: str) -> None:
    ours, theirs = pair(kind, 4, 6)
    shape = (5, 3, 4) if kind in LAYERS else (3, 4)
    x = torch.randn(shape, dtype=F64, requires_grad=True)
    hx = states(ours, 3)
    for module in (ours, theirs):
        for mode in (True, False):
            module.train(mode)
            total(module(x, hx)).backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        close(p.grad, q.grad, "backward", name)


@pytest.mark.parametrize("kind", LAYERS)
def test_state_from_call_to_call(kind: str) -> None:
    """A sequence in two halves, with the state of the first handed on: gradients flow through both calls."""
    ours, theirs = pair(kind, 4, 6, num_layers=2)
    x = torch.randn(8, 3, 4, dtype=F64, requires_grad=True)
    found = []
    for module in (ours, theirs):
        y, state = module(x[:4])
        z, state = module(x[4:], state)
        found.append(torch.autograd.grad(total((y, z, state)), [x, *module.parameters()]))
    close(found[0], found[1], "backward")
    whole = ours(x)
    close(torch.cat([ours(x[:4])[0], ours(x[4:], ours(x[:4])[1])[0]]), whole[0])


@pytest.mark.parametrize("kind", CELLS)
def test_a_loop_over_a_cell(kind: str) -> None:
    ours, theirs = pair(kind, 4, 6)
    x = torch.randn(5, 3, 4, dtype=F64, requires_grad=True)
    found = []
    for module in (ours, theirs):
        state = None
        for step in x:
            state = module(step, state)
        found.append((state, torch.autograd.grad(total(state), [x, *module.parameters()])))
    close(found[0][0], found[1][0])
    close(found[0][1], found[1][1], "backward")


@pytest.mark.parametrize("kind", LAYERS)
def test_results_may_be_written_to(kind: str) -> None:
    """y and the states are separate tensors: writing to one after the call changes no other, and no gradient."""
    ours, theirs = pair(kind, 4, 6, num_layers=2)
    x = torch.randn(5, 3, 4, dtype=F64, requires_grad=True)
    hx = states(ours, 3)
    hx_before = [h.clone() for h in tensors(hx)]
    got, want = ours(x, hx), theirs(x, hx)
    with torch.no_grad():
        for k, result in enumerate(tensors(got)):
            others = [t.clone() for j, t in enumerate(tensors(got)) if j > k]
            result.detach().zero_()
            assert all(torch.equal(a, b) for a, b in zip(tensors(got)[k + 1 :], others, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors(hx), hx_before, strict=True))
    close(torch.autograd.grad(total(got), x), torch.autograd.grad(total(want), x), "backward")


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_a_changed_input_is_noticed(kind: str) -> None:
    """An input, state or weight written to between forward and backward: torch.nn's error, no wrong gradient."""
    for target in ("x", "hx", "weight"):
        ours, _ = pair(kind, 4, 6)
        x = torch.randn((5, 3, 4) if kind in LAYERS else (3, 4), dtype=F64)
        hx = states(ours, 3)
        loss = total(ours(x, hx))
        with torch.no_grad():
            changed = {"x": x, "hx": tensors(hx)[0], "weight": next(p for n, p in ours.named_parameters() if "hh" in n)}
            changed[target].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
