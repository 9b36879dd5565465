"""The modules that an optimizer or clipping is given, their parameters and gradients, and checks of their numbers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from typing import Any

from rnnkit.core import checks
from rnnkit.nn.module import Array, Module

Key = tuple[int, str]  # which module, which of its parameters


def modules_of(model: Any) -> tuple[Module, ...]:
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


def parameters_of(models: tuple[Module, ...]) -> Iterator[tuple[Key, Array, Array]]:
    for index, model in enumerate(models):
        grads = model.grads
        for name, p in model.params.items():
            yield (index, name), p, grads[name]


def number(name: str, value: Any, *, below: float = math.inf, finite: bool = True) -> float:
    """`value` as a float of at least 0 and below `below`; infinity passes if `finite` is False."""
    wanted = f"in [0, {below:g})" if below < math.inf else "at least 0" + (" and finite" if finite else "")
    if isinstance(value, checks.NOT_NUMBERS) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number that is {wanted}, got {value!r}")
    number = float(value)
    if not (0 <= number < below or (not finite and number == math.inf)):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return number
