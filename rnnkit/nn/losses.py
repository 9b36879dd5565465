"""Losses: each a pure function that gives the loss and its gradient at once, and a class that keeps the gradient.

    loss, dpred = mse(pred, target)
    loss_fn = MSELoss(); loss = loss_fn(pred, target); dpred = loss_fn.backward()

reduction="mean" divides by the number of losses summed (all elements; all positions for cross-entropy), as PyTorch
does; "sum" does not. The loss is a Python float, NaN for the mean of nothing: on a CUDA device a call waits for that
number, and `backward` does not. 16-bit arrays are computed and summed in float32, and the gradient rounded once; in
float16 small gradients vanish, so multiply dpred by a scale and divide the learning rate of SGD by it (Adam needs no
division). Padding of ragged rows counts unless the caller leaves it out: see `cross_entropy`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rnnkit.core import checks
from rnnkit.core.devices import array_module, current, device_of
from rnnkit.core.dtypes import resolve_dtype
from rnnkit.core.long_sums import row_sums, total
from rnnkit.core.mixed_precision import narrow, wide
from rnnkit.nn.calls import Call, Remembers
from rnnkit.nn.embedding import check_range, whole_numbers
from rnnkit.nn.module import Array, grad_enabled

REDUCTIONS = ("mean", "sum")


def mse(pred: Array, target: Array, reduction: str = "mean") -> tuple[float, Array]:
    """(pred - target)^2. Two arrays of one shape and dtype -> the loss and its gradient dpred. As torch's mse_loss.

    Nothing is broadcast: raises ValueError for different shapes, TypeError for different dtypes.
    """
    pred, target = _checked_pair("pred", pred, target, reduction)
    with current(device_of(pred)):
        difference = wide(pred) - wide(target)
        loss = float(total(difference * difference))
        return _reduced(loss, 2 * difference, pred, reduction)


def bce_with_logits(logits: Array, target: Array, reduction: str = "mean") -> tuple[float, Array]:
    """Binary cross-entropy of sigmoid(logits). Two arrays of one shape and dtype -> the loss and its gradient.

    (1 - t) x - min(x, 0) + log(1 + exp(-|x|)), which overflows for no x, as torch's binary_cross_entropy_with_logits,
    infinite x included. target: probabilities in [0, 1].
    Raises ValueError for different shapes, TypeError for different dtypes.
    """
    logits, target = _checked_pair("logits", logits, target, reduction)
    xp: Any = array_module(logits)
    # Infinite logits give NaN where it is due, and no warning.
    with current(device_of(logits)), np.errstate(invalid="ignore"):
        x, t = wide(logits), wide(target)
        small = xp.exp(-xp.abs(x))
        each = (1 - t) * x - xp.minimum(x, 0) + xp.log1p(small)
        probability = xp.where(x >= 0, 1, small) / (1 + small)
        return _reduced(float(total(each)), probability - t, logits, reduction)


def cross_entropy(logits: Array, target: Array, reduction: str = "mean") -> tuple[float, Array]:
    """-log softmax(logits)[target]. logits (..., K), target (...) whole numbers in [0, K) -> the loss and its gradient.

    As torch's cross_entropy but for the axis of the classes: here the last, in torch axis 1.
    Of ragged rows, give the live steps alone: loss, dlive = cross_entropy(logits[live], target[live]) with live (T, B)
    boolean; then dlogits[live] = dlive.
    Raises ValueError for shapes that do not fit, TypeError for wrong dtypes, IndexError for a target outside [0, K).
    """
    checks.one_of("reduction", reduction, REDUCTIONS)
    logits = _checked_float("logits", logits)
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(f"logits must have shape (..., K) with K of at least 1, got {tuple(logits.shape)}")
    target = whole_numbers("target", target, device_of(logits))
    if tuple(target.shape) != tuple(logits.shape[:-1]):
        wanted = tuple(logits.shape[:-1])
        raise ValueError(f"target must have logits' shape but its last axis, {wanted}, got {tuple(target.shape)}")
    if device_of(logits) == "cpu":
        check_range("target", target, logits.shape[-1])
    with current(device_of(logits)), np.errstate(invalid="ignore"):
        loss, d = _softmax_loss(logits, target)
        return _reduced(loss, d, logits, reduction, target.size)


def _softmax_loss(logits: Array, target: Array) -> tuple[float, Array]:
    """The sum of -log softmax(logits)[target], and its gradient. On a CUDA device the host waits once, for both checks
    and sum."""
    xp: Any = array_module(logits)
    K, picked = logits.shape[-1], target.reshape(-1).astype(np.int64, copy=False)
    outside = None
    if xp is not np:
        outside = (picked < 0) | (picked >= K)
        picked = xp.where(outside, 0, picked)
    flat = wide(logits.reshape(-1, K))
    flat = flat - flat.max(axis=1, keepdims=True)
    rows = xp.arange(flat.shape[0])
    chosen = flat[rows, picked]
    d = xp.exp(flat, out=flat)
    sums = row_sums(d)
    loss = total(xp.log(sums) - chosen)
    if outside is not None:
        loss, wrong = xp.stack((loss, outside.sum().astype(loss.dtype))).get()
        if wrong:
            check_range("target", target, K)
    d /= sums[:, None]
    d[rows, picked] -= 1
    return float(loss), d.reshape(logits.shape)


class _Loss(Remembers):
    """A loss function that remembers the gradient of its last call, per thread."""

    function: Callable[[Array, Array, str], tuple[float, Array]]

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = checks.one_of("reduction", reduction, REDUCTIONS)
        super().__init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(reduction={self.reduction!r})"

    def __call__(self, pred: Array, target: Array) -> float:
        """The loss; arguments and errors are the function's."""
        self._saved = None
        loss, dpred = type(self).function(pred, target, self.reduction)
        self._saved = dpred if grad_enabled() else None
        return loss

    def backward(self, *, call: Call | None = None) -> Array:
        """The gradient of pred, of this thread's last call or of `call`, which `last_call` gives after each.

        Raises RuntimeError before any call, after one under `no_grad()`, and without `call` after several since the
        last backward: the function form, which gives the gradient with the loss, keeps nothing to mistake. ValueError
        or TypeError for a bad `call`.
        """
        return self._recalled(call)


