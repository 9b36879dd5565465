"""The kernels of the emulator's own tests: features.cu and bugs.cu, each compiled once per mode."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from tests.tools.emulator import Module

HERE = Path(__file__).resolve().parent
SCHEDULES: tuple[dict[str, Any], ...] = ({}, {"order": "descending"}, {"seed": 1}, {"seed": 2})


@functools.cache
def module(name: str, mode: str) -> Module:
    """`name`.cu compiled in `mode`; its lines are known by its name."""
    code = (HERE / f"{name}.cu").read_text()
    return Module(f'#line 1 "{name}.cu"\n{code}', ("-std=c++17", "-DSHIFT=5"), mode)


@functools.cache
def marked_line(name: str, mark: str) -> int:
    """The line of `name`.cu with the comment "HERE `mark`"."""
    lines = (HERE / f"{name}.cu").read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.endswith(f"// HERE {mark}")]
    return number
