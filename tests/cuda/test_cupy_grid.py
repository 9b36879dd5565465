"""Schedule C, "grid", without a GPU, against the float64 oracle: its launch code, and its kernels in the emulator.

The blocks of a cooperative launch run together in the emulator, in several orders. See also test_cupy_one_block.py:
both schedules have the same steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.cupy import grid, tiles
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.interface import Sizes
from rnnkit.core.dtypes import DTYPES
from rnnkit.errors import DeviceError, UnsupportedDeviceError
from rnnkit.functional import direction
from rnnkit.testing import Case, make_inputs, parity, run
from tests.cuda.cuda_helpers import KINDS, assert_matches, chunked, cuda, kind_case, step_of, step_of_kind
from tests.cuda.cuda_helpers import RESIDENT_CELLS as CELLS
from tests.helpers import refused, slow_except
from tests.tools import emulator
from tests.tools.cards import CARDS, simulated

pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

GRID = "cupy:grid"
H200, T4 = CARDS["NVIDIA H200"], CARDS["Tesla T4"]
# Three members of a group, the last one with few units, and an odd number of units; two groups, of 8 and 3 rows.
WIDE = {kind: kind_case(kind, T=4, B=11, I=3, H=37, reverse=kind != "gru", ragged=True) for kind in KINDS}

# `make test` runs a few pairs, `make test-all` the others.
PAIRS = [(kind, dtype) for kind in KINDS for dtype in grid.SERVED]
QUICK = [("lstm", "float16"), ("lstm", "bfloat16"), ("gru", "float32"), ("rnn_tanh", "tf32")]
QUICK += [("gru_reset_before", "float32"), ("lstm_projected", "float16")]
CHECKED = [("gru", "float32"), ("lstm_projected", "float16")]


@pytest.fixture(scope="module")
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


def assert_within(worst: dict[str, float]) -> None:
    over = {name: f"{ratio:.3g} x tolerance" for name, ratio in worst.items() if not ratio <= 1}
    assert not over, over


@pytest.mark.parametrize(("kind", "dtype"), slow_except(PAIRS, *QUICK, unpack=True))
def test_parity(cp: Any, kind: str, dtype: str) -> None:
    for case in (kind_case(kind), kind_case(kind, T=3, B=1, I=2, H=70), WIDE[kind]):
        assert_within(parity(GRID, case, dtype, device="cuda:0"))


@pytest.mark.parametrize(("kind", "dtype"), slow_except(PAIRS, *CHECKED, unpack=True))
def test_no_race_and_no_uninitialised_read(kind: str, dtype: str) -> None:
    """In several orders of threads and blocks; chunks of three steps and of one."""
    with cuda(mode="check") as cp, chunked(3):
        for schedule in ({}, {"order": "descending"}, {"seed": 1}, {"seed": 2}):
            cp.fake.launch_options.clear()
            cp.fake.launch_options.update(schedule)
            assert_within(parity(GRID, WIDE[kind], dtype, device="cuda:0"))


@pytest.mark.parametrize("rows", [3, 11])
def test_two_tiles_of_units_per_block(rows: int) -> None:
    """On a card that holds few blocks: 16 columns of blocks are shared by four warps instead of eight."""
    case = Case("lstm", T=3, B=rows, I=3, H=70)
    few = H200._replace(multiprocessors=3 * -(-rows // 8))
    with cuda(**simulated(few)) as cp:
        assert_within(parity(GRID, case, "float16", device="cuda:0"))
        (launch,) = (one for one in cp.fake.launches if one.name == "forward_chunk")
        assert (launch.grid[0], launch.cooperative) == (3 * -(-rows // 8), True)


def test_tags_of_earlier_calls_are_not_taken(cp: Any) -> None:
    """Calls of several sizes by turns use the same words, and so do calls after others with the same inputs' sizes."""
    cases = [Case("gru", T=T, B=B, I=3, H=H) for T, B, H in ((5, 3, 40), (2, 11, 37), (3, 9, 64))]
    given = [(case, make_inputs(case, "float32", seed, "cuda:0")) for case in cases for seed in (0, 1)]
    wanted = [run(case, make_inputs(case, "float64", seed), "numpy") for case in cases for seed in (0, 1)]
    for _ in range(2):
        for (case, inputs), want in zip(given, wanted, strict=True):
            with chunked(2):
                assert_matches(run(case, inputs, GRID), want)


@pytest.mark.parametrize("kind", slow_except(["lstm", "gru_reset_before", "lstm_projected"], "lstm"))
def test_chunks_and_rows_do_not_change_the_bits(cp: Any, kind: str) -> None:
    case = kind_case(kind, T=5, B=11, I=4, H=37)
    inputs = make_inputs(case, "float16", device="cuda:0")

    def forward(rows: list[int]) -> Any:
        x, *state = (cp.asarray(np.ascontiguousarray(a.get()[..., rows, :])) for a in (inputs.x, *inputs.state0))
        y, state_n, _ = direction.forward(case.cell, x, tuple(state), inputs.weights, backend=GRID)
        return [a.get() for a in (y, *state_n)]

    whole = forward(list(range(11)))
    with chunked(2):
        for part, all_at_once in zip(forward(list(range(11))), whole, strict=True):
            np.testing.assert_array_equal(part, all_at_once)
    for rows in ([0], [10, 4, 2]):
        for part, of_all in zip(forward(rows), whole, strict=True):
            np.testing.assert_array_equal(part, of_all[..., rows, :])


