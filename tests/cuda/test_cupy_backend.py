"""The CuPy backend with schedule D, without a GPU, against the float64 oracle: its launch code, and its kernels in the
emulator. Other schedules have files of their own.

`tests.tools.fakecupy` replaces CuPy. The only replaced part of rnnkit is the source of cuBLAS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.core.cells import Weights
from rnnkit.functional import direction
from rnnkit.testing import Case, assert_close, error_ratio, make_inputs, parity, run
from tests.cuda.cuda_helpers import CASES, CELLS, LAYERS, assert_matches, chunked, cuda, of_few_builds, outputs, run_on
from tests.helpers import assert_same, parts, randn, random_state, slow_except
from tests.tools import emulator

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

STEPWISE = "cupy:stepwise"
CELL_NAMES = tuple(CELLS)
SMALL = {cell: Case(cell, T=5, B=3, I=4, H=6) for cell in CELL_NAMES}
RAGGED = {cell: Case(cell, T=5, B=4, I=3, H=6, ragged=True) for cell in CELL_NAMES}

# `make test` runs a few cases on few builds, `make test-all` the others.
FULL, SOME = ("float32", "float16"), ("float64", "bfloat16", "tf32")
COVER = [case for case in CASES if (case.T, case.B) in {(5, 3), (3, 13)}]


def few(dtypes: Iterable[str]) -> list[tuple[Case, str]]:
    return [(case, dtype) for dtype in dtypes for case in COVER if (case.cell, dtype) in of_few_builds(dtypes, CELLS)]


@pytest.fixture(scope="module")
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


def assert_within(worst: dict[str, float]) -> None:
    over = {name: f"{ratio:.3g} x tolerance" for name, ratio in worst.items() if not ratio <= 1}
    assert not over, over


@pytest.mark.parametrize(("case", "dtype"), slow_except(product(CASES, FULL), *few(FULL), unpack=True), ids=str)
def test_parity(cp: Any, case: Case, dtype: str) -> None:
    assert_within(parity(STEPWISE, case, dtype, device="cuda:0"))


@pytest.mark.parametrize(("case", "dtype"), slow_except(product(COVER, SOME), *few(SOME), unpack=True), ids=str)
def test_parity_of_other_dtypes(cp: Any, case: Case, dtype: str) -> None:
    pytest.importorskip("ml_dtypes")
    assert_within(parity(STEPWISE, case, dtype, device="cuda:0"))


def test_tf32_rounds_and_float32_does_not(cp: Any) -> None:
    case = Case("lstm", T=5, B=3, I=40, H=40)
    inputs, want = make_inputs(case, "float32", device="cuda:0"), run(case, make_inputs(case, "float64"), "numpy")
    worst = {p: error_ratio(run(case, inputs, STEPWISE, p)["y"], want["y"], "float32") for p in (None, "tf32")}
    assert worst[None] <= 1 < 5 < worst["tf32"], worst


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SOME)
@pytest.mark.parametrize("case", [case for case in CASES if case not in COVER], ids=str)
def test_parity_of_other_dtypes_on_every_case(cp: Any, case: Case, dtype: str) -> None:
    pytest.importorskip("ml_dtypes")
    assert_within(parity(STEPWISE, case, dtype, device="cuda:0"))


@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("steps", slow_except([1, 3], 3))
def test_chunks_of_steps(cp: Any, cell: str, reverse: bool, ragged: bool, steps: int) -> None:
    """Several chunks, the last one shorter, equal one chunk."""
    case = Case(cell, T=7, B=4, I=3, H=6, reverse=reverse, ragged=ragged)
    with chunked(steps):
        assert_within(parity(STEPWISE, case, "float32", device="cuda:0"))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_chunks_of_16_bit_gradients_are_rounded_once(cp: Any, cell: str) -> None:
    case = Case(cell, T=24, B=3, I=4, H=6, P=4 if cell == "lstm" else 0)
    with chunked(1):
        assert_within(parity(STEPWISE, case, "float16", device="cuda:0"))
        many = run(case, make_inputs(case, "float16", device="cuda:0"), STEPWISE)
    whole = run(case, make_inputs(case, "float16", device="cuda:0"), STEPWISE)
    for name in ("dw_ih", "dw_hh", "db_ih", "db_hh"):  # float32 sums of the same numbers in another order
        np.testing.assert_allclose(many[name], whole[name], rtol=2e-3, atol=0)


@pytest.mark.parametrize("cell", CELL_NAMES)
def test_graphs_give_the_same_bits(cp: Any, cell: str) -> None:
    """The first call launches, the second captures, the third replays."""
    for case in (SMALL[cell], RAGGED[cell], Case(cell, reverse=True, ragged=True)):
        inputs = make_inputs(case, "float32", device="cuda:0")
        first, second, third = (run(case, inputs, STEPWISE) for _ in range(3))
        assert_same(second, first)
        assert_same(third, first)


def test_graphs_are_not_used_for_another_call(cp: Any) -> None:
    """Alternating calls with other weights, directions, lengths, sizes and dtypes, each until its graph is replayed."""
    cases = [Case("lstm", reverse=on, ragged=ragged) for on in (False, True) for ragged in (False, True)]
    cases += [Case("lstm", P=4), Case("lstm", H=5), Case("lstm", B=2), Case("lstm", T=6), Case("lstm", I=5)]
    held = [(case, make_inputs(case, "float32", seed, "cuda:0")) for case in cases for seed in (0, 1)]
    wanted = [run(case, make_inputs(case, "float64", seed), "numpy") for case in cases for seed in (0, 1)]
    for _ in range(3):
        for (case, inputs), want in zip(held, wanted, strict=True):
            got = run(case, inputs, STEPWISE)
            assert_matches(got, want)


def test_graphs_of_one_layer_are_distinguished(cp: Any) -> None:
    """One layer's weights, alternately forward and reverse, and with different lengths of the same total."""
    held = make_inputs(Case("gru", T=4, B=3), "float32", device="cuda:0")
    wide = make_inputs(Case("gru", T=4, B=3), "float64")
    calls = [(reverse, lengths) for reverse in (False, True) for lengths in (None, [4, 1, 1], [3, 2, 1])]
    for _ in range(3):
        for reverse, lengths in calls:
            case = Case("gru", T=4, B=3, reverse=reverse)
            held.lengths = wide.lengths = lengths
            assert_matches(run(case, held, STEPWISE), run(case, wide, "numpy"))


