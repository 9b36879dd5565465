"""Schedule B, "cluster", without a GPU, against the float64 oracle: its launch code, and its kernels in the emulator.

The emulator runs the blocks of a cluster together, in several orders, and has their mbarriers. See also
test_cupy_grid.py: both schedules have the same steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.cupy import cluster, cluster_backward, clusters, sources, tiles
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.interface import Sizes
from rnnkit.core.dtypes import DTYPES
from rnnkit.errors import DeviceError, UnsupportedDeviceError
from rnnkit.functional import direction
from rnnkit.testing import Case, make_inputs, run, widened
from tests.cuda.cuda_helpers import KINDS, assert_matches, chunked, cuda, kind_case, step_of_kind
from tests.cuda.cuda_helpers import RESIDENT_CELLS as CELLS
from tests.cuda.test_cupy_one_block_backward import ORDERS, assert_parity, both
from tests.helpers import assert_same, refused, slow_except
from tests.required import needs_kernels
from tests.tools import emulator
from tests.tools.build_report import nvrtc
from tests.tools.cards import CARDS, simulated

pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

H100, B200, RTX = (CARDS[name] for name in ("NVIDIA H100 80GB HBM3", "NVIDIA B200", "NVIDIA GeForce RTX 5090"))
# In bfloat16 some unit of relu close to 0 changes its sign in these cases, in every schedule alike.
FLIPS = ("rnn_relu", "bfloat16")
PAIRS = [pair for pair in itertools.product(KINDS, clusters.SERVED) if pair != FLIPS]
SOME = [("gru", "float32"), ("lstm", "bfloat16")]
TWO = [("gru_reset_before", "float32"), ("lstm_projected", "bfloat16")]  # products per step


@pytest.fixture(scope="module")
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


@contextmanager
def of(members: int) -> Iterator[None]:
    """Only clusters with this number of blocks, in the modules that the stand-in's rnnkit has imported."""
    from rnnkit.backends.cupy import cluster, cluster_backward, clusters

    caches = (cluster.division_of, cluster_backward.group_of)
    with mock.patch.object(clusters, "SIZES", (members,)):
        for cache in caches:
            cache.cache_clear()
        yield
    for cache in caches:
        cache.cache_clear()


def launches(cp: Any) -> list[Any]:
    return [launch for launch in cp.fake.launches if launch.name in ("forward_chunk", "backward_chunk")]


