"""Weights of another function with the same names and shapes are rejected, unless `cells` names their cell."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import rnnkit
from rnnkit.io import from_keras
from rnnkit.nn.module import StateDict
from tests.helpers import LAYERS, assert_same, refused


def layer(cell: str, seed: int = 1) -> Any:
    return LAYERS[cell](2, 3, backend="numpy", rng=seed)


def torchs(module: Any) -> OrderedDict[str, Any]:
    """A mapping like torch's state_dict: an OrderedDict with the attribute _metadata."""
    mapping = OrderedDict(module.state_dict())
    mapping._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return mapping


@pytest.mark.parametrize("strict", [True, False])
def test_a_mapping_without_a_cell_name_is_taken_as_torchs_cell(strict: bool) -> None:
    cell, usual = "gru_reset_before", "gru"
    ours, given, source = layer(cell), layer(cell, 2).state_dict(), layer(usual, 3)
    before = ours.state_dict()
    for mapping in (dict(given), torchs(source), dict(source.params), {"bias_hh_l0": given["bias_hh_l0"]}):
        with refused(ValueError, f"this layer is a {cell} cell (reset_after=False)", f"cells='{cell}'"):
            ours.load_state_dict(mapping, strict)
        with refused(ValueError, f"those of a {usual} cell, and it is a {cell}"):
            ours.load_state_dict(mapping, strict, cells=usual)
        assert_same(ours.state_dict(), before)
    with refused(ValueError, "torch has no such cell"):
        ours.load_state_dict(torchs(source))
    ours.load_state_dict(dict(given), strict, cells=cell)
    assert_same(ours.state_dict(), given)
    for plain in (dict(source.state_dict()), torchs(source)):
        other = layer(usual, 4)
        other.load_state_dict(plain)
        assert_same(dict(other.params), dict(source.params))
        with refused(ValueError, f"those of a {cell} cell, and it is a {usual}"):
            other.load_state_dict(plain, cells=cell)
    ours.load_state_dict({}, strict=False)  # an empty mapping contradicts no cell


@pytest.mark.parametrize(
    ("cell", "usual", "buffer"), [("gru_reset_before", "gru", "reset_before"), ("slstm", "lstm", "slstm")]
)
def test_a_buffer_of_rnnkit_torch_names_the_cell(cell: str, usual: str, buffer: str) -> None:
    ours, given, source = layer(cell), layer(cell, 2).state_dict(), layer(usual, 3)
    marked = {**given, buffer: np.True_}
    ours.load_state_dict(marked)
    assert_same(ours.state_dict(), given)
    model = rnnkit.Sequential(rnnkit.Linear(2, 2, rng=0), layer(cell, 4))
    found = model.load_state_dict({f"1.{name}": value for name, value in marked.items()}, strict=False)
    assert found.unexpected_keys == []
    with refused(ValueError, f"those of a {cell} cell, and it is a {usual}"):
        source.load_state_dict(marked)
    with refused(ValueError, f"cells must agree with the mapping, which holds a {cell} cell", f"got '{usual}'"):
        ours.load_state_dict(marked, cells=usual)
    with refused(KeyError, f"extra ['0.{buffer}']"):
        model.load_state_dict({**model.state_dict(), f"0.{buffer}": np.True_}, cells={"1": cell})


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu"])
def test_a_mapping_of_an_rnn_loads_with_the_layers_nonlinearity(cell: str) -> None:
    other = {"rnn_tanh": "rnn_relu", "rnn_relu": "rnn_tanh"}[cell]
    ours, source = layer(cell), layer(cell, 3)
    for plain in (dict(source.state_dict()), torchs(source)):
        ours.load_state_dict(plain)
        assert_same(dict(ours.params), dict(source.params))
        with refused(ValueError, f"those of a {other} cell, and it is a {cell}"):
            ours.load_state_dict(plain, cells=other)
    with refused(ValueError, f"those of a {other} cell, and it is a {cell}"):
        ours.load_state_dict(layer(other).state_dict())


