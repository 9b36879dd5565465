"""SGD, Adagrad and Adam, with PyTorch's formulas. `rnnkit.optim.base` describes what they share."""

from __future__ import annotations

import math
from typing import Any

from rnnkit.core import devices
from rnnkit.nn.module import Array
from rnnkit.optim.base import Optimizer
from rnnkit.optim.models import number

__all__ = ["SGD", "Adagrad", "Adam", "Optimizer"]


class SGD(Optimizer):
    """Stochastic gradient descent: v = momentum v + dp; p -= lr v.

    Equivalent of torch.optim.SGD without dampening, Nesterov momentum and weight decay.

    Args:
        model: a Module, or a list of Modules.
        lr: learning rate, at least 0.
        momentum: at least 0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or `model` has no parameters or has one twice.

    Examples:
        >>> import numpy as np, rnnkit
        >>> layer = rnnkit.Linear(2, 1, rng=0)
        >>> optimizer = rnnkit.SGD(layer, lr=0.1, momentum=0.9)
        >>> loss_fn = rnnkit.MSELoss()
        >>> x, target = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
        >>> losses = []
        >>> for _ in range(5):
        ...     losses.append(loss_fn(layer(x), target))
        ...     optimizer.zero_grad()
        ...     dx = layer.backward(loss_fn.backward())
        ...     optimizer.step()
        >>> losses[-1] < losses[0]
        True
    """

    options = ("lr", "momentum")

    def __init__(self, model: Any, lr: float, momentum: float = 0.0) -> None:
        self.momentum = number("momentum", momentum)
        super().__init__(model, lr)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]
        """State arrays: "momentum_buffer", or none without momentum."""
        return ("momentum_buffer",) if self.momentum else ()

    def _update(self, p: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        if self.momentum:
            state["momentum_buffer"] *= self.momentum
            state["momentum_buffer"] += grad
            grad = state["momentum_buffer"]
        xp: Any = devices.array_module(p)
        xp.multiply(grad, self.lr, out=scratch)
        p -= scratch


class Adagrad(Optimizer):
    """Adagrad: p -= lr dp / (sqrt(sum of dp^2) + eps) (Duchi, Hazan and Singer, 2011).

    Equivalent of torch.optim.Adagrad without decay.

    Args:
        model: a Module, or a list of Modules.
        lr: learning rate, at least 0.
        eps: added to the denominator, at least 0. Keyword-only, because torch has lr_decay in this position.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or `model` has no parameters or has one twice.

    Examples:
        >>> import rnnkit
        >>> layer = rnnkit.Linear(2, 1, bias=False)
        >>> layer.params["weight"][...] = 1.0
        >>> layer.grads["weight"][...] = 2.0
        >>> rnnkit.Adagrad(layer, lr=0.5).step()
        >>> layer.params["weight"]
        array([[0.5, 0.5]], dtype=float32)
    """

    slots = ("sum",)
    options = ("lr", "eps")

    def __init__(self, model: Any, lr: float = 0.01, *, eps: float = 1e-10) -> None:
        self.eps = number("eps", eps)
        super().__init__(model, lr)

    def _update(self, p: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        xp: Any = devices.array_module(p)
        xp.multiply(grad, grad, out=scratch)
        state["sum"] += scratch
        xp.sqrt(state["sum"], out=scratch)
        scratch += self.eps
        xp.divide(grad, scratch, out=scratch)
        scratch *= self.lr
        p -= scratch


class Adam(Optimizer):
    """Adam: p -= lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), with running means m of dp and v of dp^2 and step
    count t (Kingma and Ba, 2015). As torch.optim.Adam without weight decay and AMSGrad.

    Args:
        model: a Module, or a list of Modules.
        lr: learning rate, at least 0.
        betas: decay rates (b1, b2) of the running means, each in [0, 1).
        eps: added to the denominator, at least 0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or `model` has no parameters or has one twice.

    Examples:
        >>> import rnnkit
        >>> layer = rnnkit.Linear(2, 1, bias=False)
        >>> layer.params["weight"][...] = 1.0
        >>> layer.grads["weight"][...] = 2.0
        >>> rnnkit.Adam(layer, lr=0.5).step()
        >>> layer.params["weight"].round(4)
        array([[0.5, 0.5]], dtype=float32)
    """

    slots = ("exp_avg", "exp_avg_sq")
    options = ("lr", "betas", "eps")

    def __init__(
        self,
        model: Any,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.betas = _pair_of_betas("betas", betas)
        self.eps = number("eps", eps)
        self.t = 0
        super().__init__(model, lr)

    def _checked_options(self, options: dict[str, Any], where: str) -> dict[str, Any]:
        betas = _pair_of_betas(where.format("betas"), options.pop("betas"))
        return super()._checked_options(options, where) | {"betas": betas}

    def _begin_step(self) -> None:
        self.t += 1

    def _update(self, p: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        xp: Any = devices.array_module(p)
        b1, b2 = self.betas
        m = state["exp_avg"]
        v = state["exp_avg_sq"]
        xp.subtract(grad, m, out=scratch)
        scratch *= 1 - b1
        m += scratch
        v *= b2
        xp.multiply(grad, grad, out=scratch)
        scratch *= 1 - b2
        v += scratch
        xp.sqrt(v, out=scratch)
        scratch /= math.sqrt(1 - b2**self.t)
        scratch += self.eps
        xp.divide(m, scratch, out=scratch)
        scratch *= self.lr / (1 - b1**self.t)
        p -= scratch


def _pair_of_betas(name: str, betas: Any) -> tuple[float, float]:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"{name} must be a pair of numbers in [0, 1), got {betas!r}")
    b1, b2 = (number(f"{name}[{k}]", beta, below=1.0) for k, beta in enumerate(betas))
    return b1, b2
