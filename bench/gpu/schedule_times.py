"""The predicted time of a step by every schedule, beside public figures of others: python -m bench.gpu.schedule_times.

Nothing here was measured by rnnkit. The predictions are those that choose a schedule, `rnnkit/backends/cupy/cost.py`,
for an NVIDIA H100 80GB HBM3. The figures beside them are other people's, measured on an H100: of whole layers, with the
product of the input, which the predictions of steps leave out. A row of T = 1 is a call of a stream of single steps.
"""

from __future__ import annotations

from typing import NamedTuple

from bench.table import aligned
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.cost import PREDICTED
from rnnkit.backends.cupy.schedules import Work, candidates
from rnnkit.backends.interface import Sizes
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES

# CUDA C++ Programming Guide, compute capability 9.0; NVIDIA H100 data sheet.
H100 = CardFacts(
    name="NVIDIA H100 80GB HBM3",
    arch=90,
    multiprocessors=132,
    shared_block=227 << 10,
    shared_multiprocessor=228 << 10,
    registers=65536,
    threads=2048,
    l2_bytes=50 << 20,
    cooperative=True,
    clusters=True,
    clock=1.98e9,
    bandwidth=3.352e12,
)


class Row(NamedTuple):
    """A layer and direction, and what others take for a step of it, in words."""

    cell: str
    dtype: str
    T: int
    B: int
    H: int
    others: str = ""
    P: int = 0


FLASH = "cuDNN float16 1.96 / 5.1, FlashRNN bfloat16 4.8 / 13.3 [1]"
ROWS = (
    Row("lstm", "float16", 1024, 16, 64),
    Row("lstm", "float16", 1024, 16, 128),
    Row("lstm", "float16", 1024, 16, 256),
    Row("lstm", "float16", 1024, 16, 512),
    Row("lstm", "float16", 1024, 16, 768, FLASH),
    Row("lstm", "bfloat16", 1024, 16, 768, FLASH),
    Row("lstm", "float32", 1024, 16, 768, "Haste 18 / 43 [1]"),
    Row("lstm", "bfloat16", 1024, 16, 1024),
    Row("lstm", "bfloat16", 1024, 128, 1024),
    Row("lstm", "float32", 512, 10, 256, "torch.nn 8.9 / - [2]"),
    Row("lstm", "tf32", 512, 10, 256, "torch.nn 8.9 / - [2]"),
    Row("gru", "float32", 512, 10, 256, "torch.nn 12.7 / - [2]"),
    Row("gru", "tf32", 512, 10, 256, "torch.nn 12.7 / - [2]"),
    Row("gru", "bfloat16", 1024, 16, 512),
    Row("rnn_tanh", "bfloat16", 1024, 16, 512),
    Row("gru_reset_before", "bfloat16", 1024, 16, 128),
    Row("gru_reset_before", "bfloat16", 1024, 16, 512),
    Row("gru_reset_before", "float32", 1024, 16, 512),
    Row("lstm", "bfloat16", 1024, 16, 128, P=64),
    Row("lstm", "bfloat16", 1024, 16, 512, P=256),
    Row("lstm", "bfloat16", 1024, 16, 1024, P=512),
    Row("lstm", "float64", 1024, 16, 256),
    Row("lstm", "float32", 1024, 16, 1024),
    Row("lstm", "bfloat16", 1024, 8, 2048),
    Row("lstm", "bfloat16", 1, 1, 64),
    Row("lstm", "bfloat16", 1, 1, 128),
    Row("gru", "float32", 1, 1, 256),
    Row("lstm", "bfloat16", 1, 1, 1024),
)
SOURCES = (
    "[1] FlashRNN (arXiv 2412.07752), H100, T=1024, B=16, H=768, forward / forward and backward per step",
    "[2] KernelBench level 3, H100, T=512, B=10, I=128, H=256, six layers: forward per step and layer",
)


def predicted(row: Row) -> dict[str, tuple[float | None, float | None]]:
    """Microseconds of a step by schedule: forward, and both passes; None where the schedule does not serve them."""
    sizes = Sizes(row.T, row.B, row.H, row.H, row.P or row.H, row.T * row.B)
    of_each = []
    for keep in (False, True):
        work = Work(CELLS[row.cell], DTYPES[row.dtype], sizes, keep, bool(row.P))
        found = candidates(work, H100, PREDICTED)
        of_each.append({c.schedule.name: None if c.problem else 1e6 * c.seconds / row.T for c in found})
    forward, both = of_each
    return {name: (forward[name], both[name]) for name in forward}


def render(rows: tuple[Row, ...] = ROWS) -> str:
    """A table of all rows."""
    schedules = list(predicted(rows[0]))
    lines = [["cell", "dtype", "T", "B", "H", "P", *schedules, "others, measured"]]
    for row in rows:
        times = predicted(row)
        cells = [" / ".join("-" if t is None else f"{t:.1f}" for t in times[name]) for name in schedules]
        lines.append([row.cell, row.dtype, str(row.T), str(row.B), str(row.H), str(row.P or "-"), *cells, row.others])
    about = "Predicted, not measured, for an H100: microseconds per step, forward / forward and backward."
    return "\n".join([about, *aligned(lines, {"cell", "dtype", "others, measured"}), *SOURCES])


if __name__ == "__main__":
    print(render())
