"""The resource usage of the CUDA kernels, from NVIDIA's compilers, without a GPU or a driver.

`python -m tests.tools.build_report` compiles every module of `rnnkit.backends.cupy.sources` for every architecture and
prints the table. `--write` rewrites kernels/build-report.json and kernels/build-report.md, and
tests/cuda/test_cuda_build.py checks the kernels against them. It needs the extra `cuda-build`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.required import unless_required

ROOT = Path(__file__).resolve().parents[3]


def printed(module: str, *arguments: str) -> Any:
    """The JSON that a module of this package prints in a separate process. Skips the test if that gives a reason."""
    call = [sys.executable, "-m", f"{__name__}.{module}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads(done.stdout.splitlines()[-1])
    if reason := unless_required("kernels", made.get("unavailable")):
        pytest.skip(reason)
    return made
