"""RNNKIT_REQUIRED names the parts of the tests that must run: what such a part lacks is an error, not a reason to skip.

`make test-peers` sets it to peers, `make test-kernels` to kernels. Several names are separated by commas.
"""

from __future__ import annotations

import os

import pytest

PARTS = ("kernels", "peers")


def required(part: str) -> bool:
    """Whether RNNKIT_REQUIRED names `part`, one of PARTS. Raises UsageError where it names anything else."""
    named = [name for name in os.environ.get("RNNKIT_REQUIRED", "").split(",") if name]
    for name in named:
        if name not in PARTS:
            raise pytest.UsageError(f"RNNKIT_REQUIRED may name {' and '.join(PARTS)}, got {name!r}")
    return part in named


def unless_required(part: str, problem: str | None) -> str | None:
    """`problem`, which keeps tests of `part` from running, or None. Raises UsageError where they must run."""
    if problem and required(part):
        raise pytest.UsageError(f"RNNKIT_REQUIRED={part}, but {problem}")
    return problem


def needs(part: str, problem: str | None) -> pytest.MarkDecorator:
    """A mark that skips tests of `part` where there is a `problem`. Raises UsageError where they must run."""
    return pytest.mark.skipif(unless_required(part, problem) is not None, reason=str(problem))
