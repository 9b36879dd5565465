"""Layers of rnnkit.torch beside those of torch.nn with the same weights, and comparisons of what they give."""

from __future__ import annotations

from typing import Any

import torch

import rnnkit.torch
from rnnkit.testing import assert_close

LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")

# Every constructor argument that changes what a layer computes.
CONFIGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("RNN", {"bias": False, "bidirectional": True}),
    ("GRU", {}),
    ("GRU", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("GRU", {"bias": False, "num_layers": 3}),
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("LSTM", {"proj_size": 3}),
    ("LSTM", {"proj_size": 2, "num_layers": 2, "bidirectional": True, "bias": False}),
)


def label(value: Any) -> str:
    """The id of a parameter of a test."""
    if isinstance(value, dict):
        return "-".join(f"{k}={v}" for k, v in value.items()) or "plain"
    return str(value)


def pair(kind: str, *arguments: Any, dtype: Any = torch.float64, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """rnnkit.torch's module and torch.nn's, with the same weights."""
    torch.manual_seed(seed)
    theirs = getattr(torch.nn, kind)(*arguments, dtype=dtype, **options)
    ours = getattr(rnnkit.torch, kind)(*arguments, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def states(layer: Any, B: int | None, dtype: Any = torch.float64, requires_grad: bool = False) -> Any:
    """A random hx of a layer, or of a Cell: all numbers differ. B: None for unbatched."""
    rows = () if B is None else (B,)
    if isinstance(layer, torch.nn.RNNBase):
        slots = (layer.num_layers * (2 if layer.bidirectional else 1),)
        widths = (layer.proj_size or layer.hidden_size, layer.hidden_size)
        two = layer.mode == "LSTM"
    else:
        slots = ()
        widths = (layer.hidden_size,) * 2
        two = isinstance(layer, torch.nn.LSTMCell)
    made = [torch.randn(*slots, *rows, w, dtype=dtype, requires_grad=requires_grad) for w in widths]
    return tuple(made) if two else made[0]


def an_input(module: Any, B: int = 3) -> Any:
    """(5, B, I), or (B, I) for a Cell, in the dtype of the module."""
    shape = (5, B, module.input_size) if isinstance(module, torch.nn.RNNBase) else (B, module.input_size)
    return torch.randn(shape, dtype=next(module.parameters()).dtype)


def recurrent(module: Any) -> str:
    """The name of the recurrent matrix, of the last layer if there are several."""
    return [name for name, _ in module.named_parameters() if name.startswith("weight_hh")][-1]


def write_in_place(p: Any) -> None:
    """A write that autograd does not record."""
    with torch.no_grad():
        p.mul_(0.5).add_(0.125)


def tensors(value: Any) -> list[Any]:
    """The tensors of a result in order, those of nested tuples included."""
    if isinstance(value, torch.Tensor):
        return [value]
    if value is None or isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return [] if value is None else [value.data]
    return [t for part in value for t in tensors(part)]


def close(got: Any, want: Any, kind: str = "forward", name: str = "result") -> None:
    """Equal shapes, and values within the tolerance of DTYPES of the dtype of `got`. want: may have a wider dtype."""
    ours, theirs = tensors(got), tensors(want)
    assert len(ours) == len(theirs), name
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape, f"{name}[{k}]"
        dtype = str(a.dtype).removeprefix("torch.")
        assert_close(f"{name}[{k}]", a.detach().double().numpy(), b.detach().double().numpy(), dtype, kind)


def total(value: Any) -> Any:
    """A sum over a result with weights that differ from number to number: what the tests differentiate."""
    parts = []
    for k, t in enumerate(tensors(value)):
        weights = torch.linspace(-1.0, 1.5 + k, max(t.numel(), 1), dtype=t.dtype)[: t.numel()].reshape(t.shape)
        parts.append((t * weights).sum())
    return sum(parts)


def gradients(module: Any, *inputs: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The results of a call, and the gradients of `total` of them: of the inputs that ask for one, and the weights."""
    given = [t for t in tensors(inputs) if t.requires_grad]
    names = [f"input {k}" for k in range(len(given))]
    parameters = dict(module.named_parameters())
    result = module(*inputs, **options)
    found = torch.autograd.grad(total(result), [*given, *parameters.values()])
    return result, dict(zip([*names, *parameters], found, strict=True))


def close_gradients(got: dict[str, Any], want: dict[str, Any]) -> None:
    """Gradients of the same names and within the tolerances of DTYPES."""
    assert list(got) == list(want)
    for name, gradient in got.items():
        close(gradient, want[name], "backward", name)
