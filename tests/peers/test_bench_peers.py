"""The benchmark's PyTorch, JAX and OpenVINO compute right results at small points of every kind."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from typing import Any

import pytest

from bench.grid import BENCHED as CELLS
from bench.grid import FORWARD_BACKWARD, Point
from bench.peers import PEERS
from bench.peers.signal_stack import signal_stack
from bench.problem import Oracle, check, make_problem

pytestmark = pytest.mark.peers

NO_BFLOAT16 = "OpenVINO has no bfloat16 on this processor"
DEEP: dict[str, Any] = {"layers": 2, "bidirectional": True, "ragged": True}
POINTS = [
    Point("lstm", T=4, B=3, I=5, H=6, passes=FORWARD_BACKWARD, P=2),
    *(Point(cell, T=4, B=3, I=5, H=6) for cell in CELLS),
    *(Point(cell, T=4, B=3, I=5, H=6, dtype="float64", passes=FORWARD_BACKWARD) for cell in CELLS),
    *(Point(cell, T=4, B=3, I=5, H=6, passes=FORWARD_BACKWARD, **DEEP) for cell in CELLS),
]


INFERENCE = [Point(cell, T=4, B=3, I=5, H=6, dtype=d) for cell in CELLS for d in ("float32", "bfloat16")]
INFERENCE += [replace(point, **DEEP) for point in INFERENCE]


@pytest.mark.parametrize("point", INFERENCE, ids=str)
@pytest.mark.parametrize("peer", ["openvino", "torch"])
def test_inference_passes_the_correctness_check_in_bfloat16_too(peer: str, point: Point) -> None:
    pytest.importorskip(peer)
    loaded = PEERS[peer].load()
    reason = loaded.unsupported(point)
    if reason:
        assert (peer, point.cell) == ("torch", "gru_reset_before") or reason == NO_BFLOAT16
        pytest.skip(reason)
    prepared = loaded.prepare(make_problem(point), threads=1)
    prepared.call()
    errors = check(point, Oracle(point), prepared.results(prepared.call()))
    assert max(errors.values()) <= 1, errors


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's sigaltstack")
def test_openvino_leaves_the_signal_stack_as_it_was() -> None:
    """Left in freed memory, it ends the process at the next signal that Python handles."""
    pytest.importorskip("openvino")
    before = signal_stack()
    first = PEERS["openvino"].load()
    second = PEERS["openvino"].load()
    for loaded in (first, second):
        assert loaded.unsupported(INFERENCE[0]) is None
    del first, loaded
    gc.collect()
    del second
    gc.collect()
    after = signal_stack()
    assert (after.start, after.size) == (before.start, before.size)


def test_openvino_refuses_what_it_does_not_compute() -> None:
    pytest.importorskip("openvino")
    unsupported = PEERS["openvino"].load().unsupported
    point = INFERENCE[0]
    assert unsupported(point) is None
    assert unsupported(replace(point, passes=FORWARD_BACKWARD)) == "OpenVINO is inference only"
    assert unsupported(replace(point, dtype="float64")) == "OpenVINO computes recurrent layers in float32 or bfloat16"
    assert unsupported(replace(point, cell="lstm", P=2)) == "the ONNX LSTM has no projection"


@pytest.mark.parametrize("point", POINTS, ids=str)
@pytest.mark.parametrize("peer", ["torch", "via torch", "via torch, compiled", "jax"])
def test_peers_pass_the_correctness_check(peer: str, point: Point) -> None:
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
