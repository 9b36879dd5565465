"""How the compiled CPU path shares work over threads: the same bits any way, from any thread, and no deadlock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import rnnkit
from rnnkit import _threads
from rnnkit.backends import numba as backend
from rnnkit.testing import Case, parity

CELLS = ("rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm")


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads whatever the machine has, every amount of work shared, and units wherever they may be."""
    monkeypatch.setattr(_threads, "_usable_cores", lambda: 3)
    monkeypatch.setattr(_threads, "_threads", 0)
    monkeypatch.setattr(_threads, "SHARED_FROM", 0)
    monkeypatch.setattr(backend, "UNITS_FROM", 0)
    monkeypatch.setattr(backend, "UNITS_BELOW_ROWS", 1000)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_sharing_units_is_the_oracle(cell, reverse, dtype, three_threads):
    for T, B, I, H in ((5, 3, 4, 40), (1, 1, 3, 70), (7, 1, 5, 53), (4, 13, 9, 100), (0, 2, 3, 50), (3, 0, 3, 50)):
        worst = parity("numba", Case(cell, T, B, I, H, reverse=reverse), dtype)
        assert max(worst.values()) <= 1, worst


def test_a_square_projection_is_the_oracle(three_threads):
    """P = H, which only the functional form allows: shapes alone do not show the projection."""
    worst = parity("numba", Case("lstm", 5, 2, 4, 50, P=50), "float64")
    assert max(worst.values()) <= 1, worst


def test_explain_tells_when_units_are_shared(three_threads):
    x = np.zeros((20, 2, 16), np.float32)
    assert "3 of 3 threads, sharing units" in rnnkit.explain(rnnkit.LSTM(16, 64, backend="numba"), x).kernel
    assert "sharing units" not in rnnkit.explain(rnnkit.LSTM(16, 64, backend="numba"), x, [20, 3]).kernel


def everything(layer: rnnkit.Module, x: np.ndarray, lengths: np.ndarray | None) -> list[np.ndarray]:
    layer.zero_grad()
    y, state = layer(x, lengths=lengths)
    dx, dstate = layer.backward(np.cos(y), state)
    states = [s for pair in (state, dstate) for s in (pair if isinstance(pair, tuple) else (pair,))]
    return [y, dx, *states, *(g.copy() for g in layer.grads.values())]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (rnnkit.RNN, {}),
        (rnnkit.GRU, {}),
        (rnnkit.GRU, {"reset_after": False}),
        (rnnkit.LSTM, {}),
        (rnnkit.LSTM, {"proj_size": 33}),
    ],
)
@pytest.mark.parametrize("ragged", [False, True])
def test_the_bits_do_not_depend_on_how_work_is_shared(kind, options, ragged, three_threads, monkeypatch):
    rng = np.random.default_rng(0)
    layer = kind(21, 70, 2, bidirectional=True, backend="numba", rng=1, **options)
    x = rng.standard_normal((9, 14, 21)).astype(np.float32)
    lengths = rng.integers(0, 10, 14) if ragged else None
    shared = everything(layer, x, lengths)
    monkeypatch.setattr(backend, "UNITS_FROM", np.inf)
    for threads in (1, 2, 3):
        monkeypatch.setattr(_threads, "_threads", threads)
        for a, b in zip(shared, everything(layer, x, lengths), strict=True):
            np.testing.assert_array_equal(a, b)


