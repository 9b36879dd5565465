"""Whether calls keep what backward needs: `no_grad`, `set_grad_enabled`, and `grad_enabled`, which calls read.

The mode is a chain of open blocks, one chain per thread and async task. A block is open while its lock is held: the
lock is how C code alone, which no signal handler can interrupt, ends a block.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable
from threading import Lock as _new_lock
from typing import Any, TypeVar, overload

from rnnkit.core import checks

Function = TypeVar("Function", bound=Callable[..., Any])


class _Block:
    """One block: its mode, the lock that is held while it is open, and the block around it.

    lock: None for what `set_grad_enabled` sets outside every block, which nothing ends. entered, left: whether its
    `__enter__` and its `__exit__` have been looked up. No __init__: `with no_grad()` is part of many short calls.
    """

    __slots__ = ("enabled", "entered", "left", "lock", "outer", "owner")
    enabled: bool
    entered: bool
    left: bool
    lock: Any
    outer: _Block | None
    owner: _Mode


_innermost: contextvars.ContextVar[_Block | None] = contextvars.ContextVar("rnnkit_grad_mode", default=None)


def grad_enabled() -> bool:
    """Whether calls keep what backward needs: False inside `no_grad()`. Per thread and async task."""
    block = _innermost.get()
    if block is None:
        return True
    if block.lock is None or block.lock.locked():
        return block.enabled
    block = _open_block(block)
    _innermost.set(block)
    return block is None or block.enabled


def _open_block(block: _Block | None) -> _Block | None:
    """The innermost open block, from `block` on outwards."""
    while block is not None and block.lock is not None and not block.lock.locked():
        block = block.outer
    return block


class _LookedUp(property):
    """A property that gives a method. Looked up on the class, as by ExitStack, it serves as that class's function."""

    def __call__(self, mode: Any, *error: Any) -> Any:
        return self.__get__(mode)(*error)


def _new_block(mode: _Mode, around: _Block | None) -> _Block:
    """A block for `mode`, not yet open, inside those of `around` that are open."""
    if around is not None and (around.lock is None or around.lock.locked()):
        if around is mode._set:  # its `with` block begins: after it the mode is what it was before the call
            around = _open_block(mode._before)
            mode._set = None
    elif around is not None and (around := around.outer) is not None:
        around = _open_block(around)
    block = _Block()
    block.owner = mode
    block.enabled = mode._enabled
    block.lock = _new_lock()
    block.outer = around
    block.entered = block.left = False
    _innermost.set(block)
    return block


class _Mode:
    """What `no_grad()` and `set_grad_enabled(mode)` give: a context manager and a decorator."""

    _enabled = False
    _before: _Block | None = None  # of set_grad_enabled: what was before it, and what it has set until its `with` block
    _set: _Block | None = None

    # A `with` statement looks both up before it enters, and then calls C code alone: the acquisition and the release of
    # the block's lock. Python functions in their place would have windows: a signal handler may raise after the mode is
    # set and before the statement has its block to end, or before the first instruction of `__exit__`.

    @_LookedUp
    def __enter__(self) -> Callable[..., Any]:
        block = _innermost.get()
        if block is None or block.entered or block.owner is not self:
            block = _new_block(self, block)
        block.entered = True
        return block.lock.__enter__

    @_LookedUp
    def __exit__(self) -> Callable[..., Any]:
        block = _innermost.get()
        if block is None or block.left or block.owner is not self:
            block = self._block_to_leave(block)
        block.left = True
        return block.lock.__exit__

    def _block_to_leave(self, top: _Block | None) -> _Block:
        """The innermost of this mode's blocks that has no `__exit__` yet: entered by hand, or not yet entered."""
        block = top
        while block is not None and (block.left or block.owner is not self):
            block = block.outer
        return _new_block(self, top) if block is None else block  # Python 3.14 looks `__exit__` up first

    def __call__(self, function: Function) -> Function:
        """`function`, run inside."""
        if not callable(function):
            raise TypeError(f"function must be callable, got {function!r}")
        # Those return before they run, and what they set between two yields their caller would see.
        kinds = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
        if any(is_kind(function) for is_kind in kinds):
            raise TypeError(f"function must be no generator or coroutine, got {function!r}: use a with block inside it")
        enabled = self._enabled

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with _Fixed(enabled):
                return function(*args, **kwargs)

        return inside  # type: ignore[return-value]


class _Fixed(_Mode):
    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled


@overload
def no_grad() -> _Mode: ...
@overload
def no_grad(function: Function) -> Function: ...
def no_grad(function: Any = None) -> Any:
    """Inside, layers keep nothing for backward: a call costs the memory of its outputs. Per thread and async task.

    `with no_grad():`, or over a function `@no_grad` or `@no_grad()`. Raises TypeError for what is no plain function:
    a generator or coroutine takes the `with` inside. A task that starts inside the block follows the block.

    However the block ends, the mode ends with it: also where a signal handler raises, as Ctrl-C does, at its very
    start or end. This holds for the `with` statement and the decorator. Code that calls `__enter__` and `__exit__` by
    itself, as contextlib.ExitStack does, has to reach the second call.
    """
    return _NO_GRAD if function is None else _NO_GRAD(function)


_NO_GRAD = _Mode()


class set_grad_enabled(_Mode):
    """Sets at once whether calls keep what backward needs; as a context manager, until its block ends. As torch's.

    `set_grad_enabled(mode)` inside a `no_grad()` block lasts until that block ends, outside every block until the next
    call. `with set_grad_enabled(mode):` restores what was before it, as `no_grad` does; over a function, the mode of
    each call. Per thread and async task. Raises TypeError unless mode is True or False.

    A signal handler that raises between the call and the start of the `with` block leaves the mode set.
    """

    def __init__(self, mode: bool) -> None:
        self._enabled = checks.flag("mode", mode)
        self._before = block = _open_block(_innermost.get())
        self._set = now = _new_block(self, None if block is None else block.outer)
        now.lock = None if block is None else block.lock
        now.entered = now.left = True

    def __call__(self, function: Function) -> Function:
        """`function`, run in this mode, which is then not set outside it."""
        if _innermost.get() is self._set:
            _innermost.set(self._before)
        return super().__call__(function)
