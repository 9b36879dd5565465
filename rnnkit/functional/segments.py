"""Which rows a call with resets or a mask runs: its segments, as shorter rows, and where their steps are.

A segment is the part of a row from one reset to the next. It starts from a state of its own, and masked steps are not
in it. So a call with resets and a mask is a call with more and shorter rows, without either, which every kernel runs
already. The tables here say where each step, state and output of those rows is in the caller's arrays. They are
computed on the host, once per call, and all layers and directions share them.

Segments are sorted by length, longest first, and cut into groups of similar lengths. Each group is one call, whose
padding is at most as large as its live steps: one long segment beside many short ones would else need much more memory
than the call without resets.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit.core.cells import Array

# The most steps of a group, padding included, as a multiple of its live steps.
MOST_PADDED = 2

# (to, source) pairs of indices: `a[to] += a[source]` for one pair after the other sums runs of elements into their
# first. Within a pair no index occurs twice.
Pairs = list[tuple[Array, Array]]


class Group(NamedTuple):
    """Segments [first, last) as one call of rows.

    steps    T of the call
    lengths  (last - first,) int64, or None if all have T steps
    source   (steps * (last - first),) for each step of the call its step among the T*B of the caller; any step where it
             is padding. None if the call's steps are the caller's
    spans    (2, last - first) the caller's time of the first and of the last step of each segment, masked steps
             included; None if they were not asked for, or `source` is None
    """

    first: int
    last: int
    steps: int
    lengths: np.ndarray | None
    source: Array | None
    spans: np.ndarray | None = None


class Ends(NamedTuple):
    """Where the states of one direction are. Segments are counted in their sorted order.

    starts, start_rows  the segments that start from the caller's initial state, and for each the caller's row
    ends                (B,) for each row of the caller the segment whose final state is the row's
    """

    starts: Array
    start_rows: Array
    ends: Array


class Repeats(NamedTuple):
    """The masked steps of one direction that repeat an output: their steps, those they repeat, and pairs that sum."""

    steps: Array
    source: Array
    sums: Pairs


class Segments(NamedTuple):
    """What the resets, the mask and the lengths of a call decide. Steps of the caller are counted t * B + b.

    total, row_steps  the numbers of segments and of live steps
    groups            the calls
    place, empty      (T*B,) for each step of the caller its step among those of all groups, and the steps that have
                      none, which are zero; place is None if the steps of the only group are the caller's
    rows              (S,) the caller's row of each segment
    times             (S,) the caller's time of each segment's first live step, 0 without one
    ends              per direction
    row_sums          per direction, pairs that sum the segments of each row that start from the reset state into one,
                      the segments with these sums, and their rows
    repeats           per direction, or None where no output is repeated
    """

    total: int
    row_steps: int
    groups: list[Group]
    place: Array | None
    empty: Array
    rows: Array
    times: Array
    ends: list[Ends]
    row_sums: list[tuple[Pairs, Array, Array]]
    repeats: list[Repeats] | None

    def on(self, xp: Any) -> Segments:
        """The same tables as arrays of NumPy or CuPy, then on the current device."""
        return self if xp is np else _mapped(self, xp.asarray)

    @property
    def nbytes(self) -> int:
        """Bytes of the tables."""
        return _nbytes(self)


def segments(
    T: int,
    B: int,
    directions: int,
    *,
    lengths: np.ndarray | None = None,
    resets: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    repeat: bool = True,
    spans: bool = False,
) -> Segments | None:
    """The segments of a call, or None if nothing is reset or masked: such a call is one without both.

    lengths (B,) int64, resets and mask (T, B) bool, all on the host. repeat: whether outputs of masked steps repeat.
    spans: whether to find `Group.spans`.
    """
    inside = np.ones((B, T), bool) if lengths is None else np.arange(T) < lengths[:, None]
    reset = np.zeros((B, T), bool) if resets is None else resets.T & inside
    live = inside if mask is None else mask.T & inside
    masked = not np.array_equal(live, inside)
    if not masked and not reset.any():
        return None
    if not masked and not reset[:, 1:].any():
        return _whole_rows(T, lengths, int(inside.sum()), reset[:, 0], directions)
    of_row = _of_rows(reset, live)
    order = _order(of_row)
    found = np.full(len(of_row.lengths), -1)
    found[order] = np.arange(len(order))
    groups, place = _groups(of_row.lengths[order], found, of_row, live)
    if spans:
        of_each = _spans(of_row, inside)[:, order]
        groups = [group._replace(spans=of_each[:, group.first : group.last]) for group in groups]
    ends = [_ends(of_row, found, T, direction == 1) for direction in range(directions)]
    return Segments(
        total=len(order),
        row_steps=int(live.sum()),
        groups=groups,
        place=place,
        empty=np.flatnonzero(~live.T),
        rows=of_row.rows[order],
        times=_first_times(of_row, live)[order],
        ends=ends,
        row_sums=[_row_sums(of_row, found, e) for e in ends],
        repeats=[_repeats(of_row, live, inside, d == 1) for d in range(directions)] if masked and repeat else None,
    )


def _whole_rows(T: int, lengths: np.ndarray | None, row_steps: int, resets: np.ndarray, directions: int) -> Segments:
    """The rows as they are, of which some start from the reset state. resets: (B,), of the first step."""
    rows = np.arange(len(resets))
    goes_on, begins = np.flatnonzero(~resets), np.flatnonzero(resets)
    nothing = begins[:0]
    no_sums: Pairs = []
    return Segments(
        total=len(rows),
        row_steps=row_steps,
        groups=[Group(0, len(rows), T, lengths, None)],
        place=None,
        empty=nothing,
        rows=rows,
        times=np.zeros_like(rows),
        ends=[Ends(goes_on, goes_on, rows), Ends(rows, rows, rows)][:directions],
        row_sums=[(no_sums, begins, begins), (no_sums, nothing, nothing)][:directions],
        repeats=None,
    )


class _OfRows(NamedTuple):
    """Segments in the order of rows, and within a row of time. Steps are counted b * T + t here.

    of_step  (B*T,) the segment of each step
    rows     (S,) the row of each segment; resets: whether it begins with a reset
    lengths  (S,) its live steps
    """

    of_step: np.ndarray
    rows: np.ndarray
    resets: np.ndarray
    lengths: np.ndarray


def _of_rows(reset: np.ndarray, live: np.ndarray) -> _OfRows:
    begins = reset.copy()
    begins[:, 0] = True
    of_step = np.cumsum(begins) - 1
    rows = np.nonzero(begins)[0]
    lengths = np.bincount(of_step[live.ravel()], minlength=len(rows))
    return _OfRows(of_step, rows, reset[begins], lengths)


def _first_times(of_row: _OfRows, live: np.ndarray) -> np.ndarray:
    """`Segments.times`, in the order of `_OfRows`."""
    times = np.zeros_like(of_row.lengths)
    has_steps = of_row.lengths > 0
    first = (np.cumsum(of_row.lengths) - of_row.lengths)[has_steps]
    times[has_steps] = np.flatnonzero(live)[first] % live.shape[1]
    return times


def _spans(of_row: _OfRows, inside: np.ndarray) -> np.ndarray:
    """`Group.spans` of all segments, in the order of `_OfRows`. Both are 0 in a row without steps."""
    T = inside.shape[1]
    begins = np.searchsorted(of_row.of_step, np.arange(len(of_row.rows)))
    ends = np.append(begins[1:], inside.size) - 1
    row_ends = of_row.rows * T + np.maximum(inside.sum(1), 1)[of_row.rows] - 1
    return np.stack([begins, np.minimum(ends, row_ends)]) - of_row.rows * T


def _order(of_row: _OfRows) -> np.ndarray:
    """Segments, longest first. Those without a live step are left out, unless they are the first or last of a row."""
    rows = of_row.rows
    edge = np.ones(len(rows), bool)
    edge[1:-1] = (rows[1:-1] != rows[:-2]) | (rows[1:-1] != rows[2:])
    kept = np.flatnonzero(edge | (of_row.lengths > 0))
    return kept[np.argsort(-of_row.lengths[kept], kind="stable")]


def _groups(
    lengths: np.ndarray, found: np.ndarray, of_row: _OfRows, live: np.ndarray
) -> tuple[list[Group], np.ndarray]:
    """The groups of segments of these lengths, longest first, and `Segments.place`."""
    B, T = live.shape
    bounds = _bounds(lengths)
    first_step, width = np.zeros_like(lengths), np.zeros_like(lengths)  # of the group of each segment
    total = 0
    for first, last in bounds:
        first_step[first:last] = total - first
        width[first:last] = last - first
        total += int(lengths[first]) * (last - first)
    steps = np.flatnonzero(live)  # b * T + t
    segment = of_row.of_step[steps]
    before = np.cumsum(of_row.lengths) - of_row.lengths
    position = np.arange(len(steps)) - before[segment]
    segment = found[segment]
    at = first_step[segment] + position * width[segment] + segment
    of_caller = steps % T * B + steps // T
    place = np.zeros(T * B, np.int64)
    place[of_caller] = at
    source = np.zeros(total, np.int64)
    source[at] = of_caller
    groups = []
    for first, last in bounds:
        own = lengths[first:last]
        begin = first_step[first] + first
        longest = int(own[0])
        full = None if own[-1] == longest else own
        groups.append(Group(first, last, longest, full, source[begin : begin + longest * (last - first)]))
    return groups, place


def _bounds(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Groups [first, last), each as long as its padding allows. The longest of a group is less than half of that of the
    group before it, so together they take less than twice the steps of the longest."""
    bounds = []
    sums = np.concatenate([[0], np.cumsum(lengths)])
    first, S = 0, len(lengths)
    while first < S:
        counts = np.arange(1, S - first + 1)
        fits = lengths[first] * counts <= MOST_PADDED * (sums[first + 1 :] - sums[first])
        last = S if fits.all() else first + int(np.argmin(fits))
        bounds.append((first, last))
        first = last
    return bounds


