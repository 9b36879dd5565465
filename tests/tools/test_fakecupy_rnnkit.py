"""Other modules than recurrent ones, losses, optimizers and clipping: the stand-in for CuPy gives NumPy's results."""

import gc
import sys
import weakref

import numpy as np
import pytest

import rnnkit
from rnnkit import backends
from rnnkit.nn import losses
from rnnkit.nn.linear import Activation
from rnnkit.optim import clipping, optimizers
from tests.tools import fakecupy
from tests.tools.fakecupy import _blas, _state

OPTIMIZERS = {
    "SGD": lambda model: optimizers.SGD(model, 0.1, 0.9),
    "Adagrad": lambda model: optimizers.Adagrad(model, 0.1),
    "Adam": lambda model: optimizers.Adam(model, 0.01),
}


def train(xp, device, dtype, optimizer):
    """Losses, norms and weights of three steps of a small model with every loss and every non-recurrent module."""
    rng = np.random.default_rng(7)
    embedding = rnnkit.Embedding(11, 6, dtype=dtype, device=device, rng=rng)
    linear = rnnkit.Linear(6, 5, dtype=dtype, device=device, rng=rng)
    activations = [Activation(kind) for kind in ("tanh", "relu", "sigmoid")]
    model = [embedding, linear]
    moved = OPTIMIZERS[optimizer](model)
    words, target = xp.asarray(rng.integers(0, 11, (4, 3))), xp.asarray(rng.integers(0, 5, (4, 3)))
    wanted = xp.asarray(rng.random((4, 3, 5)).astype(dtype))
    numbers = []
    for _ in range(3):
        moved.zero_grad()
        h = embedding(words)
        for activation in activations:
            h = activation(h)
        y = linear(h)
        parts = [losses.cross_entropy(y, target), losses.bce_with_logits(y, wanted), losses.mse(y, wanted)]
        dy = linear.backward(parts[0][1] + parts[1][1] + parts[2][1])
        for activation in reversed(activations):
            dy = activation.backward(dy)
        embedding.backward(dy)
        numbers += [float(loss) for loss, _ in parts]
        numbers.append(float(clipping.clip_grad_norm(model, 0.5)))
        clipping.clip_grad_value(model, 0.1)
        moved.step()
    return np.array(numbers), [w for part in model for w in part.state_dict().values()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("float64", 1e-12)])
def test_training_equals_numpy(optimizer, dtype, rtol):
    numbers, weights = train(np, "cpu", dtype, optimizer)
    with fakecupy.installed() as cp:
        got, moved = train(cp, "cuda", dtype, optimizer)
    np.testing.assert_allclose(got, numbers, rtol=rtol)
    for name, (mine, theirs) in enumerate(zip(moved, weights, strict=True)):
        np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=rtol, err_msg=str(name))


def test_a_layer_moves_between_the_host_and_devices():
    layer = rnnkit.Linear(3, 2, rng=0)
    weight = layer.params["weight"].copy()
    with fakecupy.installed(devices=2) as cp:
        for device in ("cuda", "cuda:1", "cpu", "cuda:1", "cuda:0", "cpu"):
            layer.to(device)
            assert layer.device == ("cuda:0" if device == "cuda" else device)
            assert isinstance(layer.params["weight"], np.ndarray if device == "cpu" else cp.ndarray)
            np.testing.assert_array_equal(layer.state_dict()["weight"], weight)
        assert cp.cuda.Device().id == 0
        with pytest.raises(RuntimeError, match=r"2 CUDA device\(s\)"):
            layer.to("cuda:2")


def test_the_memory_of_a_machine_is_freed_at_its_end():
    """Also if a cuBLAS handle is not destroyed, for example of an arena whose thread continues."""
    with fakecupy.installed() as cp:
        machine = weakref.ref(_state.machine())
        handle = cp.cuda.device.get_cublas_handle()
    del cp
    gc.collect()
    assert machine() is None
    with fakecupy.installed():
        _blas.destroy(handle)


def test_backend_choices_are_reset_with_the_machine():
    with fakecupy.installed():
        assert rnnkit.Linear(3, 2, device="cuda").device == "cuda:0"
    with fakecupy.installed(devices=3) as cp, cp.cuda.Device(2):
        assert rnnkit.Linear(3, 2, device="cuda").device == "cuda:2"
    backends.select("cpu", "float32", "lstm")
    with fakecupy.installed():
        assert backends.select.cache_info().currsize == 0
        backends.select("cpu", "float32", "lstm")
        sys.modules["rnnkit.backends.cupy.held"] = sys
    assert backends.select.cache_info().currsize == 0
    assert "rnnkit.backends.cupy.held" not in sys.modules
    y = rnnkit.Linear(3, 2, rng=0)(np.ones((4, 3), np.float32))
    assert type(y) is np.ndarray
