"""The benchmark: no time without a right result, counts that match their formula, files that come back as they went.

Nothing here asserts a time. The planted peers are modules of their own, run in worker processes as the real ones are.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import document, grid, machine, problem, report
from bench.__main__ import main
from bench.grid import FORWARD, FORWARD_BACKWARD, Point
from bench.peers import PEERS, PeerRow
from bench.problem import Oracle, check, make_problem, select_rows
from bench.runner import Settings, run
from rnnkit.core.cells import CELLS

SMALL = {"T": 4, "B": 3, "I": 5, "H": 6}
VARIANTS: list[dict[str, Any]] = [{}, {"layers": 2, "bidirectional": True, "ragged": True}]

# A peer that is the NumPy backend but for one thing, done in `spoil`.
PLANTED = """
import os
from bench.peers import Absent, Prepared
from bench.peers.rnnkit import Rnnkit

def make(name):
    if name == "not_here":
        raise Absent("planted as absent")
    return Planted(name)

class Planted(Rnnkit):
    def __init__(self, name):
        super().__init__("numpy")
        self.name, self.versions = name, {name: "1.0"}

    def prepare(self, problem, threads):
        call, results = super().prepare(problem, threads)
        def spoil(called):
            found = results(called)
            if self.name == "wrong":
                found["y"] = found["y"] + 1e-3
            if self.name == "wrong_gradient" and problem.point.backward:
                found["dweight_hh_l0"] = found["dweight_hh_l0"] * 1.01
            if self.name == "raises" and problem.point.backward:
                raise ArithmeticError("planted error")
            if self.name == "dies" and problem.point.backward:
                print("planted last words", file=__import__("sys").stderr, flush=True)
                os._exit(3)
            return found
        return Prepared(call, spoil)
