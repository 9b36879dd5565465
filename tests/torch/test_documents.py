"""The Python of the documents that needs PyTorch runs."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from tests.api.pages import FOR_TORCH, PAGES, code  # noqa: E402

pytestmark = pytest.mark.peers

WITH_TORCH = [page for page in PAGES if code(page, FOR_TORCH)]


@pytest.mark.parametrize("page", WITH_TORCH)
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # they may write files
    program = code(page, FOR_TORCH)
    assert "import rnnkit.torch" in program
    exec(compile(program, page, "exec"), {})


def test_the_pages_that_show_rnnkit_torch_are_found() -> None:
    assert {"README.md", "docs/from-torch.md"} <= set(WITH_TORCH)
