"""The cache of compiled kernels under every fault: right results, no error, and one warning that names the file."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import pytest

from rnnkit.kernels.cpu import jit
from rnnkit.kernels.cpu import simd as vector

ROOT = Path(__file__).resolve().parents[2]
KERNEL = """
from rnnkit.kernels.cpu.jit import entry, job

def make_entry():
    @entry(("test", "twice"))
    def twice(x):
        return 2.0 * x
    return twice

def make_job():
    @job(("test", "nothing"))
    def nothing(a, b):
        pass
    return nothing
"""


@pytest.fixture
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that NUMBA_CACHE_DIR names, in this process, without earlier warnings."""
    root = tmp_path / "cache"
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(root))
    reset_process_state(monkeypatch)
    yield root
    reset_process_state(monkeypatch)


def reset_process_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resets the cache to the state of a new process: no warnings, no version read."""
    cache = sys.modules.get("rnnkit.kernels.cpu.cache")
    if cache is not None:
        monkeypatch.setattr(cache, "_warned", set())
        cache.environment_stamp.cache_clear()


@pytest.fixture
def kernels(tmp_path: Path) -> Iterator[Any]:
    """A module with an entry and a job, in a separate folder."""
    yield module(tmp_path / "source" / "made.py", KERNEL)
    del sys.modules["made"]


def module(path: Path, text: str) -> Any:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found  # Numba imports it when it loads cached code
    spec.loader.exec_module(found)
    return found


def called(kernels: Any) -> str:
    """Creates and calls the entry, as a new process does. Returns "compiled" or "loaded"."""
    twice = kernels.make_entry()
    assert twice(21.0) == 42.0
    misses, hits = (sum(counts.values()) for counts in (twice.stats.cache_misses, twice.stats.cache_hits))
    assert misses + hits == 1
    return "loaded" if hits else "compiled"


def with_warnings(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """The result of a call, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call()
    return found, [str(w.message) for w in caught]


def cached(root: Path) -> list[Path]:
    """The files of the cache."""
    return sorted(path for path in root.rglob("*.nb[ci]") if path.is_file())


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "cut to one byte": lambda data: data[:1],
    "cut in its header": lambda data: data[:50],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut by one byte": lambda data: data[:-1],
    "one byte longer": lambda data: data + b"\0",
    "first byte changed": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "header changed": lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
    "code changed": lambda data: data[: len(data) // 2] + b"\xff" * 64 + data[len(data) // 2 + 64 :],
    "last byte changed": lambda data: data[:-1] + bytes([data[-1] ^ 128]),
    "another file": lambda data: b"\x80\x04N.",
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_recompiled_and_rewritten_with_one_warning(damage, cache_root, kernels) -> None:
    assert with_warnings(lambda: called(kernels)) == ("compiled", [])
    assert with_warnings(lambda: called(kernels)) == ("loaded", [])
    files = cached(cache_root)
    whole = {path: path.read_bytes() for path in files}
    for path, data in whole.items():
        path.write_bytes(DAMAGES[damage](data))
    how, messages = with_warnings(lambda: called(kernels))
    assert how == "compiled"
    assert len(messages) == 1
    assert any(str(path) in messages[0] for path in files)
    assert with_warnings(lambda: called(kernels)) == ("loaded", [])
    for path, data in whole.items():
        path.write_bytes(DAMAGES[damage](data))
    assert with_warnings(lambda: called(kernels)) == ("compiled", []), "a second warning about one file"


def test_a_damaged_file_of_a_job(cache_root, kernels) -> None:
    kernels.make_job()
    assert kernels.make_job().cache_hits == 1
    for path in cached(cache_root):
        path.write_bytes(path.read_bytes()[:-1])
    made, messages = with_warnings(kernels.make_job)
    assert (made.cache_hits, len(messages)) == (0, 1)
    assert kernels.make_job().cache_hits == 1


def test_any_missing_or_changed_byte_is_found(cache_root, kernels) -> None:
    from rnnkit.kernels.cpu.cache_file import DamagedFile, decode

    called(kernels)
    (path,) = cached(cache_root)
    data = path.read_bytes()
    decode(data)
    for at in range(len(data)):
        for changed in (data[:at], data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]):
            with pytest.raises(DamagedFile):
                decode(changed)


