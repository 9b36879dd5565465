"""Machine code that several jobs share: it is compiled once, and found by jobs that another process compiled."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CALL = """
    import sys
    import numpy as np, rnnkit
    from rnnkit.kernels.cpu.cache import counts
    rnnkit.set_num_threads(1)
    for name, dtype in zip(sys.argv[1::2], sys.argv[2::2]):
        layer = getattr(rnnkit, name)(5, 7, dtype=dtype, rng=0)
        x = np.random.default_rng(1).standard_normal((3, 2, 5)).astype(dtype)
        with rnnkit.no_grad():
            y, _ = layer(x)
        print(counts["compiled"], float(np.abs(y).sum()).hex())
"""


def run(folder: Path, *layers: str) -> list[tuple[int, str]]:
    """For each layer, named with its dtype, the kernels compiled so far in a new process, and a sum over y."""
    command = [sys.executable, "-c", textwrap.dedent(CALL), *layers]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "RNNKIT_QUIET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (line.split() for line in done.stdout.splitlines())
    return [(int(count), value) for count, value in lines]


@pytest.mark.slow
def test_each_part_of_a_call_is_compiled_once_and_found_whoever_compiled_it(tmp_path: Path) -> None:
    (first, value), (second, _), (third, gru) = run(tmp_path, "RNN", "float32", "RNN", "float64", "GRU", "float32")
    assert first == 3, "tiles, the job, and the launch"
    assert second == 5, "another dtype needs tiles and its job, and no launch"
    assert third == 6, "another cell needs its job alone"
    assert run(tmp_path, "GRU", "float32") == [(0, gru)], "the tiles of the other dtype"
    assert run(tmp_path, "RNN", "float32") == [(0, value)]
    for part in ("tiles-float32-float32", "forward-rnn_tanh-float32", "launch_forward"):
        (path,) = tmp_path.rglob(f"*{part}.*.nbc")
        path.unlink()
        assert run(tmp_path, "RNN", "float32") == [(1, value)], part
        assert run(tmp_path, "RNN", "float32") == [(0, value)], part
