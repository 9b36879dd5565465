"""A simulated GPU for the measuring code of `make gpu`: the stand-in for CuPy, with short measurements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import items_file
from rnnkit.core.dtypes import DTYPES


@contextmanager
def stand_in_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in as `cupy`, with few rounds and bytes. Skips the test if the emulator cannot run."""
    emulator = pytest.importorskip("tests.tools.emulator")
    problem = emulator.available()
    if problem:
        pytest.skip(problem)
    from bench.gpu import exchange_costs, hardware_ceilings, sync_costs, timing
    from tests.tools import fakecupy

    monkeypatch.setattr(timing, "FEWEST", 1)
    monkeypatch.setattr(timing, "MOST", 2)
    short = {"ROUNDS": (1, 3), "REPEATS": 1, "CHAIN": 6, "SMALL": 64, "CLUSTERS": (2,), "BLOCK": 32}
    for name, value in short.items():
        monkeypatch.setattr(sync_costs, name, value)
    monkeypatch.setattr(exchange_costs, "VECTORS", (64,))
    sizes = {"COPY_BYTES": (4096, 8192), "STEPS": ((2, 8),), "POINTWISE": ((3, 32),), "MEMBERS": (2, 8)}
    for name, value in sizes.items():
        monkeypatch.setattr(hardware_ceilings, name, value)
    monkeypatch.setattr(hardware_ceilings, "LARGE", dict.fromkeys(DTYPES, 16))
    for kept in (sync_costs.module, sync_costs.resident):
        kept.cache_clear()
    with fakecupy.installed(attributes={"MultiProcessorCount": 4}) as cupy:
        yield cupy
    for kept in (sync_costs.module, sync_costs.resident):
        kept.cache_clear()


def part_items(module: Any, path: Path, seconds: float = 100.0) -> dict[str, dict[str, Any]]:
    """Runs a part and returns its items by key."""
    assert module.main(["--items", str(path), "--part", "part", "--seconds", str(seconds)]) == 0
    return items_file.ended(items_file.read_lines(path))["part"]
