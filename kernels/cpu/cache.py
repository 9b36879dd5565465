"""The cache of compiled CPU kernels: its folders, its files, and when a file may be used.

Numba's own `cache=True` does not serve. It watches only the source file of a function, and it has no key for the
functions of a factory, of which there is one per cell and dtype here. It also trusts what it reads. Here each kernel is
one file (cache_file.py). A file is used only if its checksum is right and its header matches this Python, Numba,
llvmlite, processor, and the digest of all sources of the kernels. A fault of the cache never makes a call fail: the
kernel is compiled instead, and one warning names the file.

Code is read from the first folder that has it and written to the first writable one. A folder is created only when code
is written. This module imports neither Numba nor llvmlite, so that `python -m rnnkit.doctor` works without them.
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
# The folders of the CPU kernels' sources, and the files there that cannot change a compiled kernel.
_FOLDERS = (HERE.parent / "cells", HERE.parent / "random", HERE)
_NO_SOURCES = ("cache.py", "cache_file.py", "notice.py")

_FILE_NAME = re.compile(r"\.[0-9a-f]{12}\.nbc$")

# How many kernels this process has "loaded" from a file, "compiled", and after compiling "cached".
counts: Counter[str] = Counter()
_warned: set[object] = set()


@cache
def sources_digest() -> str:
    """The digest of every Python file that the CPU kernels are compiled from, or that compiles them."""
    digest = hashlib.sha256()
    for folder in _FOLDERS:
        for path in sorted(folder.glob("*.py")):
            if path.name not in _NO_SOURCES:
                digest.update(f"{folder.name}/{path.name}".encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def cache_folders(source: Path) -> tuple[Path, ...]:
    """The folders that may hold the compiled functions of the file `source`, best first.

    If NUMBA_CACHE_DIR is set, a folder below it is the only one. Otherwise they are the __pycache__ beside the source
    and a folder of the user: code of a read-only installation is read from the first and written to the second. () if
    there is no source file, as in a zip archive.
    """
    if not source.is_file():
        return ()
    version = f"rnnkit-{sources_digest()[:12]}"
    configured = _configured_root()
    if configured:
        return (Path(configured).absolute() / version,)
    user = _user_root()
    return (source.parent / "__pycache__", *(() if user is None else (user / "rnnkit" / version,)))


def kernel_folders() -> tuple[Path, ...]:
    """The folders that may hold rnnkit's compiled kernels, best first."""
    return cache_folders(HERE / "jit.py")


def _configured_root() -> str:
    config = getattr(sys.modules.get("numba"), "config", None)  # reads Numba's settings file, too
    return getattr(config, "CACHE_DIR", os.environ.get("NUMBA_CACHE_DIR", ""))


def _user_root() -> Path | None:
    """The system's cache folder of this user; None if it is not defined."""
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
    """What compiled code depends on besides its sources. Needs Numba. Callers must not change the dict.

    vector_bytes is that of the host, which determines the kernels' layout, whatever processor NUMBA_CPU_NAME selects.
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
    """The files of a cache folder by their state. Reads each file in full.

    current     intact, from these sources and the environment `stamp`, or any environment if that is None
    stale       intact, from other sources or another environment, or in the format of an older rnnkit
    damaged     some bytes are missing or changed
    unfinished  left behind by a process that was killed
    """
    files: dict[str, list[Path]] = {"current": [], "stale": [], "damaged": [], "unfinished": []}
    try:
        paths = sorted(folder.iterdir())
    except OSError:  # the folder does not exist, or belongs to another user
        return files
    for path in paths:
        if path.suffix == TEMPORARY:
            files["unfinished"].append(path)
        elif path.suffix in (SUFFIX, ".nbi"):
            files[_state_of(path, stamp)].append(path)
    return files


def _state_of(path: Path, stamp: dict[str, str] | None) -> str:
    if _FILE_NAME.search(path.name) is None:
        return "stale"
    try:
        header, _ = decode(path.read_bytes())
    except (OSError, DamagedFile):
        return "damaged"
    same_sources = header.get("sources", "").startswith(sources_digest())
    same_environment = (stamp or {}).items() <= header.items()
    return "current" if same_sources and same_environment else "stale"


class KernelCache:
    """The cache of one function. Numba's dispatchers and callbacks call its `load_overload` and `save_overload`."""

    def __init__(self, function: Callable, key: tuple[str, ...]) -> None:
        source = Path(inspect.getfile(function)).absolute()
        self.folders = cache_folders(source)
        self.cache_path = str(self.folders[0]) if self.folders else None  # shown in Numba's statistics
        self._description = " ".join(key)
        name = f"{source.stem}.{function.__qualname__}-{'-'.join(key)}"
        self._name = name.replace("<", "").replace(">", "")
        self._sources = sources_digest()
        if self.folders and source.parent != HERE:
            self._sources += hashlib.sha256(source.read_bytes()).hexdigest()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function for the argument types `sig`, or None. On None the caller compiles and saves.

        Numba's own cache would first refresh the target context, which imports everything that compiling needs, SciPy's
        linear algebra included. Loading machine code needs only Numba's runtime, whose functions the code calls, and
        compiling refreshes the context by itself.
        """
        from numba.core.runtime import rtsys

        rtsys.initialize(target_context)
        name, header = self._name_and_header(sig)
        for folder in self.folders:
            found = _load(folder / name, header, target_context)
            if found is not None:
                counts["loaded"] += 1
                return found
        compile_notice.started(self._description, self.folders)
        return None

    def save_overload(self, sig: Any, compiled: Any) -> None:
        """Caches the function compiled for `sig`. A failure causes a warning only: this process can use `compiled`."""
        from numba.core.serialize import dumps

        compile_notice.ended()
        counts["compiled"] += 1
        if not self.folders or compiled.library.has_dynamic_globals:
            return
        name, header = self._name_and_header(sig)
        try:
            data = encode(header, dumps(compiled._reduce()))
        except Exception as problem:  # any exception that Numba raises for code that it cannot serialise
            _warn_once(name, f"rnnkit: {self._description} cannot be cached ({type(problem).__name__}: {problem})")
            return
        problems = write_to_first(self.folders, name, data)
        if problems:
            reasons = "; ".join(problems)
            _warn_once(
                self.folders,
                f"rnnkit: no cache folder is writable, so every process compiles the kernels again: {reasons}",
            )
        else:
            counts["cached"] += 1

    def flush(self) -> None:
        """Called by Numba's `recompile`. The next compiled function overwrites the old file."""

    def _name_and_header(self, sig: Any) -> tuple[str, dict[str, str]]:
        """The name of the file for these argument types, and the header that it must have.

        The name depends on the environment, so that machines and versions can share a folder. It does not depend on the
        sources, so that code of changed sources overwrites the old code.
        """
        header = {**environment_stamp(), "kernel": self._description, "signature": str(sig)}
        tag = hashlib.sha256(json.dumps(header).encode()).hexdigest()[:12]
        return f"{self._name}.{tag}{SUFFIX}", {**header, "sources": self._sources}


def _load(path: Path, header: dict[str, str], target_context: Any) -> Any:
    """The compiled function in a file; None if there is no usable one."""
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
    except Exception as problem:  # any exception of unpickling and linking an intact file
        reason = f"cannot be loaded: {type(problem).__name__}: {problem}"
    _warn_once(path, f"rnnkit: a cached kernel {reason}; it is compiled again: {path}")
    return None


def _warn_once(key: object, text: str) -> None:
    """Warns once per process and key."""
    if key not in _warned:
        _warned.add(key)
        warnings.warn(text, stacklevel=1)
