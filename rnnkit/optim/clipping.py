"""Gradient clipping, as in torch.nn.utils."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnnkit.core import devices
from rnnkit.core.mixed_precision import compute_dtype, narrow, wide
from rnnkit.nn.module import Array
from rnnkit.optim.models import modules_of, number, parameters_of


def clip_grad_norm(model: Any, max_norm: float) -> float:
    """Scales all gradients by one factor so that their L2 norm is at most max_norm; as torch's clip_grad_norm_.

    The factor is max_norm / (norm + 1e-6) if that is below 1. The norm is summed in float64. Reading it synchronises
    with the GPU. If the norm is infinite, the clipped gradients are 0, and NaN where a gradient was infinite (NaN
    everywhere if max_norm is infinite too); if the norm is NaN, they are NaN. So check the returned norm before a step.

    Args:
        model: a Module, or a list of Modules whose gradients are scaled together.
        max_norm: the largest norm, at least 0. Infinity changes no finite gradient.

    Returns:
        The norm before scaling, a Python float.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `max_norm` is negative or NaN, or `model` has no parameters or has one twice.

    Examples:
        >>> import rnnkit
        >>> layer = rnnkit.Linear(3, 1, bias=False)
        >>> layer.grads["weight"] += 2
        >>> round(rnnkit.clip_grad_norm(layer, 1.0), 4)
        3.4641
        >>> round(float((layer.grads["weight"] ** 2).sum()), 4)
        1.0
    """
    max_norm = number("max_norm", max_norm, finite=False)
    grads = [grad for _, _, grad in parameters_of(modules_of(model))]
    norm = math.sqrt(_sum_of_squares(grads))
    factor = max_norm / (norm + 1e-6)
    if not factor >= 1:  # true for NaN too
        for grad in grads:
            with devices.current(devices.device_of(grad)):
                if compute_dtype(grad.dtype) == grad.dtype:
                    grad *= factor
                else:  # in 16 bits the factor would be rounded, possibly to 0
                    grad[...] = narrow(wide(grad) * factor, grad.dtype)
    return norm


def _sum_of_squares(grads: list[Array]) -> float:
    """The sum in float64, in which no square of a gradient overflows or underflows. It synchronises once per device."""
    sums: dict[str, Array] = {}
    for grad in grads:
        device = devices.device_of(grad)
        with devices.current(device):
            all64 = grad.reshape(-1).astype(np.float64)
            squares = all64 @ all64
            sums[device] = sums[device] + squares if device in sums else squares
    return sum(float(total) for total in sums.values())


def clip_grad_value(model: Any, value: float) -> None:
    """Clips every gradient to [-value, value] in place; equivalent of torch's clip_grad_value_. NaN stays NaN.

    Args:
        model: a Module, or a list of Modules.
        value: the largest magnitude, at least 0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `value` is negative or NaN, or `model` has no parameters or has one twice.

    Examples:
        >>> import rnnkit
        >>> layer = rnnkit.Linear(2, 1, bias=False)
        >>> layer.grads["weight"] += 2
        >>> rnnkit.clip_grad_value(layer, 0.5)
        >>> layer.grads["weight"]
        array([[0.5, 0.5]], dtype=float32)
    """
    value = number("value", value, finite=False)
    for _, _, grad in parameters_of(modules_of(model)):
        xp: Any = devices.array_module(grad)
        with devices.current(devices.device_of(grad)), np.errstate(over="ignore"):
            bound = grad.dtype.type(value)  # infinite if it overflows float16
            xp.minimum(grad, bound, out=grad)
            xp.maximum(grad, -bound, out=grad)
