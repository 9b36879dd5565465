"""Cases, inputs and the comparison with the float64 oracle, for tests, benchmarks and users.

    for case in CASES:
        parity("numba", case, "float32")

`parity` runs forward and backward of a case on a backend, and on the NumPy oracle in float64. It returns the worst
error of every output and gradient as a share of its tolerance in DTYPES: at most 1 passes. `rnnkit.parity` runs tables
of cases, and layers of users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rnnkit.core.cells import CELLS, Array, State, Weights
from rnnkit.core.devices import to_device, to_numpy
from rnnkit.core.dtypes import DTYPES, resolve_dtype
from rnnkit.functional import direction


@dataclass(frozen=True)
class Case:
    """One layer in one direction to check: its cell, its sizes and its options.

    Attributes:
        cell: a name in `rnnkit.core.cells.CELLS`.
        T: number of steps.
        B: number of rows of the batch.
        I: number of input features.
        H: number of features of the state.
        P: number of features of the projection; 0 for none.
        bias: whether the cell has biases.
        reverse: whether it runs from each row's last step to the first.
        ragged: whether the rows have different lengths.

    Examples:
        >>> from rnnkit.testing import Case
        >>> str(Case("lstm", T=5, B=3, I=4, H=6, ragged=True))
        'lstm-T5-B3-I4-H6-ragged'
    """

    cell: str
    T: int = 5
    B: int = 3
    I: int = 4
    H: int = 6
    P: int = 0
    bias: bool = True
    reverse: bool = False
    ragged: bool = False

    def __str__(self) -> str:
        flags = [f for f in ("reverse", "ragged") if getattr(self, f)]
        flags += [] if self.bias else ["nobias"]
        sizes = f"T{self.T}-B{self.B}-I{self.I}-H{self.H}" + (f"-P{self.P}" if self.P else "")
        return "-".join([self.cell, sizes, *flags])


def _cases() -> tuple[Case, ...]:
    cases = []
    for cell in CELLS.values():
        for reverse in (False, True):
            for ragged in (False, True):
                cases.append(Case(cell.name, reverse=reverse, ragged=ragged))
        cases.append(Case(cell.name, bias=False, T=3, B=2, I=3, H=5))
        # Sizes below and above vector widths and tiles; one row, one step, one unit.
        for T, B, I, H in (
            (1, 1, 1, 1),
            (3, 1, 7, 17),
            (4, 7, 5, 16),
            (3, 13, 9, 33),
            (2, 5, 3, 70),
            (2, 25, 2, 64),
        ):
            cases.append(Case(cell.name, T, B, I, H, reverse=T == 3, ragged=B == 7))
        cases.append(Case(cell.name, 6, 7, 3, 9, reverse=True, ragged=True))  # many different lengths in [0, T]
        if cell.projects:
            for reverse in (False, True):
                cases.append(Case(cell.name, P=4, reverse=reverse, ragged=reverse))
            cases.append(Case(cell.name, T=3, B=7, I=5, H=35, P=18))
    return tuple(cases)


CASES: tuple[Case, ...] = _cases()

# For GPUs: several chunks of steps, several thread blocks per row, sizes that are not multiples of a tile. The relu RNN
# is excluded: its gradient jumps if rounding changes the sign of a pre-activation, and at these sizes one sign does.
LARGE_CASES: tuple[Case, ...] = tuple(
    Case(cell, T, B, I, H, reverse=reverse, ragged=ragged)
    for cell in CELLS
    if cell != "rnn_relu"
    for T, B, I, H, reverse, ragged in (
        (64, 64, 256, 1024, False, False),
        (256, 8, 64, 128, True, False),
        (100, 33, 100, 250, True, True),
        (256, 16, 128, 512, False, True),
    )
)

WIDE_TANH = 100  # for a larger H, make_inputs halves the recurrent weights of rnn_tanh


@dataclass
class Inputs:
    """The arrays of one forward and backward pass: random numbers, different in every row and never all zero.

    Attributes:
        x: (T, B, I).
        state0: initial state, (h0,) or (h0, c0), with h0 (B, R) and c0 (B, H); R is P with a projection, else H.
        weights: a `rnnkit.core.cells.Weights`.
        lengths: number of steps of each row, (B,), or None.
        dy: gradient of y, (T, B, R).
        dstate_n: gradient of the final state, with the shapes of state0.

    Examples:
        >>> from rnnkit.testing import Case, make_inputs
        >>> make_inputs(Case("gru")).x.shape
        (5, 3, 4)
    """

    x: Array
    state0: State
    weights: Weights
    lengths: np.ndarray | None
    dy: Array
    dstate_n: State


def make_inputs(case: Case, dtype: Any = "float64", seed: int = 0, device: str = "cpu") -> Inputs:
    """Draws the inputs of a case: the same numbers in every dtype, up to its rounding.

    Padding of x and dy is NaN, because nothing may read it. float32 and float64 inputs hold equal numbers.

    Args:
        case: the case.
        dtype: a name in DTYPES or a NumPy dtype.
        seed: seed of the random numbers.
        device: "cpu" or "cuda:<index>".

    Returns:
        An `Inputs` on that device.

    Raises:
        ValueError: the dtype is unknown.

    Examples:
        >>> from rnnkit.testing import Case, make_inputs
        >>> make_inputs(Case("lstm"), "float32").weights.w_ih.shape
        (24, 4)
    """
    rng = np.random.default_rng([seed, case.T, case.B, case.I, case.H])
    storage = resolve_dtype(dtype).storage
    cell = CELLS[case.cell]
    GH = cell.n_gates * case.H
    R = case.P or case.H

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        # Rounded to float32, so that a float64 run and a float32 run start from equal numbers.
        return (scale * rng.standard_normal(shape)).astype(np.float32).astype(storage)

    k = case.H**-0.5
    # The recurrent matrix has a spectral radius near 1. In a wide tanh layer, which has no gates, a rounding error
    # would then not decay over the following steps, and would hide the error of a kernel. So its weights are halved.
    recurrent = 0.5 * k if case.cell == "rnn_tanh" and case.H > WIDE_TANH else k
    biases = (draw(GH, scale=0.5), draw(GH, scale=0.5)) if case.bias else (None, None)
    weights = Weights(
        draw(GH, case.I, scale=k),
        draw(GH, R, scale=recurrent),
        biases[0],
        biases[1],
        draw(case.P, case.H, scale=k) if case.P else None,
    )
    widths = (R, case.H)[: len(cell.states)]
    state0 = tuple(draw(case.B, w, scale=0.5) for w in widths)
    dstate_n = tuple(draw(case.B, w) for w in widths)
    x = draw(case.T, case.B, case.I)
    dy = draw(case.T, case.B, R)
    lengths = None
    if case.ragged:
        lengths = rng.integers(0, case.T + 1, case.B)
        lengths[0] = case.T
        if case.B > 1:
            lengths[1] = 0
        x[np.arange(case.T)[:, None] >= lengths] = np.nan
        dy[np.arange(case.T)[:, None] >= lengths] = np.nan

    def put(a: Any) -> Any:
        return None if a is None else to_device(a, device)

    return Inputs(
        put(x),
        tuple(map(put, state0)),
        Weights(*map(put, weights)),
        lengths,
        put(dy),
        tuple(map(put, dstate_n)),
    )


def widened(inputs: Inputs) -> Inputs:
    """Converts inputs to float64 on the host, as the oracle takes them.

    Args:
        inputs: inputs in any dtype, on any device.

    Returns:
        An `Inputs` with the same numbers in float64, in NumPy arrays.

    Examples:
        >>> from rnnkit.testing import Case, make_inputs, widened
        >>> widened(make_inputs(Case("gru"), "float32")).x.dtype
        dtype('float64')
    """

    def wide(a: Any) -> Any:
        return None if a is None else to_numpy(a).astype(np.float64)

    def wide_all(arrays: Any) -> Any:
        return tuple(map(wide, arrays))

    return Inputs(
        wide(inputs.x),
        wide_all(inputs.state0),
        Weights(*wide_all(inputs.weights)),
        inputs.lengths,
        wide(inputs.dy),
        wide_all(inputs.dstate_n),
    )


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
    cell = CELLS[case.cell]
    y, state_n, saved = direction.forward(
        case.cell,
        inputs.x,
        inputs.state0,
        inputs.weights,
        lengths=inputs.lengths,
        reverse=case.reverse,
        backend=backend,
        precision=precision,
    )
    assert saved is not None
    dx, dstate0, dweights = direction.backward(saved, inputs.dy, inputs.dstate_n, inputs.weights)
    arrays = {"y": y, "dx": dx}
    for name, n, d in zip(cell.states, state_n, dstate0, strict=True):
        arrays |= {f"{name}_n": n, f"d{name}0": d}
    arrays |= {f"d{name}": d for name, d in zip(Weights._fields, dweights, strict=True) if d is not None}
    return {name: to_numpy(a) for name, a in arrays.items()}


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
    return "forward" if name in ("y", "h_n", "c_n") else "backward"


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
