"""Parts of `make gpu` as processes, without a GPU, with stand-ins. Complete runs: tests/bench/test_gpu_command.py.

A part that fails, hangs or prints garbage does not affect other parts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.gpu import __main__ as command
from bench.gpu import items_file, log, plan, processes
from bench.gpu.processes import Part, Result
from tests.bench.gpu_parts import ROOT, has_ended, part


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "KILL_SECONDS", 0.5)


def run(given: Part, folder: Path, seconds: float = 30.0) -> tuple[Result, dict[str, dict[str, Any]]]:
    """The result of the part, and its items by key."""
    items = folder / "items.jsonl"
    written = log.Log(folder / "log.txt")
    result = processes.run(given, items, written, time.monotonic() + seconds)
    written.close()
    return result, items_file.ended(items_file.read_lines(items)).get(given.name, {})


def statuses(items: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {key: item["status"] for key, item in items.items()}


# Parts


def test_failing_part_keeps_its_items(tmp_path: Path) -> None:
    result, items = run(part("fails"), tmp_path)
    assert (result.status, result.why) == ("failed", "exit status 4")
    assert statuses(items) == {"first": "ok", "second": "failed"}
    assert items["second"]["why"] == "ZeroDivisionError: division by zero"


def test_the_last_output_of_a_part_is_kept(tmp_path: Path) -> None:
    result, _ = run(part("raises"), tmp_path)
    assert result.last_lines[-1] == "RuntimeError: planted last words"
    assert "raises| RuntimeError: planted last words" in (tmp_path / "log.txt").read_text()


def test_garbage_output_affects_no_items(tmp_path: Path) -> None:
    result, items = run(part("garbage"), tmp_path)
    assert result.status == "done"
    assert statuses(items) == {"first": "ok"}
    # The next part's items are complete, although the last line before them was truncated.
    result, items = run(part("done"), tmp_path)
    assert statuses(items) == {"first": "ok", "late": "not run", "odd": "ok", "missing": "not available"}
    assert items["odd"]["nan"] == "nan"
    assert items["missing"]["why"] == "planted library is not installed"
    json.dumps(items, allow_nan=False)


def test_garbage_before_a_line_does_not_damage_it(tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_bytes(b'{"part": "cut')
    items_file.append(items, [{"part": "next"}])
    assert items_file.read_lines(items) == [{"part": "next"}]


@pytest.mark.slow
def test_a_part_beyond_its_time_limit_is_killed_with_its_children(tmp_path: Path) -> None:
    started = time.monotonic()
    result, items = run(part("hangs", most=1.5), tmp_path)
    assert time.monotonic() - started < 1.5 + 3 * processes.KILL_SECONDS + 2.5
    assert (result.status, result.why) == ("failed", processes.OUT_OF_TIME)
    # Stopped by the time limit, so a continued run repeats it.
    assert statuses(items) == {"first": "ok", "second": "not run"}
    child = int((tmp_path / "log.txt").read_text().split("child ")[1].split()[0])
    assert has_ended(child)


@pytest.mark.slow
def test_a_hung_part_is_killed_when_no_check_finishes(tmp_path: Path) -> None:
    started = time.monotonic()
    result, items = run(part("hangs", quiet=1.0), tmp_path)
    assert result.why == "ended: no check came to an end for 1 s"
    assert statuses(items) == {"first": "ok", "second": "failed"}
    assert time.monotonic() - started < 1 + 3 * processes.KILL_SECONDS + 4


@pytest.mark.slow
def test_a_hung_worker_is_detected_beside_a_running_one(tmp_path: Path) -> None:
    """Progress is tracked per process: the other worker writes all the time."""
    both = part(
        "hangs", "steady800", quiet=1.0, environment=(("WITNESS", str(tmp_path / "witness")), ("PAUSE", "0.005"))
    )
    result, items = run(both, tmp_path)
    assert result.why == "ended: no check came to an end for 1 s"
    assert items["second"]["status"] == "failed"
    assert items["item 799"]["status"] == "ok"
    order = [line["item"] for line in items_file.read_lines(tmp_path / "items.jsonl") if "item" in line]
    assert order.index("second") < order.index("item 799"), "it was killed only after the other worker"


def test_a_part_continues_after_the_check_that_killed_it(tmp_path: Path) -> None:
    result, items = run(part("dies", restarts=2), tmp_path)
    assert (result.status, result.starts) == ("done", 2)
    assert statuses(items) == {"first": "ok", "second": "ok", "third": "failed", "fourth": "ok"}
    assert items["third"]["why"] == "exit status 9"


def test_the_restart_of_one_worker_does_not_affect_the_checks_of_others(tmp_path: Path) -> None:
    two = part("dies", "steady60", restarts=2, environment=(("WITNESS", str(tmp_path / "witness")), ("PAUSE", "0.02")))
    result, _ = run(two, tmp_path)
    assert result.status == "done"
    bad = [line["item"] for line in items_file.read_lines(tmp_path / "items.jsonl") if line.get("status", "ok") != "ok"]
    assert bad == ["third"]


def test_no_more_restarts_than_allowed(tmp_path: Path) -> None:
    result, _ = run(part("raises", restarts=2), tmp_path)
    assert (result.status, result.starts, result.why) == ("failed", 3, "exit status 1")


def test_part_without_time_is_not_started(tmp_path: Path) -> None:
    result, _ = run(part("done", least=9.0), tmp_path, seconds=5.0)
    assert (result.status, result.why) == ("not run", "5 s are left, it needs 9")
    assert not (tmp_path / "items.jsonl").exists()


def test_a_lost_context_ends_the_process_with_a_restart_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal access every call fails, so the remaining checks need another process."""
    monkeypatch.setattr(items_file, "context_is_lost", lambda: True)
    one = items_file.Lines(tmp_path / "items.jsonl", "part", 10.0)
    one.item("fine", dict)
    with pytest.raises(SystemExit) as ended:
        one.item("illegal", lambda: 1 / 0)
    assert ended.value.code == items_file.AGAIN
    assert statuses(items_file.ended(items_file.read_lines(tmp_path / "items.jsonl"))["part"]) == {
        "fine": "ok",
        "illegal": "failed",
    }


