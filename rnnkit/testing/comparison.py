"""The comparison of arrays with the oracle's, within the tolerances of DTYPES."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit.core.devices import to_numpy
from rnnkit.core.dtypes import DTYPES, resolve_dtype
from rnnkit.testing.cases import Case


class Errors(NamedTuple):
    """Errors of one array, as shares of the bound that DTYPES gives each element.

    At most 1 passes. An empty array has (0, 0).

    Attributes:
        worst: the largest share.
        rms: the root mean square of the shares.

    Examples:
        >>> from rnnkit.testing import errors
        >>> errors([1.0, 2.0], [1.0, 2.0], "float32")
        Errors(worst=0.0, rms=0.0)
    """

    worst: float
    rms: float


def growth_of(case: Case, dtype: Any) -> float:
    """The factor of the tolerances of a dtype for the inputs of a case, see rnnkit/core/dtypes.py.

    Args:
        case: a case, with the inputs of `make_inputs`.
        dtype: a name in DTYPES or a NumPy dtype.

    Returns:
        A factor of at least 1.

    Examples:
        >>> from rnnkit.testing import Case, growth_of
        >>> growth_of(Case("gru", I=4, H=4), "float32")
        1.0
    """
    return resolve_dtype(dtype).growth(case.I / case.H**0.5)


def errors(got: Any, want: Any, dtype: Any, kind: str = "forward", growth: float = 1.0) -> Errors:
    """Compares an array with the oracle's: |got - want| / bound over all elements.

    The bound of an element is growth * (rtol * |want| + atol * max(1, max|want|)), with the rtol and atol of the
    dtype's row in DTYPES. The rms is sqrt(mean((|got - want| / bound)^2)). Both are infinite if exactly one of two
    elements is NaN.

    Args:
        got: the array to check.
        want: the oracle's array, of the same shape; both may have any dtype.
        dtype: the dtype of the run: a name in DTYPES or a NumPy dtype.
        kind: which tolerance to use, "forward" or "backward".
        growth: factor of the tolerance, see `growth_of`.

    Returns:
        An `Errors`.

    Raises:
        AssertionError: the shapes differ.

    Examples:
        >>> from rnnkit.testing import errors
        >>> errors([1.0], [1.0 + 6e-6], "float32").worst < 1
        True
    """
    got = to_numpy(got)
    want = to_numpy(want)
    if got.shape != want.shape:
        raise AssertionError(f"shape {got.shape} is not {want.shape}")
    if not got.size:
        return Errors(0.0, 0.0)
    tolerance = getattr(DTYPES[resolve_dtype(dtype).name], kind)
    got = got.astype(np.float64)
    want = want.astype(np.float64)
    finite = np.abs(want[np.isfinite(want)])
    scale = max(1.0, float(finite.max())) if finite.size else 1.0
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    bound = growth * (tolerance.rtol * np.abs(want) + tolerance.atol * scale)
    with np.errstate(invalid="ignore", over="ignore"):
        shares = np.where(same, 0.0, np.abs(got - want) / bound)
    worst = float(np.where(np.isnan(shares), np.inf, shares).max())
    if worst == 0 or not np.isfinite(worst):
        return Errors(worst, worst)
    # Shares are divided by the worst one, so that no square overflows or underflows to zero.
    return Errors(worst, worst * float(np.sqrt(np.mean(np.square(shares / worst)))))


def error_ratio(got: Any, want: Any, dtype: Any, kind: str = "forward") -> float:
    """The worst share of `errors`.

    Args:
        got: the array to check.
        want: the oracle's array, of the same shape.
        dtype: a name in DTYPES or a NumPy dtype.
        kind: "forward" or "backward".

    Returns:
        The largest share of the bound; infinite if exactly one of two elements is NaN.

    Raises:
        AssertionError: the shapes differ.

    Examples:
        >>> from rnnkit.testing import error_ratio
        >>> error_ratio([1.0], [1.0], "float64")
        0.0
    """
    return errors(got, want, dtype, kind).worst


def kind_of(name: str) -> str:
    """The tolerance that an output or gradient of `run` is compared with.

    Args:
        name: a name that `run` returns.

    Returns:
        "forward" or "backward".

    Examples:
        >>> from rnnkit.testing import kind_of
        >>> kind_of("h_n"), kind_of("dx")
        ('forward', 'backward')
    """
    return "forward" if name == "y" or name.endswith("_n") else "backward"


def assert_close(name: str, got: Any, want: Any, dtype: Any, kind: str = "forward") -> None:
    """Checks that an array is within the tolerance of DTYPES.

    Args:
        name: name of the array, for the message.
        got: the array to check.
        want: the oracle's array, of the same shape.
        dtype: a name in DTYPES or a NumPy dtype.
        kind: "forward" or "backward".

    Raises:
        AssertionError: an element is outside of its bound, or the shapes differ.

    Examples:
        >>> from rnnkit.testing import assert_close
        >>> assert_close("y", [1.0, 2.0], [1.0, 2.0 + 1e-7], "float32")
    """
    ratio = error_ratio(got, want, dtype, kind)
    if not ratio <= 1:
        worst = float(np.nanmax(np.abs(to_numpy(got).astype(np.float64) - to_numpy(want).astype(np.float64))))
        raise AssertionError(
            f"{name}: {ratio:.3g} times the {kind} tolerance of {resolve_dtype(dtype).name} (worst {worst:.3g})"
        )
