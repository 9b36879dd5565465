"""The simulated GPU, and the throughput part on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.bench.gpu_card import stand_in_card


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with stand_in_card(monkeypatch) as cupy:
        yield cupy


@pytest.fixture
def throughput(card: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from bench.gpu import throughput

    monkeypatch.setattr(throughput, "SECONDS", 0.0)
    monkeypatch.setattr(throughput, "REFUSED", {})
    monkeypatch.setattr(throughput, "ROUNDS", 1)
    monkeypatch.setattr(throughput, "WALL_CALLS", 1)
    return throughput
