"""The example models with compressed weights: the loss on text that they were not trained on, beside float32.

The models are those of rnnkit/examples/char_rnn.py, trained on the first nine tenths of its text.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from typing import Any

import numpy as np

import rnnkit
from rnnkit.examples import _common as common
from rnnkit.examples import char_rnn

# Figures of a model: nats per character, that minus the loss with float32 weights, and the largest and the mean
# difference of a probability.
LOSSES = ("loss", "more_than_float32", "largest_difference", "mean_difference")
TRAINED = 0.9
# The cells of char_rnn with its defaults, and a wider LSTM of two layers.
MODELS: tuple[tuple[str, ...], ...] = (
    ("--cell", "rnn"),
    ("--cell", "gru"),
    ("--cell", "lstm"),
    ("--cell", "lstm", "--hidden", "256", "--layers", "2", "--learning-rate", "0.05"),
)


def of_models(
    models: tuple[tuple[str, ...], ...] = MODELS, steps: int = 1500, longest: int = 2000
) -> list[dict[str, Any]]:
    """Trains each model for that many chunks. Its figures with each kind of weights, on `longest` steps of 32 rows."""
    found = []
    for options in models:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            arguments = [*options, "--steps", str(steps), "--out", folder]
            run = common.start(char_rnn.options(), arguments)
            model, text, held_out = _trained(run)
            results = [(weights, *_evaluated(model, text, held_out, weights, longest)) for weights in KINDS]
        exact = results[0]
        for weights, loss, p in results:
            apart = np.abs(p - exact[2])
            figures = (loss, loss - exact[1], float(apart.max()), float(apart.mean()))
            name = "char_rnn " + " ".join(options)
            found.append({"model": name, "weights": weights, **dict(zip(LOSSES, figures, strict=True))})
    return found


KINDS = ("float32", "bfloat16", "int8")


def _trained(run: common.Run) -> tuple[char_rnn.CharRNN, char_rnn.Text, np.ndarray]:
    """A model, the text that it was trained on, and the codes (N,) of the rest."""
    whole = char_rnn.Text.of(common.python_documentation())
    end = int(len(whole.codes) * TRAINED)
    text = char_rnn.Text(whole.characters, whole.codes[:end], whole.entropy)
    model = char_rnn.CharRNN(len(text.characters), run)
    char_rnn.train(model, text, run, char_rnn.Result(unigram_entropy=whole.entropy))
    return model, text, whole.codes[end:]


def _evaluated(
    model: char_rnn.CharRNN, text: char_rnn.Text, codes: np.ndarray, weights: str, longest: int
) -> tuple[float, np.ndarray]:
    """The loss, and the probabilities of the characters that follow."""
    used: Any = model if weights == "float32" else rnnkit.compress(model, weights)
    used.set_states([None] * len(used.layers))
    rows = 32
    streams = codes[: len(codes) // rows * rows].reshape(rows, -1).T[: longest + 1]
    one_of_k = np.eye(len(text.characters), dtype=np.float32)
    with rnnkit.no_grad():
        logits = used(one_of_k[streams[:-1]]).astype(np.float64)
    logits -= logits.max(axis=2, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    of_following = np.take_along_axis(log_p, streams[1:, :, None], axis=2)
    return float(-of_following.mean()), np.exp(of_following)
