"""`freeze` makes parameters read-only, and calls of the compiled CPU path then skip the check of packed weights."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.numba import layer as backend
from rnnkit.backends.numba import memory, plan, prepared
from tests.cpu.test_packed_weights import KINDS, without_grad
from tests.helpers import share_everything


@pytest.fixture(autouse=True)
def cache_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MIN_CACHED_PACKED", 0)
    backend.packed_weights.clear()


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6, 3, 37)).astype(np.float32)


def make(seed: int = 0, **options: Any) -> rnnkit.LSTM:
    return rnnkit.LSTM(37, 53, backend="numba", rng=seed, **options)


def spoil(packed: memory.Packed) -> None:
    """Sets the packed weights to NaN, and changes their digest."""
    line = packed.buffer.memory[: memory.LINE].view(np.int64)
    assert line[1] == 1
    line[0] ^= 1
    packed.buffer.memory[memory.LINE :] = 255


def held() -> memory.Packed:
    (packed,) = backend.packed_weights._entries.values()
    return packed


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_packed_weights_of_a_frozen_layer_are_not_checked(kind, options, x):
    """From the second call on. Packed weights of a layer that is not frozen are checked."""
    layer = kind(37, 53, backend="numba", rng=0, **options)
    want = layer(x)[0]
    assert layer.freeze() is layer
    for _ in range(3):
        np.testing.assert_array_equal(without_grad(layer, x), want)
    spoil(held())
    assert np.isnan(without_grad(layer, x)).all()
    np.testing.assert_array_equal(layer(x)[0], want)  # a call with gradients, which packs again
    layer.unfreeze()
    backend.packed_weights.clear()
    np.testing.assert_array_equal(without_grad(layer, x), want)
    spoil(held())
    np.testing.assert_array_equal(without_grad(layer, x), want)


def test_the_first_call_of_frozen_weights_checks(x):
    layer = make().freeze()
    want = without_grad(layer, x)
    packed = held()
    packed._packed = ()  # as if packed from other arrays
    spoil(packed)
    np.testing.assert_array_equal(without_grad(layer, x), want)


def test_a_reused_id_is_not_taken_for_the_same_array(x, monkeypatch):
    """Frozen and unfrozen layers alternate on one cache key, so earlier weights must not be used."""
    monkeypatch.setattr(backend, "id", lambda a: 0, raising=False)
    layers = [make(0).freeze(), make(1).freeze(), make(2), make(3).freeze()]
    want = [layer(x)[0] for layer in layers]
    for k in (0, 0, 1, 1, 2, 0, 2, 3, 2, 3, 3, 1):
        np.testing.assert_array_equal(without_grad(layers[k], x), want[k])
    assert len(backend.packed_weights._entries) == 1
    packed = held()
    without_grad(layers[3], x)
    packed_from = tuple(packed._packed)
    del layers[3]
    assert [r() for r in packed_from] == [None, None]
    np.testing.assert_array_equal(without_grad(layers[0], x), want[0])


def test_a_read_only_view_of_a_writable_array_is_checked(x):
    layer = make()
    arrays = {name: layer.params[name].copy() for name in layer.params}
    for name, array in arrays.items():
        view = array[...]
        view.flags.writeable = False
        layer._params._add(name, view)
    layer._cached_weights = None
    assert not layer.frozen
    first = without_grad(layer, x)
    arrays["weight_hh_l0"][3, 5] += 0.25
    changed = without_grad(layer, x)
    assert not np.array_equal(changed, first)
    np.testing.assert_array_equal(changed, layer(x)[0])


def test_nothing_writes_to_a_frozen_parameter(x):
    layers = [make(0), make(1)]
    for layer in layers:
        layer.backward(np.ones_like(layer(x)[0]))
    model = rnnkit.Adam(layers, lr=0.1)
    before = [layer.state_dict() for layer in layers]
    layers[1].freeze()
    name, w = "weight_hh_l0", layers[1].params["weight_hh_l0"]
    attempts = (
        model.step,
        lambda: layers[1].params.__setitem__(name, np.zeros_like(w)),
        lambda: layers[1].params.update({name: np.zeros_like(w)}),
        lambda: layers[1].load_state_dict(before[0]),
        lambda: layers[1].load_state_dict({name: w}, strict=False),
    )
    for attempt in attempts:
        with pytest.raises(ValueError, match=r"_l0 is frozen and cannot be written to: call unfreeze\(\)"):
            attempt()
    assert model.t == 0
    with pytest.raises(ValueError, match="read-only"):
        w[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        w.flags.writeable = True
    for layer, state in zip(layers, before, strict=True):
        for key, value in state.items():
            np.testing.assert_array_equal(layer.params[key], value)
    layers[1].unfreeze()
    model.step()
    assert model.t == 1
    assert not np.array_equal(layers[1].params[name], before[1][name])


def test_arrays_from_before_freeze_are_no_longer_the_layers(x):
    layer = make()
    taken = layer.params["weight_hh_l0"]
    want = layer.freeze()(x)[0]
    taken[...] = 7
    np.testing.assert_array_equal(without_grad(layer, x), want)
    np.testing.assert_array_equal(layer(x)[0], want)


def test_writes_to_unfrozen_weights_are_detected(x):
    layer = make().freeze()
    first = without_grad(layer, x)
    without_grad(layer, x)
    assert layer.unfreeze() is layer
    assert not layer.frozen
    np.testing.assert_array_equal(without_grad(layer, x), first)
    layer.params["weight_ih_l0"][-1, -1] += 0.5
    changed = without_grad(layer, x)
    assert not np.array_equal(changed, first)
    layer.freeze()
    np.testing.assert_array_equal(without_grad(layer, x), changed)
    np.testing.assert_array_equal(without_grad(layer, x), changed)


def test_backward_of_a_frozen_layer_is_unchanged(x):
    free, frozen = make(bidirectional=True), make(bidirectional=True).freeze()
    dy = np.random.default_rng(1).standard_normal((6, 3, 106)).astype(np.float32)
    for layer in (free, frozen):
        layer(x)
    for a, b in zip(free.backward(dy)[1], frozen.backward(dy)[1], strict=True):
        np.testing.assert_array_equal(a, b)
    for name, grad in free.grads.items():
        np.testing.assert_array_equal(frozen.grads[name], grad)
        assert grad.any()


def test_containers_freeze_their_modules_and_copies_are_writable():
    model = rnnkit.Sequential(rnnkit.Embedding(5, 4, rng=0), rnnkit.GRU(4, 3, rng=0), rnnkit.Linear(3, 2, rng=0))
    ids = np.array([[0, 3], [4, 1]])
    want = model(ids)
    assert not model.frozen
    assert model.freeze().freeze().frozen
    assert all(layer.frozen for layer in model.children().values())
    np.testing.assert_array_equal(model(ids), want)
    other = copy.deepcopy(model)
    assert not other.frozen
    np.testing.assert_array_equal(other(ids), want)
    for p in other.params.values():
        p[...] = 0
    np.testing.assert_array_equal(model(ids), want)
    next(iter(model.children().values())).unfreeze()
    assert not model.frozen
    assert not rnnkit.Activation("tanh").freeze().frozen
    state = model.unfreeze().state_dict()
    model.load_state_dict(state)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_an_unpickled_layer_is_writable_and_checked(protocol, frozen, x):
    """NumPy's older pickle protocols create larger arrays over bytes; the newest ones keep arrays read-only."""
    layer = make()
    want = layer(x)[0]
    if frozen:
        layer.freeze()
    other = pickle.loads(pickle.dumps(layer, protocol))
    assert not other.frozen
    for _ in range(2):
        np.testing.assert_array_equal(without_grad(other, x), want)
    other.params["weight_hh_l0"][3, 5] += 0.25
    changed = without_grad(other, x)
    assert not np.array_equal(changed, want)
    np.testing.assert_array_equal(changed, other(x)[0])
    other.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(without_grad(other, x), want)
    other.zero_grad()
    other.backward(np.ones_like(other(x)[0]))
    rnnkit.SGD(other, lr=0.1).step()
    assert not np.array_equal(without_grad(other, x), want)
    np.testing.assert_array_equal(layer(x)[0], want)


