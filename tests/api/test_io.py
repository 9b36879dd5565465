"""Weight files round-trip bit for bit, describe their layers, and are compatible with other tools."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import rnnkit
from rnnkit.io import files as io
from rnnkit.nn.containers import Bidirectional, LastState, Sequential
from rnnkit.nn.module import StateDict
from tests.helpers import LAYERS, assert_same, randn

# Files do not depend on the backend; the oracle needs no compilation.
RNN, GRU, LSTM = (partial(kind, backend="numpy") for kind in (rnnkit.RNN, rnnkit.GRU, rnnkit.LSTM))

NAMES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8")
NAMES += ("uint64", "uint32", "uint16", "uint8", "bool", "complex64")
SHAPES = ((), (1,), (3,), (0,), (2, 0, 3), (2, 3), (4, 1, 5))


def random_bits(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Arbitrary bits, which include NaN, infinities, -0 and subnormal numbers."""
    size = int(np.prod(shape)) * np.dtype(name).itemsize
    raw = rng.integers(0, 2 if name == "bool" else 256, size, dtype=np.uint8)
    return raw.view(name).reshape(shape)


# Round trips


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", LAYERS)
def test_a_layer_round_trips_bit_for_bit(tmp_path: Path, rng: np.random.Generator, cell: str, dtype: str) -> None:
    path = tmp_path / "layer.safetensors"
    layer, other = (LAYERS[cell](3, 4, 2, bidirectional=True, dtype=dtype, rng=k, backend="numpy") for k in (1, 2))
    rnnkit.save(layer, path)
    loaded = rnnkit.load(path)
    assert_same(loaded, layer.state_dict(), in_order=True)
    assert all(value.flags.writeable and value.flags.owndata for value in loaded.values())
    x = randn(rng, 5, 2, 3, dtype=dtype)
    assert not np.array_equal(layer(x)[0], other(x)[0])
    other.load_state_dict(loaded)
    assert np.array_equal(layer(x)[0], other(x)[0])


