"""summary: published parameter counts, output shapes equal to those of calls, bad input."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.summary import keras_parameters, output_shape
from tests.helpers import LAYERS, refused

RNN, GRU, LSTM = (partial(layer, backend="numpy", batch_first=True) for layer in (rnnkit.RNN, rnnkit.GRU, rnnkit.LSTM))


def counts(found: Any) -> list[int]:
    return [row.keras_parameters for row in found.rows]


def shapes(found: Any) -> list[Any]:
    return [row.output_shape for row in found.rows]


def test_one_simple_rnn() -> None:
    found = rnnkit.summary(rnnkit.LastState(RNN(10, 3)), (None, 2, 10))
    assert (found.total_keras, found.total) == (42, 45)
    assert shapes(found) == [(None, 3)]
    assert rnnkit.summary(RNN(10, 3), (2, 10)).rows[0].output_shape == (2, 3)


def test_two_stacked_simple_rnns() -> None:
    found = rnnkit.summary(rnnkit.Sequential(RNN(5, 3), rnnkit.LastState(RNN(3, 3))), (None, 7, 5))
    assert counts(found) == [27, 21]
    assert (found.total_keras, found.total) == (48, 54)
    assert shapes(found) == [(None, 7, 3), (None, 3)]


def test_text_classifier() -> None:
    model = rnnkit.Sequential(
        rnnkit.Embedding(5000, 100),
        rnnkit.LastState(RNN(100, 128)),
        rnnkit.Linear(128, 1),
        rnnkit.Activation("sigmoid"),
    )
    found = rnnkit.summary(model, (None, 40))
    assert counts(found) == [500_000, 29_312, 129, 0]
    assert (found.total_keras, found.total) == (529_441, 529_569)
    assert shapes(found) == [(None, 40, 100), (None, 128), (None, 1), (None, 1)]


def test_units_primer() -> None:
    found = rnnkit.summary(rnnkit.Sequential(rnnkit.Embedding(10_000, 32), RNN(32, 32)), (None, None))
    assert counts(found)[1] == 2_080
    assert shapes(found) == [(None, None, 32), (None, None, 32)]


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3), ("gru_reset_before", 3), ("rnn_relu", 1)])
def test_keras_has_two_biases_only_in_gru_with_reset_after(cell: str, gates: int) -> None:
    layer = LAYERS[cell](5, 4, backend="numpy")
    row = rnnkit.summary(layer, (3, None, 5)).rows[0]
    biases = 2 if cell == "gru" else 1
    assert row.parameters == gates * 4 * (5 + 4 + 2)
    assert row.keras_parameters == gates * 4 * (5 + 4 + biases)
    wrapped = rnnkit.summary(rnnkit.LastState(rnnkit.Bidirectional(layer)), (3, None, 5))
    assert (wrapped.total, wrapped.total_keras) == (2 * row.parameters, 2 * row.keras_parameters)
    if cell == "lstm":
        assert rnnkit.summary(rnnkit.LSTMCell(5, 4, backend="numpy"), (5,)).total_keras == row.keras_parameters
    plain = rnnkit.summary(LAYERS[cell](5, 4, bias=False, backend="numpy"), (3, None, 5))
    assert plain.total == plain.total_keras == gates * 4 * 9


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "layers": (LSTM(3, 4, 2, bidirectional=True), (5, 6, 3)),
    "projected": (rnnkit.LSTM(3, 4, proj_size=2, backend="numpy"), (5, 6, 3)),
    "unbatched": (GRU(3, 4), (6, 3)),
    "last": (rnnkit.LastState(GRU(3, 4)), (5, 6, 3)),
    "last time-major": (rnnkit.LastState(rnnkit.GRU(3, 4, backend="numpy")), (5, 6, 3)),
    "last unbatched": (rnnkit.LastState(GRU(3, 4, bidirectional=True)), (6, 3)),
    "both": (rnnkit.Bidirectional(LSTM(3, 4)), (5, 6, 3)),
    "both, last": (rnnkit.LastState(rnnkit.Bidirectional(LSTM(3, 4), "ave")), (5, 6, 3)),
    "cell": (rnnkit.GRUCell(3, 4, backend="numpy"), (5, 3)),
    "linear": (rnnkit.Linear(3, 4), (5, 6, 3)),
    "one row": (rnnkit.Linear(3, 4), (3,)),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_shapes_equal_those_of_a_call(name: str) -> None:
    model, shape = MODELS[name]
    out = model(np.zeros(shape, np.float32))
    y = out[0] if isinstance(out, tuple) else out
    (row,) = rnnkit.summary(model, shape).rows
    assert row.output_shape == y.shape
    assert row.parameters == sum(p.size for p in model.params.values())


def test_nested_and_foreign_modules() -> None:
    class Mine(rnnkit.Module):
        """A user-defined module."""

        def __init__(self) -> None:
            super().__init__()
            self.parts = {"rnn": RNN(3, 4), "head": rnnkit.Linear(4, 2)}

        def children(self) -> dict[str, rnnkit.Module]:
            return self.parts

    found = rnnkit.summary(rnnkit.Sequential(rnnkit.Linear(2, 3), Mine(), rnnkit.Linear(2, 1)), (None, 5, 2))
    assert [row.name for row in found.rows] == ["0", "1.rnn", "1.head", "2"]
    assert shapes(found) == [(None, 5, 3), None, None, None]
    assert found.total == 9 + 36 + 10 + 3
    output_shape.register(Mine, lambda module, shape: (*shape[:-1], 2))
    found = rnnkit.summary(rnnkit.Sequential(rnnkit.Sequential(Mine()), rnnkit.Linear(2, 1)), (None, 5, 2))
    assert [row.name for row in found.rows] == ["0.0.rnn", "0.0.head", "1"]
    assert shapes(found)[-1] == (None, 5, 1)
    pair = rnnkit.summary(rnnkit.LastState(rnnkit.Bidirectional(GRU(3, 4), None)), (5, 6, 3))
    assert shapes(pair) == [None]


def test_a_module_with_children_counts_its_own_parameters() -> None:
    class Scaled(rnnkit.Module):
        """A user-defined module with a parameter and a child."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = RNN(3, 4)
            self._add_param("scale", np.ones(5))

        def children(self) -> dict[str, rnnkit.Module]:
            return {"layer": self.layer}

    found = rnnkit.summary(rnnkit.Sequential(Scaled()), (6, 5, 3))
    assert [(row.name, row.layer, row.parameters) for row in found.rows] == [("0", "Scaled", 5), ("0.layer", "RNN", 36)]
    assert (found.total, found.total_keras) == (41, 37)