def test_an_unreadable_file_is_ignored(cache_root, kernels) -> None:
    """A folder of that name, since root can read every file. It cannot be rewritten either."""
    called(kernels)
    paths = cached(cache_root)
    for path in paths:
        path.unlink()
        path.mkdir()
    how, messages = with_warnings(lambda: called(kernels))
    assert how == "compiled"
    assert any(str(path) in messages[0] for path in paths)
    assert "every process compiles the kernels again" in messages[1]
    assert with_warnings(lambda: called(kernels)) == ("compiled", [])


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_cannot_be_written_gives_one_warning(error, cache_root, kernels, monkeypatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        how, messages = with_warnings(lambda: called(kernels))
        assert (how, len(messages)) == ("compiled", 1)
        assert str(cache_root) in messages[0]
        assert os.strerror(error) in messages[0]
        assert with_warnings(lambda: called(kernels)) == ("compiled", [])
        assert with_warnings(kernels.make_job)[1] == [], "one per folder, not per kernel"
        assert cached(cache_root) == [], "unfinished files"
        assert not list(cache_root.rglob("*.tmp"))
    assert with_warnings(lambda: called(kernels)) == ("compiled", [])
    assert with_warnings(lambda: called(kernels)) == ("loaded", [])


def test_a_failed_write_leaves_the_previous_cache_file(cache_root, kernels, monkeypatch) -> None:
    from rnnkit.kernels.cpu.cache_file import write_atomically

    called(kernels)
    (path,) = cached(cache_root)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: os.stat("/nowhere/at all"))
    with pytest.raises(OSError):
        write_atomically(path.parent, path.name, b"half")
    assert path.read_bytes() == before
    assert [other.name for other in path.parent.iterdir() if other.suffix != ""] == [path.name]


def test_a_folder_that_cannot_be_created_gives_one_warning(cache_root, kernels) -> None:
    cache_root.write_text("a file, not a folder")
    how, messages = with_warnings(lambda: called(kernels))
    assert (how, len(messages)) == ("compiled", 1)
    assert str(cache_root) in messages[0]


def test_a_folder_may_be_deleted_at_any_time(cache_root, kernels, monkeypatch) -> None:
    called(kernels)
    shutil.rmtree(cache_root)
    assert with_warnings(lambda: called(kernels)) == ("compiled", [])
    assert with_warnings(lambda: called(kernels)) == ("loaded", [])
    shutil.rmtree(cache_root)
    replace = os.replace

    def vanished(*paths: Any) -> None:
        shutil.rmtree(cache_root)
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", vanished)
        how, messages = with_warnings(lambda: called(kernels))
    assert (how, len(messages)) == ("compiled", 1)
    assert with_warnings(lambda: called(kernels)) == ("compiled", [])
    assert with_warnings(lambda: called(kernels)) == ("loaded", [])


