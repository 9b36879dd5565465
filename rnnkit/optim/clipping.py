"""Gradient clipping, as torch.nn.utils has it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnnkit.core import devices
from rnnkit.core.mixed_precision import compute_dtype, narrow, wide
from rnnkit.nn.module import Array
from rnnkit.optim.models import modules_of, number, parameters_of


def clip_grad_norm(model: Any, max_norm: float) -> float:
    """Scales all gradients of a Module, or of several together, so that their common L2 norm is at most max_norm.

    Returns the norm before. The factor is max_norm / (norm + 1e-6) where that is below 1, as torch's clip_grad_norm_.
    max_norm: at least 0; infinity changes no gradient whose norm is finite. An infinite norm leaves zero, and NaN where
    the infinity was, or under an infinite max_norm NaN throughout; a norm of NaN leaves NaN throughout: look at what is
    returned before a step. Reading it waits for a CUDA device. Raises TypeError or ValueError by name.
    """
    max_norm = number("max_norm", max_norm, finite=False)
    grads = [grad for _, _, grad in parameters_of(modules_of(model))]
    norm = math.sqrt(_sum_of_squares(grads))
    factor = max_norm / (norm + 1e-6)
    if not factor >= 1:  # also where it is NaN
        for grad in grads:
            with devices.current(devices.device_of(grad)):
                if compute_dtype(grad.dtype) == grad.dtype:
                    grad *= factor
                else:  # 16 bits would round the factor, or lose it
                    grad[...] = narrow(wide(grad) * factor, grad.dtype)
    return norm


def _sum_of_squares(grads: list[Array]) -> float:
    """In float64, whose range the square of no gradient leaves. Each device is read once."""
    sums: dict[str, Array] = {}
    for grad in grads:
        device = devices.device_of(grad)
        with devices.current(device):
            all64 = grad.reshape(-1).astype(np.float64)
            squares = all64 @ all64
            sums[device] = sums[device] + squares if device in sums else squares
    return sum(float(total) for total in sums.values())


def clip_grad_value(model: Any, value: float) -> None:
    """Clips every gradient of a Module, or of several, to [-value, value] in place, as torch's clip_grad_value_.

    NaN stays. value: at least 0. Raises TypeError or ValueError by name.
    """
    value = number("value", value, finite=False)
    for _, _, grad in parameters_of(modules_of(model)):
        xp: Any = devices.array_module(grad)
        with devices.current(devices.device_of(grad)), np.errstate(over="ignore"):
            bound = grad.dtype.type(value)  # beyond float16: infinite
            xp.minimum(grad, bound, out=grad)
            xp.maximum(grad, -bound, out=grad)
