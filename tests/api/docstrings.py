"""A strict checker of Google-style docstrings, which `tests.api.test_docstrings` runs over the public API.

A complete docstring describes every parameter under "Args:" (for fields of a dataclass or NamedTuple also
"Attributes:"), describes the result under "Returns:" unless the annotation says None, and has an example under
"Examples:". Everything it describes exists in the signature.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Examples", "Notes", "References")
ENTRY = re.compile(r"(\*{0,2}[A-Za-z_][\w]*): +\S")
SKIPPED_BASES = (object, dict, tuple, property, Exception)


def sections(docstring: str) -> dict[str, list[str]]:
    """Section name -> its lines without the section's indentation; "" holds the text before the first section."""
    parts: dict[str, list[str]] = {"": []}
    current = parts[""]
    for line in inspect.cleandoc(docstring).splitlines():
        name = line.removesuffix(":")
        if name in SECTIONS and line.endswith(":"):
            current = parts.setdefault(name, [])
        elif line and not line.startswith(" ") and current is not parts[""]:
            current = parts.setdefault("text after a section", [])
            current.append(line)
        else:
            current.append(line[4:] if current is not parts[""] else line)
    return parts


def entries(lines: list[str]) -> list[str]:
    """The names that the lines of a section describe, in order."""
    found = []
    for line in lines:
        match = ENTRY.match(line)
        if match is not None:
            found.append(match[1])
    return found


def faults(name: str, thing: Any) -> list[str]:
    """What is missing or wrong in the docstring of a class, function, method or property, one sentence each."""
    docstring = inspect.getdoc(thing) if not inspect.isclass(thing) else thing.__doc__
    if not docstring or not docstring.strip():
        return [f"{name}: has no docstring"]
    if isinstance(thing, property):
        summary = inspect.cleandoc(docstring).partition("\n\n")[0]
        return [] if summary.endswith(".") else [f"{name}: the docstring of a property starts with a sentence"]
    parts = sections(docstring)
    found = [f"{name}: has text after a section: {line!r}" for line in parts.get("text after a section", ())]
    described = entries(parts.get("Args", []))
    if _has_fields(thing):
        described += entries(parts.get("Attributes", []))
    wanted = _parameters(thing)
    found += [f"{name}: does not describe the parameter {one}" for one in wanted if one not in described]
    found += [f"{name}: describes {one}, which is no parameter" for one in described if one not in wanted]
    if not any(line.strip().startswith(">>> ") for line in parts.get("Examples", ())):
        found.append(f"{name}: has no example")
    if not inspect.isclass(thing):
        found += _result_faults(name, thing, parts)
    return found


def _result_faults(name: str, function: Callable[..., Any], parts: dict[str, list[str]]) -> list[str]:
    returned = inspect.signature(function).return_annotation
    section = "Yields" if "Iterator" in str(returned) else "Returns"
    described = any(line.strip() for line in parts.get(section, ()))
    if returned in ("None", None):
        return [f"{name}: has a section {section} and returns None"] if described else []
    return [] if described else [f"{name}: does not describe what is returned"]


def _has_fields(thing: Any) -> bool:
    return inspect.isclass(thing) and (dataclasses.is_dataclass(thing) or hasattr(thing, "_fields"))


def _parameters(thing: Any) -> list[str]:
    """Names of the parameters, with the stars of *args and **kwargs; of a class those of its constructor."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return []
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    signature = inspect.signature(thing)
    return [stars.get(p.kind, "") + p.name for p in signature.parameters.values() if p.name not in ("self", "cls")]


def members(name: str, cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class and its bases, each with the name of the defining class.

    `__call__` is public. Methods that a dataclass or NamedTuple generates are omitted.
    """
    for base in cls.__mro__:
        if base in SKIPPED_BASES or not base.__module__.startswith("rnnkit"):
            continue
        for member, value in vars(base).items():
            if member.startswith("_") and member != "__call__":
                continue
            value = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            if getattr(value, "__module__", "rnnkit").startswith("torch."):
                continue  # a function of PyTorch
            if inspect.isfunction(value) or isinstance(value, property):
                yield f"{base.__module__}.{base.__qualname__}.{member}", value


def documented(names: dict[str, Any]) -> dict[str, Any]:
    """Everything that needs a complete docstring, by qualified name: the values of `names` and their members."""
    things: dict[str, Any] = {}
    for name, thing in names.items():
        if inspect.isclass(thing):
            things[f"{thing.__module__}.{thing.__qualname__}"] = thing
            things |= dict(members(name, thing))
        else:
            things[f"{thing.__module__}.{getattr(thing, '__qualname__', name)}"] = thing
    return things
