"""One module called by several threads before backward. Calls are independent."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import rnnkit
from tests.api.shared_modules import EVERY_KIND, F64, KINDS, B, H, I, T, Use, alone, answer, assert_answers
from tests.api.shared_modules import net as new_net
from tests.helpers import refused
from tests.tools import fakecupy


@EVERY_KIND
def test_backward_differentiates_the_call_of_its_own_thread(kind: str, rng: np.random.Generator) -> None:
    """All threads call before any runs backward."""
    module, uses = KINDS[kind].make(), [KINDS[kind].use(rng) for _ in range(4)]
    called = threading.Barrier(len(uses))

    def work(use: Use) -> list[np.ndarray]:
        module(*use.inputs)
        called.wait(30)
        return answer(module.backward(*use.gradients))

    with ThreadPoolExecutor(len(uses)) as pool:
        assert_answers(kind, module, uses, list(pool.map(work, uses)))


def test_no_gradient_is_lost_when_threads_add_concurrently() -> None:
    linear = rnnkit.Linear(500, 500, rng=0, **F64)
    embedding = rnnkit.Embedding(2, 200_000, rng=0, **F64)
    x, dy = np.ones((1, 500)), np.ones((1, 500))
    indices, dvectors = np.array([0, 1]), np.ones((2, 200_000))
    threads, times = 4, 25
    start = threading.Barrier(threads)

    def work(_: int) -> None:
        linear(x)
        embedding(indices)
        start.wait(30)
        for _ in range(times):
            linear.backward(dy)
            embedding.backward(dvectors)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    for grad in (linear.grads["weight"], linear.grads["bias"], embedding.grads["weight"]):
        np.testing.assert_array_equal(grad, np.full(grad.shape, threads * times))


def test_layers_hold_the_lock_while_adding_gradients() -> None:
    """The lock is held while an array is added: another thread cannot take it."""
    layer, taken = rnnkit.Linear(3, 2, rng=0, **F64), []

    def try_to_take() -> None:
        taken.append(layer._adding.acquire(blocking=False))

    class Watched(np.ndarray):
        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
            other = threading.Thread(target=try_to_take)
            other.start()
            other.join(30)
            return getattr(ufunc, method)(*map(np.asarray, inputs), **kwargs)

    layer._add_grad("bias", np.ones(2).view(Watched))
    assert taken == [False]
    np.testing.assert_array_equal(layer.grads["bias"], np.ones(2))


@pytest.mark.parametrize("make", [KINDS["GRU compiled"].make, lambda: rnnkit.GRUCell(I, H, rng=1, **F64)])
def test_kernels_that_add_into_gradients_run_under_the_lock(make: Any, rng: np.random.Generator) -> None:
    """The lock is held while the backend runs, and a thread that is in backward may enter it again."""
    layer, seen = make(), []
    use = (KINDS["GRU compiled"] if isinstance(layer, rnnkit.GRU) else KINDS["GRUCell compiled"]).use(rng)
    layer(*use.inputs)
    held = threading.Event()

    def other() -> None:
        held.wait(30)
        seen.append(layer._adding.acquire(blocking=False))

    watcher = threading.Thread(target=other)
    watcher.start()

    class Watched:
        """The backend, which tries to take the lock while it runs."""

        def __getattr__(self, name: str) -> Any:
            def backward(*args: Any) -> Any:
                held.set()
                watcher.join(30)
                return backend.backward(*args)

            return backward if name == "backward" else getattr(backend, name)

    kept = layer._saved
    of_layer = isinstance(layer, rnnkit.GRU)
    choice = kept.saved.choice if of_layer else kept[0]
    backend = choice.backend
    watched = choice._replace(backend=Watched())
    slot = layer._thread_slots.slot
    slot.saved = kept._replace(saved=kept.saved._replace(choice=watched)) if of_layer else (watched, *kept[1:])
    layer.backward(*use.gradients)
    assert seen == [False]


def test_a_failed_call_in_one_thread_does_not_affect_others(rng: np.random.Generator) -> None:
    net, use = new_net(), KINDS["Sequential"].use(rng)
    net(*use.inputs)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="x must have shape"):
        pool.submit(net, np.zeros((T, B, I + 1))).result()
    assert_answers("Sequential", net, [use], [answer(net.backward(*use.gradients))])


def test_backward_in_a_thread_without_a_call_raises(rng: np.random.Generator) -> None:
    net, use = new_net(), KINDS["Sequential"].use(rng)
    net(*use.inputs)
    call = net.last_call
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(RuntimeError, match="call of this Sequential first, in the same thread"):
            pool.submit(net.backward, *use.gradients).result()
        got = pool.submit(lambda: net.backward(*use.gradients, call=call)).result()
    assert_answers("Sequential", net, [use], [answer(got)])


def test_saved_values_are_freed_with_the_thread_and_the_last_call() -> None:
    linear, seen = rnnkit.Linear(I, H, **F64), []

    def work() -> None:
        x = np.zeros((B, I))
        linear(x)
        seen.append(weakref.ref(x))

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert seen[0]() is None
    work()
    call = linear.last_call
    linear(np.zeros((B, I)))
    assert seen[1]() is not None
    del call
    assert seen[1]() is None


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_the_callers_saved_values_and_free_locks(rng: np.random.Generator) -> None:
    net, use = new_net(), KINDS["Sequential"].use(rng)
    want, _ = alone("Sequential", use)
    net(*use.inputs)
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with net[0]._adding:
            held.set()
            over.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    child = os.fork()
    if child == 0:
        threading.Timer(20, lambda: os._exit(2)).start()
        got = answer(net.backward(*use.gradients))
        os._exit(0 if all(map(np.array_equal, got, want)) else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    over.set()
    holder.join()
    assert status == 0


def test_moving_a_module_ends_the_calls_of_every_thread(rng: np.random.Generator) -> None:
    with fakecupy.installed() as cp:
        linear, x, dy = rnnkit.Linear(I, H, rng=1), rng.random((B, I), "float32"), rng.random((B, H), "float32")
        linear(x)
        call, called, moved = linear.last_call, threading.Event(), threading.Event()

        def work() -> str:
            linear(x)
            called.set()
            moved.wait(30)
            with pytest.raises(RuntimeError) as caught:
                linear.backward(cp.asarray(dy))
            return str(caught.value)

        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(work)
            called.wait(30)
            linear.to("cuda:0")
            moved.set()
            assert "call of this Linear first" in found.result()
        with refused(ValueError, "call must be one of this Linear since it was last moved", "a call of a Linear"):
            linear.backward(cp.asarray(dy), call=call)
        linear(cp.asarray(x))
        assert linear.backward(cp.asarray(dy)).shape == x.shape


def test_async_tasks_of_one_thread_need_call(rng: np.random.Generator) -> None:
    net, uses = new_net(), [KINDS["Sequential"].use(rng) for _ in range(2)]

    async def work(use: Use, named: bool) -> list[np.ndarray]:
        net(*use.inputs)
        call = net.last_call
        await asyncio.sleep(0)
        return answer(net.backward(*use.gradients, **({"call": call} if named else {})))

    async def both(named: bool) -> list[Any]:
        return await asyncio.gather(*(work(use, named) for use in uses))

    with refused(RuntimeError, "ambiguous", "2 times"):
        asyncio.run(both(False))
    net.zero_grad()
    assert_answers("Sequential", net, uses, asyncio.run(both(True)))
