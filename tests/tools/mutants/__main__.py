"""`python -m tests.tools.mutants [word of a name]...`: plants mutants and prints the tests that failed."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.tools.mutants import MUTANTS, problem_of
from tests.tools.mutants.planting import try_mutant, try_unmutated


def main(words: list[str]) -> int:
    """Tests the mutants whose name contains one of the words. Returns 1 if one survives, 2 if there are none."""
    named = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    if not named:
        asked = " or ".join(map(repr, words))
        print(f"python -m tests.tools.mutants: no mutant has {asked} in its name", file=sys.stderr)
        return 2
    chosen = [m for m in named if problem_of(m) is None]
    for mutant in named:
        if mutant not in chosen:
            print(f"{mutant.name}: skipped, {problem_of(mutant)}", file=sys.stderr)
    width = max((len(m.name) for m in chosen), default=0)
    survived = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, verdict in zip(chosen, pool.map(try_mutant, chosen), strict=True):
            survived += not verdict.red
            outcome = verdict.first_failure.split(" - ")[0] if verdict.red else "SURVIVED"
            print(f"{mutant.name:<{width}}  {verdict.seconds:5.1f} s  {outcome}", flush=True)
    control = try_unmutated(chosen)
    print(f"{'unmutated':<{width}}  {control.seconds:5.1f} s  {control.first_failure if control.red else 'green'}")
    print(f"{len(chosen) - survived} of {len(chosen)} mutants caught")
    return int(survived > 0 or control.red)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