@pytest.mark.parametrize(("kind", "dtype"), slow_except(PAIRS, *SOME, TWO[0], unpack=True))
def test_every_gradient_equals_the_oracle(cp: Any, kind: str, dtype: str) -> None:
    """Members with fewer units than the others and without any, of H and of a projection; one member that has all units
    of a projection; tiles with fewer rows, and tiles that end early."""
    members = 8 if dtype == "float64" else 4  # in which W_hh fits
    for case in (
        kind_case(kind, T=5, B=18, I=3, H=70, ragged=True),
        kind_case(kind, T=2, B=1, I=2, H=101, reverse=True),
        kind_case(kind, T=5, B=3, I=4, H=17),
        kind_case(kind, T=6, B=19, I=3, H=48, ragged=True, reverse=True),
    ):
        with of(members):
            assert_parity(case, dtype, "cluster", "cluster")
        for launch in launches(cp)[-2:]:
            assert launch.grid == (members * -(-case.B // tiles.ARITHMETIC[dtype].rows), 1, 1)
            assert not launch.cooperative


@pytest.mark.slow
@pytest.mark.parametrize("members", [8, 16])
@pytest.mark.parametrize(("kind", "dtype"), [("lstm", "float16"), ("gru", "tf32"), ("rnn_tanh", "float32"), *TWO])
def test_larger_clusters(cp: Any, members: int, kind: str, dtype: str) -> None:
    sizes = {"T": 4, "B": 10, "I": 3, "H": 150, "ragged": True}, {"T": 3, "B": 2, "I": 2, "H": 20, "reverse": True}
    for case in (kind_case(kind, **each) for each in sizes):
        with of(members):
            assert_parity(case, dtype, "cluster", "cluster")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype", "H", "members", "forward_tiles", "backward_tiles"),
    [
        ("lstm", "bfloat16", 180, 4, 3, 1),
        ("gru", "float32", 170, 4, 3, 1),
        ("gru", "tf32", 290, 8, 3, 2),
        ("gru", "float16", 530, 16, 3, 3),
        ("lstm_projected", "float32", 128, 4, 2, 2),
        ("gru_reset_before", "float32", 208, 8, 2, 2),
        ("lstm", "float64", 144, 16, 1, 1),
    ],
)
def test_weights_in_registers_and_in_shared_memory(
    cp: Any, kind: str, dtype: str, H: int, members: int, forward_tiles: int, backward_tiles: int
) -> None:
    step = step_of_kind(kind, H)
    division = tiles.in_cluster(DTYPES[dtype], step, members)
    group = cluster_backward.group_with(DTYPES[dtype], step, members)
    assert division is not None
    assert group is not None
    assert (division.tiles, group.config.tiles) == (forward_tiles, backward_tiles)
    assert division.shared_weights > 0
    with of(members):
        assert_parity(kind_case(kind, T=3, B=3, I=2, H=H), dtype, "cluster", "cluster")


@pytest.mark.parametrize(
    ("kind", "dtype"), slow_except([*SOME, *TWO, ("lstm", "float64")], ("gru", "float32"), unpack=True)
)
def test_no_race_and_no_access_out_of_bounds(kind: str, dtype: str) -> None:
    """Checks every access for bounds, races and uninitialised memory, in four orders of threads and blocks; several
    clusters, chunks of four steps and of one."""
    case = kind_case(kind, T=5, B=9, I=2, H=40, ragged=True)
    found = []
    with cuda(mode="check") as cp, of(4), chunked(4):
        for options in ORDERS:
            cp.fake.launch_options.update(seed=None)
            cp.fake.launch_options.update(options)
            found.append(both(case, make_inputs(case, dtype, device="cuda:0"), "cluster", "cluster"))
    assert_matches(found[0], run(case, widened(make_inputs(case, dtype)), "numpy"), dtype)
    for other in found[1:]:
        assert_same(other, found[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "lstm_projected"])
def test_no_race_in_a_cluster_of_sixteen(kind: str) -> None:
    with cuda(mode="check") as cp, of(16):
        for options in ORDERS[:3]:
            cp.fake.launch_options.update(options)
            assert_parity(kind_case(kind, T=4, B=9, I=2, H=70, ragged=True), "bfloat16", "cluster", "cluster")


@pytest.mark.parametrize("kind", slow_except(["lstm", "gru_reset_before", "lstm_projected"], "lstm"))
def test_chunks_and_rows_do_not_change_the_bits(cp: Any, kind: str) -> None:
    case = kind_case(kind, T=5, B=11, I=4, H=70)
    inputs = make_inputs(case, "bfloat16", device="cuda:0")

    def forward(rows: list[int]) -> Any:
        x, *state = (cp.asarray(np.ascontiguousarray(a.get()[..., rows, :])) for a in (inputs.x, *inputs.state0))
        y, state_n, _ = direction.forward(case.cell, x, tuple(state), inputs.weights, backend="cupy:cluster")
        return [a.get() for a in (y, *state_n)]

    with of(4):
        whole = forward(list(range(11)))
        with chunked(2):
            for part, all_at_once in zip(forward(list(range(11))), whole, strict=True):
                np.testing.assert_array_equal(part, all_at_once)
        for rows in ([0], [10, 4, 2]):
            for part, of_all in zip(forward(rows), whole, strict=True):
                np.testing.assert_array_equal(part, of_all[..., rows, :])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "gru_reset_before", "lstm_projected"])
