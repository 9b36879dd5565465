"""Some seconds of `python -m tests.tools.soak`, which runs for ten minutes before a release; and its own tests."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

import rnnkit
from tests.tools import soak


@pytest.mark.slow
def test_some_seconds_without_a_problem() -> None:
    # In a separate process: in this one, callbacks of functions that other tests compiled may swallow an exception.
    command = [sys.executable, "-m", "tests.tools.soak", "--minutes", "0.2"]
    ran = subprocess.run(command, cwd=soak.ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "; 0 problems" in ran.stdout


def test_a_swallowed_exception_is_reported_and_does_not_hang(
    monkeypatch: pytest.MonkeyPatch, no_garbage_collection: None
) -> None:
    class Swallows(rnnkit.LSTM):
        def zero_grad(self) -> None:
            with contextlib.suppress(soak.Interrupt):
                for _ in range(3000):  # takes nearly all the time, so nearly all signals arrive here
                    super().zero_grad()

    monkeypatch.setattr(soak.rnnkit, "LSTM", Swallows)
    with pytest.raises(soak.Problem, match="exceptions were swallowed"):
        soak.interrupts(random.Random(0))


def test_a_problem_is_printed_and_sets_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def caches(rng: random.Random) -> None:
        soak.require(False, "planted")

    monkeypatch.setattr(soak, "ACTIVITIES", ((caches, 1),))
    assert soak.main(["--minutes", "0.001"]) == 1
    assert "caches: planted" in capsys.readouterr().out


@pytest.mark.slow
def test_growing_memory_is_a_problem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    held: list[int] = []
    monkeypatch.setattr(soak, "ACTIVITIES", ((lambda rng: held.append(1 << 25), 1),))
    monkeypatch.setattr(soak, "resident_bytes", lambda: (1 << 20) + sum(held))
    monkeypatch.setattr(soak, "time", SimpleNamespace(monotonic=count(0.0, 0.001).__next__))
    soak.ACTIVITIES[0][0].__name__ = "grow"
    assert soak.main(["--minutes", "0.005"]) == 1
    assert "memory grew" in capsys.readouterr().out


def test_files_are_emptied_truncated_and_corrupted(tmp_path: Path) -> None:
    path, whole = tmp_path / "file", bytes(range(200))
    sizes = set()
    for seed in range(30):
        path.write_bytes(whole)
        soak._damage(path, random.Random(seed))
        assert path.read_bytes() != whole or seed
        sizes.add(path.stat().st_size)
    assert {0, 200} < sizes
