"""Resets inside a sequence and arbitrary masks: by the equations, by finite differences, and by their edge cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnkit
from rnnkit.functional.segments import segments
from rnnkit.testing import assert_close
from tests.api.resets import Inputs, by_steps, drawn_masks, inputs, kind_of, trained
from tests.helpers import LAYERS, assert_same, parts, randn, random_state, refused, share_everything, slow_except

CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn": (rnnkit.RNN, {}),
    "relu, two layers, both directions": (
        rnnkit.RNN,
        {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True},
    ),
    "gru": (rnnkit.GRU, {"bidirectional": True}),
    "gru, reset before": (rnnkit.GRU, {"reset_after": False, "num_layers": 2}),
    "lstm": (rnnkit.LSTM, {"bias": False}),
    "lstm, projected": (rnnkit.LSTM, {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
    "slstm": (rnnkit.SLSTM, {"num_layers": 2, "bidirectional": True}),
}
KINDS = (
    "resets",
    "resets given",
    "mask",
    "mask zero",
    "resets given mask",
    "resets mask lengths",
    "resets given mask zero lengths",
)


def made(config: str, **options: Any) -> Any:
    cls, arguments = CONFIGS[config]
    return cls(3, 4, **{"dtype": "float64", "backend": "numpy", "rng": 1, **arguments, **options})


def gradients_of(layer: Any, given: Inputs, rng: np.random.Generator) -> tuple[Any, Any]:
    T, B, _ = given.x.shape
    return randn(rng, T, B, layer.output_size, dtype=layer.dtype), random_state(layer, B, rng)


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("config", CONFIGS)
def test_results_are_those_of_the_equations(config: str, kinds: str, rng: np.random.Generator) -> None:
    layer = made(config)
    given = inputs(layer, rng, kinds=kinds)
    want_y, want_ends = by_steps(layer, given)
    y, ends = layer(given.x, given.h0, **given.options)
    assert_close("y", y, want_y, "float64")
    for got, want in zip(parts(ends), want_ends, strict=True):
        assert_close("state_n", got, want, "float64")


@pytest.mark.parametrize("kinds", slow_except(KINDS, "resets given", "resets given mask"))
@pytest.mark.parametrize("config", CONFIGS)
def test_every_gradient_is_the_finite_difference(config: str, kinds: str, rng: np.random.Generator) -> None:
    """Along random directions of each array."""
    layer = made(config)
    given = inputs(layer, rng, T=5, B=3, kinds=kinds)
    dy, dends = gradients_of(layer, given, rng)

    def loss() -> float:
        y, ends = by_steps(layer, given)
        return float((y * dy).sum() + sum((e * d).sum() for e, d in zip(ends, parts(dends), strict=True)))

    got = trained(layer, given, dy, dends)
    arrays = {"dx": given.x}
    for name, state in (("dstate0", given.h0), ("dreset_state", given.reset_state)):
        arrays |= {} if state is None else {f"{name}[{k}]": s for k, s in enumerate(parts(state))}
    arrays |= {f"grad {name}": p for name, p in layer.params.items()}
    assert arrays.keys() == {name for name in got if name[0] != "y" and not name.startswith("state_n")}
    for name, a in arrays.items():
        way = rng.standard_normal(a.shape)
        before = a.copy()
        a[...] = before + 1e-6 * way
        up = loss()
        a[...] = before - 1e-6 * way
        down = loss()
        a[...] = before
        want = (up - down) / 2e-6
        assert abs((got[name] * way).sum() - want) <= 1e-7 * max(1.0, abs(want)), name


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("config", CONFIGS)
def test_compiled_results_are_the_oracles(
    config: str, dtype: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two threads, with several groups of segments."""
    share_everything(monkeypatch, 2)
    oracle, layer = made(config), made(config, backend="numba", dtype=dtype)
    for name, p in oracle.params.items():
        p[...] = p.astype(dtype)
        layer.params[name][...] = p
    given = inputs(oracle, rng, T=33, B=6, kinds="resets given mask lengths")
    given.resets[:, 0] = False
    given.mask[:, 0] = True
    dy, dends = gradients_of(oracle, given, rng)
    oracle_inputs = given
    if dtype == "float32":
        given = Inputs(*[cast(v, dtype) for v in given])
        dy, dends = cast(dy, dtype), cast(dends, dtype)
    want = trained(oracle, oracle_inputs, dy.astype("float64"), cast(dends, "float64"))
    got = trained(layer, given, dy, dends)
    assert len(segments(33, 6, 1, lengths=given.lengths, resets=given.resets, mask=given.mask).groups) > 1
    for name, value in want.items():
        assert_close(name, got[name], value, dtype, kind_of(name))


