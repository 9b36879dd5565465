"""State dicts, and parameters written by name: in place, and all or none."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.nn.module import StateDict
from tests.helpers import LAYERS, assert_same, layer_after_a_call, randn, random_state, refused

EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)


@EVERY_LAYER
def test_a_state_dict_round_trips(name: str, cpu_backend: str, rng: Any) -> None:
    layer = LAYERS[name](3, 4, 2, bidirectional=True, backend=cpu_backend, rng=1)
    other = LAYERS[name](3, 4, 2, bidirectional=True, backend=cpu_backend, rng=2)
    arrays, saved = dict(other.params), layer.state_dict()
    other.load_state_dict({n: np.asfortranarray(a) for n, a in reversed(saved.items())}, cells=layer.cell.name)
    assert_same(other.params, layer.params)
    assert all(other.params[n] is p for n, p in arrays.items()), "a parameter was replaced, not written in place"
    x, state = randn(rng, 4, 2, 3, dtype="float32"), random_state(layer, 2, rng)
    np.testing.assert_array_equal(other(x, state)[0], layer(x, state)[0])
    saved["weight_ih_l0"][...] = 9
    assert layer.params["weight_ih_l0"].max() < 9
    assert other.params["weight_ih_l0"].max() < 9
    wide = LAYERS[name](3, 4, 2, bidirectional=True, dtype="float64", backend=cpu_backend, rng=3)
    wide.load_state_dict(layer.state_dict())
    assert_same(dict(wide.params), {n: p.astype("float64") for n, p in layer.params.items()})


def test_a_partial_state_dict_writes_its_entries() -> None:
    layer = rnnkit.GRU(3, 4, backend="numpy", rng=1)
    before = layer.state_dict()
    layer.load_state_dict({"bias_hh_l0": [0.5] * 12, "nobody": np.ones(3)}, strict=False)
    assert_same(layer.state_dict(), before | {"bias_hh_l0": np.full(12, 0.5, "float32")})


def test_parameters_are_written_in_place() -> None:
    layer = rnnkit.RNN(3, 4, backend="numpy", rng=1)
    weight = layer.params["weight_ih_l0"]
    layer.params["weight_ih_l0"] = np.full((4, 3), 2, "float32")
    assert layer.params["weight_ih_l0"] is weight
    assert (weight == 2).all()
    layer.params["weight_ih_l0"] -= 0.5
    assert layer.params["weight_ih_l0"] is weight
    assert (weight == 1.5).all()
    layer.params.update({"weight_ih_l0": np.full((4, 3), 3, "float32")})
    assert layer.params["weight_ih_l0"] is weight
    assert (weight == 3).all()


def _other_numbers(layer: Any) -> StateDict:
    saved = layer.state_dict()
    return StateDict({n: a + 1 for n, a in saved.items()}, saved.layers)


def _changed(layer: Any, name: str, value: Any) -> StateDict:
    """A complete state dict of other numbers, with one entry changed."""
    return _other_numbers(layer) | {name: value}


@EVERY_LAYER
def test_load_state_dict(name: str) -> None:
    layer = layer_after_a_call(name)
    full = _other_numbers(layer)
    last = "bias_hh_l1"
    fewer = StateDict({n: a for n, a in full.items() if n != last}, full.layers)
    with refused(KeyError, "state dict does not fit", f"missing ['{last}']", "extra nothing", by=layer):
        layer.load_state_dict(fewer)
    with refused(KeyError, "missing nothing", "extra ['nobody']", by=layer):
        layer.load_state_dict(full | {"nobody": np.ones(3)})
    with refused(KeyError, f"missing ['{last}']", "extra ['nobody']", by=layer):
        layer.load_state_dict(fewer | {"nobody": np.ones(3)})
    GH = full[last].shape[0]
    for strict in (True, False):
        with refused(ValueError, f"{last} must have shape ({GH},), got ({GH}, 1)", by=layer):
            layer.load_state_dict(_changed(layer, last, np.ones((GH, 1), "float32")), strict)
        for bad in (np.ones(GH, complex), np.ones(GH, bool), np.full(GH, "1"), np.full(GH, None)):
            with refused(TypeError, f"{last} must hold real numbers, got dtype {bad.dtype}", by=layer):
                layer.load_state_dict(_changed(layer, last, bad), strict)
    for bad_mapping, was in ((None, "NoneType"), ([1], "list"), (layer, name.split("_")[0].upper())):
        with refused(TypeError, "mapping must be a mapping of names to arrays, got", was, by=layer):
            layer.load_state_dict(bad_mapping)
    layer.load_state_dict(full)
    assert_same(layer.state_dict(), full)


@EVERY_LAYER
@pytest.mark.filterwarnings("error")
def test_load_state_dict_writes_nothing_when_a_cast_fails_late(name: str) -> None:
    """1e300 does not fit float32: refused by name, without a warning from NumPy, and nothing is partly written."""
    layer = layer_after_a_call(name)
    huge = np.full(layer.params["bias_hh_l1"].shape, 1e300)
    with refused(ValueError, "bias_hh_l1 must fit dtype float32, got 1e+300", by=layer):
        layer.load_state_dict(_changed(layer, "bias_hh_l1", huge))


def test_writing_parameters_and_gradients_by_name() -> None:
    layer = layer_after_a_call("gru")
    for store in (layer.params, layer.grads):
        with refused(KeyError, "no parameter is named 'weight'", "weight_ih_l0", by=layer):
            store["weight"] = np.ones(3)
        with refused(ValueError, "weight_ih_l0 must have shape (18, 5), got (5, 18)", by=layer):
            store["weight_ih_l0"] = np.ones((5, 18), "float32")
        with refused(TypeError, "weight_ih_l0 must have dtype float32, got float64", by=layer):
            store["weight_ih_l0"] = np.ones((18, 5))
        with refused(KeyError, "no parameter is named 'weight'", by=layer):
            store.update({"weight": np.ones(3)})
        with refused(KeyError, "no parameter is named 'weight'", by=layer):
            store |= {"weight": np.ones(3)}
        for default in ((), (np.ones(3),)):
            with refused(KeyError, "no parameter is named 'weight'", "weight_ih_l0", by=layer):
                store.setdefault("weight", *default)
        assert store.setdefault("weight_ih_l0", np.ones(3)) is store["weight_ih_l0"]


@pytest.mark.parametrize("kind", [rnnkit.RNN, rnnkit.GRU, rnnkit.LSTM, rnnkit.GRUCell])
def test_layers_copy_and_pickle(kind, rng):
    layer = kind(3, 4, rng=0)
    x = rng.standard_normal((2, 3) if kind is rnnkit.GRUCell else (5, 2, 3)).astype(np.float32)
    layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for name, value in layer.params.items():
            np.testing.assert_array_equal(twin.params[name], value)
            assert twin.params[name] is not value
        for a, b in zip(np.atleast_1d(layer(x)[0]), np.atleast_1d(twin(x)[0]), strict=True):
            np.testing.assert_array_equal(a, b)
        twin.params[next(iter(twin.params))][...] = 0
        assert layer.params[next(iter(layer.params))].any()


def test_parameters_cannot_be_deleted():
    layer = rnnkit.GRU(3, 4, rng=0)
    for spoil in (
        lambda: layer.params.pop("weight_ih_l0"),
        lambda: layer.params.clear(),
        lambda: layer.params.popitem(),
        lambda: layer.params.__delitem__("weight_ih_l0"),
    ):
        with pytest.raises(TypeError, match="cannot be deleted"):
            spoil()
    assert len(layer.params) == 4


# A user-defined module with parameters and children


class Scaled(rnnkit.Module):
    """scale * layer(x)."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.dtype)
        self.layer = layer
        self._add_param("scale", np.full(2, 3))

    def children(self) -> dict[str, rnnkit.Module]:
        return {"layer": self.layer}


