"""Division of work over threads in the compiled CPU path: the same bits for any division, and no deadlock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.numba import layer as backend
from rnnkit.backends.numba import plan, prepared
from rnnkit.core import thread_pool
from rnnkit.kernels.cpu import cache
from rnnkit.kernels.cpu import threads as pool_kernels
from rnnkit.testing import Case, parity
from tests.helpers import share_everything

CELLS = ("rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm")


def await_sleep(pool: thread_pool.ThreadPool) -> None:
    """Waits until all workers of the pool sleep, and ends the backoff."""
    asleep = [(pool._kernels.ASLEEP + pool._kernels.LINE * k) // 8 for k in range(1, len(pool._workers) + 1)]
    end = time.monotonic() + 30
    while not all(pool._state[word] for word in asleep) and time.monotonic() < end:
        time.sleep(0.01)
    pool._backoff = 0.0


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads on any machine, with any amount of work divided."""
    share_everything(monkeypatch, 3)


def divide(monkeypatch: pytest.MonkeyPatch, groups: int, members: int) -> None:
    """Divides every call in this way, or as nearly as its sizes allow."""

    def division(sizes: plan.Work, threads: int) -> tuple[int, int]:
        units = min(members, threads, max(1, sizes.H // plan.lanes_of(sizes.dtype)))
        return max(1, min(groups, threads // units, sizes.B)), units

    clear_caches()
    monkeypatch.setattr(plan, "division", division)


@pytest.fixture(autouse=True)
def uncached_plans() -> Iterator[None]:
    yield
    clear_caches()


def clear_caches() -> None:
    prepared.forget()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_divided_units_equal_the_oracle(cell, reverse, dtype, three_threads, monkeypatch):
    divide(monkeypatch, 1, 3)
    for T, B, I, H in (
        (5, 3, 4, 40),
        (1, 1, 3, 70),
        (1, 59, 6, 40),
        (7, 1, 5, 53),
        (4, 13, 9, 100),
        (0, 2, 3, 50),
        (3, 0, 3, 50),
    ):
        worst = parity("numba", Case(cell, T, B, I, H, reverse=reverse), dtype)
        assert max(worst.values()) <= 1, worst


@pytest.mark.parametrize(("groups", "members"), [(1, 3), (3, 1), (1, 2)])
@pytest.mark.parametrize("P", [50, 7, 33])
def test_a_projection_with_any_division_equals_the_oracle(P, groups, members, three_threads, monkeypatch):
    """P = H is valid only in the functional form: shapes do not show the projection. P = 7 leaves members idle."""
    divide(monkeypatch, groups, members)
    for reverse in (False, True):
        worst = parity("numba", Case("lstm", 5, 4, 4, 50, P=P, reverse=reverse), "float64")
        assert max(worst.values()) <= 1, worst


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_ragged_rows_with_divided_units_equal_the_oracle(cell, reverse, three_threads, monkeypatch):
    divide(monkeypatch, 1, 3)
    worst = parity("numba", Case(cell, 7, 5, 6, 53, ragged=True, reverse=reverse), "float64")
    assert max(worst.values()) <= 1, worst


def test_groups_of_several_members_equal_the_oracle(three_threads, monkeypatch):
    monkeypatch.setattr(thread_pool, "_threads", 4)
    divide(monkeypatch, 2, 2)
    for cell in CELLS:
        worst = parity("numba", Case(cell, 6, 5, 6, 53, ragged=True), "float64")
        assert max(worst.values()) <= 1, worst


def test_explain_says_whether_units_are_divided(three_threads, monkeypatch):
    x, layer = np.zeros((20, 3, 16), np.float32), rnnkit.LSTM(16, 64, backend="numba")
    divide(monkeypatch, 1, 3)
    assert "3 of 3 threads, sharing units" in rnnkit.explain(layer, x).kernel
    divide(monkeypatch, 3, 1)
    assert rnnkit.explain(layer, x).kernel.endswith("3 of 3 threads")


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
def test_bits_do_not_depend_on_the_division_of_work(kind, options, ragged, three_threads, monkeypatch):
    rng = np.random.default_rng(0)
    layer = kind(21, 70, 2, bidirectional=True, backend="numba", rng=1, **options)
    x = rng.standard_normal((9, 14, 21)).astype(np.float32)
    lengths = rng.integers(0, 10, 14) if ragged else None
    monkeypatch.setattr(thread_pool, "_threads", 4)
    found = []
    for groups, members in ((1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (2, 2), (1, 4)):
        divide(monkeypatch, groups, members)
        found.append(everything(layer, x, lengths))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_many_threads_may_call_concurrently(three_threads):
    """Eight concurrent callers of layers with barriers: all finish with the right bits."""
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
        assert not caller.is_alive(), "a caller does not finish"
    for a, b in zip(alone, found, strict=True):
        for one, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_its_own_thread_pool(three_threads):
    layer = rnnkit.GRU(16, 64, backend="numba", rng=0)
    x = np.ones((20, 2, 16), np.float32)
    want = layer(x)[0]
    claims = thread_pool.shared_pool().claims
    claims[thread_pool.OWNER] = "another call"  # in the parent, at the time of the fork
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(layer(x)[0], want) and thread_pool.shared_pool().claims is not claims else 1)
    claims.clear()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_set_num_threads(monkeypatch):
    monkeypatch.setattr(thread_pool, "_threads", 0)
    assert rnnkit.get_num_threads() >= 1
    rnnkit.set_num_threads(5)
    assert rnnkit.get_num_threads() == 5
    for wrong, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), ("two", TypeError)):
        with pytest.raises(error, match=f"threads must be a positive whole number, got {wrong!r}"):
            rnnkit.set_num_threads(wrong)
    assert rnnkit.get_num_threads() == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_exception_before_the_launch_releases_the_pool(error, three_threads, monkeypatch):
    """An exception between the reservation of threads and the launch."""
    layer = rnnkit.LSTM(16, 64, backend="numba", rng=0)
    x = np.ones((20, 2, 16), np.float32)
    want = layer(x)[0]

    def interrupted(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(backend, "launch_forward", interrupted)
        with pytest.raises(error):
            layer(x)
    assert not thread_pool.shared_pool().claims
    np.testing.assert_array_equal(layer(x)[0], want)


def test_an_interrupt_while_threads_are_woken_releases_the_pool(three_threads, monkeypatch):
    layer = rnnkit.LSTM(16, 64, backend="numba", rng=0)
    x = np.ones((20, 2, 16), np.float32)
    want = layer(x)[0]
    pool = thread_pool.shared_pool()
    wake = pool._wake_workers

    def interrupted(threads):
        wake(threads)
        raise KeyboardInterrupt

    def before(threads):
        raise KeyboardInterrupt

    for moment in (interrupted, before):
        with monkeypatch.context() as patch:
            patch.setattr(pool, "_wake_workers", moment)
            await_sleep(pool)
            with pytest.raises(KeyboardInterrupt):
                layer(x)
        assert not pool.claims
        np.testing.assert_array_equal(layer(x)[0], want)
    for _ in range(3):
        np.testing.assert_array_equal(layer(x)[0], want)
        time.sleep(0.05)


def test_if_threads_cannot_start_the_caller_works_alone(three_threads, monkeypatch):
    """After another exception there is a new pool, since the thread may have been started."""
    layer = rnnkit.LSTM(16, 96, backend="numba", rng=0)
    x = np.ones((20, 2, 16), np.float32)
    want = layer(x)[0]
    for error in (RuntimeError("can't start new thread"), KeyboardInterrupt()):
        monkeypatch.setattr(thread_pool, "_pool", None)

        def start(self, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            if isinstance(error, RuntimeError):
                np.testing.assert_array_equal(layer(x)[0], want)
            else:
                with pytest.raises(KeyboardInterrupt):
                    layer(x)
        assert not thread_pool.shared_pool().claims
        np.testing.assert_array_equal(layer(x)[0], want)
        assert len(thread_pool.shared_pool()._workers) == 2


def test_threads_sleep_between_calls_and_wake(three_threads):
    layer = rnnkit.LSTM(16, 64, backend="numba", rng=0)
    x = np.ones((20, 3, 16), np.float32)
    want = layer(x)[0]
    for pause in (0, 0.01, 0.3, 0):
        for _ in range(20 if not pause else 2):
            time.sleep(pause)
            np.testing.assert_array_equal(layer(x)[0], want)
    await_sleep(thread_pool.shared_pool())
    state, line = thread_pool.shared_pool()._state, pool_kernels.LINE // 8
    asleep = [state[pool_kernels.ASLEEP // 8 + line * k] for k in (1, 2)]
    assert asleep == [1, 1], "threads still spin, long after the last call"


def test_read_only_arrays_need_no_other_compilation():
    layer = rnnkit.GRU(5, 7, backend="numba", rng=0)
    x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    want = layer(x)[0], layer.backward(np.ones((4, 3, 7), np.float32))[0]
    before = dict(cache.counts)
    dy = np.ones((4, 3, 7), np.float32)
    for a in (x, dy, *layer.params.values()):
        a.flags.writeable = False
    np.testing.assert_array_equal(layer(x)[0], want[0])
    np.testing.assert_array_equal(layer.backward(dy)[0], want[1])
    assert dict(cache.counts) == before


def test_more_threads_can_be_set_later(three_threads, monkeypatch):
    layer = rnnkit.LSTM(16, 128, backend="numba", rng=0)
    x = np.ones((20, 6, 16), np.float32)
    want = layer(x)[0]
    monkeypatch.setattr(thread_pool, "_threads", 6)
    np.testing.assert_array_equal(layer(x)[0], want)
    assert len(thread_pool.shared_pool()._workers) >= 5


def test_layers_work_in_a_thread_that_outlives_the_main_thread():
    script = """
import atexit, threading, time
import numpy as np, rnnkit
from rnnkit.core import thread_pool
thread_pool.PARALLEL_FROM_US = thread_pool.WAKE_FROM_US = 0
thread_pool.READY_WAIT_US = thread_pool.WOKEN_WAIT_US = 1e6
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
