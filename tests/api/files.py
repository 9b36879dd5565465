"""What the tests of files share: exact comparison of arrays, and files made byte by byte."""

import json
from pathlib import Path
from typing import Any


def assert_same(got: Any, want: Any) -> None:
    """Equal names in equal order, dtypes, shapes, and every bit, NaN included."""
    assert list(got) == list(want)
    assert_same_arrays(got, want)


def assert_same_arrays(got: Any, want: Any) -> None:
    assert set(got) == set(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        assert got[name].shape == value.shape, name
        assert got[name].tobytes() == value.tobytes(), name


def raw_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file with exactly this header (text, bytes or an object) and data, sound or not."""
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}
