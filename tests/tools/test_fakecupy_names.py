"""Names, signatures and constants of the stand-in against those of an installed CuPy."""

import inspect
import json
import subprocess
import sys

import pytest

from tests.tools import fakecupy


@pytest.fixture
def cp():
    with fakecupy.installed() as module:
        yield module


REAL = """
import importlib, inspect, json
found = {}
for name in NAMES:
    module = importlib.import_module("cupy")
    for part in name.split(".")[1:]:
        module = getattr(module, part)
    names = {}
    for key in dir(module):
        value = getattr(module, key, None)
        try:
            parameters = inspect.signature(value).parameters.values()
            names[key] = [[p.name, int(p.kind)] for p in parameters]
        except (TypeError, ValueError):
            names[key] = None
    found[name] = names
import cupy
for kind in ("ndarray", "RawModule", "RawKernel", "cuda.Stream", "cuda.Event", "cuda.Graph", "cuda.Device",
             "cuda.MemoryPointer", "cuda.MemoryPool", "cuda.UnownedMemory"):
    value = cupy
    for part in kind.split("."):
        value = getattr(value, part)
    found[kind] = {key: None for key in dir(value)}
attributes = cupy.cuda.runtime
found["attributes"] = {key[len("cudaDevAttr"):]: None for key in dir(attributes) if key.startswith("cudaDevAttr")}
values = {key: getattr(attributes, key) for key in dir(attributes) if isinstance(getattr(attributes, key), int)}
print(json.dumps([found, values, cupy.__version__]))
"""
MODULES = [
    "cupy",
    *(
        f"cupy.cuda.{n}"
        for n in [
            "runtime",
            "driver",
            "stream",
            "graph",
            "device",
            "function",
            "memory",
            "compiler",
            "profiler",
            "nvtx",
        ]
    ),
    "cupy.cuda",
]


@pytest.fixture(scope="module")
def real():
    """Names and signatures of the installed CuPy, which can be imported without a driver."""
    code = f"NAMES = {MODULES!r}{REAL}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    if run.returncode:
        pytest.skip(f"CuPy cannot be imported: {(run.stderr.strip().splitlines() or ['no reason'])[-1]}")
    return json.loads(run.stdout)


def test_every_name_exists_in_cupy(cp, real):
    found = real[0]
    ours = {"fake", "__path__", "__spec__"}
    for name in MODULES:
        module = cp
        for part in name.split(".")[1:]:
            module = getattr(module, part)
        extra = {key for key in vars(module) if not key.startswith("__")} - found[name].keys() - ours
        extra -= {"cublas"} if name == "cupy.cuda" else set()  # in CuPy by __getattr__, if cuBLAS is installed
        extra -= {"CUDARuntimeError"} if name == "cupy.cuda.runtime" else set()
        assert not extra, f"{name} has {sorted(extra)}, which CuPy {real[2]} does not have"


@pytest.mark.parametrize(
    "name", ["ndarray", "RawModule", "RawKernel", "cuda.Stream", "cuda.Event", "cuda.Device", "cuda.MemoryPointer"]
)
def test_every_member_of_its_objects_exists_in_cupy(cp, real, name):
    value = cp
    for part in name.split("."):
        value = getattr(value, part)
    extra = {key for key in dir(value) if not key.startswith("_")} - real[0][name].keys()
    assert extra <= ({"block"} if name == "cuda.MemoryPointer" else set())


def test_every_argument_of_its_functions_exists_in_cupy(cp, real):
    wrong = []
    for name, theirs in real[0]["cupy"].items():
        ours = getattr(cp, name, None)
        if theirs is None or not inspect.isfunction(ours) or name == "matmul":
            continue
        mine = [[p.name, int(p.kind)] for p in inspect.signature(ours).parameters.values()]
        if mine != theirs[: len(mine)]:
            wrong.append(f"{name}: {mine} against {theirs}")
    assert not wrong


def test_constants_and_device_attributes_equal_cudas(cp, real):
    found, values, _ = real
    for key, value in vars(cp.cuda.runtime).items():
        if isinstance(value, int) and not key.startswith("__"):
            assert values[key] == value, key
    assert set(cp.cuda.Device(0).attributes) <= found["attributes"].keys()