def test_metadata_has_gate_order_version_and_the_kind_of_layer(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    rnnkit.save(LSTM(3, 6, 2, bias=False, proj_size=4, rng=0), path)
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert metadata["gate_order"] == "lstm=i,f,g,o;gru=r,z,n"
    assert metadata["rnnkit.format_version"] == "1"
    config = json.loads(metadata["rnnkit.layers"])[""]
    want = {"kind": "LSTM", "cell": "lstm", "input_size": 3, "hidden_size": 6, "num_layers": 2, "bias": False}
    assert config.items() >= {**want, "proj_size": 4, "bidirectional": False, "batch_first": False}.items()
    rnnkit.save(GRU(3, 6, reset_after=False, rng=0), path)
    layers = rnnkit.load(path).layers
    assert layers[""]["reset_after"] is False
    assert layers[""]["cell"] == "gru_reset_before"


def nest(reset_after: bool) -> Sequential:
    """Nested containers: names with prefixes, and LastState, which adds none."""
    inner = Sequential(GRU(3, 2, reset_after=reset_after, rng=1), Bidirectional(RNN(2, 2, rng=2), merge="sum"))
    return Sequential(LSTM(2, 3, rng=0), inner, LastState(GRU(2, 2, rng=3)))


def test_a_container_round_trips_with_its_cells(tmp_path: Path) -> None:
    path = tmp_path / "nest"
    model = nest(True)
    rnnkit.save(model, path)
    loaded = rnnkit.load(path)
    assert_same(loaded, model.state_dict(), in_order=True)
    cells = {prefix: config["cell"] for prefix, config in loaded.layers.items() if "cell" in config}
    sides = {"1.1.forward.": "rnn_tanh", "1.1.reverse.": "rnn_tanh"}
    assert cells == {"0.": "lstm", "1.0.": "gru", "2.": "gru", **sides} == model.cells
    assert loaded.layers["1.1."] == {"kind": "Bidirectional", "merge": "sum", "batch_first": False}
    assert loaded.layers["2."]["hidden_size"] == 2
    nest(True).load_state_dict(loaded)
    with pytest.raises(ValueError, match=r"'1\.0' are those of a gru cell, and it is a gru_reset_before"):
        nest(False).load_state_dict(loaded)


@pytest.mark.parametrize(
    ("saved", "into", "message"),
    [
        (GRU(2, 3), GRU(2, 3, reset_after=False), "gru cell, and it is a gru_reset_before"),
        (GRU(2, 3, reset_after=False), GRU(2, 3), "gru_reset_before cell, and it is a gru"),
        (RNN(2, 3, nonlinearity="relu"), RNN(2, 3), "rnn_relu cell, and it is a rnn_tanh"),
    ],
)
def test_weights_of_another_cell_are_refused(tmp_path: Path, saved: Any, into: Any, message: str) -> None:
    rnnkit.save(saved, tmp_path / "m.safetensors")
    before = into.state_dict()
    with pytest.raises(ValueError, match=message):
        into.load_state_dict(rnnkit.load(tmp_path / "m.safetensors"))
    assert_same(into.state_dict(), before, in_order=True)


def test_a_mapping_of_every_dtype_and_shape_round_trips(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {f"{name} {shape}": random_bits(rng, name, shape) for name in NAMES for shape in SHAPES}
    tensors['ключ "quoted" \\ \n \x00'] = np.arange(3)
    path = tmp_path / "m.safetensors"
    rnnkit.save(tensors, path)
    assert_same(rnnkit.load(path), tensors, in_order=True)
    assert_same(safetensors.numpy.load_file(path), tensors)


def test_files_of_other_tools_load(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {f"{name}.{k}": random_bits(rng, name, s) for name in NAMES for k, s in enumerate(SHAPES)}
    path = tmp_path / "theirs.safetensors"
    for metadata in (None, {"format": "pt"}, {"gate_order": "gru=r,z,n"}):
        safetensors.numpy.save_file(tensors, path, metadata=metadata)
        loaded = rnnkit.load(path)
        assert_same(loaded, tensors)
        assert loaded.layers == {}


def test_views_and_other_byte_orders_are_saved_by_value(tmp_path: Path) -> None:
    a = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {"t": a.T, "strided": a[::2, ::-1], "big": a.astype(">f4"), "broadcast": np.broadcast_to(a[0], (3, 6))}
    rnnkit.save(tensors, tmp_path / "m")
    for loaded in (rnnkit.load(tmp_path / "m"), safetensors.numpy.load_file(tmp_path / "m")):
        for name, value in tensors.items():
            assert np.array_equal(loaded[name], value), name
            assert loaded[name].dtype == np.float32


def test_bfloat16_round_trips_and_loads_into_a_layer(tmp_path: Path, rng: np.random.Generator) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    layer = LSTM(2, 3, rng=0)
    short = {name: value.astype(ml_dtypes.bfloat16) for name, value in layer.state_dict().items()}
    rnnkit.save(short, tmp_path / "m")
    loaded = rnnkit.load(tmp_path / "m")
    assert_same(loaded, short, in_order=True)
    layer.load_state_dict(loaded)
    assert_same(layer.state_dict(), {name: value.astype(np.float32) for name, value in short.items()}, in_order=True)


def test_a_file_rewritten_by_another_tool_has_a_valid_checksum(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    layer = GRU(2, 3, rng=0)
    rnnkit.save(layer, ours)
    with safetensors.safe_open(ours, framework="np") as file:
        metadata = file.metadata()
    safetensors.numpy.save_file(layer.state_dict(), theirs, metadata={**metadata, "format": "pt"})
    assert ours.read_bytes() != theirs.read_bytes()
    assert_same(rnnkit.load(theirs), layer.state_dict())
    changed = {**layer.state_dict(), "bias_ih_l0": np.zeros(9, np.float32)}
    safetensors.numpy.save_file(changed, theirs, metadata=metadata)
    with pytest.raises(ValueError, match="checksum"):
        rnnkit.load(theirs)


def test_saving_a_loaded_file_gives_the_same_bytes(tmp_path: Path) -> None:
    rnnkit.save(GRU(2, 3, reset_after=False, rng=0), tmp_path / "a")
    rnnkit.save(rnnkit.load(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# Gate order


@pytest.mark.parametrize("claim", ["lstm=i,f,g,o", "gru=r,z,n;lstm=i,f,g,o", " gru=r, z, n ", ""])
def test_our_own_gate_order_loads(tmp_path: Path, claim: str) -> None:
    safetensors.numpy.save_file({"w": np.ones(2)}, tmp_path / "m", metadata={"gate_order": claim})
    assert np.array_equal(rnnkit.load(tmp_path / "m")["w"], np.ones(2))


@pytest.mark.parametrize("claim", ["lstm=i,o,f,g", "gru=z,r,n", "lstm=i,f,g,o;gru=z,r,h", "ifco", "lstm=i,f,g,o,x"])
def test_another_gate_order_is_refused(tmp_path: Path, claim: str) -> None:
    safetensors.numpy.save_file({"w": np.ones(2)}, tmp_path / "m", metadata={"gate_order": claim})
    with pytest.raises(ValueError, match=r"m' cannot be loaded: its metadata gives the gate order"):
        rnnkit.load(tmp_path / "m")


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"w": np.ones(2)}, tmp_path / "m", metadata={"rnnkit.format_version": "3"})
    with pytest.raises(ValueError, match=r"format version must be '1' or '2', got '3'"):
        rnnkit.load(tmp_path / "m")


def crafted(path: Path, layers: str) -> Path:
    """A file of rnnkit, except for its description of the layers."""
    tensors = {"w": np.ones(2, np.float32)}
    metadata = {"gate_order": io.GATE_ORDER, "rnnkit.format_version": "1", "rnnkit.layers": layers}
    metadata["rnnkit.sha256"] = io._digest(tensors, metadata)
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("[" * 100_000, "is not JSON"),
        ('{"": ' * 100_000, "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "must map prefixes of names to mappings, got list"),
        ('{"": 3}', "must map prefixes of names to mappings, got '': 3"),
        ('{"": {"cell": ["x"]}}', r"must name the cell of '' by a string, got \['x'\]"),
    ],
    ids=["deep list", "deep object", "cut", "list", "number", "cell"],
)
def test_a_crafted_description_of_the_layers_is_refused(tmp_path: Path, layers: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"m' cannot be loaded: its rnnkit\.layers {message}"):
        rnnkit.load(crafted(tmp_path / "m", layers))
    assert rnnkit.load(crafted(tmp_path / "m", '{"": {"cell": "gru"}}')).layers == {"": {"cell": "gru"}}


# Loading into a layer


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d.pop("bias_hh_l0"), KeyError, r"missing \['bias_hh_l0'\]"),
        (lambda d: d.update(more=np.zeros(2)), KeyError, r"extra \['more'\]"),
        (lambda d: d.update(bias_hh_l0=np.zeros(3)), ValueError, r"bias_hh_l0 must have shape \(12,\), got \(3,\)"),
        (lambda d: d.update(bias_hh_l0=np.array(["a"] * 12)), TypeError, "bias_hh_l0 must hold real numbers"),
        (lambda d: d.update(bias_hh_l0=np.zeros(12, complex)), TypeError, "bias_hh_l0 must hold real numbers"),
    ],
)
def test_a_load_that_fails_changes_nothing(change: Any, error: type[Exception], message: str) -> None:
    layer = LSTM(2, 3, rng=0)
    before, mapping = layer.state_dict(), LSTM(2, 3, rng=1).state_dict()
    change(mapping)
    with pytest.raises(error, match=message):
        layer.load_state_dict(mapping)
    assert_same(layer.state_dict(), before, in_order=True)


def test_state_dicts_merge_unless_their_cells_contradict() -> None:
    a, b = StateDict({"a": 1}, {"": {"cell": "gru"}}), StateDict({"b": 2}, {"x.": {"cell": "lstm"}})
    joined = a | b
    assert joined == {"a": 1, "b": 2}
    assert joined.layers == {"": {"cell": "gru"}, "x.": {"cell": "lstm"}}
    with pytest.raises(ValueError, match="cannot be both"):
        a | StateDict({}, {"": {"cell": "gru_reset_before"}})


def test_the_gate_order_in_files_is_that_of_the_cells() -> None:
    assert io.GATE_ORDER == "lstm=i,f,g,o;gru=r,z,n"
