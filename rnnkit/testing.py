"""What tests, benchmarks and users share: cases, inputs, and the comparison with the float64 oracle.

    for case in CASES: parity("numba", case, "float32")

`parity` runs forward and backward of one case on a backend and on the NumPy oracle in float64, and gives for every
output and gradient its worst error as a share of its tolerance in DTYPES: at most 1 passes. `rnnkit.parity` does so
for whole tables of cases and for layers of users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rnnkit.core.cells import CELLS, Array, State, Weights
from rnnkit.core.devices import to_device, to_numpy
from rnnkit.core.dtypes import DTYPES, resolve_dtype
from rnnkit.functional import direction as ops


@dataclass(frozen=True)
class Case:
    """One layer-direction to check: sizes, and which features are on."""

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
        # Sizes on both sides of vector widths and tiles, one row, one step, one unit.
        for T, B, I, H in (
            (1, 1, 1, 1),
            (3, 1, 7, 17),
            (4, 7, 5, 16),
            (3, 13, 9, 33),
            (2, 5, 3, 70),
            (2, 25, 2, 64),
        ):
            cases.append(Case(cell.name, T, B, I, H, reverse=T == 3, ragged=B == 7))
        cases.append(Case(cell.name, 6, 7, 3, 9, reverse=True, ragged=True))  # rows of many lengths between 0 and T
        if cell.projects:
            for reverse in (False, True):
                cases.append(Case(cell.name, P=4, reverse=reverse, ragged=reverse))
            cases.append(Case(cell.name, T=3, B=7, I=5, H=35, P=18))
    return tuple(cases)


CASES: tuple[Case, ...] = _cases()

# For GPUs: several chunks of steps, several thread blocks per row, sizes that are multiples of no tile. Without relu:
# its gradient jumps where rounding changes the sign of a pre-activation, and among so many numbers one sign changes.
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

WIDE_TANH = 100  # the largest H at which make_inputs leaves the recurrent weights of rnn_tanh as they are drawn


@dataclass
class Inputs:
    """What one forward and backward take: rows that differ, random weights, no zero states or state gradients."""

    x: Array
    state0: State
    weights: Weights
    lengths: np.ndarray | None
    dy: Array
    dstate_n: State


def make_inputs(case: Case, dtype: Any = "float64", seed: int = 0, device: str = "cpu") -> Inputs:
    """Inputs of a case, the same numbers in every dtype up to its rounding. Padding is NaN: nothing may read it.

    float32 and float64 hold equal numbers.
    """
    rng = np.random.default_rng([seed, case.T, case.B, case.I, case.H])
    storage = resolve_dtype(dtype).storage
    cell = CELLS[case.cell]
    GH, R = cell.n_gates * case.H, case.P or case.H

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        # Through float32, so that a float64 run and a float32 run start from equal numbers.
        return (scale * rng.standard_normal(shape)).astype(np.float32).astype(storage)

    k = case.H**-0.5
    # The recurrent matrix has a spectral radius near 1. In a wide tanh layer, which has no gates, the rounding error of
    # one step would then not fade over the next steps, and its growth would hide the error of a kernel.
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
    x, dy = draw(case.T, case.B, case.I), draw(case.T, case.B, R)
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
    """The same numbers in float64 on the host: what the oracle is given."""

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
    """Forward and backward of a case: every output and gradient by name, on the host."""
    cell = CELLS[case.cell]
    y, state_n, saved = ops.forward(
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
    dx, dstate0, dweights = ops.backward(saved, inputs.dy, inputs.dstate_n, inputs.weights)
    found = {"y": y, "dx": dx}
    for name, n, d in zip(cell.states, state_n, dstate0, strict=True):
        found |= {f"{name}_n": n, f"d{name}0": d}
    found |= {f"d{name}": d for name, d in zip(Weights._fields, dweights, strict=True) if d is not None}
    return {name: to_numpy(a) for name, a in found.items()}


class Errors(NamedTuple):
    """Errors of one array as shares of the bound that DTYPES gives each element: the worst, and the root mean square.

    At most 1 passes. (0, 0) for an empty array.
    """

    worst: float
    rms: float


def growth_of(case: Case, dtype: Any) -> float:
    """The factor of the tolerances of `dtype` for a case with the numbers of `make_inputs`: see
    rnnkit/core/dtypes.py."""
    return resolve_dtype(dtype).growth(case.I / case.H**0.5)


def errors(got: Any, want: Any, dtype: Any, kind: str = "forward", growth: float = 1.0) -> Errors:
    """|got - want| / bound over all elements; the bound is that of `dtype` for `kind`, "forward" or "backward".

    got, want: arrays of one shape and of any dtype; `want` is the oracle's. An element's bound is
    growth * (rtol * |want| + atol * max(1, max|want|)), with the rtol and atol of the dtype's row in DTYPES.
    rms is sqrt(mean((|got - want| / bound)**2)). Both are infinite where one is NaN and the other is not.
    Raises AssertionError where the shapes differ.
    """
    got, want = to_numpy(got), to_numpy(want)
    if got.shape != want.shape:
        raise AssertionError(f"shape {got.shape} is not {want.shape}")
    if not got.size:
        return Errors(0.0, 0.0)
    tolerance = getattr(DTYPES[resolve_dtype(dtype).name], kind)
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.abs(want[np.isfinite(want)])
    scale = max(1.0, float(finite.max())) if finite.size else 1.0
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    bound = growth * (tolerance.rtol * np.abs(want) + tolerance.atol * scale)
    with np.errstate(invalid="ignore", over="ignore"):
        shares = np.where(same, 0.0, np.abs(got - want) / bound)
    worst = float(np.where(np.isnan(shares), np.inf, shares).max())
    if worst == 0 or not np.isfinite(worst):
        return Errors(worst, worst)
    # Relative to the worst share, so that no square overflows or underflows to zero.
    return Errors(worst, worst * float(np.sqrt(np.mean(np.square(shares / worst)))))


def error_ratio(got: Any, want: Any, dtype: Any, kind: str = "forward") -> float:
    """The worst share of `errors`: at most 1 passes, infinite where one is NaN and the other is not."""
    return errors(got, want, dtype, kind).worst


def precision_of(dtype: Any) -> str | None:
    """What `ops.forward` takes as `precision` to compute in `dtype`: None where the arrays' dtype says all."""
    row = resolve_dtype(dtype)
    return None if row.name == row.stored else row.name


