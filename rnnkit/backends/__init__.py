"""Implementations of one layer in one direction, and the choice among them."""

from rnnkit.backends.interface import Backend, Description, Forward, Gradients, HeldWeights, Sizes
from rnnkit.backends.registry import (
    BACKENDS,
    BackendRow,
    Choice,
    available,
    backend_row,
    check_backend,
    pinned_names,
    select,
)

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendRow",
    "Choice",
    "Description",
    "Forward",
    "Gradients",
    "HeldWeights",
    "Sizes",
    "available",
    "backend_row",
    "check_backend",
    "pinned_names",
    "select",
]
