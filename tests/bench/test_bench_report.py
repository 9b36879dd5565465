"""The benchmark's report: ratios, their means, fractions of the peaks, comparisons of two files, and the plots."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import grid, grid_summary, peak_shares, report, result_file
from bench.grid import FORWARD, FORWARD_BACKWARD, Point
from tests.bench.bench_documents import of_gru, of_ratios, of_times, whole_grid
from tests.helpers import slow_except


def test_ratios_and_their_means() -> None:
    found = of_gru([{"numba": 2.0, "torch": 8.0, "jax": 16.0}, {"numba": 4.0, "torch": 4.0, "jax": 1.0}])
    text = report.render(found)
    table = [line.split() for line in text.splitlines() if line.startswith(("cell", "gru"))]
    rows = [dict(zip(table[0], line, strict=True)) for line in table[1:]]
    assert [row["ratio"] for row in rows] == ["4.00", "0.25"]
    assert [row["seq/s"] for row in rows] == ["2500", "1250"]
    # 3 gates, 50 steps with 2 (8 + 8) 3 8 FLOP each, in 2 ms.
    assert rows[0]["GFLOP/s"] == f"{50 * 2 * 16 * 24 / 2e-3 / 1e9:.1f}"
    assert "the best 1.00, torch 2.00, jax 1.41; least 0.25 at gru-T10-B5-I8-H16; behind at 1 of 2" in text


def test_compare_gives_time_before_over_time_after() -> None:
    before = of_gru([{"numba": 2.0, "torch": 8.0}, {"numba": 4.0, "torch": 4.0}])
    after = of_gru([{"numba": 1.0, "torch": 8.0}, {"numba": 0.5, "torch": 4.0}])
    text = report.compare(before, after)
    assert "forward, numba: 4.000 over 2 points" in text
    assert "forward, torch: 1.000 over 2 points" in text
    assert report.compare(before, {**after, "points": []}) == "no point has a time of one peer in both files"


def test_means_by_group_and_the_slower_points() -> None:
    ratios = whole_grid()
    text = "\n".join(grid_summary.summary(of_ratios(ratios)))
    table = {tuple(line.split()[:2]): line.split()[2:] for line in text.splitlines()}
    n = sum(p.H == 64 and p.passes == FORWARD for p in ratios)
    mean = math.exp(((n - 1) * math.log(2) + math.log(0.5)) / n)
    assert table["H", "64"][:3] == [f"{mean:.2f}", "0.50", f"1/{n}"]
    assert table["B", "1"][:3] == ["2.00", "2.00", f"0/{sum(p.B == 1 and p.passes == FORWARD for p in ratios)}"]
    lstm = sum(p.cell == "lstm" and not p.extras and p.passes == FORWARD_BACKWARD for p in ratios)
    assert table["cell", "lstm"][4:] == ["0.80", f"1/{lstm}"]
    assert "behind, forward: 1 points\n  0.50  gru-T64-B8-I64-H64  (torch)" in text
    assert "behind, forward+backward: 1 points\n  0.80  lstm-T64-B32-I512-H512  (torch)" in text
    few = "\n".join(grid_summary.summary(of_ratios({Point("gru", 64, 8, 64, 64): 0.5})))
    assert few == "behind, forward: 1 points\n  0.50  gru-T64-B8-I64-H64  (torch)"


def test_shares_of_peak_and_of_read_bandwidth() -> None:
    wide = Point("gru", 64, 32, 128, 128)
    narrow = Point("lstm", 64, 1, 100, 100)
    found = of_ratios(
        {wide: 2.0, narrow: 2.0, replace(narrow, passes=FORWARD_BACKWARD): 2.0, replace(narrow, H=1024): 1}
    )
    results = [entry["results"]["numba"] for entry in found["points"]]
    peak = 64 * 32 * 2 * 256 * 3 * 128 / 2e-3 / 200e9
    assert peak_shares.fma_share(found, wide, results[0]) == pytest.approx(peak, rel=1e-3)
    assert peak_shares.stream(found, wide, results[0]) is None
    # 4 gates of 100 units, padded to 112, with 100 states; half of them on each of two threads, 64 times in 2 ms.
    gb_s = 4 * 112 * 100 * 4 / 2 * 64 / 2e-3 / 1e9
    own = peak_shares.stream(found, narrow, results[1])
    assert own is not None
    assert (own.level, own.gb_s) == ("L2", pytest.approx(gb_s))
    assert own.share == pytest.approx(gb_s / 100)
    both = peak_shares.stream(found, replace(narrow, passes=FORWARD_BACKWARD), results[2])
    assert both is not None
    assert both.gb_s == pytest.approx(2 * gb_s)
    for H, level in ((256, "L2"), (1024, "L3")):
        far = peak_shares.stream(found, replace(narrow, H=H), results[3])
        assert far is not None
        assert far.level == level
    text = report.render(found)
    assert f"{100 * peak:.0f}%" in text
    assert f"{gb_s:.0f}GB/s={gb_s:.0f}%L2" in text
    assert "multiply-add peak float32 GFLOP/s, by threads: 100 on 1, 200 on 2" in text
    old = {**found, "ceiling": {"gflops": {"1": 50.0}}}
    assert peak_shares.fma_share(old, wide, results[0]) is peak_shares.stream(old, narrow, results[1]) is None
    assert "W_hh" not in report.render(old)


def test_spread_of_two_runs() -> None:
    sizes = [Point("gru", 64, 8, 8 * i, 8 * i) for i in range(1, 6)]
    first = of_ratios(dict(zip(sizes, (2.0, 2.0, 0.9, 0.9, 1.1), strict=True)))
    second = of_ratios(dict(zip(sizes, (2.2, 2.0, 0.8, 1.2, 1.0), strict=True)), own=4.0)
    text = grid_summary.spread_of_runs(first, second)
    apart = [0.1, 0.0, 0.9 / 0.8 - 1, 1.2 / 0.9 - 1, 0.1]
    assert f"the ratio differs by {100 * np.median(apart):.1f}% in the median" in text
    assert f"at most {100 * max(apart):.0f}% (0.90 and 1.20 at gru-T64-B8-I32-H32)" in text
    assert "numba: a time differs by 100.0% in the median" in text
    assert "behind in both runs: 1\n    0.90 0.80  gru-T64-B8-I24-H24" in text
    assert "behind in one run alone: 1\n    0.90 1.20  gru-T64-B8-I32-H32" in text
    with pytest.raises(ValueError, match="their dtype is 'float32' and 'float64'"):
        grid_summary.spread_of_runs(first, {**second, "dtype": "float64"})


def test_result_file_of_a_large_grid_is_small(tmp_path: Path) -> None:
    found = of_ratios(whole_grid())
    result_file.save(found, tmp_path / "cpu.json")
    assert result_file.load(tmp_path / "cpu.json") == found
    size = (tmp_path / "cpu.json").stat().st_size
    assert 3 * size < len(json.dumps(found))
    assert size < 250 * len(found["points"])


# The plots


@pytest.fixture
def pyplot() -> Any:
    pytest.importorskip("matplotlib")
    from bench import png

    return png.pyplot()


def texts_of(figure: Any) -> list[tuple[str, Any]]:
    """Every visible text of a rendered figure with its extent in pixels."""
    from matplotlib.axis import Tick, XTick
    from matplotlib.text import Text

    figure.canvas.draw()
    # Matplotlib has ticks outside the range of their axis, which it does not draw.
    left_out = set()
    for tick in figure.findobj(Tick):
        low, high = sorted(tick.axes.get_xlim() if isinstance(tick, XTick) else tick.axes.get_ylim())
        if not low <= tick.get_loc() <= high:
            left_out |= {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text not in left_out]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text().strip()]


def overlaps(figure: Any) -> list[tuple[str, str]]:
    """The pairs of texts that overlap, and ("outside", text) for a text that the figure truncates."""
    found = []
    texts = texts_of(figure)
    whole = figure.bbox
    for i, (text, extent) in enumerate(texts):
        if extent.x0 < whole.x0 or extent.y0 < whole.y0 or extent.x1 > whole.x1 or extent.y1 > whole.y1:
            found.append(("outside", text))
        found += [(text, other) for other, its in texts[:i] if extent.overlaps(its)]
    return found


def only(document: result_file.Document, *names: str) -> result_file.Document:
    """The document without the results of other peers."""
    points = [{**e, "results": {n: r for n, r in e["results"].items() if n in names}} for e in document["points"]]
    return {**document, "points": points}


@pytest.mark.slow
def test_a_large_grid_is_plotted_as_a_heat_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pyplot: Any) -> None:
    from bench import heat_map, plot

    found = of_ratios(whole_grid())
    boxes = []
    box = heat_map._box
    monkeypatch.setattr(heat_map, "_box", lambda *a: (boxes.append(a[1:5]), box(*a)))
    plot.draw(found, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    # Every point has a box except the two other pairs of T and I, which exist for only one H.
    drawn = [
        e for e in found["points"] if e["point"]["H"] != 128 or (e["point"]["T"] == 64) == (e["point"]["I"] == 128)
    ]
    extra = [e for e in found["points"] if e not in drawn and grid_summary.is_variant(Point.from_dict(e["point"]))]
    assert len(boxes) == len(drawn) + len(extra)
    # gru, B = 8 and H = 64; the map has H in rows and B in columns.
    assert [b for b in boxes if b[2] < 1] == [(2, 1, 0.5, "torch"), (3, 5, 0.8, "torch")]
    few = of_ratios({Point("gru", 64, 8, 64, 64): 0.5})
    assert not heat_map.suits(few)


@pytest.mark.parametrize(
    ("cells", "passes", "panels"),
    [
        *slow_except([(grid.MAIN_CELLS, grid.PASSES, 2 * 2 * 3 + 2), (("gru",), grid.PASSES, 2 * 2 + 2)], unpack=True),
        (("lstm", "gru"), (FORWARD,), 2 * 2 + 1),
    ],
)
def test_the_heat_map_has_no_empty_panel_and_no_overlapping_text(
    cells: Any, passes: Any, panels: int, pyplot: Any
) -> None:
    from bench import heat_map

    ratios = {p: r for p, r in whole_grid().items() if p.cell in cells and p.passes in passes}
    figure = heat_map.figure(of_ratios(ratios))
    assert overlaps(figure) == []
    assert len(figure.axes) == panels + 1  # and the colour scale
    assert all(axis.images or axis.texts for axis in figure.axes[:-1])
    pyplot.close(figure)


def test_the_heat_map_of_a_pass_without_a_peer_is_omitted(pyplot: Any) -> None:
    from bench import heat_map

    found = of_ratios(whole_grid())
    for entry in found["points"]:
        if entry["point"]["passes"] == FORWARD_BACKWARD:
            entry["results"] = {"numba": entry["results"]["numba"]}
    figure = heat_map.figure(found)
    titles = [axis.get_title() for axis in figure.axes[:-1]]
    assert len(titles) == 2 * 3 + 1
    assert not any(FORWARD_BACKWARD in title for title in titles)
    pyplot.close(figure)
    assert not heat_map.suits(only(found, "numba"))


@pytest.mark.parametrize(
    ("peers", "rows"),
    [
        (("numba", "jax"), 2),
        (("torch",), 1),
        *slow_except([(("numba", "torch", "jax"), 2), (("numba",), 1)], unpack=True),
    ],
)
def test_the_plot_has_a_panel_for_each_measured_kind(peers: tuple[str, ...], rows: int, pyplot: Any) -> None:
    from bench import plot

    ratios = {p: r for p, r in whole_grid().items() if p.T == 64 and p.I == p.H == 64 and not p.extras}
    figure = plot.figure(only(of_ratios(ratios), *peers))
    assert len(figure.axes) == 2 * rows
    assert all(axis.collections for axis in figure.axes)
    assert overlaps(figure) == []
    labels = {text.get_text() for axis in figure.axes for text in axis.get_legend().get_texts()}
    assert {label.removeprefix("rnnkit (").rstrip(")") for label in labels} - {"the best peer"} == set(peers)
    pyplot.close(figure)


def test_the_plot_omits_a_pass_without_times_and_refuses_a_file_without_times(tmp_path: Path, pyplot: Any) -> None:
    from bench import plot

    points = [Point("gru", 64, 8, 64, 64, passes=passes) for passes in grid.PASSES]
    found = of_times({points[0]: {"numba": 1.0, "torch": 2.0}, points[1]: {}})
    figure = plot.figure(found)
    assert [axis.get_title() for axis in figure.axes] == [FORWARD, ""]
    pyplot.close(figure)
    with pytest.raises(ValueError, match="no result has a time"):
        plot.draw(only(found), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_points_at_which_rnnkit_torch_is_behind_are_listed() -> None:
    """Where the plain layer is ahead of torch.nn. In the committed run there are none."""
    from copy import deepcopy

    from bench import grid_summary
    from bench.result_file import load

    results = Path(__file__).resolve().parents[2] / "bench" / "results" / "amd-epyc-2-cores"
    document = load(results / "quick-float32.json")
    start = "via torch behind torch where numba is ahead of it, forward: "
    assert any(line.startswith(f"{start}0 of 12 points") for line in grid_summary.summary(document))
    slower = deepcopy(document)
    entry = next(e for e in slower["points"] if e["point"]["passes"] == "forward")
    entry["results"]["via torch"]["ms"]["median"] = 2 * entry["results"]["torch"]["ms"]["median"]
    lines = grid_summary.summary(slower)
    (head,) = [k for k, line in enumerate(lines) if line.startswith(f"{start}1 of 12 points")]
    assert lines[head + 1].startswith("  0.50  ")
