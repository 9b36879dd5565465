"""The committed table: one line per kernel and architecture, with a digest of the source, options and launch.

kernels/build-report.json is {"nvrtc", "columns", "modules": {name: {"digest", "kernels": {name: {"block",
"dynamic_shared", "sm_75": [one number per column], ...}}}}}; kernels/build-report.md is the same for reading.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rnnkit.backends.cupy import sources
from rnnkit.backends.cupy.sources import Build, Kernel
from tests.tools.build_report import nvrtc
from tests.tools.build_report.nvrtc import Report, Usage
from tests.tools.build_report.occupancy import DEVICES, occupancy

JSON = Path(__file__).resolve().parents[3] / "kernels" / "build-report.json"
MARKDOWN = JSON.with_suffix(".md")
REWRITE = "python -m tests.tools.build_report --write"
COLUMNS = ("registers", "stack", "spills", "static_shared", "barriers", "blocks_per_sm", "co_resident")


def archs_of(build: Build, archs: Iterable[int] = nvrtc.ARCHS) -> list[int]:
    """The architectures that a module supports."""
    return [arch for arch in archs if arch >= build.min_arch]


def cover(builds: Sequence[Build]) -> set[tuple[str, int]]:
    """(module, architecture) pairs of the tests, each module once: two of three for sm_90, the third, in turn, for
    another."""
    others = [arch for arch in nvrtc.ARCHS if arch != 90]
    chosen = set()
    for number, build in enumerate(builds):
        possible = archs_of(build, others)
        chosen.add((build.name, 90 if number % 3 else possible[number % len(possible)]))
    return chosen


def digest(build: Build) -> str:
    """A digest of the source, the options, and how the kernels are launched."""
    text = json.dumps(
        [sources.source(build), sources.options(build), nvrtc.CUPY_OPTIONS, build.kernels, build.min_arch]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compiled(build: Build, arch: int) -> Report:
    """The report of a module of the library, from NVRTC."""
    names = [kernel.name for kernel in build.kernels]
    return nvrtc.compile_module(sources.source(build), sources.options(build), arch, names)


def in_float64(build: Build) -> bool:
    """Whether the module computes in double precision, according to its macros."""
    return "RK_FLOAT64" in dict(build.defines)


def problems(report: Report, kernels: Sequence[Kernel], arch: int, doubles: bool = False) -> list[str]:
    """The faults of a compiled module, as sentences. doubles: whether float64 arithmetic is intended."""
    found = []
    if set(report.kernels) != {kernel.name for kernel in kernels}:
        found.append(f"compiled {sorted(report.kernels)}, listed {sorted(kernel.name for kernel in kernels)}")
    for name, usage in report.kernels.items():
        if usage.spill_stores or usage.spill_loads:
            found.append(f"{name} spills {usage.spill_stores} bytes of registers and reloads {usage.spill_loads}")
        if usage.stack:
            found.append(f"{name} has a stack frame of {usage.stack} bytes")
    for kernel in kernels:
        if kernel.name in report.kernels:
            found += _launch_problems(report.kernels[kernel.name], kernel, arch)
    if report.facts.local:
        found.append(f"local memory in the PTX: {report.facts.local}")
    if report.facts.doubles and not doubles:
        found.append(f"float64 in the PTX: {report.facts.doubles}")
    if report.facts.calls:
        found.append(f"calls that were not inlined in the PTX: {report.facts.calls}")
    return found + [f"the compiler warns: {line}" for line in report.warnings]


def _launch_problems(usage: Usage, kernel: Kernel, arch: int) -> list[str]:
    """The limits of the architecture that a block of the kernel exceeds."""
    found = []
    threads = _threads(kernel)
    shared = usage.static_shared + dynamic_shared(usage, kernel, arch)
    if shared > DEVICES[arch].shared_block:
        found.append(f"{kernel.name} needs {shared} bytes of shared memory, sm_{arch} has {DEVICES[arch].shared_block}")
    if threads > 1024 or usage.registers * threads > 65536:
        found.append(f"{kernel.name}: {threads} threads of {usage.registers} registers do not fit a multiprocessor")
    return found


def dynamic_shared(usage: Usage, kernel: Kernel, arch: int) -> int:
    """The largest dynamic shared memory of a launch on the architecture."""
    most = DEVICES[arch].shared_block - usage.static_shared
    return min(kernel.shared_bytes, most) if kernel.varies else kernel.shared_bytes


def _threads(kernel: Kernel) -> int:
    x, y, z = kernel.block
    return x * y * z


def compiler_columns(usage: Usage) -> list[int]:
    """The columns that depend on the compiler alone: the first five."""
    spills = usage.spill_stores + usage.spill_loads
    return [usage.registers, usage.stack, spills, usage.static_shared, usage.barriers]


def row(usage: Usage, kernel: Kernel, arch: int) -> list[int]:
    """One line of the table, in the order of COLUMNS."""
    fits = occupancy(DEVICES[arch], usage, _threads(kernel), dynamic_shared(usage, kernel, arch))
    return [*compiler_columns(usage), fits.blocks, fits.co_resident]


def differences(entry: dict[str, Any], report: Report, kernels: Sequence[Kernel], arch: int, whole: bool) -> list[str]:
    """The differences between a module's part of the table and a report. whole: compares the occupancy too."""
    found = []
    for kernel in kernels:
        usage = report.kernels[kernel.name]
        now = row(usage, kernel, arch) if whole else compiler_columns(usage)
        then = entry["kernels"][kernel.name][f"sm_{arch}"]
        for column, before, after in zip(COLUMNS, then, now, strict=False):
            if before != after:
                found.append(f"{kernel.name} sm_{arch} {column}: {before} in the table, {after} now")
    return found


