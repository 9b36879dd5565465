"""torch.autocast: inputs and weights in its dtype, the same way for every cell and device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rnnkit.torch.arrays import Tensor

Tensors = Sequence[Tensor]


def under_autocast(x: Tensor, states: Tensors, weights: Tensors) -> tuple[Tensor, Tensors, Tensors]:
    """The tensors in the dtype of the active torch.autocast, or as they are without it.

    float64 stays as it is, as for PyTorch's own operators.
    """
    device = x.device.type
    if not torch._C._is_any_autocast_enabled() or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, states, weights
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), tuple([s.to(dtype) for s in states]), [w.to(dtype) for w in weights]
