"""Who owns the memory that is freed while a CUDA graph is captured.

A graph contains the addresses of what its launches read and write. PyTorch's allocator takes memory for a capture from
a pool that stays with the graph, so what is freed in a capture is used again only by that graph. CuPy's pool does not
know of captures, and would give the memory to anyone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_local = threading.local()


@contextmanager
def stays_with_graphs() -> Iterator[None]:
    """While it is open, this thread allocates device memory that stays with the graph that is captured."""
    before = knows_captures()
    _local.knows = True
    try:
        yield
    finally:
        _local.knows = before


def knows_captures() -> bool:
    """Whether this thread's allocator keeps what is freed in a capture with the graph."""
    return getattr(_local, "knows", False)
