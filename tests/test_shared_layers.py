"""One module called several times before backward, in one pass or by several threads. Each call is its own."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import re
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import rnnkit
from tests import fakecupy
from tests.helpers import parts, randn, refused
from tests.test_modules import leaves

T, B, I, H = 4, 3, 2, 2
F64 = {"dtype": "float64"}
RECURRENT = {"backend": "numpy", **F64}
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "sharing.md"


class Use(NamedTuple):
    """One call of a module: its arguments, and the gradients that go to its backward."""

    inputs: tuple[Any, ...]
    gradients: tuple[Any, ...]


class Kind(NamedTuple):
    """A kind of module: how to make one, and how to draw a use of it."""

    make: Callable[[], Any]
    use: Callable[[np.random.Generator], Use]


def _layer_use(width: int, states: Callable[[np.random.Generator], Any]) -> Callable[[np.random.Generator], Use]:
    return lambda rng: Use((randn(rng, T, B, I), states(rng)), (randn(rng, T, B, width), states(rng)))


def _state(*shape: int, pair: bool = False) -> Callable[[np.random.Generator], Any]:
    return lambda rng: (randn(rng, *shape), randn(rng, *shape)) if pair else randn(rng, *shape)


def _cell_use(pair: bool) -> Callable[[np.random.Generator], Use]:
    state = _state(B, H, pair=pair)
    return lambda rng: Use((randn(rng, B, I), state(rng)), (state(rng),))


def _plain_use(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Callable[[np.random.Generator], Use]:
    return lambda rng: Use((randn(rng, *inputs),), (randn(rng, *outputs),))


def _net() -> rnnkit.Sequential:
    return rnnkit.Sequential(
        rnnkit.Linear(I, I, rng=1, **F64),
        rnnkit.Activation("tanh"),
        rnnkit.Bidirectional(rnnkit.GRU(I, H, rng=2, **RECURRENT), "mul"),
        rnnkit.Sequential(rnnkit.LastState(rnnkit.LSTM(H, H, rng=3, **RECURRENT)), rnnkit.Linear(H, 1, rng=4, **F64)),
    )


KINDS = {
    "RNN": Kind(lambda: rnnkit.RNN(I, H, rng=1, **RECURRENT), _layer_use(H, _state(1, B, H))),
    "GRU compiled": Kind(lambda: rnnkit.GRU(I, H, backend="numba", rng=1, **F64), _layer_use(H, _state(1, B, H))),
    "LSTM": Kind(
        lambda: rnnkit.LSTM(I, H, 2, bidirectional=True, rng=1, **RECURRENT),
        _layer_use(2 * H, _state(4, B, H, pair=True)),
    ),
    "RNNCell": Kind(lambda: rnnkit.RNNCell(I, H, rng=1, **RECURRENT), _cell_use(False)),
    "GRUCell compiled": Kind(lambda: rnnkit.GRUCell(I, H, backend="numba", rng=1, **F64), _cell_use(False)),
    "LSTMCell": Kind(lambda: rnnkit.LSTMCell(I, H, rng=1, **RECURRENT), _cell_use(True)),
    "Linear": Kind(lambda: rnnkit.Linear(I, H, rng=1, **F64), _plain_use((B, I), (B, H))),
    "Activation": Kind(lambda: rnnkit.Activation("sigmoid"), _plain_use((B, I), (B, I))),
    "Embedding": Kind(
        lambda: rnnkit.Embedding(5, H, rng=1, **F64),
        lambda rng: Use((rng.integers(0, 5, (T, B)),), (randn(rng, T, B, H),)),
    ),
    "Bidirectional": Kind(
        lambda: rnnkit.Bidirectional(rnnkit.LSTM(I, H, rng=1, **RECURRENT), "ave"),
        _layer_use(H, _state(2, B, H, pair=True)),
    ),
    "LastState": Kind(lambda: rnnkit.LastState(rnnkit.GRU(I, H, rng=1, **RECURRENT)), _plain_use((T, B, I), (B, H))),
    "Sequential": Kind(_net, _plain_use((T, B, I), (B, 1))),
    "MSELoss": Kind(rnnkit.MSELoss, lambda rng: Use((randn(rng, B, I), randn(rng, B, I)), ())),
    "CrossEntropyLoss": Kind(rnnkit.CrossEntropyLoss, lambda rng: Use((randn(rng, B, I), rng.integers(0, I, B)), ())),
    "BCEWithLogitsLoss": Kind(rnnkit.BCEWithLogitsLoss, lambda rng: Use((randn(rng, B, I), rng.random((B, I))), ())),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def answer(got: Any) -> list[np.ndarray]:
    return [leaf for leaf in leaves(got) if leaf is not None]


def alone(kind: str, use: Use) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """What backward gives for one use of a new module, and the parameters' gradients."""
    module = KINDS[kind].make()
    module(*use.inputs)
    return answer(module.backward(*use.gradients)), dict(getattr(module, "grads", {}))


