"""A file of cached machine code: checked before it is used, and written whole or not at all.

    MAGIC | SHA-256 of all that follows | length of the header | header, JSON | machine code, as pickled by Numba

The header says what the code was compiled from, with and for, so that a file can be judged without unpickling it.
The digest finds damage. It does not prove who wrote the file: a cache folder must be as trusted as the package.
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
SUFFIX, TEMPORARY = ".nbc", ".tmp"
_DIGEST_BYTES, _LENGTH_BYTES = 32, 4
_BODY = len(MAGIC) + _DIGEST_BYTES


class DamagedFile(Exception):
    """A file whose bytes are not those that were written. The text is the reason, without the file's name."""


def encode(header: dict[str, str], code: bytes) -> bytes:
    """The bytes of a file."""
    described = json.dumps(header).encode()
    body = len(described).to_bytes(_LENGTH_BYTES, "little") + described + code
    return MAGIC + hashlib.sha256(body).digest() + body


def decode(data: bytes) -> tuple[dict[str, str], bytes]:
    """Header and code of a file's bytes. Raises DamagedFile where any byte is missing or another one."""
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
    """Puts a file into a folder, which is made where it is missing, in place of one of the same name. Raises OSError.

    Readers and other writers meet the old file or the new one, never a part of either.
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
    """Writes to the first folder that takes the file. Gives the reasons of all of them where none does, else []."""
    problems = []
    for folder in folders:
        try:
            write_atomically(folder, name, data)
        except OSError as problem:
            problems.append(f"{folder}: {problem.strerror or problem}")
        else:
            return []
    return problems