def test_graphs_are_dropped_when_the_workspace_moves(cp: Any) -> None:
    from rnnkit.backends.cupy import arena

    small, large = Case("gru"), Case("gru", T=9, B=33, H=40)
    inputs = make_inputs(small, "float32", device="cuda:0")
    with (
        mock.patch.object(arena, "LEAST_BYTES", 0),
        cp.cuda.Stream(non_blocking=True),
    ):  # a new arena
        want = [run(small, inputs, STEPWISE) for _ in range(3)][-1]
        run(large, make_inputs(large, "float32", device="cuda:0"), STEPWISE)
        assert_same(run(small, inputs, STEPWISE), want)


def test_launches_of_a_step_are_as_predicted(cp: Any) -> None:
    """A product and a launch forward and backward; two more with a projection, and in the reset-before GRU."""
    T = 6
    for cell, P, forward, backward in (
        ("rnn_tanh", 0, (1, 1), (1, 1)),
        ("gru", 0, (1, 1), (1, 1)),
        ("lstm", 0, (1, 1), (1, 1)),
        ("lstm", 4, (2, 2), (2, 2)),
        ("gru_reset_before", 0, (2, 2), (2, 2)),
    ):
        case = Case(cell, T=T, P=P)
        inputs = make_inputs(case, "float32", device="cuda:0")
        with cp.fake.counting() as whole:
            run(case, inputs, STEPWISE)
        with cp.fake.counting() as captured:
            run(case, inputs, STEPWISE)
        products, launches = (forward[k] + backward[k] for k in (0, 1))
        assert captured.captures == captured.graph_launches == 2
        assert captured.captured["gemm"] == T * products
        assert sum(captured.captured.values()) == T * (products + launches)
        around = whole.gemms - T * products
        assert around == 1 + 1 + 1 + len(CELLS[cell].products) + bool(P), "x W, dW_ih, dx, dW_hh by operand, dW_hr"


@pytest.mark.parametrize("ragged", [False, True])
def test_nothing_synchronises_and_only_results_are_allocated(cp: Any, ragged: bool) -> None:
    case = Case("lstm", T=6, B=4, ragged=ragged)
    inputs = make_inputs(case, "float32", device="cuda:0")
    for _ in range(3):
        run(case, inputs, STEPWISE)
    with cp.fake.counting() as counts:
        results = outputs(case, inputs, STEPWISE)
    assert not counts.synchronisations
    assert counts.device_mallocs == 0
    assert counts.graph_launches == 2
    # y, h_n, c_n; saved activations, h and c before each step; dx, dh0, dc0 and five gradients of weights. With
    # lengths: the offsets of rows, and x and dx without padding.
    assert counts.allocations == 3 + 3 + 3 + 4 + (3 if ragged else 0), counts
    del results


