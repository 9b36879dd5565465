"""rnnkit.parity from Python: errors relative to their bounds, the plan, the outcomes; also on the stand-in for CuPy."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit import backends
from rnnkit.core.dtypes import DTYPES
from rnnkit.parity import Check, Outcome, check_layer, measure, plan, run
from rnnkit.testing import CASES, LARGE_CASES, Case, Errors, error_ratio, errors, make_inputs
from tests.api.planted import broken, changing_bits, off, planted, refusing, unwritten
from tests.cuda.cuda_helpers import cuda
from tests.helpers import LAYERS, refused
from tests.tools import emulator

CASE = Case("lstm", T=4, B=3, I=4, H=5)
NO_CUDA = not backends.available("cupy")


# Errors


def test_errors_are_fractions_of_each_elements_bound() -> None:
    """float32 forward: rtol 1e-5, atol 2e-6, scaled by max|want| = 4."""
    want = np.array([0.0, 2.0, -4.0])
    got = want + np.array([8e-6, 0.0, -24e-6])  # bounds 8e-6, 2.8e-5, 4.8e-5
    worst, rms = errors(got, want, "float32")
    assert worst == pytest.approx(1.0)
    assert rms == pytest.approx(math.sqrt((1 + 0 + 0.25) / 3))
    assert error_ratio(got, want, "float32") == worst
    backward = errors(got, want, "float32", "backward")  # rtol 5e-5, atol 4e-6: bounds 1.6e-5 and 2.16e-4
    assert backward == pytest.approx((0.5, math.sqrt((0.25 + (24 / 216) ** 2) / 3)))


def test_errors_of_nonfinite_and_empty_arrays() -> None:
    nan, inf = math.nan, math.inf
    assert errors([nan, 1.0], [nan, 1.0], "float32") == (0, 0)
    assert errors([inf, 1.0], [inf, 1.0], "float32") == (0, 0)
    for got, want in (([nan], [1.0]), ([1.0], [nan]), ([inf], [1.0]), ([1.0], [inf]), ([inf], [-inf])):
        assert errors(got, want, "float32") == (inf, inf)
    assert errors(np.zeros((0, 3)), np.zeros((0, 3)), "float32") == Errors(0.0, 0.0)
    assert errors([1e300, 0.0], [0.0, 0.0], "float64").rms == pytest.approx(1e300 / 1e-12 / math.sqrt(2))
    with refused(AssertionError, "(2,)", "(1,)"):
        errors([1.0, 2.0], [1.0], "float32")


def test_large_rnn_tanh_has_scaled_recurrent_weights() -> None:
    assert len(LARGE_CASES) == 16
    assert {case.cell for case in LARGE_CASES} == set(LAYERS) - {"rnn_relu", "slstm"}
    for H, share in ((100, 1.0), (101, 0.5)):
        wide, gru = (make_inputs(Case(cell, 2, 1, 1, H), "float32").weights for cell in ("rnn_tanh", "rnn_relu"))
        np.testing.assert_array_equal(wide.w_hh, gru.w_hh * np.float32(share))
        np.testing.assert_array_equal(wide.w_ih, gru.w_ih)


# The plan


def test_the_plan_has_every_served_combination() -> None:
    planned = plan(devices=["cpu"])
    found = {(c.backend, c.dtype) for c in planned.checks}
    have_bfloat16 = "bfloat16" not in planned.unavailable
    served = [d for d in DTYPES if have_bfloat16 or d != "bfloat16"]
    assert found == {("numba", d) for d in served} | {("numpy", d) for d in served if d != "float64"}
    assert len(planned.checks) == len(set(planned.checks)) == len(found) * len(CASES)
    stretches = [case for case, _ in itertools.groupby(planned.checks, key=lambda c: c.case)]
    assert len(stretches) == len(set(stretches))
    assert planned.missing == ()
    if NO_CUDA:
        assert plan().checks == planned.checks
        assert set(planned.unavailable) >= {"cupy:stepwise", "numba_cuda"}
        assert all(plan().unavailable.values())


def test_the_oracle_is_planned_only_by_name() -> None:
    assert not [c for c in plan(["numpy"]).checks if c.dtype == "float64"]
    assert not [c for c in plan(dtypes=["float64"]).checks if c.backend == "numpy"]
    (check,) = plan(["numpy"], ["float64"], cases=[CASE]).checks
    outcome = run(check)
    assert (outcome.status, outcome.worst, outcome.same_bits) == ("ok", 0, True)


@pytest.mark.skipif(not NO_CUDA, reason="there is a CUDA device here")
def test_a_requested_check_that_cannot_run_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = dataclasses.replace(backends.BACKENDS["numba"], dtypes=("float32", "float64"))
    monkeypatch.setitem(backends.BACKENDS, "numba", narrow)
    assert plan(["cupy", "numba"], cells=["gru"]).missing == ("cupy",)
    assert plan(devices=["cpu", "cuda:1"]).missing == ("cuda:1",)
    planned = plan(["numba"], ["float16", "float32"])
    assert planned.missing == ("float16",)
    assert "numba" in planned.unavailable["float16"]
    assert plan(["numba"], ["float16"]).missing == ("numba", "float16")
    assert plan(cells=["gru"], cases=[CASE]).missing == ("gru",)


def test_a_name_that_does_not_exist_is_refused() -> None:
    for name, given, words in (
        ("backends", ["fast"], ["backend", "'numba'", "'fast'"]),
        ("backends", ["cupy:fast"], ["'stepwise'", "'cupy:fast'"]),
        ("dtypes", ["float8"], ["dtype", "bfloat16", "'float8'"]),
        ("cells", ["mgu"], ["cell", "gru_reset_before", "'mgu'"]),
        ("devices", ["tpu"], ["device", "'cpu'", "'tpu'"]),
        ("cells", [], ["cells", "at least one name"]),
    ):
        with refused(ValueError, *words):
            plan(**{name: given})
    with refused(TypeError, "backends", "a list of names", "'numba'"):
        plan("numba")


# Outcomes


@pytest.mark.parametrize("name", ["y", "h_n", "dx", "dh0", "dw_hh"])
def test_a_wrong_array_is_found_and_named(name: str) -> None:
    with planted(off(name)):
        outcome = run(Check("planted", "float32", CASE, "cpu"))
    assert outcome.status == "wrong"
    assert outcome.worst_array == name
    assert f"{name} at " in outcome.why
    assert [n for n, e in outcome.arrays.items() if e.worst > 1] == [name]
    assert outcome.worst == outcome.arrays[name].worst > outcome.rms == outcome.arrays[name].rms > 1
    assert outcome.same_bits is True


def test_bits_that_differ_from_call_to_call_are_wrong() -> None:
    with planted(changing_bits()):
        outcome = run(Check("planted", "float32", CASE, "cpu"))
    assert (outcome.status, outcome.same_bits) == ("wrong", False)
    assert outcome.why == "bits differ from call to call: dw_hh"
    assert outcome.worst <= 1


def test_an_unwritten_element_is_found() -> None:
    with planted(unwritten):
        outcome = run(Check("planted", "float32", CASE, "cpu"))
    assert (outcome.status, outcome.worst_array) == ("wrong", "y")


@pytest.mark.parametrize("size", [8, 240, 4000, 100_000])
def test_freed_memory_is_poisoned(size: int) -> None:
    measure._poison_freed_memory("cpu", [size])
    assert np.isnan(np.empty(size // 4, np.float32)).any()


def test_another_shape_dtype_or_name_is_wrong() -> None:
    for change, message in (
        (lambda y: y[:, :, 1:], "y has shape (4, 3, 4), not (4, 3, 5)"),
        (lambda y: y.astype(np.float64), "y has dtype float64, not float32"),
    ):
        with planted(lambda found, change=change: found.update(y=change(found["y"])) if "y" in found else None):
            outcome = run(Check("planted", "float32", CASE, "cpu"))
        assert outcome.status == "wrong"
        assert message in outcome.why
        assert outcome.worst_array == "y"
    check, want = Check("numba", "float32", CASE, "cpu"), {"y": np.zeros(3)}
    got = {"z": np.zeros(3, np.float32)}
    assert (
        measure.compared(check, [got, got], want, 0.0).why == "y is missing; z is no output or gradient of the oracle"
    )


def test_an_exception_of_a_backend_is_a_failure_and_an_interrupt_propagates() -> None:
    with planted(broken):
        outcome = run(Check("planted", "float32", CASE, "cpu"))
    assert (outcome.status, outcome.arrays, outcome.same_bits) == ("failed", {}, None)
    assert outcome.why == "planted raised FloatingPointError: planted"
    assert (outcome.worst, outcome.rms, outcome.worst_array) == (math.inf, math.inf, "")

    def interrupted(found: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with planted(interrupted), pytest.raises(KeyboardInterrupt):
        run(Check("planted", "float32", CASE, "cpu"))
    if NO_CUDA:
        assert "RuntimeError" in run(Check("cupy", "float32", CASE, "cuda:0")).why
    with refused(ValueError, "backend", "'fast'"):
        run(Check("fast", "float32", CASE, "cpu"))


def test_outcomes_round_trip_through_json() -> None:
    kinds = (off("y"), changing_bits(), broken, unwritten)
    found = [run(Check("numpy", "float16", CASE, "cpu"))]
    for fault in kinds:
        with planted(fault):
            found.append(run(Check("planted", "float32", CASE, "cpu")))
    found.append(check_layer(rnnkit.GRU(3, 4, backend="numpy", rng=0), np.zeros((2, 1, 3), np.float32)))
    for outcome in found:
        written = json.dumps(outcome.to_dict(), allow_nan=False)
        assert Outcome.from_dict(json.loads(written)) == outcome
    assert str(found[0].check) == "numpy float16 lstm-T4-B3-I4-H5 cpu"


def test_float32_and_float64_share_the_oracles_result() -> None:
    assert measure.oracle(CASE, "float64") is measure.oracle(CASE, "float32")
    assert measure.oracle(CASE, "float16") is not measure.oracle(CASE, "float32")
    a, b = make_inputs(CASE, "float64"), make_inputs(CASE, "float32")
    for wide, narrow in zip((a.x, *a.weights[:4]), (b.x, *b.weights[:4]), strict=True):
        np.testing.assert_array_equal(wide, narrow.astype(np.float64))


# On the stand-in CuPy


needs_emulator = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))


@needs_emulator
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_cupy_backend_on_the_stand_in(dtype: str) -> None:
    """Three calls: launched, captured and replayed, replayed."""
    with cuda() as cp:
        planned = plan(["cupy:stepwise"], [dtype], ["gru", "lstm"], cases=[Case("gru", ragged=True), CASE])
        assert [c.device for c in planned.checks] == ["cuda:0", "cuda:1"] * 2
        for check in planned.checks:
            with cp.fake.counting() as counts:
                outcome = run(check)
            assert outcome.ok, outcome.why
            assert outcome.same_bits is True
            assert (counts.captures, counts.graph_launches) == (2, 4)


@needs_emulator
def test_a_dtype_that_the_gpu_does_not_support_is_omitted_with_the_reason() -> None:
    pytest.importorskip("ml_dtypes")
    with cuda(devices=1, arch="75"):
        planned = plan(["cupy"], ["float32", "bfloat16"], ["gru"])
        assert {c.dtype for c in planned.checks} == {"float32"}
        assert planned.missing == ("cupy bfloat16 on cuda:0", "bfloat16")
        assert "compute capability 8.0" in planned.unavailable["cupy bfloat16 on cuda:0"]
        assert plan(["cupy"], cells=["gru"]).missing == ()


@needs_emulator
def test_cases_that_a_schedule_refuses_are_omitted_with_the_reason() -> None:
    with cuda(devices=1), refusing(lambda sizes: "too wide" if sizes.H > 10 else None):
        planned = plan(["cupy:stepwise"], ["float32"], ["gru"])
        none = plan(["cupy:stepwise"], ["float32"], ["gru"], cases=[Case("gru", H=11)])
    assert len(planned.checks) == sum(c.cell == "gru" and c.H <= 10 for c in CASES)
    (key,) = planned.unavailable
    assert key == "5 of 12 cases of cupy:stepwise float32 on cuda:0"
    assert planned.missing == ()
    assert "cupy:stepwise" in none.missing
    assert not none.checks
