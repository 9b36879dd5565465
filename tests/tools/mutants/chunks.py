"""CHUNK_MUTANTS: bugs in `truncate` and `max_saved_bytes`, rnnkit/functional/chunked.py."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

FILE = "rnnkit/functional/chunked.py"


def _chunks(name: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"chunks: {name}", FILE, at, old, new, "tests/api/test_chunks.py", pick)


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
)