def kind_of(name: str) -> str:
    """The tolerance of an output or gradient of `run`, by its name: "forward" or "backward"."""
    return "forward" if name in ("y", "h_n", "c_n") else "backward"


def assert_close(name: str, got: Any, want: Any, dtype: Any, kind: str = "forward") -> None:
    """Raises AssertionError where `got` is further from `want` than DTYPES allows for `dtype` and `kind`."""
    ratio = error_ratio(got, want, dtype, kind)
    if not ratio <= 1:
        worst = float(np.nanmax(np.abs(to_numpy(got).astype(np.float64) - to_numpy(want).astype(np.float64))))
        raise AssertionError(
            f"{name}: {ratio:.3g} times the {kind} tolerance of {resolve_dtype(dtype).name} (worst {worst:.3g})"
        )


def parity(backend: str, case: Case, dtype: Any = "float32", seed: int = 0, device: str = "cpu") -> dict[str, float]:
    """Worst error of every output and gradient of a case on `backend`, as a share of its tolerance."""
    inputs = make_inputs(case, dtype, seed, device)
    got = run(case, inputs, backend, precision_of(dtype))
    want = run(case, widened(inputs), "numpy")
    growth = growth_of(case, dtype)
    return {name: errors(got[name], want[name], dtype, kind_of(name), growth).worst for name in want}
