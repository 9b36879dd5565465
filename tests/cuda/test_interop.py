"""Inputs and outputs of layers on a CUDA device: arrays of other libraries or devices, streams, synchronisation.

On tests/tools/fakecupy. `tests.cuda.standin` replaces the scan. Kernels have separate suites.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core import devices
from rnnkit.functional import direction
from rnnkit.testing import Case, assert_close, make_inputs
from tests.cuda.cuda_helpers import LAYERS
from tests.cuda.standin import numbers, on, pair, stand_in
from tests.helpers import parts, random_state, refused
from tests.tools import fakecupy

EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture
def cp() -> Iterator[Any]:
    """The stand-in for CuPy with two devices, the first one current, and a stand-in for the backend."""
    with stand_in(devices=2) as module:
        yield module


class Foreign:
    """Another library's array on a CUDA device, which offers only DLPack or the CUDA array interface."""

    def __init__(self, array: Any, offers: str) -> None:
        self.array = array
        if offers == "interface":
            described = {**array.__cuda_array_interface__, "version": 2}
            described.pop("stream", None)  # CuPy synchronises with a named stream
            self.__cuda_array_interface__ = described
        else:
            self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


OFFERS = pytest.mark.parametrize("offers", ["dlpack", "interface"])


# Arrays of other libraries


@OFFERS
@EVERY_LAYER
def test_arrays_of_other_libraries_are_used_without_a_copy(
    cp: Any, name: str, offers: str, rng: np.random.Generator
) -> None:
    there, here = pair(name, "cuda:1")
    x, dy, state, dstate = (
        numbers(rng, 5, 3, 4),
        numbers(rng, 5, 3, 6),
        random_state(here, 3, rng),
        random_state(here, 3, rng),
    )

    def foreign(a: Any) -> Any:
        return tuple(map(foreign, a)) if isinstance(a, tuple) else Foreign(on(cp, 1, a), offers)

    given = [foreign(a) for a in (x, state, dy, dstate)]
    with cp.fake.counting() as counts:
        got = [*_flat(there(given[0], given[1])), *_flat(there.backward(given[2], given[3]))]
    want = [*_flat(here(x, state)), *_flat(here.backward(dy, dstate))]
    for a, b in zip(got, want, strict=True):
        assert isinstance(a, cp.ndarray)
        assert_close(name, a, b, "float32")
    assert not counts.synchronisations
    taken = devices.adopted(given[0])
    assert taken.data.ptr == given[0].array.data.ptr


def _flat(result: Any) -> list[Any]:
    first, state = result
    return [first, *parts(state)]


@OFFERS
def test_other_modules_accept_arrays_of_other_libraries(cp: Any, offers: str, rng: np.random.Generator) -> None:
    def foreign(a: np.ndarray) -> Any:
        return Foreign(on(cp, 1, a), offers)

    x, d = numbers(rng, 4, 3), numbers(rng, 4, 3)
    for make in (lambda **where: rnnkit.Linear(3, 3, rng=1, **where), lambda **_: rnnkit.Activation("tanh")):
        there, here = make(device="cuda:1"), make()
        assert_close("y", there(foreign(x)), here(x), "float32")
        assert_close("dx", there.backward(foreign(d)), here.backward(d), "float32")
    indices = np.array([[2, 0], [2, 2]])
    table, exact = rnnkit.Embedding(4, 3, device="cuda:1", rng=1), rnnkit.Embedding(4, 3, rng=1)
    dy = numbers(rng, 2, 2, 3)
    np.testing.assert_array_equal(table(foreign(indices)).get(), exact(indices))
    table.backward(foreign(dy))
    exact.backward(dy)
    np.testing.assert_array_equal(table.grads["weight"].get(), exact.grads["weight"])
    target = abs(d) / 4
    for loss in (rnnkit.mse, rnnkit.bce_with_logits):
        value, gradient = loss(foreign(x), foreign(target))
        want, gradient_here = loss(x, target)
        assert value == pytest.approx(want, rel=1e-6)
        assert isinstance(gradient, cp.ndarray)
        assert_close("gradient", gradient, gradient_here, "float32")
    layer = rnnkit.LastState(rnnkit.Bidirectional(rnnkit.GRU(3, 2, device="cuda:1", rng=1)))
    out = layer(foreign(x), lengths=foreign(np.array([3])))
    assert out.shape == (4,)
    layer.backward(Foreign(out, offers))


def test_strides_and_layouts_of_device_arrays(cp: Any, rng: np.random.Generator) -> None:
    there, here = pair("gru", "cuda:0", batch_first=True)
    x = numbers(rng, 4, 5, 3)
    dy = numbers(rng, 6, 5, 3)
    y = there(cp.asarray(x).T)[0]
    assert_close("y", y, here(x.T)[0], "float32")
    assert_close("dx", there.backward(cp.asarray(dy).T)[0], here.backward(dy.T)[0], "float32")


