"""Packed weights that are cached between calls under `no_grad` are used only while the weights are unchanged."""

from __future__ import annotations

import threading
from itertools import permutations

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.numba import layer as backend
from rnnkit.backends.numba import memory, plan, prepared
from rnnkit.kernels.cpu.digest import LANES, SEGMENT, digest
from rnnkit.kernels.cpu.jit import entry
from tests.helpers import share_everything

KINDS = (
    (rnnkit.RNN, {}),
    (rnnkit.GRU, {}),
    (rnnkit.GRU, {"reset_after": False}),
    (rnnkit.LSTM, {}),
    (rnnkit.LSTM, {"proj_size": 50}),
)


@pytest.fixture(autouse=True)
def cache_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MIN_CACHED_PACKED", 0)
    backend.packed_weights.clear()


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6, 3, 37)).astype(np.float32)


def without_grad(layer: rnnkit.Module, x: np.ndarray) -> np.ndarray:
    with rnnkit.no_grad():
        return layer(x)[0]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_every_change_is_detected(kind, options, x):
    """Also a change of only the last element, and a swap of two elements."""
    layer = kind(37, 53, backend="numba", rng=0, **options)
    assert len(backend.packed_weights._entries) == 0
    for name in [n for n in layer.params if n.startswith("weight")]:
        w = layer.params[name]
        before, first = w.copy(), without_grad(layer, x)
        np.testing.assert_array_equal(without_grad(layer, x), first)
        for row, column in ((0, 0), (-1, -1), (7, 20)):
            w[row, column] += 0.25
            changed = without_grad(layer, x)
            assert not np.array_equal(changed, first)
            np.testing.assert_array_equal(changed, layer(x)[0])
            w[...] = before
        for a, b in (((0, 0), (0, 16)), ((0, 1), (5, 1)), ((3, 2), (3, 3))):
            w[a], w[b] = w[b], w[a]
            np.testing.assert_array_equal(without_grad(layer, x), layer(x)[0])
            w[...] = before
        np.testing.assert_array_equal(without_grad(layer, x), first)
    assert len(backend.packed_weights._entries) == 1


def test_weights_packed_for_another_division_are_not_used(x, monkeypatch):
    share_everything(monkeypatch, 3)
    layer = rnnkit.LSTM(37, 70, backend="numba", rng=0)
    want = layer(x)[0]
    for members in (1, 2, 3, 2, 1):
        monkeypatch.setattr(plan, "division", lambda sizes, threads, members=members: (1, members))
        prepared.forget()
        np.testing.assert_array_equal(without_grad(layer, x), want)
    prepared.forget()


def kept_bytes() -> int:
    return sum(packed.buffer.memory.nbytes for packed in backend.packed_weights._entries.values())


def test_the_cache_is_bounded_and_drops_the_oldest(x, monkeypatch):
    layers = [rnnkit.GRU(37, 40, backend="numba", rng=k) for k in range(4)]
    first = without_grad(layers[0], x)
    size = kept_bytes()
    monkeypatch.setattr(memory, "MAX_CACHED_PACKED", 3 * size)
    for layer in layers:
        without_grad(layer, x)
    assert len(backend.packed_weights._entries) == 3
    assert kept_bytes() == 3 * size
    np.testing.assert_array_equal(without_grad(layers[0], x), first)
    monkeypatch.setattr(memory, "MAX_CACHED_PACKED", size // 2)
    backend.packed_weights.clear()
    np.testing.assert_array_equal(without_grad(layers[0], x), first)
    assert len(backend.packed_weights._entries) == 0


def test_training_caches_no_packed_weights(x):
    layer = rnnkit.GRU(37, 40, backend="numba", rng=0)
    layer.backward(np.ones_like(layer(x)[0]))
    assert len(backend.packed_weights._entries) == 0


def test_one_layer_from_many_threads(x):
    layer = rnnkit.LSTM(37, 64, backend="numba", rng=0)
    want, wrong = layer(x)[0], []

    def call() -> None:
        for _ in range(50):
            if not np.array_equal(without_grad(layer, x), want):
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@entry(("test", "digest", "seeds"))
def of_array(a, seed):
    return digest(a.ctypes.data, a.nbytes, seed, 0, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_digest_of_one_number_among_zeros_depends_on_place_and_array(dtype):
    """Sparse weights, for which keys in a regular pattern would collide."""
    a, seen = np.zeros(3000, dtype), set()
    for seed in (1, 2, 3):
        for at in range(a.size):
            a[at] = 1
            seen.add(of_array(a, seed))
            a[at] = 0
    assert len(seen) == 3 * a.size


def test_swaps_and_cancelling_changes_are_detected():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(4096)
    want = of_array(a, 1)
    for _ in range(3000):
        k, m = rng.choice(a.size, 2, replace=False)
        a[k], a[m] = a[m], a[k]
        assert of_array(a, 1) != want
        a[k], a[m] = -a[m], -a[k]
        assert of_array(a, 1) != want
        a[k], a[m] = -a[k], -a[m]
    assert of_array(a, 1) == want
    a[1], a[208] = a[208], a[1]
    assert of_array(a, 1) != want


@entry(("test", "digest"))
def whole(a, shares):
    total = 0
    for k in range(shares):
        total += digest(a.ctypes.data, a.nbytes, 1, k, shares)
    return total


@pytest.mark.parametrize("size", [4, 8, 60, 64, 68, 4096, 4100, 4160, 20000])
def test_a_digest_depends_on_every_bit_and_not_on_the_division(size):
    a = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    want = whole(a, 1)
    assert all(whole(a, shares) == want for shares in (2, 3, 7))
    seen = {want}
    for at in {0, size // 3, size // 2, size - 1}:
        for bit in range(8):
            a[at] ^= 1 << bit
            seen.add(whole(a, 1))
            a[at] ^= 1 << bit
    assert len(seen) == 1 + 8 * len({0, size // 3, size // 2, size - 1})
    assert whole(np.zeros(size, np.uint8), 1) != whole(np.zeros(size + 4, np.uint8), 1)


@pytest.mark.parametrize("apart", [1, 8, 24])
def test_a_digest_depends_on_the_position_of_a_word(apart):
    """Words are read in blocks of eight. Swaps two words within a block, or at the same position of two blocks."""
    a = np.random.default_rng(3).integers(0, 1 << 62, 32)
    want = whole(a, 1)
    for at in range(32 - apart):
        a[[at, at + apart]] = a[[at + apart, at]]
        assert whole(a, 1) != want
        a[[at, at + apart]] = a[[at + apart, at]]


def test_a_digest_depends_on_the_order_of_segments():
    a = np.random.default_rng(4).integers(0, 1 << 62, (3, SEGMENT * LANES))
    digests = {whole(np.ascontiguousarray(a[list(order)]), 1) for order in permutations(range(3))}
    assert len(digests) == 6


def test_any_change_of_a_single_word_is_detected():
    """A change of sign, of one bit, to zero, or of both halves, with any value of the other factor of its product."""
    rng = np.random.default_rng(5)
    a = rng.integers(0, 1 << 62, 2000)
    want = whole(a, 1)
    for at in range(a.size):
        before = a[at]
        for after in (-before, before ^ 1, before ^ (1 << 31), before ^ (1 << 32), 0, rng.integers(0, 1 << 62)):
            a[at] = after
            assert whole(a, 1) != want
        a[at] = before
