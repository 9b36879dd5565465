"""Arrays by name: Params, the parameters of a module, and StateDict, a copy of them for modules, files and tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnkit.core.devices import array_module
from rnnkit.core.read_only import check_writable, writable

Array = Any


class Params(dict[str, Array]):
    """name -> array. Assigning to a name copies into its array, after checking the shape, the dtype and that the array
    is writable. Names cannot be added or deleted.
    """

    def __setitem__(self, name: str, value: Array) -> None:
        if name not in self:
            raise KeyError(f"no parameter is named {name!r}; there are {', '.join(self)}")
        own = self[name]
        if (
            hasattr(value, "dtype")
            and not isinstance(value, np.generic)
            and array_module(value) is not array_module(own)
        ):
            kind = type(value).__name__
            module = "CuPy" if array_module(own) is not np else "NumPy"
            if isinstance(value, np.ndarray) and module == "NumPy":
                raise TypeError(f"{name} must be a plain NumPy array, got {kind} (use np.asarray)")
            raise TypeError(f"{name} must be a {module} array, got {kind}")
        if tuple(np.shape(value)) != tuple(own.shape):
            raise ValueError(f"{name} must have shape {tuple(own.shape)}, got {tuple(np.shape(value))}")
        if getattr(value, "dtype", own.dtype) != own.dtype:
            raise TypeError(f"{name} must have dtype {own.dtype}, got {value.dtype}")
        check_writable(name, own)
        own[...] = value

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Assigns the items one by one; the method of dict would replace the arrays unchecked."""
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def setdefault(self, name: str, default: Array = None) -> Array:
        """The array of an existing name. A new name raises KeyError: a module's parameters cannot be added to."""
        if name not in self:
            self[name] = default
        return self[name]

    def __ior__(self, other: Any) -> Params:  # type: ignore[override,misc]
        self.update(other)
        return self

    def __delitem__(self, name: str) -> None:
        raise TypeError("a module's parameters cannot be deleted")

    def pop(self, *_: Any) -> Array:
        """Raises TypeError: a module's parameters cannot be deleted."""
        raise TypeError("a module's parameters cannot be deleted")

    popitem = clear = pop

    def __reduce__(self) -> tuple[Any, ...]:
        return _params_of, (dict(self),)

    def _shallow(self) -> Params:
        """A copy that holds the same arrays."""
        other = Params()
        dict.update(other, self)
        return other

    def _add(self, name: str, value: Array) -> None:
        dict.__setitem__(self, name, value)


def _params_of(arrays: dict[str, Array]) -> Params:
    params = Params()
    for name, value in arrays.items():
        params._add(name, writable(value))  # some pickle protocols restore a frozen array as read-only
    return params


class StateDict(dict[str, Any]):
    """name -> array, and in `layers` what names and shapes do not determine: the cell of each recurrent layer.

    `load_state_dict` compares `layers` with the module, because the two GRU variants have equal names and shapes.
    `a | b` joins two state dicts, for example of the layers of a stack that were converted one by one.

    Args:
        arrays: name -> array; if it is a StateDict, its `layers` are the default of the next argument.
        layers: prefix of parameter names -> mapping such as {"cell": "gru"}.

    Raises:
        TypeError: `layers` has another form.
        ValueError: two joined state dicts record different cells for one layer.

    Examples:
        >>> import rnnkit
        >>> rnnkit.GRU(3, 4).state_dict().layers
        {'': {'cell': 'gru'}}
    """

    def __init__(self, arrays: Mapping[str, Any] | None = None, layers: Mapping[str, Mapping[str, Any]] | None = None):
        super().__init__(arrays or {})
        layers = _layers_of(arrays) if layers is None else layers
        problem = layers_problem(layers)
        if problem:
            raise TypeError(f"layers must {problem}")
        self.layers = {prefix: dict(config) for prefix, config in layers.items()}

    def copy(self) -> StateDict:
        """Copies the mapping and `layers`; the arrays are shared.

        Returns:
            A StateDict with the same arrays.

        Examples:
            >>> import rnnkit
            >>> state = rnnkit.GRU(3, 4).state_dict()
            >>> state.copy().layers == state.layers
            True
        """
        return StateDict(self, self.layers)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Adds or replaces arrays as dict.update does; `layers` of another StateDict are joined.

        Args:
            *args: at most one mapping, or an iterable of pairs (name, array).
            **kwargs: further arrays by name.

        Raises:
            ValueError: the other StateDict records a different cell for one layer.

        Examples:
            >>> import rnnkit
            >>> state = rnnkit.Linear(2, 1).state_dict()
            >>> state.update(rnnkit.Embedding(5, 2).state_dict())
            >>> state["weight"].shape
            (5, 2)
        """
        for other in args[:1]:
            self.layers = _joined(self.layers, _layers_of(other))
        super().update(*args, **kwargs)

    def __or__(self, other: Any) -> StateDict:  # type: ignore[override]
        if not isinstance(other, Mapping):
            return NotImplemented
        return StateDict({**self, **other}, _joined(self.layers, _layers_of(other)))

    def __ror__(self, other: Any) -> StateDict:  # type: ignore[override]
        if not isinstance(other, Mapping):
            return NotImplemented
        return StateDict({**other, **self}, _joined(_layers_of(other), self.layers))

    def __ior__(self, other: Any) -> StateDict:  # type: ignore[override]
        self.update(other)
        return self


def layers_problem(layers: Any) -> str | None:
    """What is wrong with the form of `layers` of a StateDict, as the end of a sentence "layers must ..."; or None."""
    if not isinstance(layers, Mapping):
        return f"map prefixes of names to mappings, got {type(layers).__name__}"
    for prefix, config in layers.items():
        if not isinstance(prefix, str) or not isinstance(config, Mapping):
            return f"map prefixes of names to mappings, got {prefix!r}: {config!r}"
        if not isinstance(config.get("cell", ""), str):
            return f"name the cell of {prefix!r} by a string, got {config['cell']!r}"
    return None


def _layers_of(mapping: Any) -> dict[str, dict[str, Any]]:
    return mapping.layers if isinstance(mapping, StateDict) else {}


def _joined(left: dict[str, dict[str, Any]], right: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    joined = dict(left)
    for prefix, config in right.items():
        known = joined.get(prefix, {})
        if "cell" in known and known["cell"] != config.get("cell", known["cell"]):
            raise ValueError(f"one layer cannot be both {known} and {config}")
        joined[prefix] = {**known, **config}
    return joined
