"""run(check): forward and backward on a backend, again, and the comparison with the float64 oracle."""

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

# A CUDA backend launches the first call of a shape, captures the second into a graph, and replays the graph from then
# on: three calls have three ways to differ.
CPU_CALLS, CUDA_CALLS = 2, 3
NAMED_ARRAYS = 3  # in `why`, by name


def run(check: Check) -> Outcome:
    """Runs one check: every output and gradient of its case, in each of two calls (on CUDA three).

    The worst share of each array is over the calls. Whatever the backend raises gives the status "failed" with the
    exception's type and text. Raises ValueError for a backend, dtype, cell or device that does not exist.
    """
    _check_names(check)
    at, start = "the float64 oracle", time.perf_counter()
    try:
        want = oracle(check.case, DTYPES[check.dtype].stored)
        at, start = check.backend, time.perf_counter()
        resolve_device(check.device)
        inputs, precision = make_inputs(check.case, check.dtype, device=check.device), precision_of(check.dtype)
        sizes = [array.size * DTYPES[check.dtype].storage.itemsize for array in want.values()]
        calls = repeated(lambda: run_case(check.case, inputs, check.backend, precision), check.device, sizes)
        return judged(check, calls, want, time.perf_counter() - start)
    except Exception as problem:  # a tool that reports failures must report every kind of them
        return Outcome(check, "failed", f"{at} raised {said(problem)}", seconds=time.perf_counter() - start)


def said(problem: Exception) -> str:
    """An exception in one line: its type and the first line of its text."""
    text = str(problem).strip().splitlines()
    return type(problem).__name__ + (f": {text[0]}" if text else "")


def oracle(case: Case, stored: str) -> Arrays:
    """Every output and gradient of a case in float64 by NumPy, from the numbers as a dtype stores them. Cached."""
    # make_inputs draws the same numbers in both.
    return _oracle(case, "float32" if stored == "float64" else stored)


@lru_cache(maxsize=3)
def _oracle(case: Case, stored: str) -> Arrays:
    with quiet():
        return run_case(case, widened(make_inputs(case, stored)), "numpy")


def quiet() -> AbstractContextManager[None]:
    """Inside, NumPy does not warn of numbers that are too large: the comparison reports them."""
    return np.errstate(over="ignore", invalid="ignore")


def repeated(call: Callable[[], Arrays], device: str, sizes: Collection[int]) -> list[Arrays]:
    """What each of two calls gives, on CUDA of three. sizes: bytes of the arrays that a call allocates."""
    calls = []
    for _ in range(CPU_CALLS if device == "cpu" else CUDA_CALLS):
        _poison_freed_memory(device, sizes)
        with quiet():
            calls.append(call())
    return calls


def _poison_freed_memory(device: str, sizes: Collection[int]) -> None:
    """Fills two blocks of each size that the next call asks for with NaN, and frees them.

    The allocator is likely to hand them out again. An element that a kernel reads before it writes it, or never writes,
    is then NaN: bytes of 0xFF are NaN in every floating-point dtype.
    """
    xp: Any = np
    if device != "cpu":
        import cupy

        xp = cupy
    with current(device):
        held = [xp.full(size, 0xFF, np.uint8) for size in (*sizes, *sizes)]
    del held


def judged(check: Check | LayerCheck, calls: list[Arrays], want: Arrays, seconds: float) -> Outcome:
    """The outcome of the calls of one check, against the oracle's arrays."""
    dtype = DTYPES[check.dtype]
    growth = growth_of(check.case, dtype) if isinstance(check, Check) else 1.0
    arrays: dict[str, Errors] = {}
    unlike, differing = [], []
    for name in want | calls[0]:
        found = [got.get(name) for got in calls]
        problem = _unlike(found, want.get(name), dtype.storage)
        if problem:
            arrays[name] = Errors(math.inf, math.inf)
            unlike.append(f"{name} {problem}")
            continue
        different = {array.tobytes(): array for array in found if array is not None}
        each = [errors(array, want[name], dtype, kind_of(name), growth) for array in different.values()]
        arrays[name] = Errors(max(e.worst for e in each), max(e.rms for e in each))
        if len(different) > 1:
            differing.append(name)
    why = unlike + _over(arrays, unlike, check)
    if differing:
        why.append(f"bits differ from call to call: {_few(differing)}")
    return Outcome(check, "wrong" if why else "ok", "; ".join(why), arrays, not differing and not unlike, seconds)


def _unlike(found: list[np.ndarray | None], want: np.ndarray | None, dtype: np.dtype) -> str | None:
    """What makes an array of the calls impossible to compare with the oracle's; None where nothing does."""
    for array in found:
        if want is None:
            return "is no output or gradient of the oracle"
        if array is None:
            return "is missing"
        if array.shape != want.shape:
            return f"has shape {array.shape}, not {want.shape}"
        if array.dtype != dtype:
            return f"has dtype {array.dtype}, not {dtype}"
    return None


def _over(arrays: dict[str, Errors], unlike: list[str], check: Check | LayerCheck) -> list[str]:
    """The arrays over their bounds, in one sentence or none."""
    known = {text.partition(" ")[0] for text in unlike}
    over = [name for name, e in arrays.items() if not e.worst <= 1 and name not in known]
    if not over:
        return []
    over.sort(key=lambda name: -arrays[name].worst)
    text = "over the bound: " + _few([f"{name} at {arrays[name].worst:.3g} times it" for name in over])
    cell = check.case.cell if isinstance(check, Check) else ""
    if cell == "rnn_relu" and all(kind_of(name) == "backward" for name in over):
        text += " (a relu's gradient jumps where rounding changes a sign: in a wide layer that may be all)"
    return [text]


def _few(names: list[str]) -> str:
    more = len(names) - NAMED_ARRAYS
    return ", ".join(names[:NAMED_ARRAYS]) + (f" and {more} more" if more > 0 else "")


def _check_names(check: Check) -> None:
    backend_row(check.backend)
    resolve_dtype(check.dtype)
    if check.case.cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {check.case.cell!r}")
