"""Bad arguments of constructors and modes raise one error that names the argument, and change nothing.

Bad input to a call is in test_bad_input.py.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.backends import BACKENDS
from rnnkit.core.devices import cuda_problem
from tests.helpers import LAYERS, layer_after_a_call, refused

NAN = float("nan")
EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)
I, H = 5, 6

WHOLE = "must be a positive whole number, got"
CONSTRUCTOR = [
    *(
        (ValueError, {size: bad}, (size, WHOLE, str(bad)))
        for size in ("input_size", "hidden_size", "num_layers")
        for bad in (0, -2)
    ),
    *(
        (TypeError, {size: bad}, (size, WHOLE, repr(bad)))
        for size in ("input_size", "hidden_size", "num_layers")
        for bad in (2.0, "3", None, True, np.float32(3))
    ),
    *(
        (ValueError, {"dropout": bad}, ("dropout must be a number in [0, 1], got", str(bad)))
        for bad in (-0.1, 1.01, NAN)
    ),
    *(
        (TypeError, {"dropout": bad}, ("dropout must be a number in [0, 1], got", repr(bad)))
        for bad in ("0.5", None, True)
    ),
    *(
        (ValueError, {"device": bad}, ("device must be None, 'cpu', 'cuda'", repr(bad)))
        for bad in ("gpu", "cuda:x", "CPU", 0, np.array(["cpu", "cpu"]))
    ),
    *(
        (ValueError, {"backend": bad}, ("backend must be None or one of", "'numpy'", repr(bad)))
        for bad in ("fast", 3, ["numpy"])
    ),
    *(
        (TypeError, {name: bad}, (f"{name} must be True or False, got {bad!r}",))
        for name in ("bias", "batch_first", "bidirectional")
        for bad in ("tanh", "no", 1, 0, None)
    ),
    *(
        (ValueError, {"dtype": bad}, ("dtype must be one of float64, float32, tf32, float16, bfloat16, got", repr(bad)))
        for bad in ("complex64", "int32", int, None, ">f4", "nonsense")
    ),
    *(
        (TypeError, {"rng": bad}, ("rng must be None, a seed or a numpy.random.Generator, got",))
        for bad in ("seed", 1.5, True)
    ),
    (ValueError, {"rng": -1}, ("rng must be None, a seed of at least 0", "got -1")),
]


@EVERY_LAYER
@pytest.mark.parametrize(("error", "bad", "words"), CONSTRUCTOR, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_constructor(name: str, error: type[Exception], bad: dict[str, Any], words: tuple[str, ...]) -> None:
    generator = np.random.default_rng(1)
    before = generator.bit_generator.state
    given = {"input_size": I, "hidden_size": H, "num_layers": 2, "backend": "numpy", "rng": generator} | bad
    with refused(error, *words):
        LAYERS[name](**given)
    assert generator.bit_generator.state == before


@pytest.mark.parametrize(
    ("error", "bad"), [(ValueError, -1), (ValueError, H), (ValueError, H + 1), (TypeError, 1.0), (TypeError, True)]
)
def test_proj_size(error: type[Exception], bad: Any) -> None:
    message = f"[0, hidden_size={H})" if error is ValueError else "a whole number"
    with refused(error, "proj_size must be", message, f"got {bad!r}"):
        rnnkit.LSTM(I, H, proj_size=bad)


@pytest.mark.parametrize("bad", ["gelu", "Tanh", None, 1, ["tanh"], np.array(["tanh", "relu"])], ids=repr)
def test_nonlinearity(bad: Any) -> None:
    for kind in (rnnkit.RNN, rnnkit.RNNCell):
        with refused(ValueError, "nonlinearity must be one of 'tanh', 'relu'", f"got {bad!r}"):
            kind(I, H, nonlinearity=bad)


@pytest.mark.parametrize("bad", ["before", "no", 1, None, np.array([True, False])], ids=repr)
def test_flags(bad: Any) -> None:
    """Truthy values are rejected: reset_after="before" would select the wrong GRU."""
    message = f"must be True or False, got {bad!r}"
    for kind in (rnnkit.GRU, rnnkit.GRUCell):
        with refused(TypeError, f"reset_after {message}"):
            kind(I, H, reset_after=bad)
    for kind in (rnnkit.Linear, rnnkit.RNNCell, rnnkit.GRUCell, rnnkit.LSTMCell):
        with refused(TypeError, f"bias {message}"):
            kind(I, H, bias=bad)
    layer = layer_after_a_call("gru")
    with refused(TypeError, f"mode {message}", by=layer):
        layer.train(bad)
    with refused(TypeError, f"mode {message}"):
        rnnkit.Sequential(layer).train(bad)
    assert layer.training
    with refused(TypeError, f"strict {message}", by=layer):
        layer.load_state_dict(layer.state_dict(), strict=bad)


def test_numpy_bools_are_accepted_as_flags() -> None:
    layer = rnnkit.GRU(I, H, bias=np.bool_(False), reset_after=np.bool_(False), backend="numpy")
    assert (layer.bias, layer.reset_after, layer.cell.name) == (False, False, "gru_reset_before")


@pytest.mark.skipif(cuda_problem() is None, reason="this machine has a CUDA device")
@EVERY_LAYER
def test_cuda_without_a_card(name: str) -> None:
    with refused(RuntimeError, "device 'cuda' cannot be used", str(cuda_problem())):
        LAYERS[name](I, H, device="cuda")
    for backend in (row.name for row in BACKENDS.values() if row.arrays == "cupy"):
        with refused(RuntimeError, f"backend {backend!r} cannot run here", "CuPy"):
            LAYERS[name](I, H, backend=backend)
    layer = layer_after_a_call(name)
    with refused(RuntimeError, "device 'cuda:1' cannot be used", by=layer):
        layer.to("cuda:1")
    assert layer.device == "cpu"


@pytest.mark.parametrize("failure", ["ImportError('libnvrtc.so.13 is missing')", "RuntimeError('no driver')"])
def test_an_import_error_of_cupy_is_reported(failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cupy.py").write_text(f"raise {failure}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    kind, words = failure.rstrip("')").split("('")
    assert cuda_problem() == f"CuPy is installed and cannot be used ({kind}: {words})"
    with refused(RuntimeError, "device 'cuda' cannot be used", words):
        rnnkit.GRU(I, H, device="cuda")


def test_numpy_scalars_are_accepted_as_sizes_and_fractions() -> None:
    layer = rnnkit.GRU(np.int64(3), np.int32(4), np.uint8(2), dropout=np.float32(0.5), backend="numpy", rng=np.int64(3))
    assert (layer.input_size, layer.hidden_size, layer.num_layers, layer.dropout) == (3, 4, 2, 0.5)


def test_cuda_without_cupy_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "cupy" else find(name, *more))
    message = "CuPy is not installed (pip install 'rnnkit[cuda13]' or 'rnnkit[cuda12]')"
    for named in ("cuda", "cuda:0"):
        with pytest.raises(RuntimeError) as caught:
            rnnkit.Linear(2, 3, device=named)
        assert str(caught.value) == f"device {named!r} cannot be used: {message}"


@pytest.mark.parametrize("size", [2**62, 2**70])
def test_parameters_beyond_memory(size: int) -> None:
    for name in (*LAYERS, "RNNCell", "GRUCell", "LSTMCell"):
        kind = LAYERS.get(name) or getattr(rnnkit, name)
        with refused(ValueError, f"input_size={size}, hidden_size=4 do not fit memory"):
            kind(size, 4, backend="numpy")
    with refused(ValueError, "input_size=1000000000, hidden_size=1000000000 do not fit memory"):
        rnnkit.LSTM(10**9, 10**9, backend="numpy")
    with refused(ValueError, f"in_features={size}, out_features=4 do not fit memory"):
        rnnkit.Linear(size, 4)
    with refused(ValueError, f"num_embeddings={size}, embedding_dim=4 do not fit memory"):
        rnnkit.Embedding(size, 4)


def test_a_dtype_numpy_cannot_parse() -> None:
    for bad in (",", "f4,", "(2,)"):
        with refused(ValueError, "dtype must be one of float64, float32, tf32, float16, bfloat16, got", repr(bad)):
            rnnkit.GRU(I, H, dtype=bad)


def test_timedeltas_are_rejected_as_numbers() -> None:
    three = np.timedelta64(3)
    with refused(TypeError, "rng must be None, a seed", "timedelta64"):
        rnnkit.GRU(I, H, rng=three)
    with refused(TypeError, "hidden_size", WHOLE):
        rnnkit.GRU(I, three)
    with refused(TypeError, "dropout must be a number"):
        rnnkit.GRU(I, H, 2, dropout=np.timedelta64(1))
    with refused(TypeError, "lr must be a number"):
        rnnkit.SGD(rnnkit.Linear(2, 3), three)
    with refused(TypeError, "lengths must be whole numbers, got dtype timedelta64"):
        rnnkit.GRU(2, 3, backend="numpy")(np.zeros((4, 2, 2), "float32"), lengths=np.array([1, 2], "timedelta64[s]"))


def test_lengths_beyond_int64_are_rejected() -> None:
    for wrong in ([2**63, 1], [2**63, np.int64(1)], (1, 2**64)):
        with refused(ValueError, "lengths must be between 0 and T = 4, got", str(max(wrong))):
            rnnkit.GRU(2, 3, backend="numpy")(np.zeros((4, 2, 2), "float32"), lengths=wrong)
    with refused(TypeError, "lengths must be whole numbers, got dtype float64"):
        rnnkit.GRU(2, 3, backend="numpy")(np.zeros((4, 2, 2), "float32"), lengths=[1.0, 2])
