"""python -m rnnkit.warmup compiles all kernels that calls need, shows progress, and fails if nothing is cached."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from rnnkit import warmup
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES
from rnnkit.kernels.cpu import cache
from rnnkit.warmup import Kernels, plan

ROOT = Path(__file__).resolve().parents[2]


def test_the_plan_has_every_compiled_kernel_that_can_run() -> None:
    found = plan(["numba"]).kernels
    dtypes = [dtype for dtype in DTYPES if dtype != "tf32"] + ["float32_bfloat16", "float32_int8"]
    assert set(found) == {Kernels("numba", dtype, cell) for dtype in dtypes for cell in CELLS}
    assert plan(["numba"], ["float32_int8"], ["gru"]).kernels == (Kernels("numba", "float32_int8", "gru"),)
    assert plan(["numba"], ["tf32"], ["gru"]).kernels == (Kernels("numba", "tf32", "gru"),)
    assert plan(["numba"], ["float16"], ["gru"]).kernels == (Kernels("numba", "float16", "gru"),)
    assert {one.backend for one in plan().kernels} <= {"numba", "cupy", "numba_cuda"}
    assert set(plan().unavailable) | {one.backend for one in plan().kernels} == {"numba", "cupy", "numba_cuda"}


# Notes the kernels that are asked for: `warm` while `{kernels}` are warmed up, `asked` in all.
NOTED = """
import itertools
import numpy as np, rnnkit
from rnnkit.kernels.cpu.cache import KernelCache
from rnnkit.warmup import Kernels, warm_up
asked, load = set(), KernelCache.load_overload
def noted(self, sig, context):
    asked.add((self._description, str(sig)))
    return load(self, sig, context)
KernelCache.load_overload = noted
warm_up(Kernels(*{kernels}))
warm = set(asked)
assert warm
rnnkit.set_num_threads(2)
rng = np.random.default_rng(0)
SIZES = itertools.product((1, 2, 6), (1, 3, 20), (False, True), (1, 2))
"""
CALLS = {
    Kernels("numba", "float32", "rnn_tanh"): """
for T, B, bidirectional, layers in SIZES:
    layer = rnnkit.RNN(70, 130, layers, bidirectional=bidirectional, rng=0)
    x = rng.standard_normal((T, B, 70)).astype("float32")
    for lengths in (None, [T] * B, [0] * B, rng.integers(0, T + 1, B)):
        y, state = layer(x, lengths=lengths)
        layer.backward(y, state)
        layer.backward(None, state)
        y, state = layer(x, state, lengths=lengths)
        layer.backward(np.asfortranarray(y))
        with rnnkit.no_grad():
            layer(x, lengths=lengths)
    x.flags.writeable = False
    layer.freeze()
    with rnnkit.no_grad():
        layer(x[::-1])
rnnkit.RNN(3, 4, bias=False, batch_first=True, rng=0)(np.ones((2, 5, 3), "float32"))
rnnkit.RNN(3, 4, rng=0)(np.ones((5, 3), "float32"))
rnnkit.RNNCell(3, 4, rng=0)(np.ones((5, 3), "float32"))
""",
    Kernels("numba", "float32_int8", "lstm"): """
for T, B, bidirectional, layers in SIZES:
    P = 0 if layers == 1 else 30
    layer = rnnkit.LSTM(70, 130, layers, bidirectional=bidirectional, proj_size=P, rng=0)
    layer = rnnkit.compress(layer, "int8")
    x = rng.standard_normal((T, B, 70)).astype("float32")
    for lengths in (None, [T] * B, [0] * B, rng.integers(0, T + 1, B)):
        y, state = layer(x, lengths=lengths)
        layer(x, state, lengths=lengths)
rnnkit.compress(rnnkit.LSTMCell(3, 4, rng=0), "int8")(np.ones((5, 3), "float32"))
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("kernels", CALLS, ids=str)
def test_calls_need_no_kernel_that_warmup_does_not_compile(kernels: Kernels) -> None:
    script = NOTED.format(kernels=tuple(kernels)) + CALLS[kernels] + "print(sorted(asked - warm))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[]"


