"""Outputs, states and every gradient of every CPU backend against PyTorch in float64, for random configurations.

Ragged rows are torch's packed sequences, which do not support length 0 (tests/cpu/test_invariances.py tests it). The
weights, inputs, states and output gradients are random, and rows differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rnnkit
from rnnkit.testing import assert_close
from tests.helpers import CPU_BACKENDS, parts, randn, random_state

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


@dataclass(frozen=True)
class Config:
    """One layer and one call of it."""

    kind: str
    T: int
    B: int | None  # None: unbatched
    I: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    bias: bool = True
    nonlinearity: str = "tanh"
    P: int = 0
    dtype: str = "float64"
    lengths: tuple[int, ...] | None = None
    given_state: bool = True
    seed: int = 0

    def kwargs(self) -> dict[str, Any]:
        """Arguments that both libraries have in common."""
        own = {"RNN": {"nonlinearity": self.nonlinearity}, "LSTM": {"proj_size": self.P}, "GRU": {}}[self.kind]
        return {
            "num_layers": self.layers,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "bidirectional": self.bidirectional,
            **own,
        }


@st.composite
def configs(draw: Any) -> Config:
    kind = draw(st.sampled_from(["RNN", "GRU", "LSTM"]))
    T, H = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    B = draw(st.one_of(st.none(), st.integers(1, 9)))
    ragged = B is not None and draw(st.booleans())
    return Config(
        kind,
        T,
        B,
        draw(st.integers(1, 12)),
        H,
        draw(st.integers(1, 3)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from(["tanh", "relu"])),
        draw(st.integers(0, H - 1)) if kind == "LSTM" else 0,
        draw(st.sampled_from(["float32", "float64"])),
        tuple(draw(st.lists(st.integers(1, T), min_size=B, max_size=B))) if ragged else None,
        draw(st.booleans()),
        draw(st.integers(0, 2**16)),
    )


def tensors(state: Any, grad: bool = False) -> Any:
    """A rnnkit state as torch tensors in float64."""
    made = tuple(torch.tensor(s.astype(np.float64), requires_grad=grad) for s in parts(state))
    return made if len(made) > 1 else made[0]


def torch_layer(config: Config, ours: Any, **changed: Any) -> Any:
    theirs = getattr(torch.nn, config.kind)(config.I, config.H, dtype=torch.float64, **(config.kwargs() | changed))
    theirs.load_state_dict({n: torch.tensor(p.astype(np.float64)) for n, p in ours.params.items()})
    return theirs


def torch_run(config: Config, theirs: Any, x: Any, state: Any, dy: Any, dstate: Any) -> dict[str, Any]:
    x64 = torch.tensor(x.astype(np.float64), requires_grad=True)
    state64 = None if state is None else tensors(state, grad=True)
    if config.lengths is None:
        y, state_n = theirs(x64, state64)
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x64, torch.tensor(config.lengths), batch_first=config.batch_first, enforce_sorted=False
        )
        y, state_n = theirs(packed, state64)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=config.batch_first, total_length=config.T)
    loss = (y * torch.tensor(dy.astype(np.float64))).sum()
    for s, d in zip(parts(state_n), parts(tensors(dstate)), strict=True):
        loss = loss + (s * d).sum()
    loss.backward()
    found = {"y": y, "dx": x64.grad} | {f"state_n[{k}]": s for k, s in enumerate(parts(state_n))}
    if state64 is not None:
        found |= {f"dstate0[{k}]": s.grad for k, s in enumerate(parts(state64))}
    found |= {f"grad {n}": p.grad for n, p in theirs.named_parameters()}
    return {name: value.detach().numpy() for name, value in found.items()}


def call(config: Config) -> tuple[Any, ...]:
    """x, state, dy, dstate of a config, in its layout and dtype."""
    rng = np.random.default_rng(config.seed)
    shaped = rnn_layer(config, "numpy")
    batch = () if config.B is None else (config.B,)
    lead = (*batch, config.T) if config.batch_first else (config.T, *batch)
    x = randn(rng, *lead, config.I, dtype=config.dtype)
    dy = randn(rng, *lead, shaped.output_size, dtype=config.dtype)
    state = random_state(shaped, config.B, rng) if config.given_state else None
    return x, state, dy, random_state(shaped, config.B, rng)


def rnn_layer(config: Config, backend: str, **changed: Any) -> Any:
    return getattr(rnnkit, config.kind)(
        config.I,
        config.H,
        dtype=config.dtype,
        backend=backend,
        rng=config.seed,
        **(config.kwargs() | changed),
    )


def compare(config: Config, **changed: Any) -> None:
    x, state, dy, dstate = call(config)
    want = torch_run(config, torch_layer(config, rnn_layer(config, "numpy"), **changed), x, state, dy, dstate)
    for backend in CPU_BACKENDS:
        ours = rnn_layer(config, backend, **changed)
        y, state_n = ours(x, state, None if config.lengths is None else list(config.lengths))
        dx, dstate0 = ours.backward(dy, dstate)
        got = {"y": y, "dx": dx} | {f"state_n[{k}]": s for k, s in enumerate(parts(state_n))}
        if state is not None:
            got |= {f"dstate0[{k}]": s for k, s in enumerate(parts(dstate0))}
        got |= {f"grad {n}": g for n, g in ours.grads.items()}
        assert got.keys() == want.keys()
        for name in want:
            kind = "forward" if name == "y" or name.startswith("state_n") else "backward"
            assert_close(f"{backend} {name}", got[name], want[name], config.dtype, kind)


@settings(max_examples=200)
@given(configs())
@example(Config("LSTM", 6, 4, 3, 5, 2, True, True, True, "tanh", 2, "float32", (2, 6, 1, 3)))
@example(Config("GRU", 6, 4, 3, 5, 2, True, False, True, "tanh", 0, "float32", (2, 6, 1, 3)))
@example(Config("RNN", 6, 4, 3, 5, 2, True, True, False, "relu", 0, "float64", (6, 6, 1, 3)))
@example(Config("LSTM", 1, None, 1, 1))
def test_outputs_states_and_every_gradient(config: Config) -> None:
    compare(config)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_with_probability_0_and_1(kind: str, p: float, batch_first: bool) -> None:
    config = Config(kind, 5, 4, 3, 6, 3, bidirectional=True, batch_first=batch_first, seed=4)
    compare(config, dropout=p)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_both_have_the_same_initial_distribution(kind: str) -> None:
    """Names, shapes and order of the parameters, and the bound of their distribution."""
    config = Config(kind, 1, 1, 7, 25, 2, bidirectional=True, P=3 if kind == "LSTM" else 0)
    torch.manual_seed(1)  # without a seed, one run in sixty has no number near the bound among 25
    theirs = getattr(torch.nn, kind)(config.I, config.H, **config.kwargs())
    ours = rnn_layer(config, "numpy")
    assert {n: tuple(p.shape) for n, p in theirs.named_parameters()} == {n: p.shape for n, p in ours.params.items()}
    for n, p in theirs.named_parameters():
        bound = 25**-0.5
        assert max(p.abs().max().item(), np.abs(ours.params[n]).max()) <= bound, n
        assert min(p.abs().max().item(), np.abs(ours.params[n]).max()) > 0.85 * bound, n


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_torch_state_dict_loads(dtype: str) -> None:
    theirs = torch.nn.LSTM(3, 8, 2, bidirectional=True, proj_size=2, dtype=getattr(torch, dtype))
    ours = rnnkit.LSTM(3, 8, 2, bidirectional=True, proj_size=2, backend="numpy")
    for mapping in (theirs.state_dict(), dict(theirs.named_parameters())):
        ours.load_state_dict({n: t * 1 for n, t in mapping.items()})
        for n, t in mapping.items():
            np.testing.assert_array_equal(ours.params[n], t.detach().float().numpy(), err_msg=n)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_lengths_may_be_a_tensor(kind: str) -> None:
    config = Config(kind, 5, 3, 2, 4)
    x, state, _, _ = call(config)
    layer = rnn_layer(config, "numpy")
    y = layer(x, state, torch.tensor([5, 1, 3]))[0]
    np.testing.assert_array_equal(y, layer(x, state, [5, 1, 3])[0])
