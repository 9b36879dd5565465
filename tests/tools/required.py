"""`make test-kernels` sets RNNKIT_KERNELS=required: what a suite lacks is then an error, and no reason to skip."""

from __future__ import annotations

import os


def unless_required(problem: str | None) -> str | None:
    """`problem`, why a suite cannot run here or None. Raises RuntimeError for one where the suite must run."""
    if problem and os.environ.get("RNNKIT_KERNELS") == "required":
        raise RuntimeError(f"RNNKIT_KERNELS=required, and {problem}")
    return problem
