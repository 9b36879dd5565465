"""Plants bugs in temporary copies of the repository, and runs the tests that must fail.

An edit is anchored to a name: it replaces text that occurs once inside a function, a class or a constant of a file.
Spaces and line breaks are ignored, so code may be reformatted. If a name or a text is not found, the error names the
mutant. Compiled kernels are copied too. A mutant of kernels/ compiles new ones, because the cache
of compiled kernels keys on their sources.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
COPIED = ("rnnkit", "kernels", "tests", "bench", "pyproject.toml")
TIMEOUT_S = 180
# The parser of CPython 3.11 keeps its depth where other threads change it: github.com/python/cpython/issues/106905.
_PARSING = threading.Lock()


class Edit(NamedTuple):
    """Replaces `old` by `new` in `file`, within the definition of `at`.

    file: relative to the repository. at: a function, class or module constant, qualified as "Class.method" if the name
    is ambiguous, or "" for the whole file. old: occurs once there; spaces and line breaks are ignored.
    """

    file: str
    at: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A planted bug: `edits`, and the tests that must fail, as files and a pytest -k expression."""

    name: str
    edits: tuple[Edit, ...]
    files: str
    pick: str


def row(name: str, file: str, at: str, old: str, new: str, files: str, pick: str) -> Mutant:
    """A mutant of one edit, for the tables."""
    return Mutant(name, (Edit(file, at, old, new),), files, pick)


class StaleMutant(Exception):
    """A mutant that cannot be planted, or whose tests did not run."""


class Verdict(NamedTuple):
    """The outcome of the chosen tests. `first_failure` names a test, or states that the time limit was reached."""

    red: bool
    first_failure: str
    seconds: float


def python_spans(text: str, at: str) -> list[tuple[int, int]]:
    """Start and end, as offsets in `text`, of every definition whose qualified name ends with `at`."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    spans: list[tuple[int, int]] = []

    def visit(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            inner = outer
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names = [child.name]
                inner = f"{outer}.{child.name}"
            elif isinstance(child, (ast.Assign, ast.AnnAssign)) and isinstance(node, (ast.Module, ast.ClassDef)):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            if any(f"{outer}.{name}".endswith(f".{at}") for name in names):
                assert isinstance(child, ast.stmt)
                assert child.end_lineno is not None
                spans.append((starts[child.lineno - 1], starts[child.end_lineno]))
            visit(child, inner)

    visit(_parsed(text), "")
    return spans


@lru_cache(maxsize=16)  # the rows of a table edit the same few files
def _parsed(text: str) -> ast.Module:
    with _PARSING:
        return ast.parse(text)


def cuda_spans(text: str, at: str) -> list[tuple[int, int]]:
    """The same for C++: functions and structs named `at` with their bodies, and constants up to the semicolon."""
    spans = []
    for found in re.finditer(rf"\b{re.escape(at)}\b", text):
        head = re.compile(r"\s*(?:\([^;{}]*\)\s*(?:const|noexcept|\s)*|:[^;{}]*)?\{").match(text, found.end())
        if head:
            spans.append((found.start(), _after_brace(text, head.end())))
        elif re.compile(r"constexpr[\w\s:]*\s$").search(text, max(0, found.start() - 80), found.start()):
            spans.append((found.start(), text.index(";", found.end()) + 1))
    return spans


def _after_brace(text: str, at: int) -> int:
    """The offset after the brace that closes the one just before `at`."""
    depth = 1
    for found in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return found.end()
    return len(text)


def planted(text: str, edit: Edit) -> str:
    """`text`, the contents of `edit.file`, after the edit. Raises StaleMutant if the edit does not apply."""
    if edit.at:
        spans = (python_spans if edit.file.endswith(".py") else cuda_spans)(text, edit.at)
        if not spans:
            raise StaleMutant(f"{edit.file} defines no {edit.at}")
    else:
        spans = [(0, len(text))]
    words = re.findall(r"\w+|[^\w\s]", edit.old)
    before = r"(?<!\w)" if re.match(r"\w", words[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", words[-1]) else ""
    pattern = re.compile(before + r"\s*".join(map(re.escape, words)) + after)
    found = {match.span() for start, end in spans for match in pattern.finditer(text, start, end)}
    if len(found) != 1:
        raise StaleMutant(f"{edit.file}: {edit.at or 'it'} contains {edit.old!r} {len(found)} times, not once")
    ((start, end),) = found
    return text[:start] + edit.new + text[end:]


def apply(edits: Iterable[Edit], folder: Path, name: str) -> None:
    """Applies the edits to the tree under `folder`. Raises StaleMutant, with `name`, if one does not apply."""
    for edit in edits:
        path = folder / edit.file
        if not path.exists():
            raise StaleMutant(f"{name}: there is no file {edit.file}")
        try:
            path.write_text(planted(path.read_text(encoding="utf-8"), edit), encoding="utf-8")
        except StaleMutant as stale:
            raise StaleMutant(f"{name}: {stale}") from None


@contextmanager
def mutated_copy(edits: Iterable[Edit] = (), name: str = "unmutated") -> Iterator[Path]:
    """A copy of the repository's package and tests with the edits applied."""
    with tempfile.TemporaryDirectory(prefix="rnnkit-mutant-") as folder:
        copy = Path(folder)
        for part in COPIED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, symlinks=True)
            else:
                shutil.copy(source, copy / part)
        kernels = copy / "rnnkit" / "kernels"
        if not kernels.is_symlink():  # an unpacked sdist contains its files twice; mutants edit those in kernels/
            shutil.rmtree(kernels)
            kernels.symlink_to("../kernels")
        apply(edits, copy, name)
        yield copy


def run_tests(copy: Path, files: str, pick: str, timeout_s: float = TIMEOUT_S) -> Verdict:
    """Runs the chosen tests of a copy in a separate process, until the first failure. A timeout counts as red."""
    start = time.perf_counter()
    # No plugin is needed, and loading plugins takes most of the time of a short run.
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
    # pytest's exit status: 0 if all passed or were skipped, 1 if some failed, another one if the tests did not run.
    if done.returncode not in (0, 1) or not re.search(r"\d (passed|failed|error)", done.stdout):
        raise StaleMutant(f"{files} -k {pick!r} did not run: {(done.stdout + done.stderr)[-2000:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    return Verdict(done.returncode == 1, failed[0][7:] if failed else "", time.perf_counter() - start)


def try_mutant(mutant: Mutant) -> Verdict:
    """Raises StaleMutant if the mutant cannot be planted or its tests do not run."""
    with mutated_copy(mutant.edits, mutant.name) as copy:
        return run_tests(copy, mutant.files, mutant.pick)


def try_unmutated(mutants: Iterable[Mutant]) -> Verdict:
    """Runs all tests of these mutants on a copy without edits. The verdict is the first failure, or green."""
    picks: dict[str, set[str]] = {}
    for mutant in mutants:
        picks.setdefault(mutant.files, set()).add(f"({mutant.pick})")
    start = time.perf_counter()
    with mutated_copy() as copy, ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = [
            pool.submit(run_tests, copy, files, " or ".join(sorted(words)), 3 * TIMEOUT_S)
            for files, words in picks.items()
        ]
        red = [verdict.result() for verdict in verdicts if verdict.result().red]
    return Verdict(bool(red), red[0].first_failure if red else "", time.perf_counter() - start)
