"""The sLSTM in the schedule `stepwise`, in the emulator, against the float64 oracle. Its states beside h are three.

Memory of the stand-in for CuPy is NaN until it is written. The suites of every cell have more cases of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.core.cells import CELLS, Cell, State, StepGradients, Weights
from rnnkit.core.devices import to_device, to_numpy
from rnnkit.core.dtypes import DTYPES
from rnnkit.errors import UnsupportedDeviceError
from rnnkit.kernels.cells import HEADERS, Header
from rnnkit.testing import Case, errors, kind_of, make_inputs, parity, run, widened
from tests.cuda.cuda_helpers import assert_matches, chunked, cuda
from tests.helpers import assert_same, randn, random_state, slow_except, train_step
from tests.tools import emulator

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

STEPWISE = "cupy:stepwise"
SMALL = Case("slstm", T=4, B=5, I=3, H=7, ragged=True)
SHAPES = [
    SMALL,
    replace(SMALL, reverse=True, bias=False),
    replace(SMALL, T=6, B=7, H=33, reverse=True),
    replace(SMALL, T=3, B=2, H=70, ragged=False),
    replace(SMALL, T=1, B=1, H=1, ragged=False),
]


@pytest.fixture(scope="module")
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


def assert_parity(case: Case, dtype: str) -> None:
    over = {name: ratio for name, ratio in parity(STEPWISE, case, dtype, device="cuda:0").items() if not ratio <= 1}
    assert not over, (case, over)


@pytest.mark.parametrize("dtype", slow_except(["float32", "tf32", "float64", "float16", "bfloat16"], "float32"))
def test_every_output_and_gradient_equals_the_oracles(cp: Any, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    for case in SHAPES:
        assert_parity(case, dtype)


def test_the_wide_kernels_give_the_bits_of_the_narrow_ones(cp: Any) -> None:
    from rnnkit.backends.cupy import stepwise_launch

    case = replace(SMALL, H=8)
    found = []
    for least in (0, 1 << 30):
        with mock.patch.object(stepwise_launch, "WIDE_ELEMENTS", least), cp.fake.counting() as counts:
            found.append(run(case, make_inputs(case, "float32", device="cuda:0"), STEPWISE))
        assert all(name.endswith("_wide") == (least == 0) for name in counts.launches if "_step" in name)
    assert_same(*found)


def assert_equals_the_oracle(n0: Any, **states: Any) -> None:
    """For full and ragged rows; states by name, beside n."""
    for case in (SMALL, replace(SMALL, T=3, ragged=False, reverse=True)):
        inputs = make_inputs(case, "float32", device="cuda:0")
        named = dict(zip("hcnm", inputs.state0, strict=True)) | {"n": to_device(n0.astype(np.float32), "cuda:0")}
        inputs.state0 = tuple((named | states).values())
        assert_matches(run(case, inputs, STEPWISE), run(case, widened(inputs), "numpy"))


def test_units_without_a_step_and_below_the_least_n(cp: Any) -> None:
    rng = np.random.default_rng(0)
    for n0 in (np.zeros((5, 7)), rng.integers(0, 2, (5, 7)), rng.uniform(0.05, 0.9, (5, 7))):
        assert_equals_the_oracle(n0)
        assert_equals_the_oracle(n0, m=to_device(np.full((5, 7), 3, np.float32), "cuda:0"))


def test_pre_activations_far_from_zero(cp: Any) -> None:
    """Gates that are open and closed to the last bit, from states and from zeros."""
    growth = DTYPES["float32"].growth(200)
    for a_i in (-200.0, 200.0):
        for a_f in (-200.0, 200.0):
            inputs = make_inputs(SMALL, "float32", device="cuda:0")
            bias = np.repeat([a_i, a_f, 0.0, 0.0], SMALL.H).astype(np.float32)
            inputs.weights = inputs.weights._replace(b_ih=to_device(bias, "cuda:0"))
            for state0 in (inputs.state0, tuple(cp.zeros_like(s) for s in inputs.state0)):
                inputs.state0 = state0
                got, want = run(SMALL, inputs, STEPWISE), run(SMALL, widened(inputs), "numpy")
                for name, value in want.items():
                    assert errors(got[name], value, "float32", kind_of(name), growth).worst <= 1, name


def test_nan_stays_in_its_row(cp: Any) -> None:
    """Whatever gate it is in."""
    case = replace(SMALL, I=4 * SMALL.H, ragged=False)
    for gate in range(4):
        given = make_inputs(case, "float32", device="cuda:0")
        given.x[...] = 0
        given.weights = given.weights._replace(w_ih=cp.asarray(np.eye(case.I, dtype=np.float32)))
        clean = run(case, given, STEPWISE)
        given.x[1, 2, gate * case.H + 3] = np.nan
        got = run(case, given, STEPWISE)
        assert np.isnan(got["y"][1:, 2, 3]).all(), gate
        assert np.isnan(got["c_n"][2, 3] + got["dx"][:2, 2].sum()), gate
        others = [0, 1, 3, 4]
        for name in ("y", "dx"):
            np.testing.assert_array_equal(got[name][:, others], clean[name][:, others])


def test_equal_arguments_of_max_have_the_gradient_of_the_input_gate(cp: Any) -> None:
    """a_i = p = 0, exactly, in every unit. Then the gradient of the final m is that of a_i."""
    case = replace(SMALL, T=1, ragged=False)
    inputs = make_inputs(case, "float64", device="cuda:0")
    gates = 2 * case.H
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        getattr(inputs.weights, name)[:gates] = 0
    inputs.state0[3][...] = np.log1p(1.0)
    got, want = run(case, inputs, STEPWISE), run(case, widened(inputs), "numpy")
    assert not want["m_n"].any()
    inputs.dstate_n[3][...] = 0
    without = run(case, widened(inputs), "numpy")
    assert np.abs(want["db_ih"] - without["db_ih"])[: case.H].min() > 0
    np.testing.assert_array_equal(want["db_ih"][case.H :], without["db_ih"][case.H :])
    assert_matches(got, want, "float64")


def test_later_calls_and_several_chunks(cp: Any) -> None:
    """The third call of each pair replays the graphs of the second, with lengths and states of its own."""
    case = replace(SMALL, T=7)
    for seed, lengths in enumerate(([7, 2, 5, 0, 5], [3, 7, 5, 2, 6], [1, 1, 2, 7, 5], [7, 7, 7, 5, 7])):
        inputs = make_inputs(case, "float32", seed, device="cuda:0")
        inputs.lengths = np.array(lengths)
        want = run(case, widened(inputs), "numpy")
        assert_matches(run(case, inputs, STEPWISE), want)
        with chunked(2):
            assert_matches(run(case, inputs, STEPWISE), want)


def test_a_step_launches_what_one_of_the_lstm_does(cp: Any) -> None:
    """A call launches four kernels more: the states beyond h and c, in and out, forward and backward."""
    totals = []
    for cell in ("lstm", "slstm"):
        case = replace(SMALL, cell=cell, T=6, ragged=False)
        inputs = make_inputs(case, "float32", device="cuda:0")
        with cp.fake.counting() as counts:
            run(case, inputs, STEPWISE)
        assert counts.launches["forward_step"] == counts.launches["backward_step"] == 6
        totals.append((sum(counts.launches.values()), counts.gemms))
        run(case, inputs, STEPWISE)
        with cp.fake.counting() as counts:
            run(case, inputs, STEPWISE)
        assert counts.graph_launches == 2
    (lstm, products), (slstm, same) = totals
    assert products == same
    assert slstm == lstm + 4


def both(**options: Any) -> tuple[Any, Any]:
    """A layer on the device and its like on the oracle, T, B, I, H = 6, 4, 3, 5."""
    there = rnnkit.SLSTM(3, 5, device="cuda", strict=True, rng=3, **options)
    return there, rnnkit.SLSTM(3, 5, backend="numpy", rng=3, **options)


def up(state: Any) -> Any:
    return tuple(to_device(s, "cuda:0") for s in state)


def trained(layer: Any, x: Any, state: Any, dy: Any, dstate: Any, **options: Any) -> dict[str, np.ndarray]:
    layer.zero_grad()
    y, state_n = layer(x, state, **options)
    dx, dstate0, *of_reset_state = layer.backward(dy, dstate)
    found = {"y": y, "dx": dx} | {f"state_n[{k}]": s for k, s in enumerate(state_n)}
    for name, gradients in zip(("dstate0", "dreset_state"), (dstate0, *of_reset_state), strict=False):
        found |= {f"{name}[{k}]": s for k, s in enumerate(gradients)}
    found |= {f"grad {n}": g for n, g in layer.grads.items()}
    return {name: to_numpy(value).copy() for name, value in found.items()}


def test_layers_in_both_directions_with_resets_masks_and_chunks(cp: Any) -> None:
    there, here = both(num_layers=2, bidirectional=True, dropout=0.3)
    rng = np.random.default_rng(0)
    x, dy = (randn(rng, 6, 4, n, dtype="float32") for n in (3, 10))
    state, dstate, fresh = (random_state(here, 4, rng) for _ in range(3))
    resets, mask = np.zeros((6, 4), bool), np.ones((6, 4), bool)
    resets[3, 1] = resets[0, 2] = True
    mask[2, 0] = mask[4, 3] = False
    cases: list[dict[str, Any]] = [{"lengths": [3, 6, 0, 5]}, {"resets": resets, "mask": mask}]
    cases += [{"resets": resets, "reset_state": fresh}]
    for options in cases:
        given = {name: up(value) if name == "reset_state" else value for name, value in options.items()}
        got = trained(there, to_device(x, "cuda:0"), up(state), to_device(dy, "cuda:0"), up(dstate), **given)
        assert_matches(got, trained(here, x, state, dy, dstate, **options))


@pytest.mark.slow
def test_a_cell_has_the_bits_of_a_layer_of_one_step(cp: Any) -> None:
    layer = rnnkit.SLSTM(3, 5, device="cuda", rng=1)
    cell = rnnkit.SLSTMCell(3, 5, device="cuda", rng=2)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.params.items()}, cells="slstm")
    rng = np.random.default_rng(0)
    x = to_device(randn(rng, 4, 3, dtype="float32"), "cuda:0")
    state, dstate = up(random_state(layer, 4, rng)), up(random_state(layer, 4, rng))
    new, (_, end) = cell(x, tuple(s[0] for s in state)), layer(x[None], state)
    dx, dstate0 = cell.backward(tuple(d[0] for d in dstate))
    want_dx, want_d0 = layer.backward(None, dstate)
    got = [*new, dx, *dstate0, *cell.grads.values()]
    want = [*(s[0] for s in end), want_dx[0], *(d[0] for d in want_d0), *layer.grads.values()]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


def test_a_call_in_chunks_with_bounded_memory(cp: Any) -> None:
    there, here = both()
    rng = np.random.default_rng(1)
    x, dy = (randn(rng, 24, 4, n, dtype="float32") for n in (3, 5))
    state, dstate = random_state(here, 4, rng), random_state(here, 4, rng)
    most = rnnkit.explain(there, to_device(x, "cuda:0")).kept_bytes // 2
    given = (to_device(x, "cuda:0"), up(state), to_device(dy, "cuda:0"), up(dstate))
    got = trained(there, *given, max_saved_bytes=most)
    assert_matches(got, train_step(here, x, state, dy, dstate))


def test_explain_says_why_other_schedules_are_passed_over(cp: Any) -> None:
    layer, _ = both()
    x = cp.zeros((6, 4, 3), "float32")
    found = rnnkit.explain(layer, x)
    assert (found.backend, "schedule stepwise" in found.kernel) == ("cupy", True)
    for name in ("one_block", "cluster", "grid"):
        why = "cell slstm: its kernels keep one state beside h, the cell has c, n, m"
        assert f"passed over {name}: {why}" in found.kernel
        pinned = rnnkit.SLSTM(3, 5, device="cuda", backend=f"cupy:{name}", rng=0)
        with pytest.raises(UnsupportedDeviceError, match=why):
            pinned(x)


def test_explain_counts_what_a_call_keeps(cp: Any) -> None:
    """Per row-step: 4 values and h in the storage dtype, c, n and m in the compute dtype."""
    for dtype, each in (("float32", 8 * 4), ("float16", 5 * 2 + 3 * 4), ("float64", 8 * 8)):
        layer = rnnkit.SLSTM(3, 5, device="cuda", dtype=dtype, rng=0)
        assert rnnkit.explain(layer, cp.zeros((6, 4, 3), dtype)).kept_bytes == 6 * 4 * 5 * each


@pytest.mark.slow
def test_no_race_and_no_access_out_of_bounds() -> None:
    for case in (replace(SMALL, B=3, H=5), replace(SMALL, T=2, B=9, H=33, reverse=True, ragged=False)):
        want = run(case, make_inputs(case, "float64"), "numpy")
        with cuda(mode="check") as fake:
            for seed in (None, 1):
                fake.fake.launch_options.update(seed=seed)
                assert_matches(run(case, make_inputs(case, "float32", device="cuda:0"), STEPWISE), want)


# A cell with two states beside h, that only rows of the tables name:
# c = c' / 2 + tanh(a);  q = q' / 4 + c;  h = tanh(q)

TWO_STATES = """
struct Cell {
  static const int kGates = 1;
  static const int kSaved = 2;
  static const bool kHasC = true;
  static const int kCellStates = 2;
  static const bool kReadsH = false;
  static const bool kSplits = false;
  static const bool kResetsBefore = false;

