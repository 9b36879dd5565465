"""The parts "smoke" and "parity" of `make gpu` on the stand-in for CuPy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import parity as part
from bench.gpu import plan, smoke, tables
from rnnkit.backends import registry
from rnnkit.backends.cupy.schedules import SCHEDULES
from rnnkit.core.dtypes import DTYPES
from rnnkit.testing import LARGE_CASES, OPTION_CASES, Case
from tests.bench.gpu_card import part_items, stand_in_card
from tests.bench.gpu_document import document


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    # Numba kernels cannot be launched here.
    monkeypatch.setattr(registry, "_libnvvm_problem", lambda: "planted: no libNVVM")
    with stand_in_card(monkeypatch) as cupy:
        yield cupy


# Smoke


def test_the_base_case_and_the_other_items(card: Any, tmp_path: Path) -> None:
    found = part_items(smoke, tmp_path / "lines")
    assert tuple(found)[:3] == plan.BASE_CASE
    graph = "a graph has the bits of plain launches"
    assert {key: found[key]["status"] for key in (*plan.BASE_CASE, graph)} == dict.fromkeys(
        (*plan.BASE_CASE, graph), "ok"
    )
    assert found["nvrtc"]["kernels"] == 8
    assert 0 < found["one step"]["worst"] <= 1
    assert (found[graph]["captures"], found[graph]["refused"]) == (4, 0)  # 8 and 4 of 12 steps, in both passes
    assert found[graph]["replays"] == 8
    # A missing requirement is reported once, as neither right nor wrong.
    for key in ("torch's LSTM", "bfloat16 over DLPack"):
        assert found[key]["status"] == "not available"
        assert "torch" in found[key]["why"]
    assert (found["a Numba kernel"]["status"], found["a Numba kernel"]["why"]) == (
        "not available",
        "planted: no libNVVM",
    )
    text = tables.render(document([], smoke=list(found.values())), "smoke")
    assert "a Numba kernel: not available planted: no libNVVM" in text


def test_a_wrong_step_and_a_wrong_product_are_detected(
    card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rnnkit.backends.cupy.cublas import Products

    right = Products._gemm

    def wrong(self: Any, ops: Any, sizes: tuple[int, int, int], *rest: Any) -> None:
        m, n, k = sizes
        right(self, ops, (m, n, k - 1), *rest)

    monkeypatch.setattr(Products, "_gemm", wrong)
    found = part_items(smoke, tmp_path / "lines")
    assert (found["cublas"]["status"], found["one step"]["status"]) == ("wrong", "wrong")
    assert "times its bound" in found["one step"]["why"]


def test_a_graph_with_other_bits_and_a_missing_graph_are_detected(
    card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = smoke.run
    calls: list[int] = []

    def differs(*given: Any) -> dict[str, Any]:
        found = right(*given)
        calls.append(1)
        if len(calls) == 3:
            found["dx"][0, 0, 0] *= 1.000001
        return found

    monkeypatch.setattr(smoke, "run", differs)
    found = smoke.graph()
    assert (found["status"], found["why"]) == ("wrong", "dx has other bits from a graph")
    monkeypatch.setattr(smoke, "run", right)
    from rnnkit.backends.cupy.arena import Arena

    monkeypatch.setattr(Arena, "replay", lambda self, key, launch: launch())
    found = smoke.graph()
    assert (found["status"], found["why"]) == ("failed", "no graph was used: the steps were launched one by one")


# Parity


def test_every_check_of_the_cuda_backends_is_in_exactly_one_share(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checks, unavailable = part.plan()
    assert unavailable.pop("numba_cuda") == "planted: no libNVVM"
    # Schedules that do not serve every case; one item per schedule, dtype and device says how many, and why.
    every = len(part.CASES) + len(OPTION_CASES) + len(LARGE_CASES)
    refused = 0
    for key in unavailable:
        match = re.fullmatch(r"(?:(\d+) of \d+ cases of )?cupy:(?:one_block|cluster|grid) \w+ on cuda:0", key)
        assert match, key
        refused += int(match[1]) if match[1] else every
    assert all("the pinned schedule cannot run" in why for why in unavailable.values())
    shares = [part.share(checks, i, plan.PARITY_WORKERS) for i in range(1, plan.PARITY_WORKERS + 1)]
    assert sorted(map(str, checks)) == sorted(str(check) for share in shares for check in share)
    assert len(set(map(str, checks))) == len(checks)
    of_each = len(DTYPES) * every
    assert sum(check.backend == "cupy:stepwise" for check in checks) == of_each
    assert len(checks) + refused == len(SCHEDULES) * of_each
    groups = [{part.group_of(check) for check in share} for share in shares]
    assert all(not (a & b) for i, a in enumerate(groups) for b in groups[:i])
    sizes = [len(share) for share in shares]
    assert max(sizes) <= 2 * min(sizes)
    for share in shares:  # large cases last
        large = [check.case in LARGE_CASES for check in share]
        assert large == sorted(large)


def test_only_the_pinned_schedule_is_checked(card: Any) -> None:
    checks, _ = part.plan("stepwise")
    assert {check.backend for check in checks} == {"cupy:stepwise"}


def test_outcomes_are_items(card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("lstm", T=4, B=3, I=2, H=5)
    monkeypatch.setattr(part, "CASES", (case,))
    monkeypatch.setattr(part, "LARGE_CASES", ())
    monkeypatch.setattr(part, "OPTION_CASES", ())
    found = part_items(part, tmp_path / "lines")
    json.dumps(found, allow_nan=False)
    assert found["numba_cuda"]["status"] == "not available"
    one = found[f"cupy:stepwise float32 {case} cuda:0"]
    assert (one["status"], one["same_bits"]) == ("ok", True)
    assert 0 < one["rms"] <= one["worst"] <= 1
    text = tables.render(document([], parity=list(found.values())), "parity")
    assert "cupy:stepwise   float32         1    0" in text
    assert "not available: planted: no libNVVM" in text
    assert tables.line("parity", one).startswith(f"parity     ok            cupy:stepwise float32 {case}")


@pytest.mark.slow
def test_cells_with_options_are_items(card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = OPTION_CASES[2:5:2]  # one with layer normalisation, and one with other options
    for name, cases in (("CASES", ()), ("OPTION_CASES", chosen), ("LARGE_CASES", ())):
        monkeypatch.setattr(part, name, cases)
    found = part_items(part, tmp_path / "lines")
    for case in chosen:
        assert found[f"cupy:stepwise float32 {case} cuda:0"]["status"] == "ok"
    checked = [key for key, item in found.items() if item["status"] != "not available"]
    assert checked
    assert all(key.startswith("cupy:stepwise") for key in checked)  # the other schedules have no options


@pytest.mark.slow
def test_a_planted_fault_gives_a_wrong_item(card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnkit.backends.cupy.cublas import Products

    real = Products.rows_through

    def replacing(products: Any, *matrices_and_sizes: Any, add: bool = False) -> None:
        real(products, *matrices_and_sizes)

    for name, cases in (("CASES", (Case("gru", T=4, B=3, I=2, H=5),)), ("OPTION_CASES", ()), ("LARGE_CASES", ())):
        monkeypatch.setattr(part, name, cases)
    monkeypatch.setattr(Products, "rows_through", replacing)  # drops the part of dh that bypasses the product
    found = part_items(part, tmp_path / "lines")
    wrong = {key: item for key, item in found.items() if item["status"] == "wrong"}
    # The schedule grid leaves the backward pass of so few units to stepwise.
    by_schedule = [key.split()[0] for key in wrong]
    assert by_schedule.count("cupy:stepwise") == len(DTYPES)
    assert set(by_schedule) == {"cupy:stepwise", "cupy:grid"}
    assert all("bound" in item["why"] for item in wrong.values())
