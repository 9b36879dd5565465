"""no_grad and set_grad_enabled: per thread and task, in blocks that end whatever ends them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import rnnkit
from rnnkit import grad_enabled
from tests.helpers import refused


@pytest.fixture(autouse=True)
def enabled_after() -> Iterator[None]:
    yield
    rnnkit.set_grad_enabled(True)


def test_no_grad_nests_ends_on_an_error_and_belongs_to_its_thread() -> None:
    assert grad_enabled()
    with rnnkit.no_grad():
        with rnnkit.no_grad():
            assert not grad_enabled()
        assert not grad_enabled()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(grad_enabled).result()
    assert grad_enabled()
    with pytest.raises(ZeroDivisionError), rnnkit.no_grad():
        _ = 1 / 0
    assert grad_enabled()


def test_no_grad_decorates_with_and_without_brackets() -> None:
    def seen(a: int, *, b: int) -> tuple[int, bool]:
        """Said."""
        return a + b, grad_enabled()

    for decorated in (rnnkit.no_grad(seen), rnnkit.no_grad()(seen)):
        assert decorated(1, b=2) == (3, False)
        assert (decorated.__name__, decorated.__doc__) == ("seen", "Said.")
        assert grad_enabled()
    once = rnnkit.no_grad()
    with once, once:
        assert not grad_enabled()
    assert grad_enabled()

    def steps() -> Any:
        yield grad_enabled()

    for wrong in (False, steps):
        with pytest.raises(TypeError, match="function must be"):
            rnnkit.no_grad(wrong)


def test_one_object_may_be_entered_by_many_threads_at_once() -> None:
    once, both = rnnkit.no_grad(), threading.Barrier(2)

    def work() -> tuple[bool, bool]:
        with once:
            both.wait(30)
            inside = grad_enabled()
            both.wait(30)
        return inside, grad_enabled()

    with ThreadPoolExecutor(2) as pool:
        assert [f.result() for f in [pool.submit(work) for _ in range(2)]] == [(False, True)] * 2


def test_a_mode_set_lasts_until_its_block_ends() -> None:
    """As torch's."""
    rnnkit.set_grad_enabled(False)
    assert not grad_enabled()
    with rnnkit.set_grad_enabled(True):
        assert grad_enabled()
        with rnnkit.no_grad():
            assert not grad_enabled()
            rnnkit.set_grad_enabled(True)
            assert grad_enabled()
            with rnnkit.no_grad():
                assert not grad_enabled()
            assert grad_enabled()
            rnnkit.set_grad_enabled(False)
            assert not grad_enabled()
        assert grad_enabled()
    assert not grad_enabled()
    mode = rnnkit.set_grad_enabled(True)
    assert grad_enabled()
    with rnnkit.no_grad():
        rnnkit.set_grad_enabled(True)
    assert grad_enabled()
    with mode:
        assert grad_enabled()
    assert not grad_enabled()  # what was before `mode` was made
    rnnkit.set_grad_enabled(True)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(rnnkit.set_grad_enabled, False).result()
    assert grad_enabled()
    for wrong in (0, 1, None, "no"):
        with refused(TypeError, "mode must be True or False", repr(wrong)):
            rnnkit.set_grad_enabled(wrong)
    assert grad_enabled()


def test_a_mode_restores_what_was_before_it() -> None:
    with rnnkit.set_grad_enabled(False):
        assert not grad_enabled()
    assert grad_enabled()
    with rnnkit.no_grad():
        with rnnkit.set_grad_enabled(True), rnnkit.set_grad_enabled(False):
            assert not grad_enabled()
        assert not grad_enabled()
    with pytest.raises(ZeroDivisionError), rnnkit.set_grad_enabled(False):
        _ = 1 / 0
    assert grad_enabled()

    @rnnkit.set_grad_enabled(False)
    def seen() -> bool:
        return grad_enabled()

    assert grad_enabled()
    assert not seen()
    assert grad_enabled()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.parametrize("make", [rnnkit.no_grad, lambda: contextlib.nullcontext()], ids=["no_grad", "nothing"])
def test_no_interrupt_leaves_the_mode_behind(make: Any, no_garbage_collection: None) -> None:
    """Ctrl-C at any instruction. The second case shows that the test itself leaves nothing behind."""

    class Interrupted(Exception):
        pass

    def handler(*_: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    left = interrupts = 0
    try:
        for k in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, 2e-4 + 1e-6 * k)
                for _ in range(20_000):  # ends if the exception is lost, as one that is raised in a callback of gc is
                    with make():
                        pass
            except Interrupted:
                interrupts += 1
                left += contextvars.copy_context().run(lambda: not grad_enabled())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts > 100
    assert left == 0


def test_exit_stacks_and_calls_by_hand_work_too() -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(rnnkit.no_grad())
        with rnnkit.no_grad():
            pass
        stack.enter_context(rnnkit.set_grad_enabled(True))
        assert grad_enabled()
        stack.pop_all().close()
        assert grad_enabled()
    for _ in range(2):
        mode = rnnkit.no_grad()
        mode.__enter__()
        mode.__enter__()
        with rnnkit.no_grad(), rnnkit.set_grad_enabled(True):
            assert grad_enabled()
        assert not grad_enabled()
        mode.__exit__(None, None, None)
        assert not grad_enabled()
        mode.__exit__(None, None, None)
        assert grad_enabled()


def test_python_may_look_exit_up_before_enter() -> None:
    """As 3.14 does."""
    for outer in (rnnkit.no_grad, lambda: rnnkit.set_grad_enabled(True)):
        before = grad_enabled()
        mode = outer()
        leave, enter = mode.__exit__, mode.__enter__
        enter()
        inside = grad_enabled()
        inner = rnnkit.no_grad()
        leave_inner, enter_inner = inner.__exit__, inner.__enter__
        enter_inner()
        assert not grad_enabled()
        leave_inner(None, None, None)
        assert grad_enabled() == inside == (outer is not rnnkit.no_grad)
        leave(None, None, None)
        assert grad_enabled() == before


def test_tasks_have_modes_of_their_own() -> None:
    async def without(order: list[bool], go: asyncio.Event) -> None:
        with rnnkit.no_grad():
            go.set()
            await asyncio.sleep(0)
            order.append(grad_enabled())
        order.append(grad_enabled())

    async def main() -> list[bool]:
        order: list[bool] = []
        go = asyncio.Event()
        task = asyncio.create_task(without(order, go))
        await go.wait()
        order.append(grad_enabled())
        await task
        return order

    assert asyncio.run(main()) == [True, False, True]


def test_what_starts_in_a_block_follows_the_block() -> None:
    with rnnkit.no_grad():
        context = contextvars.copy_context()
        assert not context.run(grad_enabled)
    assert context.run(grad_enabled)
    with rnnkit.no_grad():  # a block of its own
        assert context.run(grad_enabled)


def test_ended_blocks_do_not_pile_up() -> None:
    for _ in range(1000):
        with rnnkit.no_grad():
            pass
    before = sys.getallocatedblocks()
    for _ in range(1000):
        with rnnkit.no_grad():
            pass
    assert sys.getallocatedblocks() - before < 200
