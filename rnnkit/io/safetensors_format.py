"""The safetensors format for NumPy arrays: a strict reader and an atomic writer.

    8 bytes   N, the length of the header, little-endian
    N bytes   JSON {name: {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, "__metadata__": {str: str}}
    the rest  the arrays, row-major and little-endian; offsets count from here and cover it with no hole or overlap

The format is Hugging Face's. The reader trusts nothing: a file either gives its arrays or a ValueError that names the
file and what is wrong with it. Nothing is allocated before the header has been held against the file's size.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
CODES = {name: code for code, name in DTYPES.items()}
METADATA = "__metadata__"
LONGEST_HEADER = 100_000_000  # bytes: the limit of the format's own library, which would refuse a longer one


class _Damage(ValueError):
    """What is wrong with a file, in words; `read` adds which file."""


class _Entry(NamedTuple):
    """Where one array lies in the data: its dtype code, shape, and bytes [begin, end)."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every array of a file by name, in the header's order, and its metadata.

    The arrays are writable and own their memory. Raises OSError where the file cannot be read, ValueError naming the
    file and the fault where it is not a sound safetensors file or holds a dtype NumPy lacks here.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _parse(_header_bytes(file, size))
            metadata = _metadata(header.pop(METADATA, {}))
            entries = {name: _entry(name, found) for name, found in header.items()}
            _check_layout(entries, size - file.tell())
            arrays = {}
            for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
                arrays[name] = _read_array(file, name, entry)
    except _Damage as damage:
        raise ValueError(f"{os.fspath(path)!r} cannot be read as safetensors: {damage}") from damage
    return {name: arrays[name] for name in entries}, metadata


def _header_bytes(file: BinaryIO, size: int) -> bytes:
    if size < 8:
        raise _Damage(f"it has {size} bytes, fewer than the 8 of the header's length")
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise _Damage(f"its header would be {length} bytes long, but only {size - 8} bytes follow: truncated?")
    if length > LONGEST_HEADER:
        raise _Damage(f"its header is {length} bytes long; the format allows {LONGEST_HEADER}")
    return file.read(length)