def test_many_threads_may_call_at_once(three_threads):
    """Eight callers of layers whose shares wait for each other: all finish, each with its own bits."""
    rng = np.random.default_rng(0)
    layers = [rnnkit.LSTM(16, 64, backend="numba", rng=k) for k in range(8)]
    x = rng.standard_normal((50, 2, 16)).astype(np.float32)
    alone = [everything(layer, x, None) for layer in layers]
    found: list[list[np.ndarray]] = [[] for _ in layers]

    def call(k: int) -> None:
        for _ in range(20):
            found[k] = everything(layers[k], x, None)

    callers = [threading.Thread(target=call, args=(k,), daemon=True) for k in range(len(layers))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive(), "a caller hangs"
    for a, b in zip(alone, found, strict=True):
        for one, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(three_threads):
    layer = rnnkit.GRU(16, 64, backend="numba", rng=0)
    x = np.ones((20, 2, 16), np.float32)
    want = layer(x)[0]
    with _threads.meeting(3):  # held by the parent at the moment of the fork
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(layer(x)[0], want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_set_num_threads(monkeypatch):
    monkeypatch.setattr(_threads, "_threads", 0)
    assert rnnkit.get_num_threads() >= 1
    rnnkit.set_num_threads(5)
    assert rnnkit.get_num_threads() == 5
    for wrong, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), ("two", TypeError)):
        with pytest.raises(error, match=f"threads must be a positive whole number, got {wrong!r}"):
            rnnkit.set_num_threads(wrong)
    assert rnnkit.get_num_threads() == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_share_that_does_not_come_is_not_waited_for(error, three_threads, monkeypatch):
    """The caller's own share is interrupted before it starts: the others leave the barrier, the error comes out."""
    layer = rnnkit.LSTM(16, 64, backend="numba", rng=0)
    x = np.ones((20, 2, 16), np.float32)
    want = layer(x)[0]
    original = backend.run_shares

    def interrupted(function, bounds, *abandon):
        def share(low: int, high: int) -> None:
            if abandon and low == 0:
                raise error
            function(low, high)

        original(share, bounds, *abandon)

    with monkeypatch.context() as patch:
        patch.setattr(backend, "run_shares", interrupted)
        with pytest.raises(error):
            layer(x)
    np.testing.assert_array_equal(layer(x)[0], want)


def test_read_only_arrays_compile_nothing_anew():
    layer = rnnkit.GRU(5, 7, backend="numba", rng=0)
    x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    want = layer(x)[0], layer.backward(np.ones((4, 3, 7), np.float32))[0]
    compiled = backend.kernels("gru", "float32")
    before = len(compiled.forward.signatures), len(compiled.backward.signatures)
    dy = np.ones((4, 3, 7), np.float32)
    for a in (x, dy, *layer.params.values()):
        a.flags.writeable = False
    np.testing.assert_array_equal(layer(x)[0], want[0])
    np.testing.assert_array_equal(layer.backward(dy)[0], want[1])
    assert (len(compiled.forward.signatures), len(compiled.backward.signatures)) == before


@pytest.mark.parametrize("after", [0, 1])
def test_an_interrupt_while_shares_are_handed_out_leaves_nobody_waiting(after, three_threads, monkeypatch):
    """Ctrl-C just after a share was queued, which then waits for shares that never come."""
    layer = rnnkit.LSTM(16, 64, backend="numba", rng=0)
    x = np.ones((20, 2, 16), np.float32)
    want = layer(x)[0]
    jobs, meetings = _threads._jobs, []

    class Interrupted:
        def put(self, job):
            jobs.put(job)
            if job.function.__qualname__.startswith("_run_forward"):
                meetings.append(job)
                if len(meetings) == after + 1:
                    raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_threads, "_jobs", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            layer(x)
    assert len(meetings) == after + 1
    done = threading.Thread(target=lambda: meetings[-1].running.acquire(), daemon=True)
    done.start()
    done.join(30)
    assert not done.is_alive(), "the share that was queued last still waits"
    np.testing.assert_array_equal(layer(x)[0], want)


def test_more_cores_may_come_later(three_threads, monkeypatch):
    layer = rnnkit.LSTM(16, 128, backend="numba", rng=0)
    x = np.ones((20, 2, 16), np.float32)
    want = layer(x)[0]
    monkeypatch.setattr(_threads, "_usable_cores", lambda: 6)
    np.testing.assert_array_equal(layer(x)[0], want)
    assert _threads._workers >= 6


def test_layers_serve_in_a_thread_that_outlives_the_main_one():
    script = """
import atexit, threading, time
import numpy as np, rnnkit
from rnnkit import _threads
_threads.SHARED_FROM = 0
layer, x = rnnkit.LSTM(16, 16, rng=0), np.ones((5, 8, 16), np.float32)
want = layer(x)[0]
atexit.register(lambda: print("atexit", np.array_equal(layer(x)[0], want), flush=True))
def serve():
    for _ in range(4):
        time.sleep(0.05)
        print(np.array_equal(layer(x)[0], want), flush=True)
threading.Thread(target=serve).start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True"] * 4 + ["atexit", "True"], done.stderr
