"""rnnkit.autotune on the stand-in for CuPy, with a clock that the tests set: what is measured, kept and chosen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close
from tests.cuda.cuda_helpers import cuda
from tests.tools import emulator

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

T, B, I, H = 5, 3, 4, 24
ALL = {"one_block", "cluster", "grid", "stepwise"}


@pytest.fixture(autouse=True)
def _tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "kernels"))
    rnnkit.autotune(True)
    yield
    rnnkit.autotune(False)


class Clock:
    """Seconds of a run by schedule, in place of the device's. It notes what it has measured."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.runs: list[str] = []

    def __call__(self, run: Any) -> float:
        run()
        (of,) = run.args
        name = getattr(of, "schedule", of)
        self.runs.append(name)
        return self.seconds[name]


RUNS = 2


@contextmanager
def clocked(**seconds: float) -> Iterator[Clock]:
    from rnnkit.backends.cupy import tuned

    clock = Clock(**seconds)
    with mock.patch.multiple(tuned, _seconds=clock, FIRST_RUNS=1, RUNS=RUNS):
        yield clock


def new_process() -> None:
    """Forgets what is in memory, as the start of another process."""
    from rnnkit.backends.cupy import tuned

    tuned._measured.clear()


def layer_and_x(cp: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype("float32")
    return rnnkit.LSTM(I, H, device="cuda:0", rng=1, **kwargs), cp.asarray(x), x


def chosen_in(layer: Any, x: Any) -> str:
    kernel = rnnkit.explain(layer, x).kernel
    return kernel.split("schedule ")[1].split(":")[0]


def test_runs_compute_the_gates_again_where_the_call_does() -> None:
    with cuda() as cp:
        from rnnkit.backends.cupy import recompute

        layer, x, _ = layer_and_x(cp)
        real = recompute.Recomputation.run
        again = mock.patch.object(recompute.Recomputation, "run", autospec=True, side_effect=real)
        with clocked(**dict.fromkeys(ALL, 1e-4)) as clock, again as ran:
            layer(x, recompute_gates=True)
        assert len(clock.runs) == len(ALL) * RUNS
        assert ran.call_count == len(ALL) * (1 + RUNS)


def test_the_measured_schedule_is_used_and_said_and_kept(tmp_path: Path) -> None:
    for fastest in ("grid", "stepwise"):
        with cuda() as cp:
            times = dict.fromkeys(ALL, 3e-4) | {fastest: 1e-4}
            layer, x, host = layer_and_x(cp)
            for file in (tmp_path / "kernels").glob("*"):
                file.unlink()
            assert "the first call of these sizes measures" in rnnkit.explain(layer, x).kernel
            with clocked(**times) as clock:
                y, _ = layer(x)
                assert set(clock.runs) == ALL
                assert len(clock.runs) == len(ALL) * RUNS, "the median of some runs"
                layer(x)
                assert len(clock.runs) == len(ALL) * RUNS, "once"
                assert chosen_in(layer, x) == fastest
                said = rnnkit.explain(layer, x).kernel
                assert "the fastest by rnnkit.autotune, measured in us per call: one_block 300.0" in said
                assert f"{fastest} 100.0" in said
                new_process()
                layer(x)
                assert len(clock.runs) == len(ALL) * RUNS, "read from the file"
                layer(cp.concatenate((x, x), axis=1))
                assert len(clock.runs) == 2 * len(ALL) * RUNS, "other sizes"
            rnnkit.autotune(False)
            assert chosen_in(layer, x) == "one_block"
            assert "autotune" not in rnnkit.explain(layer, x).kernel
            rnnkit.autotune(True)
            want = rnnkit.LSTM(I, H, backend="numpy", rng=1)(host)[0]
            assert_close("y", y, want, "float32")


@pytest.mark.slow
def test_measuring_adds_no_gradients() -> None:
    with cuda() as cp, clocked(one_block=2.0, cluster=4.0, grid=1.0, stepwise=3.0):
        layer, x, host = layer_and_x(cp, bidirectional=True, num_layers=2)
        here = rnnkit.LSTM(I, H, 2, backend="numpy", rng=1, bidirectional=True)
        for one, given in ((layer, x), (here, host)):
            y, _ = one(given)
            one.backward(y)
        for name, want in here.grads.items():
            assert_close(name, layer.grads[name], want, "float32", "backward")


def test_a_stack_is_measured_and_chosen_as_a_whole(tmp_path: Path) -> None:
    """In one direction. What its layers took alone says nothing about it."""
    with cuda() as cp, clocked(one_block=2.0, cluster=4.0, grid=1.0, stepwise=3.0) as clock:
        layer, x, host = layer_and_x(cp)
        layer(x)
        stack = rnnkit.LSTM(I, H, 2, device="cuda:0", rng=1)
        assert "autotune is on: the first call of these sizes measures" in rnnkit.explain(stack, x).kernel
        clock.runs.clear()
        clock.seconds["grid"] = 5.0
        y, _ = stack(x)
        assert clock.runs == [name for name in ("one_block", "cluster", "grid", "stepwise") for _ in range(RUNS)]
        assert chosen_in(stack, x) == "one_block"
        assert chosen_in(layer, x) == "grid"
        said = rnnkit.explain(stack, x).kernel
        assert (
            "the fastest for 2 layers of a stack by rnnkit.autotune, measured in us per call: one_block 2000000" in said
        )
        before = len(clock.runs)
        new_process()
        launches = len(cp.fake.launches)
        y, _ = stack(x)
        launched = [launch for launch in cp.fake.launches[launches:] if launch.name == "forward_chunk"]
        assert len(launched) == 2
        assert all(launch.grid == (1, 1, 1) and not launch.cooperative for launch in launched)
        assert len(clock.runs) == before, "read from the file"
        here = rnnkit.LSTM(I, H, 2, backend="numpy", rng=1)
        stack.backward(y, call=stack.last_call)
        want, _ = here(host)
        here.backward(want)
        assert_close("y", y, want, "float32")
        for name, grad in here.grads.items():
            assert_close(name, stack.grads[name], grad, "float32", "backward")  # which measuring has not added to


@pytest.mark.slow
def test_a_stack_runs_at_once_after_it_was_measured() -> None:
    with cuda() as cp, clocked(one_block=2.0, cluster=4.0, grid=1.0, stepwise=3.0) as clock:
        from rnnkit.backends.cupy import overlap

        with mock.patch.object(overlap, "CHUNK_SECONDS", 0.0):
            layer = rnnkit.LSTM(I, H, 2, device="cuda:0", rng=1)
            x = cp.asarray(np.random.default_rng(0).standard_normal((17, B, I)).astype("float32"))
            first, _ = layer(x)
            assert chosen_in(layer, x) == "grid"
            assert "layers at once" in rnnkit.explain(layer, x).kernel
            before = len(clock.runs)
            second, _ = layer(x)
            assert len(clock.runs) == before
            assert_close("y", second, first.get(), "float32")


@pytest.mark.slow
def test_a_stack_with_dropout_is_measured_without_drawing() -> None:
    """So the masks of the call, and of later ones, are those without autotune."""
    with cuda() as cp, clocked(one_block=2.0, cluster=4.0, grid=1.0, stepwise=3.0) as clock:
        found = []
        for on in (True, False):
            rnnkit.autotune(on)
            layer = rnnkit.LSTM(I, H, 2, device="cuda:0", rng=1, dropout=0.5, backend=None if on else "cupy:grid")
            x = layer_and_x(cp)[1]
            found.append([layer(x)[0].get() for _ in range(2)])
        assert len(clock.runs) == len(ALL) * RUNS
        np.testing.assert_array_equal(*found)


def test_nothing_is_measured_where_it_must_not() -> None:
    with cuda() as cp, clocked() as clock:  # without a time, a run would raise KeyError
        layer, x, _ = layer_and_x(cp, backend="cupy:stepwise")
        layer(x)
        rnnkit.GRU(I, H, device="cuda:0", zoneout=0.1)(x)  # one schedule serves it
        stream = cp.cuda.Stream(non_blocking=True)
        layer, x, _ = layer_and_x(cp)
        with stream:
            stream.begin_capture()
            with pytest.raises(rnnkit.errors.DeviceError, match="is being captured"):
                layer(x)
            stream.end_capture()
        rnnkit.autotune(False)
        layer(x)
        assert not clock.runs


@pytest.mark.slow
def test_a_damaged_file_and_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cuda() as cp, clocked(one_block=1.0, cluster=4.0, grid=2.0, stepwise=3.0) as clock:
        layer, x, _ = layer_and_x(cp)
        layer(x)
        (file,) = (tmp_path / "kernels").glob("rnnkit-*.json")
        (entry,) = json.loads(file.read_text()).values()
        assert entry == {"one_block": 1.0, "cluster": 4.0, "grid": 2.0, "stepwise": 3.0}
        for damaged in ("{", "[]", '{"a": 3}', json.dumps({key: {} for key in json.loads(file.read_text())})):
            file.write_text(damaged)
            new_process()
            clock.runs.clear()
            layer(x)
            assert clock.runs
        blocked = tmp_path / "file"
        blocked.touch()
        monkeypatch.setenv("CUPY_CACHE_DIR", str(blocked / "below"))
        new_process()
        with pytest.warns(RuntimeWarning, match="for this process only"):
            layer(x)
        clock.runs.clear()
        layer(x)
        assert not clock.runs


@pytest.mark.slow
def test_what_is_kept_belongs_to_a_card_a_driver_and_a_version(tmp_path: Path) -> None:
    from tests.tools.cards import CARDS, simulated

    for name in ("NVIDIA H200", "Tesla T4"):
        with cuda(**simulated(CARDS[name])) as cp, clocked(one_block=1.0, cluster=4.0, grid=2.0, stepwise=3.0):
            layer, x, _ = layer_and_x(cp)
            layer(x)
    names = sorted(file.name for file in (tmp_path / "kernels").glob("*.json"))
    assert [name.split("-driver-")[0] for name in names] == [
        f"rnnkit-{rnnkit.__version__}-{card}" for card in ("nvidia-h200", "tesla-t4")
    ]


def test_the_switch() -> None:
    with pytest.raises(TypeError, match="on must be a bool, got int"):
        rnnkit.autotune(1)  # type: ignore[arg-type]
