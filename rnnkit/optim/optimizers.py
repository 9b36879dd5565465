"""Optimizers: parameters moved in place by their gradients, with PyTorch's formulas.

An optimizer reads `params` and `grads` of its modules anew at each step, so a module may be moved to another device
in between. Beyond its state, one array a parameter and slot, it holds scratch arrays that serve every parameter in
turn, so a step allocates nothing of a parameter's size. No step waits for a CUDA device.

Of 16-bit parameters the state is float32, and among it is the parameter itself, "master": steps add up there, and the
parameter is the master rounded. Of a bfloat16 weight near 1 a step below 0.002 would otherwise be no step at all. An
entry that something else has written to since, as load_state_dict does, is taken as it was written.

`state_dict` and `load_state_dict` have torch's form, and training that goes on from them has the bits of training that
was never interrupted. An optimizer cannot be pickled: its copy would move a copy of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnkit.core import devices
from rnnkit.core.mixed_precision import compute_dtype
from rnnkit.core.read_only import check_writable
from rnnkit.nn.module import Array
from rnnkit.optim import state as optimizer_state
from rnnkit.optim.clipping import clip_grad_norm, clip_grad_value
from rnnkit.optim.models import Key, modules_of, number, parameters_of

__all__ = ["SGD", "Adagrad", "Adam", "Optimizer", "clip_grad_norm", "clip_grad_value"]

MASTER = "master"  # the slot of a 16-bit parameter's float32 self


class Optimizer:
    """What SGD, Adagrad and Adam share: the modules, the learning rate, and a dict of state arrays per parameter.

    slots: names of the state arrays. options: names of the arguments that a state dict's param_groups hold.
    """

    slots: tuple[str, ...] = ()
    options: tuple[str, ...] = ("lr",)

    def __init__(self, model: Any, lr: float) -> None:
        self._models = modules_of(model)
        self.lr = lr
        self.state: dict[Key, dict[str, Array]] = {}
        self._scratch: dict[tuple[str, str, str], Array] = {}

    @property
    def lr(self) -> float:
        """The learning rate; a schedule may assign it between steps."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = number("lr", value)

    def step(self) -> None:
        """Moves every parameter once, by what its gradient holds now. Raises ValueError where one is frozen."""
        parameters = list(parameters_of(self._models))
        for (_, name), p, _ in parameters:
            check_writable(name, p)
        for key, p, _ in parameters:  # all that is allocated, so that a full device stops no step half way
            with devices.current(devices.device_of(p)):
                state = self._state_of(key, p)
                for role, dtype in self._roles(p, state):
                    self._scratch_for(role, p, dtype)
        self._begin_step()
        for key, p, grad in parameters:
            with devices.current(devices.device_of(p)):
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
        xp: Any = devices.array_module(p)
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

    def state_dict(self) -> dict[str, Any]:
        """{"state": {index: {slot: array}}, "param_groups": [{"lr": ..., "params": [0, ...], "param_names": [...]}]}.

        As torch's, with NumPy copies. index: the parameter's place among all, in the order of the modules and their
        `params`. Slots: "momentum_buffer" (SGD with momentum), "sum" (Adagrad), "exp_avg", "exp_avg_sq" and "step", an
        int (Adam), "master" of 16-bit parameters; float32, or float64 of float64 parameters, in the parameter's shape.
        There is no state before the first step, nor where there are no slots.
        """
        return optimizer_state.state_dict(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over state and options (lr, momentum, ...) of an optimizer of the same kind over the same parameters.

        Arrays (NumPy, CuPy or torch) are copied, to each parameter's device. The parameters are not part of it: load
        the model's own state dict too. Everything is checked before anything is changed. Raises TypeError, KeyError or
        ValueError that says what does not fit, what it is and what it should be: a name, number, shape or dtype.
        """
        optimizer_state.checked(self, state_dict)()

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind = type(self).__name__
        raise TypeError(
            f"{kind} cannot be pickled or copied: the copy would move a copy of the model and leave yours as it is. "
            f"Save its state_dict(), or rnnkit.save(model, path, optimizer=optimizer); then make a new {kind} over the "
            f"model and load_state_dict() it"
        )

    def _checked_options(self, options: dict[str, Any], where: str) -> dict[str, Any]:
        """The value of each attribute that `options`, by name, gives. Raises TypeError or ValueError by name."""
        return {f"_{name}" if name == "lr" else name: number(where.format(name), v) for name, v in options.items()}

    def _begin_step(self) -> None:
        """What changes once a step and not once a parameter."""

    def _update(self, p: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        raise TypeError(f"{type(self).__name__} defines no update")

    def _state_of(self, key: Key, p: Array) -> dict[str, Array]:
        """The parameter's state, zeros at first, on the parameter's device wherever it has moved."""
        xp: Any = devices.array_module(p)
        if key not in self.state:
            compute = compute_dtype(p.dtype)
            self.state[key] = {slot: xp.zeros(p.shape, compute) for slot in self.slots}
            if compute != p.dtype:
                self.state[key][MASTER] = p.astype(compute)
        state = self.state[key]
        for slot, held in state.items():
            state[slot] = devices.to_device(held, devices.device_of(p))
        return state

    def _scratch_for(self, role: str, p: Array, dtype: np.dtype) -> Array:
        """An array of p's shape, on its device, which the next parameter will overwrite."""
        key = (role, devices.device_of(p), dtype.name)
        if key not in self._scratch or self._scratch[key].size < p.size:
            xp: Any = devices.array_module(p)
            self._scratch[key] = xp.empty(p.size, dtype)
        return self._scratch[key][: p.size].reshape(p.shape)


class SGD(Optimizer):
    """p -= lr v with v = momentum v + dp. As torch.optim.SGD without dampening, Nesterov or weight decay.

    model: a Module or several. lr: at least 0. momentum: at least 0, which is none. Raises TypeError or ValueError by
    name.
    """

    options = ("lr", "momentum")

    def __init__(self, model: Any, lr: float, momentum: float = 0.0) -> None:
        self.momentum = number("momentum", momentum)
        super().__init__(model, lr)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]
        """The state arrays: none without momentum."""
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
    """p -= lr dp / (sqrt(sum of dp^2) + eps). Duchi, Hazan and Singer (2011), as torch.optim.Adagrad without decay.

    model: a Module or several. lr, eps: at least 0; eps by name alone, as torch has lr_decay in its place. Raises
    TypeError or ValueError by name.
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
    """p -= lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), m and v running means of dp and dp^2.

    Kingma and Ba (2015), as torch.optim.Adam without weight decay or AMSGrad. model: a Module or several. lr, eps: at
    least 0. betas: a pair in [0, 1). Raises TypeError or ValueError by name.
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
        (b1, b2), m, v = self.betas, state["exp_avg"], state["exp_avg_sq"]
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
