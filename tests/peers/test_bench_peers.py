"""The benchmark's PyTorch and JAX are right at small points of every kind, so that their times mean something."""

from __future__ import annotations

from typing import Any

import pytest

from bench.grid import FORWARD_BACKWARD, Point
from bench.peers import PEERS
from bench.problem import Oracle, check, make_problem
from rnnkit.core.cells import CELLS

pytestmark = pytest.mark.peers

DEEP: dict[str, Any] = {"layers": 2, "bidirectional": True, "ragged": True}
POINTS = [
    Point("lstm", T=4, B=3, I=5, H=6, passes=FORWARD_BACKWARD, P=2),
    *(Point(cell, T=4, B=3, I=5, H=6) for cell in CELLS),
    *(Point(cell, T=4, B=3, I=5, H=6, dtype="float64", passes=FORWARD_BACKWARD) for cell in CELLS),
    *(Point(cell, T=4, B=3, I=5, H=6, passes=FORWARD_BACKWARD, **DEEP) for cell in CELLS),
]


@pytest.mark.parametrize("point", POINTS, ids=str)
@pytest.mark.parametrize("peer", ["torch", "via torch", "via torch, compiled", "jax"])
def test_peer_passes_the_gate(peer: str, point: Point) -> None:
    pytest.importorskip("jax" if peer == "jax" else "torch")
    loaded = PEERS[peer].load()
    reason = loaded.unsupported(point)
    if reason:
        assert (peer, point.cell) == ("torch", "gru_reset_before")
        pytest.skip(reason)
    prepared = loaded.prepare(make_problem(point), threads=1)
    prepared.call()
    errors = check(point, Oracle(point), prepared.results(prepared.call()))
    assert {"dx", "dh0", "dweight_ih_l0"} <= set(errors) or not point.backward
    assert max(errors.values()) <= 1, errors
