"""Whether backends measure which of their ways to run a call is fastest here: a switch of the process."""

from __future__ import annotations

_on = False


def autotune(on: bool = True) -> None:
    """Turns measuring on or off, for the whole process. It is off at first.

    While it is on, the first call on a GPU with new sizes runs every schedule that serves it a few times, on the call's
    own arrays, and keeps the fastest one for all later calls. A stack of layers in one direction is measured as a
    whole. That call waits for the device. The result is kept per
    card, driver and version of rnnkit, in memory and on disk: docs/gpu.md. Off, or where nothing was measured, the
    schedule is the one of the least predicted time. `explain` says which of the two holds. A call that names a
    schedule, such as `backend="cupy:grid"`, is not measured, and the CPU backends have nothing to measure.

    Args:
        on: whether to measure.

    Raises:
        TypeError: `on` is not a bool.

    Examples:
        >>> import rnnkit
        >>> rnnkit.autotune(True)
        >>> rnnkit.autotune(False)
    """
    global _on
    if not isinstance(on, bool):
        raise TypeError(f"on must be a bool, got {type(on).__name__}")
    _on = on


def autotuning() -> bool:
    """Whether it is on."""
    return _on
