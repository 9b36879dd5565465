"""Every planted bug turns its tests red, and the tree as it is keeps them green. See tests/tools/mutants."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.tools.mutants import KERNEL_MUTANTS, MUTANTS, OTHER_MUTANTS
from tests.tools.mutants.planting import (
    Edit,
    Mutant,
    StaleMutant,
    Verdict,
    main,
    mutated_copy,
    run_tests,
    try_mutant,
    try_unmutated,
)

pytestmark = pytest.mark.slow

GROUPS = [pytest.param(MUTANTS, id="all but kernels")]
PLANTED = [pytest.param(m, id=m.name) for m in MUTANTS]
for _mutants, _problem in KERNEL_MUTANTS:
    _marks = [pytest.mark.kernels, pytest.mark.skipif(_problem is not None, reason=str(_problem))]
    GROUPS.append(pytest.param(_mutants, id=_mutants[0].name, marks=_marks))
    PLANTED += [pytest.param(m, id=m.name, marks=_marks) for m in _mutants]


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Verdict]]]:
    """What the mutants of the selected tests come to, by name, as many at a time as there are cores."""
    selected = [item.callspec.params["mutant"] for item in request.session.items if _plants(item)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {mutant.name: pool.submit(try_mutant, mutant) for mutant in selected}
        pool.shutdown(cancel_futures=True)


def _plants(item: Any) -> bool:
    skipped = any(mark.args and mark.args[0] for mark in item.iter_markers("skipif"))
    return getattr(item, "originalname", "") == "test_a_planted_bug_turns_its_tests_red" and not skipped


@pytest.mark.parametrize("mutants", GROUPS)
def test_the_tree_as_it_is_stays_green(mutants: tuple[Mutant, ...]) -> None:
    control = try_unmutated(mutants)
    assert not control.red, control.first_failure


@pytest.mark.parametrize("mutant", PLANTED)
def test_a_planted_bug_turns_its_tests_red(mutant: Mutant, verdicts: dict[str, Future[Verdict]]) -> None:
    verdict = verdicts[mutant.name].result()
    assert verdict.red, f"{mutant.name}: {mutant.files} -k {mutant.pick!r} stayed green"


def test_the_names_differ() -> None:
    planted = [*MUTANTS, *OTHER_MUTANTS, *(mutant for mutants, _ in KERNEL_MUTANTS for mutant in mutants)]
    assert len({mutant.name for mutant in planted}) == len(planted)


@pytest.mark.parametrize("edit", [Edit("rnnkit/core/cells.py", "no such text", ""), Edit("rnnkit/gone.py", "x", "y")])
def test_text_that_has_moved_on_is_an_error(edit: Edit) -> None:
    with pytest.raises(StaleMutant, match="has 0 places"), mutated_copy([edit], "stale"):
        pass


def test_a_mutant_that_breaks_the_import_or_runs_no_test_is_an_error() -> None:
    broken = Edit("rnnkit/core/cells.py", "from __future__ import annotations", "from __future__ import annotation")
    with mutated_copy([broken]) as copy, pytest.raises(StaleMutant, match="did not run"):
        run_tests(copy, "tests/cpu/test_parity.py", "lstm")
    with mutated_copy() as copy, pytest.raises(StaleMutant, match="did not run"):
        run_tests(copy, "tests/oracle/test_oracle.py", "no_such_test")


def test_words_that_select_nothing_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["typo"]) == 2
    assert "no mutant has 'typo' in its name" in capsys.readouterr().err


def test_a_run_that_hangs_is_red() -> None:
    hangs = Edit("tests/cpu/test_parity.py", "from __future__ import annotations\n", "while True:\n    pass\n")
    with mutated_copy([hangs]) as copy:
        verdict = run_tests(copy, "tests/cpu/test_parity.py", "lstm", timeout_s=3)
    assert verdict.red
    assert verdict.first_failure == "ended after 3 s"
