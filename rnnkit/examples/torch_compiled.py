"""A PyTorch program moved over by one line: a compiled model with a GRU inside.

torch.compile does not trace torch.nn's GRU. It breaks the graph there, so that the function that calls the layer runs
as without compilation. rnnkit's layer is one node of the graph: `fullgraph=True` compiles the whole model, forward and
backward.

    self.rnn = torch.nn.GRU(hidden, hidden)
    self.rnn = rnnkit.torch.GRU(hidden, hidden)

The model predicts the next values of noisy oscillations.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import rnnkit.torch
from rnnkit.examples import _common as common
from rnnkit.examples import _torch_common as torch_common

CHANNELS = 8


class Forecast(nn.Module):
    """Layers that torch.compile fuses, before and after a GRU. `layers` is torch.nn or rnnkit.torch."""

    def __init__(self, layers: Any, hidden: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Linear(CHANNELS, hidden), nn.GELU(), nn.LayerNorm(hidden))
        self.rnn = layers.GRU(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.after = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden), nn.GELU())
        self.head = nn.Linear(hidden, CHANNELS)

    def forward(self, x: Any) -> Any:
        """x (T, B, CHANNELS) -> the prediction of the next step's values, of the same shape."""
        embedded = self.before(x)
        y, _ = self.rnn(embedded)
        y = self.norm(y + embedded)
        return self.head(y + self.after(y))


def oscillations(steps: int, batch: int, dtype: Any) -> Any:
    """(steps, batch, CHANNELS): each row a sum of two oscillations of its own, seen by channels at different phases."""
    t = torch.arange(steps, dtype=dtype)[:, None, None]
    phases = torch.arange(CHANNELS, dtype=dtype) * (math.tau / CHANNELS)
    slow = torch.rand(batch, 1, dtype=dtype) * 0.2 + 0.05
    fast = torch.rand(batch, 1, dtype=dtype) * 0.5 + 0.3
    noise = 0.05 * torch.randn(steps, batch, CHANNELS, dtype=dtype)
    return torch.sin(slow * t + phases) + 0.5 * torch.sin(fast * t + 2 * phases) + noise


def program(layers: Any, args: argparse.Namespace) -> torch_common.Step:
    """A function that does one step of Adam and returns the loss, a mean squared error."""
    dtype = getattr(torch, args.dtype)
    model = Forecast(layers, args.hidden).to(dtype)
    compiled = torch.compile(model, backend=args.compiler, fullgraph=layers is rnnkit.torch)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)

    def step() -> float:
        x = oscillations(args.length + 1, args.batch, dtype)
        loss = nn.functional.mse_loss(compiled(x[:-1]), x[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def main(argv: Sequence[str] | None = None) -> torch_common.Comparison:
    """Trains with the layers of `--layers`, side by side if both."""
    options = torch_common.parser(__doc__, "torch_compiled", steps=100)
    options.add_argument("--batch", type=common.positive, default=16, help="rows per step (default 16)")
    options.add_argument("--length", type=common.positive, default=64, help="steps of a row (default 64)")
    options.add_argument("--hidden", type=common.positive, default=64, help="units of the GRU (default 64)")
    options.add_argument("--learning-rate", type=common.above_zero, default=3e-3, help="of Adam (default 3e-3)")
    options.add_argument("--compiler", default="inductor", help="torch.compile's backend (default inductor)")
    args = torch_common.parse(options, argv)
    return torch_common.compare("torch_compiled", lambda layers: program(layers, args), args, "rows", args.batch)


if __name__ == "__main__":
    main()
