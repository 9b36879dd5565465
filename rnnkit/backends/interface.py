"""What a backend is given and gives: one layer in one direction."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from rnnkit.core.cells import Array, Cell, State, Weights
from rnnkit.core.dtypes import DType
from rnnkit.core.regularisation import Noise


class Sizes(NamedTuple):
    """Sizes of one layer-direction; R is P under projection, else H; N the steps of all rows, T*B without lengths."""

    T: int
    B: int
    I: int
    H: int
    R: int
    N: int


class LayerCache:
    """What stays of one layer-direction between calls. The layer owns it, and drops it when its arrays change.

    weights, grads  the layer's own arrays, the same at every call, whatever is written into them. C-contiguous.
                    grads is None where gradients are returned and not added
    addresses       for a backend to fill in: what it derived from where those arrays are
    """

    __slots__ = ("addresses", "grads", "weights")

    def __init__(self, weights: Weights, grads: Weights | None) -> None:
        self.weights = weights
        self.grads = grads
        self.addresses: Any = None


class LayerCall(NamedTuple):
    """One layer in one direction over a whole sequence: what a forward is given, from the layers down to the kernels.

    cell, dtype  rows of CELLS and DTYPES. Arrays are of dtype.storage; the row says more than they do where it names a
                 way to compute, as tf32 does
    x            (T, B, I), C-contiguous, saved by reference
    state0       h0 (B, R), and c0 (B, H) where the cell has c; R is P under projection, else H
    weights      as PyTorch's
    lengths      (B,) int64 on the host, or None for T everywhere
    reverse      from each row's own end to its start
    keep         whether to save what backward needs
    out          where the caller will copy y to, (T, B, R), part of a wider array, or None. A backend may write y there
                 itself, and then returns `out` as y
    cache        the layer's, or None where the caller is no layer
    reserve      (bytes,) uint8 on x's device, of the size that the backend's `reserve_bytes` says, or None. A backend
                 writes what backward needs there, so that `saved_in_reserve` finds it later from these bytes alone.
                 None: the backend allocates
    constants    the numbers that `Cell.constants` names
    noise        the random masks of this layer and direction, or None. Those of x and of W_hh are applied already; a
                 backend applies those of h and c
    """

    cell: Cell
    dtype: DType
    x: Array
    state0: State
    weights: Weights
    lengths: np.ndarray | None = None
    reverse: bool = False
    keep: bool = True
    out: Array | None = None
    cache: LayerCache | None = None
    reserve: Array | None = None
    constants: tuple[float, ...] = ()
    noise: Noise | None = None

    @property
    def sizes(self) -> Sizes:
        T, B, I = self.x.shape
        GH, R = self.weights.w_hh.shape
        steps = T * B if self.lengths is None else int(self.lengths.sum())
        return Sizes(T, B, I, GH // self.cell.n_gates, R, steps)


class BackwardCall(NamedTuple):
    """What a backward is given.

    cell, dtype  as in the forward
    saved        what the forward returned as `saved`
    dy           (T, B, R), of any strides, or None for zeros; never written to
    dstate_n     gradients of the final states, one array per state; never written to
    weights      those of the forward
    cache        as in the forward. The caller will add the weights' gradients to cache.grads, if it is not None. A
                 backend may add them itself, and then returns None for those that it added
    constants    as in the forward
    wants_dx, wants_dweights
                 whether anybody reads the gradient of x, and those of the weights. What is not wanted is not computed:
                 it is None in the results, and nothing is added to cache.grads
    """

    cell: Cell
    dtype: DType
    saved: Any
    dy: Array | None
    dstate_n: State
    weights: Weights
    cache: LayerCache | None = None
    constants: tuple[float, ...] = ()
    wants_dx: bool = True
    wants_dweights: bool = True


# What a backend's forward gives: y (T, B, R), the final states, and what its own backward needs or None. Not a named
# tuple, because making one takes 4% of a Cell's call.
Forward = tuple[Array, State, Any]


class Gradients(NamedTuple):
    """What a backend's backward gives: dx (T, B, I), and the gradients of the initial states and of the weights.

    dx is None, or all of dweights are, where the call does not want them.
    """

    dx: Array | None
    dstate0: State
    dweights: Weights


NO_DWEIGHTS = Weights(*(None,) * len(Weights._fields))


class Description(NamedTuple):
    """A kernel in words, and bytes that a forward takes beyond x and its results: see `explain`.

    transient  while it runs
    kept       until its backward has run
    resident   those of `transient` that stay with the backend, for its next call, whatever that is
    own        others that stay, for the next call of the same layer
    placed     whether it writes y into a wider array itself
    beside     whether both directions of a layer run at once, each with `transient` bytes
    rates      the rates of the processor that the plan is made from, and why those; None without such a plan
    alone      the end of `kernel` for a layer that does not run at once with others: of its forward and its backward
    """

    kernel: str
    transient: int
    kept: int
    resident: int = 0
    own: int = 0
    placed: bool = False
    beside: bool = False
    rates: str | None = None
    alone: tuple[str, str] = ("", "")


class Backend(Protocol):
    """What a backend module provides: one layer in one direction. Its arguments are already checked.

    A backend that supplies a time scan alone takes the products around it from `rnnkit.backends.by_scan`.

    A backend may also provide both of these, for the two directions of a layer, which do not depend on each other. They
    do what two calls of forward or backward would.

    forward_directions(calls) -> list of what `forward` returns
    backward_directions(calls) -> list of Gradients

    A backend may also provide these three, for stacks of layers in one direction, which it may run at once, each layer
    a part of the sequence behind the one below it. And three more for their backward passes, in which each layer is a
    part behind the one above it.

    layers_at_once(cell, dtype, sizes, layers, keep, device) -> int
        how many of `layers` layers it would run at once; 1 for one after the other. sizes: of the first layer. device:
        its number, or None for the current one
    forward_layers(calls, masks) -> list of what `forward` returns
        the x of each call but the first is the `out` of the call before it. Each mask, where it is not None,
        multiplies that x in place. The first one is None
    describe_layers(cell, dtype, sizes, layers, keep) -> (str, int)
        how it runs that many layers at once on the current device, and the bytes beyond those of one layer
    backward_layers_at_once(saved) -> int
        how many layers it would run at once in backward. saved: what the forwards of all layers returned, the first
        layer first
    backward_layers(calls, masks) -> list of Gradients
        the calls of consecutive layers, the last layer first. dy of each but the first is the dx of the call before it,
        multiplied by the mask of that call where it is not None; dx in the results is what the next call has read. The
        last mask is None. Every call but the last wants dx
    describe_backward_layers(cell, dtype, sizes, layers) -> (str, int)
        how it runs the backward of a stack of `layers` layers on the current device, "" for one after the other, and
        the bytes beyond those of one layer

    for_stack(cell, dtype, sizes, layers, keep, device, run) -> backend or None
        the backend that runs a stack in one direction of these sizes, where that is another one: with another way to
        run a layer, of which it runs more at once. The arguments are those of `layers_at_once`; run(backend) runs the
        stack's passes once by that backend, for a backend that measures, or is None where nothing may run

    A backend may also provide both of these, for callers that can keep plain memory only between forward and backward,
    such as an operator of PyTorch. For a backend without them, `rnnkit.functional.reserve` runs the forward again.

    reserve_bytes(cell, dtype, sizes, ragged) -> int
        bytes of `LayerCall.reserve`, a multiple of 64. `ragged` says whether there are lengths; sizes.N is T*B. T and B
        may be symbols, as while PyTorch traces a model: the formula has no condition on them
    saved_in_reserve(call) -> saved
        what the forward of this call returned as `saved`, from `call.reserve`

    A backend that can compute the gates again in backward, from the states of every step, provides these three:

    recomputing() -> backend
        this backend, whose forward then saves the states alone
    recompute_problem(cell) -> str or None
        why it cannot do so for a cell
    free_bytes(device, most) -> int or None
        bytes that a device can still allocate, or None where `most` are too few to ask. device: as in `layers_at_once`

    A backend may also provide this, for `rnnkit.trajectory`:

    saved_steps(cell, dtype, saved) -> dict of arrays (T, B, ·) in dtype.storage, in time order and the caller's order
    of rows, zero past each row's end: the gates by their names, and every state before each step, "h_prev" and so on.
    A gate beyond its clip may be infinity with the sign of its pre-activation
    """

    def forward(self, call: LayerCall) -> Forward:
        """y (T, B, R), zero past each row's end, and the states at each row's end."""
        ...

    def backward(self, call: BackwardCall) -> Gradients:
        """The gradients of x, of the initial states and of the weights."""
        ...

    def describe(self, cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
        """What a forward of these sizes would run, and the memory it takes."""
        ...
