"""A PyTorch program moved over by one line: an LSTM that predicts the next character of packed lines of text.

The text is Python's language reference, which is part of every CPython. A batch holds lines of different lengths as a
PackedSequence. The model has two layers with dropout between them. With torch.nn in place of rnnkit.torch it is the
same program, with the same losses:

    self.rnn = torch.nn.LSTM(embedding, hidden, 2, dropout=0.1)
    self.rnn = rnnkit.torch.LSTM(embedding, hidden, 2, dropout=0.1)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from rnnkit.examples import _common as common
from rnnkit.examples import _torch_common as torch_common

EMBEDDING = 32
SHORTEST = 12  # lines with fewer characters are left out


@dataclass(frozen=True)
class Text:
    """Lines as integers, which are indices into `characters`."""

    characters: str
    lines: list[Any]

    @classmethod
    def of_python(cls) -> Text:
        """The lines of Python's language reference."""
        text = common.python_documentation()
        characters = "".join(sorted(set(text)))
        codes = {character: k for k, character in enumerate(characters)}
        lines = [line.strip() for line in text.splitlines()]
        return cls(characters, [torch.tensor([codes[c] for c in line]) for line in lines if len(line) >= SHORTEST])

    def batch(self, count: int, seed: Any) -> list[Any]:
        """`count` lines, which depend on the seed only."""
        chosen = np.random.default_rng(seed).integers(len(self.lines), size=count)
        return [self.lines[k] for k in chosen]


class Characters(nn.Module):
    """Embedding, LSTM and linear layer. `layers` is torch.nn or rnnkit.torch."""

    def __init__(self, layers: Any, vocabulary: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, EMBEDDING)
        self.rnn = layers.LSTM(EMBEDDING, hidden, 2, dropout=dropout)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, lines: Sequence[Any]) -> tuple[Any, Any]:
        """The logits of each next character, (N, vocabulary), and which it was, (N,)."""
        current = pack_sequence([line[:-1] for line in lines], enforce_sorted=False)
        following = pack_sequence([line[1:] for line in lines], enforce_sorted=False)
        y, _ = self.rnn(current._replace(data=self.embedding(current.data)))
        return self.head(y.data), following.data


def program(layers: Any, args: argparse.Namespace, text: Text) -> torch_common.Step:
    """A function that does one step of Adam and returns the loss, in nats per character."""
    model = Characters(layers, len(text.characters), args.hidden, dropout=0.1).to(getattr(torch, args.dtype))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    done = 0

    def step() -> float:
        nonlocal done
        logits, targets = model(text.batch(args.batch, (args.seed, done)))
        loss = nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done += 1
        return float(loss.detach())

    return step


def main(argv: Sequence[str] | None = None) -> torch_common.Comparison:
    """Trains with the layers of `--layers`, side by side if both."""
    options = torch_common.parser(__doc__, "torch_characters", steps=150)
    options.add_argument("--batch", type=common.positive, default=32, help="lines per step (default 32)")
    options.add_argument("--hidden", type=common.positive, default=128, help="units of a layer (default 128)")
    options.add_argument("--learning-rate", type=common.above_zero, default=3e-3, help="of Adam (default 3e-3)")
    args = torch_common.parse(options, argv)
    text = Text.of_python()
    return torch_common.compare(
        "torch_characters", lambda layers: program(layers, args, text), args, "lines", args.batch
    )


if __name__ == "__main__":
    main()