def assert_answers(kind: str, module: Any, uses: list[Use], answers: list[list[np.ndarray]]) -> None:
    """Each answer is that of its use alone, and the gradients are the sums."""
    totals: dict[str, Any] = {}
    for use, got in zip(uses, answers, strict=True):
        want, grads = alone(kind, use)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
        totals = {name: totals.get(name, 0) + grad for name, grad in grads.items()}
    for name, total in totals.items():
        np.testing.assert_allclose(module.grads[name], total, rtol=1e-12, atol=1e-12, err_msg=name)


# Threads


@EVERY_KIND
def test_a_threads_backward_is_of_its_own_call(kind: str, rng: np.random.Generator) -> None:
    """All threads have called before any goes back."""
    module, uses = KINDS[kind].make(), [KINDS[kind].use(rng) for _ in range(4)]
    called = threading.Barrier(len(uses))

    def work(use: Use) -> list[np.ndarray]:
        module(*use.inputs)
        called.wait(30)
        return answer(module.backward(*use.gradients))

    with ThreadPoolExecutor(len(uses)) as pool:
        assert_answers(kind, module, uses, list(pool.map(work, uses)))


def test_no_gradient_is_lost_when_threads_add_at_once() -> None:
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


@pytest.mark.parametrize("make", [KINDS["GRU compiled"].make, lambda: rnnkit.GRUCell(I, H, rng=1, **F64)])
def test_kernels_that_add_into_gradients_do_so_one_at_a_time(make: Any, rng: np.random.Generator) -> None:
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
        """The backend, which looks at the lock while it runs."""

        def __getattr__(self, name: str) -> Any:
            def backward(*args: Any) -> Any:
                held.set()
                watcher.join(30)
                return backend.backward(*args)

            return backward if name == "backward" else getattr(backend, name)

    kept = layer._saved
    saved = kept.saved.scans[0][0] if isinstance(layer, rnnkit.GRU) else kept[0]
    backend = saved.choice.backend
    watched = saved._replace(choice=saved.choice._replace(backend=Watched()))
    if isinstance(layer, rnnkit.GRU):
        layer._memory.slot.kept = kept._replace(saved=kept.saved._replace(scans=[(watched,)]))
    else:
        layer._memory.slot.kept = (watched, kept[1])
    layer.backward(*use.gradients)
    assert seen == [False]


def test_a_call_that_fails_in_one_thread_leaves_the_others_theirs(rng: np.random.Generator) -> None:
    net, use = _net(), KINDS["Sequential"].use(rng)
    net(*use.inputs)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="x must have shape"):
        pool.submit(net, np.zeros((T, B, I + 1))).result()
    assert_answers("Sequential", net, [use], [answer(net.backward(*use.gradients))])


def test_a_thread_that_has_called_nothing_has_nothing_to_answer_for(rng: np.random.Generator) -> None:
    net, use = _net(), KINDS["Sequential"].use(rng)
    net(*use.inputs)
    call = net.last_call
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(RuntimeError, match="call of this Sequential first, in the same thread"):
            pool.submit(net.backward, *use.gradients).result()
        got = pool.submit(lambda: net.backward(*use.gradients, call=call)).result()
    assert_answers("Sequential", net, [use], [answer(got)])


def test_memory_ends_with_its_thread_and_with_the_last_call() -> None:
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
def test_a_forked_child_has_the_callers_memory_and_free_locks(rng: np.random.Generator) -> None:
    net, use = _net(), KINDS["Sequential"].use(rng)
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


# Several uses in one pass


@EVERY_KIND
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_every_use_in_one_pass_is_answered_in_any_order(
    kind: str, order: tuple[int, ...], rng: np.random.Generator
) -> None:
    module, uses = KINDS[kind].make(), [KINDS[kind].use(rng) for _ in range(3)]
    calls = []
    for use in uses:
        module(*use.inputs)
        calls.append(module.last_call)
    found = {k: answer(module.backward(*uses[k].gradients, call=calls[k])) for k in order}
    assert_answers(kind, module, uses, [found[k] for k in range(3)])
    module(*uses[0].inputs)  # which is a pass of its own, once the last call is answered
    module.backward(*uses[0].gradients)


