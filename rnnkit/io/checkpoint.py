"""Checkpoint: all that a training run needs to go on with the same bits, in one safetensors file.

    rnnkit.save(model, path, optimizer=optimizer, rng=loader_rng, step=step, scalars={"best": best})

    checkpoint = rnnkit.load(path)
    checkpoint.restore(model, optimizer, loader_rng)  # into objects made anew
    step, best = checkpoint.step, checkpoint.scalars["best"]

The file holds the model's parameters under their own names, as a file of weights does, the optimizer's arrays as
"optimizer.<index>.<slot>", and the rest as JSON in the metadata. Between steps nothing else is to be saved: gradients,
what calls keep and scratch arrays are made anew.
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
from rnnkit.optim.optimizers import Optimizer

Generators = dict[str, np.random.Generator]


class Checkpoint(StateDict):
    """What `rnnkit.load` gives of a checkpoint: the model's state dict, and beside it what else was saved.

    optimizer: its state dict, or None. step: the whole number saved, or None. scalars: dict of numbers, texts, None.
    """

    optimizer: dict[str, Any] | None = None
    step: int | None = None
    scalars: dict[str, Any]
    generators: dict[str, Any]  # see `_generator_states`

    def restore(self, model: Any, optimizer: Any = None, rng: Any = None) -> None:
        """Puts everything back: into the model (with its dropout's generators), the optimizer, and generators.

        model, optimizer, rng: as for `rnnkit.save`, made by the same arguments. To take the weights alone, use
        `model.load_state_dict(checkpoint)`. Everything is checked before anything is changed. Raises ValueError where
        the checkpoint holds what is not given or is given what it does not hold, and where generators are of another
        kind or shared in another way; TypeError for parameters of another dtype; what `load_state_dict` of the model
        and of the optimizer raise.
        """
        model = together(model)
        if (optimizer is None) != (self.optimizer is None):
            holds, given = ("none", "one") if self.optimizer is None else ("one", "none")
            raise ValueError(f"optimizer must be what the checkpoint was saved with, which holds {holds}, got {given}")
        _, write_model = checked_load(model, self, strict=True)
        for name, p in model.params.items():
            if p.dtype != self[name].dtype:  # which load_state_dict would cast
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


class _Together(Module):
    """Several modules by name."""

    def __init__(self, modules: Mapping[str, Module]) -> None:
        self._modules = dict(modules)
        super().__init__()

    def children(self) -> dict[str, Module]:
        return self._modules


def together(model: Any) -> Module:
    """A Module, or a mapping of names to Modules as one whose parameters are named "<name>.<parameter>"."""
    if isinstance(model, Module):
        return model
    if not isinstance(model, Mapping) or not model or not all(isinstance(m, Module) for m in model.values()):
        raise TypeError(f"model must be a Module or a mapping of names to Modules, got {type(model).__name__}")
    for name in model:
        if not isinstance(name, str):
            raise TypeError(f"names of modules must be strings, got {name!r}")
    return _Together(model)


def _check_same_parameters(model: Module, optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be one of rnnkit's optimizers, got {type(optimizer).__name__}")
    own = {id(p) for p in model.params.values()}
    if any(id(p) not in own for moved in optimizer._models for p in moved.params.values()):
        raise ValueError("optimizer must move parameters of this model, got one that moves others: a copy's?")


# What is saved


def contents(
    model: Module, optimizer: Any, rng: Any, step: Any, scalars: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name and what goes into the metadata, of a checkpoint. Raises TypeError or ValueError by name."""
    arrays: dict[str, np.ndarray] = dict(model.state_dict())
    found: dict[str, Any] = {
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
            entries[str(index)] = held = {}
            for slot, value in entry.items():
                if not isinstance(value, np.ndarray):
                    held[slot] = value
                    continue
                held[slot] = {"array": (name := f"optimizer.{index}.{slot}")}
                if name in arrays:
                    raise ValueError(f"model must have no parameter named {name!r}: checkpoints use that name")
                arrays[name] = value
        found["optimizer"] = {"state": entries, "param_groups": state["param_groups"]}
    return arrays, found


def from_file(arrays: dict[str, np.ndarray], layers: Any, found: Any) -> Checkpoint:
    """The checkpoint that a file's arrays and metadata make. Raises ValueError that says what is wrong with them."""
    if not isinstance(found, dict) or set(found) != {"optimizer", "generators", "step", "scalars"}:
        raise ValueError("its checkpoint must hold optimizer, generators, step and scalars")
    try:
        step = None if found["step"] is None else _checked_step(found["step"])
        scalars = _checked_scalars(found["scalars"])
    except TypeError as problem:
        raise ValueError(str(problem)) from None
    optimizer, arrays = found["optimizer"], dict(arrays)
    if optimizer is not None:
        optimizer = {"state": _entries(optimizer, arrays), "param_groups": optimizer["param_groups"]}
    _check_states(found["generators"])
    checkpoint = Checkpoint(arrays, layers)
    checkpoint.optimizer, checkpoint.step, checkpoint.scalars = optimizer, step, scalars
    checkpoint.generators = found["generators"]
    return checkpoint


def _entries(optimizer: Any, arrays: dict[str, np.ndarray]) -> dict[int, dict[str, Any]]:
    """An optimizer's state with its arrays, which leave `arrays`."""
    state = optimizer.get("state") if isinstance(optimizer, dict) and "param_groups" in optimizer else None
    if not isinstance(state, dict) or not all(isinstance(entry, dict) for entry in state.values()):
        raise ValueError("its optimizer must hold a state by parameter, and param_groups")
    entries: dict[int, dict[str, Any]] = {}
    for index, entry in state.items():
        if not index.isdecimal():
            raise ValueError(f"its optimizer must number parameters, got {index!r}")
        entries[int(index)] = held = {}
        for slot, value in entry.items():
            if isinstance(value, dict):
                name = value.get("array")
                if not isinstance(name, str) or name not in arrays:
                    raise ValueError(f"its optimizer names the array {name!r}, which it does not hold")
                value = arrays.pop(name)
            held[slot] = value
    return entries


def _checked_step(step: Any) -> int:
    if isinstance(step, checks.NOT_NUMBERS) or not isinstance(step, numbers.Integral):
        raise TypeError(f"step must be a whole number, got {step!r}")
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    return int(step)


def _checked_scalars(scalars: Any) -> dict[str, Any]:
    if not isinstance(scalars, Mapping):
        raise TypeError(f"scalars must be a mapping of names to numbers and texts, got {type(scalars).__name__}")
    found: dict[str, Any] = {}
    for name, value in scalars.items():
        if isinstance(value, np.generic):
            value = value.item()
        if not isinstance(name, str) or not isinstance(value, (bool, int, float, str, type(None))):
            raise TypeError(f"scalars must map names to numbers, texts or None, got {name!r}: {value!r}")
        found[name] = value
    return found


# Random generators


def generators_of(model: Module, rng: Any) -> Generators:
    """Every generator by name: "model.<path>" of the modules that hold one, "rng" or "rng.<name>" of those given."""
    found = {f"model{path}": module.rng for path, module in _by_path(model) if _is_generator(module)}
    given = rng if isinstance(rng, Mapping) else {} if rng is None else {"": rng}
    for name, generator in given.items():
        if not isinstance(name, str) or not isinstance(generator, np.random.Generator):
            kind = type(generator).__name__
            raise TypeError(f"rng must be a numpy.random.Generator or a mapping of names to some, got {name!r}: {kind}")
        found[f"rng.{name}" if name else "rng"] = generator
    return found


def _is_generator(module: Module) -> bool:
    return isinstance(getattr(module, "rng", None), np.random.Generator)


def _by_path(module: Module, path: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [(path, module)]
    for name, child in module.children().items():
        found += _by_path(child, f"{path}.{name}")
    return found


def _generator_states(generators: Generators) -> dict[str, Any]:
    """{"states": [...], "of": {name: index}}: a state per bit generator, which several names may share."""
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


def _check_states(found: Any) -> None:
    states, of = (found.get("states"), found.get("of")) if isinstance(found, dict) else (None, None)
    sound = isinstance(states, list) and isinstance(of, dict) and all(isinstance(s, dict) for s in states)
    if not sound or not all(type(k) is int and 0 <= k < len(states) for k in of.values()):  # type: ignore[arg-type,union-attr]
        raise ValueError("its generators must be a list of states, and which name has which")


def _checked_generators(found: Mapping[str, Any], generators: Generators) -> Callable[[], None]:
    """Sets the states of `generators` to those saved, when what is returned is called."""
    states, of = found["states"], found["of"]
    if of.keys() != generators.keys():
        missing, extra = (sorted(k) or "none" for k in (of.keys() - generators.keys(), generators.keys() - of.keys()))
        raise ValueError(f"random generators do not fit the checkpoint: it also has {missing}, and lacks {extra}")
    taken: dict[int, tuple[str, int]] = {}
    writes: list[tuple[str, Any, int, Any]] = []
    for name, generator in generators.items():
        bits, index = generator.bit_generator, of[name]
        other, shared = taken.setdefault(id(bits), (name, index))
        apart = next((n for n, b in _holders(writes, index) if b is not bits), None)
        if shared != index or apart is not None:
            kind = "one generator" if shared != index else "two generators"
            raise ValueError(
                f"random generators must be shared as in the checkpoint: {apart or other} and {name} are {kind} here "
                f"and were not there"
            )
        state = _from_json(states[index])
        try:
            copy.deepcopy(bits).state = state
        except (ValueError, TypeError, KeyError) as problem:
            kind, was = type(bits).__name__, state.get("bit_generator")
            raise ValueError(f"{name} must be a generator over {was}, got {kind} ({problem})") from None
        writes.append((name, bits, index, state))

    def write() -> None:
        for _, bits, _, state in writes:
            bits.state = state

    return write


def _holders(writes: list[tuple[str, Any, int, Any]], index: int) -> list[tuple[str, Any]]:
    """Name and bit generator of all that are to have the state of that index."""
    return [(name, bits) for name, bits, k, _ in writes if k == index]


def _as_json(value: Any) -> Any:
    """A bit generator's state: numbers, texts, arrays and dicts of them."""
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
