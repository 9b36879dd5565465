"""`make gpu` by its command, in separate processes, on the simulated GPU of tests/tools/fakecard/sitecustomize.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import plan
from tests.bench.gpu_parts import ROOT
from tests.tools import emulator

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))


def on_the_stand_in(*command: str) -> subprocess.CompletedProcess[str]:
    surroundings = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "tools" / "fakecard"), str(ROOT)])}
    return subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)


def make_gpu(out: Path, *options: str) -> tuple[int, str, dict[str, Any]]:
    ran = on_the_stand_in(sys.executable, "-m", "bench.gpu", "--out", str(out), *options)
    return ran.returncode, ran.stdout + ran.stderr, json.loads((out / "gpu.json").read_text())


@pytest.mark.slow
def test_the_smoke_part_by_the_command(tmp_path: Path) -> None:
    code, output, document = make_gpu(tmp_path, "--parts", "smoke")
    assert code == 0, output
    items = {item["item"]: item["status"] for item in document["parts"]["smoke"]["items"]}
    assert [items[key] for key in plan.BASE_CASE] == ["ok"] * 3
    assert set(items.values()) == {"ok", "not available"}
    assert {item["status"] for item in document["parts"]["card"]["items"]} == {"ok"}
    assert "smoke      ok            nvrtc" in output
    assert len(list(tmp_path.iterdir())) <= 8


@pytest.mark.slow
def test_every_gpu_test_passes_on_the_stand_in() -> None:
    chosen = "not parity and not large and not stream_is_busy"
    ran = on_the_stand_in(sys.executable, *plan.PYTEST, "-k", chosen, *plan.TESTS)
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert " passed" in ran.stdout
