"""The backward pass of schedule C without a GPU, against the float64 oracle: its launch code, and its kernels in the
emulator, which runs the blocks of a cooperative launch together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

import rnnkit
from rnnkit.backends.cupy import grid_backward
from rnnkit.backends.cupy.step_products import Step
from rnnkit.core.dtypes import DTYPES
from rnnkit.testing import Case, make_inputs, run, widened
from tests.cuda.cuda_helpers import KINDS, assert_matches, chunked, cuda, kind_case, step_of_kind
from tests.cuda.test_cupy_one_block_backward import ORDERS, assert_parity, both
from tests.helpers import assert_same, slow_except
from tests.tools import emulator
from tests.tools.cards import CARDS

pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

H100 = CARDS["NVIDIA H100 80GB HBM3"]
# In bfloat16 some unit of relu close to 0 changes its sign in these cases, in every schedule alike.
FLIPS = ("rnn_relu", "bfloat16")
PAIRS = [pair for pair in itertools.product(KINDS, grid_backward.CONFIGS) if pair != FLIPS]
# Some of the pairs that test_cupy_grid.py compiles, so that both files share the compiled modules.
SOME = [("rnn_tanh", "tf32"), ("gru", "float32"), ("lstm", "bfloat16"), ("gru_reset_before", "float32")]
SOME += [("lstm_projected", "float16")]


@pytest.fixture(scope="module")
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


def launches(cp: Any) -> list[Any]:
    return [launch for launch in cp.fake.launches if launch.name == "backward_chunk"]


@pytest.mark.parametrize(("kind", "dtype"), slow_except(PAIRS, *SOME, unpack=True))
def test_every_gradient_equals_the_oracle(cp: Any, kind: str, dtype: str) -> None:
    """Members with fewer units than the others, tiles with fewer rows, tiles of rows that end early."""
    for case in (
        kind_case(kind, T=5, B=3, I=4, H=17),
        kind_case(kind, T=5, B=18, I=3, H=70, ragged=True),
        kind_case(kind, T=6, B=19, I=3, H=48, ragged=True, reverse=True),
        kind_case(kind, T=2, B=1, I=2, H=101, reverse=True),
    ):
        assert_parity(case, dtype, "grid" if case.B == 18 else "stepwise", "grid")
        launch = launches(cp)[-1]
        assert launch.cooperative
        assert launch.grid[0] > 1


@pytest.mark.parametrize(
    ("kind", "dtype", "H", "members"),
    slow_except(
        [
            ("lstm", "bfloat16", 256, 2),
            ("gru", "tf32", 300, 7),
            ("lstm", "float16", 530, 17),
            ("gru", "float32", 290, 10),
            ("gru_reset_before", "bfloat16", 300, 5),
            ("lstm_projected", "float16", 530, 17),
        ],
        ("lstm", "bfloat16", 256, 2),
        unpack=True,
    ),
)
def test_weights_in_registers_and_in_shared_memory(cp: Any, kind: str, dtype: str, H: int, members: int) -> None:
    group = grid_backward.group_of(DTYPES[dtype], step_of_kind(kind, H), H100.shared_block)
    assert group is not None
    assert group.members == members
    assert group.blocks(group.products[0]) > group.config.held
    assert_parity(kind_case(kind, T=2, B=3, I=2, H=H), dtype, "stepwise", "grid")


def test_tiles_of_rows_that_do_not_fit_at_once(cp: Any) -> None:
    """They follow in further launches, which use the same words with later tags."""
    from rnnkit.backends.cupy.modules import LoadedKernel

    with mock.patch.object(LoadedKernel, "resident_blocks", return_value=4), chunked(2):
        assert_parity(Case("gru", T=3, B=27, I=3, H=40, ragged=True), "float32", "stepwise", "grid")
    assert [launch.grid[0] for launch in launches(cp)[-4:]] == [4, 4, 4, 4]


def test_calls_do_not_take_each_others_words(cp: Any) -> None:
    """Calls of other sizes and values on one arena, whose words stay between calls. Two steps, so that the last call's
    words lie where the first steps look."""
    for seed in range(2):
        for case in (Case("lstm", T=2, B=9, I=3, H=33), Case("lstm", T=2, B=9, I=3, H=50, ragged=True)):
            inputs = make_inputs(case, "float32", seed, device="cuda:0")
            want = run(case, make_inputs(case, "float64", seed), "numpy")
            assert_matches(both(case, inputs, "stepwise", "grid"), want)


@pytest.mark.parametrize("kind", slow_except(KINDS, "gru", "lstm_projected"))
@pytest.mark.parametrize("dtype", slow_except(["float32", "bfloat16"], "float32"))
def test_no_race_and_no_access_out_of_bounds(kind: str, dtype: str) -> None:
    """Checks every access for bounds, races and uninitialised memory, in four orders of threads and blocks."""
    case = kind_case(kind, T=4, B=9, I=2, H=20, ragged=True)
    found = []
    with cuda(mode="check") as cp:
        for options in ORDERS:
            cp.fake.launch_options.update(seed=None)
            cp.fake.launch_options.update(options)
            found.append(both(case, make_inputs(case, dtype, device="cuda:0"), "stepwise", "grid"))
    assert_matches(found[0], run(case, widened(make_inputs(case, dtype)), "numpy"), dtype)
    for other in found[1:]:
        assert_same(other, found[0])


def test_schedule_stepwise_reads_what_grid_saves(cp: Any) -> None:
    assert_parity(Case("lstm", B=9, H=33, ragged=True), "bfloat16", "grid", "stepwise")


def test_explain_says_who_runs_backward(cp: Any) -> None:
    x = cp.zeros((5, 8, 3), "float32")
    served, too_large = (
        rnnkit.explain(rnnkit.GRU(3, H, device="cuda", backend="cupy:grid"), x).kernel for H in (40, 1040)
    )
    assert "backward by groups of 2 blocks that exchange parts of dh" in served
    assert "backward by stepwise: H = 1040 needs more memory than its blocks have" in too_large


def test_groups_on_cards() -> None:
    def step(gates: int, H: int) -> Step:
        return step_of_kind({3: "gru", 4: "lstm"}[gates], H)

    def members(dtype: str, gates: int, H: int, card: str) -> int | None:
        group = grid_backward.group_of(DTYPES[dtype], step(gates, H), CARDS[card].shared_block)
        return None if group is None else group.members

    assert members("bfloat16", 4, 512, H100.name) == 8
    assert members("bfloat16", 4, 1024, H100.name) == 32
    assert members("bfloat16", 4, 1536, H100.name) == 96
    assert members("bfloat16", 4, 2048, H100.name) == 128
    assert members("float32", 4, 1024, H100.name) == 64
    assert members("bfloat16", 4, 2064, H100.name) is None
    assert "H = 2064" in str(grid_backward.problem(DTYPES["bfloat16"], step(4, 2064), H100))
    assert "does not fit the words" in str(grid_backward.problem(DTYPES["float64"], step(4, 256), H100))
    assert "too small" in str(grid_backward.problem(DTYPES["float32"], step(4, 16), H100))
    few = H100._replace(multiprocessors=16)
    assert "a group has 32 blocks, the card runs 16" in str(
        grid_backward.problem(DTYPES["bfloat16"], step(4, 1024), few)
    )
