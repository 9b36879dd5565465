"""Implementations of one layer in one direction, and the choice among them."""

from rnnkit.backends.interface import (
    Backend,
    BackwardCall,
    Description,
    Forward,
    Gradients,
    LayerCache,
    LayerCall,
    Sizes,
)
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
    "BackwardCall",
    "Choice",
    "Description",
    "Forward",
    "Gradients",
    "LayerCache",
    "LayerCall",
    "Sizes",
    "available",
    "backend_row",
    "check_backend",
    "pinned_names",
    "select",
]