def test_a_module_with_children_may_have_parameters() -> None:
    model = Scaled(rnnkit.Linear(3, 2, rng=0))
    assert list(model.params) == list(model.grads) == ["scale", "layer.weight", "layer.bias"]
    model.grads["scale"][...] = 1
    model.zero_grad()
    assert not model.grads["scale"].any()
    model.grads["scale"][...] = 2
    rnnkit.SGD(model, 0.5).step()
    np.testing.assert_array_equal(model.params["scale"], [2, 2])
    saved = model.state_dict()
    other = Scaled(rnnkit.Linear(3, 2, rng=1))
    other.load_state_dict(saved)
    assert_same(dict(other.params), dict(saved))
    with pytest.raises(KeyError, match="missing \\['scale'\\]"):
        other.load_state_dict({n: a for n, a in saved.items() if n != "scale"})
    assert rnnkit.Sequential(model).params["0.scale"] is model.params["scale"]


# Mappings of the layer's own arrays, and the cells of a state dict


def test_a_layer_can_swap_its_own_parameters() -> None:
    layer = rnnkit.RNN(4, 4, 2, backend="numpy", rng=1)
    before = layer.state_dict()
    a, b = "weight_ih_l0", "weight_hh_l1"
    layer.load_state_dict({a: layer.params[b], b: layer.params[a]}, strict=False)
    assert_same(layer.state_dict(), before | {a: before[b], b: before[a]})