@EVERY_KIND
def test_backward_that_may_mean_several_calls_is_refused(kind: str, rng: np.random.Generator) -> None:
    module, uses = KINDS[kind].make(), [KINDS[kind].use(rng) for _ in range(2)]
    for use in uses:
        module(*use.inputs)
    before = {name: grad.copy() for name, grad in getattr(module, "grads", {}).items()}
    last = module.last_call
    name = type(module).__name__
    for _ in range(2):
        with refused(RuntimeError, "backward without call= is ambiguous", name, "2 times", "last_call", "no_grad"):
            module.backward(*uses[0].gradients)
    for name, grad in before.items():
        np.testing.assert_array_equal(module.grads[name], grad)
    module.backward(*uses[1].gradients, call=last)
    with refused(RuntimeError, "2 times"):  # the one before it may be meant
        module.backward(*uses[0].gradients)
    module(*uses[0].inputs)
    want, _ = alone(kind, uses[0])
    for a, b in zip(answer(module.backward(*uses[0].gradients)), want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_zero_grad_begins_a_new_pass(rng: np.random.Generator) -> None:
    net, use = _net(), KINDS["Sequential"].use(rng)
    net(*use.inputs)  # an evaluation, or a step that was given up
    net(*use.inputs)
    rnnkit.SGD(net, 0.1).zero_grad()
    with refused(RuntimeError, "2 times"):
        net.backward(*use.gradients)
    net(*use.inputs)
    assert_answers("Sequential", net, [use], [answer(net.backward(*use.gradients))])
    net(*use.inputs)
    net.zero_grad()  # between a call and its backward, as in many training loops
    assert_answers("Sequential", net, [use], [answer(net.backward(*use.gradients))])


def test_a_call_under_no_grad_hides_those_before_it_but_not_from_their_calls(rng: np.random.Generator) -> None:
    """As a network that values the next state with no gradient: the gradient of the first call is not of the last."""
    net, use = _net(), KINDS["Sequential"].use(rng)
    net(*use.inputs)
    call = net.last_call
    with rnnkit.no_grad():
        net(*use.inputs)
        with refused(RuntimeError, "last_call needs a call of this Sequential", "no_grad"):
            _ = net.last_call
    with refused(RuntimeError, "no_grad"):
        net.backward(*use.gradients)
    assert_answers("Sequential", net, [use], [answer(net.backward(*use.gradients, call=call))])


def test_masks_belong_to_their_call(rng: np.random.Generator) -> None:
    layer = rnnkit.LSTM(I, H, 3, dropout=0.5, rng=1, **RECURRENT)
    x, dy = randn(rng, T, B, I), randn(rng, T, B, H)
    calls, states, wants = [], [], []
    for _ in range(3):
        states.append(layer.rng.bit_generator.state)
        layer(x)
        calls.append(layer.last_call)
    for state in states:
        twin = rnnkit.LSTM(I, H, 3, dropout=0.5, rng=1, **RECURRENT)
        twin.rng.bit_generator.state = state
        twin(x)
        wants.append(twin.backward(dy)[0])
    for call, want in zip(calls, wants, strict=True):
        np.testing.assert_array_equal(layer.backward(dy, call=call)[0], want)
    assert not np.array_equal(wants[0], wants[1])


@pytest.mark.parametrize("kind", [rnnkit.RNNCell, rnnkit.GRUCell, rnnkit.LSTMCell])
def test_a_loop_over_a_cell_has_the_layers_gradients(kind: Any, cpu_backend: str, rng: np.random.Generator) -> None:
    cell = kind(I, H, backend=cpu_backend, rng=1, **F64)
    layer = getattr(rnnkit, kind.__name__[:-4])(I, H, rng=1, **RECURRENT)
    for name, p in layer.params.items():
        p[...] = cell.params[name[:-3]]
    x, dy = randn(rng, T, B, I), randn(rng, T, B, H)
    layer(x)
    want_dx, want_dstate = layer.backward(dy)
    state, calls, dx = None, [], np.empty_like(x)
    for t in range(T):
        state = cell(x[t], state)
        calls.append(cell.last_call)
    pair = isinstance(state, tuple)
    dstate: Any = (np.zeros((B, H)), np.zeros((B, H))) if pair else np.zeros((B, H))
    for t in reversed(range(T)):
        dstate = (dstate[0] + dy[t], dstate[1]) if pair else dstate + dy[t]
        dx[t], dstate = cell.backward(dstate, call=calls[t])
    np.testing.assert_allclose(dx, want_dx, rtol=1e-10)
    for got, want in zip(parts(dstate), parts(want_dstate), strict=True):
        np.testing.assert_allclose(got, want[0], rtol=1e-10)
    for name, grad in layer.grads.items():
        np.testing.assert_allclose(cell.grads[name[:-3]], grad, rtol=1e-10, err_msg=name)


@EVERY_KIND
def test_what_is_no_call_of_the_module_is_refused(kind: str, rng: np.random.Generator) -> None:
    module, other, use = KINDS[kind].make(), KINDS[kind].make(), KINDS[kind].use(rng)
    for each in (module, other):
        each(*use.inputs)
    for wrong, said in ((7, "int"), ((), "tuple"), (use.inputs[0], "ndarray")):
        with refused(TypeError, "call must be a Call", "last_call", said):
            module.backward(*use.gradients, call=wrong)
    name = type(module).__name__
    assert repr(module.last_call) == f"<a call of a {name}>"
    with refused(ValueError, f"call must be one of this {name}", f"<a call of a {name}>"):
        module.backward(*use.gradients, call=other.last_call)
    call = module.last_call
    for twin in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        with refused(RuntimeError, f"call of this {name} first"):
            twin.backward(*use.gradients)
        with refused(ValueError, "call must be one of this"):
            twin.backward(*use.gradients, call=call)
        twin(*use.inputs)
        for a, b in zip(answer(twin.backward(*use.gradients)), alone(kind, use)[0], strict=True):
            np.testing.assert_array_equal(a, b)
    module.backward(*use.gradients, call=call)


def test_moving_a_module_ends_every_threads_calls(rng: np.random.Generator) -> None:
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


def test_tasks_of_one_thread_name_their_calls(rng: np.random.Generator) -> None:
    net, uses = _net(), [KINDS["Sequential"].use(rng) for _ in range(2)]

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


# Modules of users in a container


class Scale(rnnkit.Module):
    """As docs/sharing.md has it."""

    def __init__(self) -> None:
        super().__init__("float64")
        self._add_param("scale", np.full(I, 3.0))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self._saved = x if rnnkit.grad_enabled() else None
        return x * self.params["scale"]

    def backward(self, dy: np.ndarray, *, call: Any = None) -> np.ndarray:
        x = self._recalled(call)
        self._add_grad("scale", (dy * x).sum(0))
        return dy * self.params["scale"]


class Forgetful(rnnkit.Module):
    """One that keeps what backward needs where no container sees it."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return x * x

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return 2 * self.x * dy


def test_a_users_module_takes_part_by_keeping_its_call_in_saved(rng: np.random.Generator) -> None:
    model = rnnkit.Sequential(Scale(), rnnkit.Activation("tanh"))
    xs, dys, calls = [randn(rng, B, I) for _ in range(2)], [randn(rng, B, I) for _ in range(2)], []
    for x in xs:
        model(x)
        calls.append(model.last_call)
    for x, dy, call in zip(xs, dys, calls, strict=True):
        np.testing.assert_allclose(model.backward(dy, call=call), 3 * dy * (1 - np.tanh(3 * x) ** 2), rtol=1e-12)
    want = sum((x * dy * (1 - np.tanh(3 * x) ** 2)).sum(0) for x, dy in zip(xs, dys, strict=True))
    np.testing.assert_allclose(model.grads["0.scale"], want, rtol=1e-12)


def test_a_users_module_that_keeps_nothing_there_answers_for_the_latest_call_alone(rng: np.random.Generator) -> None:
    model = rnnkit.Sequential(Forgetful(), rnnkit.Activation("tanh"))
    x, other, dy = (randn(rng, B, I) for _ in range(3))
    model(x)
    early = model.last_call
    want = model.backward(dy)
    np.testing.assert_allclose(want, 2 * x * dy * (1 - np.tanh(x * x) ** 2), rtol=1e-12)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(model, other).result()
    for late in ({}, {"call": early}):
        with refused(RuntimeError, "self._saved", "Forgetful"):
            model.backward(dy, **late)


def test_a_module_called_by_itself_takes_no_answer_with_it(rng: np.random.Generator) -> None:
    for kind in ("Sequential", "LastState", "Bidirectional"):
        module, use = KINDS[kind].make(), KINDS[kind].use(rng)
        module(*use.inputs)
        child = next(iter(module.children().values()))
        child(randn(rng, T, B, I))
        kept = child._saved
        assert_answers(kind, module, [use], [answer(module.backward(*use.gradients))])
        assert child._saved is kept  # whose own backward is still to come
        with refused(RuntimeError, f"{type(child).__name__} was called 2 times"):
            child.backward(None)


# The document


def test_the_documents_examples_train() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    space: dict[str, Any] = {}
    for block in blocks:
        exec(block, space)
    for name, share in (("losses", 0.85), ("decoder_losses", 0.75), ("threads_losses", 0.2)):
        first, last = np.mean(space[name][:5]), np.mean(space[name][-10:])
        assert last < share * first, f"{name}: from {first:.3g} to {last:.3g}"
    scale = space["Scale"](2)
    scale(np.ones((3, 2), np.float32))
    scale.backward(np.ones((3, 2), np.float32))
    np.testing.assert_array_equal(scale.grads["scale"], [3, 3])
