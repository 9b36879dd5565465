"""The exceptions of the emulator, with the kind of the error and its source line."""

from __future__ import annotations

import re

# The values of `kind` that the runtime and the launcher use.
KINDS = {
    "compile": "the source does not compile, or has no such kernel",
    "launch": "the driver would refuse the launch",
    "arguments": "the arguments do not fit the kernel's parameters",
    "bounds": "an access outside every live buffer, or to another block's shared memory",
    "readonly": "a write to a buffer that must not be written, or a read through __ldg of what was written",
    "race": "two accesses that nothing orders",
    "uninitialised": "a read of shared memory that was never written",
    "alignment": "an access that is not at a multiple of its size",
    "undefined": "undefined behaviour of C++: overflow, a shift too far, an array index",
    "divergence": "not all threads of a block reach the same barrier",
    "barrier": "a barrier used wrongly",
    "warp": "a warp operation whose lanes do not match its mask",
    "cluster": "shared memory of a block outside the cluster, or of one that has exited",
    "async": "an asynchronous copy that is used or left before it was waited for",
    "deadlock": "no thread can go on",
    "timeout": "the time limit",
    "fault": "a signal: an invalid address, a division by zero",
    "assert": "an assert() or __trap() of the kernel",
    "stack": "a thread's stack is full",
}
_PLACE = re.compile(r"([^\s:]+):(\d+)")


class EmulatorError(RuntimeError):
    """A kernel does not compile, cannot be launched, or does something invalid.

    kind: one of KINDS. where: (file, line) of the first location in the message, or None.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind
        place = _PLACE.search(message)
        self.where = (place[1], int(place[2])) if place else None


class RaceError(EmulatorError):
    """Two threads access the same bytes, at least one of them writes, and nothing orders the accesses."""