# The plan


@pytest.mark.parametrize("schedule", [None, "stepwise"])
def test_the_plan_is_ordered_and_fits_its_time(schedule: str | None) -> None:
    parts = plan.parts(schedule)
    names = [one.name for one in parts]
    assert names == ["smoke", "parity", "ceilings", "throughput", "counters", "sanitizer"]
    before = command.ENDING + plan.CARD_SECONDS + parts[0].most
    # If a part hangs, every later part still has at least its `least` seconds.
    assert before + sum(one.least for one in parts[1:]) < command.SECONDS == 290
    assert sum(one.most for one in parts[:2]) + sum(one.least for one in parts[2:]) + command.ENDING < 290
    assert all(one.quiet < one.most and one.restarts for one in parts)
    pinned = [worker for one in parts for worker in one.workers if "--schedule" in worker]
    assert len(pinned) == (0 if schedule is None else plan.PARITY_WORKERS + 1)
    for one in parts:  # every program in the plan exists
        for worker in one.workers:
            if worker[2].startswith("bench."):
                assert (ROOT / f"{worker[2].replace('.', '/')}.py").exists()


def test_the_toolkit_is_found_in_the_usual_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan, "TOOLKIT", tmp_path)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert plan.toolkit() == (("CUDA_HOME", str(tmp_path)),)
    monkeypatch.setenv("CUDA_HOME", "elsewhere")
    assert plan.toolkit() == ()
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setattr(plan, "TOOLKIT", tmp_path / "none")
    assert plan.toolkit() == ()


# The log


def test_log_keeps_the_beginning_and_the_end_of_each_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(log, "HEAD_BYTES", 100)
    monkeypatch.setattr(log, "TAIL_BYTES", 50)
    whole = log.Log(tmp_path / "log")
    output = log.Output("one", whole)
    for i in range(100):
        output.say(f"line {i}")
    output.finish()
    whole.close()
    text = (tmp_path / "log").read_text()
    assert text.startswith("one| line 0\n")
    assert text.endswith("one| line 99\n")
    assert "bytes left out" in text
    assert len(text) < 400
    assert output.last(2) == ["line 98", "line 99"]


