"""Weights: shared, frozen, written to in every way between calls. Each call uses their values."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import rnnkit.torch  # noqa: E402
from tests.torch.pairs import (  # noqa: E402
    CELLS,
    LAYERS,
    an_input,
    close,
    close_gradients,
    gradients,
    pair,
    recurrent,
    total,
    write_in_place,
)

pytestmark = pytest.mark.peers
F64 = torch.float64

EACH_MODULE = pytest.mark.parametrize("kind", [*LAYERS, *CELLS])


def write_through_data(p: Any) -> None:
    p.data.mul_(0.5)


def write_through_numpy(p: Any) -> None:
    p.detach().numpy()[...] *= 0.5


def write_one_number(p: Any) -> None:
    p.detach().numpy()[-1, -1] += 0.5


def write_through_a_view(p: Any) -> None:
    p.detach().t()[0].fill_(0.25)


def replace_data(p: Any) -> None:
    p.data = p.data * 0.5


def transpose_data(p: Any) -> None:
    p.data[:] = p.data * torch.linspace(0.5, 1, p.shape[1], dtype=p.dtype)
    p.data = p.data.flip(1).contiguous().t().contiguous().t()


def expand_data(p: Any) -> None:
    p.data = p.data[:, :1].expand(p.shape)


def set_storage(p: Any) -> None:
    with torch.no_grad():
        p.set_((p.detach() * 0.5).clone())


def step_of_an_optimizer(p: Any) -> None:
    p.grad = torch.ones_like(p)
    torch.optim.SGD([p], 0.1, momentum=0.9).step()
    p.grad = None


WRITES: tuple[Callable[[Any], None], ...] = (
    write_in_place,
    write_through_data,
    write_through_numpy,
    write_one_number,
    write_through_a_view,
    replace_data,
    transpose_data,
    expand_data,
    set_storage,
    step_of_an_optimizer,
)


@pytest.mark.parametrize("write", WRITES, ids=lambda w: w.__name__)
@pytest.mark.parametrize("hidden", [6, 160])  # weights of the second are kept packed between calls
def test_writes_are_seen(write: Callable[[Any], None], hidden: int) -> None:
    for kind in (*LAYERS, *CELLS):
        ours, theirs = pair(kind, 4, hidden)
        name = recurrent(ours)
        x = an_input(ours)
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with mode():
                ours(x), ours(x)
            write(getattr(ours, name))
            write(getattr(theirs, name))
            with mode():
                close(ours(x), theirs(x), name=f"{kind} {mode.__name__}")
                close(ours(x), theirs(x), name=f"{kind} {mode.__name__}, again")


def test_transposed_where_it_is() -> None:
    """`p.data = p.data.t()` changes neither the address nor `_version`."""
    for kind in ("RNN", "RNNCell"):
        ours, theirs = pair(kind, 4, 6)
        x = an_input(ours)
        with torch.no_grad():
            ours(x)
            for module in (ours, theirs):
                p = getattr(module, recurrent(module))
                p.data = p.data.t()
            close(ours(x), theirs(x))
        close_gradients(gradients(ours, x)[1], gradients(theirs, x)[1])


def test_bad_weights_are_refused() -> None:
    """Shapes, dtypes and devices of weights that do not fit: torch.nn's RuntimeError, and nothing is read."""
    x = torch.zeros(5, 3, 4)
    for name, value, said in (
        ("weight_hh_l0", torch.zeros(18, 5), r"weight_hh.*\(18, 6\).*\(18, 5\)"),
        ("weight_ih_l0", torch.zeros(18, 5), r"weight_ih.*4.*5"),
        ("weight_ih_l0", torch.zeros(24, 4), r"weight_hh|weight_ih"),
        ("bias_ih_l0", torch.zeros(6), r"bias_ih.*\(18,\).*\(6,\)"),
        ("bias_hh_l0", torch.zeros(24), r"bias_hh.*\(18,\).*\(24,\)"),
        ("weight_hh_l0", torch.zeros(18, 6).double(), "weight_hh.*float32.*float64"),
        ("weight_hh_l0", torch.zeros(18, 6, device="meta"), "weight_hh.*cpu.*meta"),
    ):
        for library in (torch.nn, rnnkit.torch):
            module = library.GRU(4, 6)
            module(x)
            setattr(module, name, nn.Parameter(value))
            match = said if library is rnnkit.torch else None
            for call in (lambda: module(x), lambda: torch.no_grad()(module)(x)):  # noqa: B023
                with pytest.raises(RuntimeError, match=match):
                    call()


@EACH_MODULE
def test_frozen_weights(kind: str) -> None:
    ours, theirs = pair(kind, 4, 6)
    x = an_input(ours).requires_grad_(True)
    frozen = [name for name, _ in ours.named_parameters() if "weight_hh" not in name]
    for module in (ours, theirs):
        for name in frozen:
            getattr(module, name).requires_grad_(False)
        total(module(x)).backward()
    for name, p in ours.named_parameters():
        other = getattr(theirs, name)
        assert (p.grad is None) == (other.grad is None) == (name in frozen)
        if name not in frozen:
            close(p.grad, other.grad, "backward")
    for module in (ours, theirs):
        module.requires_grad_(False)
    assert not total(ours(x.detach())).requires_grad
    got, want = (torch.autograd.grad(total(module(x)), x) for module in (ours, theirs))
    close(got, want, "backward")


@EACH_MODULE
def test_shared_weights(kind: str) -> None:
    """One Parameter in two modules, and as two weights of one module: its gradient is the sum."""
    results = []
    for library in (rnnkit.torch, nn):
        torch.manual_seed(0)
        first, second = (getattr(library, kind)(6, 6, dtype=F64) for _ in range(2))
        names = [name for name, _ in first.named_parameters()]
        setattr(second, names[1], getattr(first, names[1]))  # weight_hh
        setattr(second, names[0], getattr(second, names[1]))  # and tied: weight_ih is weight_hh
        x = torch.linspace(-1, 1, 5 * 3 * 6, dtype=F64).reshape(5, 3, 6)
        x = x if isinstance(first, nn.RNNBase) else x[0]
        y = first(x)
        total((y, second(y[0] if isinstance(y, tuple) else y))).backward()
        results.append([first, second])
    for ours, theirs in zip(*results, strict=True):
        for name, p in theirs.named_parameters(remove_duplicate=False):
            close(getattr(ours, name).grad, p.grad, "backward", name)


@pytest.mark.parametrize("kind", ["GRU", "LSTMCell"])
def test_threads(kind: str) -> None:
    """One module called from several threads at once, while another thread makes modules of equal sizes."""
    ours, theirs = pair(kind, 4, 16, dtype=torch.float32)
    inputs = [an_input(ours, B) for B in range(1, 5)]
    wanted = [gradients(theirs, x) for x in inputs]
    problems: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for _ in range(5):
                got = gradients(ours, inputs[k])
                close(got[0], wanted[k][0])
                close_gradients(got[1], wanted[k][1])
                with torch.no_grad():
                    close(ours(inputs[k]), wanted[k][0])
                    other = getattr(rnnkit.torch, kind)(4, 16)
                    other(inputs[k])
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_numpy_memory_as_weights() -> None:
    """A weight over memory that NumPy owns, written to by NumPy."""
    memory = np.random.default_rng(0).standard_normal((18, 6))
    ours, theirs = pair("GRU", 4, 6)
    x = an_input(ours)
    for module in (ours, theirs):
        module.weight_hh_l0 = nn.Parameter(torch.from_numpy(memory))
    with torch.no_grad():
        close(ours(x), theirs(x))
        memory[3] = 2.0
        close(ours(x), theirs(x))
