"""A compiler for functions that only compiled code calls. It stops at LLVM IR, which their callers link in.

Numba's own compiler optimises each function together with all that it calls, and generates machine code for it, before
the function's callers do the same again. A job calls about sixty functions, nested up to nine deep, so most of the time
of a first call would go into machine code that nothing runs. `IROnlyCompiler` types and lowers a function, no more.
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc  # type: ignore[attr-defined]
from numba.core.codegen import CodeLibrary, JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, _LowerResult
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering, NopythonRewrites
from numba.core.untyped_passes import InlineClosureLikes


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


# The passes for closures and array expressions are removed, since kernels have neither.
_REMOVED = (NativeLowering, InlineClosureLikes, NopythonRewrites)


class IROnlyCompiler(CompilerBase):
    """Numba's nopython pipeline with its own lowering and without the passes in `_REMOVED`."""

    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.add_pass_after(_Lowering, NativeLowering)
        pipeline.passes = [each for each in pipeline.passes if each[0] not in _REMOVED]
        pipeline.finalize()
        return [pipeline]
