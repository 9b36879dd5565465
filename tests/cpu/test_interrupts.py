"""An exception from a signal handler (a timeout, Ctrl-C), wherever it strikes, leaves a layer right, fast and usable.

CPython runs signal handlers where a function begins, where a loop goes back, and after a call. `strike` raises at one
of these points in one run of some code, so a loop over all points leaves no window untried.
"""

from __future__ import annotations

import dis
import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.numba import layer as backend
from rnnkit.backends.numba import memory
from rnnkit.core import thread_pool
from rnnkit.core.grad_mode import grad_enabled
from tests.helpers import share_everything

# Opcodes after which CPython looks whether a signal has come.
LOOKS = {number for name, number in dis.opmap.items() if name.startswith(("CALL", "JUMP_BACKWARD", "RESUME"))}

# Makes every job with the cache as it is; then none of our functions may have been collected.
COLLECTED = """
import gc, weakref
import rnnkit
from numba.core.typing.context import BaseContext
from rnnkit.backends.numba.prepared import job
from rnnkit.core.cells import CELLS
made = []
insert = BaseContext._insert_global
def inserted(self, value, kind):
    insert(self, value, kind)
    if type(value).__name__ == "CPUDispatcher":
        made.append((weakref.ref(value), repr(value)))
BaseContext._insert_global = inserted
for cell in CELLS.values():
    for backward, single in ((False, False), (True, False), (False, True)):
        job(cell, "float32", backward, single)
gc.collect()
assert len(made) > 100
assert [name for ref, name in made if ref() is None] == []
"""


class Interrupt(Exception):
    """What the handler raises."""


def strike(code: Callable[[], Any], point: int) -> bool:
    """Runs `code` and raises Interrupt at its `point`-th point, whose number counts from 0. Whether it has so many."""
    passed = itertools.count()
    last: dict[Any, int] = {}

    def trace(frame: Any, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            before = last.get(frame)
            last[frame] = frame.f_code.co_code[frame.f_lasti]
            if before in LOOKS and next(passed) == point:
                raise Interrupt
        elif event == "return":
            last.pop(frame, None)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        code()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch, no_garbage_collection: None) -> Iterator[None]:
    share_everything(monkeypatch, 2)
    monkeypatch.setattr(memory, "MIN_CACHED_PACKED", 0)
    backend.packed_weights.clear()
    yield
    backend.packed_weights.clear()


def inputs() -> tuple[rnnkit.LSTM, np.ndarray]:
    layer = rnnkit.LSTM(16, 40, backend="numba", rng=0)
    return layer, np.random.default_rng(1).standard_normal((5, 4, 16)).astype(np.float32)


def members_of(code: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many threads a job of `code` had."""
    found: list[int] = []
    reserve = thread_pool.ThreadPool.reserve

    def watched(*given: Any) -> int:
        found.append(reserve(*given))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(thread_pool.ThreadPool, "reserve", watched)
        code()
    return max(found)


def nothing_is_taken() -> bool:
    packed = backend.packed_weights._entries.values()
    return not thread_pool.shared_pool().claims and not any(held.claims for held in packed)


@pytest.mark.parametrize("what", ["inference", "training"])
def test_no_point_of_a_call_loses_the_pool_or_packed_weights(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = inputs()
    dy = np.ones((5, 4, 40), np.float32)

    def inference() -> Any:
        with rnnkit.no_grad():
            return layer(x)[0]

    def training() -> Any:
        layer.zero_grad()  # a call that was cut off before its backward is not answered any more
        layer(x)
        return layer.backward(dy)[0]

    call = inference if what == "inference" else training
    want = call().copy()
    points = 0
    while strike(call, points):
        assert nothing_is_taken(), f"point {points}"
        assert grad_enabled(), f"point {points}"
        points += 1
        if points % 10 == 0:
            np.testing.assert_array_equal(call(), want)
            assert members_of(call, monkeypatch) == 2
    assert points > 50
    np.testing.assert_array_equal(call(), want)
    assert members_of(call, monkeypatch) == 2


def test_interrupts_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real signals at random moments: every exception arrives, every result is right, and the pool stays usable."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        pytest.skip("signals are for the main thread")
    layer, x = inputs()
    want = layer(x)[0]
    raised = caught = 0

    def handler(number: int, frame: Any) -> None:
        nonlocal raised
        raised += 1
        raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    rng = np.random.default_rng(0)
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    try:
        while raised < 2000:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(2e-6, 4e-4))
                for _ in range(100):
                    assert (layer(x)[0] == want).all()
            except Interrupt:
                caught += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught == raised
    assert not ignored
    assert nothing_is_taken()
    assert grad_enabled()
    assert members_of(lambda: layer(x), monkeypatch) == 2


def test_exception_of_a_handler_in_the_start_of_a_thread_is_not_taken_for_the_systems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A RuntimeError there usually means that the interpreter is shutting down."""
    pool = thread_pool.ThreadPool()

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("planted by a handler")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="planted by a handler"):
        pool.reserve(object(), 2, 1e6)
    assert pool.broken


@pytest.mark.slow
def test_no_function_is_collected_whose_callback_could_swallow_an_exception() -> None:
    ran = subprocess.run([sys.executable, "-c", COLLECTED], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
