"""How the CPU kernels are compiled: by Numba, without the GIL, with fused multiply-add, and cached on disk.

The cache is in cache.py. Its key is what a function was made for, and its stamp is a digest of all sources that kernels
are compiled from, so that an edit to any of them compiles all kernels again.
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
from rnnkit.kernels.cpu.inlining import IROnlyCompiler

# Of the fast-math flags only `contract`, which lets a*b+c fuse. NaN, infinities and the order of sums keep their
# meaning. error_model: a division by zero gives inf, as in NumPy, so that no division needs a branch.
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
# More options, for functions that only compiled code calls.
_CALLED_BY_KERNELS: dict[str, Any] = {
    "pipeline_class": IROnlyCompiler,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}

# References to every function made below, also to those that no job uses. Numba registers a callback for the collection
# of a function, and Python would lose an exception that a signal handler raises inside that callback.
_all_functions: list[Any] = []


def _rename(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`function` with a unique name in machine code.

    Numba numbers functions from 1 in each process. So the products of two factories may get the same symbol in cache
    files that different processes wrote. If both were loaded, the first would serve for both.
    """
    function.__qualname__ += f".{name}"
    return function


def _int64_if_integer(kind: Any) -> Any:
    kind = types.unliteral(kind)
    return types.intp if isinstance(kind, types.Integer | types.Boolean) else kind


def _with_int64_arguments(dispatcher: Any) -> Any:
    """The function, with all integers and flags passed as int64 when compiled code calls it.

    Numba would compile a function, and all that it calls, for each combination of argument types and constants. An
    inlined function sees its constants all the same.
    """
    resolve = dispatcher.get_call_template

    def get_call_template(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        named = {name: _int64_if_integer(kind) for name, kind in kws.items()}
        return resolve(tuple(map(_int64_if_integer, args)), named)

    dispatcher.get_call_template = get_call_template
    _all_functions.append(dispatcher)
    return dispatcher


def inner(function: Callable[..., Any]) -> Any:
    """Compiles a function that other kernels call, always inlined into them."""
    _rename(function, secrets.token_hex(8))
    return _with_int64_arguments(numba.njit(function, forceinline=True, **_CALLED_BY_KERNELS, **_OPTIONS))


def outer(function: Callable[..., Any]) -> Any:
    """Compiles a function that other kernels call and that is too large to be inlined at each call."""
    _rename(function, secrets.token_hex(8))
    # forceinline=False is explicit, since Numba would otherwise take the option over from the first caller.
    return _with_int64_arguments(numba.njit(function, forceinline=False, **_CALLED_BY_KERNELS, **_OPTIONS))


def entry(key: tuple[str, ...]) -> Callable[[Callable[..., Any]], Any]:
    """Compiles a function that Python calls, at its first call. Cached under `key` (its name, cell, dtype, …)."""

    def decorate(function: Callable[..., Any]) -> Any:
        cache = KernelCache(function, key)  # before the renaming: the file's name contains the function's
        dispatcher: Any = numba.njit(_rename(function, "-".join(key)), **_OPTIONS)
        dispatcher._cache = cache
        return dispatcher

    return decorate


def job(key: tuple[str, ...]) -> Callable[[Callable[..., Any]], CFunc]:
    """Compiles a function of two integers that native code calls by its `address`, at once. Cached as an entry is."""

    def decorate(function: Callable[..., Any]) -> CFunc:
        cache = KernelCache(function, key)
        signature = ((types.intp, types.intp), types.void)
        options = {name: value for name, value in _OPTIONS.items() if name != "nogil"}
        callback: Any = CFunc(_rename(function, "-".join(key)), signature, {}, options)
        callback._cache = cache
        was_enabled = gc.isenabled()
        try:
            # Compiling creates many objects and little garbage, so collecting it is not worth its time.
            gc.disable()
            callback.compile()
        finally:
            if was_enabled:
                gc.enable()
        return callback

    return decorate
