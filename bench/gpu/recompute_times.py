"""What gates that backward computes again save and cost, predicted for an H100: python -m bench.gpu.recompute_times.

Nothing here was measured. The times are those of the model that chooses a schedule and its plan,
`rnnkit/backends/cupy/cost.py` and `overlap.py`: both passes of one layer and direction with I = H, and all products.
"""

from __future__ import annotations

from typing import NamedTuple

from bench.gpu.schedule_times import H100, Row
from bench.table import aligned
from rnnkit.backends import cupy as backend
from rnnkit.backends.cupy import overlap, schedules
from rnnkit.backends.cupy.cost import PREDICTED
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.interface import Sizes
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES
from rnnkit.functional.gates import needs_of

ROWS = (
    Row("rnn_tanh", "bfloat16", 1024, 128, 512),
    Row("gru", "bfloat16", 1024, 32, 512),
    Row("gru", "bfloat16", 1024, 256, 1024),
    Row("lstm", "bfloat16", 1024, 32, 256),
    Row("lstm", "bfloat16", 1024, 32, 512),
    Row("lstm", "bfloat16", 1024, 256, 1024),
    Row("lstm", "tf32", 1024, 128, 512),
    Row("lstm", "float32", 1024, 32, 256),
    Row("lstm", "float32", 1024, 128, 512),
)


class Prediction(NamedTuple):
    """Megabytes that a forward saves, and milliseconds of both passes: with saved gates, with gates that are computed
    again, and with the forward run again as `max_saved_bytes` does."""

    schedule: str
    saving: float
    recomputing: float
    saved: float
    again: float
    forward_again: float


def predicted(row: Row) -> Prediction:
    """The prediction of a row."""
    cell, dtype = CELLS[row.cell], DTYPES[row.dtype]
    sizes = Sizes(row.T, row.B, row.H, row.H, row.P or row.H, row.T * row.B)
    work = Work(cell, dtype, sizes, True, bool(row.P))
    schedule, _ = schedules.choose(work, H100, PREDICTED)
    needs = needs_of(backend, backend.recomputing(), cell, dtype, sizes, 1, 1)
    forward = overlap.pass_seconds(schedule, work, H100, PREDICTED, 1)
    backward, again = (
        overlap.pass_seconds(schedule, one, H100, PREDICTED, 1, backward=True)
        for one in (work, work._replace(recomputes=True))
    )
    times = (1e3 * t for t in (forward + backward, forward + again, 2 * forward + backward))
    return Prediction(schedule.name, needs.saving / 1e6, needs.recomputing / 1e6, *times)


def render(rows: tuple[Row, ...] = ROWS) -> str:
    """A table of all rows."""
    lines = [["cell", "dtype", "T", "B", "H", "schedule", "MB", "ms saved", "gates again", "forward again"]]
    for row in rows:
        found = predicted(row)
        more = (f"{t:.2f} (+{100 * (t / found.saved - 1):.0f}%)" for t in (found.again, found.forward_again))
        sizes = (str(row.T), str(row.B), str(row.H))
        memory = f"{found.saving:.0f} -> {found.recomputing:.0f}"
        lines.append([row.cell, row.dtype, *sizes, found.schedule, memory, f"{found.saved:.2f}", *more])
    about = "Predicted, not measured, for an H100: saved MB with and without the gates, ms of both passes."
    return "\n".join([about, *aligned(lines, {"cell", "dtype", "schedule"})])


if __name__ == "__main__":
    print(render())
