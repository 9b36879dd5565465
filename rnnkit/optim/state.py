"""An optimizer's state dict, in torch's form: made, and checked whole before any of it is taken over."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rnnkit.core import checks, devices
from rnnkit.core.mixed_precision import compute_dtype
from rnnkit.optim.models import Key, parameters_of

MASTER = "master"  # the slot of a 16-bit parameter's float32 self
STEP = "step"  # of Adam, in every entry as torch has it


def _parameters(optimizer: Any) -> list[tuple[Key, Any]]:
    return [(key, p) for key, p, _ in parameters_of(optimizer._models)]


def _names(optimizer: Any) -> list[str]:
    """The parameters' names; of several modules with the module's index before them."""
    several = len(optimizer._models) > 1
    return [f"{index}.{name}" if several else name for (index, name), _ in _parameters(optimizer)]


def state_dict(optimizer: Any) -> dict[str, Any]:
    """See `Optimizer.state_dict`."""
    keys = [key for key, _ in _parameters(optimizer)]
    state: dict[int, dict[str, Any]] = {}
    if all(key in optimizer.state for key in keys):  # else no step was made
        for place, key in enumerate(keys):
            entry = {slot: np.array(devices.to_numpy(held)) for slot, held in optimizer.state[key].items()}
            if hasattr(optimizer, "t"):
                entry[STEP] = optimizer.t
            if entry:
                state[place] = entry
    group = {name: getattr(optimizer, name) for name in optimizer.options}
    group |= {"params": list(range(len(keys))), "param_names": _names(optimizer)}
    return {"state": state, "param_groups": [group]}


def checked(optimizer: Any, found: Mapping[str, Any]) -> Callable[[], None]:
    """See `Optimizer.load_state_dict`. Changes nothing; what it returns takes all over and cannot fail."""
    if not isinstance(found, Mapping):
        raise TypeError(f"state_dict must be a mapping of 'state' and 'param_groups', got {type(found).__name__}")
    _check_keys("state_dict", found, {"state", "param_groups"})
    options = _checked_group(optimizer, found["param_groups"])
    state, t = _checked_state(optimizer, found["state"], options)

    def take_over() -> None:
        for name, value in options.items():
            setattr(optimizer, name, value)
        optimizer.state = state
        if hasattr(optimizer, "t"):
            optimizer.t = t

    return take_over


def _check_keys(name: str, found: Mapping[Any, Any], wanted: set[Any], optional: frozenset[Any] = frozenset()) -> None:
    keys = set(found)
    if not wanted <= keys <= wanted | optional:
        missing, extra = (sorted(map(str, k)) or "nothing" for k in (wanted - keys, keys - wanted - optional))
        raise KeyError(f"{name} must hold {', '.join(sorted(map(str, wanted)))}: missing {missing}, extra {extra}")


def _checked_group(optimizer: Any, groups: Any) -> dict[str, Any]:
    """The optimizer's attributes that the one group gives."""
    if not isinstance(groups, (list, tuple)) or len(groups) != 1 or not isinstance(groups[0], Mapping):
        was = f"{len(groups)} of them" if isinstance(groups, (list, tuple)) else type(groups).__name__
        raise ValueError(
            f"param_groups must be a list of one mapping, as rnnkit's optimizers have one group, got {was}"
        )
    group, where, options = groups[0], "param_groups[0]", optimizer.options
    try:
        _check_keys(where, group, {*options, "params"}, frozenset({"param_names"}))
    except KeyError as problem:
        raise KeyError(f"{problem.args[0]} (this optimizer is {type(optimizer).__name__})") from None
    names = _names(optimizer)
    _check_list(f"{where}['params']", group["params"], list(range(len(names))))
    _check_list(f"{where}['param_names']", group.get("param_names", names), names)
    return optimizer._checked_options({name: group[name] for name in options}, where + "['{}']")


def _check_list(name: str, given: Any, wanted: list[Any]) -> None:
    """Raises where `given` is not what this model's parameters make it, and says from where on."""
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{name} must be a list, got {type(given).__name__}")
    if list(given) != wanted:
        pairs = enumerate(zip(given, wanted, strict=False))
        first = next((k for k, (a, b) in pairs if a != b), min(len(given), len(wanted)))
        got, want = (repr(n[first]) if first < len(n) else "nothing" for n in (given, wanted))
        raise ValueError(f"{name}[{first}] must be {want}, by the parameters of this model, got {got}")


def _checked_state(optimizer: Any, found: Any, options: Mapping[str, Any]) -> tuple[dict[Key, dict[str, Any]], int]:
    """Copies of the state by parameter, each on its device, and Adam's step. Both of nothing before the first step."""
    if not isinstance(found, Mapping):
        raise TypeError(f"state must be a mapping of parameters' numbers to slots, got {type(found).__name__}")
    if not found:
        return {}, 0
    slots = optimizer.slots
    if "momentum" in options:
        slots = ("momentum_buffer",) if options["momentum"] else ()
    has_step = hasattr(optimizer, "t")
    wanted: dict[int, tuple[Key, Any, tuple[str, ...]]] = {}
    for place, (key, p) in enumerate(_parameters(optimizer)):
        own = (*slots, *((MASTER,) if compute_dtype(p.dtype) != p.dtype else ()))
        if own:
            wanted[place] = (key, p, own)
    _check_keys("state", found, set(wanted))
    state, steps = {}, set()
    for place, (key, p, own) in wanted.items():
        where, entry = f"state[{place}]", found[place]
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
    value = value.item() if getattr(value, "shape", None) == () else value  # torch has a tensor of one number
    if isinstance(value, checks.NOT_NUMBERS) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a whole number of at least 1, got {value!r}")
    if not (1 <= float(value) < math.inf and float(value).is_integer()):
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(float(value))
