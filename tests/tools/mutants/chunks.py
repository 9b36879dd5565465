"""CHUNK_MUTANTS: bugs in `truncate` and `max_saved_bytes`, rnnkit/functional/chunked.py."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

FILE, SEGMENTED = "rnnkit/functional/chunked.py", "rnnkit/functional/segmented.py"


def _chunks(name: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"chunks: {name}", FILE, at, old, new, "tests/api/test_chunks.py", pick)


def _segments(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"chunks of segments: {name}", file, at, old, new, "tests/api/test_chunked_resets.py", pick)


CHUNK_MUTANTS = (
    _chunks("a row that ends at a boundary loses the gradient of its state", "_cut", "<= t", "< t", "truncated"),
    _chunks(
        "the reverse direction cuts at the other end", "backward", "t1 if whole.reverse else t0", "t0", "truncated"
    ),
    _chunks(
        "gradients are cut between chunks that are run again", "backward", "self.chunks.cuts and k", "k", "recomputed"
    ),
    _chunks("the reverse direction runs from the first chunk", "_spans", "spans[::-1]", "spans", "recomputed"),
    _chunks("weights have the gradient of one chunk", "backward", "d: s + d", "d: d", "recomputed and numpy"),
    _chunks("every chunk is saved", "forward", "and not self.chunks.recomputes", "", "bound_holds"),
    _segments(
        "each chunk reads the first steps",
        SEGMENTED,
        "GatheredSteps.__getitem__",
        "first * B : last * B",
        "0 : (last - first) * B",
        "change_nothing and lstm",
    ),
    _segments(
        "x is gathered whole",
        SEGMENTED,
        "_steps_of",
        "not isinstance(choice.backend, Chunked)",
        "True",
        "gathered_by_chunk",
    ),
    _segments("y of each group is kept", FILE, "Chunked.forward", "call._replace(out=None)", "call", "bound_holds"),
    _segments(
        "a step is counted as an eighth of it",
        FILE,
        "_group_sizes",
        "-(-max(most) // max(1, T))",
        "-(-max(most) // max(1, 8 * T))",
        "bound_holds",
    ),
)
