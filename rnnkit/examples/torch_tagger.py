"""A PyTorch program moved over by one line: a bidirectional LSTM that tags characters.

It restores capital letters. The input is a line of Python's language reference in small letters. The tag of a character
says whether it was a capital one. The text before and the text after it count. Lines of different lengths are padded,
and packed for the recurrent layers. After Susanto, Chieu and Lu, "Learning to Capitalize with
Character-Level Recurrent Neural Networks" (2016).

    self.rnn = torch.nn.LSTM(embedding, hidden, 2, batch_first=True, bidirectional=True)
    self.rnn = rnnkit.torch.LSTM(embedding, hidden, 2, batch_first=True, bidirectional=True)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from rnnkit.examples import _common as common
from rnnkit.examples import _torch_common as torch_common

EMBEDDING = 32
SHORTEST = 12  # lines with fewer characters are left out
PADDING = -100  # the tag of padding, which cross_entropy ignores


def tagged_lines() -> tuple[list[tuple[Any, Any]], int]:
    """Pairs of (characters, tags) of each line, and the number of different characters."""
    lines = [line.strip() for line in common.python_documentation().splitlines()]
    lines = [line for line in lines if len(line) >= SHORTEST and line.isascii()]
    pairs = []
    for line in lines:
        tags = torch.tensor([int(character.isupper()) for character in line])
        pairs.append((torch.tensor(list(line.lower().encode("ascii"))), tags))
    return pairs, 128


class Tagger(nn.Module):
    """Embedding, bidirectional LSTM and linear layer. `layers` is torch.nn or rnnkit.torch."""

    def __init__(self, layers: Any, vocabulary: int, hidden: int, tags: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, EMBEDDING)
        self.rnn = layers.LSTM(EMBEDDING, hidden, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, tags)

    def forward(self, codes: Any, lengths: Any) -> Any:
        """codes (B, T), lengths (B,) -> logits (B, T, tags)."""
        packed = pack_padded_sequence(self.embedding(codes), lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(y)


def program(layers: Any, args: argparse.Namespace, lines: list[tuple[Any, Any]], vocabulary: int) -> torch_common.Step:
    """A function that does one step of Adam and returns the loss, in nats per character."""
    model = Tagger(layers, vocabulary, args.hidden, 2).to(getattr(torch, args.dtype))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    rng = np.random.default_rng(args.seed)

    def step() -> float:
        chosen = [lines[k] for k in rng.integers(len(lines), size=args.batch)]
        lengths = torch.tensor([len(codes) for codes, _ in chosen])
        codes = pad_sequence([codes for codes, _ in chosen], batch_first=True)
        tags = pad_sequence([tags for _, tags in chosen], batch_first=True, padding_value=PADDING)
        logits = model(codes, lengths)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tags.flatten(), ignore_index=PADDING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def main(argv: Sequence[str] | None = None) -> torch_common.Comparison:
    """Trains with the layers of `--layers`, side by side if both."""
    options = torch_common.parser(__doc__, "torch_tagger", steps=100)
    options.add_argument("--batch", type=common.positive, default=32, help="lines per step (default 32)")
    options.add_argument("--hidden", type=common.positive, default=96, help="units of a direction (default 96)")
    options.add_argument("--learning-rate", type=common.above_zero, default=3e-3, help="of Adam (default 3e-3)")
    args = torch_common.parse(options, argv)
    lines, vocabulary = tagged_lines()
    return torch_common.compare(
        "torch_tagger", lambda layers: program(layers, args, lines, vocabulary), args, "lines", args.batch
    )


if __name__ == "__main__":
    main()
