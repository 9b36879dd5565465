"""The compiled CPU path equals the oracle in every output and gradient, for any sizes and any division of work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnkit.backends.numba import plan, prepared
from rnnkit.core.cells import CELLS
from rnnkit.testing import Case, parity
from tests.helpers import share_everything

# Sizes around those of vectors (8 and 16 lanes), panels (32 and 64) and blocks of rows (6), and between them.
# Not the sLSTM, whose kernels take seconds to compile: tests/cpu/test_slstm.py.
QUICK_CELLS = sorted(CELLS.keys() - {"slstm"})
UNITS = st.one_of(st.integers(1, 70), st.sampled_from([15, 16, 17, 31, 33, 63, 64, 65, 96, 113, 128, 130]))


@st.composite
def cases(draw: Any) -> Case:
    cell, H = draw(st.sampled_from(QUICK_CELLS)), draw(UNITS)
    P = draw(st.integers(1, H - 1)) if cell == "lstm" and H > 1 and draw(st.booleans()) else 0
    flags = {name: draw(st.booleans()) for name in ("bias", "reverse", "ragged")}
    return Case(cell, draw(st.integers(0, 9)), draw(st.integers(1, 14)), draw(UNITS), H, P, **flags)


@pytest.fixture(scope="module", autouse=True)
def four_threads() -> Iterator[None]:
    """Four threads on any machine, with any amount of work divided."""
    with pytest.MonkeyPatch.context() as patch:
        share_everything(patch, 4)
        yield


@given(case=cases(), dtype=st.sampled_from(["float32", "float64"]), members=st.integers(1, 4), groups=st.integers(1, 4))
def test_any_sizes_and_any_division_equal_the_oracle(case: Case, dtype: str, members: int, groups: int) -> None:
    def division(sizes: plan.Work, threads: int) -> tuple[int, int]:
        units = min(members, max(1, sizes.H // plan.lanes_of(sizes.dtype)))
        return max(1, min(groups, threads // units, sizes.B)), units

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "division", division)
        prepared.forget()
        worst = parity("numba", case, dtype)
    prepared.forget()
    assert max(worst.values()) <= 1, worst
