"""The test of the tests: planted bugs, each of which must turn a few chosen tests red.

    python -m tests.tools.mutants.planting [word of a name]...

A mutant is a row of `tests.tools.mutants.MUTANTS`: replacements in the source, and the tests that must see them. It is
applied to a temporary copy of the package and its tests, never to the working tree. Text that is no longer there, or no
longer once, is an error, and so is a copy that cannot even be imported: a mutant has to be wrong, not broken. Compiled
kernels travel with the copy; a mutant of kernels/ compiles its own, for their cache is stamped with their sources.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
COPIED = ("rnnkit", "kernels", "tests", "bench", "pyproject.toml")
TIMEOUT_S = 180


class Edit(NamedTuple):
    """`old`, which occurs once in `file` (relative to the repository), becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A planted bug: `edits`, and the tests to turn red, as files and a pytest -k expression."""

    name: str
    edits: tuple[Edit, ...]
    files: str
    pick: str


def test_file(name: str) -> str:
    """The path of test_NAME.py, relative to the repository."""
    (found,) = (ROOT / "tests").glob(f"*/test_{name}.py")
    return str(found.relative_to(ROOT))


class StaleMutant(Exception):
    """A mutant that no longer says anything: its text has moved on, or its tests did not run."""


class Verdict(NamedTuple):
    """How a run of the chosen tests ended. `first_failure` names a test, or says that the time was up."""

    red: bool
    first_failure: str
    seconds: float


@contextmanager
def mutated_copy(edits: Iterable[Edit] = (), name: str = "unmutated") -> Iterator[Path]:
    """A copy of the repository's package and tests with the edits made."""
    with tempfile.TemporaryDirectory(prefix="rnnkit-mutant-") as folder:
        copy = Path(folder)
        for part in COPIED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, symlinks=True)
            else:
                shutil.copy(source, copy / part)
        kernels = copy / "rnnkit" / "kernels"
        if not kernels.is_symlink():  # in an unpacked sdist its files are there twice; a mutant edits those of kernels/
            shutil.rmtree(kernels)
            kernels.symlink_to("../kernels")
        for edit in edits:
            path = copy / edit.file
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            if text.count(edit.old) != 1:
                raise StaleMutant(
                    f"{name}: {edit.file} has {text.count(edit.old)} places that read {edit.old!r}, not 1"
                )
            path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
        yield copy


def run_tests(copy: Path, files: str, pick: str, timeout_s: float = TIMEOUT_S) -> Verdict:
    """The chosen tests of a copy, in a process of their own, until the first failure. One that hangs is red too."""
    start = time.perf_counter()
    # No plugin is needed, and loading them is most of a short run's time.
    options = ["-x", "-q", "--tb=no", "-rf", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers"]
    command = [sys.executable, "-m", "pytest", *options, "-k", pick, *files.split()]
    environment = os.environ | {
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Verdict(True, f"ended after {timeout_s:g} s", time.perf_counter() - start)
    # pytest: 0 is all passed, 1 is some failed; anything else means that the tests did not run.
    if done.returncode not in (0, 1):
        raise StaleMutant(f"{files} -k {pick!r} did not run: {(done.stdout + done.stderr)[-2000:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    return Verdict(done.returncode == 1, failed[0][7:] if failed else "", time.perf_counter() - start)


def try_mutant(mutant: Mutant) -> Verdict:
    """Raises StaleMutant where the mutant cannot be planted or its tests do not run."""
    with mutated_copy(mutant.edits, mutant.name) as copy:
        return run_tests(copy, mutant.files, mutant.pick)


def try_unmutated(mutants: Iterable[Mutant]) -> Verdict:
    """Every test that any of the mutants relies on, on a copy with nothing planted."""
    mutants = list(mutants)
    files = sorted({file for m in mutants for file in m.files.split()})
    picks = sorted({m.pick for m in mutants})
    with mutated_copy() as copy:
        return run_tests(copy, " ".join(files), " or ".join(f"({pick})" for pick in picks), 10 * TIMEOUT_S)


def main(words: list[str]) -> int:
    """A table of the mutants whose name has one of the words; 1 when one survives, 2 where no name has any."""
    from tests.tools.mutants import KERNEL_MUTANTS, MUTANTS, OTHER_MUTANTS

    planted = [*MUTANTS, *OTHER_MUTANTS]
    for mutants, problem in KERNEL_MUTANTS:
        if problem:
            print(f"left out, {problem}: {len(mutants)} mutants from {mutants[0].name!r} on", file=sys.stderr)
        else:
            planted += mutants
    chosen = [m for m in planted if not words or any(word in m.name for word in words)]
    if not chosen:
        said = " or ".join(map(repr, words))
        print(f"python -m tests.tools.mutants.planting: no mutant has {said} in its name", file=sys.stderr)
        return 2
    width = max(len(m.name) for m in chosen)
    survived = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, verdict in zip(chosen, pool.map(try_mutant, chosen), strict=True):
            survived += not verdict.red
            said = verdict.first_failure.split(" - ")[0] if verdict.red else "SURVIVED"
            print(f"{mutant.name:<{width}}  {verdict.seconds:5.1f} s  {said}", flush=True)
    control = try_unmutated(chosen)
    print(f"{'unmutated':<{width}}  {control.seconds:5.1f} s  {control.first_failure if control.red else 'green'}")
    print(f"{len(chosen) - survived} of {len(chosen)} mutants caught")
    return int(survived > 0 or control.red)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
