"""Classifies sequences with recurrent layers: deep, and bidirectional.

1. A toy problem: two sequences of 3 steps and 4 features, three stacked tanh layers, gradient descent.
2. The same network on scikit-learn's handwritten digits: each 8 x 8 image is a sequence of 8 rows. Is the digit even?
   The network's output depends on the image through the state after the last row only.
3. A bidirectional LSTM reads the rows in both directions and classifies the digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import rnnkit
from rnnkit.examples import _common as common


@dataclass
class Result:
    """Loss per epoch and held-out accuracy by model, and the figures."""

    losses: dict[str, list[float]] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    figures: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Digits:
    """Images as sequences (N, 8 steps, 8 features) in [0, 1], and their digits (N,). A fifth is held out."""

    x: Any
    digit: Any
    held_out_x: Any
    held_out_digit: Any


def load_digits(run: common.Run) -> Digits:
    """scikit-learn's 1,797 digits. The split depends on the seed only."""
    from sklearn import datasets

    digits = datasets.load_digits()
    order = np.random.default_rng(run.args.seed).permutation(len(digits.target))
    x = (digits.images[order] / 16).astype(np.float32)
    digit = digits.target[order]
    held_out = len(x) // 5
    return Digits(*(run.array(a) for a in (x[held_out:], digit[held_out:], x[:held_out], digit[:held_out])))


def deep_rnn(features: int, run: common.Run) -> rnnkit.Sequential:
    """Three tanh layers; the final state of the last one -> one number per sequence."""
    layers = [
        rnnkit.LastState(
            rnnkit.RNN(
                features,
                run.args.hidden,
                num_layers=3,
                batch_first=True,
                backend=run.backend,
                **run.layer,
            )
        ),
        rnnkit.Linear(run.args.hidden, 1, **run.layer),
    ]
    if run.args.loss == "mse":  # bce takes logits: it contains the sigmoid, which is numerically stable
        layers.append(rnnkit.Activation("sigmoid"))
    return rnnkit.Sequential(*layers)


def binary_loss(run: common.Run) -> Any:
    """The loss for the output of `deep_rnn`."""
    return rnnkit.MSELoss() if run.args.loss == "mse" else rnnkit.BCEWithLogitsLoss()


def predicts_yes(output: np.ndarray, loss: str) -> np.ndarray:
    """Whether the network predicts 'yes': a probability above 1/2, or a logit above 0."""
    return output[:, 0] > (0.5 if loss == "mse" else 0)


def bilstm(run: common.Run) -> rnnkit.Sequential:
    """An LSTM in each direction; both final states, concatenated -> ten logits."""
    lstm = rnnkit.LSTM(8, 32, batch_first=True, backend=run.backend, **run.layer)
    return rnnkit.Sequential(rnnkit.LastState(rnnkit.Bidirectional(lstm)), rnnkit.Linear(64, 10, **run.layer))


def train(
    model: rnnkit.Sequential,
    loss_fn: Any,
    optimizer: Any,
    data: tuple[Any, Any],
    epochs: int,
    batch: int,
    run: common.Run,
    label: str,
    *,
    max_norm: float = math.inf,
) -> list[float]:
    """Trains on all rows in a new order per epoch, in batches. Returns the mean loss of each epoch."""
    x, target = data
    losses = []
    bar = common.progress(range(1, epochs + 1), label)
    for epoch in bar:
        total = 0.0
        order = run.array(run.rng.permutation(len(x)))
        for first in range(0, len(x), batch):
            rows = order[first : first + batch]
            loss = loss_fn(model(x[rows]), target[rows])
            model.zero_grad()
            model.backward(loss_fn.backward(), dx=False)  # the gradient of x is not needed
            if max_norm < math.inf:
                rnnkit.clip_grad_norm(model, max_norm)
            optimizer.step()
            total += float(loss) * len(rows)
        losses.append(total / len(x))
        bar.write(f"  {label}, epoch {epoch:3d}: loss {losses[-1]:.4f}")
    return losses


def predict(model: rnnkit.Sequential, x: Any) -> np.ndarray:
    """The model's outputs, without saving anything for backward."""
    with rnnkit.no_grad():
        return common.host(model(x))


