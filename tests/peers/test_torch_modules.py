"""Embedding, Linear, LastState, losses, optimizers and clipping against PyTorch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close
from tests.helpers import randn

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

DTYPES = ["float32", "float64"]


def tensor(a: np.ndarray, grad: bool = False) -> Any:
    return torch.tensor(a).requires_grad_(grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (5, 6), (2, 3, 4)], ids=str)
def test_embedding(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    ours = rnnkit.Embedding(5, 3, dtype=dtype, rng=rng)
    theirs = torch.nn.Embedding(5, 3, dtype=getattr(torch, dtype))
    ours.load_state_dict(theirs.state_dict())
    indices, dy = rng.integers(0, 4, shape), randn(rng, *shape, 3, dtype=dtype)  # rows repeat; row 4 has none
    want = theirs(tensor(indices))
    want.backward(tensor(dy))
    assert_close("y", ours(indices), want, dtype)
    ours.backward(dy)
    assert_close("dweight", ours.grads["weight"], theirs.weight.grad, dtype, "backward")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (4,), (5, 6)], ids=str)
def test_linear(dtype: str, bias: bool, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    ours = rnnkit.Linear(7, 3, bias, dtype=dtype, rng=rng)
    theirs = torch.nn.Linear(7, 3, bias, dtype=getattr(torch, dtype))
    ours.load_state_dict(theirs.state_dict())
    x, dy = randn(rng, *shape, 7, dtype=dtype), randn(rng, *shape, 3, dtype=dtype)
    tx = tensor(x, grad=True)
    want = theirs(tx)
    want.backward(tensor(dy))
    assert_close("y", ours(x), want, dtype)
    assert_close("dx", ours.backward(dy), tx.grad, dtype, "backward")
    for name, p in theirs.named_parameters():
        assert_close(name, ours.grads[name], p.grad, dtype, "backward")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "relu"])
def test_activation(dtype: str, kind: str, rng: np.random.Generator) -> None:
    x, dy = 4 * randn(rng, 5, 6, dtype=dtype), randn(rng, 5, 6, dtype=dtype)
    x[0, :4] = [0, np.nan, 200, -200]
    tx = tensor(x, grad=True)
    want = getattr(torch, kind)(tx)
    want.backward(tensor(dy))
    activation = rnnkit.Activation(kind)
    assert_close("y", activation(x), want, dtype)
    assert_close("dx", activation.backward(dy), tx.grad, dtype, "backward")


@pytest.mark.parametrize("bidirectional", [False, True])
def test_last_state(bidirectional: bool, cpu_backend: str, rng: np.random.Generator) -> None:
    last = rnnkit.LastState(
        rnnkit.LSTM(3, 4, 2, bidirectional=bidirectional, dtype="float64", backend=cpu_backend, rng=rng)
    )
    theirs = torch.nn.LSTM(3, 4, 2, bidirectional=bidirectional, dtype=torch.float64)
    last.load_state_dict(theirs.state_dict())
    D = 1 + bidirectional
    x, lengths, dout = randn(rng, 5, 6, 3), [3, 5, 1, 2, 5, 4], randn(rng, 6, 4 * D)
    tx = tensor(x, grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(tx, lengths, enforce_sorted=False)
    _, (h_n, _) = theirs(packed)
    want = torch.cat(list(h_n[-D:]), dim=1)
    want.backward(tensor(dout))
    assert_close("last", last(x, lengths=lengths), want, "float64")
    assert_close("dx", last.backward(dout), tx.grad, "float64", "backward")
    for name, p in theirs.named_parameters():
        assert_close(name, last.grads[name], p.grad, "float64", "backward")


def losses(pred: np.ndarray, target: np.ndarray, ours: Any, theirs: Any, reduction: str, dtype: str) -> None:
    tp = tensor(pred, grad=True)
    want = theirs(tp, tensor(target), reduction=reduction)
    want.backward()
    loss, dpred = ours(pred, target, reduction)
    assert_close("loss", np.array(loss), want, dtype)
    assert_close("dpred", dpred, tp.grad, dtype, "backward")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mse(dtype: str, reduction: str, rng: np.random.Generator) -> None:
    pred, target = randn(rng, 4, 5, 3, dtype=dtype), randn(rng, 4, 5, 3, dtype=dtype)
    losses(pred, target, rnnkit.mse, torch.nn.functional.mse_loss, reduction, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_bce_with_logits(dtype: str, reduction: str, scale: float, rng: np.random.Generator) -> None:
    logits = (scale * rng.standard_normal((4, 5))).astype(dtype)
    target = rng.random((4, 5)).astype(dtype)
    target[0], target[1] = 0, 1
    theirs = torch.nn.functional.binary_cross_entropy_with_logits
    losses(logits, target, rnnkit.bce_with_logits, theirs, reduction, dtype)


def test_bce_with_infinite_logits() -> None:
    for x, t in ((x, t) for x in (math.inf, -math.inf, math.nan) for t in (0.0, 0.5, 1.0)):
        logits = torch.tensor([x], dtype=torch.float64, requires_grad=True)
        want = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([t], dtype=torch.float64))
        want.backward()
        loss, d = rnnkit.bce_with_logits(np.array([x]), np.array([t]))
        np.testing.assert_array_equal([loss, d[0]], [want.item(), logits.grad.item()], err_msg=f"{x}, {t}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_cross_entropy(dtype: str, reduction: str, scale: float, rng: np.random.Generator) -> None:
    logits = (scale * rng.standard_normal((4, 5, 7))).astype(dtype)
    target = rng.integers(0, 7, (4, 5))
    logits[0, :, 3], target[0] = -np.inf, 2  # a class of probability 0

    def theirs(pred: Any, wanted: Any, reduction: str) -> Any:
        return torch.nn.functional.cross_entropy(pred.reshape(-1, 7), wanted.reshape(-1), reduction=reduction)

    losses(logits, target, rnnkit.cross_entropy, theirs, reduction, dtype)


OPTIMIZERS = {
    "sgd": (lambda m: rnnkit.SGD(m, 0.05), lambda p: torch.optim.SGD(p, 0.05)),
    "momentum": (lambda m: rnnkit.SGD(m, 0.02, 0.9), lambda p: torch.optim.SGD(p, 0.02, 0.9)),
    "adagrad": (lambda m: rnnkit.Adagrad(m), lambda p: torch.optim.Adagrad(p)),
    "adagrad eps": (lambda m: rnnkit.Adagrad(m, 0.1, eps=0.5), lambda p: torch.optim.Adagrad(p, 0.1, eps=0.5)),
    "adam": (lambda m: rnnkit.Adam(m), lambda p: torch.optim.Adam(p)),
    "adam betas": (
        lambda m: rnnkit.Adam(m, 0.02, (0.5, 0.7), 1e-2),
        lambda p: torch.optim.Adam(p, 0.02, (0.5, 0.7), 1e-2),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_optimizer_over_twenty_steps(name: str, dtype: str, rng: np.random.Generator) -> None:
    model = rnnkit.Sequential(rnnkit.Embedding(6, 4, dtype=dtype, rng=rng), rnnkit.Linear(4, 3, dtype=dtype, rng=rng))
    theirs = {key: torch.nn.Parameter(tensor(value)) for key, value in model.state_dict().items()}
    ours_make, theirs_make = OPTIMIZERS[name]
    ours, torchs = ours_make(model), theirs_make(list(theirs.values()))
    for step in range(20):
        for key, grad in model.grads.items():
            # Rows without a gradient, and gradients of very different sizes.
            grad[...] = randn(rng, *grad.shape, dtype=dtype) * (10.0 ** rng.integers(-3, 2))
            grad[step % 2] = 0
            theirs[key].grad = tensor(grad)
        ours.step()
        torchs.step()
    for key, p in model.params.items():
        assert_close(key, p, theirs[key], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_norm", [0.5, 3.0, 1e3, math.inf])
def test_clip_grad_norm(dtype: str, max_norm: float, rng: np.random.Generator) -> None:
    model = rnnkit.Linear(4, 3, dtype=dtype)
    theirs = []
    for grad in model.grads.values():
        grad[...] = randn(rng, *grad.shape, dtype=dtype)
        theirs.append(torch.zeros(grad.shape, dtype=getattr(torch, dtype)))
        theirs[-1].grad = tensor(grad)
    want = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert_close("norm", np.array(rnnkit.clip_grad_norm(model, max_norm)), want, dtype)
    for grad, p in zip(model.grads.values(), theirs, strict=True):
        assert_close("grad", grad, p.grad, dtype, "backward")


def test_clip_grad_value(rng: np.random.Generator) -> None:
    model = rnnkit.Linear(4, 3)
    model.grads["weight"][...] = randn(rng, 3, 4, dtype="float32")
    p = torch.zeros(3, 4)
    p.grad = tensor(model.grads["weight"])
    torch.nn.utils.clip_grad_value_([p], 0.5)
    rnnkit.clip_grad_value(model, 0.5)
    np.testing.assert_array_equal(model.grads["weight"], p.grad.numpy())


def test_a_model_trains_as_in_torch(cpu_backend: str, rng: np.random.Generator) -> None:
    """Embedding, bidirectional GRU, Linear, cross-entropy, clipping and Adam: losses and parameters of twenty steps."""
    model = rnnkit.Sequential(
        rnnkit.Embedding(9, 4, dtype="float64", rng=rng),
        rnnkit.GRU(4, 5, bidirectional=True, dtype="float64", backend=cpu_backend, rng=rng),
        rnnkit.Linear(10, 9, dtype="float64", rng=rng),
    )
    double = {"dtype": torch.float64}
    embedding, gru, linear = (
        torch.nn.Embedding(9, 4, **double),
        torch.nn.GRU(4, 5, bidirectional=True, **double),
        torch.nn.Linear(10, 9, **double),
    )
    theirs = torch.nn.ModuleList([embedding, gru, linear])
    model.load_state_dict(theirs.state_dict())
    ours, torchs = rnnkit.Adam(model, 0.05), torch.optim.Adam(theirs.parameters(), 0.05)
    loss_fn, losses = rnnkit.CrossEntropyLoss(), []
    for _ in range(20):
        text = rng.integers(0, 9, (7, 6))
        ours.zero_grad()
        losses.append(loss_fn(model(text), (text + 1) % 9))
        model.backward(loss_fn.backward())
        norm = rnnkit.clip_grad_norm(model, 0.5)
        ours.step()
        torchs.zero_grad()
        logits = linear(gru(embedding(tensor(text)))[0])
        want = torch.nn.functional.cross_entropy(logits.reshape(-1, 9), tensor((text + 1) % 9).reshape(-1))
        want.backward()
        want_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        torchs.step()
        assert_close("loss", np.array(losses[-1]), want, "float64")
        assert_close("norm", np.array(norm), want_norm, "float64")
    assert losses[-1] < losses[0] / 2
    for name, p in theirs.state_dict().items():
        assert_close(name, model.params[name], p, "float64")