def compile_ahead(builds: Sequence[Build], archs: Iterable[int], progress: Callable[[str], None]) -> None:
    """Compiles modules into the cache on disk, one per core: NVRTC releases the GIL."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        work = {}
        for build in builds:
            for arch in archs_of(build, archs):
                work[pool.submit(compiled, build, arch)] = f"{build.name} sm_{arch}"
        for number, done in enumerate(as_completed(work), 1):
            registers = max(usage.registers for usage in done.result().kernels.values())
            progress(f"[{number}/{len(work)}] {work[done]}: {registers} registers at most")


def module_entry(build: Build, archs: Iterable[int]) -> dict[str, Any]:
    """One module's part of the table. Raises ValueError if a kernel breaks a rule."""
    entry: dict[str, Any] = {k.name: {"block": list(k.block), "dynamic_shared": k.shared_bytes} for k in build.kernels}
    for arch in archs_of(build, archs):
        report = compiled(build, arch)
        if wrong := problems(report, build.kernels, arch, in_float64(build)):
            raise ValueError(f"{build.name} for sm_{arch}: " + "; ".join(wrong))
        for kernel in build.kernels:
            entry[kernel.name][f"sm_{arch}"] = row(report.kernels[kernel.name], kernel, arch)
    return {"digest": digest(build), "kernels": entry}


