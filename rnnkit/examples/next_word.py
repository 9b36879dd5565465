"""RNN and LSTM argument by argument; then both predict the last of three words in six sentences.

Names, defaults, shapes and the initial distribution are those of torch.nn.RNN and torch.nn.LSTM, so code that was
written for those is the same here.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import rnnkit
from rnnkit.examples import _common as common

SENTENCES = ("i like dog", "i love coffee", "i hate milk", "you like cat", "you love milk", "you hate coffee")
PUBLISHED = {"TextRNN": (0.409607, 0.008780), "TextLSTM": (0.301909, 0.006636)}

MEANINGS = {
    "input_size": "features of x at each step (I)",
    "hidden_size": "features of the state (H): Keras' units",
    "num_layers": "layers stacked on each other (L)",
    "nonlinearity": "tanh or relu (RNN alone)",
    "bias": "whether there are bias_ih and bias_hh",
    "batch_first": "x and y are (B, T, ·) instead of (T, B, ·); states are not affected",
    "dropout": "share of outputs zeroed between layers, while training",
    "bidirectional": "a second pass from the end; doubles y's width (D = 2)",
}


@dataclass
class Result:
    """Shapes by configuration, losses per epoch and predicted last words by model, and the figures."""

    shapes: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    predictions: dict[str, list[str]] = field(default_factory=dict)
    figures: list[Path] = field(default_factory=list)


def arguments() -> None:
    """Prints the arguments that both layers share, with the defaults in the code."""
    common.heading("1. Every argument of RNN and LSTM")
    defaults = inspect.signature(rnnkit.RNN).parameters
    rows = []
    for name, meaning in MEANINGS.items():
        default = defaults[name].default
        rows.append((name, "required" if default is inspect.Parameter.empty else repr(default), meaning))
    common.table(("argument", "default", "meaning"), rows)
    print("  LSTM has no nonlinearity, and proj_size=0 (project h to fewer features).")
    print("  Beyond torch: dtype, device, backend, and rng for the initial weights and dropout.")


def shapes(run: common.Run, result: Result) -> None:
    """Shapes of all inputs and outputs, for T=5 steps, B=3 rows, I=4 features, H=6 units."""
    common.heading("2. Shapes for T=5 steps, B=3 sequences, I=4 features, H=6 units")
    T = 5
    B = 3
    I = 4
    H = 6
    settings: tuple[dict[str, Any], ...] = (
        {},
        {"num_layers": 2},
        {"bidirectional": True},
        {"num_layers": 2, "bidirectional": True},
        {"batch_first": True},
    )
    rows = []
    for kind in (rnnkit.RNN, rnnkit.LSTM):
        for setting in settings:
            layer = kind(I, H, backend=run.backend, **setting, **run.layer)
            slots = layer.num_layers * layer.num_directions  # one state per layer and direction
            x = run.array(run.rng.standard_normal((B, T, I) if layer.batch_first else (T, B, I)), np.float32)
            zeros = [run.array(np.zeros((slots, B, H), np.float32)) for _ in layer.cell.states]
            y, state = layer(x)
            y_too, _ = layer(x, tuple(zeros) if kind is rnnkit.LSTM else zeros[0])
            assert np.array_equal(common.host(y), common.host(y_too)), "the default state is zero"
            h_n, c_n = state if kind is rnnkit.LSTM else (state, None)
            by_name = {"input": x.shape, "h_0": zeros[0].shape, "output": y.shape, "h_n": h_n.shape}
            if c_n is not None:
                by_name |= {"c_0": zeros[1].shape, "c_n": c_n.shape}
            options = ", ".join(f"{k}={v}" for k, v in setting.items()) or "defaults"
            result.shapes[f"{kind.__name__}: {options}"] = by_name
            names = ("input", "h_0", "c_0", "output", "h_n", "c_n")
            rows.append((kind.__name__, options, *(by_name.get(n, "-") for n in names)))
    common.table(("layer", "settings", "input", "h_0", "c_0", "output", "h_n", "c_n"), rows)
    print("  The default of h_0 and c_0 is zero: checked in each row.")


def effects(run: common.Run) -> None:
    """The effect of the arguments that do not change the shapes: nonlinearity, bias, dropout."""
    common.heading("3. Arguments that do not change the shapes")
    x = run.array(run.rng.standard_normal((5, 3, 4)), np.float32)
    relu = rnnkit.RNN(4, 6, nonlinearity="relu", backend=run.backend, **run.layer)
    tanh = rnnkit.RNN(4, 6, backend=run.backend, **run.layer)
    plain = rnnkit.LSTM(4, 6, bias=False, backend=run.backend, **run.layer)
    dropped = rnnkit.LSTM(4, 6, num_layers=2, dropout=0.5, backend=run.backend, **run.layer)
    lowest = float(relu(x)[0].min())
    highest = float(abs(tanh(x)[0]).max())
    once, again = (common.host(dropped(x)[0]) for _ in range(2))
    dropped.eval()
    eval_once, eval_again = (common.host(dropped(x)[0]) for _ in range(2))
    assert lowest >= 0
    assert highest < 1
    assert not np.array_equal(once, again)
    assert np.array_equal(eval_once, eval_again)
    print(f"  nonlinearity: relu's lowest output is {lowest:.3f}; tanh's largest magnitude is {highest:.3f}")
    print(f"  bias=False: the parameters are {', '.join(plain.params)}")
    print("  dropout=0.5, two layers: two calls differ after train(), and agree after eval()")


class NextWord(rnnkit.Module):
    """One-hot words (B, 2, K) -> RNN or LSTM of 5 units -> its last output -> linear -> logits (B, K)."""

    def __init__(self, kind: Any, vocabulary: int, hidden: int, run: common.Run) -> None:
        super().__init__(device=run.device)
        recurrent = kind(vocabulary, hidden, batch_first=True, backend=run.backend, **run.layer)
        self.last = rnnkit.LastState(recurrent)
        self.linear = rnnkit.Linear(hidden, vocabulary, **run.layer)

    def children(self) -> dict[str, rnnkit.Module]:
        return {"last": self.last, "linear": self.linear}

    def __call__(self, x: Any) -> Any:
        return self.linear(self.last(x))

    def backward(self, dlogits: Any) -> Any:
        return self.last.backward(self.linear.backward(dlogits), dx=False)  # the gradient of words is not needed


def predict_last_words(run: common.Run, result: Result) -> None:
    """Trains TextRNN and TextLSTM on all six sentences at once, by Adam."""
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    number = {word: k for k, word in enumerate(words)}
    numbers = np.array([[number[word] for word in sentence.split()] for sentence in SENTENCES])
    x = run.array(np.eye(len(words), dtype=np.float32)[numbers[:, :2]])
    last_word = run.array(numbers[:, 2])

    for number_of_part, (name, kind) in enumerate((("TextRNN", rnnkit.RNN), ("TextLSTM", rnnkit.LSTM)), 4):
        common.heading(f"{number_of_part}. {name}: {len(SENTENCES)} sentences, {len(words)} words, hidden 5, Adam 0.01")
        model = NextWord(kind, len(words), 5, run)
        loss_fn = rnnkit.CrossEntropyLoss()
        optimizer = rnnkit.Adam(model, lr=0.01)
        losses: list[float] = []
        result.losses[name] = losses
        bar = common.progress(range(1, run.args.epochs + 1), name)
        for epoch in bar:
            loss = loss_fn(model(x), last_word)
            model.zero_grad()
            model.backward(loss_fn.backward())
            optimizer.step()
            losses.append(float(loss))
            if epoch % 100 == 0:
                bar.write(f"  epoch {epoch:4d}  cost = {losses[-1]:.6f}")
        chosen = common.host(model(x)).argmax(axis=1)
        result.predictions[name] = [words[k] for k in chosen]
        print_predictions(name, result)


def print_predictions(name: str, result: Result) -> None:
    """Prints the predicted and the correct words."""
    rows = []
    for sentence, predicted in zip(SENTENCES, result.predictions[name], strict=True):
        *context, last_word = sentence.split()
        rows.append((" ".join(context), predicted, "right" if predicted == last_word else f"wrong: {last_word}"))
    common.table(("context", "predicted", ""), rows)


def explain_costs(run: common.Run, result: Result) -> None:
    """Prints the published losses beside those of this run."""
    common.heading("6. Comparison with the published costs")
    first = min(100, run.args.epochs) - 1
    last = run.args.epochs - 1
    rows = []
    for name, (published_first, published_last) in PUBLISHED.items():
        losses = result.losses[name]
        rows.append(
            (name, f"{published_first:.6f} ... {published_last:.6f}", f"{losses[first]:.6f} ... {losses[last]:.6f}")
        )
    common.table(("", "published, epoch 100 ... 500", f"here, epoch {first + 1} ... {last + 1}"), rows)
    print("  The digits depend on the initial weights, and so on the random generator: PyTorch's for the published")
    print("  costs, NumPy's here. The distribution, U(-1/sqrt(H), 1/sqrt(H)), is the same, and so are the order of")
    print("  magnitude and the six words. Another --seed gives other digits.")


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the program; `argv` as on the command line."""
    options = common.parser(__doc__, "next_word")
    options.add_argument("--epochs", type=common.positive, default=500, help="training epochs (default 500)")
    run = common.start(options, argv)
    result = Result()
    arguments()
    shapes(run, result)
    effects(run)
    predict_last_words(run, result)
    explain_costs(run, result)
    path = run.out / "next_word.png"
    title = "Next word: cost of six sentences"
    result.figures.append(common.loss_curve(path, result.losses, title, "epoch", "cross-entropy", log=True))
    return result


if __name__ == "__main__":
    main()
