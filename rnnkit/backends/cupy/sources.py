"""The CUDA sources of each module, as Builds. Needs no CuPy.

The files of a build are joined into one string, because CuPy's disk cache is keyed by that string: it would miss an
edit of an included header. #line directives keep the compiler's messages pointing at the files. NVRTC compiles a build
at its first use on a device.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import rnnkit.kernels
from rnnkit.core.cell_options import ROLES, activations_of
from rnnkit.core.cells import Cell, cell_of
from rnnkit.kernels.cells import HEADERS, Header

KERNELS = Path(next(iter(rnnkit.kernels.__path__)))

Defines = tuple[tuple[str, str], ...]


class Kernel(NamedTuple):
    """A kernel of a build, and the largest launch that the build report calculates its occupancy for.

    name          of an extern "C" kernel, or an instance of a template: "scan<4>"
    block         threads
    shared_bytes  dynamic shared memory
    cooperative   all blocks of a launch are resident at once; a launch of more than fit is refused
    cluster       blocks of a cluster, as in the kernel's __cluster_dims__
    varies        shared_bytes is the most: a launch takes what its sizes need, and sizes that need more than the card's
                  blocks have are refused by the schedule
    """

    name: str
    block: tuple[int, int, int]
    shared_bytes: int = 0
    cooperative: bool = False
    cluster: int = 1
    varies: bool = False


class Source(NamedTuple):
    """A file, absolute or relative to the folder kernels, and its text."""

    file: str
    text: str


class Build(NamedTuple):
    """One module: its name, its sources in the order they are joined, its macros, its kernels, and its oldest sm_.

    Builds are equal only if their texts are equal, so a cache keyed by Build never serves an older header.
    """

    name: str
    sources: tuple[Source, ...]
    defines: Defines
    kernels: tuple[Kernel, ...]
    min_arch: int = 70


# Storage dtype -> its macro in kernels/cuda/numbers.cuh, and the oldest sm_ whose matrix products take it. Every build
# compiles for every card; cuBLAS may still lack the dtype there.
STORAGES = {
    "float64": ("RK_FLOAT64", 70),
    "float32": ("RK_FLOAT32", 70),
    "float16": ("RK_FLOAT16", 70),
    "bfloat16": ("RK_BFLOAT16", 80),
}

BLOCK = (256, 1, 1)


def pointwise_kernels(*names: str) -> tuple[Kernel, ...]:
    """Kernels that are launched with BLOCK."""
    return tuple(Kernel(name, BLOCK) for name in names)


_ROWS = (
    *pointwise_kernels("forward_begin", "forward_end", "backward_begin", "backward_end", "pack_rows", "unpack_rows"),
    Kernel("column_sums", (32, 8, 1)),
    *pointwise_kernels("add_parts"),
    Kernel("set_call", (1, 1, 1)),
)


@cache
def rows(storage: str) -> Build:
    """What every schedule needs beside its steps, for every cell: kernels/cuda/rows.cu."""
    files = ("cuda/numbers.cuh", "cuda/rows.cuh", "cuda/call.cuh", "cuda/rows.cu")
    macro, _ = STORAGES[storage]
    kernels = (*_ROWS, Kernel("transpose", (32, 8, 1))) if storage == "float32" else _ROWS
    return Build(f"rows-{storage}", tuple(map(_source, files)), ((macro, "1"),), kernels)


@cache
def random_hits() -> Build:
    """The draw of random masks, for every dtype: kernels/cuda/random_hits.cu."""
    files = ("random/philox.cuh", "cuda/random_hits.cu")
    return Build("random_hits", tuple(map(_source, files)), (), pointwise_kernels("random_hits"))


def of_cell(
    name: str,
    cell: str,
    storage: str,
    files: tuple[str, ...],
    kernels: tuple[Kernel, ...],
    *,
    defines: Defines = (),
    min_arch: int = 70,
) -> Build:
    """A schedule's module "<name>-<cell>-<storage>" for a `Cell.key`, by its rows of CELLS and HEADERS.

    Its text is numbers.cuh, the cell's header, cell_row.cuh, then `files`.
    """
    row = cell_of(cell)
    header = HEADERS[row.name]
    if row.normalises:
        header = _header_with_norms(row)
    elif row.options.changes_formulas:
        header = _header_with_options(row)
    given = (files, kernels, (*header.defines, *defines), min_arch)
    return _of_cell(name, row, _source(header.file), storage, *given)


@cache
def _of_cell(
    name: str,
    cell: Cell,
    header: Source,
    storage: str,
    files: tuple[str, ...],
    kernels: tuple[Kernel, ...],
    defines: Defines,
    min_arch: int,
) -> Build:
    macro, _ = STORAGES[storage]
    return Build(
        f"{name}-{cell.key}-{storage}",
        (_source("cuda/numbers.cuh"), header, _source("cuda/cell_row.cuh"), *map(_source, files)),
        ((macro, "1"), *_row_macros(cell), *defines),
        kernels,
        min_arch,
    )


# Bytes of a Call of kernels/cuda/call.cuh in the workspace, with room for the Noise of kernels/cuda/step_noise.cuh.
# Extras of cells with options follow.
CALL_BYTES = 256


def _header_with_options(cell: Cell) -> Header:
    """kernels/cells/with_options.cuh, with the macros that it names."""
    options, names = cell.options, cell.constants
    flags = {"PEEPHOLE": options.peephole, "COUPLED": options.coupled, "CLIP": options.clip}
    macros: dict[str, object] = {f"RK_{name}": int(value) for name, value in flags.items()}
    macros |= {"RK_CELL_CLIP": int(options.cell_clip), "RK_OPTIONS": 1, "RK_CALL_BYTES": CALL_BYTES}
    macros |= {f"RK_KIND_{cell.name.partition('_')[0].upper()}": 1, "RK_CONSTANTS": len(names)}
    activations = (*activations_of(cell.name, options), "Tanh", "Tanh")
    macros |= {f"RK_{role.upper()}": name for role, name in zip(ROLES, activations, strict=False)}
    places = ("clip", "cell_clip", *(f"{number}_{role}" for role in ROLES for number in ("alpha", "beta")))
    macros |= {f"RK_AT_{name.upper()}": names.index(name) if name in names else -1 for name in places}
    return Header("cells/with_options.cuh", tuple((name, str(value)) for name, value in macros.items()))


def _header_with_norms(cell: Cell) -> Header:
    """kernels/cells/normalised.cuh, with the macros that it names."""
    macros: dict[str, object] = {
        f"RK_KIND_{cell.name.upper()}": 1,
        "RK_SIDES": 2 if cell.splits_sides else 1,
        "RK_CARRIES": int(cell.options.layer_norm == "torch"),
        "RK_UNIT_WEIGHTS": len(cell.unit_weights),
        "RK_CALL_BYTES": CALL_BYTES,
    }
    return Header("cells/normalised.cuh", tuple((name, str(value)) for name, value in macros.items()))


def _row_macros(cell: Cell) -> Defines:
    """The facts of a cell's row that kernels/cuda/cell_row.cuh compares with the cell's header."""
    facts = {
        "RK_GATES": cell.n_gates,
        "RK_SAVED": cell.n_saved,
        "RK_HAS_C": cell.has_c,
        "RK_READS_H": cell.reads_h,
        "RK_SPLITS": cell.splits_sides,
        "RK_RESETS_BEFORE": cell.resets_before,
    }
    return tuple((name, str(int(value))) for name, value in facts.items())


def builds() -> tuple[Build, ...]:
    """Every module that this version can compile: `random_hits`, `rows`, and those of the rows of SCHEDULES."""
    from rnnkit.backends.cupy.schedules import SCHEDULES  # which imports this file

    found = [random_hits(), *(rows(storage) for storage in STORAGES)]
    for schedule in SCHEDULES:
        found += schedule.builds()
    return tuple(found)


def _source(file: str) -> Source:
    """A file with its text. A file of the package is read once; an absolute one may change and is read at each call."""
    return Source(file, Path(file).read_text(encoding="utf-8")) if os.path.isabs(file) else _package_source(file)


@cache
def _package_source(file: str) -> Source:
    return Source(file, (KERNELS / file).read_text(encoding="utf-8"))


def source(build: Build) -> str:
    """The build's files as one string."""
    return "".join(f'#line 1 "{file}"\n{text}\n' for file, text in build.sources)


def options(build: Build) -> tuple[str, ...]:
    """What NVRTC is given beside the source and the architecture."""
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in build.defines))
