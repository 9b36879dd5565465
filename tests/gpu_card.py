"""A card for the measuring code of `make gpu` where there is none: the stand-in CuPy, and everything made short."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import lines
from rnnkit.dtypes import DTYPES


@contextmanager
def stand_in_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in as `cupy`, and so few rounds and bytes that nothing takes time. Skips where nothing emulates."""
    emulator = pytest.importorskip("tests.emulator")
    problem = emulator.available()
    if problem:
        pytest.skip(problem)
    from bench.gpu import barriers, ceilings, timing
    from tests import fakecupy

    monkeypatch.setattr(timing, "FEWEST", 1)
    monkeypatch.setattr(timing, "MOST", 2)
    for name, value in {"ROUNDS": (1, 3), "REPEATS": 1, "CHAIN": 5, "CLUSTERS": (2,), "BLOCK": 32}.items():
        monkeypatch.setattr(barriers, name, value)
    for name, value in {"COPY_BYTES": (4096, 8192), "STEPS": ((2, 8),), "POINTWISE": ((3, 32),)}.items():
        monkeypatch.setattr(ceilings, name, value)
    monkeypatch.setattr(ceilings, "LARGE", dict.fromkeys(DTYPES, 16))
    barriers.module.cache_clear()
    with fakecupy.installed(attributes={"MultiProcessorCount": 4}) as cupy:
        yield cupy
    barriers.module.cache_clear()


def part_items(module: Any, path: Path, seconds: float = 100.0) -> dict[str, dict[str, Any]]:
    assert module.main(["--lines", str(path), "--seconds", str(seconds)]) == 0
    return {item["item"]: item for item in lines.items(lines.read_lines(path), "ended")}