def _numba_version(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(numba, "__version__", "0.0.1")


def _llvmlite_version(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("llvmlite.__version__", "0.0.1")


def _python_version(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "abiflags", "another")


def _processor(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(numba.core.codegen.CPUCodegen, "magic_tuple", lambda self: ("x86_64-linux", "another", "+sse"))


def _vectors(patch: pytest.MonkeyPatch) -> None:
    """Two machines that share a cache and NUMBA_CPU_NAME: the kernels' layout still depends on the host."""
    patch.setattr(vector, "vector_bytes", lambda: 8)


@pytest.mark.parametrize("other", [_numba_version, _llvmlite_version, _python_version, _processor, _vectors])
def test_another_environment_compiles_its_own_files_and_keeps_others(other, cache_root, kernels, monkeypatch) -> None:
    called(kernels)
    with monkeypatch.context() as patch:
        other(patch)
        reset_process_state(patch)
        assert with_warnings(lambda: called(kernels)) == ("compiled", [])
        assert with_warnings(lambda: called(kernels)) == ("loaded", [])
    reset_process_state(monkeypatch)
    assert with_warnings(lambda: called(kernels)) == ("loaded", [])


def test_an_intact_file_of_other_sources_is_not_used(cache_root, kernels) -> None:
    from rnnkit.kernels.cpu.cache_file import decode, encode

    called(kernels)
    (path,) = cached(cache_root)
    header, code = decode(path.read_bytes())
    path.write_bytes(encode({**header, "sources": "another"}, code))
    assert with_warnings(lambda: called(kernels)) == ("compiled", [])
    assert with_warnings(lambda: called(kernels)) == ("loaded", [])


def test_an_intact_file_that_does_not_load_is_recompiled(cache_root, kernels) -> None:
    """For example of a development version of Numba, which changes without a new number."""
    from rnnkit.kernels.cpu.cache_file import decode, encode

    called(kernels)
    (path,) = cached(cache_root)
    header, _ = decode(path.read_bytes())
    path.write_bytes(encode(header, b"\x80\x04K\x01K\x02\x86."))  # the pair (1, 2)
    how, messages = with_warnings(lambda: called(kernels))
    assert (how, len(messages)) == ("compiled", 1)
    assert str(path) in messages[0]


def test_a_changed_function_outside_our_folder_is_recompiled(cache_root, kernels, tmp_path) -> None:
    """The file name and the line of the function are unchanged."""
    called(kernels)
    other = module(tmp_path / "source" / "made.py", KERNEL.replace("2.0 * x", "3.0 * x"))
    assert other.make_entry()(5.0) == 15.0


@pytest.mark.slow
def test_concurrent_writers_and_readers(tmp_path, cache_root) -> None:
    """Four processes compile the same kernel into one folder, and load each other's files."""
    path = tmp_path / "made.py"
    path.write_text(KERNEL)
    script = textwrap.dedent("""
        import pathlib, sys, warnings
        import made
        warnings.simplefilter("error")
        for _ in range(12):
            made.make_entry()(21.0)
            for path in pathlib.Path(sys.argv[1]).rglob("*.nb[ci]"):
                path.unlink(missing_ok=True)  # so that the next call compiles and writes again
    """)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache_root), "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-c", script, str(cache_root)]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        output = process.communicate(timeout=120)[1]
        assert process.returncode == 0, output
    assert not list(cache_root.rglob("*.tmp*"))


@pytest.fixture
def user_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary user cache folder; NUMBA_CACHE_DIR is not set."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    reset_process_state(monkeypatch)
    return tmp_path / "user"


linux = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG_CACHE_HOME is for other systems")


@linux
def test_a_writable_install_has_its_cache_beside_the_sources(user_root, kernels, tmp_path) -> None:
    assert called(kernels) == "compiled"
    assert cached(tmp_path / "source" / "__pycache__")
    assert not user_root.exists()


@linux
def test_a_read_only_install_has_its_cache_in_the_users_folder(user_root, kernels, tmp_path) -> None:
    (tmp_path / "source" / "__pycache__").write_text("not a folder, so even root cannot write into it")
    assert with_warnings(lambda: called(kernels)) == ("compiled", [])
    assert cached(user_root)
    assert with_warnings(lambda: called(kernels)) == ("loaded", [])


@linux
def test_the_filled_cache_of_a_read_only_install_is_used(user_root, kernels, tmp_path, monkeypatch) -> None:
    """For example a container image whose cache root filled, run by another user."""
    called(kernels)
    user_root.write_text("not a folder")
    inside, opened = tmp_path / "source" / "__pycache__", os.open

    def read_only(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if str(path).startswith(str(inside)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)  # tempfile, and so Numba, tests folders with it
    assert with_warnings(lambda: called(kernels)) == ("loaded", [])


@linux
def test_without_a_writable_folder_each_process_compiles_and_one_warning_names_the_folders(
    user_root, kernels, tmp_path
) -> None:
    inside = tmp_path / "source" / "__pycache__"
    inside.write_text("not a folder")
    user_root.write_text("not a folder")
    how, messages = with_warnings(lambda: called(kernels))
    assert (how, len(messages)) == ("compiled", 1)
    assert str(inside) in messages[0]
    assert str(user_root) in messages[0]


def test_a_function_without_a_source_file_is_compiled_and_not_cached(cache_root) -> None:
    found: dict[str, Any] = {"entry": jit.entry}
    text = "@entry(('test', 'none'))\ndef twice(x):\n    return 2.0 * x\n"
    exec(compile(text, "<nowhere>", "exec"), found)
    assert with_warnings(lambda: found["twice"](21.0)) == (42.0, [])
    assert not cached(cache_root)


@pytest.mark.slow
def test_damaged_kernels_of_a_layer(tmp_path) -> None:
    """With a damaged cache a process computes the same and warns once per file. The next process loads it."""
    script = textwrap.dedent("""
        import warnings
        import numpy as np, rnnkit
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            y, _ = rnnkit.RNN(3, 4, rng=0)(np.ones((1, 1, 3), "float32"))
        print(len(caught), float(y.sum()).hex())
    """)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def run() -> list[str]:
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.split()

    count, value = run()
    assert count == "0"
    files = cached(tmp_path)
    assert len(files) >= 2
    for path in files:
        path.write_bytes(path.read_bytes()[:-7])
    assert run() == [str(len(files)), value]
    assert run() == ["0", value]
