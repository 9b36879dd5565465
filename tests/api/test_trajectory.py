"""rnnkit.trajectory against single steps of the oracle's equations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core import noise_steps
from rnnkit.core.dtypes import DTYPES
from rnnkit.core.noise_steps import StepNoise
from rnnkit.core.option_steps import gates_at_limits
from rnnkit.testing import assert_close
from tests.api.resets import inputs
from tests.helpers import LAYERS, ONE_BACKEND, parts, randn, random_state, slow_except

KINDS: list[tuple[Any, dict[str, Any]]] = [
    (rnnkit.LSTM, {}),
    (rnnkit.LSTM, {"proj_size": 4}),
    (rnnkit.GRU, {}),
    (rnnkit.RNN, {}),
    pytest.param(rnnkit.SLSTM, {}, marks=pytest.mark.slow),  # its CPU kernels take seconds to compile
]
T, B, I, H = 6, 4, 3, 5


@ONE_BACKEND
@pytest.mark.parametrize("of_layer", [0, -1])
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
def test_states_and_gates_are_those_of_single_steps(
    kind: Any, options: dict[str, Any], of_layer: int, cpu_backend: str
) -> None:
    layer = kind(I, H, 2, bidirectional=True, dtype="float32", backend=cpu_backend, rng=0, **options)
    rng = np.random.default_rng(1)
    x, state = randn(rng, T, B, I, dtype="float32"), random_state(layer, B, rng)
    state = tuple(s.astype(np.float32) for s in parts(state))
    lengths = [4, 0, 6, 1]
    got = rnnkit.trajectory(layer, x, state if len(state) > 1 else state[0], lengths, of_layer=of_layer)
    assert list(got) == list(dict.fromkeys((*layer.cell.states, *layer.cell.gates)))
    if of_layer == -1:
        y, _ = layer(x, state if len(state) > 1 else state[0], lengths)
        np.testing.assert_array_equal(got["h"], y)
        x = rnnkit.trajectory(layer, x, state if len(state) > 1 else state[0], lengths, of_layer=0)["h"]
    k = of_layer % 2
    for d in range(2):
        suffix = f"_l{k}" + ("_reverse" if d else "")
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        weights = rnnkit.core.cells.Weights(
            *[
                None if name + suffix not in layer.params else layer.params[name + suffix].astype(np.float64)
                for name in names
            ]
        )
        for b, length in enumerate(lengths):
            now = tuple(s[2 * k + d, b : b + 1].astype(np.float64) for s in state)
            for t in range(T):
                t = length - 1 - t if d else t
                if not 0 <= t < length:
                    continue
                x_side = x[t, b : b + 1] @ weights.w_ih.T + weights.b_ih
                now, kept = layer.cell.forward(x_side, now, weights)
                want = dict(zip(layer.cell.states, now, strict=True)) | {
                    g: kept[g] for g in layer.cell.gates if g != "h"
                }
                for name, value in want.items():
                    width = value.shape[1]
                    assert_close(name, got[name][t, b, d * width : (d + 1) * width], value[0], "float32")
    for name, value in got.items():
        assert not value[4:, 0].any(), name
        assert not value[:, 1].any(), name


@pytest.mark.parametrize(
    ("backend", "dtype"),
    slow_except([(b, d) for b in ("numpy", "numba") for d in DTYPES], ("numpy", "float16"), unpack=True),
)
def test_gates_of_the_slstm_follow_from_what_is_saved(backend: str, dtype: str) -> None:
    """In first steps, which rows reach at different times, and later; zero past a row's end."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    layer = rnnkit.SLSTM(I, H, dtype=dtype, backend=backend, rng=0)
    want = rnnkit.SLSTM(I, H, dtype="float64", backend="numpy")
    want.load_state_dict({name: p.astype(np.float64) for name, p in layer.params.items()}, cells="slstm")
    x = (3 * randn(np.random.default_rng(1), T, B, I)).astype(layer.dtype)
    lengths = [4, 0, 6, 1]
    got = rnnkit.trajectory(layer, x, lengths=lengths)
    assert list(got) == ["h", "c", "n", "m", "i", "f", "z", "o"]
    for name, value in rnnkit.trajectory(want, x.astype(np.float64), lengths=lengths).items():
        assert value[0, 0].any() or name == "f"
        assert not value[4:, 0].any()
        assert_close(name, got[name], value, dtype, "backward")
    ones = [np.isin(got[name].astype(np.float64)[:4, 2], 1) for name in ("i", "f")]
    assert (ones[0] | ones[1]).all()
    assert not all(one.all() for one in ones)


def test_a_cell_whose_gates_are_not_saved_is_refused() -> None:
    layer = rnnkit.SLSTM(I, H, backend="numpy", rng=0)
    layer.cell = replace(layer.cell, gates_from=None)
    with pytest.raises(ValueError, match="trajectory does not serve the cell slstm, whose gates are not saved"):
        rnnkit.trajectory(layer, np.ones((T, B, I), np.float32))