def toy(run: common.Run, result: Result) -> None:
    """Trains on two random sequences: the smallest training problem."""
    common.heading("A toy: input (batch 2, time 3, embedding 4), three tanh layers")
    x = run.array(run.rng.standard_normal((2, 3, 4)), np.float32)
    target = run.array([[0], [1]], np.float32)
    model = deep_rnn(4, run)
    optimizer = rnnkit.SGD(model, lr=run.args.learning_rate)
    result.losses["toy"] = train(model, binary_loss(run), optimizer, (x, target), 20, 2, run, "toy")
    right = predicts_yes(predict(model, x), run.args.loss) == [False, True]
    result.accuracy["toy"] = float(right.mean())
    print(f"{right.sum()} of 2 sequences right")


def even_or_odd(run: common.Run, data: Digits, result: Result) -> None:
    """Trains the deep RNN by gradient descent."""
    common.heading("Is the digit even? Three tanh layers, one row of pixels per step")
    model = deep_rnn(8, run)
    print(rnnkit.summary(model, (None, 8, 8)))
    even = ((data.digit % 2) == 0).astype(np.float32)[:, None]
    result.losses["even or odd"] = train(
        model,
        binary_loss(run),
        rnnkit.SGD(model, lr=run.args.learning_rate),
        (data.x, even),
        run.args.epochs,
        32,
        run,
        "even or odd",
    )
    yes = predicts_yes(predict(model, data.held_out_x), run.args.loss)
    right = yes == (common.host(data.held_out_digit) % 2 == 0)
    report("even or odd", right, 0.5, result)


def name_the_digit(run: common.Run, data: Digits, result: Result) -> None:
    """Trains the bidirectional LSTM by Adam."""
    common.heading("Which digit is it? A bidirectional LSTM, softmax over ten")
    model = bilstm(run)
    print(rnnkit.summary(model, (None, 8, 8)))
    result.losses["bilstm"] = train(
        model,
        rnnkit.CrossEntropyLoss(),
        rnnkit.Adam(model, lr=0.01),
        (data.x, data.digit),
        run.args.epochs,
        32,
        run,
        "bilstm",
        max_norm=1.0,
    )
    right = predict(model, data.held_out_x).argmax(axis=1) == common.host(data.held_out_digit)
    report("bilstm", right, 0.1, result)


def report(name: str, right: np.ndarray, chance: float, result: Result) -> None:
    """Prints how many held-out digits are right, and the accuracy of guessing."""
    result.accuracy[name] = float(right.mean())
    print(f"held out: {right.sum()} of {len(right)} right, {right.mean():.1%} (guessing: about {chance:.0%})")


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the program; `argv` as on the command line."""
    options = common.parser(__doc__, "deep_classifier")
    options.add_argument("--model", choices=("all", "toy", "deep", "bilstm"), default="all")
    options.add_argument("--loss", choices=("mse", "bce"), default="mse", help="loss of the deep RNN (default mse)")
    options.add_argument("--hidden", type=common.positive, default=32, help="units of the deep RNN (default 32)")
    options.add_argument("--epochs", type=common.positive, default=20, help="epochs on the digits (default 20)")
    options.add_argument(
        "--learning-rate", type=common.above_zero, help="of the deep RNN (default: 0.5 for mse, 0.1 for bce)"
    )
    run = common.start(options, argv, lambda args: () if args.model == "toy" else ("sklearn",))
    if run.args.learning_rate is None:
        run.args.learning_rate = 0.5 if run.args.loss == "mse" else 0.1

    result = Result()
    if run.args.model in ("all", "toy"):
        toy(run, result)
    if run.args.model != "toy":
        data = load_digits(run)
        if run.args.model in ("all", "deep"):
            even_or_odd(run, data, result)
        if run.args.model in ("all", "bilstm"):
            name_the_digit(run, data, result)
    draw(run, result)
    return result


def draw(run: common.Run, result: Result) -> None:
    """Draws a figure per model, because their losses are not comparable."""
    print()
    binary = {"mse": "mean squared error", "bce": "binary cross-entropy"}[run.args.loss]
    titles = {
        "toy": ("Two sequences, three tanh layers", binary),
        "even or odd": ("Is the digit even? Three tanh layers, gradient descent", binary),
        "bilstm": ("Which digit? Bidirectional LSTM, Adam", "cross-entropy"),
    }
    for name, losses in result.losses.items():
        path = run.out / f"deep_classifier_{name.replace(' ', '_')}.png"
        title, ylabel = titles[name]
        result.figures.append(common.loss_curve(path, {"training loss": losses}, title, "epoch", ylabel))


if __name__ == "__main__":
    main()
