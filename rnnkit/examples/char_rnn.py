"""A character model: it reads text character by character, predicts the next one, and generates text.

The text is Python's language reference, which is part of every CPython. Each layer stores its state:

    y = rnn.step(x)                               # one character in, W_hy h out
    y1 = rnn1.step(x); y = rnn2.step(y1)          # stacked

Training splits the text into chunks. Backward covers the steps of one chunk. The state is passed to the next chunk as a
constant: truncated backpropagation through time. Gradients are clipped to [-5, 5], and Adagrad makes the step. After
Karpathy, "The Unreasonable Effectiveness of Recurrent Neural Networks" (2015).
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import rnnkit
from rnnkit.examples import _common as common

CELLS = {"rnn": rnnkit.RNN, "gru": rnnkit.GRU, "lstm": rnnkit.LSTM}
SMOOTH = 100  # number of chunks that the smoothed loss is the mean of
CLEARLY = 0.5  # "clearly below" the unigram entropy: by at least this many nats per character


@dataclass
class Result:
    """Loss per chunk in nats per character, the text's unigram entropy, the generated text, shapes and figures."""

    losses: list[float] = field(default_factory=list)
    unigram_entropy: float = 0.0
    sample: str = ""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    figures: list[Path] = field(default_factory=list)

    @property
    def smoothed(self) -> float:
        """Mean loss of the last SMOOTH chunks."""
        return float(np.mean(self.losses[-SMOOTH:]))

    @property
    def below(self) -> float:
        """The unigram entropy minus the smoothed loss, in nats per character."""
        return self.unigram_entropy - self.smoothed


class CharLayer(rnnkit.Module):
    """A recurrent layer that stores its state, with outputs y = W_hy h + b_y."""

    def __init__(self, cell: str, inputs: int, hidden: int, outputs: int, run: common.Run) -> None:
        super().__init__(device=run.device)
        self.rnn = CELLS[cell](inputs, hidden, backend=run.backend, **run.layer)
        self.w_hy = rnnkit.Linear(hidden, outputs, **run.layer)
        self.state: Any = None  # None stands for zeros

    def children(self) -> dict[str, rnnkit.Module]:
        return {"rnn": self.rnn, "w_hy": self.w_hy}

    def __call__(self, x: Any) -> Any:
        """Several steps: x (T, B, inputs) -> y (T, B, outputs). The state advances by T steps."""
        h, self.state = self.rnn(x, self.state)
        return self.w_hy(h)

    def step(self, x: Any) -> Any:
        """One step: x (B, inputs) -> y (B, outputs). The state advances by one step."""
        return self(x[None])[0]

    def backward(self, dy: Any, dx: bool = True) -> Any:
        """dy (T, B, outputs) -> dx, or None with dx=False. The gradient of the chunk's initial state is dropped."""
        found, _ = self.rnn.backward(self.w_hy.backward(dy), dx=dx)
        return found


class CharRNN(rnnkit.Module):
    """A stack of CharLayers; the outputs of the last one are the logits of the next character."""

    def __init__(self, vocabulary: int, run: common.Run) -> None:
        super().__init__(device=run.device)
        args = run.args
        widths = [vocabulary] + [args.hidden] * (args.layers - 1) + [vocabulary]
        self.layers = [
            CharLayer(args.cell, inputs, args.hidden, outputs, run) for inputs, outputs in itertools.pairwise(widths)
        ]

    def children(self) -> dict[str, rnnkit.Module]:
        return {f"rnn{k}": layer for k, layer in enumerate(self.layers, 1)}

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    def step(self, x: Any) -> Any:
        """y1 = rnn1.step(x); y2 = rnn2.step(y1); ..."""
        for layer in self.layers:
            x = layer.step(x)
        return x

    def backward(self, dy: Any) -> Any:
        for layer in reversed(self.layers):
            dy = layer.backward(dy, dx=layer is not self.layers[0])  # the gradient of characters is not needed
        return dy

    def get_states(self) -> list[Any]:
        """The state of each layer."""
        return [layer.state for layer in self.layers]

    def set_states(self, states: Sequence[Any]) -> None:
        """Restores states of `get_states`; None stands for zeros."""
        for layer, state in zip(self.layers, states, strict=True):
            layer.state = state


