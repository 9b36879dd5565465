"""The Numba CUDA kernels against the float64 oracle, without a GPU: by tests/tools/greenlets and fakecupy.

Uninitialised memory and the padding of inputs are NaN, which exposes reads of them.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from rnnkit.core import long_sums
from rnnkit.core.cells import CELLS
from rnnkit.core.devices import to_device, to_numpy
from rnnkit.functional import direction
from rnnkit.kernels.numba_cuda.launch_shape import FEWEST_BLOCKS, THREADS
from rnnkit.testing import CASES, Case, assert_close, kind_of, make_inputs, parity, run, widened
from tests.helpers import LAYERS, assert_same, parts, randn, random_state, slow_except
from tests.tools import fakecupy, greenlets

pytestmark = pytest.mark.skipif(greenlets.available() is not None, reason=str(greenlets.available()))

DTYPES = ("float64", "float32", "float16")
DEVICE = "cuda:0"
FULLER = pytest.mark.slow
WIDE = [
    Case("rnn_tanh", T=2, B=1, I=2, H=THREADS + 9),
    Case("rnn_tanh", T=2, B=1, I=2, H=2 * THREADS + 9),
    Case("gru", T=2, B=1, I=2, H=THREADS + 33),
    Case("gru_reset_before", T=2, B=1, I=2, H=THREADS + 1),
    Case("lstm", T=2, B=1, I=2, H=THREADS + 5, reverse=True),
    Case("lstm", T=2, B=1, I=2, H=THREADS + 5, P=THREADS + 2),
]


@contextmanager
def device(seed: int | None = None, watch: bool = False, **options: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The stand-in for CuPy, and the list of launches of Numba kernels. seed, watch: as in greenlets.installed."""
    with fakecupy.installed(**options) as cp, greenlets.installed(seed, watch) as launches:
        yield cp, launches


def features() -> list[Case]:
    """Small cases of every cell: full and ragged, forward and reverse, with and without a projection."""
    small = {"T": 3, "B": 4, "I": 2, "H": 5}
    plain = [Case(cell, **small, reverse=r, ragged=g) for cell in CELLS for r in (False, True) for g in (False, True)]
    return plain + [Case("lstm", **small, P=3, reverse=r, ragged=g) for r in (False, True) for g in (False, True)]


def feature_inputs(case: Case, dtype: str) -> Any:
    """Inputs of a case of `features`. Ragged rows have every possible length, and the padding is NaN."""
    inputs = make_inputs(dataclasses.replace(case, ragged=False), dtype)
    if case.ragged:
        inputs.lengths = np.array([3, 0, 2, 1])
        for padded in (inputs.x, inputs.dy):
            padded[np.arange(case.T)[:, None] >= inputs.lengths] = np.nan
    return inputs


def assert_parity(case: Case, dtype: str, seed: int, watch: bool = False) -> None:
    with device(seed, watch):
        worst = parity("numba_cuda", case, dtype, device=DEVICE)
    over = {name: f"{ratio:.3g} x tolerance" for name, ratio in worst.items() if not ratio <= 1}
    assert not over, over


def quick(case: Case, dtype: str) -> Any:
    """Marks cases slow, except one per cell in float32, and those of two products in every dtype and ragged."""
    small = (case.T, case.B) == (5, 3)
    plain = not (case.reverse or case.ragged)
    two = case.cell == "gru_reset_before" or bool(case.P)
    both = case.reverse and case.ragged
    run = small and ((plain and (two or dtype == "float32")) or (both and two and dtype == "float32"))
    return pytest.param(case, dtype, id=f"{case}-{dtype}", marks=() if run else FULLER)


# Cases of `make test`: one product whose sides differ, and both kinds of second products.
FEW = [
    case for case in features() if case.ragged and case.reverse and (case.P or case.cell in ("gru", "gru_reset_before"))
]


@pytest.mark.parametrize(("case", "dtype"), [quick(case, dtype) for case in CASES for dtype in DTYPES])
def test_every_output_and_gradient_equals_the_oracles(case: Case, dtype: str) -> None:
    assert_parity(case, dtype, zlib.crc32(str(case).encode()))


@pytest.mark.parametrize("case", slow_except(WIDE, WIDE[0]), ids=str)
def test_more_units_than_threads(case: Case) -> None:
    assert_parity(case, "float32", 1)


