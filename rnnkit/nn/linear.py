"""Linear and Activation: the layers that usually follow recurrent ones.

16-bit arrays are computed and summed in float32, and the result is rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rnnkit.core import checks
from rnnkit.core.devices import array_module, current, device_of, on_own_device
from rnnkit.core.dtypes import resolve_dtype
from rnnkit.core.long_sums import column_sums, product_over_rows
from rnnkit.core.mixed_precision import compute_dtype, narrow, product
from rnnkit.nn.module import Array, Call, Module, grad_enabled, make_rng


class Linear(Module):
    """y = x W^T + b on the last axis; equivalent of torch.nn.Linear.

    The parameters `weight` (out_features, in_features) and `bias` (out_features,) are drawn from
    U(-1/sqrt(in_features), 1/sqrt(in_features)), as in PyTorch.

    Args:
        in_features: width of x.
        out_features: width of y.
        bias: whether there is a bias.
        dtype: dtype of parameters and arrays: "float64", "float32", "float16" or "bfloat16".
        device: "cpu", "cuda" or "cuda:<index>"; None for the CPU.
        rng: a numpy Generator, a seed or None, for the initial parameters.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.
        RuntimeError: the device cannot be used here.

    Examples:
        >>> import numpy as np, rnnkit
        >>> linear = rnnkit.Linear(3, 2, rng=0)
        >>> linear(np.ones((5, 4, 3), np.float32)).shape
        (5, 4, 2)
    """

    takes_dx = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        device: Any = None,
        rng: Any = None,
    ) -> None:
        self.in_features = checks.positive_int("in_features", in_features)
        self.out_features = checks.positive_int("out_features", out_features)
        self.bias = checks.flag("bias", bias)
        self.rng = make_rng(rng)
        super().__init__(dtype, device)
        with checks.memory_for(in_features=self.in_features, out_features=self.out_features):
            bound = 1 / math.sqrt(self.in_features)
            self._add_param("weight", self.rng.uniform(-bound, bound, (self.out_features, self.in_features)))
            if self.bias:
                self._add_param("bias", self.rng.uniform(-bound, bound, self.out_features))

    def __repr__(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"Linear({self.in_features}, {self.out_features}{bias}, dtype={self._dtype.name})"

    @on_own_device
    def __call__(self, x: Array) -> Array:
        """Applies the layer. `backward` reads x again: do not write into x before it.

        Args:
            x: (..., in_features), in the layer's dtype.

        Returns:
            y, (..., out_features).

        Raises:
            TypeError: x is not an array of the layer's dtype.
            ValueError: x has another last axis or is on another device.

        Examples:
            >>> import numpy as np, rnnkit
            >>> rnnkit.Linear(3, 2, rng=0)(np.ones(3, np.float32)).shape
            (2,)
        """
        x = checks.array("x", x, self.dtype, self.device)
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have shape (..., in_features={self.in_features}), got {tuple(x.shape)}")
        # One matrix product: of a stack of matrices NumPy would call the BLAS once per matrix.
        y = product(x.reshape(-1, self.in_features), self._params["weight"].T)
        if self.bias:
            y += self._params["bias"]
        self._saved = x if grad_enabled() else None
        return narrow(y, self.dtype).reshape(*x.shape[:-1], self.out_features)

    @on_own_device
    def backward(self, dy: Array, *, call: Call | None = None, dx: bool = True) -> Array | None:
        """Differentiates a call; adds to the gradients of `weight` and `bias`.

        Args:
            dy: gradient of y, (..., out_features).
            call: the call to differentiate, from `last_call`; None for this thread's most recent call.
            dx: whether to compute the gradient of x, which is not needed where x is data.

        Returns:
            dx, (..., in_features); None with dx=False.

        Raises:
            RuntimeError: this thread made no call, its most recent call ran under `no_grad()`, or, without `call`,
                several calls are pending since the last backward or `zero_grad()`.
            TypeError: `dy` or `call` has the wrong type or dtype.
            ValueError: `dy` has a bad shape or device, or `call` is of another module.

        Examples:
            >>> import numpy as np, rnnkit
            >>> linear = rnnkit.Linear(3, 2, rng=0)
            >>> y = linear(np.ones((4, 3), np.float32))
            >>> linear.backward(np.ones_like(y)).shape
            (4, 3)
            >>> linear.grads["bias"]
            array([4., 4.], dtype=float32)
        """
        wants_dx = checks.flag("dx", dx)
        x = self._recalled(call)
        shape = (*x.shape[:-1], self.out_features)
        dy = checks.shaped("dy", dy, shape, self.dtype, self.device, "(..., out_features)")
        rows = dy.reshape(-1, self.out_features)
        self._add_grad("weight", product_over_rows(rows, x.reshape(-1, self.in_features)))
        if self.bias:
            self._add_grad("bias", column_sums(rows))
        if not wants_dx:
            return None
        return narrow(product(rows, self._params["weight"]), self.dtype).reshape(x.shape)


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2, which does not overflow for any x."""
    return 0.5 * (1 + array_module(x).tanh(0.5 * x))  # type: ignore[union-attr]