def test_the_command_compiles_the_named_kernels_and_shows_progress(capsys) -> None:
    assert warmup.main(["--cell", "rnn_tanh", "--dtype", "float32", "--backend", "numba"]) == 0
    output = capsys.readouterr().out
    assert "1/1 numba float32 rnn_tanh ... " in output
    assert f"are in {cache.kernel_folders()[0]}" in output


@pytest.mark.slow
def test_processes_compile_side_by_side(tmp_path) -> None:
    """Every kernel once, but for those that two cells share; a second run compiles none."""
    command = [sys.executable, "-m", "rnnkit.warmup", "--processes", "2"]
    command += ["--cell", "rnn_tanh", "--backend", "numba", "--dtype"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for compiled in (True, False):
        run = [*command, "float32", "float64"]
        done = subprocess.run(run, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "to compile: 2 combinations" in done.stdout
        for dtype in ("float32", "float64"):
            (line,) = re.findall(f"[12]/2 numba {dtype} rnn_tanh ... (.*)", done.stdout)
            assert ("compiled" in line and ", 0 compiled" not in line) is compiled
        assert str(tmp_path) in done.stdout


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5"])
def test_a_bad_number_of_processes_is_refused(given, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        warmup.main(["--processes", given])
    assert f"argument --processes: must be at least 1, got '{given}'" in capsys.readouterr().err


def _die(kernels: Kernels) -> None:
    os._exit(1)


def test_a_process_that_dies_gives_status_1(capsys, monkeypatch) -> None:
    monkeypatch.setattr(warmup, "compiled", _die)
    kernels = plan(["numba"], ["float32"]).kernels
    outcomes = [outcome for _, outcome in warmup._beside(kernels, 2)]
    assert [str(outcome) for outcome in outcomes] == ["failed: a process died"] * len(CELLS)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("--cell lstm2", 2),
        ("--dtype int8", 2),
        ("--backend numpy", 2),
        ("--backend numba_cuda numba --cell gru", 3),
    ],
)
def test_kernels_that_cannot_be_compiled_here_give_an_exit_status(command, status, capsys, monkeypatch) -> None:
    row = warmup.BACKENDS["numba_cuda"]
    monkeypatch.setitem(warmup.BACKENDS, "numba_cuda", type(row)(**vars(row) | {"problem": lambda: "planted"}))
    monkeypatch.setattr(warmup, "warm_up", lambda _: pytest.fail("must not be compiled"))
    if status == 2:
        with pytest.raises(SystemExit, match="2"):
            warmup.main(command.split())
    else:
        assert warmup.main(command.split()) == status
    if "numba_cuda" in command:
        assert "not compiled here: numba_cuda: planted" in capsys.readouterr().out


def test_a_failed_compilation_gives_status_1_and_the_others_are_compiled(capsys, monkeypatch) -> None:
    done = []

    def planted(kernels: Kernels) -> None:
        done.append(kernels.cell)
        if kernels.cell == "gru":
            raise RuntimeError("planted\nand more lines")

    monkeypatch.setattr(warmup, "warm_up", planted)
    assert warmup.main(["--backend", "numba", "--dtype", "float32"]) == 1
    assert done == list(CELLS)
    assert "gru ... failed: RuntimeError: planted\n" in capsys.readouterr().out


def test_compiled_code_that_is_not_cached_gives_status_1(capsys, monkeypatch) -> None:
    monkeypatch.setattr(cache, "counts", Counter(compiled=7, cached=2))  # compiled earlier
    monkeypatch.setattr(warmup, "warm_up", lambda _: cache.counts.update(compiled=3, cached=1))
    assert warmup.main(["--backend", "numba", "--dtype", "float32", "--cell", "gru"]) == 1
    assert "2 compiled kernels are cached nowhere" in capsys.readouterr().err
