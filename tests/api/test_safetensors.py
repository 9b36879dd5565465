"""The safetensors reader and writer: every kind of damage raises an error, and writes are atomic."""

import os
import stat
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnnkit
from rnnkit.io import safetensors_format
from rnnkit.nn.module import StateDict
from tests.api.files import entry, raw_file
from tests.helpers import assert_same

# Files do not depend on the backend; the oracle needs no compilation.
LSTM = partial(rnnkit.LSTM, backend="numpy")

EIGHT = b"\0" * 8
DAMAGE: dict[str, tuple[Any, bytes, str]] = {
    "not JSON": ("{", b"", "not JSON"),
    "not UTF-8": (b'{"\xff":1}', b"", "not JSON in UTF-8"),
    "half a surrogate pair": (
        '{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        EIGHT,
        "not JSON in UTF-8",
    ),
    "too deep": ("[" * 100_000, b"", "not JSON"),
    "a list": ("[]", b"", "must be a JSON object, got list"),
    "null": ("null", b"", "must be a JSON object, got null"),
    "duplicate name": (
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        EIGHT,
        "names 'w' twice",
    ),
    "duplicate field": ('{"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT, "'dtype' twice"),
    "entry is no object": ({"w": 3}, b"", "entry of 'w' must hold"),
    "missing field": ({"w": {"dtype": "F32", "shape": [2]}}, EIGHT, "entry of 'w' must hold"),
    "extra field": ({"w": {**entry(), "more": 1}}, EIGHT, "entry of 'w' must hold"),
    "unknown dtype": ({"w": entry("F99")}, EIGHT, "'w' has dtype 'F99'"),
    "dtype is no text": ({"w": entry(["F32"])}, EIGHT, "'w' has dtype"),
    "float8": ({"w": entry("F8_E4M3", [8])}, EIGHT, "'w' has dtype 'F8_E4M3'"),
    "negative size": ({"w": entry(shape=[-2])}, EIGHT, "shape of whole numbers"),
    "fractional size": ({"w": entry(shape=[2.0])}, EIGHT, "shape of whole numbers"),
    "size true": ({"w": entry(shape=[True, 2])}, EIGHT, "shape of whole numbers"),
    "shape is no list": ({"w": entry(shape=2)}, EIGHT, "shape of whole numbers"),
    "size beyond NumPy": ({"w": entry(shape=[0, 10**30], offsets=[0, 0])}, b"", "NumPy cannot make"),
    "too many axes": ({"w": entry(shape=[1] * 65, offsets=[0, 4])}, EIGHT[:4], "NumPy cannot make"),
    "shape against offsets": ({"w": entry(shape=[3])}, EIGHT, "span 8"),
    "one offset": ({"w": entry(offsets=[0])}, EIGHT, "data_offsets"),
    "negative offset": ({"w": entry(offsets=[-8, 0])}, EIGHT, "data_offsets"),
    "backward offsets": ({"w": entry(offsets=[8, 0])}, EIGHT, "data_offsets"),
    "overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, EIGHT + EIGHT[:4], "'b', .4, 12., overlap"),
    "the same bytes twice": ({"a": entry(), "b": entry()}, EIGHT, "overlap"),
    "gap at the start": ({"a": entry(offsets=[4, 12])}, EIGHT + EIGHT[:4], "gap after byte 0"),
    "gap between": ({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20), "gap after byte 8"),
    "out of range": (
        {"a": entry(), "b": entry(offsets=[8, 16])},
        EIGHT,
        "ends at byte 16 of data, but there are only 8",
    ),
    "bytes to spare": ({"a": entry()}, EIGHT + b"\0", "1 bytes follow"),
    "metadata is no object": ({"__metadata__": [], "a": entry()}, EIGHT, "object of strings"),
    "metadata is no text": ({"__metadata__": {"a": 1}, "a": entry()}, EIGHT, "object of strings"),
    "bool of 2": ({"a": entry("BOOL", [1], [0, 1])}, b"\2", "other than 0 and 1"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_error_names_the_damage(tmp_path: Path, damage: str) -> None:
    header, data, message = DAMAGE[damage]
    path = raw_file(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(ValueError, match=message) as caught:
        rnnkit.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, fewer than the 8"),
        (b"\1\0\0", "3 bytes, fewer than the 8"),
        ((3).to_bytes(8, "little") + b"{}", "3 bytes long, but only 2 bytes follow"),
        (b"\xff" * 8, "but only 0 bytes follow"),
    ],
)
def test_a_header_longer_than_the_file_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rnnkit.load(tmp_path / "bad")


def test_a_header_beyond_the_formats_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(100_000_009 + 8)
    with pytest.raises(ValueError, match="the format allows 100000000"):
        rnnkit.load(path)


def test_the_undamaged_file_loads(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "good", {"a": entry(), "b": entry(offsets=[8, 16])}, np.arange(4, dtype="<f4").tobytes())
    assert_same(
        rnnkit.load(path), {"a": np.array([0, 1], np.float32), "b": np.array([2, 3], np.float32)}, in_order=True
    )


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        rnnkit.load(tmp_path / "none")


MODEL = LSTM(2, 3, 1, proj_size=2, bidirectional=True, rng=5)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("io") / "model"
    rnnkit.save(MODEL, path)
    return path.read_bytes()


def load_damaged(raw: bytes, path: Path) -> StateDict | None:
    """The arrays of a file with these bytes, or None if it raises a ValueError that names the file."""
    path.write_bytes(raw)
    try:
        return rnnkit.load(path)
    except ValueError as problem:
        refusal = str(problem)
    assert str(path) in refusal
    return None


def test_every_flipped_byte_is_detected(model_file: bytes, tmp_path: Path) -> None:
    want, refused = MODEL.state_dict(), 0
    for at in range(len(model_file)):
        raw = bytearray(model_file)
        raw[at] ^= 1 << (at % 8)
        got = load_damaged(bytes(raw), tmp_path / "flipped")
        if got is None:
            refused += 1
        else:
            assert_same(got, want)
    assert refused > 0.9 * len(model_file)


def test_every_truncation_is_detected(model_file: bytes, tmp_path: Path) -> None:
    for at in {*range(0, len(model_file), 5), *range(12), len(model_file) - 1}:
        assert load_damaged(model_file[:at], tmp_path / "cut") is None
    assert load_damaged(model_file + b"\0", tmp_path / "cut") is None
    assert load_damaged(model_file, tmp_path / "cut") is not None


@given(data=st.data())
def test_a_damaged_file_gives_the_arrays_or_a_value_error(
    model_file: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(model_file)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        if data.draw(st.booleans()):
            raw[at : at + 1] = data.draw(st.binary(max_size=3))
        else:
            del raw[at : at + data.draw(st.integers(0, 40))]
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    got = load_damaged(bytes(raw), path)
    if got is not None:
        assert_same(got, MODEL.state_dict())


@given(raw=st.binary(max_size=60), header=st.text(max_size=40))
def test_random_bytes_give_a_value_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes, header: str) -> None:
    path = tmp_path_factory.getbasetemp() / "rubbish"
    load_damaged(raw, path)
    encoded = header.encode("utf-8", "ignore")
    load_damaged(len(encoded).to_bytes(8, "little") + encoded + raw, path)


def test_a_damaged_file_changes_nothing(model_file: bytes, tmp_path: Path) -> None:
    layer = LSTM(2, 3, 1, proj_size=2, bidirectional=True, rng=6)
    before = layer.state_dict()
    (tmp_path / "m").write_bytes(model_file[:-1])
    with pytest.raises(ValueError, match="truncated"):
        layer.load_state_dict(rnnkit.load(tmp_path / "m"))
    assert_same(layer.state_dict(), before, in_order=True)


def test_bfloat16_without_its_package_is_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = raw_file(tmp_path / "m", {"w": entry("BF16", [2], [0, 4])}, b"\0" * 4)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ValueError, match=r"'w' is bfloat16.*ml_dtypes, which is not installed"):
        rnnkit.load(path)


# Writing


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "m"
    rnnkit.save({"w": np.arange(3)}, path)

    def full(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="no space left"):
        rnnkit.save({"w": np.arange(4)}, path)
    assert os.listdir(tmp_path) == ["m"]
    assert np.array_equal(rnnkit.load(path)["w"], np.arange(3))


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions and links")
def test_a_saved_file_has_the_default_mode_or_the_mode_and_link_of_the_previous_file(tmp_path: Path) -> None:
    path, link = tmp_path / "m", tmp_path / "link"
    old = os.umask(0o022)
    try:
        rnnkit.save({"w": np.arange(3)}, path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o600)
    link.symlink_to(path)
    rnnkit.save({"w": np.arange(5)}, link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert rnnkit.load(path)["w"].shape == (5,)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([1, 2], TypeError, "module_or_mapping must be a Module or a mapping.*got list"),
        ({"w": np.array(["a"])}, TypeError, "w has dtype <U1"),
        ({"w": np.array([object()])}, TypeError, "w has dtype object"),
        ({"w": np.zeros(2, np.complex128)}, TypeError, "w has dtype complex128"),
        ({3: np.zeros(2)}, TypeError, "names of arrays must be strings, got 3"),
        ({"__metadata__": np.zeros(2)}, ValueError, "no array may be named '__metadata__'"),
        ({"\ud800": np.zeros(2)}, ValueError, "UTF-8"),
    ],
)
def test_unsupported_values_are_rejected_before_anything_is_written(
    tmp_path: Path, given: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rnnkit.save(given, tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_metadata_must_be_text(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="metadata must map strings to strings"):
        safetensors_format.write(tmp_path / "m", {}, {"a": 1})  # type: ignore[dict-item]
    assert os.listdir(tmp_path) == []
