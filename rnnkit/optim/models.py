"""The modules of an optimizer or of clipping: their parameters and gradients; and checks of number arguments."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from typing import Any

from rnnkit.core import checks
from rnnkit.nn.module import Array, Module

Key = tuple[int, str]  # index of the module, name of the parameter


def modules_of(model: Any) -> tuple[Module, ...]:
    """Returns a Module or a list of Modules as a tuple, after checking that they have parameters, each of them once."""
    models = tuple(model) if isinstance(model, (list, tuple)) else (model,)
    for module in models:
        if not isinstance(module, Module):
            raise TypeError(f"model must be a Module or a list of Modules, got {type(module).__name__}")
        module._check_trainable("an optimizer or clipping")
    ids = [id(p) for module in models for p in module.params.values()]
    if not ids:
        raise ValueError("model must have parameters, got none")
    if len(set(ids)) < len(ids):
        raise ValueError("model must have every parameter once, got one in several modules")
    return models


def parameters_of(models: tuple[Module, ...]) -> Iterator[tuple[Key, Array, Array]]:
    """Yields (key, parameter, gradient) of every parameter, in the order of the modules and of their `params`."""
    for index, model in enumerate(models):
        grads = model.grads
        for name, p in model.params.items():
            yield (index, name), p, grads[name]


def number(name: str, value: Any, *, below: float = math.inf, finite: bool = True) -> float:
    """Returns `value` as a float of at least 0 and less than `below`. Infinity is accepted if `finite` is False."""
    bounds = f"in [0, {below:g})" if below < math.inf else "at least 0" + (" and finite" if finite else "")
    if isinstance(value, checks.NOT_NUMBERS) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number that is {bounds}, got {value!r}")
    result = float(value)
    if not (0 <= result < below or (not finite and result == math.inf)):
        raise ValueError(f"{name} must be {bounds}, got {value!r}")
    return result
