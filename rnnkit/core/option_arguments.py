"""The options of a cell as arguments of layers: values to check, which become `Options` and their constants."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from functools import cache
from typing import Any

from rnnkit.core import checks
from rnnkit.core.cell_options import ACTIVATIONS, DEFAULT_ACTIVATIONS, LAYER_NORMS, ROLES, Options, constants_of
from rnnkit.core.cells import CELLS, Cell, cell_of

# The arguments with their defaults. A layer stores each in an attribute of the same name.
ARGUMENTS: dict[str, Any] = {
    "peephole": False,
    "clip": None,
    "cell_clip": None,
    "coupled": False,
    "activations": None,
    "layer_norm": None,
    "norm_eps": None,
}


def cell_with(name: str, arguments: dict[str, Any]) -> tuple[Cell, tuple[float, ...]]:
    """The cell `name` of CELLS with options, and its constants. arguments: some of ARGUMENTS, not checked yet.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value, or the cell does not have the option.
    """
    given = {**ARGUMENTS, **arguments}
    numbers_by_name: dict[str, float] = {}
    for limit in ("clip", "cell_clip"):
        if given[limit] is not None:
            numbers_by_name[limit] = _positive(limit, given[limit])
    names: list[str] = []
    if given["activations"] is not None:
        for role, (activation, alpha, beta) in zip(ROLES, _activations(name, given["activations"]), strict=False):
            names.append(activation)
            numbers_by_name |= {f"alpha_{role}": alpha, f"beta_{role}": beta}
    kind = _layer_norm(name, given["layer_norm"])
    if given["norm_eps"] is not None and not kind:
        raise ValueError(f"norm_eps must be None without layer_norm, got {given['norm_eps']!r}")
    if kind:
        own = LAYER_NORMS[name][kind]
        numbers_by_name["norm_eps"] = own if given["norm_eps"] is None else _positive("norm_eps", given["norm_eps"])
    options = Options(
        peephole=checks.flag("peephole", given["peephole"]),
        clip=given["clip"] is not None,
        cell_clip=given["cell_clip"] is not None,
        coupled=checks.flag("coupled", given["coupled"]),
        activations=tuple(names),
        layer_norm=kind,
    )
    cell = CELLS[name].with_options(options)
    return cell, tuple([numbers_by_name[constant] for constant in constants_of(name, cell.options)])


def text_of(cell: Cell, constants: tuple[float, ...]) -> str:
    """A cell and its constants as text: `Cell.key`, then the numbers. `parsed` reads it."""
    return f"{cell.key}|{','.join(map(repr, constants))}" if constants else cell.key


@cache
def parsed(text: str) -> tuple[Cell, tuple[float, ...]]:
    """The reverse of `text_of`."""
    key, _, numbers_ = text.partition("|")
    return cell_of(key), tuple([float(number) for number in filter(None, numbers_.split(","))])


def check_constants(cell: Cell, constants: Any) -> tuple[float, ...]:
    """Returns the numbers of a call of the cell as floats, if there is one for each name in `cell.constants`."""
    if not isinstance(constants, (tuple, list)) or len(constants) != len(cell.constants):
        wanted = f"({', '.join(cell.constants)})" if cell.constants else "(), as the cell has none"
        raise ValueError(f"constants must be {wanted}, got {constants!r}")
    return tuple(
        _positive(name, value) if name in ("clip", "cell_clip", "norm_eps") else _finite(name, value)
        for name, value in zip(cell.constants, constants, strict=True)
    )


def _layer_norm(cell: str, given: Any) -> str:
    """The kind of layer normalisation, "" for None."""
    if given is None:
        return ""
    kinds = tuple(LAYER_NORMS.get(cell, ()))
    if not kinds:
        raise ValueError(f"layer_norm must be None for the cell {cell}, got {given!r}")
    return str(checks.one_of("layer_norm", given, kinds))


def _finite(name: str, value: Any) -> float:
    if isinstance(value, checks.NOT_NUMBERS) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def _positive(name: str, value: Any) -> float:
    if isinstance(value, checks.NOT_NUMBERS) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number above 0 or None, got {value!r}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be finite and above 0, got {value!r}")
    return float(value)


def _activations(cell: str, given: Any) -> list[tuple[str, float, float]]:
    """Name, alpha and beta of each role's activation; alpha and beta that it does not have are 0."""
    roles = len(DEFAULT_ACTIVATIONS[cell])
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"activations must be a sequence of names, or of tuples (name, alpha, beta), got {given!r}")
    if len(given) != roles:
        means = ", ".join(ROLES[:roles])
        raise ValueError(f"activations must be {roles} ({means} of ONNX) for this layer, got {len(given)}")
    return [_activation(f"activations[{k}]", one) for k, one in enumerate(given)]


def _activation(where: str, given: Any) -> tuple[str, float, float]:
    name, *values = (given,) if isinstance(given, str) or not isinstance(given, Sequence) else given or ("",)
    row = ACTIVATIONS[checks.one_of(where, name, tuple(ACTIVATIONS))]
    if len(values) > row.numbers:
        allowed = ("no numbers", "alpha", "alpha and beta")[row.numbers]
        raise ValueError(f"{where}: {name} takes {allowed}, got {len(values)} numbers")
    found = []
    for number, default, value in zip(("alpha", "beta"), row, [*values, None, None], strict=False):
        if default is None:
            found.append(0.0)
            continue
        if value is None and math.isnan(default):
            raise ValueError(f"{where}: {name} must be given as ({name!r}, alpha, beta): ONNX has no defaults for it")
        found.append(default if value is None else _finite(f"{number} of {where}", value))
    if name in ("LeakyRelu", "ThresholdedRelu", "Elu") and found[0] < 0:
        raise ValueError(f"alpha of {where} must be at least 0 for {name}, got {found[0]!r}")
    if name == "ScaledTanh" and found[0] == 0:
        raise ValueError(f"alpha of {where} must not be 0 for {name}")
    return name, found[0], found[1]
