"""replace(module): the recurrent layers and cells inside a model become rnnkit's. restore(module) undoes it.

No layer is built anew: its class changes, as torch.nn.utils.parametrize changes it. So the object stays, with its
parameters, buffers, hooks, attributes and modes, and so does every reference to it or to a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from rnnkit.backends import check_backend
from rnnkit.core import checks
from rnnkit.torch import cell_base, cells, layers, recurrent, subclasses
from rnnkit.torch.operators import choice_of
from rnnkit.torch.report import Left, Report, Swapped

_NAMES = ("RNN", "GRU", "LSTM")
_CELL_NAMES = ("RNNCell", "GRUCell", "LSTMCell")
_OURS = {getattr(nn, name): getattr(layers, name) for name in _NAMES}
_OURS |= {getattr(nn, name): getattr(cells, name) for name in _CELL_NAMES}
# Of cells, `_OURS` are subclasses of torch.nn's.
_SUBCLASSES = _OURS | {getattr(nn, name): getattr(subclasses, name) for name in _NAMES}
_REPLACED = frozenset((*_OURS.values(), *_SUBCLASSES.values()))

# The attribute of a replaced layer that names the class it had, without parametrizations.
_MARK = "_replaced_class"


def replace(module: Any, *, backend: str | None = None, subclasses: bool = False) -> Report:
    """Makes every recurrent layer and cell of torch.nn inside a model rnnkit's, in place.

    The layers stay the same objects: parameters, buffers, hooks, parametrizations, weight_norm, `training` and other
    attributes are kept, and so are optimizers and references to the layers. Call it before what changes the class of a
    layer itself: torch.jit.script, quantization, FSDP2's `fully_shard`.

    Args:
        module: the model, a torch.nn.Module, at any depth of which layers are found. It may be a layer itself.
        backend: name of a backend of `rnnkit.BACKENDS` for all of them, or None to choose by device and dtype.
        subclasses: whether RNN, GRU and LSTM stay instances of torch.nn's, see `rnnkit.torch.subclasses`.

    Returns:
        A `Report`; print it for a table of what was swapped, and of what was left and why.

    Raises:
        TypeError: `module` is no torch.nn.Module, or `subclasses` is no bool.
        ValueError: there is no backend of this name.
        RuntimeError: the backend cannot run here.

    Examples:
        >>> import torch, rnnkit.torch
        >>> model = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(4, 6), "head": torch.nn.Linear(6, 1)})
        >>> report = rnnkit.torch.replace(model)
        >>> isinstance(model["rnn"], rnnkit.torch.LSTM), report.left
        (True, ())
    """
    _check_module(module)
    check_backend(backend)
    classes = _SUBCLASSES if checks.flag("subclasses", subclasses) else _OURS
    return _swap(module, lambda layer: _replacement(layer, classes, backend))


def restore(module: Any) -> Report:
    """Undoes `replace`, in place: every layer that it swapped has its class of torch.nn again.

    Layers that were built as rnnkit's are left.

    Args:
        module: the model, a torch.nn.Module, or a part or a copy of it.

    Returns:
        A `Report`; print it for a table of what was swapped, and of what was left and why.

    Raises:
        TypeError: `module` is no torch.nn.Module.

    Examples:
        >>> import torch, rnnkit.torch
        >>> layer = torch.nn.GRU(4, 6)
        >>> _ = rnnkit.torch.replace(layer)
        >>> print(rnnkit.torch.restore(layer))
        swapped
          (the module itself)  rnnkit.torch.GRU -> torch.nn.GRU
        >>> type(layer) is torch.nn.GRU
        True
    """
    _check_module(module)
    return _swap(module, _restoration)


def _check_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")


# A decision about one layer: a function that changes it, the reason to leave it, or None to leave it without a word.
_Decision = Callable[[], None] | str | None


def _swap(module: Any, decide: Callable[[Any], _Decision]) -> Report:
    """Decides about every layer before any is changed."""
    decisions = [(layer, names, decide(layer)) for layer, names in _recurrent(module)]
    swapped, left = [], []
    for layer, names, decision in decisions:
        before = _class_name(layer)
        if isinstance(decision, str):
            left.append(Left(names, before, decision))
        elif decision is not None:
            decision()
            swapped.append(Swapped(names, before, _class_name(layer)))
    return Report(tuple(swapped), tuple(left))


def _replacement(layer: Any, classes: dict[Any, Any], backend: str | None) -> _Decision:
    if _is_ours(layer):
        return "is rnnkit's already"
    old = _base_class(layer)
    if old not in classes:
        return _why_not(layer, old)
    new = classes[old]
    added = {"backend": backend, _MARK: old}
    if old in (nn.GRU, nn.GRUCell):
        added["reset_after"] = True
    problem = _own_attributes(layer, old, new, added) or _problem_of_parameters(layer, old, backend)
    if problem is not None:
        return problem

    def change() -> None:
        _set_base_class(layer, new)
        vars(layer).update(added)

    return change


def _restoration(layer: Any) -> _Decision:
    if not _is_ours(layer):
        return None
    if _MARK not in vars(layer):
        return "was built as rnnkit's"
    if _base_class(layer) not in _REPLACED:
        return "its class was changed after replace"
    if not getattr(layer, "reset_after", True):
        return "has reset_after=False, which torch.nn does not have"

    def change() -> None:
        _set_base_class(layer, vars(layer)[_MARK])
        for name in ("backend", "reset_after", _MARK):
            vars(layer).pop(name, None)

    return change


# Which modules are recurrent layers


def _recurrent(module: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Every recurrent layer or cell once, with all its names. What is inside one, as in a quantized one, is its own."""
    found: dict[int, tuple[Any, list[str]]] = {}

    def visit(part: Any, name: str) -> None:
        if _is_recurrent(part):
            found.setdefault(id(part), (part, []))[1].append(name)
            return
        for key, child in part._modules.items():
            if child is not None:
                visit(child, f"{name}.{key}" if name else key)

    visit(module, "")
    for layer, names in found.values():
        yield layer, tuple(names)