"""
PLANTED_NAMES = ("wrong", "wrong_gradient", "raises", "dies", "not_here")


def outputs(name: str, point: Point) -> dict[str, np.ndarray]:
    """What a peer gives at a point, in this process."""
    given = make_problem(point)
    prepared = PEERS[name].load().prepare(given, threads=1)
    prepared.call()
    return select_rows(prepared.results(prepared.call()), given.rows)


# The gate


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_gate_passes_rnnkit(cell: str, dtype: str, variant: dict[str, Any]) -> None:
    point = Point(cell, **SMALL, dtype=dtype, passes=FORWARD_BACKWARD, **variant)
    errors = check(point, Oracle(point), outputs("numpy", point))
    assert set(problem.param_shapes(point)) == {n[1:] for n in errors if n.startswith("d") and "_l" in n}
    assert max(errors.values()) <= 1, errors


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cell", CELLS)
def test_gate_passes_onnxruntime(cell: str, variant: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime")
    point = Point(cell, **SMALL, **variant)
    errors = check(point, Oracle(point), outputs("onnxruntime", point))
    assert max(errors.values()) <= 1, errors


def test_gate_sees_every_array() -> None:
    point = Point("lstm", **SMALL, passes=FORWARD_BACKWARD, P=2)
    oracle, right = Oracle(point), outputs("numpy", point)
    assert set(right) == set(oracle.wanted(point))
    for name in right:
        spoilt = {k: a.copy() for k, a in right.items()}
        spoilt[name].flat[-1] += 1e-3
        assert [n for n, error in check(point, oracle, spoilt).items() if error > 1] == [name]
        for bad in (None, right[name].astype(np.float64), right[name][..., :1], np.full_like(right[name], np.nan)):
            spoilt = {k: a for k, a in right.items() if k != name} | ({} if bad is None else {name: bad})
            assert check(point, oracle, spoilt)[name] == math.inf


@pytest.mark.parametrize("cell", CELLS)
def test_a_few_rows_of_a_large_point_check_it_whole(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "WHOLE_ORACLE_FLOP", 0)
    point = Point(cell, T=3, B=20, I=4, H=5, passes=FORWARD_BACKWARD, ragged=True)
    oracle, got = Oracle(point), outputs("numpy", point)
    assert oracle.rows is not None
    assert len(oracle.rows) == got["y"].shape[1] == got["dx"].shape[1] == problem.CHECKED_ROWS
    assert {0, 19} < set(oracle.rows)
    assert max(check(point, oracle, got).values()) <= 1
    got["y"][-1, 0] += 1
    assert check(point, oracle, got)["y"] > 1


def test_oracle_refuses_another_shape() -> None:
    point = Point("gru", **SMALL)
    with pytest.raises(ValueError, match="this oracle is of gru-T4-B3-I5-H6, not of gru-T5"):
        Oracle(point).wanted(replace(point, T=5))


def test_numbers_are_the_same_in_every_dtype() -> None:
    single, double = (make_problem(Point("lstm", **SMALL), dtype) for dtype in ("float32", "float64"))
    for a, b in ((single.x, double.x), (single.dy, double.dy), *zip(single.state0, double.state0, strict=True)):
        assert a.dtype == np.float32
        assert b.dtype == np.float64
        np.testing.assert_array_equal(a, b)
    for name, p in single.params.items():
        np.testing.assert_array_equal(p, double.params[name])


# The counts and the grids


def test_flop_of_one_step() -> None:
    # 4 gates of 7 units over 5 inputs and 7 states, two rows of three steps, a multiply-add as two.
    assert Point("lstm", 3, 2, 5, 7).flop() == 3 * 2 * 2 * (5 + 7) * 4 * 7
    assert Point("lstm", 3, 2, 5, 7, P=3).flop() == 3 * 2 * 2 * ((5 + 3) * 4 * 7 + 7 * 3)
    assert Point("rnn_relu", 3, 2, 5, 7, passes=FORWARD_BACKWARD).flop() == 3 * 3 * 2 * 2 * (5 + 7) * 7


@pytest.mark.parametrize("variant", [{}, {"layers": 3}, {"layers": 2, "bidirectional": True}, {"ragged": True}])
@pytest.mark.parametrize("cell", CELLS)
def test_flop_is_two_a_weight_and_step(cell: str, variant: dict[str, Any]) -> None:
    point = Point(cell, 6, 4, 5, 7, **variant)
    weights = sum(math.prod(s) for s in problem.param_shapes(point).values() if len(s) == 2)
    lengths = point.lengths()
    assert point.flop() == 2 * weights * (24 if lengths is None else lengths.sum())
    assert replace(point, passes=FORWARD_BACKWARD).flop() == 3 * point.flop()


def test_param_shapes_are_the_layer_s() -> None:
    for cell in CELLS:
        point = Point(cell, 3, 2, 5, 7, layers=2, bidirectional=True, P=3 if cell == "lstm" else 0)
        layer = problem.make_layer(point, "numpy", "float32")
        assert problem.param_shapes(point) == {name: p.shape for name, p in layer.params.items()}


@pytest.mark.parametrize("name", grid.GRIDS)
def test_grids_have_every_main_cell_and_pass_once(name: str) -> None:
    kept, left_out = grid.points(name, "float32")
    everything = [*kept, *(point for point, _ in left_out)]
    assert len(set(map(str, everything))) == len(everything)
    assert {(p.cell, p.passes) for p in kept} >= {(c, p) for c in grid.MAIN_CELLS for p in grid.PASSES}
    assert all(point.too_much() == reason and reason for point, reason in left_out)
    assert not any(point.too_much() for point in kept)


def test_cpu_grid_covers_what_it_promises() -> None:
    kept, left_out = grid.points("cpu", "float32", [FORWARD])
    everything = {replace(p, passes=FORWARD) for p in [*kept, *(point for point, _ in left_out)]}
    for cell in grid.MAIN_CELLS:
        for H in (32, 64, 100, 128, 256, 512, 1024):
            for B in (1, 4, 8, 32, 64, 128):
                assert {Point(cell, 64, B, H, H), Point(cell, 256, B, 40, H)} <= everything
                if H == 128:
                    assert {Point(cell, T, B, I, H) for T in (64, 256) for I in (H, 40)} <= everything
    assert {p.cell for p in everything} == set(CELLS)
    for feature in ("ragged", "bidirectional", "P"):
        assert any(getattr(p, feature) for p in everything)


def test_grid_is_narrowed_by_cell_and_pass() -> None:
    kept, _ = grid.points("cpu", "float64", [FORWARD_BACKWARD], ["gru", "rnn_relu"])
    assert {p.cell for p in kept} == {"gru", "gru_reset_before", "rnn_relu"}
    assert {(p.passes, p.dtype) for p in kept} == {(FORWARD_BACKWARD, "float64")}


def test_one_in_so_many_is_of_every_length_and_pass() -> None:
    whole, _ = grid.points("cpu", "float32")
    some, _ = grid.points("cpu", "float32", every=4)
    assert set(map(str, some)) < set(map(str, whole))
    assert len(whole) / 6 < len(some) < len(whole) / 3
    assert {(p.T, p.passes, p.cell) for p in some} >= {
        (T, passes, cell) for T in (64, 256) for passes in grid.PASSES for cell in grid.MAIN_CELLS
    }


# A run, with peers planted in it


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> document.Document:
    """A whole run over two points: the NumPy backend, and one peer for each way to go wrong."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted_peer.py").write_text(PLANTED)
    rows = [PEERS["numpy"], *(PeerRow(name, "planted_peer") for name in PLANTED_NAMES)]
    rows.append(PeerRow("missing", "bench.peers.there_is_no_such_file"))
    settings = Settings("quick", "float32", grid.PASSES, (), 1, 0.003, 2, rows)
    points = [Point("lstm", **SMALL, passes=passes) for passes in grid.PASSES]
    left_out = [(Point("gru", 10**6, 1, 8, 8), "a call would take long")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setattr(machine, "ceiling", lambda dtype, threads: {"what": "planted", "gflops": {"1": 50.0}})
        *_, last = run(settings, points, left_out, say=lambda text: None)
    return last


@pytest.fixture
def results(ran: document.Document) -> Callable[[str, str], dict[str, Any]]:
    return lambda passes, peer: next(
        entry["results"][peer] for entry in ran["points"] if entry["point"]["passes"] == passes
    )


def test_wrong_result_has_no_time(results: Callable[[str, str], dict[str, Any]]) -> None:
    for passes in grid.PASSES:
        wrong = results(passes, "wrong")
        assert wrong["status"] == "wrong"
        assert wrong["why"].startswith("y: up to ")
        assert not {"ms", "round_ms", "sequences_per_s", "gflops"} & set(wrong)


def test_wrong_gradient_is_wrong_in_its_pass_alone(results: Callable[[str, str], dict[str, Any]]) -> None:
    assert results(FORWARD, "wrong_gradient")["status"] == "ok"
    assert results(FORWARD_BACKWARD, "wrong_gradient")["status"] == "wrong"
    assert "dweight_hh_l0" in results(FORWARD_BACKWARD, "wrong_gradient")["why"]


def test_peer_that_fails_says_why_and_the_others_go_on(results: Callable[[str, str], dict[str, Any]]) -> None:
    for name, words in (("raises", "ArithmeticError: planted error"), ("dies", "exit status 3: planted last words")):
        assert results(FORWARD, name)["status"] == "ok"
        assert results(FORWARD_BACKWARD, name) == {"status": "failed", "why": words}
    for passes in grid.PASSES:
        right = results(passes, "numpy")
        assert right["status"] == "ok"
        assert 0 < right["error"] <= 1
        assert len(right["round_ms"]) == 2
        assert right["ms"]["min"] <= right["ms"]["p25"] <= right["ms"]["median"] <= right["ms"]["p75"]


def test_absent_peers_are_named_with_the_reason(ran: document.Document) -> None:
    assert ran["peers"]["not_here"] == {"ours": False, "absent": "planted as absent"}
    assert ran["peers"]["missing"]["absent"] == "No module named 'bench.peers.there_is_no_such_file'"
    text = report.render(ran)
    assert "not_here: absent: planted as absent" in text
    assert not any("not_here" in entry["results"] for entry in ran["points"])


def test_report_prints_wrong_in_place_of_a_time(ran: document.Document) -> None:
    text = report.render(ran)
    table = [line.split() for line in text.splitlines()]
    header = next(line for line in table if line[:2] == ["cell", "T"])
    row = dict(zip(header, next(line for line in table if line[:1] == ["lstm"]), strict=True))
    assert row["wrong"] == "wrong"
    assert float(row["numpy"].rstrip("*")) > 0
    assert "wrong: wrong at lstm-T4-B3-I5-H6-float32-forward: y: up to" in text
    assert "left out of the grid as too large: 1 points, such as gru-T1000000" in text


def test_only_our_own_errors_fail_a_run(ran: document.Document) -> None:
    assert not report.has_errors(ran)
    spoilt = copy.deepcopy(ran)
    spoilt["peers"]["wrong"]["ours"] = True
    assert report.has_errors(spoilt)


# The file, the table, the plot


def test_file_comes_back_as_it_went(ran: document.Document, tmp_path: Path) -> None:
    path = tmp_path / "machine" / "quick-float32.json"
    document.save(ran, path)
    assert document.load(path) == ran
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda d: d.update(schema=0), "schema must be 1"),
        (lambda d: d.pop("machine"), "machine missing"),
        (lambda d: d["points"][0].pop("results"), "results"),
        (lambda d: d["points"][0]["point"].update(speed=1), "speed"),
        (lambda d: d["points"][0]["results"].update(stranger={"status": "ok"}), "stranger"),
        (lambda d: d["points"][0]["results"]["numpy"].update(status="good"), "status of numpy"),
        (lambda d: d["points"][0]["results"]["wrong"].update(ms={}), "if and only if its result is right"),
    ],
)
def test_broken_file_is_refused(ran: document.Document, tmp_path: Path, spoil: Any, match: str) -> None:
    broken = copy.deepcopy(ran)
    spoil(broken)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(ValueError, match=match):
        document.load(path)
    with pytest.raises(ValueError, match=match):
        document.save(broken, tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


def made_up(times: list[dict[str, float]]) -> document.Document:
    """A document with these median milliseconds a point; `numba` is ours."""
    points = []
    for i, given in enumerate(times):
        point = Point("gru", 10, 5, 8, 8 * (i + 1))
        found = {name: document.ok_result(point, 0.5, [[ms, ms]]) for name, ms in given.items()}
        points.append({"point": point.to_dict(), "flop": point.flop(), "rows_checked": 5, "results": found})
    return {
        "schema": document.SCHEMA,
        "grid": "quick",
        "dtype": "float32",
        "date": "2026-01-01",
        "commit": None,
        "settings": {"passes": [FORWARD], "cells": [], "threads": 2, "seconds": 1.0, "rounds": 1, "load": 0.0},
        "machine": machine.describe(),
        "ceiling": {"what": "planted", "gflops": {"1": 50.0, "2": 99.0}},
        "peers": {"numba": {"ours": True}, "torch": {"ours": False}, "jax": {"ours": False}},
        "left_out": [],
        "points": points,
    }


def test_ratios_and_their_means() -> None:
    found = made_up([{"numba": 2.0, "torch": 8.0, "jax": 16.0}, {"numba": 4.0, "torch": 4.0, "jax": 1.0}])
    text = report.render(found)
    table = [line.split() for line in text.splitlines() if line.startswith(("cell", "gru"))]
    rows = [dict(zip(table[0], line, strict=True)) for line in table[1:]]
    assert [row["ratio"] for row in rows] == ["4.00", "0.25"]
    assert [row["seq/s"] for row in rows] == ["2500", "1250"]
    # 3 gates, 50 steps, 2 (8 + 8) 3 8 FLOP each, in 2 ms.
    assert rows[0]["GFLOP/s"] == f"{50 * 2 * 16 * 24 / 2e-3 / 1e9:.1f}"
    assert "the best 1.00, torch 2.00, jax 1.41; least 0.25 at gru-T10-B5-I8-H16; behind at 1 of 2" in text


def test_compare_is_before_over_after() -> None:
    before = made_up([{"numba": 2.0, "torch": 8.0}, {"numba": 4.0, "torch": 4.0}])
    after = made_up([{"numba": 1.0, "torch": 8.0}, {"numba": 0.5, "torch": 4.0}])
    text = report.compare(before, after)
    assert "forward, numba: 4.000 over 2 points" in text
    assert "forward, torch: 1.000 over 2 points" in text
    assert report.compare(before, {**after, "points": []}) == "the two files have no right result in common"


@pytest.mark.parametrize(
    ("option", "values", "wanted"),
    [
        ("--seconds-per-point", ("0", "-1", "nan", "inf", "soon"), "a number above 0"),
        ("--repeat", ("0", "-3", "1.5"), "a positive whole number"),
        ("--threads", ("0", "two"), "a positive whole number"),
    ],
)
def test_options_out_of_range_are_refused(
    option: str, values: tuple[str, ...], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values:
        with pytest.raises(SystemExit) as end:
            main([f"{option}={value}"])
        assert end.value.code == 2
        assert f"argument {option}: must be {wanted}, got {value!r}" in capsys.readouterr().err


def test_commands_on_files(ran: document.Document, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "run.json"
    document.save(ran, path)
    assert main(["report", str(path)]) == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert main(["compare", str(path), str(path)]) == 0
    assert "numpy: 1.000 over 1 points" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "none.json")]) == 2
    path.write_text("{")
    assert main(["report", str(path)]) == 2
    assert "is no JSON" in capsys.readouterr().err


def test_machine_is_described_without_naming_the_host() -> None:
    found = machine.describe()
    assert found["cores"] >= 1
    assert found["cpu"]
    assert machine.slug({"cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "cores": 4}) == "intel-xeon-4-cores"
    assert machine.matmul_gflops("float32", size=32, seconds=0.001) > 0
