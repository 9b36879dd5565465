"""RNNKIT_REQUIRED names parts of the tests that must run: a missing requirement is an error, not a reason to skip.

peers: PyTorch, Keras, JAX and OpenVINO; `make test-peers` sets it. kernels: NVIDIA's compilers; `make test-kernels`
sets it. emulators: g++ and greenlet, for the CUDA kernels without a GPU; `.ci/run` sets it. Commas separate several
names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

PARTS = ("emulators", "kernels", "peers")


def required(part: str) -> bool:
    """Whether RNNKIT_REQUIRED names `part`, one of PARTS. Raises UsageError if it names anything else."""
    named = [name for name in os.environ.get("RNNKIT_REQUIRED", "").split(",") if name]
    for name in named:
        if name not in PARTS:
            raise pytest.UsageError(f"RNNKIT_REQUIRED may name {', '.join(PARTS)}, got {name!r}")
    return part in named


def unless_required(part: str, problem: str | None) -> str | None:
    """`problem`: why tests of `part` cannot run, or None. Raises UsageError if they must run."""
    if problem and required(part):
        raise pytest.UsageError(f"RNNKIT_REQUIRED={part}, but {problem}")
    return problem


def needs_kernels(problem: str | None) -> Callable[[Any], Any]:
    """Marks a test `kernels`, and skips it if there is a `problem`. Raises UsageError if it must run."""
    skip = pytest.mark.skipif(unless_required("kernels", problem) is not None, reason=str(problem))
    return lambda test: pytest.mark.kernels(skip(test))
