"""SEGMENT_MUTANTS: bugs in resets and masks, rnnkit/functional/segments.py and segmented.py."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

TABLES, CALLS = "rnnkit/functional/segments.py", "rnnkit/functional/segmented.py"
CHECKS = "rnnkit/core/checks.py"


def _resets(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"resets: {name}", file, at, old, new, "tests/api/test_resets.py", pick)


SEGMENT_MUTANTS = (
    _resets("read past a row's length", TABLES, "segments", "resets.T & inside", "resets.T", "plain_call and numpy"),
    _resets(
        "the reverse direction starts at the first segment",
        TABLES,
        "_ends",
        "Ends(found[last], rows, found[first])",
        "Ends(found[first], rows, found[last])",
        "of_the_equations and gru",
    ),
    _resets(
        "a row that begins with a reset starts from h0",
        TABLES,
        "_ends",
        "~of_row.resets[first]",
        "of_row.resets[first] | True",
        "of_the_equations and rnn",
    ),
    _resets(
        "an output is repeated across a reset",
        TABLES,
        "_repeats",
        "& (segment[nearest] == segment)",
        "",
        "of_the_equations and given and mask",
    ),
    _resets(
        "the reverse direction repeats the output before",
        TABLES,
        "_repeats",
        "-1 if reverse else 1",
        "1",
        "of_the_equations and gru",
    ),
    _resets(
        "of the gradients of repeated outputs, one is added",
        TABLES,
        "_sums",
        "while step <= most",
        "while step <= min(most, 1)",
        "finite_difference",
    ),
    _resets(
        "padding as long as the longest segment",
        TABLES,
        "MOST_PADDED",
        "2",
        "10**6",
        "memory_is_that",
    ),
    _resets(
        "y of masked steps not cleared",
        CALLS,
        "ungrouped",
        "if len(segments.empty):",
        "if False:",
        "of_the_equations and zero",
    ),
    _resets(
        "the weights' gradients of the last group only",
        CALLS,
        "backward",
        "_added(grads, dw)",
        "_wide(dw)",
        "special_cases and numpy and long or compiled_results and rnn-float64",
    ),
    _resets(
        "the reset state's gradient of one segment only",
        CALLS,
        "reset_gradients",
        "part[:, to] += part[:, source]",
        "pass",
        "finite_difference and given",
    ),
    _resets(
        "dropout masks of the padded steps",
        CALLS,
        "_Dropout.of",
        "grouped(self.drawn[layer], group)",
        "self.draw(layer, y)",
        "masks_are_those",
    ),
    _resets("flags not transposed", CHECKS, "step_flags", "got = got.T", "got = got.reshape(T, B)", "layouts and gru"),
)
