"""The report of `make gpu`: means, table and plot; the order of measurements; the prediction of cuDNN's algorithm."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import call_model, cudnn, items_file, plot, point_order, report, sanitizer, tables
from bench.grid import FORWARD_BACKWARD, Point
from rnnkit.backends.cupy import sources
from tests.bench.gpu_document import CARD, CEILINGS, document, measured

# The report


def test_means_are_relative_to_the_faster_torch_and_the_target_to_the_standard_path() -> None:
    a = Point("lstm", 64, 32, 512, 512)
    b = Point("lstm", 64, 32, 128, 128)
    skipped = {"item": "gru", "status": "not run", "why": "no time"}
    found = document([measured(a, ["standard"], 2.0, 9.0, 8.0), measured(b, ["small-H"], 2.0, 2.0, 4.0), skipped])
    (mean,) = report.means(found)
    assert (mean["dtype"], mean["passes"], mean["rows"], mean["bar_rows"]) == ("float32", "forward", 2, 1)
    assert mean["mean"] == pytest.approx(2.0)
    assert (mean["bar_mean"], mean["least"]) == (pytest.approx(4.0), 1.0)
    text = tables.render(found)
    assert "launch: 2.00 us from the host, 1.00 us in a graph" in text
    assert f"2 of {len(list(point_order.ordered()))} points of the grid were measured" in text
    assert "1.00  lstm-T64-B32-I128-H128-float32 forward: 2.000 ms, torch 2.000 (eager, small-H)" in text
    assert "throughput: lstm-T64-B32-I512-H512-float32" not in text  # its backward is wrong, and listed separately
    wrong = [row for row in report.rows(found) if row.passes == FORWARD_BACKWARD]
    assert [(row.status, row.error, row.ours, row.ratio) for row in wrong] == [("wrong", math.inf, None, None)] * 2


def test_counts_are_reported() -> None:
    launches = {"item": "launches lstm", "status": "ok", "predicted": {"kernels": 66, "products": 65}}
    counted = {**launches, "measured": {"kernels": 66, "others": 70}}
    moved = {"forward_step": {"lts__t_bytes.sum": 4000.0}}
    predicted = {"forward": {"pointwise_bytes": 5000}, "backward": {"pointwise_bytes": 1}}
    by_ncu = {"item": "bytes lstm", "status": "ok", "kernels": moved, "predicted_step": predicted}
    text = tables.render(document([], counters=[launches, counted, by_ncu]))
    assert "launches lstm: ? kernels, ? others; predicted 66, 65 products" in text
    assert "launches lstm: 66 kernels, 70 others; predicted 66, 65 products" in text
    assert "bytes lstm forward_step: 4 kB through L2; predicted 5" in text


def test_the_table_is_short_with_any_failures() -> None:
    found = document([], parity=[{"item": f"test {i}", "status": "failed", "why": "x" * 500} for i in range(1000)])
    found["parts"]["hung"] = {**CARD, "status": "failed", "why": "y" * 500, "last_lines": ["z" * 200] * 15, "items": []}
    found["parts"]["sanitizer"] = {**CARD, "items": [{"item": "memcheck", "status": "skipped", "why": "w" * 400}]}
    text = tables.render(found)
    assert len(text) < 9000
    assert "1002 problems" in text
    assert "memcheck: skipped" in text
    assert "no time was measured" in text


def test_lower_bound_and_prediction_by_hand() -> None:
    rates = call_model.rates("planted", 5e7, CEILINGS)
    assert rates is not None
    point = Point("lstm", 10, 32, 64, 64)
    flop = 10 * 32 * 2 * 128 * 256
    moved = 4 * (256 * 128 + 10 * 32 * 128)
    assert call_model.lower_bound(point, False, rates) == pytest.approx(max(flop / 50e12, moved / 4e12))
    assert call_model.lower_bound(point, True, rates) == pytest.approx(max(3 * flop / 50e12, 2 * moved / 4e12))
    # So small that each step takes as long as its two launches.
    assert call_model.predicted(point, False, rates) == pytest.approx(10 * 2e-6 + flop / 2 / 50e12)
    assert call_model.predicted(point, True, rates) == pytest.approx(20 * 2e-6 + 4 * flop / 2 / 50e12)
    assert call_model.lower_bound(Point("lstm", 10, 32, 64, 64, "float16"), False, rates) is None
    assert call_model.predicted(Point("lstm", 10, 32, 64, 64, layers=2), False, rates) is None
    assert call_model.rates("planted", 5e7, CEILINGS[2:]) is None


def test_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    point = Point("lstm", 64, 32, 512, 512)
    for name, found in (("some", document([measured(point, ["standard"], 2.0, 9.0, 8.0)])), ("none", document([]))):
        (tmp_path / "gpu.json").write_text(json.dumps(found))
        assert plot.main([str(tmp_path / "gpu.json"), str(tmp_path / f"{name}.png")]) == (name == "none")
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "none.png").exists()


def test_plot_has_a_panel_for_each_kind_of_value() -> None:
    """The planted items have only a forward. Without ceilings there is no lower bound, without torch no ratio."""
    pytest.importorskip("matplotlib")
    found = document([measured(Point("gru", 64, 32, H, H), ["standard"], 2.0, 9.0, 8.0) for H in (128, 512)])
    without_torch = copy.deepcopy(found)
    for entry in without_torch["parts"]["throughput"]["items"]:
        del entry["passes"]["forward"]["torch_eager"], entry["passes"]["forward"]["torch_graph"]
    without_ceilings = {**found, "parts": {**found["parts"], "ceilings": {**CARD, "items": []}}}
    for given, labels in ((found, ["torch", "lower"]), (without_torch, ["lower"]), (without_ceilings, ["torch"])):
        figure = plot.figure(given)
        assert [axis.get_ylabel().split()[0].removesuffix("'s") for axis in figure.axes] == labels
        assert all(axis.collections for axis in figure.axes)
        plot.png.pyplot().close(figure)


# The order of measurements, and cuDNN's algorithm


def test_every_point_occurs_once_and_any_prefix_covers_the_grid() -> None:
    order = list(point_order.ordered())
    assert len(set(order)) == len(order) == len(point_order.plain()) + len(point_order.special())
    plain = [p for p in order if not p.extras]
    for first, many in ((60, 1), (200, 3)):
        for field in ("cell", "H", "B", "T", "dtype"):
            counts = [
                sum(getattr(p, field) == level for p in plain[:first]) for level in {getattr(p, field) for p in plain}
            ]
            assert min(counts) >= many, (first, field, counts)
    for dtype in point_order.NAMES:
        early = [p for p in order[:80] if p.dtype == dtype]
        assert {p.cell for p in early} == {"rnn_tanh", "gru", "lstm"}
    assert {(p.dtype, p.ragged) for p in order[:60] if p.extras} >= {(dtype, True) for dtype in ("float32", "float16")}
    cost = [point_order.guessed_seconds(p) for p in plain]
    assert sum(cost[:100]) < sum(cost[-100:]) / 5
    assert point_order.guessed_bytes(Point("lstm", 1024, 512, 2048, 2048)) > 20 << 30


@pytest.mark.parametrize(
    ("point", "backward", "want"),
    [
        (Point("lstm", 64, 32, 512, 512), False, "standard"),
        (Point("lstm", 64, 32, 512, 512, "float16"), True, "persistent"),
        (Point("lstm", 64, 30, 512, 512, "float16"), True, "standard"),
        (Point("lstm", 64, 32, 512, 512, "float16", layers=2), False, "standard"),
        (Point("lstm", 64, 32, 512, 500, "float16"), False, "standard"),
        (Point("gru", 64, 32, 512, 512, "float16"), False, "standard"),
        (Point("rnn_tanh", 64, 128, 1024, 1024, "float16"), False, "standard"),
        (Point("rnn_tanh", 64, 64, 1024, 1024, "float16"), False, "persistent"),
        (Point("gru", 64, 32, 192, 192), False, "small-H"),
        (Point("gru", 64, 32, 192, 192), True, "standard"),
        (Point("rnn_tanh", 64, 32, 384, 384), False, "small-H"),
        (Point("rnn_tanh", 64, 32, 256, 256), True, "small-H"),
        (Point("lstm", 64, 32, 64, 64, ragged=True), False, "standard"),
        (Point("lstm", 64, 32, 64, 64, P=32), False, "standard"),
        (Point("lstm", 64, 32, 64, 64, "float64"), False, "standard"),
    ],
    ids=str,
)
def test_the_predicted_algorithm_of_cudnn(point: Point, backward: bool, want: str) -> None:
    assert cudnn.path(point, backward, 132, 90, 91400) == want


def test_the_predicted_algorithm_of_cudnn_depends_on_gpu_and_version() -> None:
    half = Point("lstm", 64, 32, 512, 512, "float16")
    assert [cudnn.path(half, False, sm, arch, 91400) for sm, arch in ((56, 80), (84, 86), (108, 80), (72, 75))] == [
        *("standard", "standard", "persistent", "standard")
    ]
    wide = Point("lstm", 64, 32, 512, 512, "bfloat16")
    assert cudnn.path(wide, False, 132, 90, 91200) == "no cuDNN"
    assert cudnn.path(wide, False, 132, 90, 91300) == "standard"


# The output of the sanitizer


ERRORS = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at forward_step+0x1a0
=========     by thread (3,0,0) in block (0,0,0)
"""
MEMCHECK = "every_kernel: {counts}, probes {probes}\n========= ERROR SUMMARY: {errors} errors\n"
RACECHECK = """every_kernel: 9 of 9 cases done, 0 failed, probes not wanted
========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)
"""
WHOLE = "22 of 22 cases done, 0 failed"
SOME = "20 of 22 cases done, 0 failed"