def _ends(of_row: _OfRows, found: np.ndarray, T: int, reverse: bool) -> Ends:
    first = of_row.of_step[::T]
    last = of_row.of_step[T - 1 :: T]
    rows = np.arange(len(first))
    if reverse:
        return Ends(found[last], rows, found[first])
    goes_on = ~of_row.resets[first]
    return Ends(found[first[goes_on]], rows[goes_on], found[last])


def _row_sums(of_row: _OfRows, found: np.ndarray, ends: Ends) -> tuple[Pairs, np.ndarray, np.ndarray]:
    """See `Segments.row_sums`."""
    from_reset = found >= 0
    starts = np.zeros(int(found.max(initial=-1)) + 1, bool)
    starts[ends.starts] = True
    from_reset[from_reset] = ~starts[found[from_reset]]
    chosen = np.flatnonzero(from_reset)
    rows = of_row.rows[chosen]
    segment = found[chosen]
    begins = np.ones(len(rows), bool)
    begins[1:] = rows[1:] != rows[:-1]
    run = np.flatnonzero(begins)
    rank = np.arange(len(rows)) - run[np.cumsum(begins) - 1]
    return _sums(segment, rank, 1), segment[run], rows[run]


def _repeats(of_row: _OfRows, live: np.ndarray, inside: np.ndarray, reverse: bool) -> Repeats:
    """Masked steps repeat the nearest live step before them in their segment; in reverse, the nearest one after."""
    B, T = live.shape
    way = -1 if reverse else 1
    is_live = live.ravel()[::way]
    segment = of_row.of_step[::way]
    nearest = np.maximum.accumulate(np.where(is_live, np.arange(B * T), -1))
    repeated = ~is_live & inside.ravel()[::way] & (nearest >= 0) & (segment[nearest] == segment)
    steps = np.flatnonzero(repeated)
    rank = np.zeros(B * T, int)
    rank[steps] = steps - nearest[steps]
    walk = np.arange(B * T)[::way]
    of_caller = walk % T * B + walk // T
    return Repeats(of_caller[steps], of_caller[nearest[steps]], _sums(of_caller, rank, 1))


def _sums(elements: np.ndarray, rank: np.ndarray, step: int) -> Pairs:
    """Pairs that sum runs of consecutive elements, of ranks 0, 1, 2, …, into those of rank 0: neighbours first."""
    pairs = []
    most = int(rank.max(initial=0))
    while step <= most:
        right = np.flatnonzero(rank % (2 * step) == step)
        pairs.append((elements[right - step], elements[right]))
        step *= 2
    return pairs


def _mapped(value: Any, function: Any) -> Any:
    """The value with `function` of each index in it, at any depth. Lengths stay on the host."""
    if isinstance(value, np.ndarray):
        return function(value)
    if isinstance(value, Group):
        return value._replace(source=_mapped(value.source, function))
    if isinstance(value, tuple):
        parts = [_mapped(v, function) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return [_mapped(v, function) for v in value] if isinstance(value, list) else value


def _nbytes(value: Any) -> int:
    """Bytes of the arrays in the value, at any depth."""
    if isinstance(value, tuple | list):
        return sum(map(_nbytes, value))
    return int(getattr(value, "nbytes", 0))
