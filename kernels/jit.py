"""How the CPU kernels are compiled: Numba without the GIL, FMA allowed, machine code cached on disk.

Numba's own `cache=True` looks only at the file a function stands in and cannot key a function made by a factory,
as ours are (one a cell and dtype). So entry points get a cache keyed by what they were made for and stamped with
a digest of every file in this folder: an edit anywhere recompiles, nothing else does. Where no folder can be
written, nothing is cached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

# `contract` lets a*b+c fuse; nothing else of fast-math, so NaN, infinities and the order of sums keep their meaning.
# error_model: division by zero gives inf, as in NumPy, without a branch at each division.
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}


def inner(function: Callable) -> Any:
    """A function that other kernels call; it is compiled into them."""
    return numba.njit(function, forceinline=True, **_OPTIONS)


def outer(function: Callable) -> Any:
    """A function that other kernels call, too large to be compiled into each place that does."""
    return numba.njit(function, forceinline=False, **_OPTIONS)  # said, or its first caller's would hold


def entry(key: tuple[str, ...]) -> Callable[[Callable], Any]:
    """A function that Python calls, compiled at its first call and cached under `key` (its cell, its dtype, …)."""

    def decorate(function: Callable) -> Any:
        dispatcher: Any = numba.njit(function, **_OPTIONS)
        with suppress(RuntimeError):  # raised where Numba finds no folder it may write to
            dispatcher._cache = _KernelCache(function, key)
        return dispatcher

    return decorate


@cache
def sources_digest() -> str:
    """Digest of every Python file in this folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class _KernelCache(FunctionCache):
    """Numba's function cache, one index file a key, fresh while `sources_digest` is."""

    def __init__(self, function: Callable, key: tuple[str, ...]) -> None:
        super().__init__(function)
        self._key = key
        name = "-".join((self._impl.filename_base, *key))
        self._cache_file = IndexDataCacheFile(self._cache_path, name, sources_digest())

    def _index_key(self, sig: Any, codegen: Any) -> tuple:
        return sig, codegen.magic_tuple(), self._key