def test_keras_parameters_of_any_module() -> None:
    model = rnnkit.Sequential(LSTM(3, 4), rnnkit.Sequential(GRU(4, 2)), rnnkit.Linear(2, 1))
    assert keras_parameters(model) == rnnkit.summary(model, (6, 5, 3)).total_keras == 128 + 3 * 2 * 8 + 3


def test_the_table_as_text() -> None:
    model = rnnkit.Sequential(
        rnnkit.Embedding(5000, 100),
        rnnkit.LastState(rnnkit.Bidirectional(LSTM(100, 8))),
        rnnkit.Linear(16, 1),
        rnnkit.Activation("sigmoid"),
    )
    want = """\
   layer                                     output shape     parameters  Keras parameters
------------------------------------------------------------------------------------------
0  Embedding                                 (None, 40, 100)     500,000           500,000
1  LastState(Bidirectional(LSTM, 'concat'))  (None, 16)            7,040             6,976
2  Linear                                    (None, 1)                17                17
3  Activation('sigmoid')                     (None, 1)                 0                 0
------------------------------------------------------------------------------------------
   total                                                         507,057           506,993"""
    found = rnnkit.summary(model, (None, 40))
    assert str(found) == want
    assert repr(found) == want


def test_summary_refuses_bad_input() -> None:
    with refused(TypeError, "model", "str"):
        rnnkit.summary("model", (1, 2))
    for wrong in (3, "33", None, (None, 2.0), (True, 3), (-1, 3)):
        with refused(TypeError, "input_shape", repr(wrong)):
            rnnkit.summary(rnnkit.Linear(3, 1), wrong)
    with refused(ValueError, "input_shape", "Linear", "(..., 3)", "(None, 4)"):
        rnnkit.summary(rnnkit.Linear(3, 1), (None, 4))
    with refused(ValueError, "input_shape", "LSTM", "2 or 3 axes", "(1, 2, 3, 4)"):
        rnnkit.summary(LSTM(4, 2), (1, 2, 3, 4))
    with refused(ValueError, "input_shape", "Bidirectional(GRU, 'sum')", "(..., 4)"):
        rnnkit.summary(rnnkit.Sequential(rnnkit.Bidirectional(GRU(4, 2), "sum")), (None, 2, 3))
