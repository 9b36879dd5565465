"""bench.gpu.recompute_times: what gates computed again are predicted to cost, and the table of docs/performance.md."""

from __future__ import annotations

from pathlib import Path

from bench.gpu import recompute_times

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_the_table_of_the_documents_is_what_is_predicted() -> None:
    page = [line.replace("|", " ").split() for line in PAGE.read_text(encoding="utf-8").splitlines()]
    for line in recompute_times.render().splitlines()[2:]:
        assert line.split() in page, line


def test_gates_again_cost_less_than_a_second_forward_pass() -> None:
    for row in recompute_times.ROWS:
        found = recompute_times.predicted(row)
        assert found.recomputing < found.saving
        assert found.saved < found.again < found.forward_again
