"""`make gpu` without a card: its planner and its command, with stand-in parts.

A part that fails, hangs or prints garbage costs nothing but itself; without a card nothing is written.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import __main__ as command
from bench.gpu import plan, report
from bench.gpu.plan import Part
from rnnkit._device import cuda_problem
from tests.gpu_document import CARD

ROOT = Path(__file__).parents[1]

# A stand-in part: does what its first argument says, with the arguments that every part is given.
STAND_IN = r"""
import json, os, signal, subprocess, sys, time
sys.path.insert(0, sys.argv.pop())
from bench.gpu.lines import Lines
what = sys.argv.pop(1)
lines = Lines.from_arguments("", sys.argv[1:])
print("this is", what)
lines.item("first", lambda: {"value": 1.5})
if what == "fails":
    lines.item("second", lambda: 1 / 0)
    raise SystemExit(4)
if what == "raises":
    raise RuntimeError("planted last words")
if what == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lines.item("second", lambda: time.sleep(600))
if what == "garbage":
    sys.stdout.buffer.write(bytes(range(256)) * 20000)
    with open(sys.argv[sys.argv.index("--lines") + 1], "ab") as file:
        file.write(b'{"item": 3}\n[1, 2]\nnull\n\xff\xfe{{{\n{"item": "x", "status": "splendid"}\n{"start": "cut')
if what == "dies":
    for name in ("second", "third", "fourth"):
        lines.item(name, (lambda: os._exit(75)) if name == "third" else lambda: {})
if what == "done":
    lines.item("late", lambda: None, needs=1e6)
    lines.item("odd", lambda: {"nan": float("nan"), "inf": float("inf")})
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """stand_in(what, **options) -> the Part of that name."""
    path = tmp_path_factory.mktemp("parts") / "stand_in.py"
    path.write_text(STAND_IN.replace("sys.argv.pop()", f"{str(ROOT)!r}"))

    def part(what: str, **options: Any) -> Part:
        return Part(what, (sys.executable, str(path), what), **{"most": 20.0, "least": 1.0, **options})

    return part


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "KILL_SECONDS", 0.5)


def gone(process: int) -> bool:
    """Whether a process has ended, waited for or not."""
    stat = Path(f"/proc/{process}/stat")
    try:
        os.kill(process, 0)
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def run(parts: list[Part], folder: Path, seconds: float = 30.0) -> dict[str, dict[str, Any]]:
    return plan.run(parts, folder, time.monotonic() + seconds)


def statuses(result: dict[str, Any]) -> dict[str, str]:
    return {item["item"]: item["status"] for item in result["items"]}


# The planner


def test_parts_cost_nothing_but_themselves(stand_in: Any, tmp_path: Path) -> None:
    names = ("fails", "raises", "garbage", "done")
    found = run([*map(stand_in, names), stand_in("hangs", most=1.0, least=0.5)], tmp_path)
    assert {name: part["status"] for name, part in found.items()} == {
        **dict.fromkeys(("fails", "raises", "hangs"), "failed"),
        **dict.fromkeys(("garbage", "done"), "done"),
    }
    assert found["fails"]["why"] == "exit status 4"
    assert statuses(found["fails"]) == {"first": "ok", "second": "failed"}
    assert found["fails"]["items"][1]["why"] == "ZeroDivisionError: division by zero"
    assert found["raises"]["last_lines"][-1] == "RuntimeError: planted last words"
    assert statuses(found["hangs"]) == {"first": "ok", "second": "failed"}
    assert "its time" in found["hangs"]["why"] == found["hangs"]["items"][1]["why"]
    assert found["garbage"]["items"][0]["value"] == 1.5
    assert statuses(found["garbage"]) == {"first": "ok"}
    assert statuses(found["done"]) == {"first": "ok", "late": "not run", "odd": "ok"}
    assert found["done"]["items"][2]["nan"] == "nan"
    child = int(next(line for line in found["hangs"]["last_lines"] if line.startswith("child")).split()[1])
    assert gone(child)
    json.dumps(found, allow_nan=False)


def test_hung_part_is_ended_when_it_says_nothing(stand_in: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    found = run([stand_in("hangs", quiet=1.0)], tmp_path)["hangs"]
    assert found["why"] == "ended: nothing new for 1 s"
    assert time.monotonic() - started < 1 + plan.KILL_SECONDS + 4


def test_part_goes_on_behind_the_item_it_died_at(stand_in: Any, tmp_path: Path) -> None:
    found = run([stand_in("dies", restarts=2)], tmp_path)["dies"]
    assert (found["status"], found["starts"]) == ("done", 2)
    assert statuses(found) == {"first": "ok", "second": "ok", "third": "failed", "fourth": "ok"}
    assert found["items"][2]["why"] == "the process ended here"


def test_no_more_restarts_than_allowed(stand_in: Any, tmp_path: Path) -> None:
    found = run([stand_in("raises", restarts=2)], tmp_path)["raises"]
    assert (found["status"], found["starts"], found["why"]) == ("failed", 3, "exit status 1")


def test_part_without_time_is_not_started(stand_in: Any, tmp_path: Path) -> None:
    found = plan.run([stand_in("done", least=9.0)], tmp_path, time.monotonic() + 10, after=5.0)["done"]
    assert (found["status"], found["why"]) == ("not run", "5 s are left, it needs 9")
    assert not list(tmp_path.iterdir())


def test_log_keeps_its_beginning_and_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan, "LOG_HEAD", 100)
    monkeypatch.setattr(plan, "LOG_TAIL", 50)
    log = plan.Log(tmp_path / "log")
    for i in range(100):
        log.say(f"line {i}")
    log.close()
    text = (tmp_path / "log").read_text()
    assert text.startswith("line 0\n")
    assert text.endswith("line 99\n")
    assert "bytes left out" in text
    assert len(text) < 300
    assert log.last(2) == ["line 98", "line 99"]


