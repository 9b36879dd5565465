"""Tensors that no layer can read, and settings of the process that calls may not depend on."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

import rnnkit.torch as rt  # noqa: E402
from tests.torch.tracing import assert_same  # noqa: E402

pytestmark = pytest.mark.peers


def given() -> Any:
    return torch.arange(60.0).view(5, 3, 4).sin()


def test_layouts() -> None:
    """Sparse, mkldnn and nested tensors, as input, state and weight."""
    x = given()
    for odd, said in ((x.to_sparse(), "layout torch.sparse_coo"), (x.to_mkldnn(), "layout torch._mkldnn")):
        with pytest.raises(RuntimeError, match=f"input must be a dense tensor, got {said}"):
            rt.LSTM(4, 6)(odd)
    nested = torch.nested.nested_tensor([x[0], x[1, :2]])
    with pytest.raises(RuntimeError, match="input must be a dense tensor, got a nested tensor"):
        rt.GRU(4, 6)(nested)
    h = torch.zeros(1, 3, 6)
    with pytest.raises(RuntimeError, match=r"hx must be a dense tensor, got layout torch.sparse_coo"):
        rt.GRU(4, 6)(x, h.to_sparse())
    with pytest.raises(RuntimeError, match=r"hx\[1\] must be a dense tensor, got layout torch.sparse_coo"):
        rt.LSTM(4, 6)(x, (h, h.to_sparse()))
    with pytest.raises(RuntimeError, match="hx must be a dense tensor"):
        rt.GRUCell(4, 6)(x[0], h[0].to_sparse())
    layer = rt.GRU(4, 6)
    layer.weight_hh_l0 = torch.nn.Parameter(layer.weight_hh_l0.detach().to_sparse())
    with pytest.raises(RuntimeError, match="weight_hh_l0 must be a dense tensor"):
        layer(x)


def test_a_weight_whose_memory_was_freed() -> None:
    """As FSDP frees weights between calls."""
    layer = rt.GRU(4, 6)
    layer.weight_hh_l0.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="weight_hh_l0 must have memory"):
        layer(given())


@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_of_another_shape_is_named(bias: bool) -> None:
    """An LSTM without projection is not taken for one with a projection."""
    layer = rt.LSTM(4, 6, bias=bias)
    layer.weight_hh_l0 = torch.nn.Parameter(torch.ones(24, 5))
    with pytest.raises(RuntimeError, match=r"weight_hh_l0 must have the shape \(24, 6\), got \(24, 5\)"):
        layer(given())


@pytest.mark.parametrize("compiled", [False, True])
def test_lengths_that_are_no_whole_numbers(compiled: bool) -> None:
    layer = rt.GRU(4, 6)
    torch._dynamo.reset()
    call = torch.compile(layer, backend="eager", fullgraph=True) if compiled else layer
    for dtype in (torch.float32, torch.bool, torch.complex64):
        with pytest.raises(Exception, match=f"lengths must be whole numbers, got dtype {dtype}"):
            call(given(), lengths=torch.ones(3, dtype=dtype))


def test_lengths_without_values() -> None:
    layer = rt.GRU(4, 6)
    with pytest.raises(RuntimeError, match="lengths must have values, as input on cpu, got a tensor on meta"):
        layer(given(), lengths=torch.ones(3, dtype=torch.int64, device="meta"))
    with pytest.raises(TypeError, match=r"lengths must be a dense tensor, got layout torch.sparse_coo"):
        layer(given(), lengths=torch.ones(3, dtype=torch.int64).to_sparse())
    with pytest.raises(TypeError, match=r"lengths must be whole numbers, got dtype torch.float32"):
        layer(given(), lengths=torch.ones(3, requires_grad=True))


@pytest.mark.parametrize("sort", [True, False])
def test_the_default_device_and_dtype_do_not_matter(sort: bool) -> None:
    """Those of the input and of the weights do: for padded and packed input, with dropout, states and lengths."""
    layer = rt.LSTM(4, 6, 2, dropout=0.5, bidirectional=True)
    x = given()
    packed = pack_padded_sequence(x, [5, 3, 2] if sort else [2, 5, 3], enforce_sorted=sort)

    def results() -> Any:
        layer.zero_grad()
        torch.manual_seed(0)
        y, state = layer(packed)
        padded = layer(x, lengths=[2, 5, 0])
        (y.data.sum() + padded[0].sum() + padded[1][1].sum()).backward()
        return y.data, state, padded, [w.grad.clone() for w in layer.parameters()]

    expected = results()
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        found = results()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert_same(found, expected, rtol=0, atol=0)
