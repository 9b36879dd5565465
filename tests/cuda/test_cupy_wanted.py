"""Gradients that are not wanted are not launched, and the others have the same bits: on the stand-in for CuPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkit.core.devices import to_numpy
from rnnkit.functional import direction
from rnnkit.testing import Case, make_inputs
from tests.cuda.cuda_helpers import cuda
from tests.cuda.test_cupy_overlap import LENGTHS, B, H, I, T, layer_of, planned
from tests.helpers import assert_same, parts, slow_except
from tests.tools import emulator, greenlets

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

WANTS = [{"dx": dx, "dweights": dweights} for dx in (True, False) for dweights in (True, False)]


def gradients(backend: str, case: Case, wants: dict[str, bool]) -> dict[str, np.ndarray]:
    """The gradients that are wanted, by name."""
    inputs = make_inputs(case, "float32", device="cuda:0")
    given = (case.cell, inputs.x, inputs.state0, inputs.weights)
    _, _, saved = direction.forward(*given, lengths=inputs.lengths, backend=backend)
    dx, dstate0, dweights = direction.backward(saved, inputs.dy, inputs.dstate_n, inputs.weights, **wants)
    assert (dx is not None) == wants["dx"]
    assert any(w is not None for w in dweights) == wants["dweights"]
    named = {"dx": dx} | {f"d{k}": d for k, d in enumerate(dstate0)} | {f"dw{k}": d for k, d in enumerate(dweights)}
    return {name: to_numpy(d) for name, d in named.items() if d is not None}


def assert_parts_have_the_bits(backend: str, case: Case) -> None:
    whole = gradients(backend, case, WANTS[0])
    for wants in WANTS[1:]:
        found = gradients(backend, case, wants)
        assert_same(found, {name: whole[name] for name in found})


CASES = [
    ("stepwise", Case("lstm")),
    ("stepwise", Case("gru_reset_before", ragged=True)),
    ("stepwise", Case("lstm", P=4)),
    ("one_block", Case("lstm", ragged=True)),
    ("one_block", Case("gru", T=1)),
]


@pytest.mark.parametrize(("schedule", "case"), slow_except(CASES, *CASES[:1], unpack=True), ids=str)
def test_the_same_bits(schedule: str, case: Case) -> None:
    with cuda():
        assert_parts_have_the_bits(f"cupy:{schedule}", case)


def test_without_steps_or_rows() -> None:
    with cuda():
        for case in (Case("lstm", T=0), Case("lstm", B=0)):
            assert_parts_have_the_bits("cupy:stepwise", case)


def test_products_launches_and_memory() -> None:
    """One product less without dx; without the weights' gradients two, and the sums of the biases."""
    case = Case("lstm", T=6, B=4)
    counted = {}
    with cuda() as cp:
        for wants in WANTS:
            gradients("cupy:stepwise", case, wants)
        for wants in WANTS:
            gradients("cupy:stepwise", case, wants)
            with cp.fake.counting() as counts:
                found = gradients("cupy:stepwise", case, wants)
            counted[tuple(wants.values())] = (counts.gemms, counts.launches.total(), counts.allocations, len(found))
    gemms, launches, allocations, _ = counted[True, True]
    assert counted[False, True][:3] == (gemms - 1, launches, allocations - 1)
    assert counted[True, False][0] == gemms - 2
    assert counted[False, False][0] == gemms - 3
    assert counted[True, False][1] < launches
    assert counted[True, False][1:3] == (counted[False, False][1], counted[False, False][2] + 1)


@pytest.mark.parametrize(("at_once", "steps"), slow_except([(1, 2), (3, 2), (1, None)], (3, 2), unpack=True))
@pytest.mark.parametrize("lengths", slow_except([None, LENGTHS], LENGTHS))
def test_a_stack(at_once: int, steps: int | None, lengths: Any) -> None:
    """Beside the steps and in a wavefront: the layers above the first one give their dx."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, B, I)).astype("float32")
    dy = rng.standard_normal((T, B, H)).astype("float32")
    results = []
    gemms = []
    for dx in (True, False):
        with cuda(lazy_streams="late") as cp, planned(at_once, steps or T):
            layer = layer_of("GRU", "cuda:0", "cupy:one_block")
            layer(cp.asarray(x), lengths=lengths)
            with cp.fake.counting() as counts:
                found, dh0 = layer.backward(cp.asarray(dy), dx=dx)
                results.append({f"dh{k}": d.get() for k, d in enumerate(parts(dh0))})
            gemms.append(counts.gemms)
            assert (found is None) == (not dx)
            results[-1] |= {name: g.get() for name, g in layer.grads.items()}
    assert_same(*results)
    chunks = -(-T // (steps or T))
    assert gemms[0] - gemms[1] == chunks


@pytest.mark.skipif(greenlets.available() is not None, reason=str(greenlets.available()))
def test_numba_cuda() -> None:
    with cuda(), greenlets.installed():
        assert_parts_have_the_bits("numba_cuda", Case("lstm", T=3, B=2, I=2, H=5, ragged=True))
