"""Which CUDA sources make which module: one Build a (schedule, cell, storage dtype). Nothing here needs CuPy.

The files are joined into one string, for CuPy's disk cache is keyed by the string alone and would not see an edited
header; #line directives keep the compiler's messages true. NVRTC compiles a build at its first use on a device.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import rnnkit.kernels

KERNELS = Path(next(iter(rnnkit.kernels.__path__)))


class Kernel(NamedTuple):
    """A kernel of a build: its name, the largest block it is launched with, and its dynamic shared memory in bytes."""

    name: str
    block: tuple[int, int, int]
    shared_bytes: int = 0


class Build(NamedTuple):
    """One module: its name, the files joined in this order, the macros defined, its kernels, and its first sm_."""

    name: str
    files: tuple[str, ...]
    defines: tuple[tuple[str, str], ...]
    kernels: tuple[Kernel, ...]
    min_arch: int = 70


# Storage dtype -> the macro of kernels/cuda/numbers.cuh, and the first sm_ whose matrix products take it: every build
# compiles for every card, and a card may yet lack what cuBLAS needs.
STORAGES = {
    "float64": ("RK_FLOAT64", 70),
    "float32": ("RK_FLOAT32", 70),
    "float16": ("RK_FLOAT16", 70),
    "bfloat16": ("RK_BFLOAT16", 80),
}

# Cell -> its header and macros, for the cells that are one product and one pointwise part a step.
POINTWISE: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "rnn_tanh": ("cells/rnn.cuh", ()),
    "rnn_relu": ("cells/rnn.cuh", (("RK_RNN_RELU", "1"),)),
    "gru": ("cells/gru.cuh", ()),
    "lstm": ("cells/lstm.cuh", ()),
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
_STEPS = _kernels("forward_step", "emit_output", "backward_step", "backward_project")
_RESET_BEFORE = _kernels("forward_gates", "forward_output", "backward_output", "backward_gates")


@cache
def stepwise(cell: str, stored: str) -> Build:
    """Schedule D's module for a cell and storage dtype."""
    macro, _ = STORAGES[stored]
    if cell in POINTWISE:
        header, defines = POINTWISE[cell]
        files: tuple[str, ...] = (header, "cuda/rows.cuh", "cuda/stepwise.cuh", "cuda/stepwise.cu")
        steps = _STEPS
    else:
        defines, files, steps = (
            (),
            ("cuda/rows.cuh", "cuda/stepwise.cuh", "cuda/stepwise_reset_before.cu"),
            _RESET_BEFORE,
        )
    macros = ((macro, "1"), *defines)
    return Build(f"stepwise-{cell}-{stored}", ("cuda/numbers.cuh", *files), macros, (*_ROWS, *steps))


def builds() -> tuple[Build, ...]:
    """Every module that this version can compile."""
    cells = (*POINTWISE, "gru_reset_before")
    return tuple(stepwise(cell, stored) for cell in cells for stored in STORAGES)


@cache
def _text(file: str) -> str:
    return (KERNELS / file).read_text(encoding="utf-8")


def source(build: Build) -> str:
    """The build's files as one string."""
    return "".join(f'#line 1 "{file}"\n{_text(file)}\n' for file in build.files)


def options(build: Build) -> tuple[str, ...]:
    """What NVRTC is given beside the source and the architecture."""
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in build.defines))
