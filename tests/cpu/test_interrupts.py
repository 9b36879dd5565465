"""After an exception from a signal handler (a timeout, Ctrl-C) at any point, a layer is still right, fast and usable.

CPython runs signal handlers at the start of a function, at the backward jump of a loop, and after a call. `raise_at`
raises at one of these points in one run of some code, so a loop over all points covers every one.
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

# Opcodes after which CPython checks for signals.
LOOKS = {number for name, number in dis.opmap.items() if name.startswith(("CALL", "JUMP_BACKWARD", "RESUME"))}

# Loads or compiles every job. None of the functions of rnnkit may be garbage collected afterwards.
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
    """Raised by the handler."""


def raise_at(code: Callable[[], Any], point: int) -> bool:
    """Runs `code` and raises Interrupt at point number `point`, from 0. Returns whether it has that many points."""
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
    """The number of threads of a job of `code`."""
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
        layer.zero_grad()  # drops an interrupted call that has had no backward
        layer(x)
        return layer.backward(dy)[0]

    call = inference if what == "inference" else training
    want = call().copy()
    points = 0
    while raise_at(call, points):
        assert nothing_is_taken(), f"point {points}"
        assert grad_enabled(), f"point {points}"
        points += 1
        if points % 10 == 0:
            np.testing.assert_array_equal(call(), want)
            assert members_of(call, monkeypatch) == 2
    assert points > 50
    np.testing.assert_array_equal(call(), want)
    assert members_of(call, monkeypatch) == 2


def test_interrupts_at_random_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real signals at random moments: every exception arrives, every result is right, and the pool stays usable."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        pytest.skip("signal handlers run in the main thread")
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


def test_a_handlers_exception_during_thread_start_propagates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A RuntimeError at this point usually means that the interpreter is shutting down."""
    pool = thread_pool.ThreadPool()

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("planted by a handler")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="planted by a handler"):
        pool.reserve(object(), 2, 1e6)
    assert pool.broken


@pytest.mark.slow
def test_compiled_functions_are_not_garbage_collected() -> None:
    ran = subprocess.run([sys.executable, "-c", COLLECTED], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
