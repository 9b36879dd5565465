"""The gates of cells with options, for both Numba targets: an activation behind a limit, and the values to save.

A role (`ROLES` of rnnkit/core/cell_options.py) is what computes y = act(limit(a)). Slopes are computed from the saved
y. Beyond the limit y is act(clip) or act(-clip), whose slope there is 0, so infinity is saved in its place, with the
sign of a: backward finds both y and the slope exactly, in 16 bits too.

`k` is a tuple of the call's constants, each a number or a vector with one number in every lane. `prepared` appends
act(clip) and act(-clip) of each role that is limited, once per row.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from types import SimpleNamespace
from typing import Any

from rnnkit.core.cell_options import ROLES, activations_of
from rnnkit.core.cells import Cell

# Terms of atanh(s) / s = 1 + s^2 / 3 + s^4 / 5 + ... for s <= 1/3: the first left out is below 2^-53 of the sum.
_ATANH_TERMS = 17


def curves(jit: Any, act: Any) -> dict[str, tuple[Callable, Callable]]:
    """Per activation value(a, alpha, beta) and slope(y, alpha, beta), of compiled code."""
    sigmoid = act.sigmoid
    tanh = act.tanh
    where_lt = act.where_lt
    where_le = act.where_le
    negative_abs = act.negative_abs
    zero = act.number(0)
    half = act.number(0.5)
    one = act.one
    two = act.number(2)
    atanh_series = _series(jit, tuple(act.number(1 / (2 * n + 1)) for n in range(_ATANH_TERMS)))

    @jit
    def expm1_of_negative(a):
        t = tanh(a * half)
        return two * t / (one - t)

    def of(value: Callable, slope: Callable) -> tuple[Callable, Callable]:
        return jit(value), jit(slope)

    def hard_sigmoid(a, alpha, beta):
        y = alpha * a + beta
        return where_lt(y, zero, zero, where_lt(one, y, one, y))

    def hard_sigmoid_slope(y, alpha, beta):
        return where_le(y, zero, zero, where_le(one, y, zero, alpha))

    def softplus(a, alpha, beta):
        s = sigmoid(negative_abs(a))
        s = s / (two - s)  # e^-|a| / (2 + e^-|a|); log(1 + e^-|a|) = 2 atanh(s)
        return where_le(a, zero, zero, a) + two * s * atanh_series(s * s)

    def softplus_slope(y, alpha, beta):
        t = tanh(y * half)
        return two * t / (one + t)

    def softsign_slope(y, alpha, beta):
        left = one + negative_abs(y)
        return left * left

    return {
        "Relu": of(
            lambda a, alpha, beta: where_le(a, zero, zero, a), lambda y, alpha, beta: where_le(y, zero, zero, one)
        ),
        "Tanh": of(lambda a, alpha, beta: tanh(a), lambda y, alpha, beta: one - y * y),
        "Sigmoid": of(lambda a, alpha, beta: sigmoid(a), lambda y, alpha, beta: y * (one - y)),
        "Affine": of(lambda a, alpha, beta: alpha * a + beta, lambda y, alpha, beta: alpha),
        "LeakyRelu": of(
            lambda a, alpha, beta: where_le(a, zero, alpha * a, a), lambda y, alpha, beta: where_le(y, zero, alpha, one)
        ),
        "ThresholdedRelu": of(
            lambda a, alpha, beta: where_le(a, alpha, zero, a),
            lambda y, alpha, beta: where_le(zero, negative_abs(y), zero, one),
        ),
        "ScaledTanh": of(
            lambda a, alpha, beta: alpha * tanh(beta * a), lambda y, alpha, beta: beta * (alpha - y * (y / alpha))
        ),
        "HardSigmoid": of(hard_sigmoid, hard_sigmoid_slope),
        "Elu": of(
            lambda a, alpha, beta: where_le(a, zero, alpha * expm1_of_negative(a), a),
            lambda y, alpha, beta: where_le(y, zero, y + alpha, one),
        ),
        "Softsign": of(lambda a, alpha, beta: a / (one - negative_abs(a)), softsign_slope),
        "Softplus": of(softplus, softplus_slope),
    }  # fmt: skip


def _series(jit: Any, coefficients: tuple[float, ...]) -> Callable:
    """polynomial(x), lowest power first, by Horner's rule: one compiled function per step."""
    last = coefficients[-1]
    if len(coefficients) == 1:
        return jit(lambda x: last)
    rest = _series(jit, coefficients[1:])
    first = coefficients[0]
    return jit(lambda x: first + x * rest(x))


