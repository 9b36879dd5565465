"""What the tests of traced models share: layers to trace, their inputs, and counts of the operators' calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rnnkit.torch as rt

# name -> (the layer in float64, the number of states)
LAYERS: dict[str, tuple[Callable[[], Any], int]] = {
    "rnn_relu": (lambda: rt.RNN(4, 6, nonlinearity="relu", bias=False, dtype=torch.float64), 1),
    "gru_two_layers": (lambda: rt.GRU(4, 6, 2, bidirectional=True, dtype=torch.float64), 1),
    "gru_reset_before": (lambda: rt.GRU(4, 6, reset_after=False, dtype=torch.float64), 1),
    "lstm_bidirectional": (lambda: rt.LSTM(4, 6, bidirectional=True, dtype=torch.float64), 2),
    "lstm_projected": (lambda: rt.LSTM(4, 6, 2, proj_size=5, dtype=torch.float64), 2),
}


def made(name: str) -> Any:
    torch.manual_seed(0)
    return LAYERS[name][0]()


def inputs(layer: Any, T: int, B: int, seed: int = 1) -> tuple[Any, Any]:
    """x (T, B, I) and hx, in the layer's dtype."""
    generator = torch.Generator().manual_seed(seed)
    slots = layer.num_layers * (2 if layer.bidirectional else 1)
    dtype = layer.weight_ih_l0.dtype

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    x = normal(T, B, layer.input_size)
    h = normal(slots, B, layer.proj_size or layer.hidden_size)
    return x, (h, normal(slots, B, layer.hidden_size)) if len(layer.state_names) == 2 else h


def leaves(tree: Any) -> list[Any]:
    """The tensors of nested tuples and dicts."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def assert_same(given: Any, expected: Any, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    """Tensors of nested tuples, one by one."""
    ours, theirs = leaves(given), leaves(expected)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def operator_nodes(graph: Any) -> Counter[str]:
    """How often each of rnnkit's operators is in a torch.fx graph, and with which `keep`."""
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        name = str(node.target)
        if node.op == "call_function" and name.startswith("rnnkit."):
            short = name.split(".")[1]
            counts[short] += 1
            if short.startswith("forward"):
                counts[f"keep={node.kwargs['keep']}"] += 1
    return counts


class Calls(TorchDispatchMode):
    """Counts calls of rnnkit's operators inside the context, `counts["forward"]` and `counts["backward"]`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "rnnkit":
            self.counts[function._opname] += 1
        return function(*args, **(kwargs or {}))
