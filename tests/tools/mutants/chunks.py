"""CHUNK_MUTANTS: bugs in `truncate` and `max_saved_bytes`, rnnkit/functional/chunked.py."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

FILE, SEGMENTED = "rnnkit/functional/chunked.py", "rnnkit/functional/segmented.py"
TRUNCATED = "rnnkit/functional/truncated.py"


def _chunks(name: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"chunks: {name}", FILE, at, old, new, "tests/api/test_chunks.py", pick)


def _segments(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"chunks of segments: {name}", file, at, old, new, "tests/api/test_chunked_resets.py", pick)


def _truncated(name: str, at: str, old: str, new: str, pick: str, file: str = TRUNCATED) -> Mutant:
    return row(f"truncated segments: {name}", file, at, old, new, "tests/api/test_truncated_resets.py", pick)


CHUNK_MUTANTS = (
    _chunks("a row that ends at a boundary loses the gradient of its state", "_cut", "> t", ">= t", "truncated"),
    _chunks(
        "the reverse direction cuts at the other end", "backward", "t1 if whole.reverse else t0", "t0", "truncated"
    ),
    _chunks(
        "gradients are cut between chunks that are run again", "backward", "self.chunks.cuts and k", "k", "recomputed"
    ),
    _chunks("the reverse direction runs from the first chunk", "_spans", "spans[::-1]", "spans", "recomputed"),
    _chunks(
        "weights have the gradient of one chunk",
        "backward",
        "sums = added(sums, dweights)",
        "sums = added(None, dweights)",
        "recomputed and numpy",
    ),
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
    _truncated(
        "boundaries are those of the segment",
        "pieces_of",
        "group.source.reshape(T, S) // B // k",
        "np.broadcast_to(positions // k, (T, S))",
        "detaches and gru and mask",
    ),
    _truncated(
        "a part begins a step late",
        "pieces_of",
        "(start + np.arange(longest)[:, None]) * S",
        "np.minimum(start + 1 + np.arange(longest)[:, None], T - 1) * S",
        "detaches and gru and mask",
    ),
    _truncated(
        "gradients go on across a boundary",
        "Truncated.backward",
        "if k != order[-1]:",
        "if False:",
        "detaches and gru and mask",
    ),
    _truncated(
        "rows that have ended are cut",
        "Truncated.backward",
        "pieces.parts[k + 1 if saved.reverse else k].rows()",
        "None",
        "detaches and gru and mask",
    ),
    _truncated(
        "the reverse direction cuts the rows of another part",
        "Truncated.backward",
        "k + 1 if saved.reverse else k",
        "k",
        "detaches and gru and mask",
    ),
    _truncated(
        "a carried initial state has a gradient",
        "Truncated.backward",
        "cut(dstate, starts)",
        "dstate",
        "carry_across",
    ),
    _truncated(
        "a carried final state has a gradient",
        "Truncated.backward",
        "dstate = cut(call.dstate_n, ends)",
        "dstate = call.dstate_n",
        "carry_across",
    ),
    _truncated(
        "the ends are those of the other direction",
        "Truncated.backward",
        "if saved.reverse else (pieces.before",
        "if not saved.reverse else (pieces.before",
        "carry_across",
    ),
    _truncated(
        "zoneout draws the masks of the first part again",
        "Truncated.forward",
        "noise.times + part.first",
        "noise.times",
        "random_masks",
    ),
    _truncated(
        "a segment ends where the row does",
        "_spans",
        "np.append(begins[1:], inside.size) - 1",
        "of_row.rows * T + T - 1",
        "carry_across or detaches",
        "rnnkit/functional/segments.py",
    ),
)
