"""The CUDA sources of each module: one Build per (schedule, cell, storage dtype). Needs no CuPy.

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
from rnnkit.core.cells import CELLS, Cell
from rnnkit.kernels.cells import HEADERS

KERNELS = Path(next(iter(rnnkit.kernels.__path__)))


class Kernel(NamedTuple):
    """A kernel of a build: its name, the largest block it is launched with, and its dynamic shared memory in bytes."""

    name: str
    block: tuple[int, int, int]
    shared_bytes: int = 0


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
    defines: tuple[tuple[str, str], ...]
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


def _kernels(*names: str) -> tuple[Kernel, ...]:
    return tuple(Kernel(name, BLOCK) for name in names)


_ROWS = (
    *_kernels("forward_begin", "forward_end", "backward_begin", "backward_end", "pack_rows", "unpack_rows"),
    Kernel("column_sums", (32, 8, 1)),
    *_kernels("add_parts"),
    Kernel("set_call", (1, 1, 1)),
)
_STEPS = _kernels("forward_step", "forward_output", "backward_output", "backward_step")


def stepwise(cell: str, storage: str) -> Build:
    """Schedule D's module for a cell, by its rows of CELLS and HEADERS, and a storage dtype."""
    header = HEADERS[cell]
    return _stepwise(CELLS[cell], _source(header.file), header.defines, storage)


@cache
def _stepwise(cell: Cell, header: Source, defines: tuple[tuple[str, str], ...], storage: str) -> Build:
    numbers = _source("cuda/numbers.cuh")
    after = ("cuda/cell_row.cuh", "cuda/rows.cuh", "cuda/stepwise.cuh", "cuda/stepwise.cu")
    macro, _ = STORAGES[storage]
    return Build(
        f"stepwise-{cell.name}-{storage}",
        (numbers, header, *map(_source, after)),
        ((macro, "1"), *_row_macros(cell), *defines),
        (*_ROWS, *_STEPS),
    )


def _row_macros(cell: Cell) -> tuple[tuple[str, str], ...]:
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
    """Every module that this version can compile."""
    return tuple(stepwise(cell, storage) for cell in HEADERS for storage in STORAGES)


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
