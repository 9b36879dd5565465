"""What a module keeps of a call for its backward, per thread and per call; and the lock that gradients are added under.

    y1, _ = layer(x1); first = layer.last_call
    y2, _ = layer(x2); second = layer.last_call
    layer.backward(dy2, call=second)
    layer.backward(dy1, call=first)

`backward` without `call` differentiates the calling thread's last call, and raises where several calls are pending.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any


class Slot:
    """One thread's memory of a module.

    kept: what the last call kept for backward, or None. pending: calls since the last call was last differentiated.
    resolved: how many calls were pending then, so that a repeated backward is as ambiguous as the first.
    """

    __slots__ = ("kept", "pending", "resolved")

    def __init__(self) -> None:
        self.kept: Any = None
        self.pending = self.resolved = 0

    def resolve(self) -> None:
        """Restarts the count: the next call is the first one pending."""
        self.resolved = self.pending or self.resolved
        self.pending = 0


class Memory(threading.local):
    """A Slot per thread, which is freed with its thread."""

    def __init__(self) -> None:
        self.slot = Slot()


class Call:
    """One call of a module, for `backward(..., call=)` in any thread. What the call kept lives as long as this."""

    __slots__ = ("_kept", "_kind", "_memory")

    def __init__(self, kind: str, memory: Memory, kept: Any) -> None:
        self._kind, self._memory, self._kept = kind, memory, kept

    def __repr__(self) -> str:
        return f"<a call of a {self._kind}>"


class Remembers:
    """A base of all that has `backward`: what a call keeps, by thread.

    A subclass sets `self._saved` once per call, to None where it keeps nothing, and reads it in `backward` by
    `self._recalled(call)`.
    """

    _memory: Memory

    def __init__(self) -> None:
        self._memory = Memory()

    @property
    def _saved(self) -> Any:
        """What this thread's last call kept for `backward`, or None."""
        return self._memory.slot.kept

    @_saved.setter
    def _saved(self, kept: Any) -> None:
        slot = self._memory.slot
        slot.kept = kept
        if kept is not None:
            slot.pending += 1

    @property
    def last_call(self) -> Call:
        """The last call that this thread made, for `backward(..., call=)`.

        Take it right after the call. Raises RuntimeError where there is none, or where it ran under `no_grad()`.
        """
        kept = self._memory.slot.kept
        if kept is None:
            raise RuntimeError(f"last_call {_needs_a_call(self)}")
        return Call(type(self).__name__, self._memory, kept)

    def _recalled(self, call: Call | None = None) -> Any:
        """What `call` kept, or without one the last call of this thread, provided that no other is pending."""
        slot = self._memory.slot
        if call is not None:
            if not isinstance(call, Call):
                raise TypeError(f"call must be a Call, as last_call gives it, got {type(call).__name__}")
            if call._memory is not self._memory:
                raise ValueError(f"call must be one of this {type(self).__name__}{_since_moved(self)}, got {call!r}")
            if call._kept is slot.kept:
                slot.resolve()
            return call._kept
        if slot.kept is None:
            raise RuntimeError(f"backward {_needs_a_call(self)}")
        calls = slot.pending or slot.resolved
        if calls > 1:
            raise RuntimeError(
                f"backward without call= is ambiguous: this {type(self).__name__} was called {calls} times since its "
                f"last backward. Take call = layer.last_call after each call and pass backward(..., call=call), or "
                f"make calls that need no gradient under rnnkit.no_grad()"
            )
        slot.resolve()
        return slot.kept

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_memory"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._memory = Memory()


def _needs_a_call(module: Any) -> str:
    kind = type(module).__name__
    return f"needs a call of this {kind} first, in the same thread, and one outside rnnkit.no_grad()"


def _since_moved(module: Any) -> str:
    return " since it was last moved to another device" if hasattr(module, "to") else ""


def backward_of(module: Any, kept: Any, *gradients: Any) -> Any:
    """module.backward(*gradients) for the call that kept `kept`, whatever the module was called with since.

    kept: None where the module keeps nothing in `_saved`.
    """
    if kept is None:
        return module.backward(*gradients)
    slot = module._memory.slot
    last, pending, resolved = slot.kept, slot.pending, slot.resolved
    slot.kept, slot.pending = kept, 1
    try:
        return module.backward(*gradients)
    finally:
        slot.kept, slot.pending, slot.resolved = last, pending, resolved
        if last is kept:
            slot.resolve()


_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def new_lock() -> Any:
    """A lock that the thread which holds it may take again, as in a signal handler, and that is free after a fork."""
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def _free_locks() -> None:
    # The threads that held them are not in the child.
    for lock in list(_locks):
        lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_locks)
