"""The cache of the compiled CPU kernels: which folders, which files, and when a file may be used.

Numba's own `cache=True` looks only at the file a function stands in and cannot key a function made by a factory,
as ours are (one per cell and dtype). It also trusts what it reads. Here a kernel is one file (cache_file.py), used
only where its checksum is right and its header names this Python, Numba, llvmlite and processor, and a digest of every
file in this folder. A fault of the cache never fails a call: the kernel is compiled, and one warning names the file.

Code is read from the first folder that has it and written to the first that takes it. No folder is made before code
is written. This file imports neither Numba nor llvmlite, so that `python -m rnnkit.doctor` works without them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pickle
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from rnnkit.kernels.cpu.cache_file import SUFFIX, TEMPORARY, DamagedFile, decode, encode, write_to_first
from rnnkit.kernels.cpu.notice import compile_notice

HERE = Path(__file__).absolute().parent
# The folders that the CPU kernels are compiled from, and files there that cannot change a compiled kernel.
_FOLDERS = (HERE.parent / "cells", HERE)
_NO_SOURCES = ("cache.py", "cache_file.py", "notice.py")

_NAMED_BY_US = re.compile(r"\.[0-9a-f]{12}\.nbc$")

# Kernels of this process: "loaded" from a file, "compiled", and "cached" of those.
counts: Counter[str] = Counter()
_warned: set[object] = set()


@cache
def sources_digest() -> str:
    """Digest of every Python file that CPU kernels are compiled from, or by."""
    digest = hashlib.sha256()
    for folder in _FOLDERS:
        for path in sorted(folder.glob("*.py")):
            if path.name not in _NO_SOURCES:
                digest.update(f"{folder.name}/{path.name}".encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def cache_folders(source: Path) -> tuple[Path, ...]:
    """The folders that may hold the code of functions in the file `source`, best first.

    NUMBA_CACHE_DIR names the only root where it is set. Else they are the __pycache__ beside the source, and a folder
    of the user: a read-only install is read from the first and written to the second. () where there is no source
    file, as in a zip archive.
    """
    if not source.is_file():
        return ()
    version = f"rnnkit-{sources_digest()[:12]}"
    named = _named_root()
    if named:
        return (Path(named).absolute() / version,)
    user = _user_root()
    return (source.parent / "__pycache__", *(() if user is None else (user / "rnnkit" / version,)))


def kernel_folders() -> tuple[Path, ...]:
    """The folders that may hold rnnkit's own kernels, best first."""
    return cache_folders(HERE / "jit.py")


def _named_root() -> str:
    config = getattr(sys.modules.get("numba"), "config", None)  # which also reads Numba's file of settings
    return getattr(config, "CACHE_DIR", os.environ.get("NUMBA_CACHE_DIR", ""))


