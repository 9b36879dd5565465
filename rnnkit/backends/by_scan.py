"""A whole layer-direction from a backend's time scan: the products outside time, as large matrix products.

x W_ih^T before the scan; dW_ih, dW_hh, dW_hr, db and dx after it. Where rows are ragged these run over the live
steps alone, so padding costs nothing here and is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends.interface import NO_DWEIGHTS, BackwardCall, Forward, Gradients, LayerCall
from rnnkit.core.cells import Array, Cell, State, Weights
from rnnkit.core.devices import array_module
from rnnkit.core.long_sums import column_sums, product_over_rows
from rnnkit.core.mixed_precision import narrow


class Scan(NamedTuple):
    """What a forward scan gives: y (T, B, R), the final states, and what its own backward needs (None if not kept)."""

    y: Array
    state_n: State
    saved: Any


class ScanGradients(NamedTuple):
    """What a backward scan gives, all in time order.

    dgates_x, dgates_h  (T, B, G*H)  gradients of the two sides' pre-activations
    dstate0             tuple        gradients of the initial states
    operands            dict         the cell's hidden-side operands by name, each (T, B, R): see Cell.products
    dprojected, m       (T, B, P), (T, B, H), or None: gradient and operand of the projection
    dunit               (T, B, n_unit_sums*H) or None: what each row-step adds to the gradients of the weights per unit
    masks               (1 or G, B, R) or None: what the operands of all gates, or of each gate, were multiplied by

    Entries past a row's own length may hold anything: the live steps alone are read.
    """

    dgates_x: Array
    dgates_h: Array
    dstate0: State
    operands: dict[str, Array]
    dprojected: Array | None = None
    m: Array | None = None
    dunit: Array | None = None
    masks: Array | None = None


class Saved(NamedTuple):
    """What `backward` needs: the input (by reference), the live steps, and the scan's own part."""

    x: Array
    live: Array | None
    scan: Any


def forward(
    scan_forward: Callable[[LayerCall, Array, Array | None], Scan], call: LayerCall, compute: np.dtype | None = None
) -> Forward:
    """See `rnnkit.backends.Backend.forward`.

    scan_forward(call, gates_x, lengths) takes gates_x (T, B, G*H) = x W_ih^T, without its bias, and may overwrite it.
    lengths are on x's device. gates_x is in x's dtype, or in `compute`: a product of float16 arrays would be rounded to
    float16 before the other side is added to it.
    """
    x = call.x
    w_ih = call.weights.w_ih
    live = None if call.lengths is None else _live_steps(x, call.lengths)
    steps = _steps(x, live)
    if compute is not None:
        steps, w_ih = steps.astype(compute, copy=False), w_ih.astype(compute, copy=False)
    gates_x = _scatter(steps @ w_ih.T, live, (*x.shape[:2], w_ih.shape[0]))
    xp: Any = array_module(x)
    lengths = None if call.lengths is None else xp.asarray(call.lengths)
    scan = scan_forward(call, gates_x, lengths)
    return scan.y, scan.state_n, Saved(x, live, scan.saved) if call.keep else None


def backward(scan_backward: Callable[[BackwardCall], ScanGradients], call: BackwardCall) -> Gradients:
    """See `rnnkit.backends.Backend.backward`. scan_backward takes the call with `saved` the scan's own part."""
    x, live = call.saved.x, call.saved.live
    grads = scan_backward(call._replace(saved=call.saved.scan))
    dgates_x = _steps(grads.dgates_x, live)
    dx = _scatter(dgates_x @ call.weights.w_ih, live, x.shape) if call.wants_dx else None
    dweights = NO_DWEIGHTS
    if call.wants_dweights:
        dweights = _weight_gradients(call.cell, grads, dgates_x, _steps(x, live), call.weights, live)
    return Gradients(dx, grads.dstate0, dweights)


def _weight_gradients(
    cell: Cell, grads: ScanGradients, dgates_x: Array, x: Array, weights: Weights, live: Array | None
) -> Weights:
    """Each one product over all live steps: dgates_x (N, G*H), x (N, I). In the weights' dtype."""
    H, dtype = weights.w_hh.shape[0] // cell.n_gates, weights.w_hh.dtype
    dgates_h = _steps(grads.dgates_h, live)
    xp: Any = array_module(x)
    dw_ih = narrow(product_over_rows(dgates_x, x), dtype)
    blocks = [
        narrow(product_over_rows(dgates_h[:, first * H : end * H], _steps(operand, live)), dtype)
        for operand, first, end in _operands(cell, grads)
    ]
    dw_hh = blocks[0] if len(blocks) == 1 else xp.concatenate(blocks)
    dunit = narrow(column_sums(_steps(grads.dunit, live)), dtype).reshape(-1, H) if cell.n_unit_sums else None
    if cell.normalises:
        dunit, db_ih, db_hh = split_unit_sums(cell, weights, dunit)
    else:
        db_ih = None if weights.b_ih is None else narrow(column_sums(dgates_x), dtype)
        db_hh = None if weights.b_hh is None else narrow(column_sums(dgates_h), dtype)
    dw_hr = None
    if weights.w_hr is not None:
        dw_hr = narrow(product_over_rows(_steps(grads.dprojected, live), _steps(grads.m, live)), dtype)
    return Weights(dw_ih, dw_hh, db_ih, db_hh, dw_hr, dunit)


def split_unit_sums(cell: Cell, weights: Weights, sums: Array) -> tuple[Array, Array, Array]:
    """The gradients of w_unit, b_ih and b_hh from the sums (K + 2 G, H). Biases that the cell lacks are None."""
    K, G = len(cell.unit_weights), cell.n_gates
    db_ih, db_hh = sums[K : K + G].reshape(-1), sums[K + G :].reshape(-1)
    return sums[:K], None if weights.b_ih is None else db_ih, None if weights.b_hh is None else db_hh


def _operands(cell: Cell, grads: ScanGradients) -> Iterator[tuple[Array, int, int]]:
    """The hidden-side operand (T, B, R) of each block of gates: see Cell.products. With masks, as they were applied."""
    for name, first, end in cell.products:
        operand = grads.operands[name]
        if grads.masks is None:
            yield operand, first, end
        elif len(grads.masks) == 1:
            yield narrow(operand * grads.masks[0], operand.dtype), first, end
        else:
            for gate in range(first, end):
                yield narrow(operand * grads.masks[gate], operand.dtype), gate, gate + 1


def _live_steps(x: Array, lengths: np.ndarray) -> Array:
    """Indices into the T*B steps of x, time-major, that are inside their rows."""
    xp: Any = array_module(x)
    return xp.asarray(np.flatnonzero(np.arange(x.shape[0])[:, None] < lengths[None, :]))


def _steps(a: Array, live: Array | None) -> Array:
    """a (T, B, K) as (N, K): all its steps, or the live ones alone."""
    flat = a.reshape(a.shape[0] * a.shape[1], a.shape[2])
    return flat if live is None else flat[live]


def _scatter(flat: Array, live: Array | None, shape: tuple[int, ...]) -> Array:
    """The inverse of `_steps`, zero where nothing is live."""
    if live is None:
        return flat.reshape(shape)
    xp: Any = array_module(flat)
    full = xp.zeros((shape[0] * shape[1], shape[2]), flat.dtype)
    full[live] = flat
    return full.reshape(shape)
