"""The distributions: an sdist whose tests pass, a wheel with only the package, and an import without heavy modules."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import rnnkit
from rnnkit.backends import needs

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# The files that a build reads. The folder itself may contain large environments.
TREE = ("rnnkit", "kernels", "tests", "bench", "docs", ".ci", "Makefile", "MANIFEST.in", "pyproject.toml", "LICENSE")
TREE += ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "mkdocs.yml")


def python(code: str, cwd: Path, *path: Path) -> str:
    """The output of `code` in a new interpreter with `path` first in sys.path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def built(what: str, source: Path, into: Path) -> Path:
    """The sdist or wheel of a source tree, from the build backend that pip calls."""
    code = f"import setuptools.build_meta as b; print('built:', b.build_{what}({str(into)!r}), sep='')"
    return into / python(code, source).rpartition("built:")[2].strip()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of an sdist built from a copy of this one."""
    try:
        found = metadata.version("setuptools")
    except metadata.PackageNotFoundError:
        found = "0"
    if int(found.split(".")[0]) < 77:
        pytest.skip(f"building needs setuptools>=77, of the extra `test`; installed: {found}")
    folder = tmp_path_factory.mktemp("package")
    for part in TREE:
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, folder / "source" / part, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / part, folder / "source" / part)
    left_by_the_cache = folder / "source" / "kernels" / "__pycache__"
    left_by_the_cache.mkdir()
    for name in ("a.0123456789ab.nbc", "a.0123456789ab.nbc.0123.tmp", "rnnkit-notice"):
        (left_by_the_cache / name).write_bytes(b"")
    with tarfile.open(built("sdist", folder / "source", folder)) as archive:
        assert not [name for name in archive.getnames() if "__pycache__/" in name]
        archive.extractall(folder / "unpacked", filter="data")
    (tree,) = (folder / "unpacked").iterdir()
    return tree


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the sdist's tree."""
    return built("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


def files(root: Path) -> set[str]:
    """The relative path of every file in a folder, except those that running and building create."""
    left = ("__pycache__", "build", "rnnkit.egg-info")
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not set(left) & set(path.parts)}


def test_the_sdist_contains_the_whole_tree(unpacked: Path) -> None:
    want = {part for part in TREE if (ROOT / part).is_file()}
    for folder in (part for part in TREE if (ROOT / part).is_dir()):
        want |= {f"{folder}/{name}" for name in files(ROOT / folder)}
    want |= {f"rnnkit/kernels/{name}" for name in files(ROOT / "kernels")}
    assert files(unpacked) - {"PKG-INFO", "setup.cfg"} == want


@pytest.mark.slow
def test_tests_pass_in_an_unpacked_sdist(unpacked: Path) -> None:
    code = """if 1:
        import sys, pytest, rnnkit, rnnkit.kernels.cpu.scan
        assert rnnkit.__file__.startswith(sys.path[1]), rnnkit.__file__
        chosen = ["tests/oracle/test_oracle.py", "-k", "forward_equals_the_equations and lstm"]
        sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *chosen]))"""
    python(code, unpacked, unpacked)  # asserts the exit status, which is not 0 if no test is selected


def test_the_wheel_contains_only_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"rnnkit-{rnnkit.__version__}.dist-info/"
    shipped = {name for name in names if not name.startswith(info)}
    modules = {f"rnnkit/{name}" for name in files(ROOT / "rnnkit") if not name.startswith("kernels/")}
    assert shipped == modules | {f"rnnkit/kernels/{name}" for name in files(ROOT / "kernels")}
    assert {"rnnkit/py.typed", "rnnkit/kernels/cpu/scan.py"} <= shipped