def test_layouts_and_bad_arguments() -> None:
    layer = rnnkit.GRU(I, H, batch_first=True, backend="numpy", rng=0)
    x = np.ones((B, T, I), np.float32)
    assert rnnkit.trajectory(layer, x)["z"].shape == (B, T, H)
    assert rnnkit.trajectory(layer, x[0])["z"].shape == (T, H)
    with pytest.raises(ValueError, match=r"of_layer must be in \[-1, 1\), got 1"):
        rnnkit.trajectory(layer, x, of_layer=1)
    with pytest.raises(TypeError, match="layer must be an RNN, GRU, LSTM or SLSTM, got Linear"):
        rnnkit.trajectory(rnnkit.Linear(2, 3), x)  # type: ignore[arg-type]


OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "peephole": (rnnkit.LSTM, {"peephole": True, "cell_clip": 0.4, "activations": ("HardSigmoid", "Tanh", "Softsign")}),
    "coupled": (rnnkit.LSTM, {"coupled": True, "proj_size": 3}),
    "gru": (rnnkit.GRU, {"activations": ("HardSigmoid", ("Elu", 0.5))}),
    "reset before": (rnnkit.GRU, {"reset_after": False}),
    "rnn": (rnnkit.RNN, {"activations": ("Softsign",)}),
    "lstm clip": (rnnkit.LSTM, {"clip": 0.1, "cell_clip": 0.05, "peephole": True, "proj_size": 3}),
    "lstm coupled clip": (
        rnnkit.LSTM,
        {"clip": 0.1, "coupled": True, "activations": ("HardSigmoid", "Softsign", "Tanh")},
    ),
    "gru clip": (rnnkit.GRU, {"clip": 0.1, "activations": ("Sigmoid", ("LeakyRelu", 0.3))}),
    "reset before clip zoneout": (rnnkit.GRU, {"clip": 0.1, "reset_after": False, "zoneout": 0.5}),
    "rnn clip": (rnnkit.RNN, {"clip": 0.1}),
    **{f"lstm {kind}": (rnnkit.LSTM, {"layer_norm": kind}) for kind in ("haste", "torch")},
    **{f"gru {kind}": (rnnkit.GRU, {"layer_norm": kind}) for kind in ("haste", "dreamer")},
    "lstm zoneout": (rnnkit.LSTM, {"zoneout": (0.3, 0.2), "recurrent_dropout": 0.4, "input_dropout": 0.3}),
    "lstm zoned": (rnnkit.LSTM, {"zoneout": (0.3, 0.2), "zoneout_output": "zoned", "weight_dropout": 0.3}),
    "rnn zoneout": (rnnkit.RNN, {"zoneout": 0.5}),
    "reset before zoneout": (rnnkit.GRU, {"reset_after": False, "zoneout": 0.5}),
}


