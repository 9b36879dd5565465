"""torch.compile(fullgraph=True): one node a call, forward and backward, at any T and B, with eager's numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from functorch.compile import make_boxed_func  # noqa: E402
from torch import nn  # noqa: E402
from torch._dynamo.backends.common import aot_autograd  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

import rnnkit.torch as rt  # noqa: E402
from tests.torch.releases import needs  # noqa: E402
from tests.torch.tracing import LAYERS, assert_same, inputs, leaves, made, operator_nodes  # noqa: E402

pytestmark = pytest.mark.peers
# The first T and B equal no other size: a dimension with such a number would not become dynamic.
SIZES = [(9, 3), (2, 4), (7, 2)]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


class Recorded:
    """A function compiled as a whole; `nodes` counts rnnkit's operators in all graphs that were compiled."""

    def __init__(self, function: Callable[..., Any], backend: str | None = None) -> None:
        self.nodes: Counter[str] = Counter()
        whole = backend or aot_autograd(fw_compiler=self._record, bw_compiler=self._record)
        self.call = torch.compile(function, fullgraph=True, backend=whole, dynamic=True)

    def _record(self, module: Any, _: Any) -> Any:
        self.nodes.update(operator_nodes(module.graph))
        return make_boxed_func(module.forward)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.call(*arguments, **named)


def compilations() -> int:
    """How many graphs Dynamo has compiled since the test began."""
    return counters["stats"]["unique_graphs"]


def gradients(function: Callable[..., Any], parameters: Any, arguments: Any, **named: Any) -> tuple[Any, Any]:
    """The results, and the gradients of the floating-point arguments and the parameters, of a loss with all results."""
    wanted = [a.requires_grad_() for a in leaves(arguments) if a.is_floating_point()] + list(parameters)
    results = function(*arguments, **named)
    loss = sum((r * torch.linspace(-1, 1, r.numel()).view(r.shape)).sum() for r in leaves(results))
    return results, torch.autograd.grad(loss, wanted)


def assert_equal_at_all_sizes(
    compiled: Recorded, layer: Any, named: Callable[[int, int], dict[str, Any]] = lambda T, B: {}
) -> None:
    for T, B in SIZES:
        given = inputs(layer, T, B)
        ours = gradients(compiled, layer.parameters(), given, **named(T, B))
        theirs = gradients(layer, layer.parameters(), given, **named(T, B))
        assert_same(ours, theirs)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    layer = made(name)
    compiled = Recorded(layer)
    assert_equal_at_all_sizes(compiled, layer)
    assert compiled.nodes == {"forward": 1, "keep=True": 1, "backward": 1}
    assert compilations() == 1


def test_inductor() -> None:
    layer = made("lstm_bidirectional")
    assert_equal_at_all_sizes(Recorded(layer, "inductor"), layer)
    assert compilations() == 1


def test_sizes_become_dynamic_by_themselves() -> None:
    """Without `dynamic=True`, the second size compiles once more, and no other does."""
    layer = made("gru_reset_before")
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for T, B in [*SIZES, (9, 6), (11, 8)]:
        given = inputs(layer, T, B)
        assert_same(compiled(*given), layer(*given))
    assert compilations() == 2


def test_lengths() -> None:
    layer = made("gru_two_layers")
    compiled = Recorded(layer)
    assert_equal_at_all_sizes(compiled, layer, lambda T, B: {"lengths": torch.arange(B).flip(0) % (T + 1)})
    assert compiled.nodes == {"forward": 1, "keep=True": 1, "backward": 1}
    assert compilations() == 1
    x, hx = inputs(layer, 5, 3)
    with pytest.raises(ValueError, match=r"lengths must be between 0 and T = 5"):
        compiled(x, hx, lengths=torch.tensor([6, 1, 2]))


@needs("a PackedSequence in torch.compile")
@pytest.mark.parametrize(
    "stated", ["hx", "unsorted", pytest.param("nothing", marks=needs("a number read in torch.compile"))]
)
def test_packed_sequence(stated: str) -> None:
    """B is that of hx, or of the indices of an unsorted sequence, or a number that is known when the call runs."""
    layer = made("lstm_bidirectional")
    lengths, sort = ([2, 5, 4], False) if stated == "unsorted" else ([5, 4, 2], True)

    def of_packed(x: Any, h: Any, c: Any) -> Any:
        given = pack_padded_sequence(x, lengths, enforce_sorted=sort)
        return given, ((h, c),) if stated == "hx" else ()

    compiled = Recorded(lambda given, *hx: layer(given, *hx))
    x, (h, c) = inputs(layer, 5, 3)

    def through(function: Any) -> Any:
        def call(x: Any, h: Any, c: Any) -> Any:
            given, hx = of_packed(x, h, c)
            y, state_n = function(given, *hx)
            return y.data, state_n

        used = (x, h, c) if stated == "hx" else (x,)
        return gradients(lambda x, *s: call(x, *(s or (h, c))), layer.parameters(), used)

    assert_same(through(compiled), through(layer))
    assert compiled.nodes == {"forward": 1, "keep=True": 1, "backward": 1}


