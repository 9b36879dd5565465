"""The grad mode: whether calls save what backward needs. `no_grad`, `set_grad_enabled` and `grad_enabled`.

The mode is a linked list of open blocks, one list per thread and async task. A block is open while its lock is held.
The lock is used because acquiring and releasing it is C code, which no signal handler can interrupt.
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
    """One block: its mode, the lock that is held while it is open, and the enclosing block.

    `lock` is None for a mode that `set_grad_enabled` sets outside every block, which nothing closes. `entered` and
    `left` record whether the `with` statement has looked up `__enter__` and `__exit__`. There is no __init__, because
    `with no_grad()` is part of many short calls.
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
    """Whether calls save what backward needs, in this thread and async task.

    Returns:
        False inside `no_grad()` and after `set_grad_enabled(False)`, else True.

    Examples:
        >>> import rnnkit
        >>> with rnnkit.no_grad():
        ...     rnnkit.grad_enabled()
        False
    """
    block = _innermost.get()
    if block is None:
        return True
    if block.lock is None or block.lock.locked():
        return block.enabled
    block = _open_block(block)
    _innermost.set(block)
    return block is None or block.enabled


def _open_block(block: _Block | None) -> _Block | None:
    """The innermost open block among `block` and the blocks that enclose it."""
    while block is not None and block.lock is not None and not block.lock.locked():
        block = block.outer
    return block


class _LookedUp(property):
    """A property that returns a method. ExitStack looks it up on the class, and then calls it like a function."""

    def __call__(self, mode: Any, *error: Any) -> Any:
        return self.__get__(mode)(*error)


def _new_block(mode: _Mode, around: _Block | None) -> _Block:
    """A new block for `mode`, not yet open, inside the open blocks among `around` and those that enclose it."""
    if around is not None and (around.lock is None or around.lock.locked()):
        if around is mode._set:  # the `with` block of set_grad_enabled begins; it restores the mode before the call
            around = _open_block(mode._before)
            mode._set = None
    elif around is not None:
        around = _open_block(around.outer)
    block = _Block()
    block.owner = mode
    block.enabled = mode._enabled
    block.lock = _new_lock()
    block.outer = around
    block.entered = False
    block.left = False
    _innermost.set(block)
    return block


class _Mode:
    """What `no_grad()` and `set_grad_enabled(mode)` return: a context manager and decorator."""

    _enabled = False
    # Of set_grad_enabled: the block before its call, and the block that the call opened until a `with` block begins.
    _before: _Block | None = None
    _set: _Block | None = None

    # A `with` statement looks up both methods before it enters, and then calls only C code, which acquires and releases
    # the block's lock. With Python functions a signal handler could raise after the mode is set and before the
    # statement is bound to restore it, or before the first instruction of `__exit__`.

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
        """The innermost block of this mode without an `__exit__`: one entered by a direct call, or not yet entered."""
        block = top
        while block is not None and (block.left or block.owner is not self):
            block = block.outer
        return _new_block(self, top) if block is None else block  # Python 3.14 looks up `__exit__` first

    def __call__(self, function: Function) -> Function:
        """Decorates a function: every call of it runs in this mode.

        Args:
            function: a plain function, no generator or coroutine.

        Returns:
            The decorated function.

        Raises:
            TypeError: `function` is not callable, or is a generator or coroutine function.

        Examples:
            >>> import rnnkit
            >>> @rnnkit.no_grad()
            ... def evaluate():
            ...     return rnnkit.grad_enabled()
            >>> evaluate()
            False
        """
        if not callable(function):
            raise TypeError(f"function must be callable, got {function!r}")
        # Generators and coroutines return before their body runs, and their callers would run in the mode they set.
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
    """Disables saving for backward: inside, a call needs only the memory of its outputs. Per thread and async task.

    Use it as `with no_grad():`, or as a decorator `@no_grad` or `@no_grad()`. An async task that starts inside the
    block inherits the mode. The mode ends with the block, even if a signal handler (such as Ctrl-C) raises at its start
    or end. This holds for the `with` statement and for the decorator. Code that calls `__enter__` and `__exit__`
    itself, such as contextlib.ExitStack, has to reach the second call.

    Args:
        function: the function to decorate; omitted for the context manager. Not a generator or coroutine: use the
            `with` statement inside those.

    Returns:
        A context manager and decorator, or the decorated function.

    Raises:
        TypeError: `function` is not a plain function.

    Examples:
        >>> import numpy as np, rnnkit
        >>> layer = rnnkit.Linear(3, 2, rng=0)
        >>> with rnnkit.no_grad():
        ...     y = layer(np.ones((4, 3), np.float32))
        >>> layer.backward(y)
        Traceback (most recent call last):
        RuntimeError: backward needs a call of this Linear first, in the same thread, and one outside rnnkit.no_grad()
    """
    return _NO_GRAD if function is None else _NO_GRAD(function)


_NO_GRAD = _Mode()


class set_grad_enabled(_Mode):
    """Sets whether calls save what backward needs; equivalent of torch.set_grad_enabled. Per thread and async task.

    Called as a function, it sets the mode until the enclosing `no_grad()` block ends, or, outside every block, until
    the next call. `with set_grad_enabled(mode):` restores the previous mode when its block ends, as `no_grad` does. As
    a decorator it sets the mode of each call of the function. If a signal handler raises between the call and the start
    of the `with` block, the mode stays set.

    Args:
        mode: True to save, False not to save.

    Raises:
        TypeError: `mode` is not a bool.

    Examples:
        >>> import rnnkit
        >>> training = False
        >>> with rnnkit.set_grad_enabled(training):
        ...     rnnkit.grad_enabled()
        False
        >>> rnnkit.grad_enabled()
        True
    """

    def __init__(self, mode: bool) -> None:
        self._enabled = checks.flag("mode", mode)
        block = _open_block(_innermost.get())
        self._before = block
        new = _new_block(self, None if block is None else block.outer)
        self._set = new
        new.lock = None if block is None else block.lock
        new.entered = True
        new.left = True

    def __call__(self, function: Function) -> Function:
        """Decorates a function: every call of it runs in this mode, which is no longer set outside of it.

        Args:
            function: a plain function, no generator or coroutine.

        Returns:
            The decorated function.

        Raises:
            TypeError: `function` is not callable, or is a generator or coroutine function.

        Examples:
            >>> import rnnkit
            >>> @rnnkit.set_grad_enabled(False)
            ... def evaluate():
            ...     return rnnkit.grad_enabled()
            >>> evaluate(), rnnkit.grad_enabled()
            (False, True)
        """
        if _innermost.get() is self._set:
            _innermost.set(self._before)
        return super().__call__(function)
