"""Optimizer: the base class of the optimizers, which update parameters in place by their gradients.

An optimizer reads `params` and `grads` of its modules at each step, so a module may move to another device between
steps. Besides its state, one array per parameter and slot, an optimizer holds scratch arrays that all parameters share,
so a step allocates no arrays of a parameter's size. No step synchronises with a CUDA device.

The state of 16-bit parameters is float32 and contains "master", a float32 copy of the parameter: steps accumulate in
the master copy, and the parameter is the rounded master. Otherwise a step below 0.002 would not change a bfloat16
weight near 1. An element of the parameter that was written by other code since the last step (such as
`load_state_dict`) replaces its master element.

`state_dict` and `load_state_dict` have torch's form. Training that resumes from them gives the same bits as
uninterrupted training. An optimizer cannot be pickled, because its copy would update a copy of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnkit.core import devices
from rnnkit.core.mixed_precision import compute_dtype
from rnnkit.core.read_only import check_writable
from rnnkit.nn.module import Array
from rnnkit.optim import state as optimizer_state
from rnnkit.optim.models import Key, modules_of, number, parameters_of

MASTER = "master"  # slot of the float32 master copy of a 16-bit parameter


class Optimizer:
    """Base class of SGD, Adagrad and Adam: the modules, the learning rate, and a dict of state arrays per parameter.

    Attributes:
        slots: names of the state arrays.
        options: names of the arguments that the param_groups of a state dict hold.
        state: (index of the module, name of the parameter) -> slot -> array.
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
        """Learning rate, at least 0; a schedule may assign to it between steps."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = number("lr", value)

    def step(self) -> None:
        """Updates every parameter once, by its current gradient.

        Raises:
            ValueError: a parameter is frozen. No parameter has changed then.
            DeviceMemoryError: a device has no memory for the state. No parameter has changed then.

        Examples:
            >>> import rnnkit
            >>> layer = rnnkit.Linear(2, 1, bias=False, rng=0)
            >>> layer.params["weight"][...] = 1.0
            >>> layer.grads["weight"][...] = 2.0
            >>> rnnkit.SGD(layer, lr=0.25).step()
            >>> layer.params["weight"]
            array([[0.5, 0.5]], dtype=float32)
        """
        parameters = list(parameters_of(self._models))
        for (_, name), p, _ in parameters:
            check_writable(name, p)
        for key, p, _ in parameters:  # all allocations first: if one fails, no parameter has changed
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
        """Roles and dtypes of the scratch arrays that `_step_of` uses."""
        compute = compute_dtype(p.dtype)
        for_16_bits = [("wide", compute), ("rounded", p.dtype), ("written", np.dtype(bool))]
        return [("update", compute), *(for_16_bits if MASTER in state else [])]

    def _step_of(self, p: Array, grad: Array, state: dict[str, Array]) -> None:
        compute = compute_dtype(p.dtype)
        scratch = self._scratch_for("update", p, compute)
        if MASTER not in state:
            self._update(p, grad, state, scratch)
            return
        xp: Any = devices.array_module(p)
        master = state[MASTER]
        wide = self._scratch_for("wide", p, compute)
        rounded = self._scratch_for("rounded", p, p.dtype)
        written = self._scratch_for("written", p, np.dtype(bool))
        with np.errstate(over="ignore"):  # an overflow of float16 is infinity
            rounded[...] = master
            xp.not_equal(rounded, p, out=written)
            wide[...] = p
            xp.copyto(master, wide, where=written)
            wide[...] = grad
            self._update(master, wide, state, scratch)
            p[...] = master

    def zero_grad(self) -> None:
        """Sets every gradient of the modules to zero, in place.

        Examples:
            >>> import rnnkit
            >>> layer = rnnkit.Linear(2, 1, bias=False)
            >>> layer.grads["weight"] += 1
            >>> rnnkit.SGD(layer, lr=0.1).zero_grad()
            >>> layer.grads["weight"]
            array([[0., 0.]], dtype=float32)
        """
        for model in self._models:
            model.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Copies the state to the host, in torch's form.

        Slots are "momentum_buffer" (SGD with momentum), "sum" (Adagrad), "exp_avg", "exp_avg_sq" and the integer "step"
        (Adam), and "master" of 16-bit parameters. The arrays have the parameter's shape and are float32, or float64 for
        float64 parameters. The state is empty before the first step, and for optimizers without slots.

        Returns:
            {"state": {index: {slot: array}}, "param_groups": [{"lr": ..., "params": [0, ...], "param_names": [...]}]}.
            The index of a parameter is its position among all parameters, in the order of the modules and their
            `params`.

        Examples:
            >>> import rnnkit
            >>> optimizer = rnnkit.SGD(rnnkit.Linear(2, 1), lr=0.1)
            >>> optimizer.state_dict()["param_groups"]
            [{'lr': 0.1, 'momentum': 0.0, 'params': [0, 1], 'param_names': ['weight', 'bias']}]
        """
        return optimizer_state.state_dict(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads state and options (lr, momentum, ...) of an optimizer of the same class over the same parameters.

        Arrays are copied to the device of their parameter. A state dict does not contain the parameters: load the state
        dict of the model too. Everything is checked before anything is changed.

        Args:
            state_dict: a mapping as `state_dict` returns it, or torch's, of NumPy, CuPy or torch arrays.

        Raises:
            TypeError: a value has the wrong type or dtype.
            KeyError: a name is missing or unknown.
            ValueError: a number, a shape or the list of parameters does not fit this optimizer.

        Examples:
            >>> import rnnkit
            >>> layer = rnnkit.Linear(2, 1)
            >>> optimizer = rnnkit.Adam(layer)
            >>> optimizer.step()
            >>> resumed = rnnkit.Adam(layer)
            >>> resumed.load_state_dict(optimizer.state_dict())
            >>> resumed.t
            1
        """
        optimizer_state.checked(self, state_dict)()

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind = type(self).__name__
        raise TypeError(
            f"{kind} cannot be pickled or copied: the copy would update a copy of the model. Save its state_dict(), or "
            f"use rnnkit.save(model, path, optimizer=optimizer); then construct a new {kind} over the model and call "
            f"its load_state_dict()"
        )

    def _checked_options(self, options: dict[str, Any], where: str) -> dict[str, Any]:
        """Attribute -> checked value, for the options by name. Raises TypeError or ValueError that names the option."""
        return {f"_{name}" if name == "lr" else name: number(where.format(name), v) for name, v in options.items()}

    def _begin_step(self) -> None:
        """Updates what changes once per step and not once per parameter."""

    def _update(self, p: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        raise TypeError(f"{type(self).__name__} defines no update")

    def _state_of(self, key: Key, p: Array) -> dict[str, Array]:
        """The parameter's state on the parameter's current device; zeros before the first step."""
        xp: Any = devices.array_module(p)
        if key not in self.state:
            compute = compute_dtype(p.dtype)
            self.state[key] = {slot: xp.zeros(p.shape, compute) for slot in self.slots}
            if compute != p.dtype:
                self.state[key][MASTER] = p.astype(compute)
        state = self.state[key]
        for slot, array in state.items():
            state[slot] = devices.to_device(array, devices.device_of(p))
        return state

    def _scratch_for(self, role: str, p: Array, dtype: np.dtype) -> Array:
        """An array of p's shape on its device. The next parameter overwrites it."""
        key = (role, devices.device_of(p), dtype.name)
        if key not in self._scratch or self._scratch[key].size < p.size:
            xp: Any = devices.array_module(p)
            self._scratch[key] = xp.empty(p.size, dtype)
        return self._scratch[key][: p.size].reshape(p.shape)