def test_a_shallow_copy_shares_arrays_until_one_is_frozen(x):
    layer = make()
    want = layer(x)[0]
    other = copy.copy(layer)
    assert other.params["weight_hh_l0"] is layer.params["weight_hh_l0"]
    other.freeze()
    assert other.frozen
    assert not layer.frozen
    layer.params["weight_hh_l0"][...] = 0
    np.testing.assert_array_equal(without_grad(other, x), want)
    assert not np.array_equal(without_grad(layer, x), want)
    np.testing.assert_array_equal(without_grad(layer, x), layer(x)[0])


def test_read_only_parameters_are_refused_before_a_step(x):
    layer = make()
    layer.backward(np.ones_like(layer(x)[0]))
    adam, before = rnnkit.Adam(layer, lr=0.1), layer.state_dict()
    layer.params["bias_hh_l0"].flags.writeable = False
    for attempt in (adam.step, lambda: layer.load_state_dict(before)):
        with pytest.raises(ValueError, match="bias_hh_l0 is read-only and cannot be written to"):
            attempt()
    assert adam.t == 0
    np.testing.assert_array_equal(layer.params["weight_ih_l0"], before["weight_ih_l0"])
    layer.unfreeze()
    adam.step()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_frozen_layers_with_any_division_and_ragged_rows(dtype, x, monkeypatch):
    share_everything(monkeypatch, 3)
    layer = rnnkit.LSTM(37, 70, num_layers=2, bidirectional=True, backend="numba", rng=0, dtype=dtype)
    x = x.astype(dtype)
    with rnnkit.no_grad():
        want = [layer(x, lengths=lengths)[0] for lengths in (None, [6, 2, 4])]
    layer.freeze()
    for members in (1, 2, 3, 3, 2, 2, 1, 1):
        monkeypatch.setattr(plan, "division", lambda sizes, threads, members=members: (1, members))
        prepared.forget()
        with rnnkit.no_grad():
            found = [layer(x, lengths=lengths)[0] for lengths in (None, [6, 2, 4])]
        for a, b in zip(found, want, strict=True):
            np.testing.assert_array_equal(a, b)
    trusted = [
        p.buffer.memory[: memory.LINE].view(np.int64)[memory.TRUSTED] for p in backend.packed_weights._entries.values()
    ]
    assert trusted[-12:] == [1] * 12
    prepared.forget()


