"""Checkpoint: everything from which a training run resumes with the same bits, in one safetensors file.

    rnnkit.save(model, path, optimizer=optimizer, rng=loader_rng, step=step, scalars={"best": best})

    checkpoint = rnnkit.load(path)
    checkpoint.restore(model, optimizer, loader_rng)  # into newly constructed objects
    step, best = checkpoint.step, checkpoint.scalars["best"]

The file holds the model's parameters under their own names, as a file of weights does, the optimizer's arrays as
"optimizer.<index>.<slot>", and the rest as JSON in the metadata. Between steps a run has no other state: gradients,
what calls saved and scratch arrays are recomputed.
"""

from __future__ import annotations

import copy
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rnnkit.core import checks
from rnnkit.nn.loading import checked_load
from rnnkit.nn.module import Module, StateDict
from rnnkit.optim import state
from rnnkit.optim.base import Optimizer

Generators = dict[str, np.random.Generator]


class Checkpoint(StateDict):
    """The contents of a checkpoint file, from `rnnkit.load`: the model's state dict, and the rest in attributes.

    Args:
        arrays: name -> array of the model.
        layers: what the file records of the layers, see `StateDict`.

    Attributes:
        optimizer: the optimizer's state dict, or None.
        step: the saved number of steps, or None.
        scalars: the saved numbers, strings and None, by name.
        generators: the states of the random generators.

    Raises:
        TypeError: `layers` has a wrong form.

    Examples:
        >>> import rnnkit
        >>> layer = rnnkit.GRU(3, 4, rng=0)
        >>> rnnkit.save(layer, "gru.safetensors", optimizer=rnnkit.Adam(layer), step=7, scalars={"best": 0.5})
        >>> checkpoint = rnnkit.load("gru.safetensors")
        >>> checkpoint.step, checkpoint.scalars
        (7, {'best': 0.5})
    """

    optimizer: dict[str, Any] | None = None
    step: int | None = None
    scalars: dict[str, Any]
    generators: dict[str, Any]  # see `_generator_states`

    def restore(self, model: Any, optimizer: Any = None, rng: Any = None) -> None:
        """Restores the model, the random generators of its dropout, the optimizer and other generators.

        Everything is checked before anything is changed. To load the weights only, use
        `model.load_state_dict(checkpoint)`.

        Args:
            model: the Module, or mapping of names to Modules, constructed with the same arguments as the saved one.
            optimizer: the optimizer over it; required if the checkpoint holds one, None otherwise.
            rng: a numpy Generator, or a mapping of names to Generators, as passed to `rnnkit.save`.

        Raises:
            TypeError: a parameter has another dtype than in the checkpoint.
            KeyError: the model has other parameters.
            ValueError: an argument is missing or superfluous, generators are of another kind or are shared in another
                way, or the model or the optimizer does not fit.

        Examples:
            >>> import rnnkit
            >>> layer = rnnkit.GRU(3, 4, rng=0)
            >>> rnnkit.save(layer, "gru.safetensors", optimizer=rnnkit.Adam(layer, lr=0.5))
            >>> layer = rnnkit.GRU(3, 4)
            >>> optimizer = rnnkit.Adam(layer)
            >>> rnnkit.load("gru.safetensors").restore(layer, optimizer)
            >>> optimizer.lr
            0.5
        """
        model = as_module(model)
        if (optimizer is None) != (self.optimizer is None):
            saved, passed = ("none", "one") if self.optimizer is None else ("one", "none")
            raise ValueError(f"optimizer must be what the checkpoint was saved with, which holds {saved}, got {passed}")
        _, write_model = checked_load(model, self, strict=True)
        for name, p in model.params.items():
            if p.dtype != self[name].dtype:  # load_state_dict would cast
                raise TypeError(f"{name} must have the checkpoint's dtype {self[name].dtype}, got {p.dtype}")
        write_generators = _checked_generators(self.generators, generators_of(model, rng))
        write_optimizer = None
        if optimizer is not None:
            _check_same_parameters(model, optimizer)
            write_optimizer = state.checked(optimizer, self.optimizer or {})
        write_model()
        write_generators()
        if write_optimizer is not None:
            write_optimizer()


class _NamedModules(Module):
    """A container of modules by name."""

    def __init__(self, modules: Mapping[str, Module]) -> None:
        self._modules = dict(modules)
        super().__init__()

    def children(self) -> dict[str, Module]:
        return self._modules


