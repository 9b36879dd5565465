"""The examples in the docstrings of rnnkit.torch run, and its public names are documented."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import rnnkit.torch  # noqa: E402
from tests.api.docstrings import documented, faults  # noqa: E402

pytestmark = pytest.mark.peers

MODULES = ["rnnkit.torch", *(f"rnnkit.torch.{m.name}" for m in pkgutil.iter_modules(rnnkit.torch.__path__))]
DOCUMENTED = documented({name: getattr(rnnkit.torch, name) for name in rnnkit.torch.__all__})


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_names_are_documented(name: str) -> None:
    value: Any = DOCUMENTED[name]
    assert faults(name, value) == []
