"""The documents are true: their code runs, their links are valid, and their numbers are those of the result files."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import report
from bench.result_file import Document, load
from rnnkit.backends.cupy import arena
from rnnkit.backends.numba import memory
from tests.api.pages import FOR_TORCH, PAGES, PLAIN, ROOT, code, text
from tests.cuda.cuda_helpers import cuda
from tests.helpers import slow_except
from tests.tools import emulator

RESULTS = ROOT / "bench" / "results" / "amd-epyc-2-cores"
# Pages whose examples compile kernels that no other example has.
OWN_KERNELS = ("docs/normalised-cells.md", "docs/cell-options.md", "docs/regularisation.md", "docs/slstm.md")
# Other test files run docs/parity.md and docs/sharing.md. docs/gpu.md is below.
RUN_HERE = (
    "README.md",
    "docs/from-torch.md",
    "docs/from-keras.md",
    "docs/checkpoints.md",
    "docs/resets-and-masks.md",
    "docs/long-sequences.md",
    *OWN_KERNELS,
)


# Code


@pytest.mark.parametrize("page", slow_except(RUN_HERE, *RUN_HERE[: -len(OWN_KERNELS)]))
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples may write files
    program = code(page)
    assert "rnnkit." in program
    exec(compile(program, page, "exec"), {})


@pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))
def test_the_python_for_a_gpu_runs_on_the_stand_in() -> None:
    with cuda():
        names: dict[str, Any] = {}
        exec(compile(code("docs/gpu.md"), "docs/gpu.md", "exec"), names)
        assert isinstance(names["y"], sys.modules["cupy"].ndarray)
        assert names["y"].dtype == np.float16
        assert names["dx"].shape == names["x"].shape


def test_every_page_with_python_is_run_by_a_test() -> None:
    # tests/torch/test_documents.py runs the blocks that need PyTorch, of every page.
    for page in PAGES:
        assert text(page).count("```python") == text(page).count(PLAIN) + text(page).count(FOR_TORCH), page
    pages = {page for page in PAGES if code(page)}
    # docs/weights.md shows calls of models that the reader must have.
    assert pages - {"docs/parity.md", "docs/sharing.md", "docs/gpu.md", "docs/weights.md"} == set(RUN_HERE)


# Links and names


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs generate them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_point_to_files_and_headings(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", text(page))
    for link in links:
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"


def test_every_test_that_a_promise_names_exists() -> None:
    rows = [line for line in text("docs/promises.md").splitlines() if ".py`" in line and line.startswith("| ")]
    assert len(rows) > 60
    for row in rows:
        file = None
        for name in re.findall(r"`([^`]+)`", row.split(" | ")[-1]):
            if name.endswith(".py"):
                file = (ROOT / "tests" / name).read_text(encoding="utf-8")
            elif name.startswith("test_"):
                assert file is not None, row
                assert f"def {name}(" in file, row
        assert file is not None, row


def cached_functions() -> Iterator[tuple[str, str]]:
    """File and name of every cached function of the package, and of every module-level collection."""
    for folder in ("rnnkit", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            if file.startswith("rnnkit/kernels/"):
                continue  # a link to kernels/
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and any("cache" in ast.unparse(d) for d in node.decorator_list):
                    yield file, node.name
            for node in tree.body:
                kept = ("local()", "WeakSet()", "ContextVar(", "lru_cache(", "Counter()", "set()", "Notice()")
                if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                    value = ast.unparse(node.value)
                    if value in ("{}", "[]") or any(word in value for word in kept):
                        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                        yield file, ast.unparse(target)


def test_all_state_between_calls_is_in_the_tables() -> None:
    found = list(cached_functions())
    assert len(found) > 40
    page = text("docs/architecture.md")
    tables = page[page.index("## State that is kept between calls") :]
    assert [f"{file}: {name}" for file, name in found if f"`{name}`" not in tables] == []


# Bounds and numbers


def test_bounds_in_the_documents_are_those_of_the_code() -> None:
    for page in ("docs/architecture.md", "docs/promises.md"):
        assert f"{memory.MAX_CACHED_WORKSPACE >> 20} MiB" in text(page)
        assert f"{memory.MAX_CACHED_PACKED >> 20} MiB in all" in text(page)
    tables = text("docs/architecture.md")
    assert f"from {memory.MIN_CACHED_PACKED >> 10} KiB on" in tables
    assert f"{arena.MOST_ARENAS} per thread" in tables
    assert f"{arena.MOST_GRAPHS} graphs, and {arena.MOST_SEEN} keys" in tables


def test_workspace_stays_with_its_thread_up_to_its_bound() -> None:
    workspaces = memory.Workspaces()
    kept = workspaces.get(memory.MAX_CACHED_WORKSPACE)
    assert workspaces.get(1).address == kept.address
    larger = workspaces.get(memory.MAX_CACHED_WORKSPACE + 1)
    assert larger.memory.nbytes == memory.MAX_CACHED_WORKSPACE + 1
    assert workspaces.buffer.memory.nbytes == 0, "a larger workspace is freed after the call"


def results(name: str) -> Document:
    return load(RESULTS / name)


def mean_ratios(document: Document, peers: list[str], ours: str | None = None) -> dict[str, list[float]]:
    """Per pass: the fastest peer's time over that of `ours`, or of the headline, where both are right."""
    ours = ours or report.headline(document)
    return {
        passes: [r for _, found in entries if (r := report.ratio(found, ours, peers)) is not None]
        for passes, entries in report.sections(document).items()
    }


