"""One cell of the CPU kernels on 64-bit ARM, in QEMU, to keep `make test-arm` working, which runs all cells."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.arm.__main__ import GCC, QEMU

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not (QEMU and GCC), reason="needs qemu-aarch64 and aarch64-linux-gnu-gcc")
def test_a_cell_on_arm() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.tools.arm",
        "-q",
        "tests/cpu/test_parity.py",
        "-k",
        "numba and float32 and lstm-T5",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    calls, jobs = map(int, re.findall(r"(\d+) calls of (\d+) jobs ran on cortex-a72", done.stdout)[0])
    assert calls >= 4
    assert jobs == 2  # forward and backward
