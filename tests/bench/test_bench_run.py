"""Long runs of the benchmark: the calls of a timing run, interruption and resuming, and the comparison of two runs.

No test asserts a time. Where calls must be long, the clock is simulated.
"""

from __future__ import annotations

import copy
import math
import os
import re
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import grid, machine, report, result_file, runner, worker
from bench.__main__ import main
from bench.core_check import CoreCheck
from bench.grid import Point
from bench.peers import PEERS, PeerRow, Prepared
from bench.runner import Settings, run
from tests.bench.bench_documents import CEILING

NO_RUNS = {"repeated": 0, "unconfirmed": 0}
SIZES = {"T": 4, "B": 3, "I": 5, "H": 6}
POINTS = [Point(cell, **SIZES, passes=passes) for cell in ("gru", "lstm") for passes in grid.PASSES]


@pytest.fixture(autouse=True)
def planted_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ceiling", lambda dtype, threads: copy.deepcopy(CEILING))


class PlantedCores:
    """Returns the planted results of the checks, and repeats the last one."""

    def __init__(self, checks: list[bool] | None = None) -> None:
        self.checks = checks or [True]

    def all_available(self) -> bool:
        return self.checks.pop(0) if len(self.checks) > 1 else self.checks[0]

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def planted_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "CoreCheck", lambda threads: PlantedCores())


def settings(**changed: Any) -> Settings:
    return replace(Settings("quick", "float32", grid.PASSES, (), 1, 0.003, 2, [PEERS["numpy"]]), **changed)


def finished(chosen: list[Point], **changed: Any) -> result_file.Document:
    *_, last = run(settings(**changed), chosen, [], lambda text: None)
    return last


# A timing run


@pytest.mark.parametrize(
    ("checks", "asked", "repeated", "unconfirmed"),
    [
        ([True], 1, 0, 0),
        ([False, False, True], 1, 0, 0),  # the run waits for the cores
        ([True, False, True], 2, 1, 0),  # a core is unavailable after the first run
        ([True, False, False, True, False, True], 3, 2, 0),
        ([False], 1, 0, 1),  # never available: the run counts after PATIENCE
        ([True, False], 2, 1, 1),
    ],
)
def test_timing_run_is_repeated_until_all_cores_are_available(
    checks, asked, repeated, unconfirmed, monkeypatch
) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 0.05)
    answers = []

    class Peer:
        def ask(self, name: str, request: Any, timeout: float) -> dict[str, Any]:
            answers.append({"ms": [len(answers)]})
            return answers[-1]

    timing_runs = runner.TimingRuns(Peer(), PlantedCores(checks))
    assert timing_runs.measure("numba", {}) is answers[-1]
    assert (len(answers), timing_runs.repeated, timing_runs.unconfirmed) == (asked, repeated, unconfirmed)


def test_a_peer_that_raised_is_not_run_again() -> None:
    timing_runs = runner.TimingRuns(
        SimpleNamespace(ask=lambda *request: {"error": "gone"}), PlantedCores([True, False])
    )
    assert timing_runs.measure("numba", {}) == {"error": "gone"}


def test_result_file_counts_runs_without_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 0.0)
    monkeypatch.setattr(runner, "CoreCheck", lambda threads: PlantedCores([False]))
    last = finished(POINTS[:1])
    assert last["points"][0]["timing_runs"] == {"repeated": 0, "unconfirmed": 2}
    assert "timing runs without all cores available: 0 repeated, 2 counted" in report.render(last)


def test_core_check_pins_its_threads_and_ends_them() -> None:
    before = {t.ident for t in threading.enumerate()}
    cores = CoreCheck(2)
    assert all(0 < cores.available_share() <= 1 for _ in range(3))
    assert len({t.ident for t in threading.enumerate()} - before) == 2
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    cores.close()
    for thread in threading.enumerate():
        if thread.ident not in before:
            thread.join(5)
    assert {t.ident for t in threading.enumerate()} == before
    assert own is None or os.sched_getaffinity(0) == own