def test_headline_figures_are_those_of_the_result_file() -> None:
    document = results("cpu-float32.json")
    ratios = mean_ratios(document, report.others(document))
    readme = text("README.md")
    forward, both = ratios["forward"], ratios["forward+backward"]
    assert f"**{report.geometric_mean(forward):.2f} times**" in readme
    assert f"**{report.geometric_mean(both):.2f} times**" in readme
    assert f"over {len(forward)} and {len(both)} shapes" in readme
    for peer, version in (("torch", "PyTorch"), ("onnxruntime", "ONNX Runtime"), ("jax", "JAX")):
        major, minor = document["peers"][peer]["versions"][peer].split(".")[:2]
        assert f"{version} {major}.{minor}" in readme


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_means_of_the_grid_are_those_of_the_result_files(dtype: str) -> None:
    document = results(f"cpu-{dtype}.json")
    ratios = mean_ratios(document, report.others(document))
    (row,) = (
        line
        for line in text("docs/performance.md").splitlines()
        if line.startswith(f"| {dtype} |") and "points" in line
    )
    cells = [cell.strip() for cell in row.split("|")[2:6]]
    for passes, mean, faster in zip(("forward", "forward+backward"), cells[::2], cells[1::2], strict=True):
        found = ratios[passes]
        assert mean == f"{report.geometric_mean(found):.2f}"
        assert faster.startswith(f"{sum(ratio < 1 for ratio in found)} of {len(found)} points")


def test_the_table_of_times_is_that_of_the_result_file() -> None:
    document = results("quick-float32.json")
    columns = [("forward", name) for name in ("numba", "via torch", "torch", "onnxruntime", "jax")]
    columns += [("forward+backward", name) for name in ("numba", "via torch", "torch", "jax")]
    page, shapes = text("docs/performance.md"), {}
    for entries in report.sections(document).values():
        for point, found in entries:
            times = shapes.setdefault((point.cell, point.T, point.B, point.I), {})
            times |= {(point.passes, name): report.median(found, name) for name in found}
    assert len(shapes) == 12
    for (cell, T, B, I), times in shapes.items():
        shown = [f"{float(f'{times[column]:.3g}'):g}" for column in columns]
        best = {passes: min(times[c] for c in columns if c[0] == passes) for passes, _ in columns}
        bold = [f"**{s}**" if times[column] == best[column[0]] else s for s, column in zip(shown, columns, strict=True)]
        assert f"| {cell.split('_')[0].upper()} {T}, {B}, {I} | {' | '.join(bold)} |" in page


def test_means_of_the_twelve_shapes_are_those_of_the_result_file() -> None:
    document = results("quick-float32.json")
    page = text("docs/performance.md")
    by = "PyTorch, by the time of `rnnkit.torch`"
    for label, peers, ours in (
        ("PyTorch", ["torch"], "numba"),
        (by, ["torch"], "via torch"),
        (f"{by}, compiled", ["torch"], "via torch, compiled"),
        ("the fastest peer of each shape", report.others(document), "numba"),
    ):
        means = [report.geometric_mean(found) for found in mean_ratios(document, peers, ours).values()]
        assert f"| {label} | {' | '.join(f'{mean:.2f}' for mean in means)} |" in page
