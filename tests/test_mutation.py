"""Every planted bug turns its tests red, and the tree as it is keeps them green. See tests/mutation.py."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS
from tests.mutation import Edit, Mutant, StaleMutant, main, mutated_copy, run_tests, try_mutant, try_unmutated

pytestmark = pytest.mark.slow


def test_the_tree_as_it_is_stays_green() -> None:
    control = try_unmutated(MUTANTS)
    assert not control.red, control.first_failure


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_planted_bug_turns_its_tests_red(mutant: Mutant) -> None:
    verdict = try_mutant(mutant)
    assert verdict.red, f"{mutant.name}: {mutant.files} -k {mutant.pick!r} stayed green"


def test_the_names_differ() -> None:
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("edit", [Edit("rnnkit/cells.py", "no such text", ""), Edit("rnnkit/gone.py", "x", "y")])
def test_text_that_has_moved_on_is_an_error(edit: Edit) -> None:
    with pytest.raises(StaleMutant, match="has 0 places"), mutated_copy([edit], "stale"):
        pass


def test_a_mutant_that_breaks_the_import_or_runs_no_test_is_an_error() -> None:
    broken = Edit("rnnkit/cells.py", "from __future__ import annotations", "from __future__ import annotation")
    with mutated_copy([broken]) as copy, pytest.raises(StaleMutant, match="did not run"):
        run_tests(copy, "tests/test_parity.py", "lstm")
    with mutated_copy() as copy, pytest.raises(StaleMutant, match="did not run"):
        run_tests(copy, "tests/test_oracle.py", "no_such_test")


def test_words_that_select_nothing_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["typo"]) == 2
    assert "no mutant has 'typo' in its name" in capsys.readouterr().err


def test_a_run_that_hangs_is_red() -> None:
    hangs = Edit("tests/test_parity.py", "from __future__ import annotations\n", "while True:\n    pass\n")
    with mutated_copy([hangs]) as copy:
        verdict = run_tests(copy, "tests/test_parity.py", "lstm", timeout_s=3)
    assert verdict.red
    assert verdict.first_failure == "ended after 3 s"