@pytest.mark.parametrize("dtype", slow_except(DTYPES, "float32"))
@pytest.mark.parametrize("case", slow_except(features(), *FEW), ids=str)
def test_gradients_in_blocks_of_steps(case: Case, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over at most twelve row-steps, in blocks of four and of three."""
    for name, value in (("DEVICE_ROWS", 4), ("DEVICE_ROWS_16", 4), ("COLUMN_ROWS", 3), ("BATCH_BYTES", 100)):
        monkeypatch.setattr(long_sums, name, value)
    inputs = feature_inputs(case, dtype)
    with device(3):
        got = run(case, on_device(inputs), "numba_cuda")
    for name, value in run(case, widened(inputs), "numpy").items():
        assert_close(name, got[name], value, dtype, kind_of(name))


@pytest.mark.parametrize("case", slow_except(features(), *FEW), ids=str)
def test_no_races_and_no_index_out_of_bounds(case: Case) -> None:
    inputs = feature_inputs(case, "float32")
    with device(2, watch=True):
        got = run(case, on_device(inputs), "numba_cuda")
        forward(case, on_device(inputs), keep=False)
    want = run(case, widened(inputs), "numpy")
    for name, value in want.items():
        assert_close(name, got[name], value, "float32", kind_of(name))


@FULLER
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in CASES if c.H < 64], ids=str)
def test_no_races_in_any_case_and_dtype(case: Case, dtype: str) -> None:
    assert_parity(case, dtype, 3, watch=True)  # a race is found in any order of the threads


def on_device(inputs: Any) -> Any:
    """Inputs as CuPy arrays, except the lengths."""

    def put(a: Any) -> Any:
        if isinstance(a, tuple):
            return type(a)(*map(put, a)) if hasattr(a, "_fields") else tuple(map(put, a))
        return None if a is None else to_device(a, DEVICE)

    fields = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs)}
    return type(inputs)(**{name: a if name == "lengths" else put(a) for name, a in fields.items()})


def forward(case: Case, inputs: Any, keep: bool) -> tuple[np.ndarray, ...]:
    y, state_n, _ = direction.forward(
        case.cell, inputs.x, inputs.state0, inputs.weights, lengths=inputs.lengths, reverse=case.reverse,
        backend="numba_cuda", keep=keep,
    )  # fmt: skip
    return tuple(map(to_numpy, (y, *state_n)))


@pytest.mark.parametrize("case", slow_except(features(), *FEW[1:]), ids=str)
def test_bits_do_not_depend_on_the_order_of_threads_or_on_saving(case: Case) -> None:
    inputs, results = feature_inputs(case, "float16"), []
    for seed in (None, 1, 2):
        with device(seed):
            results.append(run(case, on_device(inputs), "numba_cuda"))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])
    with device(4):
        y, *state_n = forward(case, on_device(inputs), keep=False)
    alone = {"y": y} | {f"{name}_n": s for name, s in zip(CELLS[case.cell].states, state_n, strict=True)}
    assert_same(alone, {name: results[0][name] for name in alone})


@pytest.mark.parametrize("cell", CELLS)
def test_a_row_without_steps_keeps_its_state_and_padding_of_y_is_zero(cell: str) -> None:
    case = Case(cell, T=4, B=3, ragged=True)
    inputs = make_inputs(case, "float32")
    inputs.lengths = np.array([2, 0, 4])
    with device():
        y, *state_n = forward(case, on_device(inputs), keep=True)
    for n, initial in zip(state_n, inputs.state0, strict=True):
        np.testing.assert_array_equal(n[1], initial[1])
    np.testing.assert_array_equal(y[2:, 0], 0)
    np.testing.assert_array_equal(y[:, 1], 0)
    assert (y[:, 2] != 0).any(axis=1).all()
    np.testing.assert_array_equal(state_n[0][[0, 2]], [y[1, 0], y[3, 2]])


@pytest.mark.parametrize("cell", slow_except(CELLS, "lstm"))
@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_without_steps_or_rows_nothing_is_launched(cell: str, T: int, B: int) -> None:
    case = Case(cell, T=T, B=B)
    inputs = make_inputs(Case(cell), "float32")
    inputs.x, inputs.dy = inputs.x[:T, :B], inputs.dy[:T, :B]
    inputs.state0, inputs.dstate_n = (tuple(s[:B] for s in states) for states in (inputs.state0, inputs.dstate_n))
    with device() as (_, launches):
        got = run(case, on_device(inputs), "numba_cuda")
    assert not launches
    want = run(case, widened(inputs), "numpy")
    for name, value in want.items():
        assert_close(name, got[name], value, "float32")


@pytest.mark.parametrize("cell", slow_except(CELLS, "lstm"))
@pytest.mark.parametrize("given", ["dy", "dstate_n"])
def test_either_gradient_may_be_none(cell: str, given: str) -> None:
    inputs, gradients = make_inputs(Case(cell), "float32"), []
    for backend in ("numba_cuda", "numpy"):
        with device():
            held = on_device(inputs) if backend == "numba_cuda" else widened(inputs)
            *_, saved = direction.forward(cell, held.x, held.state0, held.weights, backend=backend)
            dy, dstate = (held.dy, None) if given == "dy" else (None, held.dstate_n)
            dx, dstate0, dweights = direction.backward(saved, dy, dstate, held.weights)
            gradients.append([to_numpy(a) for a in (dx, *dstate0, *dweights) if a is not None])
    for got, want in zip(*gradients, strict=True):
        assert_close("gradient", got, want, "float32", "backward")


@pytest.mark.parametrize("cell", slow_except(CELLS, "lstm"))
def test_arrays_of_any_strides(cell: str) -> None:
    case = Case(cell, P=4 if CELLS[cell].projects else 0)
    inputs = make_inputs(case, "float32")
    with device() as (cp, _):
        held = on_device(inputs)
        want = run(case, held, "numba_cuda")

        def strided(a: Any) -> Any:
            """The same values with strides: every other element of a transposed array."""
            wide = cp.empty((2 * a.shape[-1], *a.shape[:-1]), a.dtype)
            turned = cp.moveaxis(wide[::2], 0, -1)
            turned[...] = a
            return turned

        held.dy, held.x = strided(held.dy), strided(held.x)
        held.state0, held.dstate_n = tuple(map(strided, held.state0)), tuple(map(strided, held.dstate_n))
        held.weights = type(held.weights)(*(None if w is None else strided(w) for w in held.weights))
        assert not held.weights.w_hh.flags.c_contiguous
        assert_same(run(case, held, "numba_cuda"), want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_infinities_large_numbers_and_nan_as_in_the_oracle(cell: str, dtype: str) -> None:
    """x with values from 1e30 to infinity, and NaN, in one row each."""
    case = Case(cell, T=1, B=8, I=1, H=2, bias=False)
    inputs = make_inputs(case, dtype)
    inputs.weights.w_ih[...] = 1
    most = 1e20 if "m" in CELLS[cell].states else np.inf  # an infinite m would be subtracted from itself
    inputs.x[0, :, 0] = [np.nan, most, -most, 1e30, -1e30, 300, -300, 1]
    with device(), np.errstate(all="ignore"):
        got = forward(case, on_device(inputs), keep=False)
        *want, _ = direction.forward(
            cell, *(getattr(widened(inputs), n) for n in ("x", "state0", "weights")), backend="numpy"
        )
    want = (want[0], *want[1])
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.isnan(g), np.isnan(w))
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)


def on_card(cp: Any, value: Any) -> Any:
    return tuple(on_card(cp, v) for v in value) if isinstance(value, tuple) else cp.asarray(value)


def step(layer: Any, x: Any, state: Any, dy: Any, dstate: Any) -> dict[str, np.ndarray]:
    """Every result of a forward and a backward of ragged rows, on the host."""
    y, state_n = layer(x, state, [3, 6, 0, 5])
    dx, dstate0 = layer.backward(dy, dstate)
    results = {"y": y, "dx": dx} | layer.grads
    results |= {f"state_n[{k}]": s for k, s in enumerate(parts(state_n))}
    results |= {f"dstate0[{k}]": s for k, s in enumerate(parts(dstate0))}
    return {name: to_numpy(value) for name, value in results.items()}


@pytest.mark.parametrize("name", slow_except(LAYERS, "gru"))
def test_layers_equal_the_oracle(name: str) -> None:
    """Two bidirectional layers, ragged, so that launches depend on earlier ones."""
    oracle = LAYERS[name](3, 7, 2, bidirectional=True, dtype="float64", backend="numpy", rng=3)
    drawn = np.random.default_rng(4)
    for parameter in oracle.params.values():
        parameter[...] = randn(drawn, *parameter.shape) * np.float32(0.3)
    x, dy = randn(drawn, 6, 4, 3), randn(drawn, 6, 4, 14)
    arguments = (x, random_state(oracle, 4, drawn), dy, random_state(oracle, 4, drawn))
    want = step(oracle, *arguments)
    with device(5) as (cp, launches):
        layer = LAYERS[name](3, 7, 2, bidirectional=True, dtype="float64", device="cuda", backend="numba_cuda")
        for key, parameter in layer.params.items():
            parameter[...] = cp.asarray(oracle.params[key])
        got = step(layer, *(on_card(cp, a) for a in arguments))
    assert len(launches) == 8
    assert all(launch.blocks == FEWEST_BLOCKS and launch.threads == 32 for launch in launches)
    for what in want:
        assert_close(what, got[what], want[what], "float64", "backward")