  static __device__ __forceinline__ void forward(const Compute* a, const Compute* before, Compute* saved, Compute& h,
                                                 Compute* after) {
    saved[0] = tanh_of(a[0]);
    after[0] = before[0] / Compute(2) + saved[0];
    after[1] = before[1] / Compute(4) + after[0];
    h = saved[1] = tanh_of(after[1]);
  }

  static __device__ __forceinline__ void backward(const Compute* saved, const Compute*, Compute dh, Compute* d,
                                                  Compute* dx) {
    const Compute dq = d[1] + dh * (Compute(1) - saved[1] * saved[1]);
    const Compute dc = d[0] + dq;
    dx[0] = dc * (Compute(1) - saved[0] * saved[0]);
    d[0] = dc / Compute(2);
    d[1] = dq / Compute(4);
  }
};
"""


def two_states_forward(x_side: Any, state: State, weights: Weights) -> tuple[State, dict[str, Any]]:
    h_prev, c_prev, q_prev = state
    z = np.tanh(x_side + h_prev @ weights.w_hh.T + weights.b_hh)
    c = c_prev / 2 + z
    q = q_prev / 4 + c
    h = np.tanh(q)
    return (h, c, q), {"h_prev": h_prev, "c_prev": c_prev, "q_prev": q_prev, "z": z, "h": h}


def two_states_backward(kept: dict[str, Any], dstate: State, weights: Weights) -> StepGradients:
    dh, dc, dq = dstate
    dq = dq + dh * (1 - kept["h"] ** 2)
    dc = dc + dq
    da = dc * (1 - kept["z"] ** 2)
    return StepGradients(da, da, (da @ weights.w_hh, dc / 2, dq / 4))


def test_the_number_of_states_comes_from_the_table(cp: Any, tmp_path: Path) -> None:
    states = ("h", "c", "q")
    shape = {"products": (("h_prev", 0, 1),), "saved": ("z", "h")}
    cell = Cell("two_states", ("z",), states, two_states_forward, two_states_backward, **shape)
    header = tmp_path / "cell.cuh"
    header.write_text(TWO_STATES, encoding="utf-8")
    rows = mock.patch.dict(HEADERS, {cell.name: Header(str(header))})
    with mock.patch.dict(CELLS, {cell.name: cell}), rows:
        assert_parity(Case(cell.name, T=4, B=5, I=3, H=6, ragged=True), "float32")
        assert_parity(Case(cell.name, T=3, B=2, I=3, H=9, reverse=True), "float32")