def _user_root() -> Path | None:
    """Where the system wants caches of this user; None where it does not say."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA", "")
    elif sys.platform == "darwin":
        root = os.path.expanduser("~/Library/Caches")
    else:
        root = os.environ.get("XDG_CACHE_HOME", "")
        root = root if os.path.isabs(root) else os.path.expanduser("~/.cache")
    return Path(root) if os.path.isabs(root) else None


@cache
def environment_stamp() -> dict[str, str]:
    """What compiled code depends on besides its sources. Needs Numba. Not to be changed.

    vector_bytes is of the host: kernels are laid out for it whatever processor NUMBA_CPU_NAME has Numba compile for.
    """
    import llvmlite
    import numba
    from numba.core.registry import cpu_target

    from rnnkit.kernels.cpu import simd as vector

    return {
        "python": f"{sys.implementation.cache_tag}{getattr(sys, 'abiflags', '')}",
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "target": " ".join(cpu_target.target_context.codegen().magic_tuple()),
        "vector_bytes": str(vector.vector_bytes()),
    }


def survey(folder: Path, stamp: dict[str, str] | None) -> dict[str, list[Path]]:
    """The files of a cache folder by what they are worth; each is read in full.

    current: intact, of these sources and of the environment `stamp`, or of any where that is None. stale: intact, of
    others, or of an rnnkit from before this format. damaged; unfinished: left by a process that was killed.
    """
    found: dict[str, list[Path]] = {"current": [], "stale": [], "damaged": [], "unfinished": []}
    try:
        paths = sorted(folder.iterdir())
    except OSError:  # it is not there, or another user's
        return found
    for path in paths:
        if path.suffix == TEMPORARY:
            found["unfinished"].append(path)
        elif path.suffix in (SUFFIX, ".nbi"):
            found[_worth(path, stamp)].append(path)
    return found


def _worth(path: Path, stamp: dict[str, str] | None) -> str:
    if _NAMED_BY_US.search(path.name) is None:
        return "stale"
    try:
        header, _ = decode(path.read_bytes())
    except (OSError, DamagedFile):
        return "damaged"
    fits = header.get("sources", "").startswith(sources_digest()) and (stamp or {}).items() <= header.items()
    return "current" if fits else "stale"


class KernelCache:
    """The cache of one function, for Numba's dispatchers and callbacks, which call `load_overload`, `save_overload`."""

    def __init__(self, function: Callable, key: tuple[str, ...]) -> None:
        source = Path(inspect.getfile(function)).absolute()
        self.folders = cache_folders(source)
        self.cache_path = str(self.folders[0]) if self.folders else None  # which Numba's statistics show
        self._what = " ".join(key)
        name = f"{source.stem}.{function.__qualname__}-{'-'.join(key)}"
        self._name = name.replace("<", "").replace(">", "")
        self._sources = sources_digest()
        if self.folders and source.parent != HERE:
            self._sources += hashlib.sha256(source.read_bytes()).hexdigest()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function for the argument types `sig`, or None; then the caller compiles, and saves.

        Numba's own would first have its context take in all that Numba compiles from, SciPy's linear algebra where that
        is installed: 0.2 s and more that only compiling needs, which sees to it by itself. Machine code needs Numba's
        runtime, whose functions it calls.
        """
        from numba.core.runtime import rtsys

        rtsys.initialize(target_context)
        name, header = self._file_of(sig)
        for folder in self.folders:
            found = _loaded(folder / name, header, target_context)
            if found is not None:
                counts["loaded"] += 1
                return found
        compile_notice.started(self._what, self.folders)
        return None

    def save_overload(self, sig: Any, compiled: Any) -> None:
        """Caches what was compiled for `sig`. A failure is a warning: `compiled` serves this process all the same."""
        from numba.core.serialize import dumps

        compile_notice.ended()
        counts["compiled"] += 1
        if not self.folders or compiled.library.has_dynamic_globals:
            return
        name, header = self._file_of(sig)
        try:
            data = encode(header, dumps(compiled._reduce()))
        except Exception as problem:  # whatever Numba raises for code that it cannot store
            _warn(name, f"rnnkit: {self._what} cannot be cached ({type(problem).__name__}: {problem})")
            return
        problems = write_to_first(self.folders, name, data)
        if problems:
            said = f"rnnkit: no folder takes compiled code, so every process compiles anew: {'; '.join(problems)}"
            _warn(self.folders, said)
        else:
            counts["cached"] += 1

    def flush(self) -> None:
        """For Numba's `recompile`. What is compiled next is written over the old file."""

    def _file_of(self, sig: Any) -> tuple[str, dict[str, str]]:
        """The name of the file for argument types, and the header that it must have.

        The name is another one for another environment, so that machines and versions may share a folder; a changed
        source overwrites.
        """
        header = {**environment_stamp(), "kernel": self._what, "signature": str(sig)}
        tag = hashlib.sha256(json.dumps(header).encode()).hexdigest()[:12]
        return f"{self._name}.{tag}{SUFFIX}", {**header, "sources": self._sources}


def _loaded(path: Path, header: dict[str, str], target_context: Any) -> Any:
    """The compiled function in a file, or None where there is none that may be used."""
    from numba.core.compiler import CompileResult

    try:
        found, code = decode(path.read_bytes())
        if found != header:
            return None
        return CompileResult._rebuild(target_context, *pickle.loads(code))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedFile as problem:
        reason = f"is damaged: {problem}"
    except OSError as problem:
        reason = f"cannot be read: {problem.strerror or problem}"
    except Exception as problem:  # of an intact file, whatever unpickling and linking raise
        reason = f"cannot be loaded: {type(problem).__name__}: {problem}"
    _warn(path, f"rnnkit: a cached kernel {reason}; it is compiled anew: {path}")
    return None


def _warn(about: object, text: str) -> None:
    """Warns once per process and `about`."""
    if about not in _warned:
        _warned.add(about)
        warnings.warn(text, stacklevel=1)