def test_one_frozen_layer_from_many_threads(x):
    layers = [make(k).freeze() for k in range(2)]
    want, wrong = [layer(x)[0] for layer in layers], []

    def call() -> None:
        for k in range(50):
            if not np.array_equal(without_grad(layers[k % 2], x), want[k % 2]):
                wrong.append(k)

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_moving_a_frozen_module_to_its_own_device_keeps_it_frozen():
    assert make().freeze().to("cpu").frozen


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_cells_can_be_frozen_in_every_dtype(dtype):
    cell = rnnkit.GRUCell(3, 4, dtype=dtype, rng=0, backend="numpy")
    x = np.ones((2, 3), cell.dtype)
    want = cell(x)
    cell.freeze()
    assert {p.dtype for p in cell.params.values()} == {cell.dtype}
    np.testing.assert_array_equal(cell(x), want)


def test_arrays_on_a_gpu_cannot_be_frozen(monkeypatch):
    model = rnnkit.Sequential(rnnkit.Linear(3, 2, rng=0), rnnkit.Linear(2, 2, rng=0))
    monkeypatch.setattr(next(reversed(model.children().values())), "_device", "cuda:0")
    with pytest.raises(ValueError, match="freeze needs parameters on 'cpu', got Linear on 'cuda:0'"):
        model.freeze()
    assert not any(layer.frozen for layer in model.children().values())


def test_explain_says_whether_weights_are_checked(x):
    layer = make()
    assert "packed" not in rnnkit.explain(layer, x).why
    with rnnkit.no_grad():
        assert "packed weights are cached, and each call checks whether they are stale" in rnnkit.explain(layer, x).why
        assert "packed weights are cached, and the parameters are frozen" in rnnkit.explain(layer.freeze(), x).why
