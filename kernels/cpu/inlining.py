"""How functions that compiled code alone calls are compiled: to LLVM IR, of which their callers make machine code.

Numba optimises each function together with all that it calls, and makes machine code of it, before the function's
callers do the same again. A job of ours calls some sixty functions, nested up to nine deep, so most of the time of a
first call went into code that nothing runs. A function of `Inlined` is typed and lowered, and no more.
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc  # type: ignore[attr-defined]
from numba.core.codegen import CodeLibrary, JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, _LowerResult
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering, NopythonRewrites
from numba.core.untyped_passes import InlineClosureLikes


class _Ingredients(JITCodeLibrary):
    """LLVM IR of one function for other libraries to link in. It is not optimised, and there is no machine code of it.

    It contains nothing that it calls: `parts` are linked in one by one.
    """

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalize_dynamic_globals()
        self._finalized = True

    @property
    def parts(self) -> list[CodeLibrary]:
        """This and what it calls, callers first: LLVM links in a function only where it is already called."""
        return list(dict.fromkeys([self, *self._linking_libraries]))


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    """Lowers into such a library. The function object that Numba wants of every overload is one that nobody calls."""

    _name = "rnnkit_lowering"

    def run_pass(self, state: Any) -> bool:
        codegen = state.targetctx.codegen()
        state.library = _Ingredients(codegen, state.func_id.func_qualname)
        state.flags.no_compile = True
        done = super().run_pass(state)
        lowered = state["cr"]
        description = lowered.fndesc
        name = description.qualname.split(".")[-1]
        module = description.lookup_module()
        uncallable = _dynfunc.make_function(module, name, "called by compiled code alone", 0, lowered.env, ())
        state.targetctx.insert_user_function(uncallable, description, state.library.parts)
        state["cr"] = _LowerResult(description, lowered.call_helper, cfunc=uncallable, env=lowered.env)
        return done


_LEFT_OUT = (NativeLowering, InlineClosureLikes, NopythonRewrites)


class Inlined(CompilerBase):
    """Numba's pipeline of nopython mode, but for how it lowers, and for closures and arrays, which kernels have not."""

    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.add_pass_after(_Lowering, NativeLowering)
        pipeline.passes = [each for each in pipeline.passes if each[0] not in _LEFT_OUT]
        pipeline.finalize()
        return [pipeline]
