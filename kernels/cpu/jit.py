"""How the CPU kernels are compiled: by Numba, without the GIL, with fused multiply-add, and cached on disk.

The cache is in cache.py. Its key is what a function was made for, and its stamp is a digest of all sources that kernels
are compiled from, so that an edit to any of them compiles all kernels again.
"""

from __future__ import annotations

import gc
import secrets
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numba
from numba import types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from rnnkit.kernels.cpu.cache import KernelCache
from rnnkit.kernels.cpu.compilers import IROnlyCompiler, KernelCompiler

# Of the fast-math flags only `contract`, which lets a*b+c fuse. NaN, infinities and the order of sums keep their
# meaning. error_model: a division by zero gives inf, as in NumPy, so that no division needs a branch.
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
# More options, for functions that only Python calls, and for those that only compiled code calls.
_CALLED_BY_PYTHON: dict[str, Any] = {"pipeline_class": KernelCompiler, "no_cfunc_wrapper": True}
_CALLED_BY_KERNELS: dict[str, Any] = {
    "pipeline_class": IROnlyCompiler,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "_nrt": False,  # no reference counts: kernels hold no objects
}

INTEGER = types.intp  # the type of all integers, addresses and flags

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
    original = dispatcher.get_call_template

    @cache  # Numba resolves every call twice
    def resolve(args: tuple[Any, ...], kws: tuple[tuple[str, Any], ...]) -> Any:
        return original(args, dict(kws))

    def get_call_template(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        named = tuple((name, _int64_if_integer(kind)) for name, kind in kws.items())
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
        kernel_cache = KernelCache(function, key)  # before the renaming: the file's name contains the function's
        dispatcher: Any = numba.njit(_rename(function, "-".join(key)), **_CALLED_BY_PYTHON, **_OPTIONS)
        dispatcher._cache = kernel_cache
        dispatcher.compile = _without_collection(dispatcher.compile)
        return dispatcher

    return decorate


def _without_collection(compile_: Callable[..., Any]) -> Callable[..., Any]:
    """`compile_` with the garbage collector off: compiling creates many objects and little garbage."""

    def run(*arguments: Any) -> Any:
        was_enabled = gc.isenabled()
        try:
            gc.disable()
            return compile_(*arguments)
        finally:
            if was_enabled:
                gc.enable()

    return run


class Native:
    """A function that Python calls, of fixed argument types. Compiled, or loaded from the cache, at its first call."""

    def __init__(self, dispatcher: Any, argument_types: tuple[Any, ...]) -> None:
        self._dispatcher = dispatcher
        self._argument_types = argument_types
        self._compiled: Callable[..., Any] = self._compile_and_call

    def __call__(self, *arguments: Any) -> Any:
        return self._compiled(*arguments)

    def compile(self) -> None:
        """Compiles the function, or loads it, unless this was done before."""
        self._compiled = self._dispatcher.compile(self._argument_types)

    def _compile_and_call(self, *arguments: Any) -> Any:
        self.compile()
        return self._compiled(*arguments)

    @property
    def stats(self) -> Any:
        """Numba's counts of the cache: `cache_hits` and `cache_misses`."""
        return self._dispatcher.stats


def native(key: tuple[str, ...], argument_types: tuple[Any, ...]) -> Callable[[Callable[..., Any]], Native]:
    """An `entry` with fixed types: a call skips Numba's inspection of each argument, 40 ns per array."""

    def decorate(function: Callable[..., Any]) -> Native:
        return Native(entry(key)(function), argument_types)

    return decorate


class _ByAddress(CFunc):
    """A function that native code calls by its `address`: the function itself, not Numba's C wrapper around it."""

    @global_compiler_lock
    def compile(self: Any) -> None:
        compiled = self._cache.load_overload(self._sig, self._targetdescr.target_context)
        if compiled is None:
            compiled = self._compile_uncached()
            self._cache.save_overload(self._sig, compiled)
        else:
            self._cache_hits += 1
        self._library = compiled.library
        self._wrapper_name = compiled.fndesc.llvm_func_name
        self._wrapper_address = self._library.get_pointer_to_function(self._wrapper_name)


def _compiled(kind: type[CFunc], key: tuple[str, ...], arguments: int, function: Callable[..., Any]) -> Any:
    """`function` of that many integers, compiled at once or loaded from the cache."""
    kernel_cache = KernelCache(function, key)
    signature = ((types.intp,) * arguments, types.void)
    options = {name: value for name, value in _OPTIONS.items() if name != "nogil"}
    pipeline: Any = KernelCompiler
    callback: Any = kind(_rename(function, "-".join(key)), signature, {}, options, pipeline)
    callback._cache = kernel_cache
    _without_collection(callback.compile)()
    return callback


def job(key: tuple[str, ...]) -> Callable[[Callable[..., Any]], CFunc]:
    """Compiles a function of two integers that native code calls by its `address`, at once. Cached as an entry is."""

    def decorate(function: Callable[..., Any]) -> CFunc:
        return _compiled(CFunc, key, 2, function)

    return decorate


def symbol_of(key: tuple[str, ...]) -> str:
    """The symbol of a `shared` function."""
    return "-".join(("rnnkit", *key))


def shared(key: tuple[str, ...], arguments: int) -> Callable[[Callable[..., Any]], Any]:
    """Compiles a function of that many integers which jobs call, once for all of them, at once. Cached as a job is.

    Jobs find it by a symbol, so it must exist before their machine code is loaded: make it in the function that makes
    the job. The call costs no more than that of a function which is compiled into the job.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        symbol = symbol_of(key)
        made = _compiled(_ByAddress, key, arguments, function)
        _all_functions.append(made)
        llvm.add_symbol(symbol, made.address)
        kinds = (types.intp,) * arguments

        @intrinsic
        def call(typing: Any, *values: Any) -> Any:
            def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                values = cgutils.unpack_tuple(builder, args[0], arguments)
                values = [
                    context.cast(builder, v, kind, types.intp) for v, kind in zip(values, sig.args[0], strict=True)
                ]
                function_type = context.call_conv.get_function_type(types.void, kinds)
                outside = cgutils.get_or_insert_function(builder.module, function_type, symbol)
                context.call_conv.call_function(builder, outside, types.void, kinds, values)
                return context.get_dummy_value()

            return types.void(types.StarArgTuple(values)), emit

        return call

    return decorate
