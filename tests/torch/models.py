"""A model with recurrent layers for the tests of rnnkit.torch.replace, and all that a model holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Model(nn.Module):
    """Recurrent layers and cells at several depths: one at two places, two with a common parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"rnn": nn.LSTM(4, 6, 2, bidirectional=True)}))
        self.cells = nn.ModuleList([nn.RNNCell(12, 6), nn.GRUCell(6, 6), nn.LSTMCell(6, 6)])
        self.decoder = nn.GRU(6, 6)
        self.same = self.decoder
        self.tied = nn.GRU(6, 6)
        self.tied.weight_hh_l0 = self.decoder.weight_hh_l0

    def forward(self, words: Any) -> Any:
        y, _ = self.encoder[1]["rnn"](self.encoder[0](self.embedding(words)))
        h = self.cells[1](self.cells[0](y[-1]))
        h, _ = self.cells[2](h)
        return self.tied(self.same(self.decoder(h[None])[0])[0])[0]


def model() -> Model:
    torch.manual_seed(0)
    return Model().double()


def words() -> Any:
    return torch.randint(9, (5, 3), generator=torch.Generator().manual_seed(1))


def gradients(module: nn.Module) -> dict[str, Any]:
    module.zero_grad()
    y = module(words())
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return {"y": y.detach(), **{name: p.grad.clone() for name, p in module.named_parameters()}}


def record(module: nn.Module) -> Any:
    """All that a module holds, by identity: for each submodule its class and all attributes."""

    def held(value: Any) -> Any:
        if isinstance(value, dict):
            return [(key, held(v)) for key, v in value.items()]
        return [held(v) for v in value] if isinstance(value, list | tuple) else id(value)

    return [(name, type(part), held(vars(part))) for name, part in module.named_modules(remove_duplicate=False)]