def _parse(raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise _Damage(f"its header names {name!r} twice")
            found[name] = value
        return found

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
        json.dumps(header, ensure_ascii=False).encode("utf-8")  # an escape may smuggle in half a surrogate pair
    except _Damage:
        raise
    except (ValueError, RecursionError) as problem:
        raise _Damage(f"its header is not JSON in UTF-8 ({problem})") from problem
    if not isinstance(header, dict):
        raise _Damage(f"its header must be a JSON object, got {_json_kind(header)}")
    return header


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _Damage(f"its {METADATA} must be a JSON object of strings")
    return found


def _entry(name: str, found: Any) -> _Entry:
    if not isinstance(found, dict) or set(found) != {"dtype", "shape", "data_offsets"}:
        said = sorted(found) if isinstance(found, dict) else _json_kind(found)
        raise _Damage(f"the entry of {name!r} must hold dtype, shape and data_offsets, got {said}")
    code, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise _Damage(f"{name!r} has dtype {code!r}, which is none of {', '.join(DTYPES)}")
    if not _sizes(shape):
        raise _Damage(f"{name!r} must have a shape of whole numbers, got {shape!r}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Damage(f"{name!r} must have data_offsets [begin, end], got {offsets!r}")
    needs = math.prod(shape) * _numpy_dtype(name, code).itemsize
    if offsets[1] - offsets[0] != needs:
        raise _Damage(
            f"{name!r} is {code} of shape {tuple(shape)}, {needs} bytes, but its offsets {offsets} span "
            f"{offsets[1] - offsets[0]}"
        )
    return _Entry(code, tuple(shape), offsets[0], offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _json_kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _numpy_dtype(name: str, code: str) -> np.dtype:
    """The little-endian NumPy dtype of a code; bfloat16 comes from ml_dtypes, which is no requirement of rnnkit."""
    if code != "BF16":
        return np.dtype(DTYPES[code]).newbyteorder("<")
    try:
        import ml_dtypes
    except ImportError as problem:
        raise _Damage(
            f"{name!r} is bfloat16, a dtype NumPy has only with the package ml_dtypes, which is not installed"
        ) from problem
    return np.dtype(ml_dtypes.bfloat16)


def _check_layout(entries: dict[str, _Entry], size: int) -> None:
    """The entries must cover the `size` bytes of data exactly once."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            fault = "overlap the array before" if entry.begin < at else f"leave a hole after byte {at}"
            raise _Damage(f"the offsets of {name!r}, [{entry.begin}, {entry.end}], {fault}")
        if entry.end > size:
            raise _Damage(f"{name!r} ends at byte {entry.end} of data, but there are only {size}: truncated?")
        at = entry.end
    if at != size:
        raise _Damage(f"{size - at} bytes follow the last array")


def _read_array(file: BinaryIO, name: str, entry: _Entry) -> np.ndarray:
    try:
        value = np.empty(entry.shape, _numpy_dtype(name, entry.code))
    except (ValueError, OverflowError) as problem:
        raise _Damage(f"{name!r} has shape {entry.shape}, which NumPy cannot make ({problem})") from problem
    raw = as_bytes(value)
    if raw.size and file.readinto(raw.data) != raw.size:  # type: ignore[attr-defined]
        raise _Damage(f"it ended inside {name!r} while it was being read")
    if entry.code == "BOOL" and raw.size and raw.max() > 1:
        raise _Damage(f"{name!r} is BOOL but holds bytes other than 0 and 1")
    return value


def as_bytes(value: np.ndarray) -> np.ndarray:
    """A flat uint8 view of a contiguous array."""
    return value.reshape(-1).view(np.uint8)


def little_endian(name: str, value: np.ndarray) -> np.ndarray:
    """`value` as the file holds it: row-major and little-endian. Raises TypeError for a dtype the format lacks."""
    if value.dtype.name not in CODES:
        raise TypeError(f"{name} has dtype {value.dtype}; safetensors files hold {', '.join(CODES)}")
    if value.dtype.name == "bfloat16":
        return np.asarray(value, order="C")
    return np.asarray(value, value.dtype.newbyteorder("<"), order="C")


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays and metadata to `path`, whole or not at all: a crash or full disk leaves any older file as it was.

    Raises TypeError or ValueError naming the array before anything is written, OSError where the folder refuses.
    """
    for key, text in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"metadata must map strings to strings, got {key!r}: {text!r}")
    for name in tensors:
        if not isinstance(name, str):
            raise TypeError(f"names of arrays must be strings, got {name!r}")
        if name == METADATA:
            raise ValueError(f"no array may be named {METADATA!r}: the format keeps that name for itself")
    arrays = {name: little_endian(name, value) for name, value in tensors.items()}
    # Wider items first, so that every array lies at a multiple of its own item size.
    order = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    raw = _header(arrays, order, dict(metadata or {}))
    _replace(path, [len(raw).to_bytes(8, "little"), raw, *(as_bytes(arrays[name]).data for name in order)])


def _header(arrays: dict[str, np.ndarray], order: list[str], metadata: dict[str, str]) -> bytes:
    at, offsets = 0, {}
    for name in order:
        offsets[name] = [at, at + arrays[name].nbytes]
        at += arrays[name].nbytes
    header: dict[str, Any] = {METADATA: metadata} if metadata else {}
    for name, value in arrays.items():
        code = CODES[value.dtype.name]
        header[name] = {"dtype": code, "shape": list(value.shape), "data_offsets": offsets[name]}
    try:
        raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as problem:
        raise ValueError(f"names and metadata must be text that UTF-8 can hold ({problem})") from problem
    raw += b" " * (-len(raw) % 8)
    if len(raw) > LONGEST_HEADER:
        raise ValueError(f"the header would be {len(raw)} bytes long; the format allows {LONGEST_HEADER}")
    return raw


def _replace(path: str | os.PathLike[str], parts: list[Any]) -> None:
    """Writes `parts` beside `path` (beside what it points to, if a link) and moves the finished file there."""
    target = os.path.realpath(path)
    temporary = f"{target}.{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
