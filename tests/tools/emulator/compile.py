"""Compiles the source of kernels with g++ into an object file that runs them, and caches it on disk.

The scan preprocesses the source with include/ as the only headers, as NVRTC would, and leaves CUDA's qualifiers in the
text. So it finds kernels that macros define, and it replaces `extern __shared__` by a pointer. The compiler gets that
text, whose line markers refer to the original file and line.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests.tools.emulator.errors import EmulatorError
from tests.tools.emulator.scan import FoundKernel, find_kernels, rewrite

HERE = Path(__file__).resolve().parent
INCLUDE, RUNTIME = HERE / "include", HERE / "runtime"
CXX = os.environ.get("CXX", "g++")

COMMON = ("-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-fno-threadsafe-statics", "-fno-strict-aliasing")
# GCC must not infer the contents of shared memory from one thread's code, nor contract a product and a sum to fma.
KERNEL = (
    *COMMON,
    "-fno-exceptions",
    "-fno-ipa-reference",
    "-fno-ipa-reference-addressable",
    "-ffp-contract=off",
    "-w",
)
HEADER = "emulator.h"
# In "check" mode each access calls the runtime. -fsanitize=thread inserts the calls, and the runtime implements them in
# place of libtsan. The checks for undefined behaviour work in the same way.
# -O1: the suites compile a hundred kernels and run each on small arrays. -g1: lines for reports, no variables.
MODES = {
    "fast": ("-O1", "-g1"),
    "check": (
        *("-O1", "-g1", "-gdwarf-4", "-fsanitize=thread", "--param", "tsan-distinguish-volatile=1"),
        "-fsanitize=bounds,alignment,shift,signed-integer-overflow,integer-divide-by-zero,null",
        *("-fno-sanitize-recover=all", "-fno-tree-vectorize", "-fno-tree-loop-distribute-patterns"),
        "-ftrivial-auto-var-init=pattern",
        "-fno-optimize-sibling-calls",
    ),
}
# The macros that NVRTC defines, and the one that selects a PTX wrapper's host branch.
DEFINES = ("RNNKIT_EMULATOR", "__CUDACC__", "__CUDACC_RTC__", "__NVCC__")
DEFAULT_ARCH = "90"
GUARD = "_ZGV"


class KernelInfo(NamedTuple):
    """A kernel that the object file exports as number `number`."""

    number: int
    static_shared: int  # bytes
    launch_bounds: bool  # whether emulator_bounds_<number> is exported
    cluster: bool  # whether emulator_cluster_<number> is exported


class DataObject(NamedTuple):
    """A variable of the kernels' object file: its offset in the file, and its size in bytes."""

    name: str
    offset: int
    size: int


class Built(NamedTuple):
    """statics: the static __shared__ objects of all kernels. variables: the __device__ and __constant__ ones."""

    path: Path
    kernels: dict[str, KernelInfo]
    templates: frozenset[str]
    statics: tuple[DataObject, ...]
    variables: tuple[DataObject, ...]


