"""The choice of a schedule, for real cards and without any: by the cost model, explained, and overridden by a pin."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import rnnkit
from bench.gpu.__main__ import slug as folder_of
from rnnkit.backends import Sizes
from rnnkit.backends.cupy import cost, schedules
from rnnkit.backends.cupy.schedules import SCHEDULES, Work, candidates, choose
from rnnkit.core.dtypes import DTYPES
from rnnkit.errors import UnsupportedDeviceError
from tests.cuda.cuda_helpers import CELLS, cuda
from tests.tools import emulator
from tests.tools.cards import CARDS, simulated

needs_emulator = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))
SIZES = tuple(itertools.product((1, 32, 512), (16, 64, 128, 256, 1024)))
H100 = CARDS["NVIDIA H100 80GB HBM3"]


def work(cell: str, dtype: str, B: int, H: int, *, T: int = 64, P: int = 0, keep: bool = True, share: int = 1) -> Work:
    sizes = Sizes(T, B, H, H, P or H, T * B // share)
    return Work(CELLS[cell], DTYPES[dtype], sizes, keep, bool(P))


def chosen(card: str, given: Work, rates: Any = cost.PREDICTED) -> str:
    return choose(given, CARDS[card], rates)[0].name


@pytest.mark.parametrize("card", CARDS)
def test_every_call_has_the_fastest_schedule_that_serves_it(card: str) -> None:
    for cell, dtype, keep, (B, H) in itertools.product(CELLS, DTYPES, (False, True), SIZES):
        given = work(cell, dtype, B, H, keep=keep)
        if dtype == "bfloat16" and CARDS[card].arch < 80:
            with pytest.raises(UnsupportedDeviceError, match="bfloat16"):
                choose(given, CARDS[card], cost.PREDICTED)
            continue
        row, why = choose(given, CARDS[card], cost.PREDICTED)
        assert choose(given, CARDS[card], cost.PREDICTED) == (row, why), "the choice is not a function"
        found = candidates(given, CARDS[card], cost.PREDICTED)
        assert [c.schedule for c in found] == list(SCHEDULES)
        serving = {c.schedule.name: c.seconds for c in found if c.problem is None}
        assert "stepwise" in serving
        assert 0 < serving[row.name] == min(serving.values())
        assert why.startswith(row.about)
        for c in found:
            assert (f"passed over {c.schedule.name}: {c.problem}" in why) == (c.problem is not None)


@pytest.mark.parametrize(
    ("card", "given", "want"),
    [
        ("NVIDIA H100 80GB HBM3", work("lstm", "float16", 32, 128), "one_block"),
        ("NVIDIA H100 80GB HBM3", work("gru", "float32", 1, 64), "one_block"),
        ("NVIDIA B200", work("rnn_tanh", "bfloat16", 8, 256), "one_block"),
        ("Tesla T4", work("gru", "float16", 32, 64), "one_block"),
        ("NVIDIA H100 80GB HBM3", work("lstm", "bfloat16", 16, 768, keep=False), "grid"),
        # In float32 one multiprocessor's FMA units take longer than a hop between several.
        ("NVIDIA H100 80GB HBM3", work("lstm", "float32", 16, 128, keep=False), "cluster"),
        ("NVIDIA A100-SXM4-40GB", work("lstm", "float32", 16, 128, keep=False), "grid"),
        # A push within a cluster takes less time than a hop through L2.
        ("NVIDIA H100 80GB HBM3", work("lstm", "bfloat16", 16, 256), "cluster"),
        ("NVIDIA H200", work("gru", "tf32", 10, 512), "cluster"),
        ("NVIDIA B200", work("gru", "float16", 64, 512), "cluster"),
        # In clusters of up to 8 blocks with 99 KiB each.
        ("NVIDIA GeForce RTX 5090", work("gru", "float16", 8, 256), "cluster"),
        ("NVIDIA GeForce RTX 5090", work("lstm", "bfloat16", 8, 512), "grid"),
        # Compute capability 8.x has none.
        ("NVIDIA L40S", work("gru", "float16", 8, 256), "grid"),
        ("NVIDIA A100-SXM4-40GB", work("gru", "tf32", 8, 512), "grid"),
        # More rows than fit the card beside their weights.
        ("NVIDIA H100 80GB HBM3", work("lstm", "bfloat16", 512, 768), "stepwise"),
        # float64 is slow there; cuBLAS uses all multiprocessors, and one_block only as many as there are tiles.
        ("NVIDIA GeForce RTX 4090", work("rnn_tanh", "float64", 32, 128), "stepwise"),
        # Two products per step.
        ("NVIDIA H100 80GB HBM3", work("lstm", "float16", 32, 128, P=64), "one_block"),
        ("NVIDIA H100 80GB HBM3", work("gru_reset_before", "float32", 32, 64), "one_block"),
        ("NVIDIA H100 80GB HBM3", work("lstm", "bfloat16", 16, 1024, P=512), "grid"),
        ("NVIDIA H100 80GB HBM3", work("gru_reset_before", "bfloat16", 16, 512), "cluster"),
        ("NVIDIA H100 80GB HBM3", work("lstm", "bfloat16", 16, 512, P=256), "cluster"),
        ("NVIDIA H100 80GB HBM3", work("lstm", "float64", 16, 256), "cluster"),
        ("NVIDIA A100-SXM4-40GB", work("gru_reset_before", "tf32", 8, 512), "grid"),
        ("NVIDIA GeForce RTX 4090", work("lstm", "float16", 8, 128, P=64), "one_block"),
        ("NVIDIA H100 80GB HBM3", work("lstm", "float32", 16, 768), "grid"),
        ("NVIDIA H100 80GB HBM3", work("lstm", "bfloat16", 8, 2048), "grid"),
        ("NVIDIA H100 80GB HBM3", work("lstm", "bfloat16", 512, 1024, P=512), "stepwise"),
        # What one_block does not serve at all.
        ("Tesla V100-SXM2-32GB", work("lstm", "float16", 32, 64), "stepwise"),
    ],
)
def test_choices_of_real_cards(card: str, given: Work, want: str) -> None:
    assert chosen(card, given) == want


@pytest.mark.parametrize("name", ["one_block", "cluster", "grid", "stepwise"])
@pytest.mark.parametrize("card", CARDS)
def test_more_work_never_takes_less_time(card: str, name: str) -> None:
    (row,) = (row for row in SCHEDULES if row.name == name)
    for cell, dtype, keep in itertools.product(("lstm", "gru", "rnn_relu"), ("float32", "float16"), (False, True)):

        def seconds(B: int, H: int, T: int = 64, cell: str = cell, dtype: str = dtype, keep: bool = keep) -> Any:
            given = work(cell, dtype, B, H, T=T, keep=keep)
            served = row.problem(given, CARDS[card]) is None
            return row.seconds(given, CARDS[card], cost.PREDICTED) if served else float("inf")

        for B, H in SIZES:
            if name == "grid" and keep and H <= 16:
                continue  # stepwise runs the backward pass of so few units
            assert seconds(B, H) <= seconds(4 * B, H)
            if name not in ("grid", "cluster"):  # which divide W_hh over more blocks and warps as H grows
                assert seconds(B, H) <= seconds(B, 2 * H)
            if seconds(B, H) < float("inf"):
                once = 2 * seconds(B, H) - seconds(B, H, 128)  # per call, whatever T
                assert 0 < once < 4e-5 * (1 + H**2 / 1e4)
                assert seconds(B, H, 256) == pytest.approx(4 * seconds(B, H) - 3 * once)


def test_predicted_steps_are_near_published_ones() -> None:
    """One block per tile: 0.25 to 0.5 us of a step, forward. A product and a launch: 6 to 8 us. Both on an H100."""
    found = candidates(work("lstm", "float16", 32, 128, keep=False), H100, cost.PREDICTED)
    steps = {c.schedule.name: 1e6 * c.seconds / 64 for c in found if c.problem is None}
    assert 0.2 <= steps["one_block"] <= 0.6
    assert 6 <= steps["stepwise"] <= 8


def test_the_choice_follows_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    given = work("lstm", "float32", 32, 128)
    assert chosen(H100.name, given) != "stepwise"
    # The module that the schedules' modules use, which the stand-in for CuPy makes Python load again.
    used = importlib.import_module(cost.__name__)
    for name in ("PRODUCT_SECONDS", "POINTWISE_SECONDS"):
        monkeypatch.setattr(used, name, 0.0)
    assert chosen(H100.name, given, cost.Rates(node=0.0, hop=0.0, cluster=0.0)) == "stepwise"


def results(folder: Path, card: str, items: list[dict[str, Any]]) -> None:
    file = folder / cost.slug(card) / "gpu.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"parts": {"ceilings": {"status": "done", "items": items}}}), encoding="utf-8")


def test_a_cards_own_file_replaces_the_predicted_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "RESULTS", tmp_path)
    assert cost.rates_of(H100) == cost.PREDICTED
    launches = {"item": "launches", "status": "ok", "count_up": {"graph_us": 2.5}}
    hop = {"item": "hop tag", "status": "ok", "one_way_us": 0.5}
    pushes = [{"item": f"DSMEM hop push C={C}", "status": "ok", "one_way_us": us} for C, us in ((4, 0.2), (8, 0.3))]
    results(tmp_path, "NVIDIA H200", [launches, hop, *pushes])
    found = cost.rates_of(CARDS["NVIDIA H200"])
    assert found.measured
    assert (found.node, found.hop, found.cluster) == pytest.approx((2.0e-6, 0.5e-6, 0.2e-6))
    _, why = choose(work("lstm", "float16", 32, 128), CARDS["NVIDIA H200"], found)
    assert "predicted with this card's own latencies: one_block" in why
    results(tmp_path, "NVIDIA A10", [launches, {**hop, "status": "failed"}])
    assert cost.rates_of(CARDS["NVIDIA A10"]) == cost.PREDICTED
    results(tmp_path, "Tesla T4", [launches, hop])
    assert cost.rates_of(CARDS["Tesla T4"]).cluster == cost.PREDICTED.cluster


def test_names_of_folders_are_those_of_make_gpu() -> None:
    for name in CARDS:
        assert cost.slug(name) == folder_of(name)


def test_more_blocks_than_fit_run_one_after_the_other() -> None:
    (row,) = (row for row in SCHEDULES if row.name == "one_block")
    tiles = H100.multiprocessors
    seconds = [
        row.seconds(work("lstm", "float16", 8 * tiles + more, 64, T=T), H100, cost.PREDICTED)
        for more in (0, 1)
        for T in (0, 64)
    ]
    assert seconds[3] - seconds[2] == pytest.approx(2 * (seconds[1] - seconds[0]))


def test_a_single_step_counts_what_a_call_does_once() -> None:
    """Packing a large W_hh takes longer than the one step that reads it."""
    for B, H, T, first in ((1, 64, 1, "cluster"), (8, 2048, 1, "stepwise"), (8, 2048, 8, "grid")):
        assert chosen(H100.name, work("lstm", "bfloat16", B, H, T=T, keep=False)) == first


def test_rows_past_their_end_cost_nothing_in_products() -> None:
    given = work("lstm", "float16", 512, 2048)
    short = work("lstm", "float16", 512, 2048, share=4)
    (row,) = (row for row in SCHEDULES if row.name == "stepwise")
    assert row.seconds(short, H100, cost.PREDICTED) < 0.5 * row.seconds(given, H100, cost.PREDICTED)


@needs_emulator
def test_explain_gives_the_predicted_times_and_a_pin_overrides_them() -> None:
    with cuda(**simulated(H100)) as cp:
        x = cp.zeros((50, 4, 16), "float32")
        free = rnnkit.explain(rnnkit.GRU(16, 32, device="cuda"), x).kernel
        assert "schedule one_block:" in free
        assert "least time in us per step, both passes, predicted from other cards' latencies: one_block 0." in free
        assert ", stepwise 1" in free
        pinned = rnnkit.explain(rnnkit.GRU(16, 32, device="cuda", backend="cupy:stepwise"), x).kernel
        assert "schedule stepwise:" in pinned
        assert "pinned" in pinned
        with rnnkit.no_grad():
            assert "us per step, forward, predicted" in rnnkit.explain(rnnkit.GRU(16, 32, device="cuda"), x).kernel
        reset = rnnkit.explain(rnnkit.GRU(16, 32, device="cuda", reset_after=False), x).kernel
        assert "schedule one_block:" in reset


def test_a_pinned_schedule_is_the_only_one_that_is_considered() -> None:
    given = work("lstm", "float16", 32, 2048)
    assert schedules.choose(given, H100, cost.PREDICTED, "stepwise")[0].name == "stepwise"
    with pytest.raises(UnsupportedDeviceError, match="the pinned schedule cannot run: one_block: H = 2048"):
        schedules.choose(given, H100, cost.PREDICTED, "one_block")
