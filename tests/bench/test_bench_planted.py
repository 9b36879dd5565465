"""A complete run of the benchmark with planted peers, one per kind of failure, and its result file.

The planted peers are modules that run in worker processes, like the real ones.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import grid, machine, report, result_file
from bench.__main__ import main
from bench.grid import FORWARD, FORWARD_BACKWARD, Point
from bench.peers import PEERS, PeerRow
from bench.runner import Settings, run

SMALL = {"T": 4, "B": 3, "I": 5, "H": 6}

# A peer that is the NumPy backend with one change, made by `spoil`.
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


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> result_file.Document:
    """A complete run over two points: the NumPy backend, and one peer per kind of failure."""
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
def results(ran: result_file.Document) -> Callable[[str, str], dict[str, Any]]:
    return lambda passes, peer: next(
        entry["results"][peer] for entry in ran["points"] if entry["point"]["passes"] == passes
    )


def test_wrong_result_has_no_time(results: Callable[[str, str], dict[str, Any]]) -> None:
    for passes in grid.PASSES:
        wrong = results(passes, "wrong")
        assert wrong["status"] == "wrong"
        assert wrong["why"].startswith("y: up to ")
        assert not {"ms", "round_ms", "sequences_per_s", "gflops"} & set(wrong)


def test_a_wrong_gradient_is_wrong_only_in_its_pass(results: Callable[[str, str], dict[str, Any]]) -> None:
    assert results(FORWARD, "wrong_gradient")["status"] == "ok"
    assert results(FORWARD_BACKWARD, "wrong_gradient")["status"] == "wrong"
    assert "dweight_hh_l0" in results(FORWARD_BACKWARD, "wrong_gradient")["why"]


def test_a_failed_peer_has_a_reason_and_the_others_continue(results: Callable[[str, str], dict[str, Any]]) -> None:
    for name, words in (("raises", "ArithmeticError: planted error"), ("dies", "exit status 3: planted last words")):
        assert results(FORWARD, name)["status"] == "ok"
        assert results(FORWARD_BACKWARD, name) == {"status": "failed", "why": words}
    for passes in grid.PASSES:
        right = results(passes, "numpy")
        assert right["status"] == "ok"
        assert 0 < right["error"] <= 1
        assert len(right["round_ms"]) == 2
        assert right["ms"]["min"] <= right["ms"]["p25"] <= right["ms"]["median"] <= right["ms"]["p75"]


def test_absent_peers_are_named_with_the_reason(ran: result_file.Document) -> None:
    assert ran["peers"]["not_here"] == {"ours": False, "absent": "planted as absent"}
    assert ran["peers"]["missing"]["absent"] == "No module named 'bench.peers.there_is_no_such_file'"
    text = report.render(ran)
    assert "not_here: absent: planted as absent" in text
    assert not any("not_here" in entry["results"] for entry in ran["points"])


def test_report_prints_wrong_in_place_of_a_time(ran: result_file.Document) -> None:
    text = report.render(ran)
    table = [line.split() for line in text.splitlines()]
    header = next(line for line in table if line[:2] == ["cell", "T"])
    row = dict(zip(header, next(line for line in table if line[:1] == ["lstm"]), strict=True))
    assert row["wrong"] == "wrong"
    assert float(row["numpy"].rstrip("*")) > 0
    assert "wrong: wrong at lstm-T4-B3-I5-H6-float32-forward: y: up to" in text
    assert "left out of the grid as too large: 1 points, such as gru-T1000000" in text


def test_only_errors_of_rnnkit_fail_a_run(ran: result_file.Document) -> None:
    assert not report.has_errors(ran)
    corrupted = copy.deepcopy(ran)
    corrupted["peers"]["wrong"]["ours"] = True
    assert report.has_errors(corrupted)


# The file


def test_the_file_round_trips(ran: result_file.Document, tmp_path: Path) -> None:
    path = tmp_path / "machine" / "quick-float32.json"
    result_file.save(ran, path)
    assert result_file.load(path) == ran
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    lines = path.read_text().splitlines()
    assert [line for line in lines if line.startswith('[["lstm",4,3,5,6')] == lines[-4:-2]  # one line per point


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda d: d.update(schema=0), "schema must be 2"),
        (lambda d: d.pop("machine"), "machine missing"),
        (lambda d: d["points"][0].pop("results"), "results"),
        (lambda d: d["points"][0]["point"].update(speed=1), "speed"),
        (lambda d: d["points"][0]["results"].update(stranger={"status": "ok"}), "stranger"),
        (lambda d: d["points"][0]["results"]["numpy"].update(status="good"), "status of numpy"),
        (lambda d: d["points"][0]["results"]["wrong"].update(ms={}), "if and only if its result is right"),
    ],
)
def test_broken_document_is_not_written(ran: result_file.Document, tmp_path: Path, spoil: Any, match: str) -> None:
    broken = copy.deepcopy(ran)
    spoil(broken)
    with pytest.raises(ValueError, match=match):
        result_file.save(broken, tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda d: d.update(schema=1), "schema must be 2"),
        (lambda d: d.pop("machine"), "machine missing"),
        (lambda d: d["columns"]["result"].reverse(), "columns must be"),
        (lambda d: d.pop("reasons"), "reasons"),
        (lambda d: d["points"][0].pop(), "a point is not as it should be"),
        (lambda d: d["points"][0][0].extend(range(9)), "a point is not as it should be"),
        (lambda d: d["points"][0][0].clear(), "a point is not as it should be"),
        (lambda d: d["points"][0][2].pop(), "a point is not as it should be"),
        (lambda d: d["points"][0][3]["numpy"].pop(1), "a point is not as it should be"),
        (lambda d: d["points"][0][3].update(numpy=99), "a point is not as it should be"),
        (lambda d: d["points"][0][3].update(stranger=0), "stranger"),
        (lambda d: d["reasons"][0].update(status="good"), "status of wrong"),
        (lambda d: d["reasons"][0].update(status="ok"), "if and only if its result is right"),
    ],
)
def test_broken_file_is_not_read(ran: result_file.Document, tmp_path: Path, spoil: Any, match: str) -> None:
    path = tmp_path / "broken.json"
    result_file.save(ran, path)
    stored = json.loads(path.read_text())
    spoil(stored)
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=match):
        result_file.load(path)


def test_commands_on_files(ran: result_file.Document, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "run.json"
    result_file.save(ran, path)
    assert main(["report", str(path)]) == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert main(["compare", str(path), str(path)]) == 0
    assert "numpy: 1.000 over 1 points" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "none.json")]) == 2
    path.write_text("{")
    assert main(["report", str(path)]) == 2
    assert "is no JSON" in capsys.readouterr().err
