"""Schedule A, "one_block", without a GPU, against the float64 oracle: its launch code, and its kernels in the emulator.

Memory of the stand-in for CuPy is NaN until it is written. In check mode the emulator detects races, accesses out of
bounds and reads of uninitialised memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.cupy import one_block, sources, tiles
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.cupy.tiles import ARITHMETIC
from rnnkit.backends.interface import Sizes
from rnnkit.core.dtypes import DTYPES
from rnnkit.errors import UnsupportedDeviceError
from rnnkit.functional import direction
from rnnkit.testing import Case, assert_close, make_inputs, parity, run, widened
from tests.cuda.cuda_helpers import KINDS, PROJECTED, chunked, cuda, kind_case, step_of, step_of_kind
from tests.cuda.cuda_helpers import RESIDENT_CASES as CASES
from tests.cuda.cuda_helpers import RESIDENT_CELLS as CELLS
from tests.helpers import assert_same, refused, slow_except
from tests.tools import emulator
from tests.tools.cards import CARDS

pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

ONE_BLOCK = "cupy:one_block"
SERVED = list(CASES)
# Several tiles of units and of rows, the last of each incomplete, lengths from 0 to T, several blocks of columns.
WIDE = {kind: kind_case(kind, T=4, B=11, I=3, H=37, reverse=kind != "gru", ragged=True) for kind in KINDS}
COVER = [case for case in SERVED if (case.T, case.B, case.H) in {(5, 3, 6), (3, 13, 33)}]

# `make test` runs one dtype of every cell, and the others of one cell; `make test-all` the rest.
PAIRS = [(kind, dtype) for kind in KINDS for dtype in ARITHMETIC]
QUICK = [(kind, dtype) for kind, dtype in PAIRS if kind == "lstm" or dtype == "float32"]
# In bfloat16 some unit of relu close to 0 changes its sign in the case with 9 rows, in every schedule alike.
FLIPS = ("rnn_relu", "bfloat16")
CHECKED = [("gru", "float32"), ("rnn_relu", "tf32"), ("lstm_projected", "float16")]


@pytest.fixture(scope="module")
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


@contextmanager
def held(blocks: int) -> Iterator[None]:
    """Limits the blocks of columns that a warp holds in registers, so that small H need shared memory too.

    Inside of `cuda`, which imports the CuPy backend anew.
    """
    from rnnkit.backends.cupy import tiles

    few = {
        name: row._replace(held={256: dict.fromkeys((1, 3, 4, 5), blocks)}) for name, row in tiles.ARITHMETIC.items()
    }
    with mock.patch.dict(tiles.ARITHMETIC, few):
        tiles.one_block_builds.cache_clear()
        yield
    tiles.one_block_builds.cache_clear()


def assert_within(worst: dict[str, float]) -> None:
    over = {name: f"{ratio:.3g} x tolerance" for name, ratio in worst.items() if not ratio <= 1}
    assert not over, over


@pytest.mark.parametrize(("kind", "dtype"), slow_except(PAIRS, *QUICK, unpack=True))
def test_parity(cp: Any, kind: str, dtype: str) -> None:
    for case in (*COVER, *([] if (kind, dtype) == FLIPS else [kind_case(kind, T=3, B=9, H=33)])):
        if case.cell == kind or (case.P and kind in PROJECTED):
            assert_within(parity(ONE_BLOCK, case, dtype, device="cuda:0"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ARITHMETIC)
@pytest.mark.parametrize("case", [case for case in SERVED if case not in COVER], ids=str)
def test_parity_of_every_case(cp: Any, case: Case, dtype: str) -> None:
    assert_within(parity(ONE_BLOCK, case, dtype, device="cuda:0"))


@pytest.mark.parametrize(("kind", "dtype"), slow_except(PAIRS, *CHECKED, unpack=True))
@pytest.mark.parametrize("blocks", slow_except([0, 1], 1))
def test_no_race_and_no_uninitialised_read(kind: str, dtype: str, blocks: int) -> None:
    """In ascending, descending and random order of threads, with weights in registers and in shared memory."""
    case = WIDE[kind]
    with cuda(mode="check") as cp, held(blocks), chunked(3):
        for schedule in ({}, {"order": "descending"}, {"seed": 1}, {"seed": 2}):
            cp.fake.launch_options.clear()
            cp.fake.launch_options.update(schedule)
            assert_within(parity(ONE_BLOCK, case, dtype, device="cuda:0"))
        from rnnkit.backends.cupy import tiles

        division = tiles.in_one_block(DTYPES[dtype], step_of(case))
        assert division is not None
        assert division.shared_weights
        assert {one.shared_mem for one in cp.fake.launches if one.name == "forward_chunk"} == {division.shared_bytes}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("steps", slow_except([1, 3], 3))
def test_chunks_of_steps_give_the_same_bits(cp: Any, kind: str, reverse: bool, ragged: bool, steps: int) -> None:
    """Several launches, the last one of fewer steps, equal one launch."""
    case = kind_case(kind, T=7, B=11, I=3, H=6, reverse=reverse, ragged=ragged)
    inputs = make_inputs(case, "float16", device="cuda:0")
    whole = run(case, inputs, ONE_BLOCK)
    with chunked(steps):
        parts = run(case, inputs, ONE_BLOCK)
    for name in ("y", "h_n", "c_n"):
        if name in whole:
            np.testing.assert_array_equal(parts[name], whole[name])


def test_one_launch_per_chunk(cp: Any) -> None:
    case = Case("lstm", T=8, B=3)
    inputs = make_inputs(case, "float32", device="cuda:0")
    given = (inputs.x, inputs.state0, inputs.weights)
    for steps, chunks in ((256, 1), (4, 2)):
        with chunked(steps), cp.fake.counting() as counts:
            direction.forward("lstm", *given, backend=ONE_BLOCK)
        assert counts.launches == {
            "forward_begin": 1, "pack_weights": 1, "forward_chunk": chunks, "forward_end": 1,
        }  # fmt: skip
        assert counts.gemms == chunks
        assert not counts.synchronisations


@pytest.mark.parametrize("kind", KINDS)
def test_without_saving_the_results_are_the_same(cp: Any, kind: str) -> None:
    inputs = make_inputs(WIDE[kind], "bfloat16", device="cuda:0")
    given = (inputs.x, inputs.state0, inputs.weights)
    found = []
    for keep in (True, False):
        y, state_n, saved = direction.forward(
            WIDE[kind].cell, *given, lengths=inputs.lengths, backend=ONE_BLOCK, keep=keep
        )
        assert (saved is not None) == keep
        found.append([a.get() for a in (y, *state_n)])
    for kept, not_kept in zip(*found, strict=True):
        np.testing.assert_array_equal(kept, not_kept)


@pytest.mark.parametrize("dtype", ARITHMETIC)
def test_bits_of_a_row_do_not_depend_on_the_batch(cp: Any, dtype: str) -> None:
    case = Case("gru", T=3, B=11, I=4, H=37)
    inputs = make_inputs(case, dtype, device="cuda:0")
    precision = None if dtype in ("float16", "bfloat16", "float32", "float64") else dtype
    weights = inputs.weights

    def forward(rows: list[int]) -> Any:
        x, h0 = (cp.asarray(np.ascontiguousarray(a.get()[..., rows, :])) for a in (inputs.x, inputs.state0[0]))
        y, _, _ = direction.forward("gru", x, (h0,), weights, backend=ONE_BLOCK, precision=precision)
        return y.get()

    whole = forward(list(range(11)))
    for rows in ([0], [9, 4], [10, 9, 8, 7, 6, 5, 4, 3, 2]):
        np.testing.assert_array_equal(forward(rows), whole[:, rows])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_infinities_and_nan_stay_in_their_rows(cp: Any, kind: str, dtype: str) -> None:
    case = kind_case(kind, T=2, B=4, I=3, H=5)
    inputs = make_inputs(case, dtype, device="cuda:0")
    x = inputs.x.get()
    x[0, 0, 1], x[0, 1, 2] = np.nan, np.inf
    inputs.x = cp.asarray(x)
    with np.errstate(invalid="ignore"):
        got, want = run(case, inputs, ONE_BLOCK), run(case, widened(inputs), "numpy")
    for name in ("y", "h_n"):
        assert_close(name, got[name], want[name], dtype)


def test_the_gradients_are_those_of_stepwise(cp: Any) -> None:
    """The backward pass reads what this schedule saves in the layout of schedule D."""
    for kind in ("lstm", "lstm_projected"):
        case = WIDE[kind]
        inputs = make_inputs(case, "float64", device="cuda:0")
        got, want = run(case, inputs, ONE_BLOCK), run(case, inputs, "cupy:stepwise")
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-12, atol=1e-12, err_msg=name)


# What it serves


def work(cell: str, dtype: str, H: int, P: int = 0) -> Work:
    return Work(CELLS[cell], DTYPES[dtype], Sizes(5, 3, 4, H, P or H, 15), keep=False, projected=bool(P))


H200, T4, V100 = CARDS["NVIDIA H200"], CARDS["Tesla T4"], CARDS["Tesla V100-SXM2-32GB"]


@pytest.mark.parametrize(
    ("asked", "card", "reason"),
    [
        (work("lstm", "float16", 64, P=80), H200, "a projection to 80 units, more than H = 64"),
        (work("lstm", "float16", 193, P=192), H200, "H = 193 needs"),
        (work("lstm", "float16", 128, P=96), H200, None),
        (work("lstm", "float16", 64, P=32), H200, None),
        (work("gru_reset_before", "float16", 64), H200, None),
        (work("lstm", "float16", 161), H200, "H = 161 needs 2"),
        (work("lstm", "float32", 129), H200, "H = 129 needs 3"),
        (work("rnn_tanh", "float16", 2000), H200, "more warps"),
        (work("lstm", "bfloat16", 64), T4, "bfloat16 needs compute capability 8.0, the card has 7.5"),
        (work("gru", "tf32", 64), T4, "tf32 needs compute capability 8.0"),
        (work("gru", "float16", 64), V100, "float16 needs compute capability 7.5, the card has 7.0"),
        (work("lstm", "float16", 144), T4, "a block has 64 KiB"),
        (work("lstm", "float16", 160), H200, None),
        (work("rnn_relu", "float16", 336), H200, None),
        (work("gru", "float32", 128), H200, None),
        (work("lstm", "float16", 128), T4, None),
        (work("lstm", "float32", 64), V100, None),
        (work("lstm", "float64", 80), H200, None),
    ],
    ids=lambda value: f"{value.cell.name}-{value.dtype.name}-H{value.sizes.H}" if isinstance(value, Work) else "",
)
def test_what_it_serves(asked: Work, card: Any, reason: str | None) -> None:
    problem = one_block.problem(asked, card)
    assert problem is None if reason is None else problem is not None and reason in problem


def test_every_call_that_it_serves_has_a_build() -> None:
    names = {build.name for build in one_block.builds()}
    assert len(names) == len(one_block.builds())
    for card in CARDS.values():
        for kind in KINDS:
            for dtype in ARITHMETIC:
                for H in (2, 16, 17, 64, 100, 128, 192, 200, 256, 352):
                    step = step_of_kind(kind, H)
                    asked = work(step.cell.name, dtype, H, P=step.R if step.projected else 0)
                    if one_block.problem(asked, card) is None:
                        division = tiles.in_one_block(DTYPES[dtype], step)
                        assert division is not None
                        assert one_block._build(step, DTYPES[dtype], division.config).name in names


def test_a_call_that_it_does_not_serve_runs_stepwise(cp: Any) -> None:
    layer = rnnkit.RNN(3, 2000, device="cuda", dtype="float64")
    x = cp.zeros((5, 2, 3), "float64")
    explained = rnnkit.explain(layer, x).kernel
    assert "schedule stepwise" in explained
    assert "passed over one_block: H = 2000 needs more warps than a block has" in explained
    with refused(UnsupportedDeviceError, "one_block", "H = 2000"):
        rnnkit.RNN(3, 2000, device="cuda", dtype="float64", backend=ONE_BLOCK)(x)


def test_explain_names_the_division(cp: Any) -> None:
    layer = rnnkit.LSTM(3, 160, device="cuda", dtype="float16", backend=ONE_BLOCK)
    explained = rnnkit.explain(layer, cp.zeros((5, 20, 3), "float16")).kernel
    for words in ("3 blocks of 320 threads, 8 rows each", "5 steps per launch", "160 of 200 KiB of W_hh"):
        assert words in explained


def test_graphs_of_other_schedules_are_not_disturbed(cp: Any) -> None:
    """Both schedules use one workspace by turns."""
    case = Case("gru", T=4, B=9, H=20)
    inputs = make_inputs(case, "float32", device="cuda:0")
    want = {name: run(case, inputs, name) for name in (ONE_BLOCK, "cupy:stepwise")}
    for _ in range(3):
        for name in want:
            assert_same(run(case, inputs, name), want[name])


def test_builds_have_their_dtypes_macros() -> None:
    for build in one_block.builds():
        defines = dict(build.defines)
        assert ("RK_TF32" in defines) == ("tf32" in build.name)
        assert sources.options(build)
