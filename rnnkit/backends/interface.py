"""What a backend is given and gives: one layer in one direction."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from rnnkit.core.cells import Array, Cell, State, Weights
from rnnkit.core.dtypes import DType


class Sizes(NamedTuple):
    """Sizes of one layer-direction; R is P under projection, else H; N the steps of all rows, T*B without lengths."""

    T: int
    B: int
    I: int
    H: int
    R: int
    N: int


class HeldWeights(Weights):
    """Weights of a layer that are the same arrays at every call, C-contiguous, whatever is written into them.

    A backend leaves in `found` what it has found out of where they stand.
    """

    found: Any = None


class Forward(NamedTuple):
    """What a backend's forward gives: y (T, B, R), the final states, and what its own backward needs or None."""

    y: Array
    state_n: State
    saved: Any


class Gradients(NamedTuple):
    """What a backend's backward gives: dx (T, B, I), and the gradients of the initial states and of the weights."""

    dx: Array
    dstate0: State
    dweights: Weights


class Description(NamedTuple):
    """A kernel in words, and bytes that a forward takes beyond x and its results: see `explain`.

    transient  while it runs
    kept       until its backward has run
    resident   those of `transient` that stay with the backend, for its next call, whatever that is
    own        others that stay, for the next call of the same layer
    placed     whether it writes y into a wider array itself
    """

    kernel: str
    transient: int
    kept: int
    resident: int = 0
    own: int = 0
    placed: bool = False


class Backend(Protocol):
    """What a backend module provides: one layer in one direction. No argument is checked here: `ops` has done it.

    A backend that supplies a time scan alone takes the products around it from `rnnkit.backends.by_scan`.
    """

    def forward(
        self,
        cell: Cell,
        dtype: DType,
        x: Array,
        state0: State,
        weights: Weights,
        *,
        lengths: np.ndarray | None,
        reverse: bool,
        keep: bool,
        out: Array | None,
    ) -> Forward:
        """x (T, B, I), C-contiguous and kept by reference; lengths (B,) on the host, or None for T everywhere.

        out: where the caller will copy y to (T, B, R), part of a wider array or None. A backend may write y there
        itself, and then gives `out` as y.

        Arrays are of dtype.storage; dtype says more than they do where it names a way to compute, as tf32.
        """
        ...

    def backward(
        self,
        cell: Cell,
        dtype: DType,
        saved: Any,
        dy: Array | None,
        dstate_n: State,
        weights: Weights,
        into: Weights | None,
    ) -> Gradients:
        """dy (T, B, R), of any strides, or None for zeros; dstate_n one array a state. Neither is written to.

        into: where the caller will add the weights' gradients. A backend may do so itself, and gives None for those it
        has added.
        """
        ...

    def describe(self, cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
        """What a forward of these sizes would run, and the memory it takes."""
        ...
