"""The notice that kernels are being compiled: shown after a delay, once, with the folder of the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rnnkit.kernels.cpu import notice
from rnnkit.kernels.cpu.notice import MARK, MARK_VALID_S, Notice

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice, "SHOWN_AFTER_S", 0.0)
    monkeypatch.delenv("RNNKIT_QUIET", raising=False)


def compiled(one: Notice, *folders: Path, seconds: float = 0.0) -> None:
    """Simulates a compilation of `seconds`. Returns after the notice, if there is one."""
    one.started("forward lstm float32", folders)
    timer = one._timer
    if timer is not None and seconds == 0.0:
        timer.join(10)
        assert not timer.is_alive()
    time.sleep(seconds)
    one.ended()


def test_the_notice_names_kernel_and_folder_and_is_shown_once(tmp_path, capsys) -> None:
    one = Notice()
    for _ in range(3):
        compiled(one, tmp_path / "cache")
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    for word in ("forward lstm float32", str(tmp_path / "cache"), "RNNKIT_QUIET=1"):
        assert word in output


def test_a_short_compilation_shows_no_notice(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(notice, "SHOWN_AFTER_S", 60.0)
    one = Notice()
    compiled(one, tmp_path, seconds=0.01)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / MARK).exists()


def test_times_of_short_compilations_add_up(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(notice, "SHOWN_AFTER_S", 0.05)
    one = Notice()
    for _ in range(3):
        compiled(one, tmp_path, seconds=0.03)
    assert capsys.readouterr().err.count("\n") == 1


def test_concurrent_processes_show_the_notice_once(tmp_path, capsys) -> None:
    for _ in range(3):
        compiled(Notice(), tmp_path)  # each for another process
    assert capsys.readouterr().err.count("\n") == 1
    earlier = time.time() - MARK_VALID_S - 1
    os.utime(tmp_path / MARK, (earlier, earlier))
    compiled(Notice(), tmp_path)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("value", "lines"), [("1", 0), ("yes", 0), ("0", 1), ("", 1)])
def test_rnnkit_quiet_disables_the_notice(value, lines, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RNNKIT_QUIET", value)
    compiled(Notice(), tmp_path)
    assert capsys.readouterr().err.count("\n") == lines


def test_the_notice_without_a_cache_folder_is_shown_once(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    one = Notice()
    for _ in range(3):
        compiled(one, tmp_path / "file")
    output = capsys.readouterr().err
    assert "finds no folder to cache them in" in output
    assert output.count("\n") == 1


def test_compilation_works_without_standard_error(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    compiled(Notice(), tmp_path)


@pytest.mark.slow
def test_only_a_process_that_compiles_shows_the_notice(tmp_path) -> None:
    script = """if 1:
        import numpy as np, rnnkit
        from rnnkit.kernels.cpu import notice
        notice.SHOWN_AFTER_S = 0.2
        rnnkit.RNN(3, 4, rng=0)(np.ones((1, 1, 3), "float32"))"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    environment.pop("RNNKIT_QUIET", None)
    errors = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        errors.append(done.stderr)
    assert errors[0].count("\n") == 1
    assert "float32" in errors[0]
    assert str(tmp_path) in errors[0]
    assert errors[1] == ""
