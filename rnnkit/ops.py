"""Forward and backward of one layer in one direction: the functional form under the layers.

    y, state_n, saved = forward("lstm", x, (h0, c0), weights)
    dx, dstate0, dweights = backward(saved, dy, (dh_n, dc_n), weights)

Pure: what backward needs is in `saved` and nowhere else. The products that do not depend on time (x W_ih^T before the
scan; dW_ih, dW_hh, dW_hr, db and dx after it) are here, once, for every cell and backend; a backend supplies the scan.
Where rows are ragged those products run over the live steps alone, so padding costs nothing and is never read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit import _checks
from rnnkit._device import array_module, device_of
from rnnkit.backends import Choice, ScanGradients, select
from rnnkit.cells import CELLS, Array, Cell, State, Weights
from rnnkit.dtypes import DTYPES

__all__ = ["Saved", "Weights", "backward", "forward"]


class Saved(NamedTuple):
    """What `backward` needs of one forward: the input (by reference), the live steps, and the backend's own part."""

    cell: Cell
    choice: Choice
    x: Array
    live: Array | None
    scan: Any


def forward(
    cell: str,
    x: Array,
    state0: State,
    weights: Weights,
    *,
    lengths: Any = None,
    reverse: bool = False,
    backend: str | None = None,
    keep: bool = True,
) -> tuple[Array, State, Saved | None]:
    """One layer, one direction, whole sequence.

    x (T, B, I); state0 (h0 (B, R), and for LSTM c0 (B, H)), R = P under projection, else H; weights as PyTorch's.
    lengths: row lengths (B,), whole numbers in [0, T]. reverse: from each row's own end to its start.
    Returns y (T, B, R), zero past each row's end, the states at each row's end, and `saved` (None where keep is False).
    Raises ValueError or TypeError naming the argument; RuntimeError where the backend cannot run here.
    """
    row, state0, weights = _check_forward(cell, x, state0, weights)
    T, B, _ = x.shape
    choice = select(device_of(x), x.dtype.name, cell, backend)
    return scan(row, choice, x, state0, weights, _checks.lengths(lengths, T, B), reverse, keep)


def backward(saved: Saved, dy: Array | None, dstate_n: State | None, weights: Weights) -> tuple[Array, State, Weights]:
    """Gradients of one `forward`, on the backend that ran it.

    dy (T, B, R) or None; dstate_n one array a state, each as state0's, or None for zeros. weights as given to forward.
    Returns dx (T, B, I), the gradients of state0, and those of weights (None where the weight is None).
    """
    if saved is None:
        raise ValueError("saved is None: the forward ran with keep=False")
    T, B, _ = saved.x.shape
    weights = Weights(*weights)
    R, H = weights.w_hh.shape[1], weights.w_hh.shape[0] // saved.cell.n_gates
    dtype, device = saved.x.dtype, device_of(saved.x)
    if dy is not None:
        _checks.shaped("dy", dy, (T, B, R), dtype, device, "(T, B, R)")
    if dstate_n is None:
        dstate_n = (None,) * len(saved.cell.states)
    given = tuple(dstate_n) if isinstance(dstate_n, (tuple, list)) else (dstate_n,)
    if len(given) != len(saved.cell.states):
        raise ValueError(f"dstate_n must be {len(saved.cell.states)} arrays, got {len(given)}")
    for name, d, width in zip(saved.cell.states, given, (R, H), strict=False):
        if d is not None:
            _checks.shaped(f"d{name}_n", d, (B, width), dtype, device, "(B, width of the state)")
    return scan_gradients(saved, dy, given, weights)


def scan(
    cell: Cell,
    choice: Choice,
    x: Array,
    state0: State,
    weights: Weights,
    lengths: np.ndarray | None,
    reverse: bool,
    keep: bool,
) -> tuple[Array, State, Saved | None]:
    """`forward` with every argument already checked and the backend already chosen."""
    live = None if lengths is None else live_steps(x, lengths)
    gates_x = _product(x, weights.w_ih, live)
    on_device = None if lengths is None else array_module(x).asarray(lengths)  # type: ignore[union-attr]
    result = choice.backend.scan_forward(cell, gates_x, state0, weights, lengths=on_device, reverse=reverse, keep=keep)
    saved = Saved(cell, choice, x, live, result.saved) if keep else None
    return result.y, result.state_n, saved


def scan_gradients(
    saved: Saved, dy: Array | None, dstate_n: tuple[Array | None, ...], weights: Weights
) -> tuple[Array, State, Weights]:
    """`backward` with every argument already checked; a None among dstate_n stands for zeros."""
    cell, x, live = saved.cell, saved.x, saved.live
    xp: Any = array_module(x)
    T, B, I = x.shape
    H = weights.w_hh.shape[0] // cell.n_gates
    widths = (weights.w_hh.shape[1], H)
    dstate = tuple(
        xp.zeros((B, width), x.dtype) if d is None else d for d, width in zip(dstate_n, widths, strict=False)
    )
    grads = saved.choice.backend.scan_backward(cell, saved.scan, dy, dstate, weights)
    dgates_x = _steps(grads.dgates_x, live)
    dx = _scatter(dgates_x @ weights.w_ih, live, (T, B, I))
    return dx, grads.dstate0, _weight_gradients(cell, grads, dgates_x, _steps(x, live), weights, live)


