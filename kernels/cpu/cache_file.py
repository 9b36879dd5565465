"""One file of cached machine code. It is verified before use, and written as a whole or not at all.

    MAGIC | SHA-256 of the rest | length of the header | header, JSON | machine code, as pickled by Numba

The header says from which sources, by which versions and for which processor the code was compiled, so that a file can
be judged without unpickling it. The digest detects damage. It does not authenticate the file: a cache folder must be as
trustworthy as the package itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

MAGIC = b"rnnkit kernel 1\n"
SUFFIX = ".nbc"
TEMPORARY = ".tmp"
_DIGEST_BYTES = 32
_LENGTH_BYTES = 4
_BODY = len(MAGIC) + _DIGEST_BYTES


class DamagedFile(Exception):
    """The file's bytes are not those that were written. The text is the reason, without the file's name."""


def encode(header: dict[str, str], code: bytes) -> bytes:
    """The content of a file."""
    header_bytes = json.dumps(header).encode()
    body = len(header_bytes).to_bytes(_LENGTH_BYTES, "little") + header_bytes + code
    return MAGIC + hashlib.sha256(body).digest() + body


def decode(data: bytes) -> tuple[dict[str, str], bytes]:
    """Header and code of a file's content. Raises DamagedFile if any byte is missing or changed."""
    if not data:
        raise DamagedFile("it is empty")
    if not data.startswith(MAGIC):
        raise DamagedFile("it does not start as a file of this cache does")
    if hashlib.sha256(memoryview(data)[_BODY:]).digest() != data[len(MAGIC) : _BODY]:
        raise DamagedFile("its checksum is wrong")
    start = _BODY + _LENGTH_BYTES
    end = start + int.from_bytes(data[_BODY:start], "little")
    return json.loads(data[start:end]), data[end:]


def write_atomically(folder: Path, name: str, data: bytes) -> None:
    """Writes a file, over one of the same name, and makes the folder if it is missing. Raises OSError.

    Readers and other writers see the old file or the new one, never a part of either.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name}.{secrets.token_hex(8)}{TEMPORARY}"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, folder / name)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_to_first(folders: Iterable[Path], name: str, data: bytes) -> list[str]:
    """Writes to the first writable folder. Returns [], or if none is writable, the reason for each folder."""
    problems = []
    for folder in folders:
        try:
            write_atomically(folder, name, data)
        except OSError as problem:
            problems.append(f"{folder}: {problem.strerror or problem}")
        else:
            return []
    return problems
