"""Releases of PyTorch: what is too old is refused by name, and nothing is skipped that this one can do."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import rnnkit.torch  # noqa: E402
from tests.torch.releases import LACKS, RELEASE, has  # noqa: E402

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("release", ["2.5.1+cpu", "1.13.0", "2.6.0", "2.16.0a0"])
def test_oldest_release(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", release)
    if release in ("2.6.0", "2.16.0a0"):
        runpy.run_path(rnnkit.torch.__file__)
    else:
        with pytest.raises(ImportError, match=rf"rnnkit.torch needs PyTorch 2.6 or later .*: found {release[:5]}"):
            runpy.run_path(rnnkit.torch.__file__)


def test_floor_is_that_of_the_package() -> None:
    project = Path(rnnkit.torch.__file__).parents[2] / "pyproject.toml"
    assert project.read_text().count('"torch>=2.6"') == 2


def test_nothing_is_skipped_from_2_12_on() -> None:
    assert RELEASE >= (2, 6)
    if RELEASE >= (2, 12):
        assert all(has(what) for what in LACKS)