@pytest.mark.parametrize(("forward", "backward"), [("cluster", "stepwise"), ("stepwise", "cluster")])
def test_schedules_read_what_the_other_one_saves(cp: Any, kind: str, forward: str, backward: str) -> None:
    with of(4):
        assert_parity(kind_case(kind, T=5, B=11, I=3, H=37, ragged=True), "bfloat16", forward, backward)


def test_one_launch_per_chunk(cp: Any) -> None:
    case = Case("lstm", T=8, B=3, H=70)
    inputs = make_inputs(case, "bfloat16", device="cuda:0")
    for steps, chunks in ((256, 1), (4, 2)):
        with chunked(steps), of(4), cp.fake.counting() as counts:
            direction.forward("lstm", inputs.x, inputs.state0, inputs.weights, backend="cupy:cluster")
        launched = {"forward_begin": 1, "pack_weights": 1, "forward_chunk": chunks, "forward_end": 1}
        assert counts.launches == launched
        assert not counts.synchronisations


# What it serves


def work(cell: str, dtype: str, H: int, B: int = 8, P: int = 0, keep: bool = True) -> Work:
    return Work(CELLS[cell], DTYPES[dtype], Sizes(5, B, 4, H, P or H, 5 * B), keep, projected=bool(P))


@pytest.mark.parametrize(
    ("asked", "card", "reason"),
    [
        (work("lstm", "float16", 64, P=80), H100, "a projection to 80 units, more than H = 64"),
        (work("lstm", "float16", 512, P=256), H100, None),
        (work("lstm", "float32", 512, P=128), H100, None),
        (work("lstm", "float16", 640, P=256, keep=False), H100, "H = 640 does not fit a cluster of 16 blocks"),
        (work("gru_reset_before", "float16", 512), H100, None),
        (work("gru_reset_before", "float32", 256), RTX, "does not fit a cluster of 8 blocks"),
        (work("gru_reset_before", "bfloat16", 256), RTX, None),
        (work("lstm", "float64", 256), H100, None),
        (work("gru", "float64", 272), H100, "backward, W_hh for H = 272 does not fit a cluster of 16 blocks"),
        (work("lstm", "float64", 64, P=32), B200, None),
        (work("lstm", "float16", 16), H100, "H = 16 is too small for two blocks"),
        (work("lstm", "float16", 256), CARDS["NVIDIA A100-SXM4-80GB"], "no clusters"),
        (work("lstm", "float16", 256), CARDS["NVIDIA GeForce RTX 4090"], "no clusters"),
        (work("lstm", "bfloat16", 64), CARDS["Tesla T4"], "bfloat16 needs compute capability 8.0"),
        (work("lstm", "float16", 1024), H100, "H = 1024 does not fit a cluster of 16 blocks"),
        (work("lstm", "float16", 512), RTX, "H = 512 does not fit a cluster of 8 blocks"),
        (work("lstm", "float16", 512), H100._replace(multiprocessors=60), "H = 512 does not fit a cluster of 8 blocks"),
        (work("lstm", "float16", 512), H100, None),
        (work("gru", "bfloat16", 768, keep=False), B200, None),
        (work("gru", "float32", 256, B=512), H100, None),
        (work("rnn_tanh", "float16", 384), RTX, None),
    ],
    ids=lambda value: f"{value.cell.name}-{value.dtype.name}-H{value.sizes.H}" if isinstance(value, Work) else "",
)
def test_what_it_serves(asked: Work, card: Any, reason: str | None) -> None:
    problem = cluster.problem(asked, card)
    assert problem is None if reason is None else problem is not None and reason in problem


def test_sixteen_blocks_only_where_a_kernel_may_opt_in() -> None:
    assert {card.name: clusters.sizes_on(card) for card in CARDS.values() if card.arch >= 90} == {
        "NVIDIA H100 PCIe": (16, 8, 4),
        "NVIDIA H100 80GB HBM3": (16, 8, 4),
        "NVIDIA H200": (16, 8, 4),
        "NVIDIA B200": (16, 8, 4),
        "NVIDIA GeForce RTX 5090": (8, 4),
    }
    assert all(clusters.sizes_on(card) == () for card in CARDS.values() if card.arch < 90)
    for build in (*cluster.builds(), *cluster_backward.builds()):
        assert build.min_arch == 90
        assert build.kernels[-1].cluster == clusters.REPORTED


