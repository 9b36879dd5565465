"""Saves what a call computes for its backward pass, per thread and per call; and the lock around gradient updates.

    y1, _ = layer(x1)
    first = layer.last_call
    y2, _ = layer(x2)
    second = layer.last_call
    layer.backward(dy2, call=second)
    layer.backward(dy1, call=first)

`backward` without `call` differentiates the most recent call of the calling thread. It raises if several calls are
pending, that is, made since the last backward pass.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

from rnnkit.core import checks


class Slot:
    """What one thread's calls of a module saved for backward.

    Attributes:
        saved: what the most recent call saved for backward, or None.
        pending: the number of calls since a call was last differentiated.
        resolved: the value of `pending` at that time. A repeated backward is as ambiguous as the first one was.
    """

    __slots__ = ("pending", "resolved", "saved")

    def __init__(self) -> None:
        self.saved: Any = None
        self.pending = 0
        self.resolved = 0

    def resolve(self) -> None:
        """Resets the count of pending calls."""
        self.resolved = self.pending or self.resolved
        self.pending = 0


class ThreadSlots(threading.local):
    """One Slot per thread. It is freed when its thread ends."""

    def __init__(self) -> None:
        self.slot = Slot()


class Call:
    """A handle to one call of a module, for `backward(..., call=)` in any thread.

    It keeps alive what the call saved for backward.
    """

    __slots__ = ("_kind", "_saved", "_thread_slots")

    def __init__(self, kind: str, thread_slots: ThreadSlots, saved: Any) -> None:
        self._kind = kind
        self._thread_slots = thread_slots
        self._saved = saved

    def __repr__(self) -> str:
        return f"<a call of a {self._kind}>"


class SavesCalls:
    """Base class of everything that has `backward`. It stores per thread what a call saved.

    A subclass assigns `self._saved` once per call, None if the call saves nothing. Its `backward` reads the value by
    `self._recalled(call)`.
    """

    _thread_slots: ThreadSlots

    def __init__(self) -> None:
        self._thread_slots = ThreadSlots()

    @property
    def _saved(self) -> Any:
        """What this thread's most recent call saved for `backward`, or None."""
        return self._thread_slots.slot.saved

    @_saved.setter
    def _saved(self, saved: Any) -> None:
        slot = self._thread_slots.slot
        slot.saved = saved
        if saved is not None:
            slot.pending += 1

    @property
    def last_call(self) -> Call:
        """A handle to this thread's most recent call, for `backward(..., call=)`; read it right after the call.

        Raises:
            RuntimeError: this thread made no call, or its most recent call ran under `no_grad()`.

        Examples:
            >>> import numpy as np, rnnkit
            >>> layer = rnnkit.Linear(2, 2, rng=0)
            >>> y = layer(np.ones((1, 2), np.float32))
            >>> layer.last_call
            <a call of a Linear>
        """
        saved = self._thread_slots.slot.saved
        if saved is None:
            raise RuntimeError(f"last_call {_needs_a_call(self)}")
        return Call(type(self).__name__, self._thread_slots, saved)

    def _recalled(self, call: Call | None = None) -> Any:
        """What `call` saved. With None: what this thread's most recent call saved, if no other call is pending."""
        slot = self._thread_slots.slot
        if call is not None:
            if not isinstance(call, Call):
                raise TypeError(f"call must be a Call, as last_call returns it, got {type(call).__name__}")
            if call._thread_slots is not self._thread_slots:
                raise ValueError(f"call must be one of this {type(self).__name__}{_since_moved(self)}, got {call!r}")
            if call._saved is slot.saved:
                slot.resolve()
            return call._saved
        if slot.saved is None:
            raise RuntimeError(f"backward {_needs_a_call(self)}")
        calls = slot.pending or slot.resolved
        if calls > 1:
            raise RuntimeError(
                f"backward without call= is ambiguous: this {type(self).__name__} was called {calls} times since its "
                f"last backward. Take call = layer.last_call after each call and pass backward(..., call=call), or "
                f"make calls that need no gradient under rnnkit.no_grad()"
            )
        slot.resolve()
        return slot.saved

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_thread_slots"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._thread_slots = ThreadSlots()


def not_trainable(what: str, module: Any) -> str:
    """The message that refuses to train a module with compressed weights."""
    kind = type(module).__name__
    return f"{what} is not for this {kind}: its weights are compressed to {module._dtype.weights}, for inference only"


def _needs_a_call(module: Any) -> str:
    kind = type(module).__name__
    if getattr(module, "_matrices", None):
        return not_trainable("", module).lstrip()
    return f"needs a call of this {kind} first, in the same thread, and one outside rnnkit.no_grad()"


def _since_moved(module: Any) -> str:
    return " since it was last moved to another device" if hasattr(module, "to") else ""


def backward_of(module: Any, saved: Any, *gradients: Any, **options: Any) -> Any:
    """Runs module.backward(*gradients, **options) for the call that saved `saved`, whatever was called since.

    Args:
        module: the module to differentiate.
        saved: what its call saved; None if the module saves nothing in `_saved`.
        *gradients: the arguments of its `backward`.
        **options: its argument `dx`, which is left out for a module that does not take it.

    Returns:
        What its `backward` returns.
    """
    if not module.takes_dx:
        options = {}
    if saved is None:
        return module.backward(*gradients, **options)
    slot = module._thread_slots.slot
    last = slot.saved
    pending = slot.pending
    resolved = slot.resolved
    slot.saved = saved
    slot.pending = 1
    try:
        return module.backward(*gradients, **options)
    finally:
        slot.saved = last
        slot.pending = pending
        slot.resolved = resolved
        if last is saved:
            slot.resolve()


def dx_options(dx: Any) -> dict[str, bool]:
    """The argument `dx` of a `backward`, checked, for that of another module: none where dx is wanted, as a module of a
    user may not take it."""
    return {} if checks.flag("dx", dx) else {"dx": False}


_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def new_lock() -> Any:
    """A lock that its holder may acquire again, as in a signal handler. A forked child finds it released."""
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def _release_locks_in_child() -> None:
    # The threads that held them do not exist in the child.
    for lock in list(_locks):
        lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_locks_in_child)