@pytest.mark.parametrize("where", ["host", "device", "foreign", "list"])
def test_lengths_synchronise_only_if_they_are_on_the_device(cp: Any, where: str, rng: np.random.Generator) -> None:
    there, here = pair("lstm", "cuda:0", bidirectional=True)
    x, lengths = numbers(rng, 5, 3, 4), np.array([2, 5, 0])
    up = cp.asarray(x)
    given = {"host": lengths, "list": [2, 5, 0], "device": cp.asarray(lengths)}.get(where)
    if given is None:
        given = Foreign(cp.asarray(lengths), "dlpack")
    with cp.fake.counting() as counts:
        y, _ = there(up, None, given)
    assert sum(counts.synchronisations.values()) == (1 if where in ("device", "foreign") else 0)
    assert_close("y", y, here(x, None, lengths)[0], "float32")
    with refused(ValueError, "lengths must be between 0 and T = 5, got 6 in row 1"):
        there(up, None, cp.asarray([1, 6, 2]))


def test_errors_name_arrays_on_the_wrong_device(cp: Any, rng: np.random.Generator) -> None:
    there, here = pair("lstm", "cuda:1")
    x, h = numbers(rng, 5, 3, 4), numbers(rng, 2, 3, 6)
    up = on(cp, 1, x)
    with refused(ValueError, "x must be on device cuda:1, got ndarray on the host: cupy.asarray(x) copies it"):
        there(x)
    with refused(ValueError, "h0 must be on device cuda:1, got ndarray on the host: cupy.asarray(h0) copies it"):
        there(up, (h, None))
    with refused(ValueError, "c0 must be on device cuda:1, got an array on cuda:0: layer.to('cuda:0')"):
        there(up, (None, on(cp, 0, h)))
    for offers in ("dlpack", "interface"):
        with refused(ValueError, "x must be on device cuda:1, got an array on cuda:0"):
            there(Foreign(on(cp, 0, x), offers))
    there(up)
    with refused(ValueError, "dy must be on device cuda:1, got ndarray on the host"):
        there.backward(numbers(rng, 5, 3, 6))
    with refused(ValueError, "dc_n must be on device cuda:1, got ndarray on the host"):
        there.backward(None, (None, h))
    with refused(ValueError, "x must be on device cpu, got an array on cuda:1: x.get() copies it"):
        here(up)
        with refused(ValueError, "x must be on device cpu, got a Foreign on a CUDA device"):
            here(Foreign(up, offers))
    with refused(TypeError, "x must be a NumPy or CuPy array, got list"):
        there(x.tolist())
    with refused(TypeError, "x must have dtype float32, got float64"):
        there(on(cp, 1, x.astype("float64")))
    with refused(ValueError, "indices must be on device cuda:1, got ndarray on the host"):
        rnnkit.Embedding(3, 2, device="cuda:1")(np.array([1]))
    with refused(ValueError, "target must be on device cuda:1, got ndarray on the host"):
        rnnkit.mse(up, x)
    with refused(ValueError, "target must be on device cpu, got an array on cuda:1"):
        rnnkit.cross_entropy(x[0], on(cp, 1, np.zeros(3, int)))
    with refused(ValueError, "w_ih must be on device cuda:1, got ndarray on the host"):
        case = Case("lstm")
        inputs, host = make_inputs(case, "float32", device="cuda:1"), make_inputs(case, "float32")
        direction.forward("lstm", inputs.x, inputs.state0, inputs.weights._replace(w_ih=host.weights.w_ih))
    with refused(TypeError, "weight must be a CuPy array, got ndarray"):
        rnnkit.Linear(2, 3, device="cuda:1").params["weight"] = np.zeros((3, 2), "float32")


def test_the_error_names_an_array_that_cupy_rejects(cp: Any) -> None:
    class Tracked(Foreign):
        """Like a torch tensor that requires a gradient."""

        def __init__(self, array: Any) -> None:
            super().__init__(array, "dlpack")

            def refuse(**_: Any) -> None:
                raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

            self.__dlpack__ = refuse

    layer = rnnkit.GRU(4, 6, device="cuda:0")
    with refused(TypeError, "x is a Tracked that CuPy cannot use", "use tensor.detach()"):
        layer(Tracked(cp.zeros((5, 3, 4), "float32")))


# Streams and synchronisation