def test_the_size_of_the_log_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(log, "MOST_BYTES", 1000)
    whole = log.Log(tmp_path / "log")
    for i in range(1000):
        log.Output(f"process {i}", whole).say("x" * 50)
    whole.close()
    assert 900 < (tmp_path / "log").stat().st_size <= 1000


# pytest's outcomes as items


PLANTED_TESTS = """
import os, pytest
@pytest.mark.parametrize("backend", ["a", "b"])
@pytest.mark.parametrize("case", [1, 2])
def test_both(backend, case): pass
def test_fails(): assert 1 == 2, "planted"
def test_skips(): pytest.skip("planted reason")
def test_lacks(): pytest.skip("not available: planted library")
@pytest.fixture
def broken(): raise ValueError("planted fixture")
def test_error(broken): pass
def test_dies(): os._exit(9)
def test_last(): pass
"""


def test_outcomes_are_items_and_crashed_tests_are_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "test_planted.py").write_text(PLANTED_TESTS)
    options = ("-m", "pytest", "-q", "-p", "bench.gpu.pytest_plugin", "-p", "no:cacheprovider", "-o", "addopts=")
    here = (sys.executable, *options, "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path))
    shares = tuple((*here, "--share", f"{i}/2") for i in (1, 2))
    both = Part("tests", shares, 60.0, restarts=2, environment=(("PYTHONPATH", str(ROOT)),))
    result, items = run(both, tmp_path, 60.0)
    found = {key.split("::")[1]: item for key, item in items.items()}
    assert statuses(found) == {
        **{f"test_both[{case}-{backend}]": "ok" for case in (1, 2) for backend in "ab"},
        "test_fails": "failed",
        "test_skips": "skipped",
        "test_lacks": "not available",
        "test_error": "failed",
        "test_dies": "failed",
        "test_last": "ok",
    }
    assert "planted" in found["test_fails"]["why"]
    assert found["test_skips"]["why"] == "planted reason"
    assert found["test_lacks"]["why"] == "planted library"
    assert "planted fixture" in found["test_error"]["why"]
    assert result.starts == 2


# Processes end with their parent


@pytest.mark.parametrize("number", [9, 15])
def test_no_process_outlives_the_run(number: int, tmp_path: Path) -> None:
    program = (
        "import time\nfrom pathlib import Path\nfrom bench.gpu import log, processes\n"
        "from tests.bench.gpu_parts import part\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "environment = (('WITNESS', str(folder / 'witness')), ('PAUSE', '0.02'))\n"
        "both = part('steady9999-a', 'steady9999-b', environment=environment)\n"
        "processes.run(both, folder / 'items.jsonl', log.Log(folder / 'log.txt'), time.monotonic() + 60)"
    )
    outer = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 20
    items = tmp_path / "items.jsonl"
    while len({line["pid"] for line in items_file.read_lines(items)}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = {line["pid"] for line in items_file.read_lines(items)}
    os.kill(outer.pid, number)
    outer.wait(20)
    deadline = time.monotonic() + 5
    while not all(map(has_ended, workers)):
        assert time.monotonic() < deadline, "a process outlived the run"
        time.sleep(0.02)


def test_a_process_whose_parent_has_died_does_not_start(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    ran = subprocess.run(
        [sys.executable, "-m", "bench.gpu.exit_with_parent", "1", "touch", str(witness)],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 1
    assert b"the parent has died" in ran.stderr
    assert not witness.exists()


@pytest.mark.parametrize(("status", "lost"), [(None, False), (700, True), (719, True), (35, False), (100, False)])
def test_only_an_existing_context_counts_as_lost(
    monkeypatch: pytest.MonkeyPatch, status: int | None, lost: bool
) -> None:
    class CUDARuntimeError(RuntimeError):
        def __init__(self) -> None:
            self.status = status

    def synchronize() -> None:
        if status is not None:
            raise CUDARuntimeError

    runtime = SimpleNamespace(deviceSynchronize=synchronize)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    assert items_file.context_is_lost() is lost
    monkeypatch.delitem(sys.modules, "cupy")
    assert items_file.context_is_lost() is False
