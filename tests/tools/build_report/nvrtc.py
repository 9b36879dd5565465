"""Compiles a CUDA source for one architecture with NVRTC, and reads its resource usage. Needs no driver, no GPU."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ARCHS = (75, 80, 86, 89, 90, 100, 120)
# The options that CuPy 14 adds to those of a RawModule. A test compares them with CuPy's code by as_cupy.py.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
EXTRA = "pip install 'rnnkit[cuda-build]'"


class CompileError(RuntimeError):
    """NVRTC rejected the source; the message is its log."""


class Usage(NamedTuple):
    """A kernel's usage from ptxas: registers, spills and stack per thread, shared memory per block; sizes in bytes."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int
    barriers: int


class Facts(NamedTuple):
    """Lines of PTX that the library's kernels must not contain: the first few of each kind, for the message."""

    doubles: tuple[str, ...]
    local: tuple[str, ...]
    calls: tuple[str, ...]


class Report(NamedTuple):
    """A module for one architecture: its kernels by the name used for the launch, the PTX facts, the warnings."""

    kernels: dict[str, Usage]
    facts: Facts
    warnings: tuple[str, ...]


def cache_dir() -> Path:
    """The folder that caches compiled reports and the occupancy library. A digest names each file."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnnkit" / "build-report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _own_folder()
    return folder if os.access(folder, os.W_OK) else _own_folder()


@cache
def _own_folder() -> Path:
    """A folder of this process alone, used if the user's cache is not writable."""
    return Path(tempfile.mkdtemp(prefix="rnnkit-build-report-"))


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that other processes see all of it or none."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(name, path)


@cache
def include_dirs() -> tuple[Path, ...]:
    """The header folders of NVIDIA's wheels (CUDA runtime, crt, CCCL), or () if they are not installed."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    found = [folder for root in roots for folder in sorted(root.glob("*/include"))]
    return tuple(found + [folder / "cccl" for folder in found if (folder / "cccl").is_dir()])


def _header_version() -> tuple[int, int] | None:
    """The CUDA release of the headers, from cuda.h's CUDA_VERSION (13050 is 13.5)."""
    for folder in include_dirs():
        if (folder / "cuda.h").exists():
            found = re.search(r"#define CUDA_VERSION (\d+)", (folder / "cuda.h").read_text(encoding="utf-8"))
            return divmod(int(found[1]) // 10, 100) if found else None
    return None


@cache
def unavailable() -> str | None:
    """Why sources cannot be compiled here, or None if they can."""
    try:
        from cuda.bindings import nvrtc

        major, minor = _checked(nvrtc.nvrtcVersion())
        known = _checked(nvrtc.nvrtcGetSupportedArchs())
    except ImportError:
        return f"cuda-bindings is not installed ({EXTRA})"
    except Exception as error:  # the bindings load libnvrtc at the first call, and raise errors of several types
        return f"NVRTC does not load ({EXTRA}): {str(error).splitlines()[0]}"
    if missing := sorted(set(ARCHS) - set(known)):
        return f"NVRTC {major}.{minor} does not know sm_{missing[0]}"
    headers = _header_version()
    if headers is None:
        return f"NVIDIA's header wheels are not installed ({EXTRA})"
    if headers != (major, minor):
        return f"NVRTC is {major}.{minor} but its headers are {headers[0]}.{headers[1]}; install one CUDA release"
    return None


@cache
def version() -> str:
    """The release and build of NVRTC. Equal versions generate equal code."""
    for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    from cuda.bindings import nvrtc

    return ".".join(map(str, _checked(nvrtc.nvrtcVersion())))


def compile_module(code: str, options: Sequence[str], arch: int, names: Sequence[str] = ()) -> Report:
    """`code` compiled for sm_`arch` with the module's own `options` and CuPy's; cached on disk.

    names: the kernels as they are launched, which must include template instances ("scan<4>").
    Raises CompileError with NVRTC's log.
    """
    asked = (*options, *CUPY_OPTIONS, f"-arch=sm_{arch}")
    key = hashlib.sha256(json.dumps([Path(__file__).read_text("utf-8"), version(), asked, names, code]).encode())
    path = cache_dir() / f"{key.hexdigest()}.json"
    if path.exists():
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    report = _compile(code, asked, tuple(name for name in names if "<" in name))
    write_atomically(path, json.dumps(report).encode())
    return report


def _compile(code: str, options: Sequence[str], instances: Sequence[str]) -> Report:
    from cuda.bindings import nvrtc

    program = _checked(nvrtc.nvrtcCreateProgram(code.encode(), b"kernels.cu", 0, [], []))
    try:
        for name in instances:
            _checked(nvrtc.nvrtcAddNameExpression(program, name.encode()))
        given = [*options, *(f"-I{folder}" for folder in include_dirs()), "-Xptxas=-v"]
        status = nvrtc.nvrtcCompileProgram(program, len(given), [option.encode() for option in given])
        log = _text(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
        if int(status[0]):
            raise CompileError(log)
        lowered = {_checked(nvrtc.nvrtcGetLoweredName(program, name.encode())).decode(): name for name in instances}
        ptx = _text(program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    kernels = {lowered.get(name, name): usage for name, usage in parse_usage(log).items()}
    return Report(kernels, ptx_facts(ptx), tuple(line for line in log.splitlines() if "warning" in line.lower()))


def parse_usage(log: str) -> dict[str, Usage]:
    """The log of ptxas -v as one Usage per kernel, by the name in the machine code.

    A function that was not inlined has its own stack frame in its kernel's section, so frames and spills are summed.
    """
    kernels = {}
    sections = re.split(r"Compiling entry function '(\S+)' for '\S+'", log)
    for name, section in zip(sections[1::2], sections[2::2], strict=True):

        def total(pattern: str, text: str = section) -> int:
            return sum(map(int, re.findall(pattern, text)))

        kernels[name] = Usage(
            registers=total(r"Used (\d+) registers"),
            stack=total(r"(\d+) bytes stack frame"),
            spill_stores=total(r"(\d+) bytes spill stores"),
            spill_loads=total(r"(\d+) bytes spill loads"),
            static_shared=total(r"(\d+) bytes smem"),
            barriers=total(r"used (\d+) barriers"),
        )
    return kernels


def ptx_facts(ptx: str) -> Facts:
    """The first lines of `ptx` that compute in float64, touch local memory, or call a function that was not inlined."""

    def first(pattern: str) -> tuple[str, ...]:
        lines = (line.strip() for line in ptx.splitlines() if not line.lstrip().startswith("//"))
        return tuple(line for line in lines if re.search(pattern, line))[:3]

    return Facts(first(r"\.f64\b"), first(r"\.local\b"), first(r"^(@!?%\w+ )?call\b"))


def _from_json(data: list[Any]) -> Report:
    kernels, facts, warnings = data
    return Report({name: Usage(*usage) for name, usage in kernels.items()}, Facts(*map(tuple, facts)), tuple(warnings))


def _text(program: Any, size_of: Any, read: Any) -> str:
    buffer = b" " * _checked(size_of(program))
    _checked(read(program, buffer))
    return buffer.rstrip(b"\0 ").decode(errors="replace")


def _checked(answer: tuple[Any, ...]) -> Any:
    """The results of a binding without its status. Raises RuntimeError unless the status is success."""
    if int(answer[0]):
        raise RuntimeError(f"NVRTC: {answer[0]!r}")
    return None if len(answer) == 1 else answer[1] if len(answer) == 2 else answer[1:]
