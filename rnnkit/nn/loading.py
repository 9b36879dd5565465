"""Loading a state dict into a module: everything is checked before any parameter is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnkit.core import checks, devices
from rnnkit.core.read_only import check_writable
from rnnkit.nn.conventions import cells_by_buffer, check_meaning

Array = Any


class LoadedKeys(NamedTuple):
    """The names that `load_state_dict` did not match; both lists are empty if strict is True.

    PyTorch's `load_state_dict` returns a pair of the same form.

    Attributes:
        missing_keys: parameters of the module that the mapping lacks.
        unexpected_keys: names in the mapping that are no parameter of the module.

    Examples:
        >>> import rnnkit
        >>> layer = rnnkit.Linear(3, 2, rng=0)
        >>> layer.load_state_dict({"weight": layer.params["weight"]}, strict=False)
        LoadedKeys(missing_keys=['bias'], unexpected_keys=[])
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


def checked_load(
    module: Any, mapping: Mapping[str, Any], strict: bool, cells: str | Mapping[str, str] | None = None
) -> tuple[LoadedKeys, Callable[[], None]]:
    """Performs all checks of `Module.load_state_dict`; the function it returns writes the parameters."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"mapping must be a mapping of names to arrays, got {type(mapping).__name__}")
    strict = checks.flag("strict", strict)
    params = module.params
    check_meaning(mapping, module._meanings, cells, params)
    missing = [n for n in params if n not in mapping]
    buffers = cells_by_buffer(mapping, module._meanings, params)
    extra = [n for n in mapping if n not in params and n not in buffers]
    if strict and (missing or extra):
        raise KeyError(f"state dict does not fit: missing {missing or 'nothing'}, extra {extra or 'nothing'}")
    arrays = {name: devices.to_numpy(mapping[name]) for name in params if name in mapping}
    compressed = [part for part in module._walk() if part._matrices]
    replaced = {id(p) for part in compressed for p in part._params.values()}
    for name, value in arrays.items():
        if value.shape != tuple(params[name].shape):
            raise ValueError(f"{name} must have shape {tuple(params[name].shape)}, got {value.shape}")
        if value.dtype.kind not in "fiu" and value.dtype.name != "bfloat16":
            raise TypeError(f"{name} must hold real numbers, got dtype {value.dtype}")
        if id(params[name]) not in replaced:
            check_writable(name, params[name])
        elif value.dtype != params[name].dtype or (name.endswith("_scale") and not np.isfinite(value).all()):
            numbers = f"{params[name].dtype} of a compressed layer, all finite"
            raise ValueError(f"{name} must be {numbers}, got {value.dtype}: rnnkit.compress makes them from float32")
    # All arrays are copied before any is written. A cast may still fail, and then no parameter has changed. The
    # mapping may also hold this module's own arrays under other names.
    cast = {name: _cast(name, value, params[name].dtype) for name, value in arrays.items()}
    on_device = {name: devices.to_device(host, devices.device_of(params[name])) for name, host in cast.items()}

    def write() -> None:
        from rnnkit.nn.compressed import replace_arrays  # which imports this file

        new = {id(params[name]): value for name, value in on_device.items() if id(params[name]) in replaced}
        written = {name: value for name, value in on_device.items() if id(params[name]) not in new}
        for part in compressed:
            replace_arrays(part, new)
        for name, value in written.items():
            with devices.current(devices.device_of(value)):
                params[name][...] = value

    return LoadedKeys(missing, extra), write


def _cast(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy of `value` in `dtype`. Raises ValueError if a finite number overflows."""
    with np.errstate(over="ignore"):  # an overflow raises below
        cast = np.array(value, dtype=dtype, order="C")
    overflowed = ~np.isfinite(cast)
    if overflowed.any():
        overflowed &= np.isfinite(value)
        if overflowed.any():
            raise ValueError(f"{name} must fit dtype {dtype}, got {value[overflowed][0]}")
    return cast
