"""python -m rnnkit.doctor: reports what works, what is absent and what is broken, as text and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from rnnkit import doctor
from rnnkit.backends.numba import host
from rnnkit.core import cpu_limits
from rnnkit.kernels.cpu import cache
from rnnkit.kernels.cpu.cache_file import encode
from tests.api.planted import broken, off, planted

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the CPU kernels under a NUMBA_CACHE_DIR, which does not exist yet."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "root"))
    return cache.kernel_folders()[0]


@pytest.fixture
def one_thread_setting(monkeypatch: pytest.MonkeyPatch):
    cpu_limits.default_threads.cache_clear()
    yield
    cpu_limits.default_threads.cache_clear()


def test_the_text_lists_what_works_and_reports_no_fault(capsys) -> None:
    assert doctor.main([]) == 0
    output = capsys.readouterr().out
    words = ("versions", "rnnkit 0.1.0", "numba ", "-byte vectors", "threads", "rates", "__pycache__", "current", "gpu")
    for word in words:
        assert word in output, word
    assert "numpy (the NumPy oracle): runs here" in output
    assert "numba on cpu: ok, worst error" in output
    assert output.splitlines()[-1].split() == ["broken", "nothing"]


def test_json(capsys) -> None:
    assert doctor.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["broken"] == []
    assert found["backends"]["numba"]["problem"] is None
    assert {(one["backend"], one["status"]) for one in found["smoke"]} >= {("numba", "ok"), ("numpy", "ok")}
    assert found["cpu"]["vector_bytes"] in (16, 32, 64)
    assert found["threads"]["number"] >= 1
    assert found["cache"][0]["writable"] is True


@pytest.mark.parametrize(("fault", "word"), [(off("y"), "wrong"), (broken, "failed: forward")], ids=["wrong", "raises"])
def test_a_backend_that_is_wrong_or_raises_is_broken(fault, word, capsys) -> None:
    with planted(fault, dtypes=("float32",)):
        assert doctor.main([]) == 1
    output = capsys.readouterr().out
    assert f"planted on cpu: {word.split(':')[0]}" in output
    assert output.rpartition("broken")[2].split()[0] == "planted"


def test_files_of_the_cache_folder_are_classified(cache_folder) -> None:
    stamp = {**cache.environment_stamp(), "sources": cache.sources_digest()}
    cache_folder.mkdir(parents=True)
    files = {
        f"a.{'0' * 12}.nbc": encode(stamp, b"code"),
        f"b.{'1' * 12}.nbc": encode({**stamp, "numba": "0.1"}, b"code"),
        f"c.{'2' * 12}.nbc": encode({**stamp, "sources": "another"}, b"code"),
        f"d.{'3' * 12}.nbc": encode(stamp, b"code")[:-1],
        f"e.{'4' * 12}.nbc": b"",
        "f.py311-f.1.nbc": b"of an rnnkit before this format",
        "f.py311-f.nbi": b"",
        f"g.{'5' * 12}.nbc.0123456789abcdef.tmp": b"half",
        "rnnkit-notice": b"",
        "f.cpython-311.pyc": b"Python's",
    }
    for name, data in files.items():
        (cache_folder / name).write_bytes(data)
    (cache_folder.parent / "rnnkit-0123456789ab").mkdir()
    faults: list[str] = []
    (found,) = doctor._cache(faults)
    assert [found[kind] for kind in ("current", "stale", "damaged", "unfinished")] == [1, 4, 2, 1]
    assert found["bytes"] == sum(len(data) for name, data in files.items() if "nb" in name)
    assert found["other_versions"] == [str(cache_folder.parent / "rnnkit-0123456789ab")]
    assert (found["exists"], found["writable"]) == (True, True)
    assert [fault.rpartition("/")[2][0] for fault in faults] == ["d", "e"]
    lines = "\n".join(doctor._cache_lines([found]))
    assert "1 current, 4 stale, 2 damaged, 1 unfinished" in lines


def test_a_cache_folder_that_is_missing_or_cannot_be_created(cache_folder) -> None:
    faults: list[str] = []
    (found,) = doctor._cache(faults)
    assert (found["exists"], found["writable"], found["bytes"], faults) == (False, True, 0, [])
    assert not cache_folder.parent.exists(), "asking makes nothing"
    cache_folder.parent.write_text("a file")
    (found,) = doctor._cache(faults)
    assert (found["writable"], faults) == (False, [])


def test_an_invalid_thread_variable_is_reported_as_broken(one_thread_setting, monkeypatch) -> None:
    monkeypatch.setenv("RNNKIT_NUM_THREADS", "two")
    faults: list[str] = []
    assert doctor._threads(faults)["number"] is None
    assert faults == ["RNNKIT_NUM_THREADS must be a positive whole number, got 'two'"]


def test_an_invalid_name_of_rates_is_reported_as_broken(monkeypatch) -> None:
    host.host.cache_clear()
    monkeypatch.setenv("RNNKIT_CPU_RATES", "fast")
    faults: list[str] = []
    try:
        assert doctor._rates(faults) == faults[0]
    finally:
        host.host.cache_clear()
    assert faults[0].startswith("RNNKIT_CPU_RATES must be one of amd-zen2, ")


@pytest.mark.parametrize(
    ("problem", "nodes", "faults"),
    [
        ("CuPy is not installed (pip install ...)", [], 0),
        ("CuPy is not installed (pip install ...)", ["/dev/nvidia0"], 0),
        ("CuPy finds no CUDA device", [], 0),
        ("CuPy finds no CUDA device", ["/dev/nvidia0"], 1),
        ("CuPy is installed and cannot be used (ImportError: planted)", [], 1),
    ],
)
def test_a_gpu_that_is_absent_is_not_broken(problem, nodes, faults, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "cuda_problem", lambda: problem)
    monkeypatch.setattr(doctor.glob, "glob", lambda _: nodes)
    found_faults: list[str] = []
    assert doctor._gpu(found_faults)["problem"] == problem
    assert len(found_faults) == faults


@pytest.mark.parametrize(
    ("numba", "environment", "status"),
    [
        (None, {"NUMBA_DISABLE_JIT": "1"}, 0),
        ("raise ImportError('planted')", {}, 1),
        ("__version__ = '0.60.0'", {}, 1),
    ],
    ids=["jit disabled", "broken", "too old"],
)
def test_it_runs_without_numba(numba, environment, status, tmp_path) -> None:
    if numba is not None:
        (tmp_path / "numba.py").write_text(numba)
    variables = os.environ | environment | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "rnnkit.doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    found = json.loads(done.stdout)
    assert len(found["broken"]) == status
    assert found["backends"]["numba"]["problem"]
    assert [one["backend"] for one in found["smoke"]] == ["numpy"]