class Clock:
    """A clock that planted calls advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def takes(self, seconds: float) -> Prepared:
        def call() -> None:
            self.now += seconds

        return Prepared(call, lambda called: {})


@pytest.mark.parametrize(
    ("seconds", "samples"),
    [
        (0.004, 5),  # 0.02 s of calls after as long a warm-up
        (0.015, 3),  # two warm-up calls; the third call ends after 0.04 s, and two more follow
        (0.05, 3),  # each call fills the run; no warm-up
        (0.2, 1),  # long
    ],
)
def test_calls_of_a_timing_run(monkeypatch: pytest.MonkeyPatch, seconds: float, samples: int) -> None:
    held = worker.Bench(PEERS["numpy"].load(), 1)
    clock = Clock(monkeypatch)
    held.prepared = clock.takes(seconds)
    ms = held.time({"do": "time", "seconds": 0.0199, "calls": 3})["ms"]
    assert ms == pytest.approx([1e3 * seconds] * samples)


def test_short_calls_give_enough_samples_for_quartiles() -> None:
    for entry in finished(POINTS[:1], seconds=1e-6, rounds=3)["points"]:
        found = entry["results"]["numpy"]
        assert len(found["round_ms"]) == 3
        assert found["ms"]["calls"] >= runner.LEAST_CALLS


def test_bfloat16_results_pass_through_files() -> None:
    point = Point("gru", **SIZES, dtype="bfloat16")
    (entry,) = finished([point], dtype="bfloat16")["points"]
    assert entry["results"]["numpy"]["status"] == "ok"
    assert entry["results"]["numpy"]["error"] > 0


def test_a_much_slower_peer_of_a_long_call_is_not_timed_again() -> None:
    rows = {"numba": PEERS["numba"], "torch": PEERS["torch"], "jax": PEERS["jax"]}
    pool: Any = SimpleNamespace(rows=rows)
    assert runner._outrun(pool, {"numba": [[900.0]], "torch": [[120.0]], "jax": [[260.0]]}) == ["jax"]
    assert runner._outrun(pool, {"numba": [[10.0]], "torch": [[120.0]], "jax": [[230.0]]}) == []
    assert runner._outrun(pool, {"numba": [[1.0]], "torch": [[2.0]], "jax": [[19.0]]}) == []


@pytest.mark.slow
def test_peers_that_compile_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compiling_peer.py").write_text(
        "from bench.peers import Prepared\n"
        "from bench.peers.rnnkit import Rnnkit\n"
        "def make(name):\n"
        "    return Wrong('numpy') if name == 'wrong' else Rnnkit('numpy')\n"
        "class Wrong(Rnnkit):\n"
        "    def prepare(self, problem, threads):\n"
        "        call, results = super().prepare(problem, threads)\n"
        "        return Prepared(call, lambda called: {k: a + 1e-3 for k, a in results(called).items()})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows = [PeerRow("wrong", "compiling_peer", compiles=True), PEERS["numpy"], PeerRow("right", "compiling_peer")]
    for entry in finished(POINTS[:2], rows=rows)["points"]:
        assert {name: r["status"] for name, r in entry["results"].items()} == {
            "wrong": "wrong",
            "numpy": "ok",
            "right": "ok",
        }
        assert "ms" not in entry["results"]["wrong"]


# Interruption and resuming


def test_a_run_without_time_left_starts_no_point() -> None:
    found = finished(POINTS, end=-math.inf)
    assert found["points"] == []
    result_file.validate(found)
    assert "not finished: 0 of 4 points; --resume continues" in report.render(found)


def test_an_interrupted_run_resumes_at_the_next_point(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    begun = run(settings(resume=path), POINTS, [], lambda text: None)
    for found in begun:
        if len(found["points"]) == 3:
            result_file.save(found, path)
            break
    begun.close()
    half = result_file.load(path)
    last = finished(POINTS, resume=path)
    assert [Point.from_dict(entry["point"]) for entry in last["points"]] == POINTS
    assert last["points"][:3] == half["points"]
    assert last["settings"]["minutes"] >= half["settings"]["minutes"]
    assert "not finished" not in report.render(last)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda d: d.update(commit="other"), "its commit is 'other', and now it would be"),
        pytest.param(lambda d: d["settings"].update(seconds=9.0), "its setting seconds is 9.0", marks=pytest.mark.slow),
        (lambda d: d["settings"].update(threads=9), "its setting threads is 9"),
        (lambda d: d["peers"]["numpy"]["versions"].update(numpy="0"), "its version of numpy is"),
        (lambda d: d["peers"].update(torch={"ours": False, "absent": "no"}), "its list of peers is"),
    ],
)
def test_a_run_of_other_settings_is_not_resumed(tmp_path: Path, spoil: Any, what: str) -> None:
    path = tmp_path / "cpu.json"
    found = finished(POINTS[:1])
    spoil(found)
    result_file.save(found, path)
    with pytest.raises(ValueError, match=re.escape(what)):
        finished(POINTS, resume=path)


@pytest.mark.slow
def test_command_resumes_and_names_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    common = ["--peers", "numpy", "--cells", "rnn_tanh", "--seconds-per-point", "0.001", "--repeat", "1", "--threads=1"]
    common += ["--passes", "forward", "--out", str(tmp_path)]
    assert main([*common, "--budget", "1e-9"]) == 0
    assert "no time left for" in capsys.readouterr().out
    assert main([*common, "--resume"]) == 0
    (path,) = tmp_path.glob("*/quick-float32.json")
    whole = result_file.load(path)
    assert len(whole["points"]) == whole["settings"]["planned"] == 4
    result_file.save({**whole, "points": whole["points"][:2]}, path)
    assert main([*common, "--resume"]) == 0
    assert result_file.load(path)["points"][:2] == whole["points"][:2]
    assert len(result_file.load(path)["points"]) == 4
    assert main([*common, "--run", "2"]) == 0
    second = path.with_name("quick-float32-2.json")
    capsys.readouterr()
    assert main(["report", str(path), str(second)]) == 0
    assert "no point has a time of rnnkit and of a peer" in capsys.readouterr().out  # there is no peer for a ratio
    result_file.save({**whole, "commit": "other"}, path)
    assert main([*common, "--resume"]) == 2
    assert "cannot be resumed: its commit is 'other'" in capsys.readouterr().err
