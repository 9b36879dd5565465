"""truncate=k of rnnkit.torch's layers: every gradient beside a loop over torch.nn that detaches, and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

import rnnkit  # noqa: E402
import rnnkit.torch  # noqa: E402
from tests.torch.pairs import close, close_gradients, gradients, label, pair, states, total  # noqa: E402
from tests.torch.test_explain import saved_bytes  # noqa: E402

pytestmark = pytest.mark.peers
F64 = torch.float64
T, B, K = 9, 5, 3
RAGGED = [9, 3, 6, 4, 0]  # two rows end at a boundary
CONFIGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 3}),
    ("LSTM", {"num_layers": 2, "batch_first": True}),
    ("GRU", {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}),
    ("GRU", {}),
    ("RNN", {"bidirectional": True}),
)


def stepped(layer: Any, x: Any, hx: Any, lengths: Any, k: int) -> Any:
    """y and the final states of a layer of torch.nn, by single steps of layers without sublayers."""
    x = x.transpose(0, 1) if layer.batch_first else x
    n = torch.tensor([len(x)] * x.shape[1] if lengths is None else lengths)[:, None]
    start = hx if isinstance(hx, tuple) else (hx,)
    two = ("", "_reverse")[: 1 + layer.bidirectional]
    ends = []
    for m in range(layer.num_layers):
        sides = []
        for suffix in two:
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            found = {f"{name}_l0": getattr(layer, f"{name}_l{m}{suffix}", None) for name in names}
            state = tuple(s[len(ends)] for s in start)
            y, state = one_direction(layer, x, state, {k: v for k, v in found.items() if v is not None}, n, k, suffix)
            sides.append(y)
            ends.append(state)
        x = torch.cat(sides, -1)
    final = tuple(torch.stack(of_all) for of_all in zip(*ends, strict=True))
    return (x.transpose(0, 1) if layer.batch_first else x), (final if len(final) > 1 else final[0])


def one_direction(layer: Any, x: Any, state: Any, weights: Any, n: Any, k: int, reverse: Any) -> Any:
    options = {"proj_size": layer.proj_size} if layer.proj_size else {}
    step = type(layer)(x.shape[2], layer.hidden_size, bias=layer.bias, dtype=F64, **options)
    outputs: list[Any] = [None] * len(x)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        before = t + 1 if reverse else t  # the boundary that is crossed to step t
        if before % k == 0 and before not in (0, len(x)):
            state = tuple(torch.where(n > before, s.detach(), s) for s in state)
        given = tuple(s[None] for s in state)
        _, new = torch.func.functional_call(step, weights, (x[t : t + 1], given if len(given) > 1 else given[0]))
        new = new if isinstance(new, tuple) else (new,)
        state = tuple(torch.where(n > t, a[0], b) for a, b in zip(new, state, strict=True))
        outputs[t] = torch.where(n > t, state[0], 0.0)
    return torch.stack(outputs), state


class Loop(torch.nn.Module):
    """`stepped` as a module with the parameters of a layer of torch.nn."""

    def __init__(self, layer: Any, lengths: Any, k: int) -> None:
        super().__init__()
        self.__dict__["layer"] = layer
        self.lengths, self.k = lengths, k
        for name, p in layer.named_parameters():
            self.register_parameter(name, p)

    def forward(self, x: Any, hx: Any) -> Any:
        return stepped(self.layer, x, hx, self.lengths, self.k)


def an_input(layer: Any) -> Any:
    return torch.randn((B, T, 4) if layer.batch_first else (T, B, 4), dtype=F64, requires_grad=True)


@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize(("kind", "options"), CONFIGS, ids=label)
def test_gradients_are_those_of_a_loop_that_detaches(kind: str, options: dict[str, Any], lengths: Any) -> None:
    ours, theirs = pair(kind, 4, 6, **options)
    ours.backend = "numpy"
    x, hx = an_input(ours), states(ours, B, requires_grad=True)
    y, found = gradients(ours, x, hx, lengths=lengths, truncate=K)
    want, expected = gradients(Loop(theirs, lengths, K), x, hx)
    close(y, want)
    close_gradients(found, expected)
    whole, uncut = gradients(ours, x, hx, lengths=lengths)
    close(y, whole)
    assert max(float((found[name] - uncut[name]).abs().max()) for name in found) > 1e-3  # it does cut


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SLSTM"])
def test_gradients_are_those_of_the_plain_layer(kind: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "backend": "numpy"}
    ours = getattr(rnnkit.torch, kind)(4, 6, dtype=F64, **options)
    plain = getattr(rnnkit, kind)(4, 6, dtype="float64", **options)
    plain.load_state_dict({n: p.detach().numpy() for n, p in ours.named_parameters()}, cells=plain.cell.name)
    x = torch.randn(T, B, 4, dtype=F64, requires_grad=True)
    y, _ = ours(x, lengths=RAGGED, truncate=2)
    y.backward(dy := torch.randn_like(y))
    np.testing.assert_allclose(plain(x.detach().numpy(), lengths=RAGGED, truncate=2)[0], y.detach().numpy(), atol=1e-12)
    dx, _ = plain.backward(dy.numpy())
    np.testing.assert_allclose(x.grad.numpy(), dx, atol=1e-12)
    for name, p in ours.named_parameters():
        np.testing.assert_allclose(p.grad.numpy(), plain.grads[name], atol=1e-11)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_between_layers_is_that_of_the_plain_call(bidirectional: bool) -> None:
    layer = rnnkit.torch.GRU(4, 6, 3, dropout=0.5, bidirectional=bidirectional, dtype=F64, backend="numpy")
    x = torch.randn(T, B, 4, dtype=F64)
    results = []
    for truncate in (None, 4):
        torch.manual_seed(3)
        results.append(layer(x, truncate=truncate))
    close(results[1], results[0])


def test_random_masks_are_those_of_the_plain_call() -> None:
    """Of zoneout at each step's time, and one for all chunks of x, h and W_hh."""
    rates: dict[str, Any] = {
        "zoneout": (0.3, 0.2),
        "input_dropout": 0.3,
        "recurrent_dropout": 0.3,
        "weight_dropout": 0.2,
    }
    layer = rnnkit.torch.LSTM(4, 6, 2, dtype=F64, backend="numpy", **rates)
    both = rnnkit.torch.LSTM(4, 6, 2, dtype=F64, backend="numpy", bidirectional=True, zoneout=0.3).eval()
    x = torch.randn(T, B, 4, dtype=F64)
    for module in (layer, both):
        results = []
        for truncate in (None, 4):
            torch.manual_seed(3)
            results.append(module(x, lengths=RAGGED, truncate=truncate))
        close(results[1], results[0])
    with pytest.raises(NotImplementedError, match="truncate=4 in training mode of a bidirectional layer"):
        both.train()(x, truncate=4)


