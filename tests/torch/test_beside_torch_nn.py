"""What torch.nn's layers refuse and rnnkit's do: the table of docs/from-torch.md, a test a row, for both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

import rnnkit.torch as rt  # noqa: E402
from rnnkit.testing import assert_close  # noqa: E402
from tests.torch.tracing import assert_same, inputs, leaves  # noqa: E402

pytestmark = pytest.mark.peers
KINDS = ["RNN", "GRU", "LSTM"]


def pair(kind: str, **options: Any) -> tuple[Any, Any]:
    """torch.nn's layer and ours, with the same weights."""
    torch.manual_seed(0)
    theirs = getattr(nn, kind)(4, 6, dtype=torch.float64, **options)
    ours = getattr(rt, kind)(4, 6, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def refused(function: Callable[..., Any], *arguments: Any) -> bool:
    try:
        function(*arguments)
    except Exception:
        return True
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_episodes_that_begin_inside_a_sequence(kind: str) -> None:
    """torch.nn's layers take no flags: each part of a row is a call."""
    theirs, ours = pair(kind)
    x = torch.randn(5, 1, 4, dtype=torch.float64)
    resets = torch.tensor([False, False, True, False, False])[:, None]
    assert refused(lambda: theirs(x, resets=resets))
    y, _ = ours(x, resets=resets)
    torch.testing.assert_close(y, torch.cat([theirs(x[:2])[0], theirs(x[2:])[0]]))


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_as_a_whole(kind: str) -> None:
    theirs, ours = pair(kind)
    given = inputs(ours, 9, 3)
    torch._dynamo.reset()
    assert refused(torch.compile(theirs, fullgraph=True, backend="eager"), *given)
    assert_same(torch.compile(ours, fullgraph=True, backend="eager")(*given), theirs(*given))


@pytest.mark.parametrize("kind", KINDS)
def test_exported_with_any_number_of_steps(kind: str) -> None:
    theirs, ours = pair(kind)
    x, _ = inputs(ours, 9, 3)
    longer, _ = inputs(ours, 12, 3)
    shapes = ({0: torch.export.Dim("T", min=1, max=100)},)

    def through(layer: Any) -> Any:
        return torch.export.export(layer, (x,), dynamic_shapes=shapes, strict=False).run_decompositions().module()

    assert refused(lambda: through(theirs)(longer))
    assert_same(through(ours)(longer), theirs(longer))


@pytest.mark.parametrize("kind", KINDS)
def test_vmap(kind: str) -> None:
    theirs, ours = pair(kind)
    xs = torch.stack([inputs(ours, 5, 3, seed)[0] for seed in (1, 2)])
    expected = [torch.stack(parts) for parts in zip(*[leaves(theirs(x)) for x in xs], strict=True)]
    assert refused(torch.func.vmap(theirs), xs)
    assert_same(torch.func.vmap(ours)(xs), expected)


def test_forward_mode() -> None:
    """torch.nn's LSTM refuses it in float32, where oneDNN runs it, and has it in float64."""
    theirs, ours = pair("LSTM")
    x, _ = inputs(ours, 3, 2)

    def tangent(layer: Any, x: Any) -> Any:
        return torch.func.jvp(lambda x: layer(x)[0], (x,), (x,))[1]

    expected = tangent(theirs, x)
    assert_same(tangent(ours, x), expected)
    assert refused(tangent, theirs.float(), x.float())
    assert_close("tangent", tangent(ours.float(), x.float()).detach(), expected.detach(), "float32", "backward")


def test_autocast_gives_one_dtype() -> None:
    given: dict[str, set[Any]] = {"torch.nn": set(), "rnnkit": set()}
    for kind in KINDS:
        layers = pair(kind)
        for whose, layer in zip(given, layers, strict=True):
            # On a processor without AVX-512, oneDNN has no bfloat16 for torch.nn.LSTM, which raises an error.
            tried = suppress(RuntimeError) if whose == "torch.nn" and kind == "LSTM" else nullcontext()
            with torch.autocast("cpu", torch.bfloat16), tried:
                given[whose].add(layer.float()(torch.ones(5, 3, 4))[0].dtype)
    assert given == {"torch.nn": {torch.bfloat16, torch.float32}, "rnnkit": {torch.bfloat16}}


@pytest.mark.parametrize("kind", KINDS)
def test_no_steps(kind: str) -> None:
    """T = 0: y is empty, and the final states are the initial ones."""
    theirs, ours = pair(kind)
    x, hx = inputs(ours, 0, 3)
    assert refused(theirs, x, hx)
    y, state_n = ours(x, hx)
    assert y.shape == (0, 3, 6)
    assert_same(state_n, hx)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_with_zeros_in_any_order(kind: str) -> None:
    theirs, ours = pair(kind)
    x, hx = inputs(ours, 5, 3)
    lengths = [2, 0, 5]
    assert refused(lambda: theirs(pack_padded_sequence(x, lengths, enforce_sorted=False)))
    y, state_n = ours(x, hx, lengths=lengths)
    assert (y[2:, 0] == 0).all()
    assert (y[:, 1] == 0).all()
    for state, start in zip(leaves(state_n), leaves(hx), strict=True):
        assert_same(state[:, 1], start[:, 1])
    row = (hx[0][:, :1], hx[1][:, :1]) if kind == "LSTM" else hx[:, :1]
    assert_same((y[:2, :1], [s[:, :1] for s in leaves(state_n)]), theirs(x[:2, :1], row))


def test_packing_inside_a_compiled_model() -> None:
    """torch.nn needs a packed sequence for lengths, which cannot be made there."""
    theirs, ours = pair("GRU")
    x, _ = inputs(ours, 5, 3)
    lengths = torch.tensor([2, 4, 5])
    torch._dynamo.reset()

    def packed(x: Any, lengths: Any) -> Any:
        return theirs(pack_padded_sequence(x, lengths, enforce_sorted=False))[1]

    assert refused(torch.compile(packed, fullgraph=True, backend="eager"), x, lengths)
    compiled = torch.compile(lambda x, n: ours(x, lengths=n)[1], fullgraph=True, backend="eager")
    assert_same(compiled(x, lengths), packed(x, lengths))