def cast(value: Any, dtype: str) -> Any:
    """Floating-point arrays in a dtype, at any depth."""
    if isinstance(value, dict):
        return {name: cast(v, dtype) for name, v in value.items()}
    if isinstance(value, tuple):
        return tuple(cast(v, dtype) for v in value)
    return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


# Nothing to do


@pytest.mark.parametrize("config", CONFIGS)
def test_without_a_reset_or_a_masked_step_the_bits_are_those_of_the_plain_call(
    config: str, cpu_backend: str, rng: np.random.Generator
) -> None:
    layer = made(config, backend=cpu_backend, dtype="float32", dropout=0.5 if "two" in config else 0.0)
    given = inputs(layer, rng, kinds="lengths")
    dy, dends = gradients_of(layer, given, rng)
    layer.rng = np.random.default_rng(3)
    want = trained(layer, given, dy, dends)
    past = np.arange(7)[:, None] >= given.lengths  # flags past a row's length are not read
    layer.rng = np.random.default_rng(3)
    again = random_state(layer, 5, rng)
    got = trained(layer, given._replace(resets=past, reset_state=again, mask=~past), dy, dends)
    for k, s in enumerate(parts(again)):
        np.testing.assert_array_equal(got.pop(f"dreset_state[{k}]"), np.zeros_like(s))
    assert_same(got, want)


def test_a_reset_state_without_a_reset_gets_zeros(rng: np.random.Generator) -> None:
    layer = made("lstm")
    given = inputs(layer, rng, kinds="given")
    _, _, (dh, dc) = run_backward(layer, given._replace(resets=np.zeros((7, 5), bool)), rng)
    assert not dh.any()
    assert not dc.any()
    assert dh.shape == (1, 5, 4)


def run_backward(layer: Any, given: Inputs, rng: np.random.Generator) -> Any:
    layer(given.x, given.h0, **given.options)
    return layer.backward(*gradients_of(layer, given, rng))


# Special cases


@pytest.mark.parametrize("config", ["gru", "lstm, projected"])
@pytest.mark.parametrize(
    "case", ["every step", "the first step", "one long row", "no rows", "no steps", "all masked", "alone"]
)
def test_special_cases(config: str, case: str, cpu_backend: str, rng: np.random.Generator) -> None:
    layer = made(config, backend=cpu_backend)
    T, B = {"one long row": (40, 1), "no rows": (7, 0), "no steps": (0, 5)}.get(case, (7, 5))
    given = inputs(layer, rng, T=T, B=B, kinds="resets given mask")
    if case == "every step":
        given = given._replace(resets=np.ones((T, B), bool), mask=None)
    elif case == "the first step":
        given.resets[1:] = False
        given.resets[0] = np.arange(B) % 2 == 0
        given = given._replace(mask=None, lengths=[7, 7, 0, 3, 1])
    elif case == "one long row":
        given.resets[...] = np.arange(T)[:, None] > T // 2  # one long segment, and one for each step after it
        given = given._replace(mask=None)
    elif case == "all masked":
        given.mask[...] = False
    elif case == "alone":  # of one row all steps are masked, another has one live step, which follows a reset
        given.mask[:, 1:3] = False
        given.mask[4, 2] = given.resets[4, 2] = True
    dy, dends = gradients_of(layer, given, rng)
    got = trained(layer, given, dy, dends)
    want = trained(made(config), given, dy, dends) if cpu_backend != "numpy" else got
    for name, value in want.items():
        assert_close(name, got[name], value, "float64", "backward")
    y, ends = by_steps(layer, given)
    assert_close("y", got["y"], y, "float64")
    for k, end in enumerate(ends):
        assert_close("state_n", got[f"state_n[{k}]"], end, "float64")
    if case == "all masked":
        assert not got["dx"].any()
        assert all(not g.any() for name, g in got.items() if "grad" in name)