def test_a_packed_sequence_and_an_unbatched_input() -> None:
    layer = rnnkit.torch.GRU(4, 6, bidirectional=True, dtype=F64, backend="numpy")
    x = torch.randn(T, 3, 4, dtype=F64)
    steps = [4, 9, 3]
    padded, unpadded = (x.clone().requires_grad_() for _ in range(2))
    y, h = layer(padded, lengths=steps, truncate=K)
    packed = pack_padded_sequence(unpadded, steps, enforce_sorted=False)
    of_packed = layer(packed, truncate=K)
    again = torch.nn.utils.rnn.pad_packed_sequence(of_packed[0], total_length=T)[0]
    close((again, of_packed[1]), (y, h))
    grads = [torch.autograd.grad(total(r), i) for r, i in (((y, h), padded), ((again, of_packed[1]), unpadded))]
    close(grads[1], grads[0], "backward")
    one, of_one = layer(x[:, 1], truncate=K)
    close((one, of_one), (y[:, 1], h[:, 1]))


@pytest.mark.parametrize("k", [T, 100])
def test_no_boundary_is_the_plain_call(k: int) -> None:
    layer = rnnkit.torch.LSTM(4, 6, bidirectional=True, backend="numpy")
    x = torch.randn(T, B, 4, requires_grad=True)
    got, want = gradients(layer, x, truncate=k), gradients(layer, x)
    for name, gradient in got[1].items():
        assert torch.equal(gradient, want[1][name])
    assert torch.equal(got[0][0], want[0][0])