def as_module(model: Any) -> Module:
    """Returns a Module unchanged; wraps a mapping of names to Modules, with parameters "<name>.<parameter>"."""
    if isinstance(model, Module):
        return model
    if not isinstance(model, Mapping) or not model or not all(isinstance(m, Module) for m in model.values()):
        raise TypeError(f"model must be a Module or a mapping of names to Modules, got {type(model).__name__}")
    for name in model:
        if not isinstance(name, str):
            raise TypeError(f"names of modules must be strings, got {name!r}")
    return _NamedModules(model)


def _check_same_parameters(model: Module, optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be one of rnnkit's optimizers, got {type(optimizer).__name__}")
    own = {id(p) for p in model.params.values()}
    if any(id(p) not in own for module in optimizer._models for p in module.params.values()):
        raise ValueError("optimizer must update parameters of this model, got one over others, perhaps of a copy")


# Contents of a checkpoint


def contents(
    model: Module, optimizer: Any, rng: Any, step: Any, scalars: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name, and the metadata, of a checkpoint. Raises TypeError or ValueError that names the argument."""
    arrays: dict[str, np.ndarray] = dict(model.state_dict())
    metadata: dict[str, Any] = {
        "optimizer": None,
        "generators": _generator_states(generators_of(model, rng)),
        "step": None if step is None else _checked_step(step),
        "scalars": _checked_scalars({} if scalars is None else scalars),
    }
    if optimizer is not None:
        _check_same_parameters(model, optimizer)
        state = optimizer.state_dict()
        entries: dict[str, dict[str, Any]] = {}
        for index, entry in state["state"].items():
            slots: dict[str, Any] = {}
            for slot, value in entry.items():
                if not isinstance(value, np.ndarray):
                    slots[slot] = value
                    continue
                name = f"optimizer.{index}.{slot}"
                if name in arrays:
                    raise ValueError(f"model must have no parameter named {name!r}: checkpoints use that name")
                slots[slot] = {"array": name}
                arrays[name] = value
            entries[str(index)] = slots
        metadata["optimizer"] = {"state": entries, "param_groups": state["param_groups"]}
    return arrays, metadata


def from_file(arrays: dict[str, np.ndarray], layers: Any, metadata: Any) -> Checkpoint:
    """The checkpoint in the arrays and the metadata of a file. Raises ValueError if they are not well formed."""
    if not isinstance(metadata, dict) or set(metadata) != {"optimizer", "generators", "step", "scalars"}:
        raise ValueError("its checkpoint must hold optimizer, generators, step and scalars")
    try:
        step = None if metadata["step"] is None else _checked_step(metadata["step"])
        scalars = _checked_scalars(metadata["scalars"])
    except TypeError as problem:
        raise ValueError(str(problem)) from None
    arrays = dict(arrays)
    optimizer = metadata["optimizer"]
    if optimizer is not None:
        optimizer = {"state": _entries(optimizer, arrays), "param_groups": optimizer["param_groups"]}
    _check_states(metadata["generators"])
    checkpoint = Checkpoint(arrays, layers)
    checkpoint.optimizer = optimizer
    checkpoint.step = step
    checkpoint.scalars = scalars
    checkpoint.generators = metadata["generators"]
    return checkpoint


def _entries(optimizer: Any, arrays: dict[str, np.ndarray]) -> dict[int, dict[str, Any]]:
    """An optimizer's state with its arrays, which are removed from `arrays`."""
    state = optimizer.get("state") if isinstance(optimizer, dict) and "param_groups" in optimizer else None
    if not isinstance(state, dict) or not all(isinstance(entry, dict) for entry in state.values()):
        raise ValueError("its optimizer must hold a state by parameter, and param_groups")
    entries: dict[int, dict[str, Any]] = {}
    for index, entry in state.items():
        if not index.isdecimal():
            raise ValueError(f"its optimizer must number parameters, got {index!r}")
        slots: dict[str, Any] = {}
        for slot, value in entry.items():
            if isinstance(value, dict):
                name = value.get("array")
                if not isinstance(name, str) or name not in arrays:
                    raise ValueError(f"its optimizer names the array {name!r}, which it does not hold")
                value = arrays.pop(name)
            slots[slot] = value
        entries[int(index)] = slots
    return entries


def _checked_step(step: Any) -> int:
    if isinstance(step, checks.NOT_NUMBERS) or not isinstance(step, numbers.Integral):
        raise TypeError(f"step must be a whole number, got {step!r}")
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    return int(step)


def _checked_scalars(scalars: Any) -> dict[str, Any]:
    if not isinstance(scalars, Mapping):
        raise TypeError(f"scalars must be a mapping of names to numbers and strings, got {type(scalars).__name__}")
    checked: dict[str, Any] = {}
    for name, value in scalars.items():
        if isinstance(value, np.generic):
            value = value.item()
        if not isinstance(name, str) or not isinstance(value, (bool, int, float, str, type(None))):
            raise TypeError(f"scalars must map names to numbers, strings or None, got {name!r}: {value!r}")
        checked[name] = value
    return checked


# Random generators


def generators_of(model: Module, rng: Any) -> Generators:
    """Random generators by name: "model.<path>" of modules that have one, "rng" or "rng.<name>" of the argument
    `rng`."""
    generators = {f"model{path}": module.rng for path, module in _by_path(model) if _has_generator(module)}
    arguments = rng if isinstance(rng, Mapping) else {} if rng is None else {"": rng}
    for name, generator in arguments.items():
        if not isinstance(name, str) or not isinstance(generator, np.random.Generator):
            kind = type(generator).__name__
            raise TypeError(
                f"rng must be a numpy.random.Generator or a mapping of names to Generators, got {name!r}: {kind}"
            )
        generators[f"rng.{name}" if name else "rng"] = generator
    return generators


def _has_generator(module: Module) -> bool:
    return isinstance(getattr(module, "rng", None), np.random.Generator)


def _by_path(module: Module, path: str = "") -> list[tuple[str, Any]]:
    modules: list[tuple[str, Any]] = [(path, module)]
    for name, child in module.children().items():
        modules += _by_path(child, f"{path}.{name}")
    return modules


def _generator_states(generators: Generators) -> dict[str, Any]:
    """{"states": [...], "of": {name: index}}: one state per bit generator, because several names may share one."""
    indices: dict[int, int] = {}
    states: list[Any] = []
    of: dict[str, int] = {}
    for name, generator in generators.items():
        bits = generator.bit_generator
        if id(bits) not in indices:
            indices[id(bits)] = len(states)
            states.append(_as_json(bits.state))
        of[name] = indices[id(bits)]
    return {"states": states, "of": of}


def _check_states(generators: Any) -> None:
    """Raises ValueError unless `generators` has the form that `_generator_states` returns."""
    states, of = (generators.get("states"), generators.get("of")) if isinstance(generators, dict) else (None, None)
    sound = isinstance(states, list) and isinstance(of, dict) and all(isinstance(s, dict) for s in states)
    if not sound or not all(type(k) is int and 0 <= k < len(states) for k in of.values()):  # type: ignore[arg-type,union-attr]
        raise ValueError("its generators must be a list of states, and the index of the state for each name")


def _checked_generators(saved: Mapping[str, Any], generators: Generators) -> Callable[[], None]:
    """Performs all checks; the function it returns sets the states of `generators` to the saved ones."""
    states = saved["states"]
    of = saved["of"]
    if of.keys() != generators.keys():
        missing, extra = (sorted(k) or "none" for k in (of.keys() - generators.keys(), generators.keys() - of.keys()))
        raise ValueError(f"random generators do not fit the checkpoint: it also has {missing}, and lacks {extra}")
    first_use: dict[int, tuple[str, int]] = {}  # id of a bit generator -> its first name, index of its state
    writes: list[tuple[str, Any, int, Any]] = []
    for name, generator in generators.items():
        bits = generator.bit_generator
        index = of[name]
        other, first_index = first_use.setdefault(id(bits), (name, index))
        unshared = next((n for n, b in _with_state(writes, index) if b is not bits), None)
        if first_index != index or unshared is not None:
            kind = "one generator" if first_index != index else "two generators"
            raise ValueError(
                f"random generators must be shared as in the checkpoint: {unshared or other} and {name} are {kind} "
                f"here and were not when it was saved"
            )
        state = _from_json(states[index])
        try:
            copy.deepcopy(bits).state = state
        except (ValueError, TypeError, KeyError) as problem:
            kind = type(bits).__name__
            saved_kind = state.get("bit_generator")
            raise ValueError(f"{name} must be a generator over {saved_kind}, got {kind} ({problem})") from None
        writes.append((name, bits, index, state))

    def write() -> None:
        for _, bits, _, state in writes:
            bits.state = state

    return write


def _with_state(writes: list[tuple[str, Any, int, Any]], index: int) -> list[tuple[str, Any]]:
    """Name and bit generator of each entry of `writes` with the state of that index."""
    return [(name, bits) for name, bits, k, _ in writes if k == index]


def _as_json(value: Any) -> Any:
    """A bit generator's state (numbers, strings, arrays and dicts of them) as JSON values."""
    if isinstance(value, dict):
        return {name: _as_json(part) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.name, "values": value.tolist()}
    return value.item() if isinstance(value, np.generic) else value


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {"dtype", "values"}:
        return np.array(value["values"], value["dtype"])
    return {name: _from_json(part) for name, part in value.items()}
