"""LastState and Sequential, and the rules for every module: values, and gradients by finite differences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close
from tests.api.test_bidirectional import merge_by_hand
from tests.api.test_modules import F64, LENGTHS, B, H, I, T, assert_gradients, leaves
from tests.helpers import LAYERS, THE_ORACLE, randn, refused, slow_except

# LastState


@pytest.mark.parametrize("cell", list(LAYERS))
@pytest.mark.parametrize("bidirectional", [False, True])
def test_last_state_is_the_final_state_of_the_last_layer(
    cell: str, bidirectional: bool, cpu_backend: str, rng: np.random.Generator
) -> None:
    layer = LAYERS[cell](I, H, 2, bidirectional=bidirectional, backend=cpu_backend, rng=rng, **F64)
    last = rnnkit.LastState(layer)
    x = randn(rng, T, B, I)
    y, _ = layer(x, lengths=LENGTHS)
    want = np.zeros((B, y.shape[2]))
    for row, length in enumerate(LENGTHS):
        if length:
            want[row, :H], want[row, H:] = y[length - 1, row, :H], y[0, row, H:]
    assert_close("last", last(x, lengths=LENGTHS), want, "float64")
    assert_close("unbatched", last(x[:3, 0]), want[0], "float64")
    assert last.params is layer.params
    assert last.grads is layer.grads
    assert list(last.state_dict()) == list(layer.state_dict())


@THE_ORACLE
@pytest.mark.parametrize(
    "make",
    [
        partial(rnnkit.RNN, num_layers=2),
        partial(rnnkit.GRU, bidirectional=True),
        partial(rnnkit.LSTM, bidirectional=True, proj_size=1, num_layers=2),
        partial(rnnkit.LSTM, batch_first=True),
    ],
    ids=["rnn-2", "gru-both", "lstm-both-2-projected", "lstm-batch-first"],
)
def test_last_state_gradients_by_differences(make: Any, cpu_backend: str, rng: np.random.Generator) -> None:
    last = rnnkit.LastState(make(I, H, backend=cpu_backend, rng=rng, **F64))
    x = randn(rng, *((B, T, I) if last.layer.batch_first else (T, B, I)))
    assert_gradients(last, {"x": x}, lambda: last(x, lengths=LENGTHS), last.backward, rng)
    flat = randn(rng, T, I)
    assert_gradients(last, {"x": flat}, lambda: last(flat), last.backward, rng)


@THE_ORACLE
@pytest.mark.parametrize("merge", slow_except(["concat", "sum", "mul", "ave", None], "mul", None))
def test_last_state_of_a_bidirectional(merge: str | None, cpu_backend: str, rng: np.random.Generator) -> None:
    layers = 2 if merge == "sum" else 1
    both = rnnkit.Bidirectional(rnnkit.LSTM(I, H, layers, backend=cpu_backend, rng=rng, **F64), merge)
    last = rnnkit.LastState(both)
    x = randn(rng, T, B, I)
    _, (h_n, _) = both(x, lengths=LENGTHS)
    assert_close("last", np.array(last(x, lengths=LENGTHS)), merge_by_hand(merge, *h_n[-2:]), "float64")
    assert_gradients(last, {"x": x}, lambda: last(x, lengths=LENGTHS), last.backward, rng)
    last(x)
    assert not last.backward(None).any()


def test_last_state_refuses_bad_input() -> None:
    with refused(TypeError, "layer", "Linear"):
        rnnkit.LastState(rnnkit.Linear(2, 2))
    last = rnnkit.LastState(rnnkit.GRU(I, H, 2, bidirectional=True, backend="numpy"))
    last(np.zeros((T, B, I), np.float32))
    with refused(ValueError, "dout", f"({B}, {2 * H})", f"({B}, {H})"):
        last.backward(np.zeros((B, H), np.float32))
    one_way = rnnkit.LastState(rnnkit.GRU(I, H, backend="numpy"))
    one_way(np.zeros((T, B, I), np.float32))
    with refused(TypeError, "dout", "float64"):
        one_way.backward(np.zeros((B, H)))
    with refused(ValueError, "dout", f"({B}, {H})"):
        one_way.backward(np.zeros((1, B, H), np.float32))


# Sequential


def classifier(backend: str, rng: Any) -> rnnkit.Sequential:
    """Modules of every kind, nested."""
    return rnnkit.Sequential(
        rnnkit.Embedding(6, I, rng=rng, **F64),
        rnnkit.Bidirectional(rnnkit.LSTM(I, H, backend=backend, rng=rng, **F64), "mul"),
        rnnkit.GRU(H, H, bidirectional=True, backend=backend, rng=rng, **F64),
        rnnkit.LastState(rnnkit.RNN(2 * H, H, backend=backend, rng=rng, **F64)),
        rnnkit.Sequential(rnnkit.Linear(H, 3, rng=rng, **F64), rnnkit.Activation("tanh")),
    )


def test_sequential_calls_its_modules_in_order(cpu_backend: str, rng: np.random.Generator) -> None:
    model = classifier(cpu_backend, rng)
    embedding, both, gru, last, head = model
    indices = rng.integers(0, 6, (T, B))
    y, _ = gru(both(embedding(indices), lengths=LENGTHS)[0], lengths=LENGTHS)
    want = np.tanh(head[0](last(y, lengths=LENGTHS)))
    np.testing.assert_array_equal(model(indices, LENGTHS), want)
    assert (model(indices) != want).any()
    assert len(model) == 5
    assert [name for name in model.params if "bias_ih" in name or "." not in name[2:]] == [
        "0.weight",
        "1.forward.bias_ih_l0",
        "1.reverse.bias_ih_l0",
        "2.weight_ih_l0",
        "2.weight_hh_l0",
        "2.bias_ih_l0",
        "2.bias_hh_l0",
        "2.weight_ih_l0_reverse",
        "2.weight_hh_l0_reverse",
        "2.bias_ih_l0_reverse",
        "2.bias_hh_l0_reverse",
        "3.weight_ih_l0",
        "3.weight_hh_l0",
        "3.bias_ih_l0",
        "3.bias_hh_l0",
    ]


@pytest.mark.slow
@THE_ORACLE
def test_sequential_gradients_by_differences(cpu_backend: str, rng: np.random.Generator) -> None:
    model = classifier(cpu_backend, rng)
    indices = rng.integers(0, 6, (T, B))
    assert_gradients(model, {}, lambda: model(indices, LENGTHS), lambda up: model.backward(up) or (), rng)
    tail = rnnkit.Sequential(*list(model)[1:4])
    x = randn(rng, T, B, I)
    assert_gradients(tail, {"x": x}, lambda: tail(x, LENGTHS), tail.backward, rng)


def test_sequential_that_ends_with_a_recurrent_layer_returns_a_sequence(rng: np.random.Generator) -> None:
    for last in (rnnkit.LSTM(2, H, backend="numpy", **F64), rnnkit.Bidirectional(rnnkit.GRU(2, H, **F64), "ave")):
        model = rnnkit.Sequential(rnnkit.Linear(I, 2, **F64), last)
        x = randn(rng, T, B, I)
        assert model(x).shape == (T, B, H)
        assert_gradients(model, {"x": x}, lambda m=model, a=x: m(a), model.backward, rng)
    model = rnnkit.Sequential(rnnkit.Linear(I, 2, **F64), rnnkit.Bidirectional(rnnkit.GRU(2, H, **F64), None))
    assert_gradients(model, {"x": x}, lambda: model(x), model.backward, rng)


def test_containers_round_trip_state_dicts_and_set_modes_of_children(rng: np.random.Generator) -> None:
    model, other = classifier("numpy", 1), classifier("numpy", 2)
    indices = rng.integers(0, 6, (T, B))
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(other(indices, LENGTHS), model(indices, LENGTHS))
    family = [model, *model, model[1].forward_layer, model[1].reverse_layer, model[3].layer, *model[4]]
    for module, mode in ((model.eval(), False), (model.train(), True)):
        assert module is model
        model.train(mode)
        assert [m.training for m in family] == [mode] * len(family)
    model.backward(np.ones((B, 3)))
    model.zero_grad()
    assert not any(grad.any() for grad in model.grads.values())
    assert model.dtype == np.float64
    assert model.device == "cpu"


def test_sequential_refuses_bad_input() -> None:
    linear, gru = rnnkit.Linear(3, 3), rnnkit.GRU(3, 3, backend="numpy")
    with refused(ValueError, "modules", "none"):
        rnnkit.Sequential()
    with refused(TypeError, "modules", "ufunc", "1"):
        rnnkit.Sequential(linear, np.tanh)
    with refused(TypeError, "modules", "GRUCell", "1", "use GRU"):
        rnnkit.Sequential(linear, rnnkit.GRUCell(3, 3, backend="numpy"))
    with refused(ValueError, "differ", "Linear(3, 3", "0 and 2"):
        rnnkit.Sequential(linear, gru, linear)
    with refused(ValueError, "differ", "GRU(3, 3", "0 and 1"):
        rnnkit.Sequential(rnnkit.LastState(gru), gru)
    with refused(ValueError, "dtype", "float32 and float64"):
        rnnkit.Sequential(linear, rnnkit.Linear(3, 3, **F64))
    with refused(ValueError, "merge=None", "last", "0"):
        rnnkit.Sequential(rnnkit.Bidirectional(gru, None), linear)
    pair = rnnkit.Bidirectional(gru, None)
    for giver in (pair, rnnkit.LastState(pair), rnnkit.Sequential(linear, pair)):
        with refused(ValueError, "merge=None", "last", "0", type(giver).__name__):
            rnnkit.Sequential(giver, rnnkit.Linear(3, 3))
        rnnkit.Sequential(rnnkit.Linear(3, 3), rnnkit.Sequential(giver))
    with refused(ValueError, "lengths", "recurrent"):
        rnnkit.Sequential(linear)(np.zeros((2, 3), np.float32), lengths=[1])


class Masked(rnnkit.Module):
    """A user-defined module that takes lengths: it sets the padding to zero."""

    takes_lengths = True

    def __call__(self, x: np.ndarray, lengths: Any = None) -> np.ndarray:
        live = np.arange(len(x))[:, None] < (len(x) if lengths is None else np.asarray(lengths))
        return x * live[..., None]


def test_a_user_module_receives_lengths_if_it_takes_them() -> None:
    model = rnnkit.Sequential(rnnkit.Activation("tanh"), rnnkit.Sequential(Masked()))
    assert model.takes_lengths
    out = model(np.ones((T, B, 2)), LENGTHS)
    want = np.tanh(1) * (np.arange(T)[:, None] < LENGTHS)
    np.testing.assert_array_equal(out, np.stack([want, want], 2))
    assert not rnnkit.Sequential(rnnkit.Activation("tanh")).takes_lengths
    assert not rnnkit.Linear(2, 2).takes_lengths


# Rules for every module


def every_module() -> dict[str, tuple[Any, np.ndarray, Callable[[Any], Any]]]:
    """For each kind: a module, an input, and a function that calls backward with the outputs as gradients."""
    x = np.linspace(-1, 1, T * B * I).reshape(T, B, I)
    both = rnnkit.Bidirectional(rnnkit.LSTM(I, H, backend="numpy", **F64))
    modules = {
        "Embedding": (rnnkit.Embedding(3, 2, **F64), np.array([0, 2, 2])),
        "Linear": (rnnkit.Linear(I, 2, **F64), x),
        "Activation": (rnnkit.Activation("sigmoid"), x),
        "Sequential": (rnnkit.Sequential(rnnkit.GRU(I, H, backend="numpy", **F64), rnnkit.Linear(H, 1, **F64)), x),
        "LastState": (rnnkit.LastState(rnnkit.GRU(I, H, backend="numpy", **F64)), x),
        "Bidirectional": (both, x),
    }
    back = {name: module.backward for name, (module, _) in modules.items()}
    back["Bidirectional"] = lambda out: both.backward(*out)
    return {name: (module, x, back[name]) for name, (module, x) in modules.items()}


@pytest.mark.parametrize("name", list(every_module()))
def test_backward_needs_a_call_that_saved_values(name: str) -> None:
    module, x, back = every_module()[name]
    with refused(RuntimeError, "backward", name, "no_grad"):
        back((None, None))
    out = module(x)
    first = [leaf for leaf in leaves(back(out)) if leaf is not None]
    grads = {n: g.copy() for n, g in module.grads.items()}
    second = [leaf for leaf in leaves(back(out)) if leaf is not None]
    for got, want in zip(second, first, strict=True):
        np.testing.assert_array_equal(got, want)  # backward may be called again
    for n, grad in module.grads.items():
        np.testing.assert_array_equal(grad, 2 * grads[n])
    with rnnkit.no_grad():
        np.testing.assert_array_equal(leaves(module(x))[0], leaves(out)[0])
    with refused(RuntimeError, "backward", name, "no_grad"):
        back(out)


def test_backward_after_a_failed_call_of_sequential_raises() -> None:
    model = rnnkit.Sequential(rnnkit.Linear(3, 4), rnnkit.Linear(3, 2))
    with refused(ValueError, "in_features=3", "(5, 4)"):
        model(np.zeros((5, 3), np.float32))
    with refused(RuntimeError, "backward", "Sequential"):
        model.backward(np.zeros((5, 2), np.float32))
    model = rnnkit.Sequential(rnnkit.Activation("tanh"), rnnkit.Linear(3, 2))
    model(np.zeros((5, 3), np.float32))
    with refused(ValueError, "in_features=3", "(5, 4)"):
        model(np.zeros((5, 4), np.float32))
    with refused(RuntimeError, "backward", "Sequential"):  # its first module still has the call before
        model.backward(np.zeros((5, 2), np.float32))


@pytest.mark.parametrize("name", list(every_module()))
def test_a_copy_has_no_call_to_differentiate(name: str) -> None:
    module, x, back = every_module()[name]
    out = module(x)
    twin = copy.deepcopy(module)
    with refused(RuntimeError, f"call of this {name} first"):
        twin.backward(*out) if name == "Bidirectional" else twin.backward(out)
    back(out)


def test_no_grad_saves_no_array() -> None:
    for name, (module, x, _) in every_module().items():
        module(x)
        with rnnkit.no_grad():
            module(x)
        held = [module, *module.children().values()]
        assert not any(getattr(m, "_saved", None) for m in held), name