def test_dropout() -> None:
    layer = rt.LSTM(4, 6, 2, dropout=0.5, batch_first=True, dtype=torch.float64)
    compiled = Recorded(layer)
    x = inputs(layer, 3, 5)[0]

    def seeded(function: Any) -> Any:
        torch.manual_seed(3)
        return gradients(function, layer.parameters(), (x,))

    ours = seeded(compiled)
    assert_same(ours, seeded(layer))
    assert compiled.nodes == {"forward": 1, "keep=True": 1, "backward": 1}
    in_training = ours[0][0]
    layer.eval()
    in_evaluation = seeded(compiled)
    assert_same(in_evaluation, seeded(layer))
    assert not torch.allclose(in_training, in_evaluation[0][0])


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "frozen"])
def test_inference_keeps_nothing(how: str) -> None:
    layer = made("gru_two_layers").eval()
    x, hx = inputs(layer, 5, 3)
    compiled = Recorded(layer)
    if how == "frozen":
        layer.requires_grad_(False)
        ours = compiled(x, hx)
    else:
        with getattr(torch, how)():
            ours = compiled(x, hx)
    assert compiled.nodes == {"forward": 1, "keep=False": 1}
    assert_same(ours, layer(x, hx))


def test_same_function_with_and_without_gradients() -> None:
    layer = made("gru_reset_before")
    compiled = Recorded(layer)
    given = inputs(layer, 5, 3)
    with torch.no_grad():
        compiled(*given)
    assert_same(gradients(compiled, layer.parameters(), given), gradients(layer, layer.parameters(), given))
    assert compiled.nodes == {"forward": 2, "keep=False": 1, "keep=True": 1, "backward": 1}


class Tagger(nn.Module):
    """Embedding, a GRU over both directions, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.gru = rt.GRU(4, 6, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, tokens: Any) -> Any:
        y, h_n = self.gru(self.embedding(tokens))
        return torch.tanh(self.head(y)), h_n.relu()


def test_inside_a_larger_model() -> None:
    torch.manual_seed(0)
    model = Tagger().double()
    compiled = Recorded(model)
    tokens = torch.arange(12).view(3, 4) % 11
    assert_same(gradients(compiled, model.parameters(), (tokens,)), gradients(model, model.parameters(), (tokens,)))
    assert compiled.nodes == {"forward": 1, "keep=True": 1, "backward": 1}


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cell_in_a_loop(kind: str) -> None:
    torch.manual_seed(0)
    cell = getattr(rt, kind)(4, 6, dtype=torch.float64)

    def unroll(x: Any, *state: Any) -> Any:
        hx: Any = state[0] if len(state) == 1 else state
        outputs = []
        for step in range(3):
            hx = cell(x[step], hx)
            outputs.append(leaves(hx)[0])
        return torch.stack(outputs), hx

    compiled = Recorded(unroll)
    for B in (5, 3):
        generator = torch.Generator().manual_seed(B)
        shapes = [(3, B, 4), *[(B, 6)] * (2 if kind == "LSTMCell" else 1)]
        given = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]
        assert_same(gradients(compiled, cell.parameters(), given), gradients(unroll, cell.parameters(), given))
    assert compiled.nodes == {"forward": 3, "keep=True": 3, "backward": 3}
    assert compilations() == 1


def test_transforms_of_torch_func() -> None:
    layer = made("gru_reset_before")
    x, hx = inputs(layer, 3, 2)

    def loss(x: Any) -> Any:
        return layer(x, hx)[0].pow(2).sum()

    several = torch.stack([x, 2 * x])
    for transformed, given in ((torch.func.grad(loss), x), (torch.func.vmap(torch.func.grad(loss)), several)):
        ours = torch.compile(transformed, fullgraph=True, backend="aot_eager")(given)
        assert_same(ours, transformed(given))


def test_forward_mode_is_refused() -> None:
    layer = made("gru_reset_before")
    x, hx = inputs(layer, 3, 2)

    def tangent(x: Any) -> Any:
        return torch.func.jvp(lambda x: layer(x, hx)[0], (x,), (x,))[1]

    tangent(x)
    with pytest.raises(Exception, match=r"forward mode .* call the layers outside torch.compile"):
        torch.compile(tangent, fullgraph=True, backend="aot_eager")(x)
