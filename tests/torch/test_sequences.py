"""Sequences: what rnnkit.torch's layers give for every layout of input, states and lengths is what torch.nn's give."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence  # noqa: E402

import rnnkit.torch  # noqa: E402
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
EACH_CONFIG = pytest.mark.parametrize(("kind", "options"), CONFIGS, ids=label)


def batch(layer: Any, T: int, B: int, requires_grad: bool = False) -> Any:
    """A random input in the layout of the layer, I = 4."""
    shape = (B, T, 4) if layer.batch_first else (T, B, 4)
    return torch.randn(shape, dtype=F64, requires_grad=requires_grad)


@EACH_CONFIG
def test_padded_and_unbatched(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(kind, 4, 6, **options)
    x = batch(ours, 5, 3)
    hx = states(ours, 3)
    for arguments in ((x,), (x, hx), (x[0, :1],), (x[:, 0].reshape(-1, 4), states(ours, None))):
        close(ours(*arguments), theirs(*arguments))


@EACH_CONFIG
@pytest.mark.parametrize("ordered", [True, False])
def test_packed(kind: str, options: dict[str, Any], ordered: bool) -> None:
    ours, theirs = pair(kind, 4, 6, **options)
    lengths = [5, 4, 4, 1] if ordered else [1, 4, 5, 4]
    x = batch(ours, 5, 4)
    packed = pack_padded_sequence(x, lengths, batch_first=ours.batch_first, enforce_sorted=ordered)
    for hx in (None, states(ours, 4)):
        y, state_n = ours(packed, hx)
        want, want_n = theirs(packed, hx)
        assert isinstance(y, PackedSequence)
        close((y, state_n), (want, want_n))
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            mine, other = getattr(y, name), getattr(want, name)
            assert mine is other is None or torch.equal(mine, other), name
        close(pad_packed_sequence(y)[0], pad_packed_sequence(want)[0])


@EACH_CONFIG
def test_lengths_in_any_order_with_zeros(kind: str, options: dict[str, Any]) -> None:
    """Each row as torch.nn gives it alone; NaN past its end is not read, and gets the gradient 0."""
    ours, theirs = pair(kind, 4, 6, **options)
    lengths = [2, 0, 5, 4]
    x = batch(ours, 5, 4)
    hx = states(ours, 4, requires_grad=True)
    rows = x if ours.batch_first else x.transpose(0, 1)
    for b, n in enumerate(lengths):
        rows[b, n:] = float("nan")
    x.requires_grad_(True)
    (y, state_n), found = gradients(ours, x, hx, lengths=torch.tensor(lengths))
    y = y if ours.batch_first else y.transpose(0, 1)
    dx = found["input 0"] if ours.batch_first else found["input 0"].transpose(0, 1)
    for b, n in enumerate(lengths):
        own = tuple(h[:, b] for h in tensors(hx))
        assert not y[b, n:].any()
        assert not dx[b, n:].any()
        got = [s[:, b] for s in tensors(state_n)]
        if n == 0:
            close(got, own)
            continue
        row = rows[b, :n].detach()
        want, want_n = theirs(row, own if len(own) == 2 else own[0])
        close(y[b, :n], want)
        close(got, tensors(want_n))
    assert all(g.isfinite().all() for g in found.values())


@EACH_CONFIG
def test_gradients_with_lengths_are_those_of_packed_sequences(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(kind, 4, 6, **options)
    lengths = [2, 3, 5, 5]
    x = batch(ours, 5, 4, requires_grad=True)
    hx = states(ours, 4, requires_grad=True)

    def through_packing(*inputs: Any) -> Any:
        packed = pack_padded_sequence(inputs[0], lengths, batch_first=ours.batch_first, enforce_sorted=False)
        y, state_n = theirs(packed, inputs[1])
        return pad_packed_sequence(y, batch_first=ours.batch_first)[0], state_n

    through_packing.named_parameters = theirs.named_parameters  # type: ignore[attr-defined]
    want = gradients(through_packing, x, hx)
    got = gradients(ours, x, hx, lengths=lengths)
    close(got[0], want[0])
    close_gradients(got[1], want[1])


@pytest.mark.parametrize("kind", LAYERS)
def test_forms_of_lengths(kind: str) -> None:
    ours, _ = pair(kind, 4, 6)
    x = batch(ours, 5, 3)
    want = ours(x, lengths=[5, 0, 2])
    for lengths in ((5, 0, 2), torch.tensor([5, 0, 2]), torch.tensor([5, 0, 2], dtype=torch.int32)):
        assert all(torch.equal(a, b) for a, b in zip(tensors(ours(x, lengths=lengths)), tensors(want), strict=True))
    assert torch.equal(ours(x, lengths=[5, 5, 5])[0], ours(x)[0])
    assert torch.equal(ours(x[:, 0], lengths=3)[0], ours(x[:, 0], lengths=[3])[0])
    close(ours(x[:, 0], lengths=torch.tensor(3))[0][:3], ours(x[:3, 0])[0])


@EACH_CONFIG
def test_no_steps_and_no_rows(kind: str, options: dict[str, Any]) -> None:
    """T = 0, which torch.nn refuses, gives the initial state; B = 0 gives empty results."""
    ours, theirs = pair(kind, 4, 6, **options)
    hx = states(ours, 3, requires_grad=True)
    x = batch(ours, 0, 3, requires_grad=True)
    (y, state_n), found = gradients(ours, x, hx)
    width = theirs(batch(ours, 1, 1))[0].shape[-1]
    assert y.shape == ((3, 0, width) if ours.batch_first else (0, 3, width))
    close(state_n, hx)
    for k, gradient in enumerate(torch.autograd.grad(total((y.detach(), hx)), tensors(hx))):
        close(found[f"input {k + 1}"], gradient, "backward")
    assert not any(found[name].any() for name, _ in ours.named_parameters())
    x = batch(ours, 5, 0)
    close(ours(x, states(ours, 0)), theirs(x, states(ours, 0)))


@pytest.mark.parametrize("kind", LAYERS)
def test_layouts_of_input_and_states(kind: str) -> None:
    ours, theirs = pair(kind, 4, 6, num_layers=2, bidirectional=True)
    wide = torch.randn(10, 6, 9, dtype=F64)
    row = torch.randn(5, 1, 4, dtype=F64)
    laid_out = {
        "strided": wide[::2, ::2, 1::2],
        "permuted": torch.randn(4, 5, 3, dtype=F64).permute(1, 2, 0),
        "transposed": torch.randn(3, 5, 4, dtype=F64).transpose(0, 1),
        "expanded": row.expand(5, 3, 4),
        "flipped and offset": wide.flip(0)[5:, 3:, 5:],
    }

    def strided(s: Any) -> Any:
        return torch.stack([s, s + 1], -1)[..., 0]

    def permuted(s: Any) -> Any:
        return s.transpose(0, 1).contiguous().transpose(0, 1)

    def expanded(s: Any) -> Any:
        return s[:, :1].expand(s.shape)

    for name, x in laid_out.items():
        for change in (strided, permuted, expanded):
            hx = tuple(change(s) for s in tensors(states(ours, 3)))
            hx = hx if kind == "LSTM" else hx[0]
            given = x.detach().requires_grad_(True)
            got, want = gradients(ours, given, hx), gradients(theirs, given, hx)
            close(got[0], want[0], name=name)
            close_gradients(got[1], want[1])


@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str) -> None:
    ours, theirs = pair(kind, 4, 6)
    x = torch.randn(3, 4, dtype=F64)
    hx = states(ours, 3)
    permuted = torch.randn(4, 3, dtype=F64).t()
    for arguments in ((x,), (x, hx), (permuted, hx), (x[:1].expand(3, 4), hx), (x[0],), (x[0], states(ours, None))):
        close(ours(*arguments), theirs(*arguments))
    without = pair(kind, 4, 6, bias=False)
    close(without[0](x, hx), without[1](x, hx))
    empty = torch.empty(0, 4, dtype=F64)
    close(ours(empty), theirs(empty))


@pytest.mark.parametrize("p", [0.3, 1.0])
@EACH_CONFIG
def test_dropout_is_torch_s_for_a_seed(kind: str, options: dict[str, Any], p: float) -> None:
    layers = max(options.get("num_layers", 1), 2)
    ours, theirs = pair(kind, 4, 6, **{**options, "num_layers": layers}, dropout=p)
    x = batch(ours, 5, 4, requires_grad=True)
    packed = pack_padded_sequence(x.detach(), [5, 4, 4, 1], batch_first=ours.batch_first)
    shuffled = pack_sequence([torch.randn(n, 4, dtype=F64) for n in (2, 5, 3)], enforce_sorted=False)
    for given in (x, packed, shuffled):
        found = []
        for module in (ours, theirs):
            torch.manual_seed(7)
            inputs = given.data if isinstance(given, PackedSequence) else given
            inputs.requires_grad_(True)
            names = ["input", *(name for name, _ in module.named_parameters())]
            result = module(given)
            after = torch.rand(1)  # as many numbers were drawn
            grads = torch.autograd.grad(total(result), [inputs, *module.parameters()])
            found.append((result, dict(zip(names, grads, strict=True)), after))
        close(found[0][0], found[1][0])
        close_gradients(found[0][1], found[1][1])
        assert torch.equal(found[0][2], found[1][2])
    ours.eval(), theirs.eval()
    close(ours(x), theirs(x))


def test_reset_before() -> None:
    """GRU with reset_after=False: the equations of Cho et al. (2014), written out."""
    torch.manual_seed(0)
    layer = rnnkit.torch.GRU(4, 6, reset_after=False, dtype=F64)
    cell = rnnkit.torch.GRUCell(4, 6, reset_after=False, dtype=F64)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cell.load_state_dict({n: getattr(layer, f"{n}_l0") for n in names} | {"reset_before": torch.tensor(True)})
    x = torch.randn(5, 3, 4, dtype=F64)
    h = torch.randn(3, 6, dtype=F64)
    y, h_n = layer(x, h[None])
    w, u, b, c = (getattr(layer, f"{n}_l0").chunk(3) for n in names)
    for t in range(5):
        close(cell(x[t], h), y[t])
        r = torch.sigmoid(x[t] @ w[0].T + b[0] + h @ u[0].T + c[0])
        z = torch.sigmoid(x[t] @ w[1].T + b[1] + h @ u[1].T + c[1])
        n = torch.tanh(x[t] @ w[2].T + b[2] + (r * h) @ u[2].T + c[2])
        h = (1 - z) * n + z * h
        close(y[t], h)
    close(h_n[0], h)
