"""Reproduces a tutorial notebook on Keras' recurrent layers with rnnkit, and compares with its published output.

Keras' SimpleRNN, LSTM, Dense and Bidirectional are RNN, LSTM, Linear and Bidirectional here, and
`return_sequences=False` is LastState. PyTorch and rnnkit have two biases per recurrent layer, Keras' SimpleRNN and LSTM
have one: the summaries below count both ways.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import rnnkit
from rnnkit.examples import _common as common

# The notebook's bidirectional LSTM(3): one sequence of 4 steps and 5 features, all kernels 0.1, forget bias 1.
GOLDEN_X = [
    [[0.1, 4.2, 1.5, 1.1, 2.8], [1.0, 3.1, 2.5, 0.7, 1.1], [0.3, 2.1, 1.5, 2.1, 0.1], [2.2, 1.4, 0.5, 0.9, 1.1]]
]
GOLDEN_FORWARD = [0.35906473, 0.55111325, 0.59115744, 0.6303138]
GOLDEN_REVERSE = [0.7038734, 0.58863586, 0.3951699, 0.21942244]


@dataclass
class Result:
    """The results of each part: parameter counts, shapes, the published outputs, and the trained classifier."""

    counts: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    golden_last: np.ndarray | None = None
    golden_sequence: np.ndarray | None = None
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    figures: list[Path] = field(default_factory=list)


def forward_by_hand(run: common.Run, result: Result) -> None:
    """One RNN, 10 steps, input 4, hidden 8: the recurrence as a loop, and the layer that replaces it."""
    common.heading("1. One RNN forward, in NumPy: 10 steps, input 4, hidden 8")
    rnn = rnnkit.RNN(4, 8, dtype="float64", backend=run.backend, **run.layer)
    x = run.rng.standard_normal((10, 4))

    w_ih, w_hh, b_ih, b_hh = (common.host(p) for p in rnn.params.values())
    h = np.zeros(8)
    states = []
    for x_t in x:
        h = np.tanh(w_ih @ x_t + b_ih + w_hh @ h + b_hh)
        states.append(h)

    y, _ = rnn(run.array(x))
    y = common.host(y)
    print(f"  h = tanh(W_ih x_t + b_ih + W_hh h + b_hh), ten times: {np.shape(states)}")
    print(f"  y, h_n = rnn(x): {y.shape}; largest difference {np.abs(y - states).max():.1e}")
    common.compare([("worst difference", 0.0, float(np.abs(y - states).max()))], atol=1e-12)
    result.shapes["10 steps"] = y.shape


def parameter_counts(run: common.Run, result: Result) -> None:
    """H x (I + H + 1) for each SimpleRNN, and summaries of whole models."""
    common.heading("2. Parameters: a SimpleRNN has H x (I + H + 1)")

    def rnn(inputs: int, units: int) -> rnnkit.RNN:
        return rnnkit.RNN(inputs, units, batch_first=True, backend=run.backend, **run.layer)

    simple = rnnkit.Sequential(rnnkit.LastState(rnn(10, 3)))
    stacked = rnnkit.Sequential(rnn(5, 3), rnnkit.LastState(rnn(3, 3)))
    classifier = word_classifier(run)
    embedded = rnnkit.Sequential(rnnkit.Embedding(10_000, 32, **run.layer), rnnkit.LastState(rnn(32, 32)))
    models = {
        "SimpleRNN(3) on (2, 10)": (simple, (None, 2, 10)),
        "SimpleRNN(3) twice on input 5": (stacked, (None, 4, 5)),
        "Embedding -> SimpleRNN(128) -> Dense": (classifier, (None, 10)),
        "Embedding -> SimpleRNN(32)": (embedded, (None, 10)),
    }
    summaries = {}
    for name, (model, shape) in models.items():
        summaries[name] = rnnkit.summary(model, shape)
        print(f"\n{name}\n{summaries[name]}")

    print()
    keras = {name: [row.keras_parameters for row in s.rows] for name, s in summaries.items()}
    two = keras["SimpleRNN(3) twice on input 5"]
    three = keras["Embedding -> SimpleRNN(128) -> Dense"]
    result.counts = {
        "SimpleRNN(3) on (2, 10)": summaries["SimpleRNN(3) on (2, 10)"].total_keras,
        "stacked, first SimpleRNN(3)": two[0],
        "stacked, second SimpleRNN(3)": two[1],
        "stacked, total": sum(two),
        "Embedding(5000, 100)": three[0],
        "SimpleRNN(128)": three[1],
        "Dense(1)": three[2],
        "Embedding -> SimpleRNN(128) -> Dense": summaries["Embedding -> SimpleRNN(128) -> Dense"].total_keras,
        "SimpleRNN(32) on Embedding(10000, 32)": keras["Embedding -> SimpleRNN(32)"][1],
    }
    published = (42, 27, 21, 48, 500_000, 29_312, 129, 529_441, 2_080)
    common.compare([(name, p, got) for p, (name, got) in zip(published, result.counts.items(), strict=True)])


def sequences_and_states(run: common.Run, result: Result) -> None:
    """The results of Keras' return_sequences and return_state, in rnnkit's terms, on input (1, 4, 5)."""
    common.heading("3. return_sequences and return_state: input (1, 4, 5), 3 units")
    x = run.array(run.rng.standard_normal((1, 4, 5)), np.float32)
    rows: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    for name, layer in (
        ("SimpleRNN", rnnkit.RNN(5, 3, batch_first=True, backend=run.backend, **run.layer)),
        ("LSTM", rnnkit.LSTM(5, 3, batch_first=True, backend=run.backend, **run.layer)),
    ):
        y, state = layer(x)
        last = rnnkit.LastState(layer)(x)
        states = state if isinstance(state, tuple) else (state,)
        rows.append((f"{name}: LastState(layer)(x)", (1, 3), last.shape))
        rows.append((f"{name}, return_sequences: y", (1, 4, 3), y.shape))
        for letter, s in zip("hc", states, strict=False):
            # The first axis of h_n is layers and directions; with one of each, Keras' state is h_n[0].
            rows.append((f"{name}, return_state: {letter}_n[0]", (1, 3), s[0].shape))
        assert np.array_equal(common.host(last), common.host(y[:, -1]))
        assert np.array_equal(common.host(last), common.host(states[0][0]))
    result.shapes |= {name: got for name, _, got in rows}
    common.compare(rows)
    print("  and the last output, y[:, -1] and the state h_n[0] are equal")


def golden_bidirectional(run: common.Run, result: Result) -> None:
    """A bidirectional LSTM(3) with constant weights: the published numbers."""
    common.heading("4. Bidirectional LSTM(3), kernels 0.1, forget bias 1: published output")
    lstm = rnnkit.LSTM(5, 3, batch_first=True, dtype="float64", backend=run.backend, **run.layer)
    bidirectional = rnnkit.Bidirectional(lstm)
    for name, parameter in bidirectional.params.items():
        parameter[...] = 0.1 if "weight" in name else 0.0
        if "bias_ih" in name:
            parameter[3:6] = 1.0  # gates are packed i, f, g, o: rows 3 to 5 are the forget gate of 3 units
    x = run.array(GOLDEN_X, np.float64)
    result.golden_sequence = common.host(bidirectional(x)[0])[0]
    result.golden_last = common.host(rnnkit.LastState(bidirectional)(x))[0]
    sequence = result.golden_sequence
    last = result.golden_last
    rows = [(f"last output, unit {k}", p, float(last[k])) for k, p in enumerate([0.6303138] * 3 + [0.7038734] * 3)]
    for name, column, published in (("forward", 0, GOLDEN_FORWARD), ("backward", 3, GOLDEN_REVERSE)):
        rows += [(f"{name}, step {t}", p, float(sequence[t, column])) for t, p in enumerate(published)]
    common.compare(rows, atol=1e-6)


def word_classifier(run: common.Run) -> rnnkit.Sequential:
    """Embedding(5000, 100) -> SimpleRNN(128) -> Dense(1). The loss contains the sigmoid."""
    return rnnkit.Sequential(
        rnnkit.Embedding(5000, 100, **run.layer),
        rnnkit.LastState(rnnkit.RNN(100, 128, batch_first=True, backend=run.backend, **run.layer)),
        rnnkit.Linear(128, 1, **run.layer),
    )


def numbered_words() -> np.ndarray:
    """Python's documentation as integers (N,): its 4,999 most frequent words, and 0 for any other."""
    words = re.findall(r"[a-z]+", common.python_documentation().lower())
    frequent = Counter(words).most_common(4999)
    number = {word: k for k, (word, _) in enumerate(frequent, 1)}
    return np.array([number.get(word, 0) for word in words])


def train_classifier(run: common.Run, result: Result) -> None:
    """Trains the model of part 2 to distinguish text from reversed text, which depends on the order only."""
    common.heading("5. Training the 529,441 parameters: are ten words in order, or reversed?")
    model = word_classifier(run)
    loss_fn = rnnkit.BCEWithLogitsLoss()
    result.losses, result.accuracy = common.learn_order(
        run, model, loss_fn, 0.001, numbered_words(), 10, yes_above=0, label="words in order", max_norm=1.0
    )
    result.figures.append(
        common.loss_curve(
            run.out / "keras_notebook.png",
            {"training loss": result.losses},
            "Embedding -> SimpleRNN(128) -> Dense: words in order?",
            "step of 64 pieces",
            "binary cross-entropy",
            {"guessing, ln 2": float(np.log(2))},
            smooth=25,
        )
    )


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the program; `argv` as on the command line."""
    options = common.parser(__doc__, "keras_notebook")
    options.add_argument("--steps", type=common.positive, default=800, help="training steps in part 5 (default 800)")
    run = common.start(options, argv)
    result = Result()
    for part in (forward_by_hand, parameter_counts, sequences_and_states, golden_bidirectional, train_classifier):
        part(run, result)
    return result


if __name__ == "__main__":
    main()
