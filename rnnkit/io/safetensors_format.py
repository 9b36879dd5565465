"""The safetensors format for NumPy arrays: a strict reader and an atomic writer.

    8 bytes   N, the length of the header, little-endian
    N bytes   JSON {name: {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, "__metadata__": {str: str}}
    the rest  the arrays, C-contiguous and little-endian; offsets count from here and cover it without gap or overlap

The format is Hugging Face's (https://github.com/huggingface/safetensors). The reader trusts nothing: a damaged file
raises a ValueError that names the file and the fault. The header is checked against the file's size before anything is
allocated.
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
LONGEST_HEADER = 100_000_000  # bytes; the safetensors library refuses longer headers


class _Damage(ValueError):
    """A fault in a file; `read` adds the name of the file to the message."""


class _Entry(NamedTuple):
    """Header entry of one array: its dtype code, its shape, and its bytes [begin, end) of the data."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads every array of a file, and its metadata.

    The arrays are writable and own their memory.

    Args:
        path: the file.

    Returns:
        A pair: name -> array, in the header's order, and the metadata, a dict of strings.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not valid safetensors, or needs a dtype that NumPy lacks here.

    Examples:
        >>> import numpy as np
        >>> from rnnkit.io.safetensors_format import read, write
        >>> write("a.safetensors", {"w": np.arange(3)}, {"made by": "an example"})
        >>> read("a.safetensors")
        ({'w': array([0, 1, 2])}, {'made by': 'an example'})
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _parse(_header_bytes(file, size))
            metadata = _metadata(header.pop(METADATA, {}))
            entries = {name: _entry(name, fields) for name, fields in header.items()}
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
        mapping: dict[str, Any] = {}
        for name, value in pairs:
            if name in mapping:
                raise _Damage(f"its header names {name!r} twice")
            mapping[name] = value
        return mapping

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
        json.dumps(header, ensure_ascii=False).encode("utf-8")  # rejects escapes of unpaired surrogates
    except _Damage:
        raise
    except (ValueError, RecursionError) as problem:
        raise _Damage(f"its header is not JSON in UTF-8 ({problem})") from problem
    if not isinstance(header, dict):
        raise _Damage(f"its header must be a JSON object, got {_json_kind(header)}")
    return header


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _Damage(f"its {METADATA} must be a JSON object of strings")
    return value


def _entry(name: str, fields: Any) -> _Entry:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        actual = sorted(fields) if isinstance(fields, dict) else _json_kind(fields)
        raise _Damage(f"the entry of {name!r} must hold dtype, shape and data_offsets, got {actual}")
    code = fields["dtype"]
    shape = fields["shape"]
    offsets = fields["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise _Damage(f"{name!r} has dtype {code!r}, which is none of {', '.join(DTYPES)}")
    if not _sizes(shape):
        raise _Damage(f"{name!r} must have a shape of whole numbers, got {shape!r}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Damage(f"{name!r} must have data_offsets [begin, end], got {offsets!r}")
    size = math.prod(shape) * _numpy_dtype(name, code).itemsize
    if offsets[1] - offsets[0] != size:
        raise _Damage(
            f"{name!r} is {code} of shape {tuple(shape)}, {size} bytes, but its offsets {offsets} span "
            f"{offsets[1] - offsets[0]}"
        )
    return _Entry(code, tuple(shape), offsets[0], offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _json_kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _numpy_dtype(name: str, code: str) -> np.dtype:
    """The little-endian NumPy dtype of a code. bfloat16 needs ml_dtypes, an optional dependency."""
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
    """Raises unless the entries cover the `size` bytes of data exactly once."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            fault = "overlap the array before" if entry.begin < at else f"leave a gap after byte {at}"
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
    """Returns `value` C-contiguous and little-endian, as files store it. Raises TypeError if the format lacks its
    dtype."""
    if value.dtype.name not in CODES:
        raise TypeError(f"{name} has dtype {value.dtype}; safetensors files hold {', '.join(CODES)}")
    if value.dtype.name == "bfloat16":
        return np.asarray(value, order="C")
    return np.asarray(value, value.dtype.newbyteorder("<"), order="C")


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays and metadata to a temporary file and renames it. A crash or a full disk leaves an older file
    intact.

    Args:
        path: the file; a symbolic link is followed.
        tensors: name -> array.
        metadata: strings by name.

    Raises:
        TypeError: a name or a metadata value is not a string, or an array has a dtype that the format lacks.
        ValueError: a name is reserved or is not valid Unicode, or the header is too long.
        OSError: the file cannot be written.

    Examples:
        >>> import numpy as np
        >>> from rnnkit.io.safetensors_format import read, write
        >>> write("b.safetensors", {"w": np.zeros(2, np.float32)})
        >>> read("b.safetensors")[0]["w"]
        array([0., 0.], dtype=float32)
    """
    for key, text in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"metadata must map strings to strings, got {key!r}: {text!r}")
    for name in tensors:
        if not isinstance(name, str):
            raise TypeError(f"names of arrays must be strings, got {name!r}")
        if name == METADATA:
            raise ValueError(f"no array may be named {METADATA!r}: the format reserves that name")
    arrays = {name: little_endian(name, value) for name, value in tensors.items()}
    # Arrays are sorted by decreasing item size, so that each starts at a multiple of its item size.
    order = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    raw = _header(arrays, order, dict(metadata or {}))
    _replace(path, [len(raw).to_bytes(8, "little"), raw, *(as_bytes(arrays[name]).data for name in order)])


def _header(arrays: dict[str, np.ndarray], order: list[str], metadata: dict[str, str]) -> bytes:
    at = 0
    offsets = {}
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
        raise ValueError(f"names and metadata must be strings that UTF-8 can encode ({problem})") from problem
    raw += b" " * (-len(raw) % 8)
    if len(raw) > LONGEST_HEADER:
        raise ValueError(f"the header would be {len(raw)} bytes long; the format allows {LONGEST_HEADER}")
    return raw


def _replace(path: str | os.PathLike[str], parts: list[Any]) -> None:
    """Writes `parts` to a temporary file beside `path` (beside its target, if it is a link) and renames it."""
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
