"""Compiled frames are dropped between tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def compiled_frames_end_with_a_test() -> Iterator[None]:
    """PyTorch compiles a function at most eight times in a process, for all layers that call it, and then gives up."""
    yield
    frames: Any = sys.modules.get("torch._dynamo.convert_frame")
    if frames is not None and frames.FRAME_COUNTER:
        sys.modules["torch._dynamo"].reset()