@dataclass(frozen=True)
class Text:
    """A text as integers: `codes` (N,) are indices into `characters`. `entropy` is in nats per character."""

    characters: str
    codes: np.ndarray
    entropy: float

    @classmethod
    def of(cls, text: str) -> Text:
        characters, codes, counts = np.unique(list(text), return_inverse=True, return_counts=True)
        share = counts / len(text)
        return cls("".join(characters), codes, float(-(share * np.log(share)).sum()))

    def streams(self, batch: int) -> np.ndarray:
        """The codes as (N // batch, batch): each column is a contiguous part of the text."""
        return self.codes[: len(self.codes) // batch * batch].reshape(batch, -1).T


def train(model: CharRNN, text: Text, run: common.Run, result: Result) -> None:
    """Trains on `--batch` parallel streams of the text, chunk by chunk; the state passes from chunk to chunk."""
    args = run.args
    K = len(text.characters)
    streams = text.streams(args.batch)
    if len(streams) <= args.chunk:
        raise SystemExit(f"--batch {args.batch} makes streams of {len(streams)} characters: too short for --chunk")
    one_of_k = run.array(np.eye(K, dtype=np.float32))
    codes = run.array(streams)
    loss_fn = rnnkit.CrossEntropyLoss()
    optimizer = rnnkit.Adagrad(model, lr=args.learning_rate)
    at = 0
    bar = common.progress(range(1, args.steps + 1), f"{args.cell}, hidden {args.hidden}")
    for step in bar:
        if at + args.chunk + 1 > len(streams):
            at = 0
            model.set_states([None] * args.layers)  # restart every stream
        current = codes[at : at + args.chunk]
        following = codes[at + 1 : at + args.chunk + 1]
        at += args.chunk
        loss = loss_fn(model(one_of_k[current]), following)
        model.zero_grad()
        # The loss is a mean over the chunk's steps. The gradient of the sum over the steps is clipped.
        model.backward(loss_fn.backward() * args.chunk)
        rnnkit.clip_grad_value(model, 5.0)
        optimizer.step()
        result.losses.append(float(loss))
        if step % max(1, args.steps // 10) == 0:
            bar.write(f"  chunk {step:5d}: smoothed loss {result.smoothed:.3f}, {distance(result)}")


def distance(result: Result) -> str:
    """The distance of the smoothed loss from the unigram entropy, as text."""
    return f"{abs(result.below):.2f} {'below' if result.below > 0 else 'above'} the unigram entropy"


def sample(model: CharRNN, text: Text, prompt: str, length: int, run: common.Run) -> str:
    """Returns `prompt` and `length` generated characters, one per step. The model's training state is restored.

    Logits are divided by --temperature: below 1 likely characters become more likely, and towards 0 only the most
    likely one is generated.
    """
    training_states = model.get_states()
    model.set_states([None] * len(training_states))
    one_of_k = run.array(np.eye(len(text.characters), dtype=np.float32))
    generated = prompt
    with rnnkit.no_grad():
        for at in range(len(prompt) + length - 1):
            code = text.characters.index(generated[at])
            y = common.host(model.step(one_of_k[code : code + 1]))[0]
            if at < len(prompt) - 1:
                continue  # the next character is in the prompt
            logits = y.astype(np.float64) / run.args.temperature
            p = np.exp(logits - logits.max())
            generated += text.characters[run.rng.choice(len(p), p=p / p.sum())]
    model.set_states(training_states)
    return generated


def step_api(run: common.Run) -> None:
    """Compares two stacked layers that are called step by step with the same layers called on all steps at once."""
    common.heading("1. A step at a time: y1 = rnn1.step(x); y = rnn2.step(y1)")
    rnn1 = CharLayer(run.args.cell, 5, 8, 6, run)
    rnn2 = CharLayer(run.args.cell, 6, 8, 5, run)
    x = run.array(run.rng.standard_normal((4, 2, 5)), np.float32)
    by_steps = []
    for x_t in x:
        y1 = rnn1.step(x_t)
        y = rnn2.step(y1)
        by_steps.append(common.host(y))
    rnn1.state = None
    rnn2.state = None
    at_once = common.host(rnn2(rnn1(x)))
    difference = float(np.abs(at_once - by_steps).max())
    print(f"  x {x_t.shape} -> y1 {y1.shape} -> y {y.shape}, four times;")
    print(f"  all four at once: {x.shape} -> {at_once.shape}, largest difference {difference:.1e}")
    assert difference < 1e-5


def five_shapes(run: common.Run, result: Result) -> None:
    """The five kinds of input and output of a recurrent network, for B=2 rows of I=5 features."""
    common.heading("2. The five shapes of a recurrent net: batch 2, 5 features")
    layer = CharLayer(run.args.cell, 5, 8, 5, run)
    T = 4
    output_steps = 3

    def fresh(*shape: int) -> Any:
        layer.state = None
        return run.array(run.rng.standard_normal(shape), np.float32)

    x = fresh(2, 5)
    shapes = {"one to one": (x.shape, layer.step(x).shape)}

    x = fresh(2, 5)  # such as image features to a caption: each output is the next input
    outputs = [layer.step(x)]
    while len(outputs) < T:
        outputs.append(layer.step(outputs[-1]))
    shapes["one to many"] = (x.shape, np.shape([common.host(y) for y in outputs]))

    x = fresh(T, 2, 5)  # such as a sentence to its sentiment
    shapes["many to one"] = (x.shape, layer(x)[-1].shape)

    x = fresh(T, 2, 5)  # such as translation: read all steps, then generate from the final state
    outputs = [layer(x)[-1]]
    while len(outputs) < output_steps:
        outputs.append(layer.step(outputs[-1]))
    shapes["many to many"] = (x.shape, np.shape([common.host(y) for y in outputs]))

    x = fresh(T, 2, 5)  # such as the next character after every character
    shapes["many to many, synced"] = (x.shape, layer(x).shape)

    common.table(("", "input", "output"), [(name, *pair) for name, pair in shapes.items()])
    result.shapes = shapes


def options() -> argparse.ArgumentParser:
    """The program's argument parser."""
    parser = common.parser(__doc__, "char_rnn")
    parser.add_argument("--cell", choices=tuple(CELLS), default="rnn")
    parser.add_argument("--hidden", type=common.positive, default=128, help="units per layer (default 128)")
    parser.add_argument("--layers", type=common.positive, default=1, help="number of layers (default 1)")
    parser.add_argument("--batch", type=common.positive, default=32, help="parallel streams (default 32)")
    parser.add_argument("--chunk", type=common.positive, default=25, help="steps per chunk (default 25)")
    parser.add_argument("--steps", type=common.positive, default=2000, help="chunks to train on (default 2000)")
    parser.add_argument(
        "--learning-rate", type=common.above_zero, default=0.02, help="learning rate of Adagrad (default 0.02)"
    )
    parser.add_argument("--temperature", type=common.above_zero, default=0.7, help="sampling temperature (default 0.7)")
    parser.add_argument("--length", type=common.positive, default=500, help="characters to generate (default 500)")
    return parser


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the program; `argv` as on the command line."""
    run = common.start(options(), argv)
    args = run.args
    result = Result()
    step_api(run)
    five_shapes(run, result)

    common.heading("3. Training on Python's language reference")
    text = Text.of(common.python_documentation())
    K = len(text.characters)
    result.unigram_entropy = text.entropy
    print(f"  {len(text.codes):,} characters, {K} different ones. Losses in nats per character (ln 2 nats are a bit):")
    print(
        f"  {math.log(K):.3f} for uniform guesses; {text.entropy:.3f} for the frequency of each: the unigram entropy."
    )
    model = CharRNN(K, run)
    print(f"  Before training it generates: {sample(model, text, 'The ', 60, run)!r}")
    train(model, text, run, result)

    common.heading(f"4. A sample, at temperature {args.temperature:g}")
    result.sample = sample(model, text, "The ", args.length, run)
    print(result.sample)
    common.heading("5. Comparison with the unigram entropy")
    print(f"  smoothed loss {result.smoothed:.3f} nats, unigram entropy {text.entropy:.3f}: {distance(result)}.")
    if result.below >= CLEARLY:
        print("  Clearly below: it uses the preceding text, not only the frequency of each character.")
    else:
        print(f"  Not clearly below (by {CLEARLY} nats): use more --steps.")
    result.figures.append(
        common.loss_curve(
            run.out / "char_rnn.png",
            {"loss of each chunk": result.losses},
            f"char RNN ({args.cell}, hidden {args.hidden}) on Python's language reference",
            "chunk",
            "nats per character",
            {"unigram entropy": text.entropy},
            smooth=SMOOTH,
        )
    )
    return result


if __name__ == "__main__":
    main()