def test_no_synchronisation_in_inference(cp: Any) -> None:
    case = SMALL["gru"]
    inputs = make_inputs(case, "float32", device="cuda:0")
    with cp.fake.counting() as counts:
        y, (h_n,), saved = direction.forward(
            "gru", inputs.x, inputs.state0, inputs.weights, backend=STEPWISE, keep=False
        )
    assert saved is None
    assert not counts.synchronisations
    want = run(case, make_inputs(case, "float64"), "numpy")
    assert_close("y", y, want["y"], "float32")
    assert_close("h_n", h_n, want["h_n"], "float32")


def test_the_arrays_determine_the_device(cp: Any) -> None:
    case = SMALL["gru"]
    want = run(case, make_inputs(case, "float64"), "numpy")
    assert cp.cuda.runtime.getDevice() == 0
    got = run_on(cp, case, "cuda:1")
    assert cp.cuda.runtime.getDevice() == 0
    assert_matches(got, want)


def test_threads_do_not_share_handles(cp: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    case = SMALL["lstm"]
    inputs = [make_inputs(case, "float32", seed, "cuda:0") for seed in range(2)]
    want = [run(case, make_inputs(case, "float64", seed), "numpy") for seed in range(2)]

    def work(seed: int) -> list[dict[str, np.ndarray]]:
        return [run(case, inputs[seed], STEPWISE) for _ in range(4)]

    with ThreadPoolExecutor(2) as pool:
        for seed, results in enumerate(pool.map(work, range(2))):
            for got in results:
                assert_matches(got, want[seed])
    assert all(len(handle.threads) <= 1 for handle in cp.fake.handles())


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_gradients_of_any_strides(cp: Any, cell: str, rng: np.random.Generator) -> None:
    case = SMALL[cell]
    inputs = make_inputs(case, "float32", device="cuda:0")
    want = run(case, make_inputs(case, "float64"), "numpy")
    T, B, R = inputs.dy.shape
    wide = cp.asarray(randn(rng, B, T, R + 3, dtype="float32"))
    wide[:, :, 2 : R + 2] = inputs.dy.swapaxes(0, 1)
    backwards = cp.asarray(np.ascontiguousarray(inputs.dy.get()[:, :, ::-1]))
    for dy in (wide.swapaxes(0, 1)[:, :, 2 : R + 2], backwards[:, :, ::-1]):
        _, _, saved = direction.forward(cell, inputs.x, inputs.state0, inputs.weights, backend=STEPWISE)
        dx, _, _ = direction.backward(saved, dy, inputs.dstate_n, inputs.weights)
        assert_close("dx", dx, want["dx"], "float32", "backward")


def test_weights_of_any_strides(cp: Any) -> None:
    case = Case("lstm", P=4)
    inputs = make_inputs(case, "float32", device="cuda:0")
    turned = Weights(*(None if w is None else (w if w.ndim == 1 else w.T.copy().T) for w in inputs.weights))
    assert not turned.w_hh.flags.c_contiguous
    want = run(case, make_inputs(case, "float64"), "numpy")
    inputs.weights = turned
    got = run(case, inputs, STEPWISE)
    assert_matches(got, want)


def test_only_one_of_the_two_biases(cp: Any) -> None:
    for cell in CELL_NAMES:
        case = SMALL[cell]
        for side in ("b_ih", "b_hh"):
            inputs, wide = make_inputs(case, "float32", device="cuda:0"), make_inputs(case, "float64")
            inputs.weights, wide.weights = (i.weights._replace(**{side: None}) for i in (inputs, wide))
            got, want = run(case, inputs, STEPWISE), run(case, wide, "numpy")
            assert got.keys() == want.keys()
            assert_matches(got, want)


def test_gradients_of_the_final_states_only(cp: Any) -> None:
    case = SMALL["lstm"]
    inputs, wide = make_inputs(case, "float32", device="cuda:0"), make_inputs(case, "float64")
    for given, end in ((inputs, True), (inputs, False)):
        dstate = given.dstate_n if end else None
        found = [
            direction.backward(direction.forward("lstm", i.x, i.state0, i.weights, backend=b)[2], None, d, i.weights)
            for i, b, d in ((given, STEPWISE, dstate), (wide, "numpy", wide.dstate_n if end else None))
        ]
        (dx, dstate0, dw), (dx_want, dstate0_want, dw_want) = found
        assert_close("dx", dx, dx_want, "float32", "backward")
        for got, want in zip((*dstate0, *dw[:4]), (*dstate0_want, *dw_want[:4]), strict=True):
            assert_close("gradient", got, want, "float32", "backward")


@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize(("T", "B", "lengths"), [(0, 2, None), (3, 0, None), (3, 2, [0, 0])])
def test_empty_inputs(cp: Any, cell: str, T: int, B: int, lengths: Any) -> None:
    case = Case(cell, T=T, B=B)
    inputs = make_inputs(case, "float32", device="cuda:0")
    inputs.lengths = lengths
    got = run(case, inputs, STEPWISE)
    assert not got["y"].any()
    assert not got["dx"].any()
    assert not any(got[name].any() for name in got if name.startswith(("dw", "db")))
    for name, state, dstate in zip(CELLS[cell].states, inputs.state0, inputs.dstate_n, strict=True):
        np.testing.assert_array_equal(got[f"{name}_n"], state.get())
        np.testing.assert_array_equal(got[f"d{name}0"], dstate.get())


# The oracle's i = exp(a_i - m) of the sLSTM is NaN where a_i is infinite: tests/cuda/test_cupy_slstm.py.
@pytest.mark.parametrize(
    ("cell", "dtype"),
    slow_except(
        product([cell for cell in CELL_NAMES if cell != "slstm"], FULL), *of_few_builds(FULL, CELL_NAMES), unpack=True
    ),
)
def test_infinities_and_nan(cp: Any, cell: str, dtype: str) -> None:
    """Row 0 has a NaN, row 1 infinities. Their results equal the oracle's, and other rows are unaffected."""
    case = Case(cell, T=2, B=4, I=3, H=5)
    inputs = make_inputs(case, dtype, device="cuda:0")
    x = inputs.x.get()
    x[0, 0, 1], x[0, 1, 2] = np.nan, np.inf
    inputs.x = cp.asarray(x)
    wide = make_inputs(case, "float64")
    wide.x = x.astype(np.float64)
    if dtype != "float32":
        from rnnkit.testing import widened

        wide = widened(inputs)
    with np.errstate(invalid="ignore"):
        got, want = run(case, inputs, STEPWISE), run(case, wide, "numpy")
    for name in ("y", "h_n", "dx"):
        assert_close(name, got[name], want[name], dtype, "backward")


@pytest.mark.parametrize(
    ("name", "dtype"), slow_except(product(LAYERS, FULL), *of_few_builds(FULL, LAYERS), unpack=True)
)
def test_layers_equal_the_oracle(cp: Any, name: str, dtype: str) -> None:
    """Two bidirectional layers, ragged, with dropout, on the device as on the CPU."""
    results = []
    oracle = LAYERS[name](3, 9, 2, bidirectional=True, dtype="float64", backend="numpy")
    for device, kind in (("cuda:0", dtype), ("cpu", "float64")):
        layer = LAYERS[name](3, 9, 2, dropout=0.4, bidirectional=True, dtype=kind, device=device, rng=3)
        drawn = np.random.default_rng(4)

        def put(a: np.ndarray, kind: str = kind, device: str = device) -> Any:
            a = a.astype(dtype).astype(kind)
            return cp.asarray(a) if device != "cpu" else a

        for parameter in layer.params.values():
            parameter[...] = put(randn(drawn, *parameter.shape) * np.float32(0.3))
        state = tuple(put(s) for s in parts(random_state(oracle, 4, drawn)))
        x, dy = put(randn(drawn, 6, 4, 3)), put(randn(drawn, 6, 4, 18))
        given = state[0] if len(state) == 1 else state
        y, state_n = layer(x, given, [3, 6, 0, 5])
        dx, dstate0 = layer.backward(dy, given)
        found = {"y": y, "dx": dx}
        found |= {f"state_n[{k}]": s for k, s in enumerate(parts(state_n))}
        found |= {f"dstate0[{k}]": s for k, s in enumerate(parts(dstate0))}
        results.append(found | {f"grad {n}": g for n, g in layer.grads.items()})
    got, want = results
    assert_matches(got, want, dtype)


def test_explain_on_cuda(cp: Any) -> None:
    layer = rnnkit.LSTM(3, 4, device="cuda", dtype="tf32")
    x = cp.zeros((5, 2, 3), "float32")
    explained = rnnkit.explain(layer, x)
    assert explained.backend == "cupy"
    assert "schedule one_block" in explained.kernel
    assert explained.dtype == "tf32"
    assert "TF32" not in explained.why
    assert explained.kept_bytes == 5 * 2 * (4 * 4 + 4 + 4) * 4