class MSELoss(_Loss):
    """`mse` as an object: loss = fn(pred, target); dpred = fn.backward()."""

    function = staticmethod(mse)


class BCEWithLogitsLoss(_Loss):
    """`bce_with_logits` as an object: loss = fn(logits, target); dlogits = fn.backward()."""

    function = staticmethod(bce_with_logits)


class CrossEntropyLoss(_Loss):
    """`cross_entropy` as an object: loss = fn(logits, target); dlogits = fn.backward().

    The classes are on logits' last axis, (..., K); torch's CrossEntropyLoss has them on axis 1.
    """

    function = staticmethod(cross_entropy)


def _checked_float(name: str, value: Any) -> Array:
    value = checks.adopt(name, value)
    checks.plain_array(name, value)
    try:
        resolve_dtype(value.dtype)
    except ValueError as error:
        raise TypeError(f"{name}: {error}") from None
    return value


def _checked_pair(name: str, value: Any, target: Any, reduction: str) -> tuple[Array, Array]:
    checks.one_of("reduction", reduction, REDUCTIONS)
    value = _checked_float(name, value)
    return value, checks.shaped("target", target, value.shape, value.dtype, device_of(value), f"{name}'s shape")


def _reduced(loss: float, d: Array, pred: Array, reduction: str, count: int | None = None) -> tuple[float, Array]:
    """The loss and the gradient in pred's dtype, from their sums. count: the losses summed, pred's size if None."""
    count = pred.size if count is None else count
    if reduction == "sum" or not count:
        return (loss if reduction == "sum" else float("nan")), narrow(d, pred.dtype)
    return loss / count, narrow(d / count, pred.dtype)
