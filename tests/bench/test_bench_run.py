"""Long runs of the benchmark: how many calls a turn has, ending and resuming, and two runs held against each other.

Nothing here asserts how long anything takes: where calls must be long, the clock is a planted one.
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

import numpy as np
import pytest

from bench import document, grid, machine, means, report, runner, shares, worker
from bench.__main__ import main
from bench.cores import Cores
from bench.grid import FORWARD, FORWARD_BACKWARD, Point
from bench.peers import PEERS, PeerRow, Prepared
from bench.runner import Settings, run

SIZES = {"T": 4, "B": 3, "I": 5, "H": 6}
POINTS = [Point(cell, **SIZES, passes=passes) for cell in ("gru", "lstm") for passes in grid.PASSES]
CEILING = {"gflops": {"1": 50.0}, "fma_gflops": {"1": 100.0, "2": 200.0}, "vector_bytes": 64}
CEILING["read_gb_s"] = {"L1": 200.0, "L2": 100.0, "L3": 50.0, "memory": 20.0}


@pytest.fixture(autouse=True)
def planted_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ceiling", lambda dtype, threads: copy.deepcopy(CEILING))


class PlantedCores:
    """Whole at every look but those told; the last of them holds for ever after."""

    def __init__(self, looks: list[bool] | None = None) -> None:
        self.looks = looks or [True]

    def whole(self) -> bool:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def planted_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "Cores", lambda threads: PlantedCores())


def settings(**changed: Any) -> Settings:
    return replace(Settings("quick", "float32", grid.PASSES, (), 1, 0.003, 2, [PEERS["numpy"]]), **changed)


def finished(chosen: list[Point], **changed: Any) -> document.Document:
    *_, last = run(settings(**changed), chosen, [], lambda text: None)
    return last


# A turn


@pytest.mark.parametrize(
    ("looks", "asked", "again", "unsure"),
    [
        ([True], 1, 0, 0),
        ([False, False, True], 1, 0, 0),  # waited for
        ([True, False, True], 2, 1, 0),  # gone during the turn
        ([True, False, False, True, False, True], 3, 2, 0),
        ([False], 1, 0, 1),  # never there: the turn counts once patience is at its end
        ([True, False], 2, 1, 1),
    ],
)
def test_a_turn_is_repeated_until_the_cores_were_whole(looks, asked, again, unsure, monkeypatch) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 0.05)
    answers = []

    class Peer:
        def ask(self, name: str, request: Any, timeout: float) -> dict[str, Any]:
            answers.append({"ms": [len(answers)]})
            return answers[-1]

    turns = runner.Turns(Peer(), PlantedCores(looks))
    assert turns.take("numba", {}) is answers[-1]
    assert (len(answers), turns.again, turns.unsure) == (asked, again, unsure)


def test_what_a_peer_answers_in_place_of_a_time_is_not_asked_for_twice() -> None:
    turns = runner.Turns(SimpleNamespace(ask=lambda *request: {"error": "gone"}), PlantedCores([True, False]))
    assert turns.take("numba", {}) == {"error": "gone"}


def test_a_run_tells_how_often_it_looked_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 0.0)
    monkeypatch.setattr(runner, "Cores", lambda threads: PlantedCores([False]))
    last = finished(POINTS[:1])
    assert last["points"][0]["turns"] == {"again": 0, "unsure": 2}
    assert "0 turns repeated as not all cores were at hand, 2 kept" in report.render(last)


def test_the_cores_are_looked_at_each_in_its_place_and_let_go() -> None:
    before = {t.ident for t in threading.enumerate()}
    cores = Cores(2)
    assert all(0 < cores.look() <= 1 for _ in range(3))
    assert len({t.ident for t in threading.enumerate()} - before) == 2
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    cores.close()
    for thread in threading.enumerate():
        if thread.ident not in before:
            thread.join(5)
    assert {t.ident for t in threading.enumerate()} == before
    assert own is None or os.sched_getaffinity(0) == own


class Clock:
    """A clock that a planted call moves on."""

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
        (0.004, 5),  # 0.02 s of calls after as many that warm up
        (0.015, 3),  # two warm up, the third has passed 0.04 s, and two more are due
        (0.05, 3),  # each fills the turn; none is a warm-up
        (0.2, 1),  # long
    ],
)
def test_calls_of_a_turn(monkeypatch: pytest.MonkeyPatch, seconds: float, samples: int) -> None:
    held, clock = worker.Bench(PEERS["numpy"].load(), 1), Clock(monkeypatch)
    held.prepared = clock.takes(seconds)
    ms = held.time({"do": "time", "seconds": 0.0199, "calls": 3})["ms"]
    assert ms == pytest.approx([1e3 * seconds] * samples)


def test_short_calls_are_enough_for_quartiles() -> None:
    for entry in finished(POINTS[:1], seconds=1e-6, rounds=3)["points"]:
        found = entry["results"]["numpy"]
        assert len(found["round_ms"]) == 3
        assert found["ms"]["calls"] >= runner.LEAST_CALLS


def test_a_peer_far_behind_at_a_long_call_has_no_further_turn() -> None:
    rows = {"numba": PEERS["numba"], "torch": PEERS["torch"], "jax": PEERS["jax"]}
    pool: Any = SimpleNamespace(rows=rows)
    assert runner._outrun(pool, {"numba": [[900.0]], "torch": [[120.0]], "jax": [[260.0]]}) == ["jax"]
    assert runner._outrun(pool, {"numba": [[10.0]], "torch": [[120.0]], "jax": [[230.0]]}) == []
    assert runner._outrun(pool, {"numba": [[1.0]], "torch": [[2.0]], "jax": [[19.0]]}) == []


def test_peers_that_compile_are_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


# Ending and resuming


def test_a_run_without_time_left_begins_no_point() -> None:
    found = finished(POINTS, end=-math.inf)
    assert found["points"] == []
    document.validate(found)
    assert "not finished: 0 of 4 points; --resume goes on" in report.render(found)


def test_an_interrupted_run_is_resumed_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    begun = run(settings(resume=path), POINTS, [], lambda text: None)
    for found in begun:
        if len(found["points"]) == 3:
            document.save(found, path)
            break
    begun.close()
    half = document.load(path)
    last = finished(POINTS, resume=path)
    assert [Point.from_dict(entry["point"]) for entry in last["points"]] == POINTS
    assert last["points"][:3] == half["points"]
    assert last["settings"]["minutes"] >= half["settings"]["minutes"]
    assert "not finished" not in report.render(last)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda d: d.update(commit="other"), "its commit is 'other', and now it would be"),
        (lambda d: d["settings"].update(seconds=9.0), "its setting seconds is 9.0"),
        (lambda d: d["settings"].update(threads=9), "its setting threads is 9"),
        (lambda d: d["peers"]["numpy"]["versions"].update(numpy="0"), "its version of numpy is"),
        (lambda d: d["peers"].update(torch={"ours": False, "absent": "no"}), "its list of peers is"),
    ],
)
def test_another_run_is_not_resumed(tmp_path: Path, spoil: Any, what: str) -> None:
    path = tmp_path / "cpu.json"
    found = finished(POINTS[:1])
    spoil(found)
    document.save(found, path)
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
    whole = document.load(path)
    assert len(whole["points"]) == whole["settings"]["planned"] == 4
    document.save({**whole, "points": whole["points"][:2]}, path)
    assert main([*common, "--resume"]) == 0
    assert document.load(path)["points"][:2] == whole["points"][:2]
    assert len(document.load(path)["points"]) == 4
    assert main([*common, "--run", "2"]) == 0
    second = path.with_name("quick-float32-2.json")
    capsys.readouterr()
    assert main(["report", str(path), str(second)]) == 0
    assert "no right result in common" in capsys.readouterr().out  # there is no peer to be a ratio to
    document.save({**whole, "commit": "other"}, path)
    assert main([*common, "--resume"]) == 2
    assert "cannot be resumed: its commit is 'other'" in capsys.readouterr().err


# What is made of a large grid


def made_up(ratios: dict[Point, float], own: float = 2.0) -> document.Document:
    """A document where torch takes `own` times the ratio milliseconds, jax ten times as long, and numba `own`."""
    points = []
    for point, r in ratios.items():
        times = {"numba": own, "torch": own * r, "jax": 10 * own * r}
        found = {name: document.ok_result(point, 0.5, [[ms]]) for name, ms in times.items()}
        points.append({"point": point.to_dict(), "flop": point.flop(), "rows_checked": 1, "results": found})
    caches = {"L1": "32K", "L2": "1024K", "L3": "32768K"}
    return {
        "schema": document.SCHEMA,
        "grid": "cpu",
        "dtype": "float32",
        "date": "2026-01-01",
        "commit": None,
        "settings": {"passes": [], "cells": [], "threads": 2, "seconds": 1.0, "rounds": 1, "load": 0.0},
        "machine": {**machine.describe(), "caches": caches},
        "ceiling": CEILING,
        "peers": {"numba": {"ours": True}, "torch": {"ours": False}, "jax": {"ours": False}},
        "left_out": [],
        "points": points,
    }


def whole_grid() -> dict[Point, float]:
    """The cpu grid, twice as fast everywhere but at two points."""
    kept, _ = grid.points("cpu", "float32")
    ratios = dict.fromkeys(kept, 2.0)
    ratios[Point("gru", 64, 8, 64, 64)] = 0.5
    ratios[Point("lstm", 64, 32, 512, 512, passes=FORWARD_BACKWARD)] = 0.8
    return ratios


def test_means_by_group_and_the_points_behind() -> None:
    ratios = whole_grid()
    text = "\n".join(means.summary(made_up(ratios)))
    table = {tuple(line.split()[:2]): line.split()[2:] for line in text.splitlines()}
    n = sum(p.H == 64 and p.passes == FORWARD for p in ratios)
    mean = math.exp(((n - 1) * math.log(2) + math.log(0.5)) / n)
    assert table["H", "64"][:3] == [f"{mean:.2f}", "0.50", f"1/{n}"]
    assert table["B", "1"][:3] == ["2.00", "2.00", f"0/{sum(p.B == 1 and p.passes == FORWARD for p in ratios)}"]
    lstm = sum(p.cell == "lstm" and not p.extras and p.passes == FORWARD_BACKWARD for p in ratios)
    assert table["cell", "lstm"][4:] == ["0.80", f"1/{lstm}"]
    assert "behind, forward: 1 points\n  0.50  gru-T64-B8-I64-H64  (torch)" in text
    assert "behind, forward+backward: 1 points\n  0.80  lstm-T64-B32-I512-H512  (torch)" in text
    few = "\n".join(means.summary(made_up({Point("gru", 64, 8, 64, 64): 0.5})))
    assert few == "behind, forward: 1 points\n  0.50  gru-T64-B8-I64-H64  (torch)"


def test_shares_of_the_peak_and_of_reading() -> None:
    wide, narrow = Point("gru", 64, 32, 128, 128), Point("lstm", 64, 1, 100, 100)
    found = made_up({wide: 2.0, narrow: 2.0, replace(narrow, passes=FORWARD_BACKWARD): 2.0, replace(narrow, H=1024): 1})
    results = [entry["results"]["numba"] for entry in found["points"]]
    peak = 64 * 32 * 2 * 256 * 3 * 128 / 2e-3 / 200e9
    assert shares.fma_share(found, wide, results[0]) == pytest.approx(peak, rel=1e-3)
    assert shares.stream(found, wide, results[0]) is None
    # 4 gates of 100 units, padded to 112, over 100 states; a half of them on each of two threads, 64 times in 2 ms.
    gb_s = 4 * 112 * 100 * 4 / 2 * 64 / 2e-3 / 1e9
    own = shares.stream(found, narrow, results[1])
    assert own is not None
    assert (own.level, own.gb_s) == ("L2", pytest.approx(gb_s))
    assert own.share == pytest.approx(gb_s / 100)
    both = shares.stream(found, replace(narrow, passes=FORWARD_BACKWARD), results[2])
    assert both is not None
    assert both.gb_s == pytest.approx(2 * gb_s)
    for H, level in ((256, "L2"), (1024, "L3")):
        far = shares.stream(found, replace(narrow, H=H), results[3])
        assert far is not None
        assert far.level == level
    text = report.render(found)
    assert f"{100 * peak:.0f}%" in text
    assert f"{gb_s:.0f}GB/s={gb_s:.0f}%L2" in text
    assert "multiply-add peak float32 GFLOP/s, by threads: 100 on 1, 200 on 2" in text
    old = {**found, "ceiling": {"gflops": {"1": 50.0}}}
    assert shares.fma_share(old, wide, results[0]) is shares.stream(old, narrow, results[1]) is None
    assert "W_hh" not in report.render(old)


def test_spread_of_two_runs() -> None:
    sizes = [Point("gru", 64, 8, 8 * i, 8 * i) for i in range(1, 6)]
    first = made_up(dict(zip(sizes, (2.0, 2.0, 0.9, 0.9, 1.1), strict=True)))
    second = made_up(dict(zip(sizes, (2.2, 2.0, 0.8, 1.2, 1.0), strict=True)), own=4.0)
    text = means.spread_of_runs(first, second)
    apart = [0.1, 0.0, 0.9 / 0.8 - 1, 1.2 / 0.9 - 1, 0.1]
    assert f"the ratio differs by {100 * np.median(apart):.1f}% in the median" in text
    assert f"at most {100 * max(apart):.0f}% (0.90 and 1.20 at gru-T64-B8-I32-H32)" in text
    assert "numba: a time differs by 100.0% in the median" in text
    assert "behind in both runs: 1\n    0.90 0.80  gru-T64-B8-I24-H24" in text
    assert "behind in one run alone: 1\n    0.90 1.20  gru-T64-B8-I32-H32" in text
    with pytest.raises(ValueError, match="their dtype is 'float32' and 'float64'"):
        means.spread_of_runs(first, {**second, "dtype": "float64"})


def test_a_large_grid_is_drawn_as_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from bench import heat, plot

    found, boxes = made_up(whole_grid()), []
    box = heat._box
    monkeypatch.setattr(heat, "_box", lambda *a: (boxes.append(a[1:]), box(*a)))
    plot.draw(found, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    # Every point has a box but the two other pairings of T and I, which are at one width alone.
    drawn = [
        e for e in found["points"] if e["point"]["H"] != 128 or (e["point"]["T"] == 64) == (e["point"]["I"] == 128)
    ]
    extra = [e for e in found["points"] if e not in drawn and means.is_variant(Point.from_dict(e["point"]))]
    assert len(boxes) == len(drawn) + len(extra)
    # gru, B = 8 and H = 64 in the map of H down and B across.
    assert [b for b in boxes if b[2] < 1] == [(2, 1, 0.5, "torch"), (3, 5, 0.8, "torch")]
    few = made_up({Point("gru", 64, 8, 64, 64): 0.5})
    assert not heat.suits(few)