def test_a_division_fits_the_card() -> None:
    """All units are owned once, and a block's memory is at most the card's."""
    for card, H, B, (kind, dtype) in itertools.product((H100, RTX), (17, 100, 300, 760), (1, 500), PAIRS):
        step = step_of_kind(kind, H)
        given = DTYPES[dtype], step, B, card
        division = cluster.division_of(*given)
        if division is not None:
            assert division.members in clusters.sizes_on(card)
            assert division.members * division.tiles * tiles.UNITS >= H
            assert division.shared_bytes + clusters.mail_bytes(step) <= card.shared_block
            assert division.threads == division.config.threads
            assert division.splits >= 4  # so that a lane has one pair or none
        group = cluster_backward.group_of(*given)
        if group is not None:
            # Every member receives parts of all its units, those of a projection up to the last one.
            assert H <= group.members * group.units <= 32 * group.tiles(group.products[-1])
            assert 32 * group.tiles(group.products[0]) >= step.R
            # ClusterParts finds the member that owns a unit by a product with `reciprocal`.
            assert group.units <= 64
            assert 32 * group.tiles(group.products[-1]) <= 1024
            assert cluster_backward.shared_bytes(group) + clusters.mail_bytes(step) <= card.shared_block


def test_large_batches_take_smaller_clusters_or_waves() -> None:
    """Of which more run at once: two waves of clusters of 16 blocks take longer than one of 8."""
    given = DTYPES["bfloat16"], step_of_kind("gru", 256)
    few, many = (cluster.division_of(*given, B, H100) for B in (8, 8 * 15))
    assert few is not None
    assert many is not None
    assert few.members > many.members


def test_the_launch_is_refused_where_a_cluster_does_not_fit(cp: Any) -> None:
    from rnnkit.backends.cupy.modules import LoadedKernel

    inputs = make_inputs(Case("gru", T=3, B=3, H=40), "float32", device="cuda:0")
    with (
        mock.patch.object(LoadedKernel, "resident_blocks", return_value=3),
        pytest.raises(DeviceError, match=r"forward_chunk has clusters of \d+ blocks, and the card holds 3"),
    ):
        run(Case("gru", T=3, B=3, H=40), inputs, "cupy:cluster")


def test_a_card_without_clusters_is_refused() -> None:
    with cuda(**simulated(CARDS["NVIDIA A100-SXM4-80GB"])) as old:
        layer = rnnkit.GRU(3, 200, device="cuda", backend="cupy:cluster")
        x = old.zeros((5, 2, 3), "float32")
        with refused(UnsupportedDeviceError, "cluster", "no clusters of blocks"):
            layer(x)


def test_explain_names_the_division(cp: Any) -> None:
    layer = rnnkit.LSTM(3, 512, device="cuda", dtype="float16", backend="cupy:cluster")
    explained = rnnkit.explain(layer, cp.zeros((5, 20, 3), "float16")).kernel
    for words in ("3 clusters of 16 blocks of 256 threads, 8 rows per cluster", "backward by clusters of 16 blocks"):
        assert words in explained


@needs_kernels(nvrtc.unavailable())
def test_clusters_of_all_sizes_have_the_same_code() -> None:
    """So the build report, which has those of 16 blocks, holds for all."""
    (build,) = (b for b in cluster_backward.builds() if b.name == "cluster_backward_256-gru-float32")
    others = [
        build._replace(defines=tuple((n, str(size) if n == "RK_CLUSTER" else v) for n, v in build.defines))
        for size in (4, 16)
    ]
    small, large = (nvrtc.compile_module(sources.source(b), sources.options(b), 90) for b in others)
    assert small == large
