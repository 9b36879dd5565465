"""Numba's compiler as the kernels use it, without what takes time and serves other functions.

`KernelCompiler` leaves out passes, and remembers the types of operators. `IROnlyCompiler` is for functions that only
compiled code calls. It stops at LLVM IR, which their callers link in.

Numba's own compiler optimises each function together with all that it calls, and generates machine code for it, before
the function's callers do the same again. A job calls about sixty functions, nested up to nine deep, so most of the time
of a first call would go into machine code that nothing runs.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from numba import _dynfunc, types  # type: ignore[attr-defined]
from numba.core.codegen import CodeLibrary, JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, _LowerResult
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering, NopythonRewrites, NopythonTypeInference
from numba.core.untyped_passes import InlineClosureLikes

from rnnkit.kernels.cpu.vec_type import VecType


class _IRLibrary(JITCodeLibrary):
    """The unoptimised LLVM IR of one function, for other libraries to link in. It has no machine code.

    It does not contain the functions that it calls. Each is a library of its own, see `libraries`.
    """

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalize_dynamic_globals()
        self._finalized = True

    @property
    def libraries(self) -> list[CodeLibrary]:
        """This library and those that it calls, callers first: LLVM links a function only if a call of it exists."""
        return list(dict.fromkeys([self, *self._linking_libraries]))


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    """Lowers into an `_IRLibrary`. Numba requires a function object of every overload; this one's cannot be called."""

    _name = "rnnkit_lowering"

    def run_pass(self, state: Any) -> bool:
        codegen = state.targetctx.codegen()
        state.library = _IRLibrary(codegen, state.func_id.func_qualname)
        state.flags.no_compile = True
        changed = super().run_pass(state)
        lowered = state["cr"]
        description = lowered.fndesc
        name = description.qualname.split(".")[-1]
        module = description.lookup_module()
        uncallable = _dynfunc.make_function(module, name, "called by compiled code alone", 0, lowered.env, ())
        state.targetctx.insert_user_function(uncallable, description, state.library.libraries)
        state["cr"] = _LowerResult(description, lowered.call_helper, cfunc=uncallable, env=lowered.env)
        return changed


class _CachedOperators:
    """A typing context that remembers the types of operators and intrinsics on numbers.

    Numba tries all definitions of an operator at each use of it, NumPy's included, which took a tenth of a first call.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._found: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def resolve_function_type(self, function: Any, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        """The signature of a call, as Numba's typing context gives it."""
        if kws or not isinstance(function, types.Function) or not all(map(_is_number, args)):
            return self._context.resolve_function_type(function, args, kws)
        key = (function, args)
        found = self._found.get(key)
        if found is None:
            found = self._context.resolve_function_type(function, args, kws)
            self._found[key] = found
        return found


_cached_operators = cache(_CachedOperators)


def _is_number(kind: Any) -> bool:
    return isinstance(kind, types.Number | types.Boolean | VecType)


@register_pass(mutates_CFG=True, analysis_only=False)
class _TypeInference(NopythonTypeInference):
    """Numba's type inference with `_CachedOperators`."""

    _name = "rnnkit_type_inference"

    def run_pass(self, state: Any) -> bool:
        context = state.typingctx
        state.typingctx = _cached_operators(context)
        try:
            return super().run_pass(state)
        finally:
            state.typingctx = context


# The passes for closures and array expressions are removed, since kernels have neither.
_REMOVED = (InlineClosureLikes, NopythonRewrites)


class KernelCompiler(CompilerBase):
    """Numba's nopython pipeline with a faster type inference and without the passes in `_REMOVED`."""

    replaced: ClassVar[dict[Any, Any]] = {NopythonTypeInference: _TypeInference}

    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        for old, new in self.replaced.items():
            pipeline.add_pass_after(new, old)
        unused = (*_REMOVED, *self.replaced)
        pipeline.passes = [each for each in pipeline.passes if each[0] not in unused]
        pipeline.finalize()
        return [pipeline]


class IROnlyCompiler(KernelCompiler):
    """The same, with a lowering that stops at LLVM IR."""

    replaced: ClassVar[dict[Any, Any]] = {**KernelCompiler.replaced, NativeLowering: _Lowering}
