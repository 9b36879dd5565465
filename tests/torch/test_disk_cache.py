"""PyTorch's cache of compiled graphs on disk: a graph of other sources of rnnkit is not used."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch._dynamo.utils import counters  # noqa: E402

from rnnkit.torch import operators  # noqa: E402
from tests.torch.tracing import assert_same, inputs, made  # noqa: E402

pytestmark = pytest.mark.peers


def compiled_anew(layer: Any) -> tuple[Any, dict[str, int]]:
    """Results and gradients of a compiled call as in a new process, and the hits and misses of the caches on disk."""
    torch.compiler.reset()
    counters.clear()
    x, hx = inputs(layer, 5, 3)
    x.requires_grad_()
    y, h_n = torch.compile(layer, fullgraph=True, dynamic=False)(x, hx)
    dx, *_ = torch.autograd.grad((y, h_n), [x, *layer.parameters()], (torch.ones_like(y), torch.ones_like(h_n)))
    found = dict(counters["aot_autograd"])
    return (y, h_n, dx), {key: found.get(f"autograd_cache_{key}", 0) for key in ("hit", "miss")}


def test_a_cached_graph_of_other_sources_is_not_used(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the other sources make a reserve larger, so that their graph would fail or be wrong."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    layer = made("gru_reset_before")
    first, counted = compiled_anew(layer)
    assert counted == {"hit": 0, "miss": 1}
    again, counted = compiled_anew(layer)
    assert counted == {"hit": 1, "miss": 0}
    larger = operators.stack_bytes
    monkeypatch.setattr(operators, "stack_bytes", lambda *sizes: larger(*sizes) + 64)
    operators._reserve_bytes.cache_clear()
    monkeypatch.setattr(operators, "LAYOUT", "another")
    other, counted = compiled_anew(layer)
    assert counted == {"hit": 0, "miss": 1}
    assert_same((again, other), (first, first))
    monkeypatch.undo()
    operators._reserve_bytes.cache_clear()
    torch.compiler.reset()


def test_a_graph_of_other_sources_is_refused() -> None:
    """If it is loaded in another way. Without a reserve nothing depends on them, as in an exported program."""
    layer = made("gru_reset_before")
    x, h = inputs(layer, 5, 3)
    weights = [w.detach() for w in layer._flat_weights]
    options: Any = {"cell": layer.cell_name, "backend": None, "bidirectional": False, "layout": "another"}
    assert len(torch.ops.rnnkit.forward(x, [h], weights, [], None, keep=False, **options)) == 2
    with pytest.raises(RuntimeError, match="compiled with other sources of rnnkit"):
        torch.ops.rnnkit.forward(x, [h], weights, [], None, keep=True, **options)


def test_the_digest_is_of_all_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    import rnnkit

    assert operators._layout() == operators.LAYOUT
    monkeypatch.setattr(rnnkit, "__version__", "another")
    assert operators._layout() != operators.LAYOUT
    monkeypatch.undo()
    monkeypatch.setattr(operators, "sources_digest", lambda: "another")
    assert operators._layout() != operators.LAYOUT
