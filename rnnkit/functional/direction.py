"""Forward and backward of one layer in one direction: the functional form under the layers.

    y, state_n, saved = forward("lstm", x, (h0, c0), weights)
    dx, dstate0, dweights = backward(saved, dy, (dh_n, dc_n), weights)

Pure: what backward needs is in `saved` and nowhere else. Arguments are checked here, once; a backend computes.

x decides the device. On a CUDA device x and the rest may be CuPy arrays or any library's that offer DLPack or
`__cuda_array_interface__`, taken without a copy; results are CuPy arrays. Nothing synchronises with the device, except
lengths that are on it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends import BackwardCall, Choice, LayerCall, check_backend, select
from rnnkit.core import checks
from rnnkit.core.cells import CELLS, Array, Cell, State, Weights, cell_of
from rnnkit.core.devices import array_module, current, device_of
from rnnkit.core.dtypes import resolve_precision
from rnnkit.core.option_arguments import check_constants

__all__ = ["Saved", "Weights", "backward", "forward"]


class Saved(NamedTuple):
    """What `backward` needs: what ran the forward, the shapes of x and the weights, and the backend's own part."""

    cell: Cell
    choice: Choice
    x_shape: tuple[int, int, int]
    shapes: tuple[tuple[int, ...] | None, ...]
    dtype: np.dtype
    device: str
    own: Any
    constants: tuple[float, ...] = ()


def forward(
    cell: str,
    x: Array,
    state0: State,
    weights: Weights,
    *,
    lengths: Any = None,
    reverse: bool = False,
    backend: str | None = None,
    precision: str | None = None,
    keep: bool = True,
    constants: tuple[float, ...] = (),
) -> tuple[Array, State, Saved | None]:
    """One layer, one direction, whole sequence.

    cell: a name of CELLS, or a `Cell.key` of one with options, whose numbers are `constants`, see `Cell.constants`.
    x (T, B, I); state0 one array per state of the cell: h0 (B, R), others (B, H); R = P under projection, else H.
    weights as PyTorch's.
    lengths: row lengths (B,), whole numbers in [0, T]. reverse: from each row's own end to its start.
    precision: None, or for float32 arrays "tf32": products may round their operands to TF32, where the device has it.
    Returns y (T, B, R), zero past each row's end, the states at each row's end, and `saved` (None where keep is False).
    Raises ValueError or TypeError naming the argument; RuntimeError where the backend cannot run here.
    """
    row, x, state0, weights = _check_forward(cell, x, state0, weights)
    reverse, keep = checks.flag("reverse", reverse), checks.flag("keep", keep)
    constants = check_constants(row, constants)
    check_backend(backend)
    T, B, _ = x.shape
    device, xp = device_of(x), array_module(x)
    choice = select(device, resolve_precision(precision, x.dtype).name, cell, backend)
    checked = checks.lengths(lengths, T, B)
    with current(device):
        x = xp.ascontiguousarray(x)  # type: ignore[union-attr]
        call = LayerCall(row, choice.dtype, x, state0, weights, checked, reverse, keep, constants=constants)
        y, state_n, own = choice.backend.forward(call)
    if not keep:
        return y, state_n, None
    shapes = tuple([None if w is None else tuple(w.shape) for w in weights])
    return y, state_n, Saved(row, choice, x.shape, shapes, x.dtype, device, own, constants)


def backward(
    saved: Saved, dy: Array | None, dstate_n: State | None, weights: Weights, *, dx: bool = True, dweights: bool = True
) -> tuple[Array | None, State, Weights]:
    """Gradients of one `forward`, on the backend that ran it.

    dy (T, B, R) or None; dstate_n one array a state, each as state0's, or None for zeros. weights as given to forward:
    written to in between, as by an optimizer's step, they would mix old activations with new weights.
    dx, dweights: whether to compute the gradient of x, and those of the weights.
    Returns dx (T, B, I), the gradients of state0, and those of weights (None where the weight is None). None too for
    what is not computed.
    """
    if saved is None:
        raise ValueError("saved is None: the forward ran with keep=False")
    T, B, _ = saved.x_shape
    wanted = checks.flag("dx", dx), checks.flag("dweights", dweights)
    weights = _as_weights(weights)
    dtype, device = saved.dtype, saved.device
    checked: list[Array | None] = []
    for name, w, shape in zip(Weights._fields, weights, saved.shapes, strict=True):
        if shape is None and w is not None:
            raise ValueError(f"{name} must be None, as in forward, got {type(w).__name__}")
        means = "its shape in forward"
        checked.append(None if shape is None else checks.shaped(name, w, shape, dtype, device, means))
    weights = Weights(*checked)
    R, H = weights.w_hh.shape[1], weights.w_hh.shape[0] // saved.cell.n_gates
    if dy is not None:
        dy = checks.shaped("dy", dy, (T, B, R), dtype, device, "(T, B, R)")
    if dstate_n is None:
        dstate_n = (None,) * len(saved.cell.states)
    given = tuple(dstate_n) if isinstance(dstate_n, (tuple, list)) else (dstate_n,)
    if len(given) != len(saved.cell.states):
        raise ValueError(f"dstate_n must be {len(saved.cell.states)} arrays, got {len(given)}")
    xp: Any = array_module(weights.w_hh)
    with current(device):
        ends = tuple(
            xp.zeros((B, width), dtype)
            if d is None
            else checks.shaped(f"d{name}_n", d, (B, width), dtype, device, "(B, width of the state)")
            for name, d, width in zip(saved.cell.states, given, saved.cell.state_widths(R, H), strict=True)
        )
        choice = saved.choice
        given = (saved.own, dy, ends, weights, None, saved.constants, *wanted)
        return choice.backend.backward(BackwardCall(saved.cell, choice.dtype, *given))