def test_plan_fits_its_time() -> None:
    groups = command.plan()
    least = sum(max(part.least for part in group) for group in groups) + command.ENDING + command.CARD_SECONDS
    assert least < command.SECONDS < 600
    names = [part.name for group in groups for part in group]
    assert len(set(names)) == len(names)
    assert [part.name for part in groups[-1]] == ["throughput"]
    for part in groups[-1]:
        assert part.restarts


# pytest's outcomes as lines


PLANTED_TESTS = """
import os, pytest
@pytest.mark.parametrize("backend", ["a", "b"])
@pytest.mark.parametrize("case", [1, 2])
def test_both(backend, case): pass
def test_fails(): assert 1 == 2, "planted"
def test_skips(): pytest.skip("planted reason")
@pytest.fixture
def broken(): raise ValueError("planted fixture")
def test_error(broken): pass
def test_dies(): os._exit(9)
def test_last(): pass
"""


def test_outcomes_come_as_lines_and_dead_tests_are_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "test_planted.py").write_text(PLANTED_TESTS)
    options = ("-m", "pytest", "-q", "-p", "bench.gpu.reports", "-p", "no:cacheprovider", "-o", "addopts=")
    here = (*options, "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path))
    parts = [
        Part(
            f"share{i}",
            (sys.executable, *here, "--share", f"{i}/2"),
            60.0,
            restarts=2,
            environment=(("PYTHONPATH", str(ROOT)),),
        )
        for i in (1, 2)
    ]
    found = run(parts, tmp_path, 60.0)
    merged = {item["item"].split("::")[1]: item for part in found.values() for item in part["items"]}
    assert {name: item["status"] for name, item in merged.items()} == {
        **{f"test_both[{case}-{backend}]": "ok" for case in (1, 2) for backend in "ab"},
        "test_fails": "failed",
        "test_skips": "skipped",
        "test_error": "failed",
        "test_dies": "failed",
        "test_last": "ok",
    }
    assert "planted" in merged["test_fails"]["why"]
    assert merged["test_skips"]["why"] == "planted reason"
    assert "planted fixture" in merged["test_error"]["why"]
    assert sorted(part["starts"] for part in found.values()) == [1, 2]
    one, other = ({item["item"] for item in part["items"]} for part in found.values())
    assert not one & other
    assert len(one) >= 3 <= len(other)


# The command


def test_whole_run(
    stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_card", lambda folder: (CARD, ""))
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "ENDING", 1.0)
    groups = [
        [stand_in("done"), stand_in("garbage")],
        [stand_in("fails")],
        [stand_in("hangs", quiet=1.0)],
        [stand_in("raises", least=1e3)],
    ]
    monkeypatch.setattr(command, "ENDING", -1000.0)  # the last group's least would else be kept for it
    started = time.monotonic()
    assert command.main(["--seconds", "40"], groups) == 1
    assert time.monotonic() - started < 45
    out = tmp_path / "planted-card-9"
    files = {path.name: path.stat().st_size for path in out.iterdir()}
    assert set(files) - {"gpu.png"} == {"gpu.json", "log.txt", "summary.txt"}
    assert max(files.values()) < 16 << 20
    document = json.loads((out / "gpu.json").read_text())
    assert document["schema"] == report.SCHEMA
    assert {name: part["status"] for name, part in document["parts"].items()} == {
        "card": "done",
        "done": "done",
        "garbage": "done",
        "fails": "failed",
        "hangs": "failed",
        "raises": "not run",
        "plot": "done" if "gpu.png" in files else "failed",
    }
    said = capsys.readouterr().out
    assert "ZeroDivisionError: division by zero" in said
    assert "Planted Card 9" in said
    assert "this is fails" in (out / "log.txt").read_text(errors="replace")
    assert (out / "summary.txt").read_text() in said


def test_parts_can_be_named(stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_card", lambda folder: (CARD, ""))
    monkeypatch.setattr(command, "PLOT_SECONDS", 0.0)
    groups = [[stand_in("done"), stand_in("fails")]]
    command.main(["--out", str(tmp_path), "--parts", "do"], groups)
    assert set(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == {"card", "done", "plot"}


def test_interrupted_run_ends_its_parts(stand_in: Any, tmp_path: Path) -> None:
    part = stand_in("hangs")
    program = (
        "import sys, time; from pathlib import Path; from bench.gpu import plan; from bench.gpu.plan import Part\n"
        "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); plan.KILL_SECONDS = 0.5\n"
        f"plan.run([Part('hangs', {part.command!r}, 60.0)], Path({str(tmp_path)!r}), time.monotonic() + 60)"
    )
    outer = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    deadline, log = time.monotonic() + 20, tmp_path / "hangs.log"
    while not (log.exists() and b"child" in log.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int(log.read_text().split("child")[1].split()[0])
    outer.send_signal(signal.SIGTERM)
    assert outer.wait(20) == 143
    assert gone(child)


@pytest.mark.skipif(cuda_problem() is None, reason="there is a CUDA card here")
def test_no_card_has_an_exit_status_of_its_own(tmp_path: Path) -> None:
    results = sorted((ROOT / "bench" / "results").rglob("*"))
    ran = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == command.NO_CARD == 3
    assert "there is no CUDA card that can be used here: " in ran.stdout
    assert "nothing was written" in ran.stdout
    assert not (tmp_path / "out").exists()
    assert sorted((ROOT / "bench" / "results").rglob("*")) == results