def test_without_gradients_it_is_one_call() -> None:
    layer = rnnkit.torch.LSTM(4, 6, bidirectional=True, backend="numpy")
    x = torch.randn(T, B, 4)
    with torch.no_grad():
        assert torch.equal(layer(x, truncate=2)[0], layer(x)[0])
        found = rnnkit.torch.explain(layer, x, truncate=2)
        assert found.kept_bytes == 0
        assert found.workspace_bytes == rnnkit.torch.explain(layer, x).workspace_bytes


@pytest.mark.parametrize("bidirectional", [False, True])
def test_all_derivatives(bidirectional: bool) -> None:
    """Second derivatives are those of the function whose gradient is the truncated one."""
    layer = rnnkit.torch.GRU(2, 2, bidirectional=bidirectional, dtype=F64, backend="numpy")
    # Past its boundary no gradient is cut if nothing before the boundary is asked for.
    early = torch.randn(2, 2, 2, dtype=F64)
    late = torch.randn(2, 2, 2, dtype=F64, requires_grad=True)

    def call(late: Any) -> Any:
        y, _ = layer(torch.cat([early, late]), lengths=[4, 3], truncate=2)
        return y[2:]

    assert torch.autograd.gradcheck(call, (late,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, (late,))


def test_transforms() -> None:
    """torch.func.grad, forward mode and vmap see the same cuts."""
    layer = rnnkit.torch.GRU(4, 6, bidirectional=True, dtype=F64, backend="numpy")
    x = torch.randn(T, 3, 4, dtype=F64, requires_grad=True)
    steps = [9, 3, 5]

    def loss(x: Any) -> Any:
        return total(layer(x, lengths=steps, truncate=K))

    (want,) = torch.autograd.grad(loss(x), x)
    close(torch.func.grad(loss)(x.detach()), want, "backward")
    direction = torch.randn_like(x)
    _, tangent = torch.func.jvp(loss, (x.detach(),), (direction,))
    close(tangent, (want * direction).sum(), "backward")
    several = torch.stack([x.detach(), 2 * x.detach()])
    close(torch.func.vmap(torch.func.grad(loss))(several)[0], want, "backward")


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
def test_compile(bidirectional: bool) -> None:
    torch._dynamo.reset()
    layer = rnnkit.torch.LSTM(4, 6, 2, bidirectional=bidirectional, dtype=F64, backend="numpy")
    x = torch.randn(T, 3, 4, dtype=F64, requires_grad=True)
    steps = torch.tensor([9, 3, 5])
    compiled = torch.compile(lambda x: layer(x, lengths=steps, truncate=4), fullgraph=True, backend="aot_eager")
    results = []
    for call in (compiled, lambda x: layer(x, lengths=steps, truncate=4)):
        result = call(x)
        results.append((result, torch.autograd.grad(total(result), [x, *layer.parameters()])))
    close(results[0][0], results[1][0])
    close(results[0][1], results[1][1], "backward")


def test_explain_counts_the_calls() -> None:
    layer = rnnkit.torch.LSTM(4, 6, 2, bidirectional=True, backend="numpy")
    x = torch.randn(T, B, 4)
    found = rnnkit.torch.explain(layer, x, truncate=4)
    assert found.notes[0] == "truncate=4: 12 calls of at most 4 steps, gradients of states cut between them"
    for lengths in (None, RAGGED):
        found = rnnkit.torch.explain(layer, x, lengths=lengths, truncate=4)
        saved = saved_bytes(lambda n=lengths: layer(x, lengths=n, truncate=4), x, *layer.parameters())
        assert found.kept_bytes == pytest.approx(saved, rel=0.05)
    with pytest.raises(TypeError, match="truncate must be None for a Cell"):
        rnnkit.torch.explain(rnnkit.torch.GRUCell(4, 6), x[0], truncate=4)


def test_bad_values() -> None:
    layer = rnnkit.torch.GRU(4, 6, backend="numpy")
    x = torch.randn(T, B, 4)
    for value, error in ((0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError), ("2", TypeError)):
        with pytest.raises(error, match="truncate must be a positive whole number, got"):
            layer(x, truncate=value)
    flags = torch.zeros(T, B, dtype=torch.bool)
    for options in ({"resets": flags}, {"mask": ~flags}):
        with pytest.raises(ValueError, match="truncate must be None with resets, reset_state or mask, got 3"):
            layer(x, truncate=3, **options)
