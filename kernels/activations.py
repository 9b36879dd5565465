"""sigmoid and tanh on vectors, from one exponential. Branch-free; right at NaN, infinities and zero.

Both write exp(a) = 2^k e^r with k = round(a / ln 2) and |r| <= ln2 / 2 (Cody and Waite), and p(r) = e^r - 1 as a
polynomial, so that exp(a) = 2^k (1 + p) and exp(a) - 1 = 2^k p + (2^k - 1) without cancellation near zero:

    sigmoid(x) = 1 / (1 + exp(-x))          tanh(x) = m / (m + 2),  m = exp(2x) - 1

float32: the polynomial of Cephes' expf (Moshier), of degree 7. float64: Taylor to degree 13, whose first dropped
term is below 1e-17 of p. Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits, from which
2^k is made.
"""

from __future__ import annotations

from functools import cache
from math import factorial
from types import SimpleNamespace
from typing import Any

from rnnkit.kernels.jit import inner
from rnnkit.kernels.vector import vectors

# ln2 = HIGH + LOW, HIGH short enough that k * HIGH is exact. `low`, `high` bound exp's argument: 2^k stays a
# normal number below, and above becomes infinity, whose reciprocal is sigmoid's 0. tanh is 1 to the last bit from
# `flat` on.
_TABLE: dict[str, dict[str, Any]] = {
    "float32": {
        "round": 1.5 * 2**23,
        "ln2_high": 0.693359375,
        "ln2_low": -2.12194440e-4,
        "low": -87.0,
        "high": 89.0,
        "flat": 10.0,
        "poly": (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
    },
    "float64": {
        "round": 1.5 * 2**52,
        "ln2_high": 6.93147180369123816490e-01,
        "ln2_low": 1.90821492927058770002e-10,
        "low": -708.0,
        "high": 710.0,
        "flat": 20.0,
        "poly": tuple(1 / factorial(k) for k in range(13, 1, -1)),
    },
}
_LOG2_E = 1.4426950408889634


@cache
def activations(dtype: str) -> SimpleNamespace:
    """sigmoid(a), tanh(a), relu(a), passed(h, dh), the gradient of relu, on Vecs of `dtype`; and one, the number."""
    v, row = vectors(dtype), _TABLE[dtype]
    magic, ln2_high, ln2_low, coefficients = row["round"], row["ln2_high"], row["ln2_low"], row["poly"]
    clamp_exp, clamp_tanh = v.clamp(row["low"], row["high"]), v.clamp(-2 * row["flat"], 2 * row["flat"])
    power_of_two = v.power_of_two
    polynomial = v.polynomial(coefficients)

    @inner
    def exp_parts(a):
        """(2^k, e^r - 1)."""
        t = a * _LOG2_E + magic
        k = t - magic
        r = (a - k * ln2_high) - k * ln2_low
        return power_of_two(t), r + (r * r) * polynomial(r)

    @inner
    def sigmoid(x):
        scale, p = exp_parts(clamp_exp(-x))
        return 1.0 / (1.0 + scale * (1.0 + p))

    @inner
    def tanh(x):
        scale, p = exp_parts(clamp_tanh(x + x))
        m = scale * p + (scale - 1.0)
        return m / (m + 2.0)

    return SimpleNamespace(sigmoid=sigmoid, tanh=tanh, relu=v.relu, passed=v.passed, one=1.0)
