"""Parity: compares every cell, dtype, shape, schedule and device of a machine with the float64 oracle.

    python -m rnnkit.parity                    # everything that can run here; the exit status is 0 if all pass

    for check in plan(cells=["lstm"]).checks:  # the same from Python
        print(check, run(check).status)
    outcome = check_layer(layer, x)            # a layer with its own weights, on its own device

A check runs forward and backward of one case on one backend. It compares every output and gradient with those of the
oracle, which starts from the same numbers, and repeats the call, because the library promises equal bits in every call.
Errors are shares of the bound that `rnnkit.core.dtypes.DTYPES` gives each element: at most 1 passes. See
docs/parity.md. `rnnkit.parity.pytest_plugin` has a pytest fixture.
"""

from rnnkit.parity.checks import Check, LayerCheck, Plan, plan
from rnnkit.parity.layer import check_layer
from rnnkit.parity.measure import run
from rnnkit.parity.outcome import Outcome

__all__ = ["Check", "LayerCheck", "Outcome", "Plan", "check_layer", "plan", "run"]
