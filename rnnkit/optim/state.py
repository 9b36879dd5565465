"""An optimizer's state dict, in torch's form: created, and checked completely before any of it is loaded."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rnnkit.core import checks, devices
from rnnkit.core.mixed_precision import compute_dtype
from rnnkit.optim.models import Key, parameters_of

MASTER = "master"  # slot of the float32 master copy of a 16-bit parameter
STEP = "step"  # Adam's step count; as in torch, every parameter's entry has it


def _parameters(optimizer: Any) -> list[tuple[Key, Any]]:
    return [(key, p) for key, p, _ in parameters_of(optimizer._models)]


def _names(optimizer: Any) -> list[str]:
    """The parameters' names, with the module's index as prefix if there are several modules."""
    several = len(optimizer._models) > 1
    return [f"{index}.{name}" if several else name for (index, name), _ in _parameters(optimizer)]


def state_dict(optimizer: Any) -> dict[str, Any]:
    """See `Optimizer.state_dict`."""
    keys = [key for key, _ in _parameters(optimizer)]
    state: dict[int, dict[str, Any]] = {}
    if all(key in optimizer.state for key in keys):  # false before the first step
        for index, key in enumerate(keys):
            entry = {slot: np.array(devices.to_numpy(array)) for slot, array in optimizer.state[key].items()}
            if hasattr(optimizer, "t"):
                entry[STEP] = optimizer.t
            if entry:
                state[index] = entry
    group = {name: getattr(optimizer, name) for name in optimizer.options}
    group |= {"params": list(range(len(keys))), "param_names": _names(optimizer)}
    return {"state": state, "param_groups": [group]}


def checked(optimizer: Any, source: Mapping[str, Any]) -> Callable[[], None]:
    """Performs all checks of `Optimizer.load_state_dict`; the function it returns loads the state and cannot fail."""
    if not isinstance(source, Mapping):
        raise TypeError(f"state_dict must be a mapping of 'state' and 'param_groups', got {type(source).__name__}")
    _check_keys("state_dict", source, {"state", "param_groups"})
    options = _checked_group(optimizer, source["param_groups"])
    state, t = _checked_state(optimizer, source["state"], options)

    def load() -> None:
        for name, value in options.items():
            setattr(optimizer, name, value)
        optimizer.state = state
        if hasattr(optimizer, "t"):
            optimizer.t = t

    return load


def _check_keys(
    name: str, mapping: Mapping[Any, Any], required: set[Any], optional: frozenset[Any] = frozenset()
) -> None:
    keys = set(mapping)
    if not required <= keys <= required | optional:
        missing, extra = (sorted(map(str, k)) or "nothing" for k in (required - keys, keys - required - optional))
        raise KeyError(f"{name} must hold {', '.join(sorted(map(str, required)))}: missing {missing}, extra {extra}")


def _checked_group(optimizer: Any, groups: Any) -> dict[str, Any]:
    """The optimizer's attributes from the single parameter group."""
    if not isinstance(groups, (list, tuple)) or len(groups) != 1 or not isinstance(groups[0], Mapping):
        kind = f"{len(groups)} of them" if isinstance(groups, (list, tuple)) else type(groups).__name__
        raise ValueError(
            f"param_groups must be a list of one mapping, as rnnkit's optimizers have one group, got {kind}"
        )
    group = groups[0]
    where = "param_groups[0]"
    options = optimizer.options
    try:
        _check_keys(where, group, {*options, "params"}, frozenset({"param_names"}))
    except KeyError as problem:
        raise KeyError(f"{problem.args[0]} (this optimizer is {type(optimizer).__name__})") from None
    names = _names(optimizer)
    _check_list(f"{where}['params']", group["params"], list(range(len(names))))
    _check_list(f"{where}['param_names']", group.get("param_names", names), names)
    return optimizer._checked_options({name: group[name] for name in options}, where + "['{}']")


def _check_list(name: str, actual: Any, expected: list[Any]) -> None:
    """Raises an error that names the first element in which `actual` differs from `expected`."""
    if not isinstance(actual, (list, tuple)):
        raise TypeError(f"{name} must be a list, got {type(actual).__name__}")
    if list(actual) != expected:
        pairs = enumerate(zip(actual, expected, strict=False))
        first = next((k for k, (a, b) in pairs if a != b), min(len(actual), len(expected)))
        got, want = (repr(n[first]) if first < len(n) else "nothing" for n in (actual, expected))
        raise ValueError(f"{name}[{first}] must be {want} to match the parameters of this model, got {got}")


def _checked_state(optimizer: Any, source: Any, options: Mapping[str, Any]) -> tuple[dict[Key, dict[str, Any]], int]:
    """Copies of the state per parameter, on the parameter's device, and Adam's step count; empty before any step."""
    if not isinstance(source, Mapping):
        raise TypeError(f"state must be a mapping of parameter indices to slots, got {type(source).__name__}")
    if not source:
        return {}, 0
    slots = optimizer.slots
    if "momentum" in options:
        slots = ("momentum_buffer",) if options["momentum"] else ()
    has_step = hasattr(optimizer, "t")
    expected: dict[int, tuple[Key, Any, tuple[str, ...]]] = {}
    for index, (key, p) in enumerate(_parameters(optimizer)):
        own = (*slots, *((MASTER,) if compute_dtype(p.dtype) != p.dtype else ()))
        if own:
            expected[index] = (key, p, own)
    _check_keys("state", source, set(expected))
    state = {}
    steps = set()
    for index, (key, p, own) in expected.items():
        where = f"state[{index}]"
        entry = source[index]
        if not isinstance(entry, Mapping):
            raise TypeError(f"{where} must be a mapping of slots to arrays, got {type(entry).__name__}")
        _check_keys(where, entry, {*own, *((STEP,) if has_step else ())})
        state[key] = {slot: _checked_array(f"{where}[{slot!r}]", entry[slot], p) for slot in own}
        if has_step:
            steps.add(_checked_step(f"{where}[{STEP!r}]", entry[STEP]))
    if len(steps) > 1:
        raise ValueError(f"state must have one step for all parameters, got {sorted(steps)}")
    return state, steps.pop() if steps else 0


def _checked_array(name: str, value: Any, p: Any) -> Any:
    dtype = compute_dtype(p.dtype)
    try:
        array = devices.to_numpy(value)
    except (ValueError, TypeError) as problem:
        raise TypeError(f"{name} must be an array, got {type(value).__name__} ({problem})") from None
    if array.shape != tuple(p.shape):
        raise ValueError(f"{name} must have its parameter's shape {tuple(p.shape)}, got {array.shape}")
    if array.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {array.dtype}")
    return devices.to_device(np.array(array, order="C"), devices.device_of(p))


def _checked_step(name: str, value: Any) -> int:
    value = value.item() if getattr(value, "shape", None) == () else value  # torch stores a 0-d tensor
    if isinstance(value, checks.NOT_NUMBERS) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a whole number of at least 1, got {value!r}")
    if not (1 <= float(value) < math.inf and float(value).is_integer()):
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(float(value))
