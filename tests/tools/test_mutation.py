"""Every planted bug makes its tests fail, and the tests pass without it. See tests/tools/mutants.

`make test` plants a few of the bugs, `make test-all` all of them.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.tools.mutants import MUTANTS, TABLES, problem_of
from tests.tools.mutants.__main__ import main
from tests.tools.mutants.planting import (
    ROOT,
    Edit,
    Mutant,
    StaleMutant,
    Verdict,
    mutated_copy,
    planted,
    run_tests,
    try_mutant,
    try_unmutated,
)

# Also in `make test`: one bug each in equations, gradients, input checks and the independence of calls.
QUICK = (
    "LSTM: i and f swapped",
    "gradients of a layer are overwritten, not added",
)


def _planted_here() -> list[Mutant]:
    """QUICK, and the first bug of each table: what `make test-all` plants. `make mutation` plants all."""
    first = [table[0] for table in TABLES]
    return [mutant for mutant in MUTANTS if mutant.name in QUICK or mutant in first]


def _params(mutants: list[Mutant]) -> list[Any]:
    found = []
    for mutant in mutants:
        problem = problem_of(mutant)
        marks = [pytest.mark.skipif(problem is not None, reason=str(problem))]
        if mutant.name not in QUICK:
            marks.append(pytest.mark.slow)
        found.append(pytest.param(mutant, id=mutant.name, marks=marks))
    return found


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Verdict]]]:
    """The verdicts on the mutants of the selected tests, by name. As many run at a time as there are cores."""
    selected = [item.callspec.params["mutant"] for item in request.session.items if _plants(item)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {mutant.name: pool.submit(try_mutant, mutant) for mutant in selected}
        pool.shutdown(cancel_futures=True)


def _plants(item: Any) -> bool:
    skipped = any(mark.args and mark.args[0] for mark in item.iter_markers("skipif"))
    return getattr(item, "originalname", "") == "test_a_planted_bug_makes_its_tests_fail" and not skipped


@pytest.mark.parametrize("mutant", _params(_planted_here()))
def test_a_planted_bug_makes_its_tests_fail(mutant: Mutant, verdicts: dict[str, Future[Verdict]]) -> None:
    verdict = verdicts[mutant.name].result()
    assert verdict.red, f"{mutant.name}: {mutant.files} -k {mutant.pick!r} stayed green"


@pytest.mark.slow
def test_the_tests_pass_without_a_mutant() -> None:
    control = try_unmutated(mutant for mutant in _planted_here() if problem_of(mutant) is None)
    assert not control.red, control.first_failure


def test_every_mutant_applies_to_the_source() -> None:
    """Names are found, texts occur once, and the edited source is valid Python."""
    stale = []
    for mutant in MUTANTS:
        for edit in mutant.edits:
            try:
                text = planted((ROOT / edit.file).read_text(encoding="utf-8"), edit)
                if edit.file.endswith(".py"):
                    ast.parse(text)
            except (StaleMutant, OSError, SyntaxError) as problem:
                stale.append(f"{mutant.name}: {problem}")
        stale += [f"{mutant.name}: no {file}" for file in mutant.files.split() if not (ROOT / file).exists()]
    assert not stale, "\n".join(stale)


def test_the_names_are_unique() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    assert set(QUICK) <= set(names)


PYTHON = """\
LIMIT = {"a": 1}


class Box:
    def put(self, x):
        return (x +
                1)


def make(n):
    def put(self, x):
        return x - LIMIT["a"]

    return put
"""
CUDA = """\
constexpr int kWide = 32;
template <typename T>
__global__ void step(const T* x, int n) {
  if (n > 1) { x[0] = n; }
}
void other(int n) { step(n > 1); }
"""


@pytest.mark.parametrize(
    ("file", "at", "old", "new", "want"),
    [
        ("a.py", "Box.put", "(x + 1)", "x", "return x\n"),
        ("a.py", "make.put", 'LIMIT["a"]', "2", "return x - 2\n"),
        ("a.py", "LIMIT", '"a": 1', '"a": 2', 'LIMIT = {"a": 2}\n'),
        ("a.py", "", "make(n)", "make(m)", "def make(m):\n"),
        ("a.cu", "step", "n>1", "true", "if (true) {"),
        ("a.cu", "kWide", "32", "16", "constexpr int kWide = 16;"),
    ],
)
def test_an_edit_is_found_by_name_ignoring_spaces(file: str, at: str, old: str, new: str, want: str) -> None:
    text = planted(PYTHON if file == "a.py" else CUDA, Edit(file, at, old, new))
    assert want in text
    assert text.count(want) == 1


@pytest.mark.parametrize(
    ("file", "at", "old", "message"),
    [
        ("a.py", "Box.take", "x", "a.py defines no Box.take"),
        ("a.py", "Box.put", "x - 1", "a.py: Box.put contains 'x - 1' 0 times, not once"),
        ("a.py", "put", "x", "a.py: put contains 'x' 4 times, not once"),
        ("a.cu", "n", "1", "a.cu defines no n"),
    ],
)
def test_a_missing_name_or_text_is_an_error(file: str, at: str, old: str, message: str) -> None:
    with pytest.raises(StaleMutant) as caught:
        planted(PYTHON if file == "a.py" else CUDA, Edit(file, at, old, ""))
    assert message in str(caught.value)


@pytest.mark.parametrize("edit", [Edit("rnnkit/core/cells.py", "", "no such text", ""), Edit("gone.py", "", "x", "y")])
def test_the_error_names_the_mutant(edit: Edit) -> None:
    with pytest.raises(StaleMutant, match="the stale mutant: "), mutated_copy([edit], "the stale mutant"):
        pass


@pytest.mark.slow
def test_a_mutant_that_breaks_the_import_or_runs_no_test_is_an_error() -> None:
    broken = Edit("rnnkit/core/cells.py", "", "from __future__ import annotations", "from __future__ import annotation")
    with mutated_copy([broken]) as copy, pytest.raises(StaleMutant, match="did not run"):
        run_tests(copy, "tests/cpu/test_parity.py", "lstm")
    with mutated_copy() as copy:
        with pytest.raises(StaleMutant, match="did not run"):
            run_tests(copy, "tests/oracle/test_oracle.py", "no_such_test")
        (copy / "tests" / "test_skipped.py").write_text("import pytest\n\ndef test(): pytest.skip('always')\n")
        with pytest.raises(StaleMutant, match="did not run"):
            run_tests(copy, "tests/test_skipped.py", "test")


def test_words_that_select_nothing_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["typo"]) == 2
    assert "no mutant has 'typo' in its name" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_hangs_is_red() -> None:
    hangs = Edit("tests/cpu/test_parity.py", "", "from __future__ import annotations\n", "while True:\n    pass\n")
    with mutated_copy([hangs]) as copy:
        verdict = run_tests(copy, "tests/cpu/test_parity.py", "lstm", timeout_s=3)
    assert verdict.red
    assert verdict.first_failure == "ended after 3 s"
