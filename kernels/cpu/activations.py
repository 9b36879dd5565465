"""sigmoid and tanh on vectors, from tanh of a small number. Branch-free; right at NaN, infinities and subnormals.

exp(a) = 2^k e^r with k = round(a / ln 2) and |r| <= ln2 / 2, and with h = tanh(r / 2), e^r = (1 + h) / (1 - h). Both
functions end in a division anyway, so the fraction costs none, and h is odd and small: r times a polynomial in r^2 of
2 coefficients (float32) or 6 (float64), where e^r itself would take 5 or 10. E = 2^k:

    sigmoid(x) = (1 - h) / ((1 - h) + E (1 + h))            a = -x
    tanh|x|    = ((1 - E) - h (1 + E)) / ((1 + E) - h (1 - E))      a = -2|x|: tanh's addition theorem; -h where E = 1

sigmoid's fraction is scaled by 2^-64, so that E reaches 2^150 and results that are subnormal come out rounded.

Error in ulp, over all 2^32 float32 values and 20 million float64 (`python -m bench.activation_error --all`, AVX-512):

    sigmoid, float32    at most 2.56    98.93% within 0.5, 99.82% within 1, 99.999% within 2
    tanh, float32       at most 2.54    98.54% within 0.5, 99.69% within 1, 99.998% within 2
    sigmoid, float64    at most 2.46    tanh, float64    at most 2.59

Near zero (|x| < 0.17) at most 1.34 in float32, 0.64 in float64. What is left comes from rounding above and below the
line, 1 ulp each where both are just above 1, and half an ulp in dividing.

tanh is odd to the bit, tanh(x) = x where x is tiny or subnormal, tanh(-0) = -0, |tanh| <= 1, 0 <= sigmoid <= 1; at the
infinities 1, -1 and 0; NaN stays NaN. sigmoid's subnormal results (x below -87.3, or -708.4) are rounded like others,
and 0 follows from where the exact value rounds to it. Neither is monotone to the bit: a result may lie up to 2 ulp
(float64: 3) below that of a smaller x nearby.
"""

from __future__ import annotations

from functools import cache
from math import log
from types import SimpleNamespace
from typing import Any

from rnnkit.kernels.cpu.elementwise import elementwise
from rnnkit.kernels.cpu.jit import inner

# round: added to a number, it leaves that number's integer in the low bits, plus the exponent's bias, which makes them
# the exponent of 2^k. ln2 = HIGH + LOW, HIGH short enough that k * HIGH is exact. tanh(r / 2) = r/2 + (r/2)^3 q(r^2/4),
# q of least relative error (Remez): 5.5e-8, 4.1e-18. sigmoid is 0 from `low` down, tanh -1 from `flat` down.
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
_LOG2_E, _LN2 = 1 / log(2), log(2)
_ONE_FROM = 40.0  # sigmoid is 1 to the last bit from here on, in both dtypes
_DOWN = -64


@cache
def activations(dtype: str) -> SimpleNamespace:
    """sigmoid(a), tanh(a), relu(a), passed(h, dh), the gradient of relu, on Vecs of `dtype`; and one, the number."""
    of, row = elementwise(dtype), _TABLE[dtype]
    power_of_two, scaled, negative, signed_as = of.power_of_two, of.scaled, of.negative, of.signed_as
    above_low, below_one, above_flat = of.at_least(row["low"]), of.at_most(_ONE_FROM), of.at_least(row["flat"])
    (ln2_high, ln2_low), magic, q = row["ln2"], row["round"], of.polynomial(row["q"])
    magic_down = magic + _DOWN
    # 2 tanh(r / 2) = r + r^3 q(r^2 / 4) / 4, so that r need not be halved: exact, the factors are powers of two.
    q_of_twice = of.polynomial(tuple(c / 4 ** (len(row["q"]) - n) for n, c in enumerate(row["q"])))

    @inner
    def sigmoid(x):
        x = below_one(above_low(x))
        t = x * -_LOG2_E + magic_down
        k = t - magic_down
        r = (x + k * ln2_high) + k * ln2_low  # of x, not of -x: the signs of h turn
        square = r * r
        h = r + r * square * q_of_twice(square)
        top = scaled(2.0 + h, _DOWN)
        return top / (top + power_of_two(t) * (2.0 - h))

    @inner
    def tanh(x):
        a = above_flat(negative(x))
        t = a * (2 * _LOG2_E) + magic
        y = a - (t - magic) * (_LN2 / 2)
        square = y * y
        h = y + y * square * q(square)
        scale = power_of_two(t)
        less, more = 1.0 - scale, 1.0 + scale
        return signed_as((less - h * more) / (more - h * less), x)

    return SimpleNamespace(sigmoid=sigmoid, tanh=tanh, relu=of.relu, passed=of.passed, one=1.0)