def test_one_launch_per_chunk(cp: Any) -> None:
    case = Case("gru", T=8, B=3, H=40)
    inputs = make_inputs(case, "float32", device="cuda:0")
    given = (inputs.x, inputs.state0, inputs.weights)
    for steps, chunks in ((256, 1), (4, 2)):
        with chunked(steps), cp.fake.counting() as counts:
            direction.forward("gru", *given, backend=GRID)
        launches = {"forward_begin": 1, "pack_weights": 1, "forward_chunk": chunks, "forward_end": 1}
        assert counts.launches == launches
        assert counts.gemms == chunks
        assert not counts.synchronisations


# What it serves


def work(cell: str, dtype: str, H: int, B: int = 8, P: int = 0) -> Work:
    return Work(CELLS[cell], DTYPES[dtype], Sizes(5, B, 4, H, P or H, 5 * B), True, projected=bool(P))


@pytest.mark.parametrize(
    ("asked", "card", "reason"),
    [
        (work("lstm", "float16", 64, P=80), H200, "a projection to 80 units, more than H = 64"),
        (work("lstm", "float16", 1024, P=512), H200, None),
        (work("gru_reset_before", "float16", 1024), H200, None),
        (work("lstm", "float64", 64), H200, "float64"),
        (work("lstm", "bfloat16", 64), T4, "bfloat16 needs compute capability 8.0"),
        (work("lstm", "float16", 1024, B=40), H200, "H = 1024, once per 8 of B = 40 rows"),
        (work("lstm", "float16", 256), H200._replace(cooperative=False), "cooperative"),
        (work("lstm", "float16", 2048), H200, None),
        (work("lstm", "float16", 1024, B=32), H200, None),
        (work("lstm", "float32", 768, B=16), H200, None),
        (work("gru", "tf32", 1024, B=16), H200, None),
        (work("rnn_relu", "bfloat16", 256, B=128), H200, None),
        (work("gru", "float16", 512), T4, None),
    ],
    ids=lambda value: f"{value.cell.name}-{value.dtype.name}-H{value.sizes.H}" if isinstance(value, Work) else "",
)
def test_what_it_serves(asked: Work, card: Any, reason: str | None) -> None:
    problem = grid.problem(asked, card)
    assert problem is None if reason is None else problem is not None and reason in problem


def test_a_division_fits_the_card() -> None:
    """All units are owned once, all blocks fit the card at once, and a block's memory is at most the card's."""
    for card, H, B, (kind, dtype) in itertools.product(CARDS.values(), (2, 16, 100, 300, 1000), (1, 30), PAIRS):
        division = tiles.in_groups(DTYPES[dtype], step_of_kind(kind, H), B, card)
        if division is None:
            continue
        units = division.tiles * tiles.UNITS
        assert (division.members - 1) * units < H <= division.members * units
        assert division.members * -(-B // 8) <= card.multiprocessors
        assert division.shared_bytes <= card.shared_block
        assert division.threads == 256
        assert division.config.threads == 256


def test_a_card_with_few_multiprocessors_is_refused() -> None:
    with cuda(**simulated(H200._replace(multiprocessors=2))) as few:
        layer = rnnkit.GRU(3, 200, device="cuda", backend=GRID)
        x = few.zeros((5, 2, 3), "float32")
        with refused(UnsupportedDeviceError, "grid", "H = 200", "does not fit the card"):
            layer(x)


def test_a_grid_that_is_not_resident_at_once_is_refused_before_the_launch(cp: Any) -> None:
    from rnnkit.backends.cupy import tiles  # the module that the stand-in's rnnkit has imported

    case = Case("gru", T=3, B=3, H=40)
    inputs = make_inputs(case, "float32", device="cuda:0")
    division = tiles.in_groups(DTYPES["float32"], step_of(case), 3, H200)
    assert division is not None
    with (
        mock.patch.object(tiles, "in_groups", return_value=division._replace(members=10_000)),
        pytest.raises(DeviceError, match=r"forward_chunk needs 10000 blocks at once, and the card holds"),
    ):
        run(case, inputs, GRID)


def test_explain_names_the_division(cp: Any) -> None:
    layer = rnnkit.LSTM(3, 1024, device="cuda", dtype="float16", backend=GRID)
    explained = rnnkit.explain(layer, cp.zeros((5, 20, 3), "float16")).kernel
    for words in ("3 groups of 32 blocks of 256 threads, 8 rows per group", "5 steps per launch", "128 of 256 KiB of"):
        assert words in explained
