"""Complete runs of `make gpu` without a GPU, with stand-in parts: the files they write, and runs that continue them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import __main__ as command
from bench.gpu import items_file, plan, processes, result_file
from rnnkit.core.devices import cuda_problem
from tests.bench.gpu_parts import ROOT, has_ended, part
from tests.helpers import slow_except

MOST_FILES = 8
MOST_BYTES = 16 << 20
PLOT = plan.plot


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(processes, "KILL_SECONDS", 0.5)
    monkeypatch.setattr(command, "ENDING", 5.0)
    monkeypatch.setattr(plan, "plot", lambda source, target: part("base"))  # without Matplotlib, which takes a second
    handlers = {number: signal.getsignal(number) for number in command.STOPPED}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run(out: Path, parts: list[Any], *options: str, seconds: float = 40.0, card: str = "card") -> int:
    arguments = ["--out", str(out), "--seconds", str(seconds), *options]
    return command.main(arguments, parts, part(card))


def document(out: Path) -> dict[str, Any]:
    return json.loads((out / "gpu.json").read_text())


def statuses(found: dict[str, Any], name: str) -> dict[str, str]:
    return {item["item"]: item["status"] for item in found["parts"][name]["items"]}


def smoke(what: str) -> Any:
    one = part(what)
    return processes.Part("smoke", one.workers, one.most, one.least, environment=one.environment)


def test_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(plan, "plot", PLOT)
    parts = [smoke("base"), part("done"), part("fails"), part("hangs", quiet=1.0), part("raises", least=1e3)]
    started = time.monotonic()
    assert run(tmp_path, parts, "--seconds", "1040") == 1  # of which 1000 s are reserved for the last part
    assert time.monotonic() - started < 45
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(files) - {"gpu.png"} == {"gpu.json", "log.txt", "summary.txt"}
    found = document(tmp_path)
    assert found["schema"] == result_file.SCHEMA
    assert {name: one["status"] for name, one in found["parts"].items()} == {
        **dict.fromkeys(("card", "smoke", "done"), "done"),
        **dict.fromkeys(("fails", "hangs"), "failed"),
        "raises": "not run",
    }
    assert statuses(found, "done") == {"first": "ok", "late": "not run", "odd": "ok", "missing": "not available"}
    output = capsys.readouterr().out
    for line in (
        "done       ok            first",
        "done       not available missing  planted library is not installed",
        "fails      failed        second  ZeroDivisionError: division by zero",
        "not available: planted library is not installed",
        "Planted Card 9",
    ):
        assert line in output
    assert output.index("done       ok            first") < output.index("fails ...")  # printed at once
    assert "fails| this is fails" in (tmp_path / "log.txt").read_text(errors="replace")
    assert (tmp_path / "summary.txt").read_text() in output


def test_a_missing_requirement_alone_is_neither_failed_nor_ok(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, [part("done")], "--parts", "done") == 0
    assert "no problems" in capsys.readouterr().out
    assert statuses(document(tmp_path), "done")["missing"] == "not available"


def test_the_run_stops_if_the_base_case_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, [smoke("no-base"), part("done"), part("fails")]) == 1
    found = document(tmp_path)
    assert statuses(found, "smoke") == {"nvrtc": "ok", "cublas": "failed", "one step": "ok"}
    for name in ("done", "fails"):
        assert found["parts"][name]["status"] == "not run"
        assert "the base case failed: cublas" in found["parts"][name]["why"]
        assert not found["parts"][name]["items"]
    assert "the run stops here: the base case failed: cublas" in capsys.readouterr().out


@pytest.mark.slow
def test_base_case_that_hangs_stops_the_run(tmp_path: Path) -> None:
    one = part("hangs", most=1.0)
    assert run(tmp_path, [processes.Part("smoke", one.workers, 1.0, 0.5), part("done")]) == 1
    assert "nvrtc: not run" in document(tmp_path)["parts"]["done"]["why"]


@pytest.mark.slow
def test_the_run_keeps_its_time_limit_if_everything_hangs(tmp_path: Path) -> None:
    started = time.monotonic()
    names = ("parity", "ceilings", "throughput")
    parts = [smoke("base")]
    parts += [processes.Part(name, part("hangs").workers, most=60.0, least=1.0) for name in names]
    assert run(tmp_path, parts, seconds=14.0) == 1
    assert time.monotonic() - started < 14
    found = document(tmp_path)
    assert [found["parts"][name]["status"] for name in names[:1]] == ["failed"]
    assert statuses(found, "parity") == {"first": "ok", "second": "not run"}


@pytest.mark.skipif(cuda_problem() is None, reason="there is a CUDA card here")
def test_no_gpu_has_a_separate_exit_status(tmp_path: Path) -> None:
    before = sorted((ROOT / "bench" / "results").rglob("*"))
    ran = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == command.NO_CARD == 3, ran.stdout + ran.stderr
    assert "there is no CUDA card that can be used here: " in ran.stdout
    assert "nothing was written" in ran.stdout
    assert not (tmp_path / "out").exists()
    assert sorted((ROOT / "bench" / "results").rglob("*")) == before


def test_a_failed_driver_counts_as_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "out", [part("done")], card="no-card") == command.NO_CARD
    assert "planted: no driver" in capsys.readouterr().out
    hung = part("hangs", most=1.0, least=0.5)
    assert command.main(["--out", str(tmp_path / "out")], [part("done")], hung) == command.NO_CARD
    assert processes.OUT_OF_TIME in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


# Runs that end early


STEADY = 100
CHECKS = {f"item {share}{i}" for share in "ab" for i in range(STEADY)}


def start(out: Path, witness: Path, *options: str, limit: int | None = None) -> subprocess.Popen[bytes]:
    """Starts a run of one part with two processes of 100 short checks each. limit: the largest file size in bytes."""
    program = (
        "import resource, sys\n"
        f"limit = {limit!r}\n"
        "if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "from bench.gpu import __main__ as command, plan\n"
        "from tests.bench.gpu_parts import part\n"
        "plan.plot = lambda source, target: part('base')\n"
        f"environment = (('WITNESS', {str(witness)!r}), ('PAUSE', '0.01'))\n"
        f"steady = part('steady{STEADY}-a', 'steady{STEADY}-b', environment=environment)\n"
        "sys.exit(command.main(sys.argv[1:], [steady, part('done')], part('card')))\n"
    )
    arguments = ["--out", str(out), "--seconds", "60", *options]
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def ended_according_to(witness: Path) -> set[str]:
    return set(witness.read_text().splitlines()) if witness.exists() else set()


def on_disk(out: Path) -> set[str]:
    """The checks that a continued run would find."""
    loaded = result_file.load(out / "gpu.json")["parts"].get(f"steady{STEADY}", {"items": []})
    return {item["item"] for item in loaded["items"] if item["status"] == "ok"}


def assert_whole(out: Path, witness: Path) -> None:
    """Asserts that every finished check is in OUT, in few valid files."""
    files = list(out.iterdir())
    assert len(files) <= MOST_FILES
    assert all(path.stat().st_size < MOST_BYTES for path in files)
    json.loads((out / "gpu.json").read_text())
    assert ended_according_to(witness) <= on_disk(out)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(10))
def test_after_a_kill_at_a_random_moment_no_finished_check_is_missing(moment: int, tmp_path: Path) -> None:
    number = (signal.SIGKILL, signal.SIGTERM)[moment % 2]
    out = tmp_path / "out"
    witness = tmp_path / "witness"
    process = start(out, witness)
    assert process.stdout is not None
    while b"steady100 ..." not in process.stdout.readline():  # the part has started
        assert process.poll() is None
    time.sleep(random.Random(moment).uniform(0.05, 1.0))
    process.send_signal(number)
    rest = process.stdout.read()
    code = process.wait(20)
    workers = {line["pid"] for line in items_file.read_lines(out / "items.jsonl") if "pid" in line}
    deadline = time.monotonic() + 5
    while not all(map(has_ended, workers)):
        assert time.monotonic() < deadline, "a process outlived the run"
        time.sleep(0.01)
    assert code in (-number, 128 + number), rest
    assert_whole(out, witness)
    if number == signal.SIGTERM:  # it could print why
        assert document(out)["parts"][f"steady{STEADY}"]["status"] == "ended"
        assert "SIGTERM" in document(out)["parts"][f"steady{STEADY}"]["why"]
    # Another run continues it, and runs each remaining check once.
    before = ended_according_to(witness)
    again = start(out, witness, "--done", str(out / "gpu.json"))
    output = again.communicate(timeout=60)[0]
    assert again.returncode == 0, output
    assert on_disk(out) == CHECKS
    done = witness.read_text().splitlines()
    assert all(done.count(key) == 1 for key in before)
    assert len(document(out)["runs"]) == 2
    runs = {item["item"]: item["run"] for item in document(out)["parts"][f"steady{STEADY}"]["items"]}
    assert {key for key, which in runs.items() if which == 0} >= before


@pytest.mark.parametrize("limit", slow_except([2000, 8000, 20_000], 8000))
def test_full_disk_keeps_what_was_written(limit: int, tmp_path: Path) -> None:
    """A limit on the file size acts like a full disk: a write fails after a part of the data."""
    out = tmp_path / "out"
    witness = tmp_path / "witness"
    process = start(out, witness, limit=limit)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 1, output
    assert "an item cannot be written to items.jsonl" in (out / "log.txt").read_text()
    assert "the run stops here: items could not be written" in output
    assert_whole(out, witness)
    assert 5 < len(on_disk(out)) < len(CHECKS)
    assert document(out)["parts"]["done"]["status"] == "not run"


def test_items_are_kept_if_the_document_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpu.partial").mkdir()
    (tmp_path / "gpu.json").write_text('{"schema": 2, "runs": [{}], "parts": {}}')
    assert run(tmp_path, [part("base")]) == 1
    assert "gpu.json cannot be written" in capsys.readouterr().out
    assert statuses(result_file.load(tmp_path), "base") == dict.fromkeys(("nvrtc", "cublas", "one step"), "ok")


def test_space_for_items_is_reserved(tmp_path: Path) -> None:
    """So that a disk that fills up later does not stop the run, if the file system supports it."""
    if not items_file.reserve(tmp_path / "items.jsonl"):
        pytest.skip("this file system sets no space aside")
    path = tmp_path / "items.jsonl"
    assert path.stat().st_size == 0
    assert path.stat().st_blocks * 512 >= items_file.RESERVED_BYTES
    items_file.append(path, [{"part": "a", "item": "b", "status": "ok"}])
    assert path.stat().st_blocks * 512 >= items_file.RESERVED_BYTES


# Continuing an earlier run


def mending(tmp_path: Path) -> Any:
    return part("mends", environment=(("MENDED", str(tmp_path / "mended")),))


def test_only_failed_repeats_only_failed_items(tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts = [smoke("base"), mending(tmp_path), part("done")]
    assert run(out, parts) == 1
    assert statuses(document(out), "mends") == {"first": "ok", "second": "failed", "third": "ok"}
    first = document(out)
    (tmp_path / "mended").write_text("")
    assert run(out, parts, "--done", str(out / "gpu.json"), "--only-failed") == 0
    second = document(out)
    assert statuses(second, "mends") == {"first": "ok", "second": "ok", "third": "ok"}
    runs = {item["item"]: item["run"] for item in second["parts"]["mends"]["items"]}
    assert runs == {"first": 0, "second": 1, "third": 0}
    assert second["parts"]["done"] == first["parts"]["done"]
    assert second["parts"]["smoke"] == first["parts"]["smoke"]


@pytest.mark.slow
def test_a_failure_that_was_not_repeated_in_time_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, [mending(tmp_path)]) == 1
    slow = processes.Part("mends", mending(tmp_path).workers, most=20, least=1e3)
    assert run(out, [slow], "--done", str(out), "--only-failed") == 1
    assert statuses(document(out), "mends")["second"] == "failed"


def test_continuing_runs_what_is_missing_and_keeps_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    later = tmp_path / "later"
    assert run(out, [smoke("base"), part("fails"), part("dies")]) == 1
    before = document(out)
    assert run(later, [smoke("base"), part("fails"), part("dies"), part("done")], "--done", str(out)) == 1
    after = document(later)
    assert after["parts"]["smoke"] == before["parts"]["smoke"]  # finished, so not started again
    assert statuses(after, "fails") == {"first": "ok", "second": "failed"}
    assert statuses(after, "dies") == {"first": "ok", "second": "ok", "third": "failed", "fourth": "ok"}
    assert [item["run"] for item in after["parts"]["dies"]["items"]] == [0, 0, 0, 1]
    assert after["parts"]["done"]["items"][0]["run"] == 1
    assert [entry["date"] for entry in after["runs"]] == [before["date"], after["date"]]
    assert document(out) == before


@pytest.mark.slow
def test_a_part_without_items_is_repeated_completely(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, [part("raises"), part("done")]) == 1
    document_ = document(out)
    document_["parts"]["raises"]["items"] = []
    result_file.write(document_, out / "gpu.json")
    assert run(out, [part("raises"), part("done")], "--done", str(out), "--only-failed") == 1
    assert statuses(document(out), "raises") == {"first": "ok"}


# Bad arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only-failed"], "--only-failed needs --done"),
        (["--done", "nowhere/gpu.json"], "nowhere/gpu.json does not exist"),
        (["--parts", "parity", "speed"], "--parts must be of done, got parity, speed"),
        (["--seconds", "0"], "must be a number of seconds above 0, got 0"),
        (["--schedule", "fastest"], "stepwise"),
    ],
)
def test_bad_arguments_give_status_2_and_change_nothing(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "out", [part("done")], *options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[1]", '{"schema": 1}', "{"])
def test_earlier_run_of_another_kind_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpu.json").write_text(text)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "out", [part("done")], "--done", str(tmp_path / "gpu.json"))
    assert ended.value.code == 2
    assert "gpu.json" in capsys.readouterr().err


def test_an_earlier_run_of_another_gpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, [part("done")]) == 0
    found = document(tmp_path)
    found["parts"]["card"]["items"][0]["name"] = "Other Card"
    result_file.write(found, tmp_path / "gpu.json")
    assert run(tmp_path / "out", [part("done")], "--done", str(tmp_path)) == 2
    assert "Planted Card 9" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parts_can_be_named(tmp_path: Path) -> None:
    run(tmp_path, [part("done"), part("fails")], "--parts", "done")
    assert set(document(tmp_path)["parts"]) == {"card", "done"}


def test_the_default_folder_has_the_name_of_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    assert command.main(["--seconds", "30"], [part("done")], part("card")) == 0
    assert os.listdir(tmp_path) == ["planted-card-9"]