def _is_recurrent(module: Any) -> bool:
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) or _is_quantized(module):
        return True
    return isinstance(module, torch.jit.ScriptModule) and module.original_name in (*_NAMES, *_CELL_NAMES)


def _is_quantized(module: Any) -> bool:
    """Whether it is one of the recurrent modules of torch.ao, which are no subclasses of torch.nn's."""
    return any(
        c.__module__.startswith("torch.ao.nn.") and c.__name__ in (*_NAMES, *_CELL_NAMES) for c in type(module).__mro__
    )


def _is_ours(module: Any) -> bool:
    return isinstance(module, (recurrent.Layers, cell_base.CellBase))


# Why a layer is left


def _why_not(layer: Any, old: Any) -> str:
    """The reason to leave a recurrent layer that is of no class of torch.nn's own."""
    if isinstance(layer, torch.jit.ScriptModule):
        return "is compiled by TorchScript"
    if _is_quantized(layer):
        return "is quantized"
    if any(c.__module__.startswith("torch.distributed.") for c in old.__mro__):
        return "its class was changed by fully_shard: call replace before"
    base = next(c for c in old.__mro__ if c.__module__.startswith("torch.nn.modules."))
    name = f"torch.nn.{base.__name__}"
    if base not in _OURS:
        return f"its class is derived from {name}, and defines another layer"
    if old.forward is not base.forward:
        return f"its class is derived from {name}, and has a forward of its own"
    return f"its class is derived from {name}: derive it from rnnkit.{name.replace('.nn.', '.')} instead"


def _own_attributes(layer: Any, old: Any, new: Any, added: dict[str, Any]) -> str | None:
    """The reason to leave a layer on which attributes were set that rnnkit's class has, or that replace it."""
    own = {*vars(layer), *layer._buffers, *layer._parameters, *layer._modules}
    if "forward" in own:
        return "a forward was set on it"
    taken = sorted(own & ({*added, *dir(new)} - {*dir(old)}))
    return f"an attribute {taken[0]!r} was set on it, which rnnkit's class has too" if taken else None


def _problem_of_parameters(layer: Any, old: Any, backend: str | None) -> str | None:
    """Why calls with these parameters would fail, by their device and dtype."""
    name = _cell_name(layer, old)
    for parameter in layer.parameters():
        if is_lazy(parameter):
            return "has parameters that are not initialised: call the model once before"
        if parameter.device.type not in ("cpu", "cuda", "meta"):
            return f"its parameters are on {parameter.device}, and rnnkit runs on cpu and cuda"
        try:
            choice_of(parameter.device, parameter.dtype, name, backend)
        except (RuntimeError, ValueError) as error:
            return str(error)
    return None


def _cell_name(layer: Any, old: Any) -> str:
    """The name in CELLS."""
    kind = old.__name__.removesuffix("Cell").lower()
    return f"rnn_{layer.nonlinearity}" if kind == "rnn" else kind


# Classes of modules


def _base_class(module: Any) -> Any:
    """The class of a module, or of a parametrized one the class before."""
    return type(module).__bases__[0] if is_parametrized(module) else type(module)


def _set_base_class(module: Any, new: Any) -> None:
    """Gives a module the class `new`. The class of a parametrized module, of which there is one a module, is made anew
    with `new` as its base."""
    if is_parametrized(module):
        present = type(module)
        body = {key: value for key, value in vars(present).items() if key not in ("__dict__", "__weakref__")}
        new = type(present.__name__, (new,), body)
    module.__class__ = new


def _class_name(module: Any) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return f"{type(module).__name__} of {module.original_name}"
    found = _base_class(module)
    suffix = ", parametrized" if found is not type(module) else ""
    for prefix, public in (
        ("torch.nn.modules.", "torch.nn"),
        ("rnnkit.torch.subclasses", "rnnkit.torch.subclasses"),
        ("rnnkit.torch.", "rnnkit.torch"),
    ):
        if found.__module__.startswith(prefix):
            return f"{public}.{found.__name__}{suffix}"
    return f"{found.__module__}.{found.__qualname__}{suffix}"
