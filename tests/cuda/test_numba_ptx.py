"""Compiles every Numba CUDA kernel to PTX, and to machine code if nvJitLink is installed, without a driver or GPU.

No local memory, spill, stack or call, and no float64 in kernels of other dtypes; see
tests/tools/build_report/numba_ptx.py.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.tools.build_report import numba_ptx, printed

pytestmark = pytest.mark.kernels


@pytest.fixture(scope="module")
def planted() -> dict[str, list[str]]:
    made = printed("numba_planted")
    return {row["name"]: [made["registers"], *numba_ptx.problems(row)] for row in made["kernels"]}


def test_no_kernel_has_faults() -> None:
    """Each kernel for one architecture, and each architecture with at least one kernel."""
    rows = printed("numba_ptx")["kernels"]
    assert wrong_of(rows) == {}
    assert len({row["name"] for row in rows}) == len(rows), "two kernels with the same name"
    assert {row["arch"] for row in rows} == set(numba_ptx.ARCHS)


@pytest.mark.slow
def test_no_kernel_has_faults_on_any_architecture() -> None:
    rows = printed("numba_ptx", "all")["kernels"]
    assert wrong_of(rows) == {}
    names = {row["name"] for row in rows}
    assert sorted((row["name"], row["arch"]) for row in rows) == sorted(product(names, numba_ptx.ARCHS))


def wrong_of(rows: list[dict[str, Any]]) -> dict[tuple[str, int], list[str]]:
    found = {(row["name"], row["arch"]): numba_ptx.problems(row) for row in rows}
    return {key: problems for key, problems in found.items() if problems}


def test_the_kernel_without_a_planted_fault_has_none(planted: dict[str, list[str]]) -> None:
    assert planted["clean"][1:] == []


@pytest.mark.parametrize(
    ("name", "want"), [("local", "local memory: "), ("local", "stack or"), ("double", "float64: "), ("call", "calls: ")]
)
def test_a_planted_bug_is_reported(planted: dict[str, list[str]], name: str, want: str) -> None:
    cannot_link, *problems = planted[name]
    if want == "stack or" and cannot_link:
        pytest.skip(cannot_link)
    assert any(problem.startswith(want) for problem in problems), problems