def roles(jit: Any, act: Any, cell: Cell) -> SimpleNamespace:
    """The roles of a cell with options, and `prepared`.

    f, g, h      each: value(a, k) -> y; and where backward needs it slope(y, k)
                 f and g too: gate(a, k) -> (y, what is saved); opened(saved, k) -> (y, slope)
    prepared(k)  k, with what the roles need
    """
    names = cell.constants
    made = curves(jit, act)
    limits = [role for role in ROLES[: len(activations_of(cell.name, cell.options))] if role != "h"]
    found: dict[str, Any] = {}
    prepared = jit(lambda k: k)
    for role, name in zip(ROLES, activations_of(cell.name, cell.options), strict=False):
        value, slope = made[name]
        alpha = constant_of(jit, act, names, f"alpha_{role}")
        beta = constant_of(jit, act, names, f"beta_{role}")
        found[role] = _role(jit, act, value, slope, alpha, beta)
    if cell.options.clip:
        clip = constant_of(jit, act, names, "clip")
        for n, role in enumerate(limits):
            found[role] = _limited(jit, act, found[role], clip, len(names) + 2 * n)
            prepared = _prepared(jit, prepared, found[role].ends)
    return SimpleNamespace(**found, prepared=prepared)


def constant_of(jit: Any, act: Any, names: tuple[str, ...], name: str) -> Callable:
    """of(k): the constant of this name, or 1 if the cell has none."""
    one = act.one
    if name not in names:
        return jit(lambda k: one)
    at = names.index(name)
    return jit(lambda k: k[at])


def _role(jit: Any, act: Any, value_of: Any, slope_of: Any, alpha: Any, beta: Any) -> SimpleNamespace:
    @jit
    def value(a, k):
        return value_of(a, alpha(k), beta(k))

    @jit
    def slope(y, k):
        return slope_of(y, alpha(k), beta(k))

    @jit
    def gate(a, k):
        y = value(a, k)
        return y, y

    @jit
    def opened(saved, k):
        return saved, slope(saved, k)

    return SimpleNamespace(value=value, slope=slope, gate=gate, opened=opened)


def _limited(jit: Any, act: Any, role: SimpleNamespace, clip: Any, first: int) -> SimpleNamespace:
    """A role behind the limit. act(clip) and act(-clip) are at k[first] and k[first + 1]."""
    where_lt = act.where_lt
    where_le = act.where_le
    negative_abs = act.negative_abs
    zero = act.number(0)
    infinity = act.number(inf)
    value, slope = role.value, role.slope
    second = first + 1

    @jit
    def gate(a, k):
        most = clip(k)
        y = value(where_lt(most, a, most, where_lt(a, -most, -most, a)), k)
        return y, where_lt(most, a, infinity, where_lt(a, -most, -infinity, y))

    @jit
    def opened(saved, k):
        beyond = negative_abs(saved)
        y = where_le(beyond, -infinity, where_lt(zero, saved, k[first], k[second]), saved)
        return y, where_le(beyond, -infinity, zero, slope(y, k))

    @jit
    def ends(k):
        most = clip(k)
        return value(most, k), value(-most, k)

    return SimpleNamespace(value=value, slope=slope, gate=gate, opened=opened, ends=ends)


def _prepared(jit: Any, before: Any, ends: Any) -> Callable:
    @jit
    def prepared(k):
        k = before(k)
        high, low = ends(k)
        return (*k, high, low)

    return prepared
