"""no_grad and set_grad_enabled: per thread and async task, in blocks that end by return, exception or interrupt."""

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


def test_no_grad_nests_ends_on_an_exception_and_is_per_thread() -> None:
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


def test_no_grad_is_a_decorator_with_and_without_parentheses() -> None:
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


def test_threads_may_enter_one_object_concurrently() -> None:
    once, both = rnnkit.no_grad(), threading.Barrier(2)

    def work() -> tuple[bool, bool]:
        with once:
            both.wait(30)
            inside = grad_enabled()
            both.wait(30)
        return inside, grad_enabled()

    with ThreadPoolExecutor(2) as pool:
        assert [f.result() for f in [pool.submit(work) for _ in range(2)]] == [(False, True)] * 2


def test_set_grad_enabled_lasts_until_the_end_of_its_block() -> None:
    """As in torch."""
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
    assert not grad_enabled()  # the mode before `mode` was created
    rnnkit.set_grad_enabled(True)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(rnnkit.set_grad_enabled, False).result()
    assert grad_enabled()
    for wrong in (0, 1, None, "no"):
        with refused(TypeError, "mode must be True or False", repr(wrong)):
            rnnkit.set_grad_enabled(wrong)
    assert grad_enabled()


def test_a_block_restores_the_mode_before_it() -> None:
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
def test_the_mode_ends_with_its_block_after_an_interrupt(make: Any, no_garbage_collection: None) -> None:
    """An interrupt at any instruction. The second case shows that the test itself restores the mode."""

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
                for _ in range(20_000):  # ends if the exception is lost, which happens in a callback of gc
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


def test_exit_stacks_and_explicit_enter_and_exit() -> None:
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


def test_exit_may_be_looked_up_before_enter() -> None:
    """Python 3.14 does so."""
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


def test_each_async_task_has_its_own_mode() -> None:
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


def test_a_copied_context_follows_the_block_in_which_it_was_copied() -> None:
    with rnnkit.no_grad():
        context = contextvars.copy_context()
        assert not context.run(grad_enabled)
    assert context.run(grad_enabled)
    with rnnkit.no_grad():  # another block
        assert context.run(grad_enabled)


def test_ended_blocks_free_their_memory() -> None:
    for _ in range(1000):
        with rnnkit.no_grad():
            pass
    before = sys.getallocatedblocks()
    for _ in range(1000):
        with rnnkit.no_grad():
            pass
    assert sys.getallocatedblocks() - before < 200
