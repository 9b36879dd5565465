"""One module called several times in a pass before backward. Calls are independent."""

from __future__ import annotations

import copy
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkit
from tests.api.shared_modules import EVERY_KIND, F64, KINDS, RECURRENT, B, H, I, T, alone, answer, assert_answers
from tests.api.shared_modules import net as new_net
from tests.helpers import parts, randn, refused

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "sharing.md"


@EVERY_KIND
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_calls_of_one_pass_are_differentiated_in_any_order(
    kind: str, order: tuple[int, ...], rng: np.random.Generator
) -> None:
    module, uses = KINDS[kind].make(), [KINDS[kind].use(rng) for _ in range(3)]
    calls = []
    for use in uses:
        module(*use.inputs)
        calls.append(module.last_call)
    found = {k: answer(module.backward(*uses[k].gradients, call=calls[k])) for k in order}
    assert_answers(kind, module, uses, [found[k] for k in range(3)])
    module(*uses[0].inputs)  # a new pass, after backward of the last call
    module.backward(*uses[0].gradients)


@EVERY_KIND
def test_backward_of_several_calls_without_call_is_refused(kind: str, rng: np.random.Generator) -> None:
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
    with refused(RuntimeError, "2 times"):  # backward could mean the earlier call
        module.backward(*uses[0].gradients)
    module(*uses[0].inputs)
    want, _ = alone(kind, uses[0])
    for a, b in zip(answer(module.backward(*uses[0].gradients)), want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_zero_grad_begins_a_new_pass(rng: np.random.Generator) -> None:
    net, use = new_net(), KINDS["Sequential"].use(rng)
    net(*use.inputs)  # an evaluation, or an abandoned step
    net(*use.inputs)
    rnnkit.SGD(net, 0.1).zero_grad()
    with refused(RuntimeError, "2 times"):
        net.backward(*use.gradients)
    net(*use.inputs)
    assert_answers("Sequential", net, [use], [answer(net.backward(*use.gradients))])
    net(*use.inputs)
    net.zero_grad()  # between a call and its backward, as in many training loops
    assert_answers("Sequential", net, [use], [answer(net.backward(*use.gradients))])


def test_a_call_under_no_grad_ends_last_call_but_not_earlier_call_objects(rng: np.random.Generator) -> None:
    """As for a value network that evaluates the next state under no_grad: backward is for the first call."""
    net, use = new_net(), KINDS["Sequential"].use(rng)
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
def test_a_loop_over_a_cell_has_the_gradients_of_the_layer(
    kind: Any, cpu_backend: str, rng: np.random.Generator
) -> None:
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
def test_a_call_of_another_module_is_refused(kind: str, rng: np.random.Generator) -> None:
    module, other, use = KINDS[kind].make(), KINDS[kind].make(), KINDS[kind].use(rng)
    for each in (module, other):
        each(*use.inputs)
    for wrong, message in ((7, "int"), ((), "tuple"), (use.inputs[0], "ndarray")):
        with refused(TypeError, "call must be a Call", "last_call", message):
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


# Modules of users in a container


class Scale(rnnkit.Module):
    """The module of docs/sharing.md."""

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
    """Saves what backward needs, but not in `_saved`, where containers find it."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return x * x

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return 2 * self.x * dy


def test_a_user_module_that_saves_its_call_can_be_called_several_times(rng: np.random.Generator) -> None:
    model = rnnkit.Sequential(Scale(), rnnkit.Activation("tanh"))
    xs, dys, calls = [randn(rng, B, I) for _ in range(2)], [randn(rng, B, I) for _ in range(2)], []
    for x in xs:
        model(x)
        calls.append(model.last_call)
    for x, dy, call in zip(xs, dys, calls, strict=True):
        np.testing.assert_allclose(model.backward(dy, call=call), 3 * dy * (1 - np.tanh(3 * x) ** 2), rtol=1e-12)
    want = sum((x * dy * (1 - np.tanh(3 * x) ** 2)).sum(0) for x, dy in zip(xs, dys, strict=True))
    np.testing.assert_allclose(model.grads["0.scale"], want, rtol=1e-12)


def test_a_user_module_that_saves_no_call_differentiates_only_the_latest_call(rng: np.random.Generator) -> None:
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


def test_backward_of_a_container_leaves_a_separate_call_of_its_child(rng: np.random.Generator) -> None:
    for kind in ("Sequential", "LastState", "Bidirectional"):
        module, use = KINDS[kind].make(), KINDS[kind].use(rng)
        module(*use.inputs)
        child = next(iter(module.children().values()))
        child(randn(rng, T, B, I))
        kept = child._saved
        assert_answers(kind, module, [use], [answer(module.backward(*use.gradients))])
        assert child._saved is kept  # its separate call can still be differentiated
        with refused(RuntimeError, f"{type(child).__name__} was called 2 times"):
            child.backward(None)


# The document


def test_the_examples_of_the_document_train() -> None:
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
