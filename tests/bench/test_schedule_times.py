"""bench.gpu.schedule_times: the predicted steps of all schedules, and the table of docs/performance.md."""

from __future__ import annotations

from pathlib import Path

from bench.gpu import schedule_times
from tests.tools.cards import CARDS

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_the_card_is_that_of_the_tests() -> None:
    assert CARDS[schedule_times.H100.name] == schedule_times.H100


def test_the_table_of_the_documents_is_what_is_predicted() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for row in schedule_times.ROWS:
        times = schedule_times.predicted(row)
        cells = [" / ".join("-" if t is None else f"{t:.1f}" for t in pair) for pair in times.values()]
        line = [row.cell, row.dtype, str(row.T), str(row.B), str(row.H), str(row.P or "-"), *cells, row.others]
        assert "| " + " | ".join(line) + " |" in page
    assert all(source in page for source in schedule_times.SOURCES)


def test_what_is_not_served_has_no_time() -> None:
    row = schedule_times.Row("lstm", "bfloat16", 64, 128, 1024)
    times = schedule_times.predicted(row)
    assert times["one_block"] == (None, None)
    assert None not in times["stepwise"]
    assert "- / -" in schedule_times.render((row,))
