"""Runs of a case: its outputs and gradients, and their errors against the float64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkit.core.cells import Weights, cell_of
from rnnkit.core.devices import to_numpy
from rnnkit.core.dtypes import resolve_dtype
from rnnkit.functional import direction
from rnnkit.testing.cases import Case
from rnnkit.testing.comparison import errors, growth_of, kind_of
from rnnkit.testing.inputs import Inputs, make_inputs, widened


def run(case: Case, inputs: Inputs, backend: str | None, precision: str | None = None) -> dict[str, np.ndarray]:
    """Runs forward and backward of a case.

    Args:
        case: the case.
        inputs: its inputs.
        backend: name of the backend; None for the first that serves the arrays.
        precision: a row of DTYPES that stores the arrays' dtype, such as "tf32"; None for the arrays' own dtype.

    Returns:
        Every output and gradient by name, on the host: "y", "dx", "h_n", "dh0", "dw_ih", ....

    Raises:
        ValueError: the backend or the precision is unknown.

    Examples:
        >>> from rnnkit.testing import Case, make_inputs, run
        >>> case = Case("rnn_tanh")
        >>> sorted(run(case, make_inputs(case), "numpy"))
        ['db_hh', 'db_ih', 'dh0', 'dw_hh', 'dw_ih', 'dx', 'h_n', 'y']
    """
    cell = cell_of(case.cell)
    y, state_n, saved = direction.forward(
        case.cell,
        inputs.x,
        inputs.state0,
        inputs.weights,
        lengths=inputs.lengths,
        reverse=case.reverse,
        backend=backend,
        precision=precision,
        constants=case.constants,
    )
    assert saved is not None
    dx, dstate0, dweights = direction.backward(saved, inputs.dy, inputs.dstate_n, inputs.weights)
    arrays = {"y": y, "dx": dx}
    for name, n, d in zip(cell.states, state_n, dstate0, strict=True):
        arrays |= {f"{name}_n": n, f"d{name}0": d}
    arrays |= {f"d{name}": d for name, d in zip(Weights._fields, dweights, strict=True) if d is not None}
    return {name: to_numpy(a) for name, a in arrays.items()}


def precision_of(dtype: Any) -> str | None:
    """The `precision` argument of `run` for a dtype.

    Args:
        dtype: a name in DTYPES or a NumPy dtype.

    Returns:
        The name of the row if the arrays' dtype does not determine it, else None.

    Examples:
        >>> from rnnkit.testing import precision_of
        >>> precision_of("tf32"), precision_of("float32")
        ('tf32', None)
    """
    row = resolve_dtype(dtype)
    return None if row.name == row.stored else row.name


def parity(backend: str, case: Case, dtype: Any = "float32", seed: int = 0, device: str = "cpu") -> dict[str, float]:
    """Runs a case on a backend and on the float64 oracle.

    Args:
        backend: name of the backend.
        case: the case.
        dtype: a name in DTYPES or a NumPy dtype.
        seed: seed of the random inputs.
        device: "cpu" or "cuda:<index>".

    Returns:
        Name of each output and gradient -> its worst error as a share of its tolerance; at most 1 passes.

    Examples:
        >>> from rnnkit.testing import Case, parity
        >>> all(share <= 1 for share in parity("numpy", Case("lstm"), "float32").values())
        True
    """
    inputs = make_inputs(case, dtype, seed, device)
    got = run(case, inputs, backend, precision_of(dtype))
    want = run(case, widened(inputs), "numpy")
    growth = growth_of(case, dtype)
    return {name: errors(got[name], want[name], dtype, kind_of(name), growth).worst for name in want}
