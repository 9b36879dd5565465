"""The meaning of "units", "state" and "output" of a recurrent layer, in shapes that are checked while they are printed.

A layer of 64 units over 100 steps of 32 inputs has three arrays, W (64, 32), U (64, 64) and b (64), used at every step:
h = tanh(W x_t + U h + b). The number of steps does not appear in their shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import rnnkit
from rnnkit.examples import _common as common

STEPS = 100
INPUTS = 32
UNITS = 64

GLOSSARY = {
    "cell": "the function of one step: from x_t and the previous state to the next state. The same at every step",
    "units": "hidden_size: the dimension of h_t. Not the number of steps, and not the number of cells",
    "state": "passed from step to step: h for RNN and GRU, h and c for LSTM. (L*D, B, H), after the last step",
    "output": "h_t at every step, (T, B, H) or (B, T, H); without return_sequences (LastState) the last, (B, H)",
    "layer": "a cell run over all steps; num_layers stacks layers, each reading the outputs of the one below",
}


@dataclass
class Result:
    """Shapes by name, losses and held-out accuracy of the trained classifier, and the figures."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    figures: list[Path] = field(default_factory=list)


def one_layer(run: common.Run, result: Result) -> None:
    """W, U and b, the recurrence as a loop, and the layer that computes the same."""
    common.heading(f"1. One layer: {STEPS} steps, {INPUTS} inputs, {UNITS} units")
    rnn = rnnkit.RNN(INPUTS, UNITS, dtype="float64", backend=run.backend, **run.layer)
    W, U, b_ih, b_hh = (common.host(p) for p in rnn.params.values())
    b = b_ih + b_hh  # PyTorch and rnnkit store b as the sum of two biases
    x = run.rng.random((STEPS, INPUTS))

    h = np.zeros(UNITS)
    outputs = []
    for x_t in x:
        h = np.tanh(W @ x_t + U @ h + b)
        outputs.append(h)

    y, h_n = rnn(run.array(x))
    common.compare(
        [
            ("W, inputs to units", (64, 32), W.shape),
            ("U, units to units", (64, 64), U.shape),
            ("b", (64,), b.shape),
            ("outputs, one per step", (100, 64), y.shape),
            ("state after the last step", (1, 64), h_n.shape),
        ],
        reference="expected",
    )
    difference = float(np.abs(common.host(y) - outputs).max())
    assert difference < 1e-12
    print(f"  the recurrence as a loop and rnn(x) differ by at most {difference:.1e}")
    print(f"  U is used {STEPS} times, and there is one U")
    result.shapes |= {"W": W.shape, "U": U.shape, "b": b.shape, "outputs": y.shape}


def with_and_without_sequences(run: common.Run, result: Result) -> None:
    """Embedding -> SimpleRNN(32): all outputs, or the last one."""
    common.heading("2. Embedding(10000, 32) -> SimpleRNN(32), four sentences of 20 words")
    words = run.array(run.rng.integers(10_000, size=(4, 20)))
    embedding = rnnkit.Embedding(10_000, 32, **run.layer)
    rnn = rnnkit.RNN(32, 32, batch_first=True, backend=run.backend, **run.layer)
    every = rnnkit.Sequential(embedding, rnn)
    last = rnnkit.Sequential(embedding, rnnkit.LastState(rnn))
    classifier = rnnkit.Sequential(
        embedding, rnnkit.LastState(rnn), rnnkit.Linear(32, 1, **run.layer), rnnkit.Activation("sigmoid")
    )
    outputs: dict[str, Any] = {
        "Embedding": embedding(words),
        "SimpleRNN(32), return_sequences": every(words),
        "SimpleRNN(32)": last(words),
        "SimpleRNN(32) -> Dense(1, sigmoid)": classifier(words),
    }
    expected = ((4, 20, 32), (4, 20, 32), (4, 32), (4, 1))
    rows = [(name, e, a.shape) for e, (name, a) in zip(expected, outputs.items(), strict=True)]
    common.compare(rows, reference="expected")
    result.shapes |= {name: a.shape for name, a in outputs.items()}
    p = common.host(outputs["SimpleRNN(32) -> Dense(1, sigmoid)"])
    assert ((p > 0) & (p < 1)).all()
    print(rnnkit.summary(classifier, (None, 20)))


def train_classifier(run: common.Run, result: Result) -> None:
    """Trains the same model on characters: is a piece of English text written forwards or backwards?"""
    common.heading("3. Training the model: 20 characters, forwards or backwards?")
    characters, codes = np.unique(list(common.python_documentation()), return_inverse=True)
    model = rnnkit.Sequential(
        rnnkit.Embedding(len(characters), 32, **run.layer),
        rnnkit.LastState(rnnkit.RNN(32, 32, batch_first=True, backend=run.backend, **run.layer)),
        rnnkit.Linear(32, 1, **run.layer),
        rnnkit.Activation("sigmoid"),
    )
    result.losses, result.accuracy = common.learn_order(
        run, model, rnnkit.MSELoss(), 0.003, codes, 20, yes_above=0.5, label="forwards or backwards"
    )
    path = run.out / "units_primer.png"
    title = "Embedding -> SimpleRNN(32) -> Dense: forwards or backwards?"
    levels = {"guessing, 1/4": 0.25}
    result.figures.append(
        common.loss_curve(path, {"training loss": result.losses}, title, "step of 64 pieces", "MSE", levels, 25)
    )


def glossary() -> None:
    """Prints the terms with their shapes."""
    common.heading("4. Glossary")
    common.table(("word", "meaning"), GLOSSARY.items())


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the program; `argv` as on the command line."""
    options = common.parser(__doc__, "units_primer")
    options.add_argument("--steps", type=common.positive, default=800, help="training steps in part 3 (default 800)")
    run = common.start(options, argv)
    result = Result()
    one_layer(run, result)
    with_and_without_sequences(run, result)
    train_classifier(run, result)
    glossary()
    return result


if __name__ == "__main__":
    main()