def test_a_training_step_does_not_synchronise(cp: Any, rng: np.random.Generator) -> None:
    """Forward, backward, the optimizer and clip_grad_value do not synchronise; a loss and clip_grad_norm do once."""
    model = rnnkit.Sequential(
        rnnkit.Embedding(9, 4, device="cuda", rng=1),
        rnnkit.LSTM(4, 4, 2, dropout=0.5, bidirectional=True, device="cuda", rng=3),
        rnnkit.LastState(rnnkit.GRU(8, 6, device="cuda", rng=2)),
        rnnkit.Linear(6, 3, device="cuda", rng=4),
        rnnkit.Activation("tanh"),
    )
    x, target = cp.asarray(rng.integers(9, size=(7, 5))), cp.asarray(rng.integers(3, size=5))
    for dtype_target, fn in ((target, rnnkit.CrossEntropyLoss()), (cp.zeros((5, 3), "float32"), rnnkit.MSELoss())):
        optimizer = rnnkit.Adam(model)
        with cp.fake.counting() as counts:
            y = model(x, lengths=[7, 1, 3, 0, 5])
        assert not counts.synchronisations
        with cp.fake.counting() as counts:
            fn(y, dtype_target)
        assert sum(counts.synchronisations.values()) == 1
        with cp.fake.counting() as counts:
            model.zero_grad()
            model.backward(fn.backward())
            rnnkit.clip_grad_value(model, 1.0)
            optimizer.step()
        assert not counts.synchronisations
        with cp.fake.counting() as counts:
            rnnkit.clip_grad_norm(model, 1.0)
        assert sum(counts.synchronisations.values()) == 1


@pytest.mark.parametrize("kind", ["SGD", "Adagrad", "Adam"])
def test_repeated_optimizer_steps_allocate_nothing(cp: Any, kind: str) -> None:
    for dtype in ("float32", "float16"):
        model = rnnkit.Linear(30, 30, device="cuda:1", dtype=dtype)
        optimizer = getattr(rnnkit, kind)(model, 0.1)
        optimizer.step()
        with cp.fake.counting() as counts:
            optimizer.step()
        assert counts.allocations == 0


def test_the_current_stream_is_used(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams run only when waited for, so work on another stream would run in the wrong order."""
    with fakecupy.installed(devices=2, lazy_streams=True) as cp:
        x = numbers(rng, 6, 4)
        layer, exact = rnnkit.Linear(4, 3, device="cuda:1", rng=1), rnnkit.Linear(4, 3, rng=1)
        cp.cuda.Device(1).synchronize()
        with cp.cuda.Device(1), cp.cuda.Stream(non_blocking=True) as stream:
            up = cp.asarray(x)
            y = layer(up)
            dx = layer.backward(y)
            stream.synchronize()
            found = cp.fake.peek(y), cp.fake.peek(dx)
        want = exact(x)
        np.testing.assert_allclose(found[0], want, rtol=1e-5)
        np.testing.assert_allclose(found[1], exact.backward(want), rtol=1e-5)


# Indices on the device, which the CPU does not read


def test_an_index_outside_the_table_gives_nan_and_no_gradient(cp: Any, rng: np.random.Generator) -> None:
    table, exact = rnnkit.Embedding(4, 3, device="cuda:0", rng=1), rnnkit.Embedding(4, 3, rng=1)
    indices = np.array([3, -1, 0, 4, 3, 2**40])
    inside = np.array([0, 2, 4])
    y = table(cp.asarray(indices))
    want = np.full((6, 3), np.nan, np.float32)
    want[inside] = exact(indices[inside])
    np.testing.assert_array_equal(y.get(), want)
    dy = numbers(rng, 6, 3)
    table.backward(cp.asarray(dy))
    exact.backward(dy[inside])
    np.testing.assert_array_equal(table.grads["weight"].get(), exact.grads["weight"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_embedding_gradients_equal_the_cpu_bit_for_bit(cp: Any, dtype: str, rng: np.random.Generator) -> None:
    """With repeated indices of every count; twice into the same gradients."""
    kind = dtype if dtype != "int8" else "float32"
    table, exact = (rnnkit.Embedding(7, 3, device=where, dtype=kind, rng=1) for where in ("cuda:0", None))
    for sizes in ((1, 2, 3, 5, 8, 13, 0), (1, 0, 0, 0, 0, 0, 0), (0, 0, 0, 64, 0, 0, 0)):
        indices = rng.permutation(np.repeat(np.arange(7), sizes)).astype(dtype if dtype == "int8" else "int32")
        dy = numbers(rng, len(indices), 3, dtype=kind)
        np.testing.assert_array_equal(table(cp.asarray(indices)).get(), exact(indices))
        table.backward(cp.asarray(dy))
        exact.backward(dy)
        np.testing.assert_array_equal(table.grads["weight"].get(), exact.grads["weight"])
    table(cp.zeros(0, int))
    table.backward(cp.zeros((0, 3), kind))


def test_a_target_outside_the_classes_raises_on_cuda(cp: Any) -> None:
    logits = cp.zeros((2, 3), "float32")
    for wrong in (-1, 3):
        with refused(IndexError, "target must be in [0, 3)", f"got {wrong}"):
            rnnkit.cross_entropy(logits, cp.asarray([0, wrong]))
    value, d = rnnkit.cross_entropy(logits, cp.asarray([0, 2]))
    assert value == pytest.approx(np.log(3), rel=1e-6)
    np.testing.assert_allclose(d.get(), np.full((2, 3), 1 / 6) - np.array([[0.5, 0, 0], [0, 0, 0.5]]), rtol=1e-5)
