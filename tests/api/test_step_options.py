"""RNNCell, GRUCell and LSTMCell with the options of the layers: the bits of a layer of one step, a layer in a loop."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close
from tests.helpers import assert_same, parts, randn, refused, slow_except

# The Cell is named as the layer.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {"peephole": True, "clip": 0.7, "cell_clip": 0.5}),
    "coupled": (
        "LSTM",
        {"peephole": True, "coupled": True, "bias": False, "activations": ("HardSigmoid", "Softsign", ("Elu", 0.7))},
    ),
    "lstm haste": ("LSTM", {"layer_norm": "haste", "norm_eps": 1e-3}),
    "lstm torch": ("LSTM", {"layer_norm": "torch", "bias": False}),
    "lstm zoneout": ("LSTM", {"zoneout": (0.3, 0.2)}),
    "lstm zoned": ("LSTM", {"zoneout": (0.3, 0.2), "zoneout_output": "zoned"}),
    "lstm clip zoneout": ("LSTM", {"zoneout": 0.3, "clip": 0.7}),
    "gru": ("GRU", {"clip": 0.5, "activations": ("Softplus", ("ScaledTanh", 1.2, 0.7))}),
    "gru haste": ("GRU", {"layer_norm": "haste"}),
    "gru dreamer": ("GRU", {"layer_norm": "dreamer"}),
    "reset before": ("GRU", {"reset_after": False, "clip": 0.5, "activations": ("Sigmoid", ("Affine", 0.6, 0.1))}),
    "reset before zoneout": ("GRU", {"reset_after": False, "zoneout": 0.4}),
    "rnn": ("RNN", {"clip": 0.9, "activations": (("LeakyRelu", 0.1),)}),
    "relu clip": ("RNN", {"nonlinearity": "relu", "clip": 0.9}),
    "rnn zoneout": ("RNN", {"zoneout": 0.5}),
}
ZONEOUT = [name for name, (_, options) in CASES.items() if "zoneout" in options]
NORMALISED = [name for name, (_, options) in CASES.items() if "layer_norm" in options]
I, H, B, T = 4, 6, 3, 5


def pair(name: str, dtype: str, backend: str) -> tuple[Any, Any]:
    """A Cell and a layer with its weights."""
    kind, options = CASES[name]
    cell = getattr(rnnkit, f"{kind}Cell")(I, H, dtype=dtype, backend=backend, rng=1, **options)
    layer = getattr(rnnkit, kind)(I, H, dtype=dtype, backend=backend, rng=2, **options)
    rng = np.random.default_rng(3)
    for p in cell.params.values():  # gains of 1 and biases of 0 would hide some errors
        p += 0.3 * rng.standard_normal(p.shape).astype(p.dtype)
    layer.load_state_dict({f"{n}_l0": p for n, p in cell.params.items()}, cells=layer.cell.name)
    return cell, layer


def states(rng: Any, cell: Any, dtype: str) -> tuple[np.ndarray, ...]:
    return tuple(randn(rng, B, H, dtype=dtype) for _ in cell.cell.states)


def alone(state: tuple[np.ndarray, ...]) -> Any:
    """The state as calls take it."""
    return state if len(state) == 2 else state[0]


def of_layer(state: tuple[np.ndarray, ...]) -> Any:
    return alone(tuple(s[None] for s in state))


def by_cell(cell: Any, x: Any, state: Any, dstate: Any) -> dict[str, np.ndarray]:
    cell.zero_grad()
    new = parts(cell(x, alone(state)))
    dx, dstate0 = cell.backward(alone(dstate))
    found = {"dx": dx} | {f"{n}_n": s for n, s in zip("hc", new, strict=False)}
    found |= {f"d{n}0": s for n, s in zip("hc", parts(dstate0), strict=False)}
    return found | {f"grad {n}_l0": g.copy() for n, g in cell.grads.items()}


def by_layer(layer: Any, x: Any, state: Any, dstate: Any) -> dict[str, np.ndarray]:
    layer.zero_grad()
    _, new = layer(x[None], of_layer(state))
    dx, dstate0 = layer.backward(None, of_layer(dstate))
    found = {"dx": dx[0]} | {f"{n}_n": s[0] for n, s in zip("hc", parts(new), strict=False)}
    found |= {f"d{n}0": s[0] for n, s in zip("hc", parts(dstate0), strict=False)}
    return found | {f"grad {n}": g.copy() for n, g in layer.grads.items()}


QUICK = [("numpy", name) for name in CASES]


@pytest.mark.parametrize(
    ("backend", "name"), slow_except([(b, n) for b in ("numpy", "numba") for n in CASES], *QUICK, unpack=True)
)
def test_the_bits_are_those_of_a_layer_of_one_step(backend: str, name: str) -> None:
    """Forward and backward, every gradient, in both modes: with equal generators zoneout draws the same."""
    cell, layer = pair(name, "float32", backend)
    rng = np.random.default_rng(0)
    for training in (True, False):
        x = randn(rng, B, I, dtype="float32")
        state, dstate = states(rng, cell, "float32"), states(rng, cell, "float32")
        for module in (cell, layer):
            module.train(training)
            module.rng = np.random.default_rng(7)
        got = by_cell(cell, x, state, dstate)
        assert_same(got, by_layer(layer, x, state, dstate))
        assert all(np.isfinite(value).all() for value in got.values())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["lstm", "gru haste", "lstm zoneout"])
def test_the_bits_in_other_dtypes(name: str, dtype: str) -> None:
    pytest.importorskip("ml_dtypes")
    cell, layer = pair(name, dtype, "numba")
    rng = np.random.default_rng(0)
    given = [randn(rng, B, I).astype(cell.dtype)]
    given += [tuple(s.astype(cell.dtype) for s in states(rng, cell, "float64")) for _ in range(2)]
    for module in (cell, layer):
        module.rng = np.random.default_rng(7)
    assert_same(by_cell(cell, *given), by_layer(layer, *given))


@pytest.mark.parametrize(
    ("backend", "dtype"), slow_except([("numpy", "float64"), ("numba", "float32")], ("numpy", "float64"), unpack=True)
)
@pytest.mark.parametrize("name", CASES)
def test_a_loop_is_the_layer(name: str, backend: str, dtype: str) -> None:
    """All h_t, and all gradients through the loop, in evaluation mode: zoneout takes its expected value."""
    cell, _ = pair(name, dtype, backend)
    _, layer = pair(name, "float64", "numpy")
    cell.eval(), layer.eval()
    rng = np.random.default_rng(0)
    x, dy = randn(rng, T, B, I, dtype=dtype), randn(rng, T, B, H, dtype=dtype)
    state, dends = states(rng, cell, dtype), states(rng, cell, dtype)
    y, ends = layer(x.astype(float), of_layer(tuple(s.astype(float) for s in state)))
    want_dx, want_d0 = layer.backward(dy.astype(float), of_layer(tuple(d.astype(float) for d in dends)))
    now, calls = alone(state), []
    for t in range(T):
        now = cell(x[t], now)
        calls.append(cell.last_call)
        assert_close("h", parts(now)[0], y[t], dtype)
    for got, want in zip(parts(now), parts(ends), strict=True):
        assert_close("end", got, want[0], dtype)
    dstate = dends
    dxs = []
    for t in reversed(range(T)):
        dstate = (dstate[0] + dy[t], *dstate[1:])
        dx, back = cell.backward(alone(dstate), call=calls[t])
        dstate = parts(back)
        dxs.append(dx)
    assert_close("dx", np.stack(dxs[::-1]), want_dx, dtype, "backward")
    for got, want in zip(dstate, parts(want_d0), strict=True):
        assert_close("dstate0", got, want[0], dtype, "backward")
    for parameter, grad in cell.grads.items():
        assert_close(parameter, grad, layer.grads[f"{parameter}_l0"], dtype, "backward")


@pytest.mark.parametrize("name", ZONEOUT)
def test_zoneout_keeps_old_values_or_takes_their_share(name: str) -> None:
    cell, _ = pair(name, "float64", "numpy")
    kind, options = CASES[name]
    plain = getattr(rnnkit, f"{kind}Cell")(
        I, H, dtype="float64", backend="numpy", **{k: v for k, v in options.items() if not k.startswith("zoneout")}
    )
    plain.load_state_dict(dict(cell.params), cells=plain.cell.name)
    rng = np.random.default_rng(0)
    x, state = randn(rng, B, I), states(rng, cell, "float64")
    raw = parts(plain(x, alone(state)))
    rates = (cell.regularisation.zoneout_h, cell.regularisation.zoneout_c)
    new = parts(cell.eval()(x, alone(state)))
    zoned = cell.regularisation.zoned_output
    for old, got, want, rate in list(zip(state, new, raw, rates, strict=False))[1 if zoned else 0 :]:
        np.testing.assert_allclose(got, rate * old + (1 - rate) * want, rtol=1e-12)
    if not zoned:
        drawn = [parts(cell.train()(x, alone(state))) for _ in range(30)]
        assert not np.array_equal(drawn[0][0], drawn[1][0])
        kept = np.array([[one == old for one, old in zip(call, state, strict=True)] for call in drawn])
        taken = np.array([[np.isclose(one, want) for one, want in zip(call, raw, strict=True)] for call in drawn])
        assert (kept | taken).all()
        np.testing.assert_allclose(kept.mean((0, 2, 3)), rates[: len(state)], atol=0.12)


def test_each_backward_draws_what_its_call_drew() -> None:
    make: Callable[[], Any] = lambda: rnnkit.LSTMCell(I, H, zoneout=0.5, dtype="float64", backend="numpy", rng=1)  # noqa: E731
    rng = np.random.default_rng(0)
    x, dh = [randn(rng, B, I) for _ in range(2)], randn(rng, B, H)
    one = make()
    expected = []
    for given in x:
        one(given)
        expected.append(one.backward((dh, None))[0])
    other = make()
    calls = []
    for given in x:
        other(given)
        calls.append(other.last_call)
    for k in (1, 0, 1):
        np.testing.assert_array_equal(other.backward((dh, None), call=calls[k])[0], expected[k])


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_the_layers(name: str, tmp_path: Path) -> None:
    cell, layer = pair(name, "float32", "numpy")
    assert {f"{n}_l0": p.shape for n, p in cell.params.items()} == {n: p.shape for n, p in layer.params.items()}
    kind, options = CASES[name]
    twin = getattr(rnnkit, f"{kind}Cell")(I, H, backend="numpy", **options)
    rnnkit.save(cell, tmp_path / "cell.safetensors")
    twin.load_state_dict(rnnkit.load(tmp_path / "cell.safetensors"))
    x = randn(np.random.default_rng(0), B, I, dtype="float32")
    want = parts(cell.eval()(x))
    for other in (twin.eval(), copy.deepcopy(cell), pickle.loads(pickle.dumps(cell)), cell.freeze()):
        for got, value in zip(parts(other(x)), want, strict=True):
            np.testing.assert_array_equal(got, value)
    assert repr(cell) == repr(layer).replace(f"{kind}(", f"{kind}Cell(")
    found = rnnkit.explain(cell, x)
    assert found.layer == repr(cell)
    assert found.kernel == rnnkit.explain(layer.eval(), x[None]).kernel


def test_a_checkpoint_has_the_generator_of_zoneout_alone(tmp_path: Path) -> None:
    x = np.ones((B, I), np.float32)
    cell = rnnkit.GRUCell(I, H, zoneout=0.5, backend="numpy", rng=1)
    rnnkit.save(cell, tmp_path / "cell.safetensors", step=1)
    want = cell(x)
    other = rnnkit.GRUCell(I, H, zoneout=0.5, backend="numpy", rng=2)
    rnnkit.load(tmp_path / "cell.safetensors").restore(other)
    np.testing.assert_array_equal(other(x), want)
    assert not hasattr(rnnkit.GRUCell(I, H, clip=1.0), "rng")


def test_another_backend_and_mode_are_seen_by_the_next_call() -> None:
    cell = rnnkit.GRUCell(I, H, zoneout=0.5, backend="numpy", rng=1)
    x = np.ones((B, I), np.float32)
    first = cell.eval()(x)
    assert not np.array_equal(cell.train()(x), first)
    np.testing.assert_array_equal(cell.eval()(x), first)
    cell.backend = "cupy"
    with pytest.raises((ValueError, RuntimeError), match="backend 'cupy'"):
        cell(x)


@pytest.mark.parametrize(
    ("kind", "options", "error", "said"),
    [
        ("LSTMCell", {"recurrent_dropout": 0.2}, TypeError, "LSTMCell has no recurrent_dropout: its mask is one for"),
        ("GRUCell", {"input_dropout": 0.2}, TypeError, "takes one step. GRU has it"),
        ("RNNCell", {"weight_dropout": 0.2}, TypeError, "RNNCell has no weight_dropout"),
        ("GRUCell", {"mask_per_gate": True}, TypeError, "GRUCell has no mask_per_gate"),
        ("GRUCell", {"peephole": True}, TypeError, "GRUCell() got an unexpected keyword argument 'peephole'"),
        ("RNNCell", {"num_layers": 2}, TypeError, "RNNCell() got an unexpected keyword argument 'num_layers'"),
        ("GRUCell", {"zoneout": (0.1, 0.2)}, ValueError, "zoneout must be one rate for a layer without c"),
        ("GRUCell", {"zoneout": 2}, ValueError, "zoneout must be a number in [0, 1], got 2"),
        ("LSTMCell", {"zoneout_output": "zoned"}, ValueError, "zoneout_output must be 'raw' without zoneout of c"),
        ("LSTMCell", {"zoneout": 0.1, "layer_norm": "haste"}, ValueError, "zoneout must be off with layer_norm"),
        ("LSTMCell", {"peephole": True, "layer_norm": "haste"}, ValueError, "peephole must be off with layer_norm"),
        ("GRUCell", {"layer_norm": "haste", "reset_after": False}, ValueError, "layer_norm must be None with reset"),
        ("LSTMCell", {"norm_eps": 1e-3}, ValueError, "norm_eps must be None without layer_norm"),
        ("LSTMCell", {"clip": 0}, ValueError, "clip must be finite and above 0, got 0"),
        ("LSTMCell", {"activations": ("Tanh",)}, ValueError, "activations must be 3"),
        ("LSTMCell", {"coupled": 1}, TypeError, "coupled must be True or False, got 1"),
        ("LSTMCell", {"strict": 1}, TypeError, "strict must be True or False, got 1"),
        ("LSTMCell", {"strict": True, "backend": "numpy"}, ValueError, "has no compiled kernels, which strict=True"),
    ],
)
def test_bad_arguments(kind: str, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with refused(error, said):
        getattr(rnnkit, kind)(I, H, **options)


def test_compressed_cells_with_options_are_refused() -> None:
    for options in ({"clip": 1.0}, {"zoneout": 0.1}):
        with pytest.raises(ValueError, match="without"):
            rnnkit.compress(rnnkit.LSTMCell(I, H, backend="numpy", **options))