def _weight_gradients(
    cell: Cell, grads: ScanGradients, dgates_x: Array, x: Array, weights: Weights, live: Array | None
) -> Weights:
    """Each one product over all live steps: dgates_x (N, G*H), x (N, I)."""
    H = weights.w_hh.shape[0] // cell.n_gates
    shared = grads.dgates_h is grads.dgates_x
    dgates_h = dgates_x if shared else _steps(grads.dgates_h, live)
    xp: Any = array_module(x)
    dw_hh = xp.empty_like(weights.w_hh)
    for operand, first, end in cell.products:
        gates = slice(first * H, end * H)
        xp.matmul(dgates_h[:, gates].T, _steps(grads.operands[operand], live), out=dw_hh[gates])
    db_ih = None if weights.b_ih is None else _column_sums(dgates_x)
    db_hh = None
    if weights.b_hh is not None:
        db_hh = db_ih.copy() if shared and db_ih is not None else _column_sums(dgates_h)
    dw_hr = None
    if weights.w_hr is not None:
        dw_hr = _steps(grads.dprojected, live).T @ _steps(grads.m, live)
    return Weights(dgates_x.T @ x, dw_hh, db_ih, db_hh, dw_hr)


def live_steps(x: Array, lengths: np.ndarray) -> Array:
    """Indices into the T*B steps of x, time-major, that are inside their rows."""
    T = x.shape[0]
    live = np.flatnonzero(np.arange(T)[:, None] < lengths[None, :])
    return array_module(x).asarray(live)  # type: ignore[union-attr]


def _steps(a: Array, live: Array | None) -> Array:
    """a (T, B, K) as (N, K): all its steps, or the live ones alone."""
    flat = a.reshape(-1, a.shape[2])
    return flat if live is None else flat[live]


def _scatter(flat: Array, live: Array | None, shape: tuple[int, ...]) -> Array:
    """The inverse of `_steps`, zero where nothing is live."""
    if live is None:
        return flat.reshape(shape)
    full = array_module(flat).zeros((shape[0] * shape[1], shape[2]), flat.dtype)  # type: ignore[union-attr]
    full[live] = flat
    return full.reshape(shape)


def _product(x: Array, w: Array, live: Array | None) -> Array:
    """x (T, B, K) times w^T (K, N), zero where not live."""
    return _scatter(_steps(x, live) @ w.T, live, (*x.shape[:2], w.shape[0]))


def _column_sums(a: Array) -> Array:
    """Sums over rows, as a product with ones: several times faster than a reduction down columns."""
    xp: Any = array_module(a)
    return xp.ones(a.shape[0], a.dtype) @ a


def _check_forward(cell: str, x: Array, state0: State, weights: Weights) -> tuple[Cell, State, Weights]:
    row = CELLS[_checks.one_of("cell", cell, tuple(CELLS))]
    if array_module(x) is None:
        raise TypeError(f"x must be a NumPy or CuPy array, got {type(x).__name__}")
    if x.dtype.name not in DTYPES or not x.dtype.isnative:
        raise TypeError(f"x must have dtype {' or '.join(DTYPES)}, got {x.dtype}")
    dtype, device = x.dtype, device_of(x)
    if x.ndim != 3:
        raise ValueError(f"x must have shape (T, B, I), got {tuple(x.shape)}")
    _, B, I = x.shape
    weights = Weights(*weights)
    _checks.array("w_hh", weights.w_hh, dtype, device)
    if weights.w_hh.ndim != 2 or 0 in weights.w_hh.shape or weights.w_hh.shape[0] % row.n_gates:
        means = f"(G*H, R) with G = {row.n_gates}, H and R at least 1"
        raise ValueError(f"w_hh must have shape {means}, got {tuple(weights.w_hh.shape)}")
    GH = weights.w_hh.shape[0]
    H, R = GH // row.n_gates, weights.w_hh.shape[1]
    _checks.shaped("w_ih", weights.w_ih, (GH, I), dtype, device, "(G*H, I)")
    for name, bias in (("b_ih", weights.b_ih), ("b_hh", weights.b_hh)):
        if bias is not None:
            _checks.shaped(name, bias, (GH,), dtype, device, "(G*H,)")
    if weights.w_hr is not None:
        if not row.projects:
            raise ValueError(f"w_hr must be None for {cell}, which has no projection")
        _checks.shaped("w_hr", weights.w_hr, (R, H), dtype, device, "(P, H)")
    elif R != H:
        raise ValueError(f"w_hh must have shape (G*H, H) without w_hr, got {tuple(weights.w_hh.shape)}")
    state0 = tuple(state0) if isinstance(state0, (tuple, list)) else (state0,)
    if len(state0) != len(row.states):
        raise ValueError(f"state0 must be {len(row.states)} arrays ({', '.join(row.states)}), got {len(state0)}")
    for name, s, width in zip(row.states, state0, (R, H), strict=False):
        _checks.shaped(f"{name}0", s, (B, width), dtype, device, "(B, width of the state)")
    return row, state0, weights
