"""How CuPy compiles the library's sources: options, headers and registers, from CuPy's own code without a driver.

CuPy compiles a RawModule in `cupy._core.core.compile_with_cache`. It asks the driver only for the architecture
and to load the result, and this module replaces both. The headers are CuPy's own and those of the nvidia-cuda-runtime
wheel, as `pip install cupy-cuda13x[ctk]` installs them: no nvidia-cuda-crt, hence no <mma.h>.

`python -m tests.tools.build_report.as_cupy ARCH STEP` prints JSON of every STEP-th module. It is a separate process,
since it patches CuPy's modules: {"unavailable": why} or {module: {"options": [...], "kernels": {name: Usage}}}.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from rnnkit.backends.cupy import sources
from tests.tools.build_report import nvrtc


def options_of_cupy(seen: list[str], own: tuple[str, ...]) -> list[str]:
    """The options given to NVRTC, without the module's own, the header folders and the architecture."""
    dull = ("-I", "-arch=", "-Xptxas")
    return [option for option in seen if option not in own and not option.startswith(dull)]


def unavailable() -> str | None:
    """Why CuPy's compilation cannot run here, or None if it can."""
    try:
        import cupy  # noqa: F401

        metadata.files("nvidia-cuda-runtime")
    except ImportError as error:  # PackageNotFoundError is one
        return f"not installed: {error}"
    return nvrtc.unavailable()


def runtime_headers(folder: Path) -> Path:
    """The headers of nvidia-cuda-runtime alone, linked into `folder`: wheels share one include folder."""
    for file in metadata.files("nvidia-cuda-runtime") or ():
        _, found, inside = str(file).partition("/include/")
        if found:
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            (folder / inside).symlink_to(file.locate())
    return folder


def compile_as_cupy(code: str, options: tuple[str, ...], arch: int, headers: Path) -> tuple[list[str], str]:
    """The options given to NVRTC, with `headers` for NVIDIA's folders, and the log of the compilation."""
    from cupy._core import core
    from cupy.cuda import compiler, function

    seen: list[str] = []

    class Unloaded(function.Module):
        def load(self, cubin: bytes) -> None:
            assert cubin[:4] == b"\x7fELF"

    class Program(compiler._NVRTCProgram):
        def compile(self, options: Any = (), log_stream: Any = None) -> Any:
            nvidias = {folder.resolve() for folder in nvrtc.include_dirs()}
            theirs = [option.startswith("-I") and Path(option[2:]).resolve() in nvidias for option in options]
            assert any(theirs), options
            seen[:] = [f"-I{headers}" if their else own for own, their in zip(options, theirs, strict=True)]
            return super().compile(tuple(seen), log_stream)

    def architecture(arch: Any = None) -> tuple[str, str]:
        return f"-arch=sm_{arch}", "cubin"

    log = io.StringIO()
    answers: Any = {"_get_arch_for_options_for_nvrtc": architecture, "_NVRTCProgram": Program}
    with mock.patch.multiple(compiler, function=SimpleNamespace(Module=Unloaded), **answers):
        core.compile_with_cache(code, (*options, "-Xptxas=-v"), arch=str(arch), log_stream=log)
    return seen, log.getvalue()


def main(arch: int, step: int) -> None:
    if reason := unavailable():
        print(json.dumps({"unavailable": reason}))
        return
    os.environ["CUPY_CACHE_IN_MEMORY"] = "1"  # or a module in CuPy's cache would not be compiled
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        headers = runtime_headers(Path(folder))
        for build in sources.builds()[::step]:
            if arch >= build.min_arch:
                options = sources.options(build)
                seen, log = compile_as_cupy(sources.source(build), options, arch, headers)
                made[build.name] = {"options": options_of_cupy(seen, options), "kernels": nvrtc.parse_usage(log)}
    print(json.dumps(made))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