@pytest.mark.parametrize(
    ("backend", "name"),
    slow_except(
        [(b, n) for b in ("numpy", "numba") for n in OPTIONS],
        *[("numpy", name) for name in OPTIONS],
        ("numba", "reset before"),
        unpack=True,
    ),
)
def test_options_normalisation_and_zoneout(backend: str, name: str) -> None:
    """Each step is that of the oracle from the states before it, in evaluation mode, whatever the layer's mode is."""
    kind, options = OPTIONS[name]
    layer = kind(I, H, dtype="float64", backend=backend, rng=0, **options)
    rng = np.random.default_rng(1)
    x = randn(rng, T, B, I)
    before = tuple(s[0] for s in parts(random_state(layer, B, rng)))
    given = tuple(s[None] for s in before)
    got = rnnkit.trajectory(layer, x, given if len(given) > 1 else given[0])
    rates = layer.regularisation
    weights = layer._caches()[0][0].weights
    step = layer.cell.steps(layer._constants).forward
    beyond = 0
    for t in range(T):
        x_side = x[t] @ weights.w_ih.T + (0 if layer.cell.normalises else weights.b_ih)
        if rates is None:
            new, kept = step(x_side, before, weights)
        else:
            shares = [np.full_like(s, rate) if rate else None for s, rate in zip(before, rates[3:5], strict=False)]
            noise = StepNoise(None, shares[0], shares[1] if len(shares) > 1 else None, rates.zoned_output, H)
            new, kept = noise_steps.forward(step, noise, x_side, before, weights)
        for state, want in zip(layer.cell.states, new, strict=True):
            assert_close(state, got[state][t], want, "float64")
        for gate in set(layer.cell.gates) - {"h"}:
            assert_close(gate, got[gate][t], kept[gate], "float64")
            beyond += int((np.abs(kept.get(f"a_{gate}", 0)) > options.get("clip", np.inf)).sum())
        before = tuple(got[state][t] for state in layer.cell.states)
    assert beyond > 5 or "clip" not in options or kind is rnnkit.RNN
    np.testing.assert_array_equal(got["h"], layer.eval()(x, given if len(given) > 1 else given[0])[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_gates_at_both_limits_in_every_dtype(dtype: str) -> None:
    """The clip is passed in either direction, and the values there differ; padding stays zero."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    cell = rnnkit.GRU(I, H, clip=0.5, activations=("Sigmoid", ("ScaledTanh", 3.0, 0.5)), rng=0)
    saved = np.array([[np.inf, -np.inf, 0.25, 0.0]], np.float32).astype(rnnkit.core.dtypes.DTYPES[dtype].storage)
    found = gates_at_limits(cell.cell, cell._constants, {"r": saved, "n": saved})
    ends = {"r": 1 / (1 + np.exp(-0.5)), "n": 3 * np.tanh(0.25)}
    least = {"r": 1 / (1 + np.exp(0.5)), "n": -3 * np.tanh(0.25)}
    for name, value in found.items():
        assert value.dtype == saved.dtype
        want = np.array([[ends[name], least[name], 0.25, 0.0]])
        assert_close(name, value, want, dtype)
    plain = rnnkit.GRU(I, H, rng=0)
    infinite = gates_at_limits(plain.cell, plain._constants, {"r": saved})["r"]
    assert infinite is saved


@pytest.mark.parametrize("kinds", ["resets", "mask", "resets given mask lengths"])
@pytest.mark.parametrize("name", ["lstm", "gru", "slstm"])
@pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=pytest.mark.slow)])
def test_resets_and_masks(backend: str, name: str, kinds: str, rng: np.random.Generator) -> None:
    """Each step is that of the oracle from the state before it: the carried one, or the reset state."""
    layer = LAYERS[name](I, H, 2, bidirectional=True, dtype="float32", backend=backend, rng=0)
    given = inputs(layer, rng, T=7, B=5, kinds=kinds)
    flags = {"resets": given.resets, "reset_state": given.reset_state, "mask": given.mask}
    x = given.x.astype(np.float64)
    for k in range(2):
        got = rnnkit.trajectory(layer, given.x, given.h0, given.lengths, of_layer=k, **flags)
        for d in range(2):
            _check_flagged(layer, given, x, got, k, d)
        x = _below(layer, given).astype(np.float64)  # what the second layer is given
    y, _ = layer(given.x, given.h0, given.lengths, zero_output_for_mask=given.mask is not None, **flags)
    live = np.ones((7, 5), bool) if given.mask is None else given.mask
    np.testing.assert_array_equal(np.where(live[:, :, None], got["h"], 0), y)


def _below(layer: Any, given: Any) -> np.ndarray:
    """y of the first layer, by a layer of its own."""
    one = type(layer)(I, H, bidirectional=True, dtype="float32", backend=layer.backend, rng=0)
    one.load_state_dict({n: p for n, p in layer.params.items() if "_l0" in n}, cells=layer.cell.name)
    state = [None if s is None else tuple(a[:2] for a in parts(s)) for s in (given.h0, given.reset_state)]
    h0, again = (s if s is None or len(s) > 1 else s[0] for s in state)
    return one(given.x, h0, given.lengths, resets=given.resets, reset_state=again, mask=given.mask)[0]


def _check_flagged(layer: Any, given: Any, x: np.ndarray, got: dict[str, Any], k: int, d: int) -> None:
    steps, rows = x.shape[:2]
    slot = 2 * k + d
    w = rnnkit.core.cells.Weights(*[None if a is None else a.astype(np.float64) for a in layer._caches()[k][d].weights])
    lengths = np.full(rows, steps) if given.lengths is None else given.lengths
    for b, length in enumerate(lengths):
        state = tuple(s[slot, b : b + 1].astype(np.float64) for s in parts(given.h0))
        for t in reversed(range(length)) if d else range(length):
            if given.resets is not None and t + d < length and given.resets[t + d, b]:
                again = given.reset_state
                state = tuple(
                    np.zeros_like(s) if again is None else parts(again)[n][slot, b : b + 1].astype(np.float64)
                    for n, s in enumerate(state)
                )
            gates = dict.fromkeys(set(layer.cell.gates) - {"h"}, np.zeros((1, H)))
            if given.mask is None or given.mask[t, b]:
                state, kept = layer.cell.forward(x[t, b : b + 1] @ w.w_ih.T + w.b_ih, state, w)
                gates = {gate: kept[gate] for gate in gates}
            for name, want in (dict(zip(layer.cell.states, state, strict=True)) | gates).items():
                width = want.shape[1]
                assert_close(name, got[name][t, b, d * width : (d + 1) * width], want[0], "float32")
        assert not any(value[length:, b].any() for value in got.values())


def test_compressed_weights_are_refused() -> None:
    small = rnnkit.compress(rnnkit.GRU(I, H, backend="numpy"))
    with pytest.raises(ValueError, match="trajectory does not serve a layer with compressed weights"):
        rnnkit.trajectory(small, np.ones((T, B, I), np.float32))


def test_no_steps() -> None:
    layer = rnnkit.LSTM(I, H, 2, bidirectional=True, backend="numpy")
    got = rnnkit.trajectory(layer, np.ones((0, B, I), np.float32))
    assert {name: value.shape for name, value in got.items()} == dict.fromkeys("hcifgo", (0, B, 2 * H))