def memcheck(counts: str = WHOLE, probes: str = "done", errors: int = 0) -> dict[str, Any]:
    return sanitizer.parse(
        ERRORS * (errors > 0) + MEMCHECK.format(counts=counts, probes=probes, errors=errors), "exit 0"
    )


def test_the_summary_of_the_sanitizer_is_parsed() -> None:
    bad = memcheck(SOME, errors=3)
    assert (bad["status"], bad["errors"], bad["kernels"], bad["cases"]) == ("wrong", 3, ["forward_step"], "20 of 22")
    assert "========= Invalid __global__ read of size 4 bytes" in bad["said"]
    good = memcheck()
    assert (good["status"], good["cases"], good["probes"]) == ("ok", "22 of 22", "done")
    assert sanitizer.parse(RACECHECK, "exit status 0")["status"] == "ok"
    assert sanitizer.parse("Traceback\nKeyError: 3\n", "exit status 1")["why"] == (
        "no summary, exit status 1: Traceback | KeyError: 3"
    )


def test_cases_that_did_not_run_are_not_ok() -> None:
    late = memcheck(SOME)
    assert (late["status"], late["why"]) == ("not run", "no errors in 20 of 22 cases, probes done")
    assert memcheck(probes="not done")["status"] == "not run"
    failed = sanitizer.parse(
        "every_kernel: case cupy float32 lstm: KeyError: 3\n"
        + MEMCHECK.format(counts="21 of 22 cases done, 1 failed", probes="done", errors=0),
        "exit status 1",
    )
    assert (failed["status"], failed["failed_cases"]) == ("failed", 1)
    assert "KeyError: 3" in failed["why"]
    died = sanitizer.parse("========= ERROR SUMMARY: 0 errors\n", "exit status 139")
    assert died["status"] == "failed"
    assert "did not come to its end" in died["why"]