def test_a_state_dict_names_its_cells() -> None:
    before, after = (rnnkit.GRU(3, 4, reset_after=flag, backend="numpy", rng=1) for flag in (False, True))
    assert before.state_dict().layers == {"": {"cell": "gru_reset_before"}}
    with refused(ValueError, "those of a gru_reset_before cell, and it is a gru", by=after):
        after.load_state_dict(before.state_dict())
    nested = rnnkit.Sequential(rnnkit.Linear(2, 3), rnnkit.Bidirectional(before)).state_dict()
    cells = {f"1.{side}.": {"cell": "gru_reset_before"} for side in ("forward", "reverse")}
    assert nested.layers == {"1.": {"merge": "concat"}, **cells}
    copies = (copy.copy(nested), copy.deepcopy(nested), pickle.loads(pickle.dumps(nested)))
    for twin in (nested.copy(), StateDict(nested), *copies):
        assert isinstance(twin, StateDict)
        assert twin.layers == nested.layers
        assert_same(twin, nested)
    nested.copy().layers.clear()
    assert nested.layers


def test_merged_state_dicts_keep_their_cells() -> None:
    knows = {"": {"cell": "gru"}}
    gru, lstm = StateDict({"a": 1}, knows), StateDict({"b": 2}, {"x.": {"cell": "lstm", "hidden_size": 3}})
    both = {"": {"cell": "gru"}, "x.": {"cell": "lstm", "hidden_size": 3}}
    for joined in (gru | lstm, lstm | gru):
        assert joined == {"a": 1, "b": 2}
        assert joined.layers == both
    for joined in (gru | {"a": 3}, {"a": 0, "c": 2} | gru):
        assert isinstance(joined, StateDict)
        assert joined.layers == knows
    assert (gru | {"a": 3})["a"] == 3
    assert ({"a": 0, "c": 2} | gru) == {"a": 1, "c": 2}
    grown = gru.copy()
    same = grown
    grown |= lstm
    assert grown is same
    assert grown.layers == both
    assert gru.layers == knows
    # A mapping without cells contradicts none.
    assert (gru | StateDict({}, {"": {"hidden_size": 4}})).layers == {"": {"cell": "gru", "hidden_size": 4}}
    other = StateDict({"a": 9, "d": 4}, {"": {"cell": "gru_reset_before"}})
    for join in (
        lambda: gru | other,
        lambda: gru.update(other),
        lambda: gru.__ior__(other),
        lambda: other.__ror__(gru),
    ):
        with refused(ValueError, "one layer cannot be both", "gru_reset_before"):
            join()
    assert gru == {"a": 1}
    assert gru.layers == knows
    for wrong in (3, None):
        with pytest.raises(TypeError, match="unsupported operand"):
            gru | wrong


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "map prefixes of names to mappings, got list"),
        ({"": "gru"}, "map prefixes of names to mappings, got '': 'gru'"),
        ({3: {}}, "map prefixes of names to mappings, got 3: {}"),
        ({"x.": {"cell": ["gru"]}}, "name the cell of 'x.' by a string, got ['gru']"),
        ({"x.": {"cell": None}}, "name the cell of 'x.' by a string, got None"),
    ],
)
def test_the_cells_of_a_state_dict_have_one_format(layers: Any, message: str) -> None:
    with refused(TypeError, f"layers must {message}"):
        StateDict({}, layers)


def test_load_state_dict_returns_missing_and_unexpected_names() -> None:
    layer = rnnkit.Linear(2, 3)
    found = layer.load_state_dict({"weight": np.ones((3, 2)), "nobody": 1.0}, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["bias"], ["nobody"])
    assert layer.load_state_dict(layer.state_dict()) == ([], [])


@pytest.mark.filterwarnings("error")
def test_numbers_too_large_for_the_dtype_are_refused() -> None:
    layer = rnnkit.Linear(2, 3)
    before = layer.state_dict()
    large = np.array([[np.inf, 1], [np.nan, 1e300], [1, 1]])
    with refused(ValueError, "weight must fit dtype float32, got 1e+300"):
        layer.load_state_dict({"bias": np.ones(3), "weight": large})
    assert_same(layer.state_dict(), before)
    large[1, 1] = 1e30
    layer.load_state_dict({"bias": np.ones(3), "weight": large})
    np.testing.assert_array_equal(layer.params["weight"], large.astype("float32"))


def test_a_parameter_can_be_set_only_to_numpy_arrays() -> None:
    class Tensor:
        shape, dtype = (3,), np.dtype("float32")

    layer = rnnkit.Linear(2, 3)
    with refused(TypeError, "bias must be a NumPy array, got Tensor"):
        layer.params["bias"] = Tensor()
