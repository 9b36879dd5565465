"""RESIDENT_BACKWARD_MUTANTS: bugs in the backward pass of the schedules that keep W_hh on the chip."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

STEPS = "kernels/cuda/resident_backward.cuh"
HOST = "rnnkit/backends/cupy/one_block_backward.py"
SHARED_HOST = "rnnkit/backends/cupy/resident_launch.py"

RACES = "test_no_race_and_no_access_out_of_bounds and float32-gru"
PARITY = "test_every_gradient_equals_the_oracle and gru-float32"
RACES_OF_TWO = "test_no_race_and_no_access_out_of_bounds and float32-lstm_projected"
PARITY_PROJECTED = "test_every_gradient_equals_the_oracle and lstm_projected-bfloat16"
PARITY_BEFORE = "test_every_gradient_equals_the_oracle and gru_reset_before-float32"


def _row(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"one_block backward: {name}", file, at, old, new, "tests/cuda/test_cupy_one_block_backward.py", pick)


_ONE_BLOCK = (
    _row(
        "no barrier before the product",
        STEPS,
        "backward_steps",
        "__syncthreads(); product.multiply",
        "product.multiply",
        RACES,
    ),
    _row("one operand for all steps", STEPS, "backward_steps", "s % 2 * size", "0 * size", RACES),
    _row(
        "padding of the operand is not zero",
        STEPS,
        "backward_steps",
        "shared.operand[i] = store(Compute(0));",
        ";",
        RACES,
    ),
    _row(
        "rows that have ended lose their gradient",
        STEPS,
        "backward_steps",
        "if (block.live(r, u, now)) dh[r][u] =",
        "dh[r][u] =",
        "test_rows_of_length_zero_keep_their_gradient",
    ),
    _row("dh that bypasses the product is dropped", STEPS, "backward_steps", "direct[r][u] + sums", "sums", PARITY),
    _row("both sides get the gradient of x", STEPS, "backward_steps", "? store(du[g])", "? store(dx[g])", PARITY),
    _row("dy of another row", STEPS, "backward_steps", "(in.order ? in.order[b] : b) * in.dy_b", "b * in.dy_b", PARITY),
    _row(
        "values of the step that has just run",
        STEPS,
        "backward_steps",
        "load_pairs<kSplits>(pairs, in, block, next,",
        "load_pairs<kSplits>(pairs, in, block, now,",
        PARITY,
    ),
    _row(
        "dc is not carried",
        STEPS,
        "apply_backward",
        "dc = dc_prev;",
        ";",
        "test_every_gradient_equals_the_oracle and lstm-float32",
    ),
    _row(
        "later chunks read the saved values of the first one",
        STEPS,
        "backward_steps",
        "(all.n0 + next.n) * H",
        "next.n * H",
        "test_chunks_of_steps and 3-False",
    ),
    _row("W_hh is not transposed", HOST, "backward_begin", "(0, 1, w.K)", "(0, w.K, 1)", PARITY),
    _row(
        "the steps run in the order of the forward pass",
        SHARED_HOST,
        "chunk_arguments",
        "not p.reverse",
        "p.reverse",
        PARITY,
    ),
    _row(
        "shared memory without the second operand",
        "rnnkit/backends/cupy/tiles.py",
        "Division.operand_bytes",
        "2 * sizes[0]",
        "sizes[0]",
        RACES,
    ),
    _row(
        "no barrier before the second product",
        STEPS,
        "backward_steps",
        "__syncthreads(); second.multiply",
        "second.multiply",
        RACES_OF_TWO,
    ),
    _row(
        "the gradient of the projection's output lacks dy",
        STEPS,
        "",
        "return dh + load(pair.dy);",
        "return dh;",
        PARITY_PROJECTED,
    ),
    _row(
        "the direct part of dh lacks that of r h'",
        STEPS,
        "backward_steps",
        "const Compute dm = kSecond ?",
        "const Compute dm = kProjected ?",
        PARITY_BEFORE,
    ),
    _row(
        "the second weights are not transposed",
        HOST,
        "backward_begin",
        "(0, 1, w.K)",
        "(0, 1, w.K) if name == 'weights' else (0, w.K, 1)",
        PARITY_BEFORE,
    ),
)

PARTS_STEPS = "kernels/cuda/parts_backward.cuh"
GRID_STEPS = "kernels/cuda/grid_backward.cu"
GRID_HOST = "rnnkit/backends/cupy/grid_backward.py"


def _grid(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"grid backward: {name}", file, at, old, new, "tests/cuda/test_cupy_grid_backward.py", pick)


_GRID = (
    _grid(
        "no barrier before the product",
        PARTS_STEPS,
        "parts_backward_steps",
        "all.t0 + next.t); __syncthreads();",
        "all.t0 + next.t);",
        RACES,
    ),
    _grid("one operand for all steps", PARTS_STEPS, "parts_backward_steps", "s % 2 * size", "0 * size", RACES),
    _grid("one buffer of words for all steps", GRID_STEPS, "at", "members * 2 + message % 2", "members * 2", RACES),
    _grid(
        "a word of any step is taken",
        GRID_STEPS,
        "sum",
        "(unsigned)(got[i] >> 32) != tag + message",
        "!(got[i] >> 32)",
        PARITY,
    ),
    _grid(
        "the sum lacks the member's own part",
        GRID_STEPS,
        "sum",
        "sum += __uint_as_float",
        "if (first + i != member()) sum += __uint_as_float",
        PARITY,
    ),
    _grid(
        "tiles of rows of the first launch again",
        GRID_STEPS,
        "tile",
        "first + blockIdx.x / members",
        "blockIdx.x / members",
        "test_tiles_of_rows_that_do_not_fit_at_once",
    ),
    _grid(
        "every launch begins with the same tag",
        GRID_HOST,
        "backward_chunk",
        "self.counters.epochs(chunk.T * len(g.products))",
        "1",
        "test_calls_do_not_take_each_others_words",
    ),
    _grid(
        "gates of another member's units",
        PARTS_STEPS,
        "pack_parts",
        "rest / tiles * units + k % units",
        "k % units",
        PARITY,
    ),
    _grid(
        "no barrier before the second product",
        PARTS_STEPS,
        "parts_backward_steps",
        "__syncthreads(); if (has_outputs)",
        "if (has_outputs)",
        RACES_OF_TWO,
    ),
    _grid(
        "every member holds the second weights of the first one",
        PARTS_STEPS,
        "parts_backward_steps",
        "second.load(in.second, behind, parts.member()",
        "second.load(in.second, behind, 0",
        PARITY_BEFORE,
    ),
    _grid(
        "messages of both stages have one number",
        PARTS_STEPS,
        "parts_backward_steps",
        "constexpr int kStages = kSecond ? 2 : 1;",
        "constexpr int kStages = 1;",
        RACES_OF_TWO,
    ),
)

RESIDENT_BACKWARD_MUTANTS: tuple[Mutant, ...] = (*_ONE_BLOCK, *_GRID)
