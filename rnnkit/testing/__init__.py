"""Cases, inputs and the comparison with the float64 oracle, for tests, benchmarks and users.

    for case in CASES:
        parity("numba", case, "float32")

`parity` runs forward and backward of a case on a backend, and on the NumPy oracle in float64. It returns the worst
error of every output and gradient as a share of its tolerance in DTYPES: at most 1 passes. `rnnkit.parity` runs tables
of cases, and layers of users.
"""

from rnnkit.testing.cases import CASES, LARGE_CASES, OPTION_CASES, Case
from rnnkit.testing.comparison import Errors, assert_close, error_ratio, errors, growth_of, kind_of
from rnnkit.testing.inputs import Inputs, make_inputs, widened
from rnnkit.testing.running import parity, precision_of, run

__all__ = [
    "CASES",
    "LARGE_CASES",
    "OPTION_CASES",
    "Case",
    "Errors",
    "Inputs",
    "assert_close",
    "error_ratio",
    "errors",
    "growth_of",
    "kind_of",
    "make_inputs",
    "parity",
    "precision_of",
    "run",
    "widened",
]