def make(
    archs: Sequence[int] = nvrtc.ARCHS,
    progress: Callable[[str], None] = lambda line: None,
    known: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole table, compiled now. Raises ValueError if a kernel breaks a rule, and nvrtc.CompileError.

    known: a table of the same compiler and architectures, whose modules are taken as they are where their digests are
    those of the sources. Raises ValueError if it is of another compiler.
    """
    if known is not None and known["nvrtc"] != nvrtc.version():
        raise ValueError(f"the table is of NVRTC {known['nvrtc']}, this is {nvrtc.version()}: compile all modules")
    then = {} if known is None else known["modules"]
    builds = sources.builds()
    changed = [build for build in builds if then.get(build.name, {}).get("digest") != digest(build)]
    compile_ahead(changed, archs, progress)
    modules = {build.name: module_entry(build, archs) if build in changed else then[build.name] for build in builds}
    return {"nvrtc": nvrtc.version(), "columns": list(COLUMNS), "modules": modules}


def read() -> dict[str, Any]:
    """The committed table."""
    return json.loads(JSON.read_text(encoding="utf-8"))


def stale(table: dict[str, Any]) -> list[str]:
    """Why a table does not match the sources: modules that were added, removed or changed since it was written."""
    now = {build.name: digest(build) for build in sources.builds()}
    then = {name: module["digest"] for name, module in table["modules"].items()}
    found = [f"{name} is not in the table" for name in now.keys() - then.keys()]
    found += [f"{name} is in the table but no longer compiled" for name in then.keys() - now.keys()]
    found += [f"{name} has changed since" for name in now.keys() & then.keys() if now[name] != then[name]]
    return sorted(found)


def as_json(table: dict[str, Any]) -> str:
    """One line per kernel, so that a diff shows only the kernels that changed."""
    modules = []
    for name, module in table["modules"].items():
        kernels = ",\n".join(f"   {json.dumps(name)}: {json.dumps(entry)}" for name, entry in module["kernels"].items())
        start = f'{json.dumps(name)}: {{"digest": {json.dumps(module["digest"])}, "kernels": {{'
        modules.append(f"  {start}\n{kernels}}}}}")
    head = [f' "nvrtc": {json.dumps(table["nvrtc"])},', f' "columns": {json.dumps(table["columns"])},', ' "modules": {']
    return "\n".join(["{", *head, ",\n".join(modules), " }", "}", ""])


def as_markdown(table: dict[str, Any]) -> str:
    """The readable table: one line per kernel, shared by the modules in which its numbers are equal."""
    modules_of: dict[tuple[str, ...], list[str]] = {}
    for module, part in table["modules"].items():
        for kernel, entry in part["kernels"].items():
            modules_of.setdefault((f"`{kernel}`", *_cells(entry, table["columns"])), []).append(module)
    lines = [
        "# Resources of the CUDA kernels",
        "",
        f"Written by `{REWRITE}` with NVRTC {table['nvrtc']}, without a GPU. Each cell is",
        "registers per thread / resident blocks per multiprocessor / resident blocks per GPU. No kernel spills",
        "registers or uses stack or local memory. Shared memory is static + dynamic bytes per block, and for kernels",
        "of resident schedules the most: on a GPU with less, all that a block can have. A dash: the architecture does",
        "not have this module. The numbers of blocks are from NVIDIA's occupancy calculator, for these GPUs:",
        "",
        *(f"- sm_{arch}: {card.name}, {card.multiprocessors} multiprocessors" for arch, card in DEVICES.items()),
        "",
        "| kernel | threads | shared | " + " | ".join(f"sm_{arch}" for arch in DEVICES) + " | modules |",
        "|---|---|---|" + "---|" * len(DEVICES) + "---|",
    ]
    lines += [f"| {' | '.join(cells)} | {', '.join(modules)} |" for cells, modules in sorted(modules_of.items())]
    return "\n".join([*lines, ""])


def _cells(entry: dict[str, Any], columns: Sequence[str]) -> list[str]:
    rows = [dict(zip(columns, entry.get(f"sm_{arch}", ()), strict=False)) for arch in DEVICES]
    static = sorted({row["static_shared"] for row in rows if row})
    threads = " x ".join(str(n) for n in entry["block"] if n > 1) or "1"
    shared = f"{' or '.join(map(str, static))} + {entry['dynamic_shared']}"
    usage = [f"{r['registers']} / {r['blocks_per_sm']} / {r['co_resident']}" if r else "-" for r in rows]
    return [threads, shared, *usage]


def write(table: dict[str, Any]) -> None:
    """Rewrites both committed files."""
    JSON.write_text(as_json(table), encoding="utf-8")
    MARKDOWN.write_text(as_markdown(table), encoding="utf-8")