@pytest.mark.parametrize("case", ["a reset for each step", "one live step in a row"])
def test_memory_is_that_of_the_live_steps(case: str) -> None:
    T, B = 1000, 3
    resets, mask = np.zeros((T, B), bool), np.ones((T, B), bool)
    if case == "a reset for each step":
        resets[T // 2 :] = True
    else:
        mask[1:, 1:] = False
    found = segments(T, B, 2, resets=resets, mask=mask)
    assert sum(g.steps * (g.last - g.first) for g in found.groups) <= 2 * found.row_steps
    assert sum(g.steps for g in found.groups) <= 2 * T


@settings(max_examples=60)
@given(st.data())
def test_tables_place_each_live_step_once(data: Any) -> None:
    T, B = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    flags = st.lists(st.booleans(), min_size=T * B, max_size=T * B)
    resets = np.reshape(data.draw(flags), (T, B))
    mask = np.reshape(data.draw(flags), (T, B))
    lengths = np.array(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    found = segments(T, B, 2, lengths=lengths, resets=resets, mask=mask)
    live = mask & (np.arange(T)[:, None] < lengths)
    if found is None or found.place is None:
        return
    assert found.row_steps == live.sum()
    source = np.concatenate([g.source for g in found.groups])
    np.testing.assert_array_equal(source[found.place[live.ravel()]], np.flatnonzero(live))
    np.testing.assert_array_equal(found.empty, np.flatnonzero(~live))
    assert len(source) <= 2 * max(found.row_steps, 1)
    assert [g.first for g in found.groups[1:]] == [g.last for g in found.groups[:-1]]
    assert found.groups[-1].last == found.total


def test_states_are_carried_from_call_to_call(cpu_backend: str, rng: np.random.Generator) -> None:
    """Two calls of half the steps each are one call, also for rows that end masked."""
    layer = made("lstm", backend=cpu_backend)
    given = inputs(layer, rng, T=8, kinds="resets given mask")
    given.mask[2:4, 1:3] = False
    y, end = layer(given.x, given.h0, **given.options)
    first, between = layer(given.x[:4], given.h0, **halves(given, slice(4)))
    second, last = layer(given.x[4:], between, **halves(given, slice(4, None)))
    for got, want in zip(last, end, strict=True):
        assert_close("state_n", got, want, "float64")
    live = given.mask
    assert_close("y", np.concatenate([first, second])[live], y[live], "float64")


def halves(given: Inputs, steps: slice) -> dict[str, Any]:
    return given.options | {"resets": given.resets[steps], "mask": given.mask[steps]}


def test_single_steps_with_resets_are_the_whole_sequence(cpu_backend: str, rng: np.random.Generator) -> None:
    layer = made("gru", backend=cpu_backend, bidirectional=False)
    given = inputs(layer, rng, kinds="resets")
    y, end = layer(given.x, given.h0, resets=given.resets)
    state = given.h0
    for t in range(7):
        step, state = layer(given.x[t : t + 1], state, resets=given.resets[t : t + 1])
        assert_close("y", step[0], y[t], "float64")
    assert_close("h_n", state, end, "float64")


def test_what_is_masked_is_not_read(cpu_backend: str, rng: np.random.Generator) -> None:
    layer = made("relu, two layers, both directions", backend=cpu_backend)
    given = inputs(layer, rng, kinds="resets mask zero lengths")
    dead = ~(given.mask & (np.arange(7)[:, None] < given.lengths))
    dy, dends = gradients_of(layer, given, rng)
    want = trained(layer, given, dy, dends)
    given.x[dead] = np.nan
    dy[dead] = np.nan
    assert_same(trained(layer, given, dy, dends), want)
    assert not want["dx"][dead].any()


def test_the_gradient_does_not_flow_through_a_reset(cpu_backend: str, rng: np.random.Generator) -> None:
    layer = made("lstm", backend=cpu_backend)
    given = inputs(layer, rng, kinds="resets")
    given.resets[...] = False
    given.resets[4] = True
    layer(given.x, given.h0, **given.options)
    dy, dends = gradients_of(layer, given, rng)
    dy[:4] = 0
    dx, dstate0 = layer.backward(dy, dends)
    assert not dx[:4].any()
    assert dx[4:].all()
    assert not any(d.any() for d in dstate0)


@pytest.mark.parametrize("config", ["relu, two layers, both directions", "gru, reset before"])
def test_dropout_masks_are_those_of_the_plain_call(config: str, cpu_backend: str, rng: np.random.Generator) -> None:
    layer = made(config, backend=cpu_backend, dropout=0.4, rng=np.random.default_rng(8))
    given = inputs(layer, rng, T=9, kinds="resets given mask lengths")
    want, ends = by_steps(layer, given, drawn_masks(layer, 9, 5, 8))
    y, end = layer(given.x, given.h0, **given.options)
    assert_close("y", y, want, "float64")
    assert_close("h_n", end, ends[0], "float64")


def test_dropout_is_differentiated(cpu_backend: str, rng: np.random.Generator) -> None:
    layer = made("gru, reset before", backend=cpu_backend, dropout=0.4, rng=np.random.default_rng(8))
    given = inputs(layer, rng, T=9, kinds="resets given mask lengths")
    masks = drawn_masks(layer, 9, 5, 8)
    dy, dends = gradients_of(layer, given, rng)
    dx = trained(layer, given, dy, dends)["dx"]
    way = rng.standard_normal(given.x.shape)

    def loss(step: float) -> float:
        y, ends = by_steps(layer, given._replace(x=given.x + step * way), masks)
        return float((y * dy).sum() + (ends[0] * dends).sum())

    want = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert abs((dx * way).sum() - want) <= 1e-7 * max(1.0, abs(want))


@pytest.mark.parametrize("name", LAYERS)
def test_layouts(name: str, cpu_backend: str, rng: np.random.Generator) -> None:
    """batch_first, and each row unbatched, are the time-major call."""
    layer = LAYERS[name](3, 4, dtype="float64", backend=cpu_backend, rng=1)
    given = inputs(layer, rng, kinds="resets given mask lengths")
    dy, dends = gradients_of(layer, given, rng)
    want = trained(layer, given, dy, dends)
    layer.batch_first = True
    rows = given._replace(x=given.x.swapaxes(0, 1), resets=given.resets.T.tolist(), mask=given.mask.T)
    got = trained(layer, rows, dy.swapaxes(0, 1), dends)
    got |= {name: got[name].swapaxes(0, 1) for name in ("y", "dx")}
    for key, value in want.items():
        assert_close(key, got[key], value, "float64", "backward")
    alone = Inputs(
        given.x[:, 2],
        one(given.h0),
        int(given.lengths[2]),
        given.resets[:, 2],
        one(given.reset_state),
        given.mask[:, 2],
    )
    got = trained(layer, alone, dy[:, 2], one(dends))
    for key in (k for k in want if "grad" not in k):
        assert_close(key, got[key], want[key][:, 2], "float64", "backward")


def one(state: Any) -> Any:
    return tuple(s[:, 2] for s in state) if isinstance(state, tuple) else state[:, 2]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_sums_are_rounded_once(dtype: str, rng: np.random.Generator) -> None:
    pytest.importorskip("ml_dtypes")
    oracle, layer = made("gru"), made("gru", dtype=dtype, backend="numpy")
    for name, p in layer.params.items():
        p[...] = oracle.params[name].astype(layer.dtype)
        oracle.params[name][...] = p.astype("float64")
    small = inputs(layer, rng, T=30, kinds="resets given mask lengths")
    wide = {name: getattr(small, name).astype("float64") for name in ("x", "h0", "reset_state")}
    given = small._replace(**wide)
    dy, dends = gradients_of(layer, small, rng)
    want = trained(oracle, given, dy.astype("float64"), dends.astype("float64"))
    got = trained(layer, small, dy, dends)
    for name, value in want.items():
        assert_close(name, got[name], value, dtype, kind_of(name))


# Bad arguments


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"resets": np.zeros((5, 4), bool)}, ValueError, ("resets", "(T, B) = (4, 5)", "(5, 4)")),
        ({"mask": np.zeros(4, bool)}, ValueError, ("mask", "(T, B) = (4, 5)", "(4,)")),
        ({"mask": [[True], [True, False]]}, ValueError, ("mask", "(T, B) = (4, 5)", "different lengths")),
        ({"resets": np.zeros((4, 5))}, TypeError, ("resets", "booleans", "float64")),
        ({"mask": np.zeros((4, 5), int)}, TypeError, ("mask", "booleans", "int64", "mask != 0")),
        ({"resets": np.ma.zeros((4, 5), bool)}, TypeError, ("resets", "plain NumPy array")),
        ({"zero_output_for_mask": True}, ValueError, ("zero_output_for_mask", "without a mask")),
        ({"zero_output_for_mask": 1}, TypeError, ("zero_output_for_mask", "True or False")),
        ({"reset_state": np.zeros((1, 5, 4))}, ValueError, ("reset_state", "without resets")),
        (
            {"resets": np.zeros((4, 5), bool), "reset_state": np.zeros((1, 4, 4))},
            ValueError,
            ("reset_state", "(1, 5, 4)", "(1, 4, 4)"),
        ),
        (
            {"resets": np.zeros((4, 5), bool), "reset_state": np.zeros((1, 5, 4), "float32")},
            TypeError,
            ("reset_state", "float64", "float32"),
        ),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], words: tuple[str, ...]) -> None:
    layer = rnnkit.GRU(3, 4, dtype="float64", backend="numpy", rng=1)
    layer(np.ones((4, 5, 3)))
    with refused(error, *words, by=layer):
        layer(np.ones((4, 5, 3)), **options)


def test_a_bad_reset_state_of_an_lstm_names_its_part() -> None:
    layer = rnnkit.LSTM(3, 4, dtype="float64", backend="numpy", rng=1)
    good = np.zeros((1, 5, 4))
    with refused(ValueError, "c of reset_state", "(1, 5, 3)"):
        layer(np.ones((4, 5, 3)), resets=np.zeros((4, 5), bool), reset_state=(good, np.zeros((1, 5, 3))))
    with refused(TypeError, "reset_state", "pair"):
        layer(np.ones((4, 5, 3)), resets=np.zeros((4, 5), bool), reset_state=good)
