"""Philox4x32-10 against published numbers, and the rule by which its words become drop or keep."""

from __future__ import annotations

import numpy as np
import pytest

from rnnkit.core import philox

# Random123 1.14, tests/kat_vectors, rows "philox4x32 10": counters, keys, words.
ONES = 0xFFFFFFFF
PUBLISHED = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize(("counters", "keys", "words"), PUBLISHED)
def test_known_answers(counters: tuple[int, ...], keys: tuple[int, int], words: tuple[int, ...]) -> None:
    assert tuple(map(int, philox.philox(counters, keys))) == words  # type: ignore[arg-type]


def test_an_element_is_a_word_of_its_own_counter() -> None:
    seed, stream, p = 0x0123456789ABCDEF, 77, 0.3
    rows, times = np.array([5, 0, 4_000_000_000]), np.array([0, 7, 2**32 - 1])
    got = philox.hits(seed, stream, p, 2, rows, times, 6)
    for t in range(2):
        for b in range(3):
            for j in range(6):
                counter = (j // 4, int(rows[b]), (int(times[b]) + t) % 2**32, stream)
                word = philox.philox(counter, philox.keys_of(seed))[j % 4]
                assert got[t, b, j] == (int(word) < philox.threshold(p))


def test_rates_of_zero_and_one_are_exact() -> None:
    assert philox.threshold(0.0) == 0
    assert philox.threshold(1.0) == 2**32
    assert philox.threshold(0.5) == 2**31
    for p in (0.0, 1.0):
        assert (philox.hits(3, 1, p, 4, np.arange(3), np.zeros(3, int), 50) == p).all()


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_rates_are_within_five_standard_deviations(p: float) -> None:
    """Of all elements, of each row and of each step, whose numbers are independent."""
    T, B, units = 20, 30, 200
    drawn = philox.hits(11, 5, p, T, np.arange(B), np.zeros(B, int), units)
    for axes in ((0, 1, 2), (0, 2), (1, 2)):
        n = np.prod([drawn.shape[a] for a in axes])
        deviations = np.abs(drawn.mean(axes) - p) / np.sqrt(p * (1 - p) / n)
        assert deviations.max() < 5
    rows = drawn.reshape(T, B, units)[0].astype(float)
    correlations = np.corrcoef(rows)[np.triu_indices(B, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(units)