def test_layers_of_the_wheel_run(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = """if 1:
        import numpy as np, rnnkit, rnnkit.kernels.cpu.scan
        y, _ = rnnkit.GRU(3, 4, backend="numpy", rng=0)(np.ones((2, 1, 3), "float32"))
        print(rnnkit.__file__, rnnkit.kernels.cpu.scan.__file__, y.shape, sep="\\n")"""
    package, kernel, shape = python(code, tmp_path, tmp_path / "site").split("\n")[:3]
    assert Path(package).parent == Path(kernel).parents[2] == tmp_path / "site" / "rnnkit"
    assert shape == "(2, 1, 4)"


def test_our_kernels_folder_does_not_shadow_a_package_of_that_name(tmp_path: Path) -> None:
    """Without __init__.py it is at most a namespace package: a regular package has precedence anywhere on sys.path."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("whose = 'another'\n")
    assert python("import kernels; print(kernels.whose)", ROOT, ROOT, tmp_path) == "another\n"


def test_importing_and_constructing_import_no_compiler_and_no_cuda(tmp_path: Path) -> None:
    """With an importable cupy on sys.path."""
    (tmp_path / "cupy.py").write_text("")
    code = """if 1:
        import sys
        heavy = ("numba", "llvmlite", "cupy", "torch", "matplotlib", "sklearn")
        import rnnkit
        print([name for name in heavy if name in sys.modules])
        for kind in (rnnkit.RNN, rnnkit.GRU, rnnkit.LSTM, rnnkit.RNNCell, rnnkit.GRUCell, rnnkit.LSTMCell):
            kind(3, 4, rng=0)
            kind(3, 4, backend="numpy", device="cpu", rng=0)
        print([name for name in heavy[2:] if name in sys.modules])"""
    assert python(code, tmp_path, ROOT, tmp_path) == "[]\n[]\n"


def test_versions_agree() -> None:
    assert PROJECT["version"] == rnnkit.__version__
    assert f"\n## {rnnkit.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_backend_and_the_package_need_the_same_numba() -> None:
    (floor,) = (found[1] for name in PROJECT["dependencies"] if (found := re.fullmatch("numba>=(.*)", name)))
    assert ".".join(map(str, needs.OLDEST_NUMBA)) == floor


def test_extras_that_are_named_exist() -> None:
    """Extras in commands of the documents, in messages of the package and in the Makefile."""
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    documents += (ROOT / "rnnkit").rglob("*.py")
    named: set[str] = set()
    for path in documents:
        for extras in re.findall(r"(?:rnnkit|\.)\[([a-z0-9,]+)\]", path.read_text(encoding="utf-8")):
            named |= set(extras.split(","))
    assert "examples" in named
    named |= set(re.findall(r"\.installed-([a-z0-9-]+)", (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert named <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize(
    ("wanted", "absent", "status", "message"),
    [
        ("peers", ["jax"], 4, "RNNKIT_REQUIRED=peers, but these do not import: jax (planted)"),
        ("kernels,peers", ["torch", "keras"], 4, "do not import: torch (planted), keras (planted)"),
        pytest.param("peers", [], 0, "", marks=pytest.mark.slow),
        pytest.param("", ["torch", "keras", "jax", "openvino"], 0, "", marks=pytest.mark.slow),
        ("yes", [], 4, "RNNKIT_REQUIRED may name emulators, kernels, peers, got 'yes'"),
    ],
)
def test_required_peers_are_not_skipped(
    wanted: str, absent: list[str], status: int, message: str, tmp_path: Path
) -> None:
    """tests/peers/conftest.py with an empty test, and peers that can or cannot be imported."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "peers" / "conftest.py").read_text(encoding="utf-8"))
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    for peer in ("torch", "keras", "jax", "openvino"):
        (tmp_path / f"{peer}.py").write_text("raise ImportError('planted')\n" if peer in absent else "")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "RNNKIT_REQUIRED": wanted}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert message in done.stderr


def test_every_file_of_the_peers_is_marked() -> None:
    """Without `peers` their folders are not collected: tests/conftest.py."""
    files = [file for name in ("peers", "torch") for file in (ROOT / "tests" / name).glob("test_*.py")]
    assert len(files) > 40
    unmarked = [file.name for file in files if "\npytestmark = pytest.mark.peers\n" not in file.read_text("utf-8")]
    assert unmarked == []
