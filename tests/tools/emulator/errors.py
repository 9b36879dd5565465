"""The exceptions of the emulator, with the kind of the error and its source line."""

from __future__ import annotations

import re

# The values of `kind` that the runtime and the launcher use.
KINDS = {
    "compile": "the source does not compile, or has no kernel of that name",
    "launch": "the driver would reject the launch",
    "arguments": "the arguments do not fit the kernel's parameters",
    "bounds": "an access outside every live buffer, or to another block's shared memory",
    "readonly": "a write to a read-only buffer, or a read through __ldg of memory that the launch writes",
    "race": "two conflicting accesses without synchronisation",
    "uninitialised": "a read of uninitialised shared memory",
    "alignment": "an access to an address that is not a multiple of its size",
    "undefined": "undefined behaviour of C++: overflow, an invalid shift, an array index out of range",
    "divergence": "not all threads of a block reach the same barrier",
    "barrier": "invalid use of a barrier",
    "warp": "a warp operation whose lanes do not match its mask",
    "cluster": "shared memory of a block outside the cluster, or of one that has exited",
    "async": "an asynchronous copy without a wait before its use or the thread's exit",
    "deadlock": "no thread can continue",
    "timeout": "the time limit was reached",
    "fault": "a signal: an invalid address, a division by zero",
    "assert": "an assert() or __trap() of the kernel",
    "stack": "a thread's stack overflowed",
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
    """Two threads access the same bytes, at least one of them writes, and they are not synchronised."""