def test_cells_are_named_by_layer() -> None:
    def model(seed: int) -> rnnkit.Sequential:
        return rnnkit.Sequential(
            rnnkit.LSTM(2, 2, backend="numpy", rng=seed),
            rnnkit.Sequential(rnnkit.GRU(2, 2, reset_after=False, backend="numpy", rng=seed)),
            rnnkit.LastState(rnnkit.Bidirectional(rnnkit.RNN(2, 2, nonlinearity="relu", backend="numpy", rng=seed))),
        )

    ours, given = model(1), model(2).state_dict()
    before = ours.state_dict()
    with refused(ValueError, "'1.0' is a gru_reset_before cell"):
        ours.load_state_dict(dict(given))
    with refused(ValueError, "'2.forward' are those of a rnn_tanh cell, and it is a rnn_relu"):
        ours.load_state_dict(dict(given), cells={"1.0": "gru_reset_before", "2.forward": "rnn_tanh"})
    with refused(ValueError, "those of a gru_reset_before cell, and it is a lstm"):
        ours.load_state_dict(dict(given), cells="gru_reset_before")
    with refused(ValueError, "cells must name recurrent layers", "'0', '1.0', '2.forward', '2.reverse'", "got '3'"):
        ours.load_state_dict(dict(given), cells={"3": "gru"})
    with refused(ValueError, "cells must be one of", "'gru_reset_before'", "got 'elman'"):
        ours.load_state_dict(dict(given), cells={"0": "elman"})
    with refused(TypeError, "cells must be the name of a cell or a mapping", "list"):
        ours.load_state_dict(dict(given), cells=["gru"])
    with refused(ValueError, "cells must agree with the mapping, which holds a gru_reset_before cell", "got 'gru'"):
        ours.load_state_dict(given, cells={"1.0": "gru"})
    assert_same(ours.state_dict(), before)
    ours.load_state_dict(
        dict(given), cells={"1.0.": "gru_reset_before", "2.forward": "rnn_relu", "2.reverse": "rnn_relu"}
    )
    assert_same(ours.state_dict(), given)
    ours.load_state_dict(before)
    assert_same(ours.state_dict(), before)


@pytest.mark.parametrize(
    "wrap", [lambda m: m, rnnkit.LastState, rnnkit.Sequential], ids=["alone", "last", "sequential"]
)
@pytest.mark.parametrize("by_file", [False, True])
def test_weights_of_another_merge_are_refused(wrap: Any, by_file: bool, tmp_path: Path) -> None:
    def made(merge: str | None, seed: int) -> Any:
        return wrap(rnnkit.Bidirectional(rnnkit.GRU(2, 3, backend="numpy", rng=seed), merge))

    def state(module: Any) -> Any:
        if not by_file:
            return module.state_dict()
        rnnkit.save(module, tmp_path / "m")
        return rnnkit.load(tmp_path / "m")

    merges = ("concat", "sum", "mul", "ave", None)
    for merge in merges:
        given = state(made(merge, 1))
        for other in merges:
            ours = made(other, 2)
            before = ours.state_dict()
            if other == merge:
                ours.load_state_dict(given)
                assert_same(ours.state_dict(), dict(given))
                continue
            with refused(ValueError, f"merge={merge!r}, and it has merge={other!r}", "dict(mapping)"):
                ours.load_state_dict(given)
            assert_same(ours.state_dict(), before)
            ours.load_state_dict(dict(given))
            assert_same(ours.state_dict(), dict(given))


def test_a_file_of_another_tool_has_no_cell_names(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        safetensors.numpy.save_file(dict(layer("gru").state_dict()), tmp_path / "theirs", metadata=metadata)
        loaded = rnnkit.load(tmp_path / "theirs")
        layer("gru", 2).load_state_dict(loaded)
        with refused(ValueError, "cells='gru_reset_before'"):
            layer("gru_reset_before", 2).load_state_dict(loaded)


def test_the_cell_of_keras_weights_is_recorded() -> None:
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype("float32") for shape in ((2, 9), (3, 9), (9,))]
    state = from_keras(weights, "GRU")
    layer("gru_reset_before").load_state_dict(state)
    with refused(ValueError, "those of a gru_reset_before cell, and it is a gru"):
        layer("gru").load_state_dict(state)
    halves = [from_keras(weights, "GRU", prefix=prefix) for prefix in ("forward.", "reverse.")]
    rnnkit.Bidirectional(layer("gru_reset_before"), "sum").load_state_dict(halves[0] | halves[1])
    kept = StateDict({name: value * 2 for name, value in state.items()}, state.layers)
    layer("gru_reset_before").load_state_dict(kept)
