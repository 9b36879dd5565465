"""Optimizers: parameters moved in place by their gradients, with PyTorch's formulas; and gradient clipping.

An optimizer reads `params` and `grads` of its modules anew at each step, so a module may be moved to another device
in between. Beyond its state, one array a parameter and slot, it holds scratch arrays that serve every parameter in
turn, so a step allocates nothing of a parameter's size. No step waits for a CUDA device.

Of 16-bit parameters the state is float32, and among it is the parameter itself, "master": steps add up there, and the
parameter is the master rounded. Of a bfloat16 weight near 1 a step below 0.002 would otherwise be no step at all. An
entry that something else has written to since, as load_state_dict does, is taken as it was written.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np

from rnnkit import _checks, _device
from rnnkit._frozen import check_writable
from rnnkit._wide import compute_dtype, narrow, wide
from rnnkit.module import Array, Module

Key = tuple[int, str]  # which module, which of its parameters
MASTER = "master"  # the slot of a 16-bit parameter's float32 self


class Optimizer:
    """What SGD, Adagrad and Adam share: the modules, the learning rate, and one dict of state arrays a parameter."""

    slots: tuple[str, ...] = ()

    def __init__(self, model: Any, lr: float) -> None:
        self._models = _modules(model)
        self.lr = lr
        self.state: dict[Key, dict[str, Array]] = {}
        self._scratch: dict[tuple[str, str, str], Array] = {}

    @property
    def lr(self) -> float:
        """The learning rate; a schedule may assign it between steps."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = _number("lr", value)

    def step(self) -> None:
        """Moves every parameter once, by what its gradient holds now. Raises ValueError where one is frozen."""
        parameters = list(_parameters(self._models))
        for (_, name), p, _ in parameters:
            check_writable(name, p)
        for key, p, _ in parameters:  # all that is allocated, so that a full device stops no step half way
            with _device.current(_device.device_of(p)):
                state = self._state_of(key, p)
                for role, dtype in self._roles(p, state):
                    self._scratch_for(role, p, dtype)
        self._begin_step()
        for key, p, grad in parameters:
            with _device.current(_device.device_of(p)):
                self._step_of(p, grad, self.state[key])

    @staticmethod
    def _roles(p: Array, state: dict[str, Array]) -> list[tuple[str, Any]]:
        """What `_step_of` takes from `_scratch_for`, by role."""
        compute = compute_dtype(p.dtype)
        narrow_ones = [("wide", compute), ("rounded", p.dtype), ("written", np.dtype(bool))]
        return [("update", compute), *(narrow_ones if MASTER in state else [])]

    def _step_of(self, p: Array, grad: Array, state: dict[str, Array]) -> None:
        compute = compute_dtype(p.dtype)
        scratch = self._scratch_for("update", p, compute)
        if MASTER not in state:
            self._update(p, grad, state, scratch)
            return
        xp: Any = _device.array_module(p)
        master, wide_one = state[MASTER], self._scratch_for("wide", p, compute)
        rounded, written = self._scratch_for("rounded", p, p.dtype), self._scratch_for("written", p, np.dtype(bool))
        with np.errstate(over="ignore"):  # beyond float16: infinite
            rounded[...] = master
            xp.not_equal(rounded, p, out=written)
            wide_one[...] = p
            xp.copyto(master, wide_one, where=written)
            wide_one[...] = grad
            self._update(master, wide_one, state, scratch)
            p[...] = master

    def zero_grad(self) -> None:
        """Sets every gradient to zero, in place."""
        for model in self._models:
            model.zero_grad()

    def _begin_step(self) -> None:
        """What changes once a step and not once a parameter."""

    def _update(self, p: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        raise TypeError(f"{type(self).__name__} defines no update")

    def _state_of(self, key: Key, p: Array) -> dict[str, Array]:
        """The parameter's state, zeros at first, on the parameter's device wherever it has moved."""
        xp: Any = _device.array_module(p)
        if key not in self.state:
            compute = compute_dtype(p.dtype)
            self.state[key] = {slot: xp.zeros(p.shape, compute) for slot in self.slots}
            if compute != p.dtype:
                self.state[key][MASTER] = p.astype(compute)
        state = self.state[key]
        for slot, held in state.items():
            state[slot] = _device.to_device(held, _device.device_of(p))
        return state

    def _scratch_for(self, role: str, p: Array, dtype: np.dtype) -> Array:
        """An array of p's shape, on its device, which the next parameter will overwrite."""
        key = (role, _device.device_of(p), dtype.name)
        if key not in self._scratch or self._scratch[key].size < p.size:
            xp: Any = _device.array_module(p)
            self._scratch[key] = xp.empty(p.size, dtype)
        return self._scratch[key][: p.size].reshape(p.shape)


class SGD(Optimizer):
    """p -= lr v with v = momentum v + dp. As torch.optim.SGD without dampening, Nesterov or weight decay.

    model: a Module or several. lr: at least 0. momentum: at least 0, which is none. Raises TypeError or ValueError by
    name.
    """

    def __init__(self, model: Any, lr: float, momentum: float = 0.0) -> None:
        self.momentum = _number("momentum", momentum)
        self.slots = ("velocity",) if self.momentum else ()
        super().__init__(model, lr)

    def _update(self, p: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        if self.momentum:
            state["velocity"] *= self.momentum
            state["velocity"] += grad
            grad = state["velocity"]
        xp: Any = _device.array_module(p)
        xp.multiply(grad, self.lr, out=scratch)
        p -= scratch


class Adagrad(Optimizer):
    """p -= lr dp / (sqrt(sum of dp^2) + eps). Duchi, Hazan and Singer (2011), as torch.optim.Adagrad without decay.

    model: a Module or several. lr, eps: at least 0; eps by name alone, as torch has lr_decay in its place. Raises
    TypeError or ValueError by name.
    """

    slots = ("sum",)

    def __init__(self, model: Any, lr: float = 0.01, *, eps: float = 1e-10) -> None:
        self.eps = _number("eps", eps)
        super().__init__(model, lr)

    def _update(self, p: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        xp: Any = _device.array_module(p)
        xp.multiply(grad, grad, out=scratch)
        state["sum"] += scratch
        xp.sqrt(state["sum"], out=scratch)
        scratch += self.eps
        xp.divide(grad, scratch, out=scratch)
        scratch *= self.lr
        p -= scratch


class Adam(Optimizer):
    """p -= lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), m and v running means of dp and dp^2.

    Kingma and Ba (2015), as torch.optim.Adam without weight decay or AMSGrad. model: a Module or several. lr, eps: at
    least 0. betas: a pair in [0, 1). Raises TypeError or ValueError by name.
    """

    slots = ("m", "v")

    def __init__(
        self,
        model: Any,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"betas must be a pair of numbers in [0, 1), got {betas!r}")
        b1, b2 = (_number(f"betas[{k}]", beta, below=1.0) for k, beta in enumerate(betas))
        self.betas = (b1, b2)
        self.eps = _number("eps", eps)
        self.t = 0
        super().__init__(model, lr)

    def _begin_step(self) -> None:
        self.t += 1

    def _update(self, p: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        xp: Any = _device.array_module(p)
        (b1, b2), m, v = self.betas, state["m"], state["v"]
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


def clip_grad_norm(model: Any, max_norm: float) -> float:
    """Scales all gradients of a Module, or of several together, so that their common L2 norm is at most max_norm.

    Returns the norm before. The factor is max_norm / (norm + 1e-6) where that is below 1, as torch's clip_grad_norm_.
    max_norm: at least 0; infinity changes no gradient whose norm is finite. An infinite norm leaves zero, and NaN where
    the infinity was, or under an infinite max_norm NaN throughout; a norm of NaN leaves NaN throughout: look at what is
    returned before a step. Reading it waits for a CUDA device. Raises TypeError or ValueError by name.
    """
    max_norm = _number("max_norm", max_norm, finite=False)
    grads = [grad for _, _, grad in _parameters(_modules(model))]
    norm = math.sqrt(_sum_of_squares(grads))
    factor = max_norm / (norm + 1e-6)
    if not factor >= 1:  # also where it is NaN
        for grad in grads:
            with _device.current(_device.device_of(grad)):
                if compute_dtype(grad.dtype) == grad.dtype:
                    grad *= factor
                else:  # 16 bits would round the factor, or lose it
                    grad[...] = narrow(wide(grad) * factor, grad.dtype)
    return norm


def _sum_of_squares(grads: list[Array]) -> float:
    """In float64, whose range the square of no gradient leaves. Each device is read once."""
    sums: dict[str, Array] = {}
    for grad in grads:
        device = _device.device_of(grad)
        with _device.current(device):
            all64 = grad.reshape(-1).astype(np.float64)
            squares = all64 @ all64
            sums[device] = sums[device] + squares if device in sums else squares
    return sum(float(total) for total in sums.values())


def clip_grad_value(model: Any, value: float) -> None:
    """Clips every gradient of a Module, or of several, to [-value, value] in place, as torch's clip_grad_value_.

    NaN stays. value: at least 0. Raises TypeError or ValueError by name.
    """
    value = _number("value", value, finite=False)
    for _, _, grad in _parameters(_modules(model)):
        xp: Any = _device.array_module(grad)
        with _device.current(_device.device_of(grad)), np.errstate(over="ignore"):
            bound = grad.dtype.type(value)  # beyond float16: infinite
            xp.minimum(grad, bound, out=grad)
            xp.maximum(grad, -bound, out=grad)


def _modules(model: Any) -> tuple[Module, ...]:
    """One Module or a list of them as a tuple, when they have parameters and none of them twice."""
    models = tuple(model) if isinstance(model, (list, tuple)) else (model,)
    for one in models:
        if not isinstance(one, Module):
            raise TypeError(f"model must be a Module or a list of Modules, got {type(one).__name__}")
    owners = [id(p) for one in models for p in one.params.values()]
    if not owners:
        raise ValueError("model must have parameters, got none")
    if len(set(owners)) < len(owners):
        raise ValueError("model must have every parameter once, got one in several modules")
    return models


def _parameters(models: tuple[Module, ...]) -> Iterator[tuple[Key, Array, Array]]:
    for index, model in enumerate(models):
        grads = model.grads
        for name, p in model.params.items():
            yield (index, name), p, grads[name]


def _number(name: str, value: Any, *, below: float = math.inf, finite: bool = True) -> float:
    """`value` as a float of at least 0 and below `below`; infinity passes if `finite` is False."""
    wanted = f"in [0, {below:g})" if below < math.inf else "at least 0" + (" and finite" if finite else "")
    if isinstance(value, _checks.NO_NUMBERS) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number that is {wanted}, got {value!r}")
    number = float(value)
    if not (0 <= number < below or (not finite and number == math.inf)):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return number
