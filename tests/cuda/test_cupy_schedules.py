"""Named schedules, and the counts of an arena, on the stand-in for CuPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

import rnnkit
from rnnkit import backends
from rnnkit.backends import registry
from rnnkit.errors import UnsupportedDeviceError
from rnnkit.functional import direction
from rnnkit.testing import Case, make_inputs, run
from tests.cuda.cuda_helpers import cuda
from tests.helpers import assert_same, refused
from tests.tools import emulator

needs_emulator = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))


@pytest.fixture
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


# The name


def test_names_of_backends_and_schedules() -> None:
    schedules = ("cupy:one_block", "cupy:cluster", "cupy:grid", "cupy:stepwise")
    assert backends.pinned_names() == ("numba", "numpy", *schedules, "numba_cuda")
    row, schedule = backends.backend_row("cupy:stepwise")
    assert (row.name, schedule) == ("cupy", "stepwise")
    row, schedule = backends.backend_row("cupy")
    assert (row.name, schedule) == ("cupy", None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cupy:steps", ["'cupy'", "'stepwise'", "'cupy:steps'"]),
        ("cupy:", ["'stepwise'", "'cupy:'"]),
        ("numba:stepwise", ["'numba' has no schedules", "'numba:stepwise'"]),
        (":stepwise", ["one of", "'numba'", "':stepwise'"]),
        ("cuda:stepwise", ["one of", "'cupy'", "'cuda:stepwise'"]),
    ],
)
def test_unknown_schedule_is_refused_by_name(name: str, words: list[str]) -> None:
    with refused(ValueError, *words):
        rnnkit.LSTM(3, 4, backend=name)
    with refused(ValueError, *words):
        rnnkit.LSTMCell(3, 4, backend=name)
    case = Case("lstm")
    inputs = make_inputs(case)
    with refused(ValueError, *words):
        direction.forward("lstm", inputs.x, inputs.state0, inputs.weights, backend=name)


def test_a_schedule_without_a_gpu_is_refused_with_the_reason() -> None:
    if backends.available("cupy"):
        pytest.skip("there is a CUDA device here")
    with refused(RuntimeError, "'cupy:stepwise' cannot run here"):
        rnnkit.GRU(3, 4, backend="cupy:stepwise")


def test_missing_libnvvm_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba CUDA cannot compile without it, which is reported before any kernel is needed."""
    pathfinder = pytest.importorskip("cuda.pathfinder")
    pytest.importorskip("numba_cuda")

    def missing(name: str) -> None:
        raise RuntimeError(f"no {name} anywhere\nand a page of folders")

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", missing)
    monkeypatch.setattr(registry, "cuda_problem", lambda: None)
    registry._libnvvm_problem.cache_clear()
    try:
        with refused(RuntimeError, "'numba_cuda' cannot run here", "libNVVM", "CUDA_HOME", "no nvvm anywhere"):
            backends.check_backend("numba_cuda")
    finally:
        registry._libnvvm_problem.cache_clear()


# The choice


def second_schedule(problem: str | None) -> Any:
    """SCHEDULES with a row before stepwise that runs the same code. problem: why it does not serve a call."""
    from rnnkit.backends.cupy import schedules

    @dataclasses.dataclass(frozen=True)
    class Another(schedules.Schedule):
        def load(self) -> Any:
            return schedules.SCHEDULES[-1].load()

        def problem(self, work: Any, card: Any) -> str | None:
            return problem

        def seconds(self, work: Any, card: Any, rates: Any) -> float:
            return 0.0

    row = Another("another", "planted")
    return mock.patch.object(schedules, "SCHEDULES", (row, *schedules.SCHEDULES))


@needs_emulator
def test_pinned_schedule_runs_and_is_named(cp: Any) -> None:
    case = Case("gru")
    inputs = make_inputs(case, "float32", device="cuda:0")
    want = run(case, inputs, "cupy:stepwise")
    with second_schedule(None):
        backends.select.cache_clear()
        for pinned, ran in (("cupy", "another"), ("cupy:another", "another"), ("cupy:stepwise", "stepwise")):
            given = (inputs.x, inputs.state0, inputs.weights)
            _, _, saved = direction.forward("gru", *given, backend=pinned)
            assert saved is not None
            assert saved.own.schedule.name == ran
            assert_same(run(case, inputs, pinned), want)
            layer = rnnkit.GRU(4, 6, device="cuda", backend=pinned)
            explained = rnnkit.explain(layer, inputs.x)
            assert explained.backend == "cupy"
            assert f"schedule {ran}:" in explained.kernel
            assert ("pinned" in explained.kernel) == (":" in pinned)
            assert repr(pinned) in explained.why
    backends.select.cache_clear()


@needs_emulator
def test_a_pinned_schedule_that_does_not_serve_the_call_raises_with_the_reason(cp: Any) -> None:
    x = cp.zeros((5, 2, 3), "float32")
    with second_schedule("H = 4 is planted to be too large"):
        backends.select.cache_clear()
        layer = rnnkit.LSTM(3, 4, device="cuda", backend="cupy:another")
        with refused(UnsupportedDeviceError, "another", "H = 4 is planted"):
            layer(x)
        with refused(UnsupportedDeviceError, "another", "H = 4 is planted"):
            rnnkit.explain(layer, x)
        free = rnnkit.LSTM(3, 4, device="cuda")
        free(x)
        assert "passed over another: H = 4 is planted" in rnnkit.explain(free, x).kernel
    backends.select.cache_clear()


# Counts of an arena


@needs_emulator
def test_counts_equal_what_ran(cp: Any) -> None:
    """Against the counts of the stand-in, which counts every launch independently."""
    from rnnkit.backends.cupy import arena, sources

    case = Case("lstm", T=7, B=3, I=5, H=9)
    inputs = make_inputs(case, "float32", device="cuda:0")
    own = {kernel.name for build in sources.builds() for kernel in build.kernels}
    found = []
    for _ in range(4):
        before = dataclasses.astuple(arena.counts())
        with cp.fake.counting() as seen:
            run(case, inputs, "cupy:stepwise")
        after = dataclasses.astuple(arena.counts())
        launches, replays, nodes, captures, refused_ = (b - a for a, b in zip(before, after, strict=True))
        assert launches == sum(n for name, n in seen.launches.items() if name in own) + seen.gemms
        assert nodes == sum(seen.replayed.values())
        found.append((replays, captures, refused_))
    # Three calls: launched, captured and replayed, replayed. One graph forward, one backward.
    assert found == [(0, 0, 0), (2, 2, 0), (2, 0, 0), (2, 0, 0)]


@needs_emulator
def test_refused_capture_is_counted(cp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnkit.backends.cupy import arena

    case = Case("lstm", T=4)
    inputs = make_inputs(case, "float32", device="cuda:0")
    want = run(case, inputs, "cupy:stepwise")
    end_capture = cp.cuda.Stream.end_capture

    def corrupted(stream: Any) -> Any:
        end_capture(stream)
        raise cp.cuda.runtime.CUDARuntimeError(901)

    monkeypatch.setattr(cp.cuda.Stream, "end_capture", corrupted)
    before = arena.counts()
    with pytest.warns(RuntimeWarning, match="could not be captured"):
        got = run(case, inputs, "cupy:stepwise")
    assert_same(got, want)
    after = arena.counts()
    assert (after.refused - before.refused, after.captures, after.replays) == (2, before.captures, before.replays)
    assert after.launches - before.launches == before.launches