@functools.cache
def available() -> str | None:
    """Why kernels cannot run here, or None if they can."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "AMD64"):
        return f"the emulator needs Linux on x86-64; this is {sys.platform} on {platform.machine()}"
    for tool in (CXX, "nm", "addr2line"):
        if shutil.which(tool) is None:
            return f"the emulator needs {tool}, which is not installed"
    version = _compiler()
    number = re.search(r"(\d+)\.\d+", version)
    if "Free Software Foundation" not in version or not number or int(number[1]) < 12:
        return f"the emulator needs GCC 12 or later; {CXX} is {version.splitlines()[0]}"
    return None


@functools.cache
def _compiler() -> str:
    return subprocess.run([CXX, "--version"], capture_output=True, text=True, check=False).stdout


def cache_folder() -> Path:
    """RNNKIT_EMULATOR_CACHE, or else a folder in the user's cache, or a temporary one if that is not writable."""
    given = os.environ.get("RNNKIT_EMULATOR_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for folder in [Path(given)] if given else [Path(home, "rnnkit", "emulator")]:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    folder = Path(tempfile.gettempdir(), f"rnnkit-emulator-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def build(code: str, options: Iterable[str], mode: str, instances: Iterable[str] = ()) -> Built:
    """The object file of `code`, from the cache or compiled now. `instances`: template kernels such as "scan<4>".

    Raises EmulatorError of kind "compile" with the compiler's messages, and of kind "launch" if there is no g++.
    """
    reason = available()
    if reason is not None:
        raise EmulatorError(reason, "launch")
    options, instances = tuple(options), tuple(sorted(set(instances)))
    key = _digest(code, *options, "\0", *instances, mode, str(MODES), str(KERNEL), _compiler(), _own_sources())
    folder = cache_folder() / f"kernels-{key}"
    _once(folder, lambda work: _compile(code, options, mode, instances, work))
    info = json.loads((folder / "info.json").read_text())
    kernels = {name: KernelInfo(*fields) for name, fields in info["kernels"].items()}
    statics, variables = (tuple(DataObject(*fields) for fields in info[key]) for key in ("statics", "variables"))
    return Built(folder / "kernels.so", kernels, frozenset(info["templates"]), statics, variables)


def source_lines(path: Path, addresses: Iterable[int]) -> list[str]:
    """file:line per address in the object file: the innermost location outside the emulator's headers."""
    wanted = [hex(address) for address in addresses]
    if not wanted:
        return []
    lines = []
    for answer in re.split(r"^0x.*\n", _run(["addr2line", "-a", "-i", "-e", str(path), *wanted]), flags=re.MULTILINE)[
        1:
    ]:
        frames = [frame.split(" (")[0] for frame in answer.splitlines()]
        own = [frame for frame in frames if not frame.startswith((str(INCLUDE), str(RUNTIME), "??"))]
        lines.append((own or frames or ["?:0"])[0].rsplit("/", 1)[-1])
    return lines


def _digest(*parts: str) -> str:
    return hashlib.sha256("\1".join(parts).encode()).hexdigest()[:24]


@functools.cache
def _own_sources() -> str:
    files = [p for folder in (INCLUDE, RUNTIME) for p in folder.rglob("*") if p.is_file() and p.name[0] != "."]
    return _digest(*(p.read_text() for p in sorted([*files, HERE / "compile.py", HERE / "scan.py"])))


def _once(folder: Path, make: Callable[[Path], object]) -> None:
    """Fills `folder` by `make` unless it exists. Other processes that want it wait: test processes start alike.

    `make` gets a temporary folder, which is renamed to `folder` at the end, atomically.
    """
    if folder.exists():
        return
    import fcntl  # Windows has none

    lock = folder.with_name(f"{folder.name}.lock")
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not folder.exists():
            work = Path(tempfile.mkdtemp(prefix="work-", dir=folder.parent))
            try:
                make(work)
                with contextlib.suppress(OSError):
                    work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        lock.unlink(missing_ok=True)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise EmulatorError("\n".join([*errors[:8], done.stderr[-4000:]]), "compile")
    return done.stdout


def _runtime() -> Path:
    folder = cache_folder() / f"runtime-{_digest(_own_sources(), _compiler())}"

    def make(work: Path) -> None:
        flags = ["-O2", "-g1", "-std=c++17", "-Wall", *COMMON, "-I", str(INCLUDE), "-I", str(RUNTIME)]
        # One translation unit, so that the scheduler's parts are inlined and the headers are parsed once.
        unit = work / "runtime.cpp"
        unit.write_text("".join(f'#include "{p.name}"\n' for p in sorted(RUNTIME.glob("*.cpp"))))
        _run([CXX, *flags, "-c", str(unit), "-o", str(work / "runtime.o")])

    _once(folder, make)
    return folder / "runtime.o"


def _precompiled(mode: str) -> Path:
    """A folder with the precompiled HEADER, whose parsing took a third of the time of a kernel.

    g++ uses it where all options are the same, so not for another -std, and reads INCLUDE's where they differ.
    """
    folder = cache_folder() / f"headers-{mode}-{_digest(_own_sources(), _compiler())}"
    flags = [*_language(()), *KERNEL, *MODES[mode], "-I", str(INCLUDE), "-x", "c++-header", str(INCLUDE / HEADER)]
    _once(folder, lambda work: _run([CXX, *flags, "-o", str(work / f"{HEADER}.gch")]))
    return folder


@functools.cache
def _linker() -> list[str]:
    """The option for gold, which takes a quarter of the time of the usual linker, where it is installed."""
    return ["-fuse-ld=gold"] if shutil.which("ld.gold") else []


def _language(options: tuple[str, ...]) -> list[str]:
    return [o for o in options if o.startswith(("-std=", "--std="))] or ["-std=c++17"]


def _scan(code: str, options: tuple[str, ...], work: Path) -> str:
    """The preprocessed source, with CUDA's qualifiers unchanged."""
    path = work / "source.cu"
    path.write_text('#line 1 "kernel.cu"\n' + code)
    macros = [o for o in options if o.startswith(("-D", "-U", "-I"))]
    number = next((m[1] for o in options if (m := re.search(r"arch\w*=(?:sm|compute)_(\d+)", o))), DEFAULT_ARCH)
    arch = [] if any(o.startswith("-D__CUDA_ARCH__") for o in options) else [f"-D__CUDA_ARCH__={number}0"]
    defines = [f"-D{name}" for name in (*DEFINES, "RNNKIT_EMULATOR_SCAN")]
    only_own_headers = ["-nostdinc", "-nostdinc++", "-I", str(INCLUDE)]
    return _run([CXX, "-x", "c++", "-E", *_language(options), *only_own_headers, *arch, *defines, *macros, str(path)])


def _exports(kernels: list[FoundKernel], instances: tuple[str, ...]) -> tuple[str, list[str], set[str], set[str]]:
    """The lines that export the kernels; their names; those that have launch bounds; those that have a cluster size."""
    by_name = {k.name: k for k in kernels}
    names = [k.name for k in kernels if not k.template]
    for instance in instances:
        base = instance.split("<")[0].strip()
        if base not in by_name or not by_name[base].template:
            raise EmulatorError(f"there is no template kernel {base}", "compile")
        names.append(instance)
    lines = ['#line 1 "exports of the emulator"']
    bounded: set[str] = set()
    clustered: set[str] = set()
    for number, name in enumerate(names):
        kernel = by_name[name.split("<")[0].strip()]
        lines.append(f"EMULATOR_EXPORT({number}, &{name})")
        for values, key, having in ((kernel.bounds, "bounds", bounded), (kernel.cluster, "cluster", clustered)):
            # The values of a template may depend on its parameters, which are unknown outside it.
            if values and (not kernel.template or not re.search(r"[A-Za-z_]", values)):
                lines.append(f"EMULATOR_NUMBERS({key}, {number}, {values})")
                having.add(name)
    return "\n".join(lines) + "\n", names, bounded, clustered


def _compile(code: str, options: tuple[str, ...], mode: str, instances: tuple[str, ...], work: Path) -> None:
    scanned = _scan(code, options, work)
    kernels = find_kernels(scanned)
    exports, names, bounded, clustered = _exports(kernels, instances)
    text, unit, library = work / "kernels.cpp", work / "kernels.o", work / "kernels.so"
    text.write_text(rewrite(scanned) + "\n" + exports)
    flags = [*_language(options), *KERNEL, *MODES[mode], "-I", str(_precompiled(mode)), "-I", str(INCLUDE)]
    _run([CXX, *flags, "-include", HEADER, "-c", str(text), "-o", str(unit)])
    _run([CXX, *_linker(), "-shared", "-Wl,-Bsymbolic", "-o", str(library), str(unit), str(_runtime())])
    mangled = {line.split()[-1] for line in _run(["nm", str(unit)]).splitlines()}
    statics, variables = _data_objects(mangled, library)
    plain = {k.name for k in kernels if not k.template}
    info: dict[str, Any] = {"kernels": {}, "templates": [k.name for k in kernels if k.template]}
    for number, name in enumerate(names):
        if name in plain and name not in mangled:
            continue  # not extern "C", so the driver does not find it by this name
        used = sum(o.size for o in statics if _may_use(o.name, name.split("<")[0].strip(), by=plain))
        info["kernels"][name] = KernelInfo(number, used, name in bounded, name in clustered)
    info["statics"] = [o._replace(name=_plain_name(o.name)) for o in statics]
    info["variables"] = [o._replace(name=_plain_name(o.name)) for o in variables]
    text.unlink()
    unit.unlink()
    (work / "info.json").write_text(json.dumps(info))


def _data_objects(own: set[str], library: Path) -> tuple[list[DataObject], list[DataObject]]:
    """The static variables of functions, which in kernels are shared memory; the others, GCC's guard variables last.

    own: the symbols of the kernels' file, without those of the runtime.
    """
    statics: list[DataObject] = []
    variables: list[DataObject] = []
    for line in _run(["nm", "-S", str(library)]).splitlines():
        fields = line.split()
        if len(fields) != 4 or fields[2] not in "bdBDuV" or fields[3] not in own:
            continue
        found = DataObject(fields[3], int(fields[0], 16), int(fields[1], 16))
        (statics if fields[3].startswith("_ZZ") else variables).append(found)
    # GCC adds a guard variable (_ZGV...) to a static array of a class, although __half etc. need no construction.
    variables.sort(key=lambda o: o.name.startswith(GUARD))
    return statics, variables


def _plain_name(symbol: str) -> str:
    """The name of a variable: "tile" of _ZZ6kernelE4tile; unchanged for GCC's guard variables."""
    if symbol.startswith(GUARD):
        return symbol
    for mark in reversed(list(re.finditer(r"[EL](\d+)", symbol))):
        name, rest = symbol[mark.end() :][: int(mark[1])], symbol[mark.end() + int(mark[1]) :]
        if len(name) == int(mark[1]) and re.fullmatch(r"(_\d+)?", rest):
            return name
    return symbol


def _may_use(symbol: str, kernel: str, by: set[str]) -> bool:
    """Whether `kernel` may use shared variable `symbol` (_ZZ<function>E<name>): unless it belongs to another kernel."""
    owner = next((k for k in by if symbol.startswith(f"_ZZ{len(k)}{k}E")), None)
    return owner is None or owner == kernel
