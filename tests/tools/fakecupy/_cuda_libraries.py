"""Replaces cuBLAS for code that finds it by NVIDIA's pathfinder and opens it by ctypes."""

from __future__ import annotations

import ctypes
import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

PATH = "/nowhere/fake/libcublas.so"
FINDER = "cuda.pathfinder"


class Loaded(NamedTuple):
    """The fields of pathfinder's LoadedDL that the library reads."""

    abs_path: str
    was_already_loaded_from_elsewhere: bool = False


class _InstancesOfBase(type):
    """Makes isinstance(library, ctypes.CDLL) true for libraries that were opened before the class was replaced."""

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls.__mro__[1])


@contextmanager
def found(library: Any) -> Iterator[None]:
    """In the `with` block, `cuda.pathfinder` finds cuBLAS at PATH, and ctypes.CDLL(PATH) is `library`."""
    try:
        real: Any = importlib.import_module(FINDER)
    except ImportError:
        real = None

    def load_nvidia_dynamic_lib(name: str) -> Any:
        if name == "cublas":
            return Loaded(PATH)
        if real is None:
            raise RuntimeError(f'Failure finding "{name}"')
        return real.load_nvidia_dynamic_lib(name)

    finder = types.ModuleType(FINDER)
    vars(finder).update({} if real is None else vars(real))
    vars(finder).update(load_nvidia_dynamic_lib=load_nvidia_dynamic_lib)
    before, opener = sys.modules.get(FINDER), ctypes.CDLL

    class Opened(opener, metaclass=_InstancesOfBase):  # type: ignore[misc, valid-type]
        def __new__(cls, name: Any = None, *args: Any, **kwargs: Any) -> Any:
            return library if name == PATH else super().__new__(cls)

    sys.modules[FINDER], ctypes.CDLL = finder, Opened  # type: ignore[misc]
    try:
        yield
    finally:
        ctypes.CDLL = opener  # type: ignore[misc]
        if before is None:
            del sys.modules[FINDER]
        else:
            sys.modules[FINDER] = before
