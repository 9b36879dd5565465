"""torch.autocast: inputs and weights in its dtype, the same way for every cell and device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rnnkit.torch.arrays import Tensor

Tensors = Sequence[Tensor]


def under_autocast(x: Tensor, states: Tensors, weights: Tensors) -> tuple[Tensor, Tensors, Tensors]:
    """The tensors in the dtype of the active torch.autocast, or as they are without it.

    float64 and integers stay as they are, as for PyTorch's own operators.
    """
    if not torch._C._is_any_autocast_enabled() or not torch.is_autocast_enabled(x.device.type):
        return x, states, weights
    device = x.device.type
    dtype = torch.get_autocast_dtype(device)
    return _cast(x, dtype), tuple([_cast(s, dtype) for s in states]), [_cast(w, dtype) for w in weights]


def _cast(tensor: Tensor, dtype: Any) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