def _check_forward(cell: str, x: Array, state0: State, weights: Weights) -> tuple[Cell, Array, State, Weights]:
    row = _cell(cell)
    x = checks.adopt("x", x)
    checks.plain_array("x", x)
    resolve_precision(None, x.dtype)
    dtype, device = x.dtype, device_of(x)
    if x.ndim != 3:
        raise ValueError(f"x must have shape (T, B, I), got {tuple(x.shape)}")
    _, B, I = x.shape
    weights = _check_weights(row, _as_weights(weights), I, dtype, device)
    H, R = weights.w_hh.shape[0] // row.n_gates, weights.w_hh.shape[1]
    state0 = tuple(state0) if isinstance(state0, (tuple, list)) else (state0,)
    if len(state0) != len(row.states):
        raise ValueError(f"state0 must be {len(row.states)} arrays ({', '.join(row.states)}), got {len(state0)}")
    checked = tuple(
        checks.shaped(f"{name}0", s, (B, width), dtype, device, "(B, width of the state)")
        for name, s, width in zip(row.states, state0, row.state_widths(R, H), strict=True)
    )
    return row, x, checked, weights


def _cell(cell: Any) -> Cell:
    name, plus, _ = cell.partition("+") if isinstance(cell, str) else (cell, "", "")
    checks.one_of("cell", name, tuple(CELLS))
    if not plus:
        return CELLS[name]
    try:
        row = cell_of(cell)
    except ValueError as problem:
        raise ValueError(f"cell: {problem}") from None
    if row.options.has_noise:
        raise ValueError(f"cell must have no zoneout and no recurrent dropout, which only layers have, got {cell!r}")
    return row


def _check_weights(row: Cell, weights: Weights, I: int, dtype: np.dtype, device: str) -> Weights:
    w_hh = checks.array("w_hh", weights.w_hh, dtype, device)
    if w_hh.ndim != 2 or 0 in w_hh.shape or w_hh.shape[0] % row.n_gates:
        means = f"(G*H, R) with G = {row.n_gates}, H and R at least 1"
        raise ValueError(f"w_hh must have shape {means}, got {tuple(w_hh.shape)}")
    GH, R = w_hh.shape
    H = GH // row.n_gates
    w_ih = checks.shaped("w_ih", weights.w_ih, (GH, I), dtype, device, "(G*H, I)")
    b_ih, b_hh = (
        None if bias is None else checks.shaped(name, bias, (GH,), dtype, device, "(G*H,)")
        for name, bias in (("b_ih", weights.b_ih), ("b_hh", weights.b_hh))
    )
    w_hr = weights.w_hr
    if w_hr is not None:
        if not row.projects:
            raise ValueError(f"w_hr must be None for {row.name}, which has no projection")
        w_hr = checks.shaped("w_hr", w_hr, (R, H), dtype, device, "(P, H)")
    elif R != H:
        raise ValueError(f"w_hh must have shape (G*H, H) without w_hr, got {tuple(w_hh.shape)}")
    w_unit, K = weights.w_unit, len(row.unit_weights)
    if K:
        w_unit = checks.shaped("w_unit", w_unit, (K, H), dtype, device, f"({K}, H): {', '.join(row.unit_weights)}")
    elif w_unit is not None:
        raise ValueError(f"w_unit must be None for {row.key}, which has no weights per unit")
    return Weights(w_ih, w_hh, b_ih, b_hh, w_hr, w_unit)


def _as_weights(weights: Any) -> Weights:
    fields = Weights._fields
    if not isinstance(weights, (tuple, list)) or not 2 <= len(weights) <= len(fields):
        was = f"{len(weights)} of them" if isinstance(weights, (tuple, list)) else type(weights).__name__
        raise TypeError(f"weights must be a tuple ({', '.join(fields)}), of which the last four may lack, got {was}")
    return Weights(*weights)
