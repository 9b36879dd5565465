"""sigmoid and tanh on vectors, from tanh of a small argument. Branch-free; correct at NaN, infinities and subnormals.

exp(a) = 2^k e^r with k = round(a / ln 2) and |r| <= ln2 / 2. With h = tanh(r / 2), e^r = (1 + h) / (1 - h). Both
functions end in a division anyway, so this fraction needs no second one. h is odd and small: r times a polynomial in
r^2 with 2 coefficients (float32) or 6 (float64), where e^r itself would need 5 or 10. With E = 2^k:

    sigmoid(x) = (1 - h) / ((1 - h) + E (1 + h))                    a = -x
    tanh|x|    = ((1 - E) - h (1 + E)) / ((1 + E) - h (1 - E))      a = -2|x|; by tanh's addition theorem; -h if E = 1

sigmoid's fraction is scaled by 2^-64, so that E can reach 2^150 and subnormal results are rounded correctly.

Errors in ulp, over all 2^32 float32 values and 20 million float64 values (`python -m bench.activation_error --all`,
AVX-512):

    sigmoid, float32    at most 2.56    98.93% within 0.5, 99.82% within 1, 99.999% within 2
    tanh, float32       at most 2.54    98.54% within 0.5, 99.69% within 1, 99.998% within 2
    sigmoid, float64    at most 2.46    tanh, float64    at most 2.59

Near zero (|x| < 0.17) the error is at most 1.34 in float32 and 0.64 in float64. Its sources are the rounding of the
numerator and the denominator, 1 ulp each where both are just above 1, and half an ulp of the division.

tanh is odd in every bit, tanh(x) = x for tiny and subnormal x, tanh(-0) = -0, |tanh| <= 1, 0 <= sigmoid <= 1. The
values at the infinities are 1, -1 and 0, and NaN stays NaN. sigmoid's subnormal results (x below -87.3, or -708.4) are
rounded as others are, and it is 0 from where the exact value rounds to 0. Neither function is monotone in every bit: a
result may be up to 2 ulp (float64: 3) below that of a slightly smaller x.
"""

from __future__ import annotations

from functools import cache
from math import log
from types import SimpleNamespace
from typing import Any

from rnnkit.kernels.cpu.elementwise import elementwise
from rnnkit.kernels.cpu.jit import inner

# round   added to a number, it leaves the rounded integer plus the exponent's bias in the low bits: the exponent of 2^k
# ln2     a high and a low part of ln 2; the high part is short enough that k * high is exact
# low     sigmoid is 0 from here downwards
# flat    tanh is -1 from here downwards
# q       tanh(r / 2) = r/2 + (r/2)^3 q(r^2/4), with the least relative error (Remez): 5.5e-8 and 4.1e-18
_TABLE: dict[str, dict[str, Any]] = {
    "float32": {
        "round": 1.5 * 2**23 + 127,
        "ln2": (0.693359375, -2.12194440054690583e-4),
        "low": -105.0,
        "flat": -10.0,
        "q": (0.13110794216925478, -0.33331276261387518),
    },
    "float64": {
        "round": 1.5 * 2**52 + 1023,
        "ln2": (6.93147180369123816490e-01, 1.90821492927058770002e-10),
        "low": -746.0,
        "flat": -20.0,
        "q": (
            3.4448880645058519e-3,
            -8.8573132157110627e-3,
            2.1869370860921333e-2,
            -5.3968252784197497e-2,
            1.3333333332785171e-1,
            -3.3333333333332488e-1,
        ),
    },
}
_LOG2_E = 1 / log(2)
_LN2 = log(2)
_ONE_FROM = 40.0  # sigmoid is exactly 1 from here upwards, in both dtypes
_SIGMOID_SCALE = -64  # exponent of the scale of sigmoid's fraction


@cache
def activations(dtype: str) -> SimpleNamespace:
    """sigmoid(a), tanh(a), relu(a) and relu's gradient passed(h, dh), on Vecs of `dtype`; and `one`, the number 1.

    For cells with options: where_lt, where_le, negative_abs of `elementwise`, and number(value), a number of the dtype.
    """
    of = elementwise(dtype)
    row = _TABLE[dtype]
    power_of_two = of.power_of_two
    scale_exponent = of.scale_exponent
    negative_abs = of.negative_abs
    copysign = of.copysign
    above_low = of.clamp_min(row["low"])
    below_one = of.clamp_max(_ONE_FROM)
    above_flat = of.clamp_min(row["flat"])
    ln2_high, ln2_low = row["ln2"]
    magic = row["round"]
    scaled_magic = magic + _SIGMOID_SCALE
    q = of.polynomial(row["q"])
    # 2 tanh(r / 2) = r + r^3 q(r^2 / 4) / 4 saves halving r. The factors are powers of two, so nothing is rounded.
    q_of_twice = of.polynomial(tuple(c / 4 ** (len(row["q"]) - n) for n, c in enumerate(row["q"])))

    @inner
    def sigmoid(x):
        x = below_one(above_low(x))
        t = x * -_LOG2_E + scaled_magic
        k = t - scaled_magic
        r = (x + k * ln2_high) + k * ln2_low  # the remainder of x, not of -x, so h has the opposite sign
        square = r * r
        h = r + r * square * q_of_twice(square)
        top = scale_exponent(2.0 + h, _SIGMOID_SCALE)
        return top / (top + power_of_two(t) * (2.0 - h))

    @inner
    def tanh(x):
        a = above_flat(negative_abs(x))
        t = a * (2 * _LOG2_E) + magic
        y = a - (t - magic) * (_LN2 / 2)
        square = y * y
        h = y + y * square * q(square)
        scale = power_of_two(t)
        less = 1.0 - scale
        more = 1.0 + scale
        return copysign((less - h * more) / (more - h * less), x)

    return SimpleNamespace(
        sigmoid=sigmoid,
        tanh=tanh,
        relu=of.relu,
        passed=of.passed,
        one=1.0,
        where_lt=of.where_lt,
        where_le=of.where_le,
        negative_abs=of.negative_abs,
        number=float,
    )