def _tanh(x: Array) -> Array:
    return array_module(x).tanh(x)  # type: ignore[union-attr]


def _relu(x: Array) -> Array:
    return array_module(x).maximum(x, 0)  # type: ignore[union-attr]


def _relu_gradient(y: Array, dy: Array) -> Array:
    return array_module(y).where(y <= 0, y.dtype.type(0), dy)  # type: ignore[union-attr]


# kind -> forward pass, and the input's gradient as a function of y and dy. The slope of relu at 0 is 0, as in PyTorch.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]] = {
    "sigmoid": (_sigmoid, lambda y, dy: dy * y * (1 - y)),
    "tanh": (_tanh, lambda y, dy: dy * (1 - y * y)),
    "relu": (_relu, _relu_gradient),
}


class Activation(Module):
    """Applies "sigmoid", "tanh" or "relu" to every element.

    It has no parameters: it accepts every dtype in `rnnkit.core.dtypes.DTYPES` on every device and returns the same.

    Args:
        kind: "sigmoid", "tanh" or "relu".

    Raises:
        ValueError: `kind` is unknown.

    Examples:
        >>> import numpy as np, rnnkit
        >>> rnnkit.Activation("relu")(np.array([-1.0, 2.0]))
        array([0., 2.])
    """

    def __init__(self, kind: str) -> None:
        self.kind = checks.one_of("kind", kind, tuple(ACTIVATIONS))
        super().__init__()

    def __repr__(self) -> str:
        return f"Activation({self.kind!r})"

    def __call__(self, x: Array) -> Array:
        """Applies the function.

        Args:
            x: an array of any shape.

        Returns:
            y, with x's shape, dtype and device.

        Raises:
            TypeError: x is not a NumPy or CuPy array.
            ValueError: x has a dtype that is not in DTYPES.

        Examples:
            >>> import numpy as np, rnnkit
            >>> rnnkit.Activation("sigmoid")(np.zeros(2))
            array([0.5, 0.5])
        """
        x = checks.adopt("x", x)
        checks.plain_array("x", x)
        resolve_dtype(x.dtype)
        with current(device_of(x)):
            y = _computed(ACTIVATIONS[self.kind][0], x)
        self._saved = y if grad_enabled() else None
        return y

    def backward(self, dy: Array, *, call: Call | None = None) -> Array:
        """Differentiates a call. It reads the call's output y again: do not write into y before it.

        Args:
            dy: gradient of y, with its shape.
            call: the call to differentiate, from `last_call`; None for this thread's most recent call.

        Returns:
            dx, with the same shape.

        Raises:
            RuntimeError: this thread made no call, its most recent call ran under `no_grad()`, or, without `call`,
                several calls are pending since the last backward or `zero_grad()`.
            TypeError: `dy` or `call` has the wrong type or dtype.
            ValueError: `dy` has a bad shape or device, or `call` is of another module.

        Examples:
            >>> import numpy as np, rnnkit
            >>> activation = rnnkit.Activation("relu")
            >>> y = activation(np.array([-1.0, 2.0]))
            >>> activation.backward(np.array([5.0, 5.0]))
            array([0., 5.])
        """
        y = self._recalled(call)
        dy = checks.shaped("dy", dy, y.shape, y.dtype, device_of(y), "y's shape")
        with current(device_of(y)):
            return _computed(ACTIVATIONS[self.kind][1], y, dy)


def _computed(function: Callable[..., Array], *arrays: Array) -> Array:
    """Evaluates `function` in the arrays' compute dtype and rounds the result to their dtype."""
    xp: Any = array_module(arrays[0])
    dtype = arrays[0].dtype
    result = function(*(xp.asarray(a, compute_dtype(dtype)) for a in arrays))
    return narrow(xp.asarray(result), dtype)  # for 0-d arrays NumPy returns a scalar
