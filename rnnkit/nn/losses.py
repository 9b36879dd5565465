"""Losses: functions that return the loss and its gradient, and classes that save the gradient for `backward`.

    loss, dpred = mse(pred, target)
    loss_fn = MSELoss(); loss = loss_fn(pred, target); dpred = loss_fn.backward()

reduction="mean" divides by the number of summed losses (elements; positions for cross-entropy), as in PyTorch; "sum"
does not. The loss is a Python float (NaN for the mean of an empty array), so on a CUDA device a call synchronises;
`backward` does not. 16-bit arrays are computed and summed in float32, and the gradient is rounded once. In float16
small gradients underflow: multiply dpred by a scale and divide the learning rate of SGD by it (Adam needs no division).
Padding of ragged rows counts unless the caller excludes it: see `cross_entropy`.
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
from rnnkit.nn.calls import Call, SavesCalls
from rnnkit.nn.embedding import check_range, integer_array
from rnnkit.nn.module import Array, grad_enabled

REDUCTIONS = ("mean", "sum")


def mse(pred: Array, target: Array, reduction: str = "mean") -> tuple[float, Array]:
    """Squared error, (pred - target)^2; equivalent of torch.nn.functional.mse_loss. Nothing is broadcast.

    Args:
        pred: predictions, an array of any shape.
        target: an array of the same shape and dtype.
        reduction: "mean" or "sum" over the elements.

    Returns:
        A pair: the loss (a Python float) and the gradient dpred, with pred's shape and dtype.

    Raises:
        TypeError: the dtypes differ, or an argument is not a floating-point array.
        ValueError: the shapes or devices differ, or `reduction` is unknown.

    Examples:
        >>> import numpy as np, rnnkit
        >>> rnnkit.mse(np.array([1.0, 2.0]), np.array([0.0, 0.0]))
        (2.5, array([1., 2.]))
    """
    pred, target = _checked_pair("pred", pred, target, reduction)
    with current(device_of(pred)):
        difference = wide(pred) - wide(target)
        loss = float(total(difference * difference))
        return _reduced(loss, 2 * difference, pred, reduction)


def bce_with_logits(logits: Array, target: Array, reduction: str = "mean") -> tuple[float, Array]:
    """Binary cross-entropy of sigmoid(logits); equivalent of torch's binary_cross_entropy_with_logits.

    It is (1 - t) x - min(x, 0) + log(1 + exp(-|x|)) for a logit x and a target t, which does not overflow for any x.

    Args:
        logits: an array of any shape.
        target: probabilities in [0, 1], an array of the same shape and dtype.
        reduction: "mean" or "sum" over the elements.

    Returns:
        A pair: the loss (a Python float) and the gradient dlogits, with the shape and dtype of logits.

    Raises:
        TypeError: the dtypes differ, or an argument is not a floating-point array.
        ValueError: the shapes or devices differ, or `reduction` is unknown.

    Examples:
        >>> import numpy as np, rnnkit
        >>> loss, dlogits = rnnkit.bce_with_logits(np.zeros(2), np.array([0.0, 1.0]), reduction="sum")
        >>> round(loss, 4), dlogits
        (1.3863, array([ 0.5, -0.5]))
    """
    logits, target = _checked_pair("logits", logits, target, reduction)
    xp: Any = array_module(logits)
    # Infinite logits may give NaN, as in PyTorch, without a warning.
    with current(device_of(logits)), np.errstate(invalid="ignore"):
        x = wide(logits)
        t = wide(target)
        small = xp.exp(-xp.abs(x))
        each = (1 - t) * x - xp.minimum(x, 0) + xp.log1p(small)
        probability = xp.where(x >= 0, 1, small) / (1 + small)
        return _reduced(float(total(each)), probability - t, logits, reduction)


def cross_entropy(logits: Array, target: Array, reduction: str = "mean") -> tuple[float, Array]:
    """Cross-entropy, -log softmax(logits)[target]; equivalent of torch.nn.functional.cross_entropy.

    The classes are on the last axis; in torch they are on axis 1. For ragged rows, pass the live steps only: loss,
    dlive = cross_entropy(logits[live], target[live]) with a boolean live (T, B); then dlogits[live] = dlive.

    Args:
        logits: (..., K), floating point.
        target: class indices in [0, K), (...), integers.
        reduction: "mean" or "sum" over the positions.

    Returns:
        A pair: the loss (a Python float) and the gradient dlogits, with the shape and dtype of logits.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: the shapes do not fit, the devices differ, or `reduction` is unknown.
        IndexError: a target is outside [0, K).

    Examples:
        >>> import numpy as np, rnnkit
        >>> loss, dlogits = rnnkit.cross_entropy(np.zeros((1, 4)), np.array([2]))
        >>> round(loss, 4), dlogits
        (1.3863, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    checks.one_of("reduction", reduction, REDUCTIONS)
    logits = _checked_float("logits", logits)
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(f"logits must have shape (..., K) with K of at least 1, got {tuple(logits.shape)}")
    target = integer_array("target", target, device_of(logits))
    if tuple(target.shape) != tuple(logits.shape[:-1]):
        shape = tuple(logits.shape[:-1])
        raise ValueError(f"target must have logits' shape but its last axis, {shape}, got {tuple(target.shape)}")
    if device_of(logits) == "cpu":
        check_range("target", target, logits.shape[-1])
    with current(device_of(logits)), np.errstate(invalid="ignore"):
        loss, d = _softmax_loss(logits, target)
        return _reduced(loss, d, logits, reduction, target.size)


def _softmax_loss(logits: Array, target: Array) -> tuple[float, Array]:
    """The sum of -log softmax(logits)[target], and its gradient. On a CUDA device it synchronises once, for both the
    range check and the sum.
    """
    xp: Any = array_module(logits)
    K = logits.shape[-1]
    picked = target.reshape(-1).astype(np.int64, copy=False)
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


class _Loss(SavesCalls):
    """Base class of the losses: it saves the gradient of the most recent call, per thread."""

    function: Callable[[Array, Array, str], tuple[float, Array]]

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = checks.one_of("reduction", reduction, REDUCTIONS)
        super().__init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(reduction={self.reduction!r})"

    def __call__(self, pred: Array, target: Array) -> float:
        """Computes the loss and saves its gradient.

        Args:
            pred: predictions or logits, as for the function of the same loss.
            target: targets, as for the function.

        Returns:
            The loss, a Python float.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: the shapes or devices do not fit.

        Examples:
            >>> import numpy as np, rnnkit
            >>> rnnkit.MSELoss()(np.array([1.0, 2.0]), np.array([0.0, 0.0]))
            2.5
        """
        self._saved = None
        loss, dpred = type(self).function(pred, target, self.reduction)
        self._saved = dpred if grad_enabled() else None
        return loss

    def backward(self, *, call: Call | None = None) -> Array:
        """The gradient of `pred` of a call.

        Args:
            call: the call to differentiate, from `last_call`; None for this thread's most recent call.

        Returns:
            dpred, with the shape and dtype of pred.

        Raises:
            RuntimeError: this thread made no call, its most recent call ran under `no_grad()`, or, without `call`,
                several calls are pending since the last backward. The functions return the gradient and have no such
                state.
            TypeError: `call` has the wrong type.
            ValueError: `call` is of another loss.

        Examples:
            >>> import numpy as np, rnnkit
            >>> loss_fn = rnnkit.MSELoss()
            >>> loss = loss_fn(np.array([1.0, 2.0]), np.array([0.0, 0.0]))
            >>> loss_fn.backward()
            array([1., 2.])
        """
        return self._recalled(call)


class MSELoss(_Loss):
    """`mse` as an object that saves the gradient for `backward`.

    Args:
        reduction: "mean" or "sum".

    Raises:
        ValueError: `reduction` is unknown.

    Examples:
        >>> import numpy as np, rnnkit
        >>> loss_fn = rnnkit.MSELoss(reduction="sum")
        >>> loss_fn(np.array([1.0, 2.0]), np.array([0.0, 0.0]))
        5.0
    """

    function = staticmethod(mse)


class BCEWithLogitsLoss(_Loss):
    """`bce_with_logits` as an object that saves the gradient for `backward`.

    Args:
        reduction: "mean" or "sum".

    Raises:
        ValueError: `reduction` is unknown.

    Examples:
        >>> import numpy as np, rnnkit
        >>> loss_fn = rnnkit.BCEWithLogitsLoss()
        >>> loss = loss_fn(np.zeros(2), np.array([0.0, 1.0]))
        >>> loss_fn.backward()
        array([ 0.25, -0.25])
    """

    function = staticmethod(bce_with_logits)


class CrossEntropyLoss(_Loss):
    """`cross_entropy` as an object that saves the gradient for `backward`.

    The classes are on the last axis of logits, (..., K); in torch.nn.CrossEntropyLoss they are on axis 1.

    Args:
        reduction: "mean" or "sum".

    Raises:
        ValueError: `reduction` is unknown.

    Examples:
        >>> import numpy as np, rnnkit
        >>> loss_fn = rnnkit.CrossEntropyLoss()
        >>> loss = loss_fn(np.zeros((1, 2)), np.array([1]))
        >>> loss_fn.backward()
        array([[ 0.5, -0.5]])
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
    """The loss and the gradient in pred's dtype, from their sums. count: number of summed losses, by default
    pred.size."""
    count = pred.size if count is None else count
    if reduction == "sum" or not count:
        return (loss if reduction == "sum" else float("nan")), narrow(d, pred.dtype)
    return loss / count, narrow(d / count, pred.dtype)
