"""A pytest fixture that compares a layer, or a shape, with the float64 oracle. In conftest.py:

    pytest_plugins = ["rnnkit.parity.pytest_plugin"]

It is not an entry point of pytest: an entry point would import rnnkit in every pytest run of the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from rnnkit.backends import backend_row, check_backend, select
from rnnkit.core import checks
from rnnkit.core.cells import CELLS
from rnnkit.core.devices import resolve_device
from rnnkit.core.dtypes import DTYPES
from rnnkit.parity import text
from rnnkit.parity.checks import Check, plan
from rnnkit.parity.layer import check_layer
from rnnkit.parity.measure import run
from rnnkit.parity.outcome import Outcome
from rnnkit.testing import Case

DEFAULT_SIZES = {"T": 50, "B": 8, "I": 32, "H": 64}


@pytest.fixture
def rnnkit_parity() -> Callable[..., Outcome]:
    """The function `assert_parity`, which raises AssertionError if a layer or a shape differs from the oracle."""
    return assert_parity


def assert_parity(
    layer: Any = None,
    x: Any = None,
    state: Any = None,
    lengths: Any = None,
    *,
    backend: str | None = None,
    device: Any = None,
    required: bool = False,
    **options: Any,
) -> Outcome:
    """Checks a layer for one input, or one direction of a cell for one shape.

        rnnkit_parity(layer, x, lengths=lengths)
        rnnkit_parity(cell="lstm", dtype="float32", backend="numba", T=50, B=8, I=32, H=64)

    Args:
        layer: an RNN, GRU, LSTM or SLSTM; None to check a shape.
        x: as for `rnnkit.parity.check_layer`.
        state: as for `rnnkit.parity.check_layer`.
        lengths: as for `rnnkit.parity.check_layer`.
        backend: name of the backend; by default the layer's, or the first that serves the device.
        device: the device; by default the layer's, or the CPU.
        required: whether the test fails if the backend or the device cannot be used here; otherwise it is skipped.
        **options: with a layer, `seed` only. Without one, `dtype` (a name in DTYPES, by default "float32") and the
            fields of `rnnkit.testing.Case`: cell, T, B, I, H, P, bias, reverse, ragged.

    Returns:
        The Outcome, which passed.

    Raises:
        AssertionError: the check did not pass. The message lists the worst and the RMS share of every array.
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.

    Examples:
        >>> from rnnkit.parity.pytest_plugin import assert_parity
        >>> assert_parity(cell="gru", backend="numpy", T=5, B=3, I=4, H=6).status
        'ok'
    """
    __tracebackhide__ = True
    checks.flag("required", required)
    try:
        check_backend(backend)
        target = _device_of(layer, backend, device)
    except RuntimeError as problem:
        return _cannot(str(problem), required)
    if layer is not None:
        if set(options) - {"seed"}:
            raise TypeError(f"with a layer the only other option is seed, got {', '.join(sorted(options))}")
        return _passed(check_layer(layer, x, state, lengths, backend=backend, device=target, **options))
    if any(argument is not None for argument in (x, state, lengths)):
        raise TypeError("x, state and lengths go with a layer, got them without one")
    case, dtype = _case_of(options)
    if DTYPES[dtype].stored == "bfloat16":
        absent = plan(["numpy"], [dtype], [case.cell], ["cpu"], [case]).unavailable.get(dtype)
        if absent:
            return _cannot(f"dtype {dtype} {absent}", required)
    try:
        name = backend or select(target, dtype, case.cell, None).row.name
        select(target, dtype, case.cell, name)
    except RuntimeError as problem:
        return _cannot(str(problem), required)
    planned = plan([name], [dtype], [case.cell], [target], [case])
    if not planned.checks:
        return _cannot("; ".join(f"{what}: {why}" for what, why in planned.unavailable.items()), required)
    return _passed(run(Check(name, dtype, case, target)))


def _device_of(layer: Any, backend: str | None, device: Any) -> str:
    """The requested device; else the layer's or the CPU, if the requested backend accepts arrays there, else CUDA."""
    if device is not None:
        return resolve_device(device)
    own = getattr(layer, "device", "cpu")
    if backend is None:
        return own
    arrays = backend_row(backend)[0].arrays
    if (arrays == "numpy") == (own == "cpu"):
        return own
    return resolve_device("cpu" if arrays == "numpy" else "cuda")


def _case_of(options: dict[str, Any]) -> tuple[Case, str]:
    """The case and the dtype of keyword options."""
    options = dict(options)
    dtype = options.pop("dtype", "float32")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    known = [f.name for f in fields(Case)]
    for name in options:
        if name not in known:
            raise TypeError(f"the options of a shape are dtype, {', '.join(known)}; got {name!r}")
    if options.get("cell") not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {options.get('cell')!r}")
    case = Case(**(DEFAULT_SIZES | options))
    for name in DEFAULT_SIZES:
        checks.positive_int(name, getattr(case, name))
    for name in ("bias", "reverse", "ragged"):
        checks.flag(name, getattr(case, name))
    largest = case.H - 1 if CELLS[case.cell].projects else 0
    if isinstance(case.P, checks.NOT_NUMBERS) or not isinstance(case.P, int) or not 0 <= case.P <= largest:
        raise ValueError(f"P must be a whole number from 0 to {largest} for {case.cell}, got {case.P!r}")
    return case, dtype


def _cannot(reason: str, required: bool) -> Any:
    __tracebackhide__ = True
    if required:
        raise AssertionError(f"required, and cannot be checked here: {reason}")
    pytest.skip(reason)


def _passed(outcome: Outcome) -> Outcome:
    __tracebackhide__ = True
    if outcome.ok:
        return outcome
    table = f"\n{text.arrays(outcome)}" if outcome.arrays else ""
    raise AssertionError(f"{outcome.check} is {outcome.status}: {outcome.why}{table}")
