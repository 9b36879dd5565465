"""How the CPU kernels are compiled: Numba without the GIL, FMA allowed, machine code cached on disk.

The cache is in cache.py: keyed by what a function was made for, and stamped with a digest of every file in this folder
that kernels are compiled from. An edit to one of them recompiles.
"""

from __future__ import annotations

import gc
import secrets
from collections.abc import Callable
from typing import Any

import numba
from numba import types
from numba.core.ccallback import CFunc

from rnnkit.kernels.cpu.cache import KernelCache
from rnnkit.kernels.cpu.inlining import Inlined

# `contract` lets a*b+c fuse; nothing else of fast-math, so NaN, infinities and the order of sums keep their meaning.
# error_model: division by zero gives inf, as in NumPy, without a branch at each division.
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
# Options of functions that only compiled code calls.
_CALLED: dict[str, Any] = {"pipeline_class": Inlined, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

# Every function made below, also where no job uses it. Numba has a callback for when one is collected, and an exception
# that a signal handler raises in the callback would be lost.
_kept: list[Any] = []


def _named_apart(function: Callable, name: str) -> Callable:
    """`function`, with a name in machine code that no other has.

    Numba numbers functions from 1 in each process, so two factories' products of one name may get one symbol in files
    of the cache that different processes wrote; and of two symbols loaded later the first would serve for both.
    """
    function.__qualname__ += f".{name}"
    return function


def _plain(kind: Any) -> Any:
    kind = types.unliteral(kind)
    return types.intp if isinstance(kind, types.Integer | types.Boolean) else kind


def _of_words(dispatcher: Any) -> Any:
    """The function, all of whose whole numbers and flags are int64, for callers that are compiled.

    Numba compiles a function anew for every mix of types and of constants that it is called with, and so all that the
    function calls. What is inlined knows its constants all the same.
    """
    resolve = dispatcher.get_call_template

    def get_call_template(args: tuple, kws: dict) -> Any:
        return resolve(tuple(map(_plain, args)), {name: _plain(kind) for name, kind in kws.items()})

    dispatcher.get_call_template = get_call_template
    _kept.append(dispatcher)
    return dispatcher


def inner(function: Callable) -> Any:
    """A function that other kernels call; it is compiled into them."""
    _named_apart(function, secrets.token_hex(8))
    return _of_words(numba.njit(function, forceinline=True, **_CALLED, **_OPTIONS))


def outer(function: Callable) -> Any:
    """A function that other kernels call, too large to be compiled into each place that does."""
    _named_apart(function, secrets.token_hex(8))
    # forceinline is given, or that of the first caller would hold.
    return _of_words(numba.njit(function, forceinline=False, **_CALLED, **_OPTIONS))


def entry(key: tuple[str, ...]) -> Callable[[Callable], Any]:
    """A function that Python calls, compiled at its first call and cached under `key` (its cell, its dtype, …)."""

    def decorate(function: Callable) -> Any:
        stored = KernelCache(function, key)  # whose files go by the name as it was
        dispatcher: Any = numba.njit(_named_apart(function, "-".join(key)), **_OPTIONS)
        dispatcher._cache = stored
        return dispatcher

    return decorate


def job(key: tuple[str, ...]) -> Callable[[Callable], CFunc]:
    """A function of two whole numbers that native code calls by its `address`; compiled here, and cached as entries."""

    def decorate(function: Callable) -> CFunc:
        stored = KernelCache(function, key)
        signature = ((types.intp, types.intp), types.void)
        options = {name: value for name, value in _OPTIONS.items() if name != "nogil"}
        callback: Any = CFunc(_named_apart(function, "-".join(key)), signature, {}, options)
        callback._cache = stored
        collects = gc.isenabled()
        try:
            # Compiling makes many objects and little garbage; looking for garbage would take 5% of the time.
            gc.disable()
            callback.compile()
        finally:
            if collects:
                gc.enable()
        return callback

    return decorate
