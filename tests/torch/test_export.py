"""torch.export with any T and B: one node, saved and loaded again, and an exported model can be trained."""

from __future__ import annotations

import io
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.torch.tracing import assert_same, inputs, made, operator_nodes  # noqa: E402

pytestmark = pytest.mark.peers
T = torch.export.Dim("T", min=1, max=1000)
B = torch.export.Dim("B", min=1, max=1000)


class Wrapped(nn.Module):
    """A layer with all of its inputs as positional arguments."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any, hx: Any, lengths: Any) -> Any:
        return self.layer(x, hx, lengths=lengths)


def exported(model: Wrapped, strict: bool = False) -> Any:
    lengths = torch.tensor([5, 0, 2])
    given = (*inputs(model.layer, 5, 3), lengths)
    of_hx = ({1: B}, {1: B}) if isinstance(given[1], tuple) else {1: B}
    return torch.export.export(model, given, dynamic_shapes=({0: T, 1: B}, of_hx, {0: B}), strict=strict)


@pytest.mark.parametrize("name", ["gru_two_layers", "lstm_projected"])
@pytest.mark.parametrize("strict", [False, True])
def test_one_node_at_any_size(name: str, strict: bool) -> None:
    model = Wrapped(made(name))
    program = exported(model, strict)
    decomposed = program.run_decompositions()
    for graph in (program.graph, decomposed.graph):
        assert operator_nodes(graph) == {"forward": 1, "keep=False": 1}
    for rows, steps in ((2, 7), (4, 1)):
        given = (*inputs(model.layer, steps, rows), torch.arange(rows) % (steps + 1))
        expected = model(*given)
        assert_same(program.module()(*given), expected)
        assert_same(decomposed.module()(*given), expected)


def test_saved_and_loaded() -> None:
    model = Wrapped(made("lstm_bidirectional"))
    file = io.BytesIO()
    torch.export.save(exported(model), file)
    file.seek(0)
    loaded = torch.export.load(file)
    given = (*inputs(model.layer, 7, 2), torch.tensor([3, 7]))
    assert_same(loaded.module()(*given), model(*given))


def test_an_exported_model_has_gradients() -> None:
    model = Wrapped(made("gru_reset_before"))
    program = exported(model).module()
    given = (*inputs(model.layer, 4, 2), torch.tensor([4, 2]))

    def gradients(module: Any) -> Any:
        y, h_n = module(*given)
        return torch.autograd.grad(y.pow(2).sum() + h_n.sum(), list(module.parameters()))

    assert_same(gradients(program), gradients(model))
