"""Linear and Activation: what stands after the recurrent layers, on the last axis and on single numbers.

16-bit arrays are summed and computed in float32, and rounded once on the way out.
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
    """y = x W^T + b on the last axis. As torch.nn.Linear.

    weight  (out_features, in_features), bias (out_features,), both U(-1/sqrt(in_features), 1/sqrt(in_features))
    rng     a numpy Generator or a seed
    Raises TypeError or ValueError naming a bad argument.
    """

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
        said = "" if self.bias else ", bias=False"
        return f"Linear({self.in_features}, {self.out_features}{said}, dtype={self._dtype.name})"

    @on_own_device
    def __call__(self, x: Array) -> Array:
        """x (..., in_features) -> (..., out_features). x is kept by reference until `backward`.

        Raises TypeError for another dtype than the layer's, ValueError for another last axis or device.
        """
        x = checks.array("x", x, self.dtype, self.device)
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have shape (..., in_features={self.in_features}), got {tuple(x.shape)}")
        # One product of two matrices: over stacked ones NumPy would call the BLAS once for each.
        y = product(x.reshape(-1, self.in_features), self._params["weight"].T)
        if self.bias:
            y += self._params["bias"]
        self._saved = x if grad_enabled() else None
        return narrow(y, self.dtype).reshape(*x.shape[:-1], self.out_features)

    @on_own_device
    def backward(self, dy: Array, *, call: Call | None = None) -> Array:
        """dy (..., out_features) -> dx (..., in_features); adds into grads["weight"] and grads["bias"].

        Differentiates this thread's last call, or `call` (see `last_call`). Raises RuntimeError before any
        call, after one under `no_grad()`, and without `call` after several since the last backward or `zero_grad()`;
        ValueError or TypeError for a bad dy or `call`.
        """
        x = self._recalled(call)
        shape = (*x.shape[:-1], self.out_features)
        dy = checks.shaped("dy", dy, shape, self.dtype, self.device, "(..., out_features)")
        rows = dy.reshape(-1, self.out_features)
        self._add_grad("weight", product_over_rows(rows, x.reshape(-1, self.in_features)))
        if self.bias:
            self._add_grad("bias", column_sums(rows))
        return narrow(product(rows, self._params["weight"]), self.dtype).reshape(x.shape)


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), by the half-angle identity so that no argument overflows."""
    return 0.5 * (1 + array_module(x).tanh(0.5 * x))  # type: ignore[union-attr]


def _tanh(x: Array) -> Array:
    return array_module(x).tanh(x)  # type: ignore[union-attr]


def _relu(x: Array) -> Array:
    return array_module(x).maximum(x, 0)  # type: ignore[union-attr]


def _relu_gradient(y: Array, dy: Array) -> Array:
    return array_module(y).where(y <= 0, y.dtype.type(0), dy)  # type: ignore[union-attr]


# kind -> forward, and the gradient of its input from its output y and dy. The slope of relu at 0 is 0, as PyTorch's.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]] = {
    "sigmoid": (_sigmoid, lambda y, dy: dy * y * (1 - y)),
    "tanh": (_tanh, lambda y, dy: dy * (1 - y * y)),
    "relu": (_relu, _relu_gradient),
}


class Activation(Module):
    """ "sigmoid", "tanh" or "relu" of every entry, any shape.

    It has no parameters, so it takes any dtype of `rnnkit.core.dtypes.DTYPES` on any device and answers in kind.
    Raises ValueError for another kind.
    """

    def __init__(self, kind: str) -> None:
        self.kind = checks.one_of("kind", kind, tuple(ACTIVATIONS))
        super().__init__()

    def __repr__(self) -> str:
        return f"Activation({self.kind!r})"

    def __call__(self, x: Array) -> Array:
        """x of any shape -> the same shape.

        Raises TypeError for no plain array, ValueError for a dtype not in DTYPES.
        """
        x = checks.adopt("x", x)
        checks.plain_array("x", x)
        resolve_dtype(x.dtype)
        with current(device_of(x)):
            y = _computed(ACTIVATIONS[self.kind][0], x)
        self._saved = y if grad_enabled() else None
        return y

    def backward(self, dy: Array, *, call: Call | None = None) -> Array:
        """dy of y's shape -> dx. y is kept by reference from the call: do not write into it in between.

        Differentiates this thread's last call, or `call` (see `last_call`). Raises RuntimeError before any
        call, after one under `no_grad()`, and without `call` after several since the last backward or `zero_grad()`;
        ValueError or TypeError for a bad dy or `call`.
        """
        y = self._recalled(call)
        dy = checks.shaped("dy", dy, y.shape, y.dtype, device_of(y), "y's shape")
        with current(device_of(y)):
            return _computed(ACTIVATIONS[self.kind][1], y, dy)


def _computed(function: Callable[..., Array], *arrays: Array) -> Array:
    """`function` of arrays in the dtype they are computed in, rounded to the one they are stored in."""
    xp: Any = array_module(arrays[0])
    dtype = arrays[0].dtype
    result = function(*(xp.asarray(a, compute_dtype(dtype)) for a in arrays))
    return narrow(xp.asarray(result), dtype)  # of no dimensions NumPy makes a scalar
