"""PyTorch's state dicts load into rnnkit and rnnkit's into PyTorch, with any kind of tensor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close
from tests.helpers import parts, randn, random_state

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn relu": ("RNN", {"nonlinearity": "relu"}),
    "rnn, no bias": ("RNN", {"bias": False}),
    "gru, two layers, bidirectional": ("GRU", {"num_layers": 2, "bidirectional": True}),
    "lstm, two layers, bidirectional": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "lstm projected": ("LSTM", {"proj_size": 2}),
    "lstm projected, two layers, bidirectional": ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
}


def pair(kind: str, arguments: dict[str, Any], dtype: str = "float64") -> tuple[Any, Any]:
    """A torch layer with random parameters, and a rnnkit layer with other ones."""
    torch.manual_seed(3)
    theirs = getattr(torch.nn, kind)(3, 5, **arguments).to(getattr(torch, dtype))
    ours = getattr(rnnkit, kind)(3, 5, **arguments, dtype=dtype, backend="numpy", rng=0)
    return theirs, ours


def both(theirs: Any, ours: Any, rng: np.random.Generator) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """y and the final states of both layers for one input and state."""
    x, state = randn(rng, 6, 4, 3, dtype=ours.dtype), random_state(ours, 4, rng)
    given = tuple(map(torch.from_numpy, parts(state)))
    with torch.no_grad():
        y, end = theirs(torch.from_numpy(x), given if len(given) == 2 else given[0])
    want = (y.numpy(), *(s.numpy() for s in parts(end)))
    y, end = ours(x, state)
    return (y, *parts(end)), want


@pytest.mark.parametrize("config", CONFIGS)
def test_a_torch_state_dict_loads(config: str, rng: np.random.Generator) -> None:
    kind, arguments = CONFIGS[config]
    theirs, ours = pair(kind, arguments)
    state = theirs.state_dict()
    assert list(state) == list(ours.params)
    ours.load_state_dict(state)
    for got, want in zip(*both(theirs, ours, rng), strict=True):
        assert_close(config, got, want, "float64")


@pytest.mark.parametrize("config", CONFIGS)
def test_our_state_dict_loads_into_torch(config: str, rng: np.random.Generator) -> None:
    theirs, ours = pair(*CONFIGS[config])
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    for got, want in zip(*both(theirs, ours, rng), strict=True):
        assert_close(config, got, want, "float64")


def test_parameters_that_require_a_gradient_load() -> None:
    theirs, ours = pair("LSTM", {"proj_size": 2}, "float32")
    named = dict(theirs.named_parameters())
    assert all(value.requires_grad for value in named.values())
    ours.load_state_dict(named)
    for name, value in named.items():
        assert np.array_equal(ours.params[name], value.detach().numpy()), name
    with torch.no_grad():
        next(iter(named.values())).zero_()
    assert ours.params["weight_ih_l0"].all(), "the layer copies tensors and does not share their memory"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_tensors_of_other_dtypes_load_exactly_if_float32_represents_them(dtype: str) -> None:
    theirs, ours = pair("GRU", {"num_layers": 2}, "float32")
    state = {name: value.to(getattr(torch, dtype)) for name, value in theirs.state_dict().items()}
    ours.load_state_dict(state)
    for name, value in state.items():
        assert np.array_equal(ours.params[name], value.float().numpy()), name


def test_views_and_transposes_load() -> None:
    theirs, ours = pair("RNN", {}, "float32")
    state = {
        k: (v.T.contiguous().T if v.ndim == 2 else v.repeat_interleave(2)[::2]) for k, v in theirs.state_dict().items()
    }
    assert not state["weight_ih_l0"].is_contiguous()
    ours.load_state_dict(state)
    for name, value in theirs.state_dict().items():
        assert np.array_equal(ours.params[name], value.numpy()), name


def test_a_torch_state_dict_that_does_not_fit_changes_nothing() -> None:
    theirs, ours = pair("LSTM", {"num_layers": 2})
    small = rnnkit.LSTM(3, 5, dtype="float64", backend="numpy", rng=0)
    before = small.state_dict()
    with pytest.raises(KeyError, match=r"extra .*weight_ih_l1"):
        small.load_state_dict(theirs.state_dict())
    complex_valued = {name: value.to(torch.complex64) for name, value in theirs.state_dict().items()}
    with pytest.raises(TypeError, match="must hold real numbers, got dtype complex64"):
        ours.load_state_dict(complex_valued)
    with pytest.raises(KeyError, match=r"missing \['weight_ih_l0'"):
        small.load_state_dict(torch.nn.Linear(3, 5).state_dict())
    assert all(np.array_equal(small.params[name], value) for name, value in before.items())
    small.load_state_dict(theirs.state_dict(), strict=False)
    assert np.array_equal(small.params["weight_hh_l0"], theirs.weight_hh_l0.detach().numpy())


def test_torch_tensors_are_saved_and_torch_reads_the_file(tmp_path: Path) -> None:
    safetensors_torch = pytest.importorskip("safetensors.torch")
    theirs, ours = pair("LSTM", {"num_layers": 2, "bidirectional": True}, "float32")
    rnnkit.save(theirs.state_dict(), tmp_path / "m")
    again = safetensors_torch.load_file(tmp_path / "m")
    assert all(torch.equal(again[name], value) for name, value in theirs.state_dict().items())
    short = {name: value.bfloat16() for name, value in theirs.state_dict().items()}
    safetensors_torch.save_file(short, tmp_path / "short")
    pytest.importorskip("ml_dtypes")
    ours.load_state_dict(rnnkit.load(tmp_path / "short"))
    assert all(np.array_equal(ours.params[name], value.float().numpy()) for name, value in short.items())


def test_cells_that_torch_does_not_have_load_only_by_name() -> None:
    theirs, ours = torch.nn.GRU(3, 5), rnnkit.GRU(3, 5, reset_after=False, backend="numpy", rng=0)
    before = ours.state_dict()
    for mapping in (theirs.state_dict(), dict(theirs.state_dict()), dict(theirs.named_parameters())):
        with pytest.raises(ValueError, match="cells='gru_reset_before'") as caught:
            ours.load_state_dict(mapping)
        assert ("no such cell" in str(caught.value)) == hasattr(mapping, "_metadata")
    for name, value in before.items():
        np.testing.assert_array_equal(ours.params[name], value)
    ours.load_state_dict(theirs.state_dict(), cells="gru_reset_before")
    np.testing.assert_array_equal(ours.params["weight_ih_l0"], theirs.weight_ih_l0.detach().numpy())
    plain = rnnkit.GRU(3, 5, backend="numpy")
    with pytest.raises(ValueError, match="those of a gru_reset_before cell, and it is a gru"):
        plain.load_state_dict(torch.nn.GRU(3, 5).state_dict(), cells="gru_reset_before")