def test_a_sanitizer_that_does_not_support_the_machine_is_not_available() -> None:
    with pytest.raises(items_file.Unavailable, match="Device not supported"):
        sanitizer.parse("========= Error: Device not supported. Please refer\n", "exit status 1")


def test_sanitizer_runs_its_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "compute-sanitizer"
    tail = "every_kernel: 1 of 1 cases done, 0 failed, probes done\n========= ERROR SUMMARY: 0 errors\n"
    tool.write_text(f"#!/bin/sh\ncase $2 in synccheck) sleep 60;; esac\nprintf '{tail}'; echo \"$@\"\n")
    tool.chmod(0o755)
    monkeypatch.setattr(sanitizer, "find_tool", lambda name: str(tool))
    monkeypatch.setattr(sanitizer, "LEAST_SECONDS", 0.1)
    monkeypatch.setattr(sanitizer, "MOST_SECONDS", 1.0)
    assert sanitizer.main(["--items", str(tmp_path / "a"), "--part", "sanitizer", "--seconds", "20"]) == 0
    found = items_file.ended(items_file.read_lines(tmp_path / "a"))["sanitizer"]
    assert {key: item["status"] for key, item in found.items() if item["status"] != "ok"} == {
        "synccheck cupy float32": "failed"
    }
    assert list(found)[:3] == ["memcheck cupy float32", "racecheck cupy float32", "memcheck cupy float16"]
    assert "ended after" in found["synccheck cupy float32"]["why"]
    monkeypatch.setattr(sanitizer, "find_tool", lambda name: None)
    sanitizer.main(["--items", str(tmp_path / "b"), "--part", "sanitizer", "--seconds", "2"])
    none = items_file.ended(items_file.read_lines(tmp_path / "b"))["sanitizer"]
    assert {(item["status"], item["why"]) for item in none.values()} == {
        ("not available", "compute-sanitizer is not on this machine")
    }
    assert len(none) == len(found) == len(sanitizer.RUNS)


def test_sanitizer_covers_every_stored_dtype_and_backend() -> None:
    runs = {(tool, *extra) for tool, _, extra in sanitizer.RUNS}
    for stored in sources.STORAGES:
        for tool in ("memcheck", "racecheck"):
            assert (tool, "--backends", "cupy", "--dtypes", stored) in runs
    assert ("memcheck", "--backends", "numba_cuda") in runs
