"""The backward pass of schedule A without a GPU, against the float64 oracle: its launch code, and its kernels in the
emulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rnnkit.core.cells import Weights
from rnnkit.core.devices import to_numpy
from rnnkit.core.dtypes import DTYPES
from rnnkit.functional import direction
from rnnkit.testing import Case, Inputs, errors, growth_of, kind_of, make_inputs, precision_of, run, widened
from tests.cuda.cuda_helpers import KINDS, assert_matches, chunked, cuda, kind_case, step_of_kind
from tests.cuda.cuda_helpers import RESIDENT_CASES as CASES
from tests.cuda.cuda_helpers import RESIDENT_CELLS as CELLS
from tests.helpers import assert_same, randn, slow_except
from tests.tools import emulator

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

PAIRS = [(kind, dtype) for kind in KINDS for dtype in DTYPES]
# Every cell and every dtype, of the pairs that test_cupy_one_block.py compiles; `make test-all` runs the others.
SOME = [(kind, dtype) for kind, dtype in PAIRS if kind == "lstm" or dtype == "float32"]
ORDERS = [{"order": "ascending"}, {"order": "descending"}] + [{"order": "random", "seed": s} for s in (1, 2)]


@pytest.fixture(scope="module")
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


def cases_of(kind: str) -> list[Case]:
    """Sizes below and above a tile of rows, a tile of units and a block of columns; ragged and reverse."""
    return [
        *(case for case in CASES if f"{case.cell}{'_projected' if case.P else ''}" == kind),
        kind_case(kind, T=4, B=8, I=3, H=16, reverse=True, ragged=True),
        kind_case(kind, T=3, B=17, I=2, H=29, ragged=True),
    ]


def both(case: Case, inputs: Inputs, forward: str, backward: str, precision: str | None = None) -> dict[str, Any]:
    """`rnnkit.testing.run`, with one schedule forward and another one backward."""
    from rnnkit.backends.cupy.schedules import SCHEDULES

    given = (inputs.x, inputs.state0, inputs.weights)
    how = {"lengths": inputs.lengths, "reverse": case.reverse, "precision": precision}
    y, state_n, saved = direction.forward(case.cell, *given, backend=f"cupy:{forward}", **how)
    assert saved is not None
    assert saved.own.schedule.name == forward
    (row,) = (schedule for schedule in SCHEDULES if schedule.name == backward)
    saved = saved._replace(own=saved.own._replace(schedule=row))
    dx, dstate0, dweights = direction.backward(saved, inputs.dy, inputs.dstate_n, inputs.weights)
    found = {"y": y, "dx": dx}
    for name, n, d in zip(CELLS[case.cell].states, state_n, dstate0, strict=True):
        found |= {f"{name}_n": n, f"d{name}0": d}
    found |= {f"d{name}": d for name, d in zip(Weights._fields, dweights, strict=True) if d is not None}
    return {name: to_numpy(a) for name, a in found.items()}


def assert_parity(case: Case, dtype: str, forward: str = "one_block", backward: str = "one_block") -> None:
    inputs = make_inputs(case, dtype, device="cuda:0")
    got = both(case, inputs, forward, backward, precision_of(dtype))
    want = run(case, widened(inputs), "numpy")
    assert got.keys() == want.keys()
    worst = {name: errors(got[name], want[name], dtype, kind_of(name), growth_of(case, dtype)).worst for name in want}
    assert all(share <= 1 for share in worst.values()), worst


@pytest.mark.parametrize(("kind", "dtype"), slow_except(PAIRS, *SOME, unpack=True))
def test_every_gradient_equals_the_oracle(cp: Any, kind: str, dtype: str) -> None:
    pytest.importorskip("ml_dtypes")
    for case in cases_of(kind):
        assert_parity(case, dtype)
    launched = {launch.name for launch in cp.fake.launches}
    assert {"forward_chunk", "backward_chunk"} <= launched


@pytest.mark.parametrize(("kind", "dtype"), slow_except(PAIRS, ("gru", "float32"), ("lstm", "bfloat16"), unpack=True))
@pytest.mark.parametrize(("forward", "backward"), [("stepwise", "one_block"), ("one_block", "stepwise")])
def test_schedules_read_what_the_other_one_saves(cp: Any, kind: str, dtype: str, forward: str, backward: str) -> None:
    pytest.importorskip("ml_dtypes")
    for case in (kind_case(kind, B=9, H=18, ragged=True), kind_case(kind, B=9, H=18, reverse=True)):
        assert_parity(case, dtype, forward, backward)


@pytest.mark.parametrize(
    ("kind", "dtype", "H"),
    slow_except(
        [
            ("gru_reset_before", "bfloat16", 190),
            ("gru_reset_before", "float32", 120),
            ("lstm_projected", "bfloat16", 150),
            ("lstm", "bfloat16", 129),  # the second build, of blocks of 384 threads
            ("lstm", "bfloat16", 150),
            ("gru", "float16", 190),  # not divisible by a tile of units
            ("rnn_tanh", "float16", 250),  # the third build
            ("gru", "float32", 70),
            ("lstm", "float32", 128),
            ("rnn_relu", "float64", 130),
        ],
        ("lstm", "bfloat16", 150),
        ("gru", "float32", 70),
        unpack=True,
    ),
)
def test_weights_in_registers_and_in_shared_memory(cp: Any, kind: str, dtype: str, H: int) -> None:
    from rnnkit.backends.cupy import one_block_backward

    division = one_block_backward.divided(DTYPES[dtype], step_of_kind(kind, H))
    assert division is not None
    assert division.shared_weights > 0
    assert division.config.held == 0 or division.shared_weights < division.weight_bytes
    assert_parity(kind_case(kind, T=3, B=9, I=2, H=H, ragged=True), dtype, forward="stepwise")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_chunks_of_steps(cp: Any, reverse: bool, steps: int) -> None:
    """Several launches, the last one shorter, and chunks in which whole tiles of rows have ended."""
    case = Case("gru", T=7, B=20, I=3, H=6, reverse=reverse, ragged=True)
    with chunked(steps):
        assert_parity(case, "float32")


def test_one_launch_per_chunk(cp: Any) -> None:
    case = Case("lstm", T=7, B=3, H=6)
    inputs = make_inputs(case, "float32", device="cuda:0")
    with chunked(4), cp.fake.counting() as counts:
        both(case, inputs, "one_block", "one_block")
    assert counts.launches["backward_chunk"] == 2
    assert counts.gemms == 2 * (1 + 3), "per chunk: x W_ih, dW_ih, dW_hh, dx"


@pytest.mark.parametrize("kind", slow_except(KINDS, "gru", "lstm_projected"))
@pytest.mark.parametrize("dtype", slow_except(["float32", "bfloat16"], "float32"))
def test_no_race_and_no_access_out_of_bounds(kind: str, dtype: str) -> None:
    """Checks every access for bounds, races and uninitialised memory, in four orders of threads."""
    cases = [kind_case(kind, T=3, B=9, I=3, H=5, ragged=True), kind_case(kind, T=3, B=2, I=2, H=33, reverse=True)]
    with cuda(mode="check") as cp:
        for case in cases:
            found = []
            for options in ORDERS:
                cp.fake.launch_options.update(seed=None)
                cp.fake.launch_options.update(options)
                inputs = make_inputs(case, dtype, device="cuda:0")
                found.append(both(case, inputs, "stepwise", "one_block"))
            assert_matches(found[0], run(case, widened(make_inputs(case, dtype)), "numpy"), dtype)
            for other in found[1:]:
                assert_same(other, found[0])


@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_of_outputs_only_and_of_final_states_only(cp: Any, ragged: bool) -> None:
    case = Case("lstm", B=9, ragged=ragged)
    given = make_inputs(case, "float32", device="cuda:0")
    wide = make_inputs(case, "float64")
    for dy, end in ((True, False), (False, True), (False, False)):
        found = []
        for inputs, backend in ((given, "cupy:one_block"), (wide, "numpy")):
            run_forward = (inputs.x, inputs.state0, inputs.weights)
            saved = direction.forward("lstm", *run_forward, lengths=inputs.lengths, backend=backend)[2]
            ends = inputs.dstate_n if end else None
            found.append(direction.backward(saved, inputs.dy if dy else None, ends, inputs.weights))
        (dx, dstate0, dweights), (dx_want, dstate0_want, dweights_want) = found
        got = {"dx": dx, "dh0": dstate0[0], "dc0": dstate0[1], "dw_hh": dweights.w_hh, "db_hh": dweights.b_hh}
        want = {"dx": dx_want, "dh0": dstate0_want[0], "dc0": dstate0_want[1]}
        assert_matches(got, want | {"dw_hh": dweights_want.w_hh, "db_hh": dweights_want.b_hh})


def test_dy_of_any_strides(cp: Any, rng: np.random.Generator) -> None:
    case = Case("gru", B=9)
    inputs = make_inputs(case, "float32", device="cuda:0")
    want = run(case, make_inputs(case, "float64"), "numpy")
    T, B, H = inputs.dy.shape
    wide = cp.asarray(randn(rng, B, T, H + 3, dtype="float32"))
    wide[:, :, 2 : H + 2] = inputs.dy.swapaxes(0, 1)
    backwards = cp.asarray(np.ascontiguousarray(inputs.dy.get()[:, :, ::-1]))
    for dy in (wide.swapaxes(0, 1)[:, :, 2 : H + 2], backwards[:, :, ::-1]):
        inputs.dy = dy
        assert_matches(both(case, inputs, "one_block", "one_block"), want)


@pytest.mark.parametrize(("cell", "dtype"), [("gru", "float32"), ("lstm", "bfloat16")])
def test_bits_of_a_row_do_not_depend_on_the_others(cp: Any, cell: str, dtype: str) -> None:
    """Nor on their number and lengths, nor on its place. x is zero: cuBLAS promises nothing of x W_ih^T."""
    pytest.importorskip("ml_dtypes")
    case = Case(cell, T=4, B=11, I=3, H=21)
    inputs = make_inputs(case, dtype, device="cuda:0")
    inputs.x[...] = 0
    together = both(case, inputs, "one_block", "one_block")
    inputs.lengths = [4 - b % 2 for b in range(11)]
    mixed = both(case, inputs, "one_block", "one_block")
    for b in (0, 8, 10):
        take = slice(b, b + 1)
        state0, dstate_n = (tuple(s[take] for s in states) for states in (inputs.state0, inputs.dstate_n))
        alone = dataclasses.replace(
            inputs, x=inputs.x[:, take], state0=state0, dy=inputs.dy[:, take], dstate_n=dstate_n, lengths=None
        )
        got = both(Case(cell, T=4, B=1, I=3, H=21), alone, "one_block", "one_block")
        for name in (n for n in got if n.endswith("0")):
            np.testing.assert_array_equal(got[name][0], together[name][b])
            np.testing.assert_array_equal(got[name][0], mixed[name][b])


def test_rows_of_length_zero_keep_their_gradient(cp: Any) -> None:
    """Also beside rows whose gradients are infinite, in the same tile."""
    case = Case("lstm", T=3, B=4, H=6)
    inputs = make_inputs(case, "float32", device="cuda:0")
    inputs.lengths = [3, 0, 2, 0]
    inputs.dy[0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        got = both(case, inputs, "one_block", "one_block")
    for name, given in zip(("dh0", "dc0"), inputs.dstate_n, strict=True):
        for b in (1, 3):
            np.testing.assert_array_equal(got[name][b], given.get()[b])
        assert np.isfinite(got[name][2]).all()
        assert not np.isfinite(got["dh0"][0]).any()


def test_sizes_that_do_not_fit_are_refused_by_name() -> None:
    from rnnkit.backends.cupy import one_block_backward
    from tests.tools.cards import CARDS

    def problem(dtype: Any, gates: int, H: int, card: Any) -> str | None:
        cell = next(cell for cell in CELLS.values() if cell.n_gates == gates)
        return one_block_backward.problem(dtype, step_of_kind(cell.name, H), card)

    h100 = CARDS["NVIDIA H100 80GB HBM3"]
    t4 = CARDS["Tesla T4"]
    assert problem(DTYPES["bfloat16"], 4, 170, h100) is None
    assert problem(DTYPES["float32"], 4, 128, h100) is None
    assert problem(DTYPES["float16"], 4, 128, t4) is None
    assert "H = 128 needs" in str(problem(DTYPES["float32"], 4, 128, t4))
    assert "a block has 64 KiB" in str(problem(DTYPES["float32"], 4, 128, t4))
    assert "more warps" in str(problem(DTYPES["float16"], 1, 600, h100))
