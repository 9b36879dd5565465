"""Keeps the memory that this thread handles signals in, across a call of a library that replaces it.

OpenVINO 2026.4 calls sigaltstack when it loads its CPU device, and when that is unloaded, sets what it had found. Of
two devices of which the first is unloaded first, the second thus sets the freed memory of the first. Linux then ends
the process by SIGSEGV at the next signal that Python handles, such as SIGCHLD once a DataLoader of PyTorch has workers.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """Linux's stack_t. Other systems have other orders of the fields."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack(new: SignalStack | None = None) -> SignalStack:
    """The alternate signal stack of this thread, then replaced by `new` unless that is None. Linux only."""
    old = SignalStack()
    given = None if new is None else ctypes.byref(new)
    if ctypes.CDLL(None, use_errno=True).sigaltstack(given, ctypes.byref(old)):
        raise OSError(ctypes.get_errno(), "sigaltstack failed")
    return old


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Sets the signal stack at the end that was set at the start. Does nothing on systems other than Linux."""
    if sys.platform != "linux":
        yield
        return
    before = signal_stack()
    try:
        yield
    finally:
        signal_stack(before)
