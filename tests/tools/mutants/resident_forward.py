"""RESIDENT_FORWARD_MUTANTS: bugs in the forward pass of the schedules that keep W_hh on the chip."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

PRODUCT = "kernels/cuda/resident_product.cuh"
STEPS = "kernels/cuda/resident_forward.cuh"
RESIDENT = "kernels/cuda/resident.cuh"
GRID = "kernels/cuda/grid.cuh"

RACES = "test_no_race and lstm-float16"
PARITY = "test_parity and lstm-float16"
RACES_OF_TWO = "test_no_race and lstm_projected-float16"


def _one_block(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"one_block: {name}", file, at, old, new, "tests/cuda/test_cupy_one_block.py", pick)


def _grid(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"grid: {name}", file, at, old, new, "tests/cuda/test_cupy_grid.py", pick)


RESIDENT_FORWARD_MUTANTS: tuple[Mutant, ...] = (
    _one_block(
        "no barrier between steps", STEPS, "forward_steps", "__syncthreads(); now = next;", "now = next;", RACES
    ),
    _one_block(
        "one buffer of h",
        STEPS,
        "forward_steps",
        "(s + 1) % 2 * rows_size(stride)",
        "0 * rows_size(stride)",
        RACES,
    ),
    _one_block("padding of h is not zero", STEPS, "forward_steps", "shared.h[i] = store(Compute(0));", ";", RACES),
    _one_block(
        "rows that have ended go on",
        STEPS,
        "forward_steps",
        "if (b[q] < now.rows) { out",
        "if (b[q] < all.B) { out",
        PARITY,
    ),
    _one_block(
        "registers of a fragment swapped",
        PRODUCT,
        "add_block",
        "w[g][0].x, w[g][1].x, w[g][0].y, w[g][1].y",
        "w[g][0].x, w[g][0].y, w[g][1].x, w[g][1].y",
        PARITY,
    ),
    _one_block(
        "the reduce-scatter sends the wrong half",
        PRODUCT,
        "scatter",
        "upper ? sums[r] : sums[r + kHalf]",
        "upper ? sums[r + kHalf] : sums[r]",
        "test_parity and lstm-float32",
    ),
    _one_block(
        "the reversed direction runs forward",
        RESIDENT,
        "step_at",
        "all.descending ? steps - 1 - s : s",
        "s",
        "test_chunks_of_steps and True-lstm",
    ),
    _one_block(
        "no barrier before the second product",
        STEPS,
        "forward_steps",
        "__syncthreads(); Compute sum[1][Q];",
        "Compute sum[1][Q];",
        RACES_OF_TWO,
    ),
    _one_block(
        "n lacks the bias of its hidden side",
        STEPS,
        "forward_steps",
        "x[q][g] += bias;",
        ";",
        "test_parity and gru_reset_before-float32",
    ),
    row(
        "resident schedules: y has the strides of an array of its own",
        "rnnkit/backends/cupy/resident_launch.py",
        "forward_chunk",
        "*self.row_strides(y)",
        "p.B * p.R, p.R",
        "tests/cuda/test_cupy_resident_layers.py",
        "test_both_directions and one_block and gru",
    ),
    _grid(
        "messages of both stages have one number",
        STEPS,
        "forward_steps",
        "constexpr int kStages = kSecond ? 2 : 1;",
        "constexpr int kStages = 1;",
        RACES_OF_TWO,
    ),
    _grid("one buffer of words", GRID, "buffer", "message % 2", "0", RACES),
    _grid(
        "tags are not compared",
        GRID,
        "has_come",
        "((unsigned)(pair.x >> 32) == wanted) & ((unsigned)(pair.y >> 32) == wanted)",
        "wanted != 0",
        "tags_of_earlier_calls",
    ),
    _grid(
        "one word of a pair is waited for",
        GRID,
        "has_come",
        "& ((unsigned)(pair.y >> 32) == wanted)",
        "",
        RACES,
    ),
    _grid(
        "tags of earlier calls come again",
        "rnnkit/backends/cupy/grid.py",
        "exchange",
        "words.epochs(chunk.T * len(d.products))",
        "1",
        "tags_of_earlier_calls",
    ),
    _grid(
        "the state of a chunk is not the next one's",
        "rnnkit/backends/cupy/resident_launch.py",
        "forward_chunk",
        'self.swap("h", "h_out")',
        "pass",
        "chunks_and_rows",
    ),
)
