"""run(check): runs forward and backward on a backend repeatedly, and compares the results with the float64 oracle."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import numpy as np

from rnnkit.backends import backend_row
from rnnkit.core.cells import CELLS
from rnnkit.core.devices import current, resolve_device
from rnnkit.core.dtypes import DTYPES, resolve_dtype
from rnnkit.parity.checks import Check, LayerCheck
from rnnkit.parity.outcome import Outcome
from rnnkit.testing import Case, Errors, errors, growth_of, kind_of, make_inputs, precision_of, widened
from rnnkit.testing import run as run_case

Arrays = dict[str, np.ndarray]

# A CUDA backend launches the kernels of the first call of a shape, captures the second call into a CUDA graph, and
# replays the graph from the third call on. So three calls cover all three paths.
CPU_CALLS = 2
CUDA_CALLS = 3
NAMED_ARRAYS = 3  # largest number of arrays that `why` names


def run(check: Check) -> Outcome:
    """Runs one check: every output and gradient of its case, in two calls (on CUDA in three).

    The errors of an array are the largest over the calls.

    Args:
        check: the check.

    Returns:
        An Outcome. If the backend raises an exception, the status is "failed", and `why` holds its type and text.

    Raises:
        ValueError: the backend, dtype, cell or device does not exist.

    Examples:
        >>> from rnnkit.parity import Check, run
        >>> from rnnkit.testing import Case
        >>> run(Check("numpy", "float32", Case("gru"), "cpu")).status
        'ok'
    """
    _check_names(check)
    running = "the float64 oracle"
    start = time.perf_counter()
    try:
        want = oracle(check.case, DTYPES[check.dtype].stored)
        running = check.backend
        start = time.perf_counter()
        resolve_device(check.device)
        inputs = make_inputs(check.case, check.dtype, device=check.device)
        precision = precision_of(check.dtype)
        sizes = [array.size * DTYPES[check.dtype].storage.itemsize for array in want.values()]
        calls = repeated(lambda: run_case(check.case, inputs, check.backend, precision), check.device, sizes)
        return compared(check, calls, want, time.perf_counter() - start)
    except Exception as problem:  # every exception is reported as a failed check
        why = f"{running} raised {error_line(problem)}"
        return Outcome(check, "failed", why, seconds=time.perf_counter() - start)


def error_line(problem: Exception) -> str:
    """An exception in one line: its type and the first line of its text."""
    text = str(problem).strip().splitlines()
    return type(problem).__name__ + (f": {text[0]}" if text else "")


def oracle(case: Case, stored: str) -> Arrays:
    """The results of a case in float64 on NumPy, from the numbers as the dtype `stored` rounds them. Cached."""
    # make_inputs draws the same numbers in float32 and float64.
    return _oracle(case, "float32" if stored == "float64" else stored)


@lru_cache(maxsize=3)
def _oracle(case: Case, stored: str) -> Arrays:
    with no_overflow_warnings():
        return run_case(case, widened(make_inputs(case, stored)), "numpy")


def no_overflow_warnings() -> AbstractContextManager[None]:
    """Suppresses NumPy's warnings of overflow: the comparison reports infinite numbers."""
    return np.errstate(over="ignore", invalid="ignore")


def repeated(call: Callable[[], Arrays], device: str, sizes: Collection[int]) -> list[Arrays]:
    """The results of two calls, on CUDA of three. sizes: bytes of the arrays that a call allocates."""
    calls = []
    for _ in range(CPU_CALLS if device == "cpu" else CUDA_CALLS):
        _poison_freed_memory(device, sizes)
        with no_overflow_warnings():
            calls.append(call())
    return calls


def _poison_freed_memory(device: str, sizes: Collection[int]) -> None:
    """Allocates two blocks of each size that the next call needs, fills them with NaN, and frees them.

    The allocator is likely to reuse them. An element that a kernel reads before writing it, or never writes, is then
    NaN: bytes of 0xFF are NaN in every floating-point dtype.
    """
    xp: Any = np
    if device != "cpu":
        import cupy

        xp = cupy
    with current(device):
        blocks = [xp.full(size, 0xFF, np.uint8) for size in (*sizes, *sizes)]
    del blocks


def compared(check: Check | LayerCheck, calls: list[Arrays], want: Arrays, seconds: float) -> Outcome:
    """The outcome of the calls of one check, compared with the oracle's arrays."""
    dtype = DTYPES[check.dtype]
    growth = growth_of(check.case, dtype) if isinstance(check, Check) else 1.0
    arrays: dict[str, Errors] = {}
    incomparable: list[str] = []
    differing: list[str] = []
    for name in want | calls[0]:
        results = [got.get(name) for got in calls]
        problem = _incomparable(results, want.get(name), dtype.storage)
        if problem:
            arrays[name] = Errors(math.inf, math.inf)
            incomparable.append(f"{name} {problem}")
            continue
        distinct = {array.tobytes(): array for array in results if array is not None}
        each = [errors(array, want[name], dtype, kind_of(name), growth) for array in distinct.values()]
        arrays[name] = Errors(max(e.worst for e in each), max(e.rms for e in each))
        if len(distinct) > 1:
            differing.append(name)
    why = incomparable + _over(arrays, incomparable, check)
    if differing:
        why.append(f"bits differ from call to call: {_few(differing)}")
    same_bits = not differing and not incomparable
    return Outcome(check, "wrong" if why else "ok", "; ".join(why), arrays, same_bits, seconds)


def _incomparable(results: list[np.ndarray | None], want: np.ndarray | None, dtype: np.dtype) -> str | None:
    """Why the arrays of the calls cannot be compared with the oracle's; None if they can."""
    for array in results:
        if want is None:
            return "is no output or gradient of the oracle"
        if array is None:
            return "is missing"
        if array.shape != want.shape:
            return f"has shape {array.shape}, not {want.shape}"
        if array.dtype != dtype:
            return f"has dtype {array.dtype}, not {dtype}"
    return None


def _over(arrays: dict[str, Errors], incomparable: list[str], check: Check | LayerCheck) -> list[str]:
    """One sentence that names the arrays over their bounds, or an empty list."""
    known = {text.partition(" ")[0] for text in incomparable}
    over = [name for name, e in arrays.items() if not e.worst <= 1 and name not in known]
    if not over:
        return []
    over.sort(key=lambda name: -arrays[name].worst)
    text = "over the bound: " + _few([f"{name} at {arrays[name].worst:.3g} times it" for name in over])
    cell = check.case.cell if isinstance(check, Check) else ""
    if cell in CELLS and CELLS[cell].jumps and all(kind_of(name) == "backward" for name in over):
        text += " (this cell's gradient jumps if rounding changes a sign; in a wide layer that may be the only cause)"
    return [text]


def _few(names: list[str]) -> str:
    more = len(names) - NAMED_ARRAYS
    return ", ".join(names[:NAMED_ARRAYS]) + (f" and {more} more" if more > 0 else "")


def _check_names(check: Check) -> None:
    backend_row(check.backend)
    resolve_dtype(check.dtype)
    if check.case.cell.partition("+")[0] not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {check.case.cell!r}")
