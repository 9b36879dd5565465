"""Runs CUDA C++ kernels on the CPU, unmodified: each thread of the launch is a fiber, g++ is the compiler.

    memory = Memory()
    memory.add(x.ctypes.data, x.nbytes)
    module = Module(code, ("-std=c++17", "-DH=64"), mode="check")
    module.get_function("forward")((8,), (256,), (x.ctypes.data, np.int32(64)), memory=memory, seed=1)

README.md in this folder describes how it works and what it cannot detect.
"""

from tests.required import unless_required
from tests.tools.emulator.compile import available as _available
from tests.tools.emulator.errors import EmulatorError, RaceError
from tests.tools.emulator.launch import Function, Module, Stats
from tests.tools.emulator.memory import Memory

__all__ = ["EmulatorError", "Function", "Memory", "Module", "RaceError", "Stats", "available"]


def available() -> str | None:
    """Why kernels cannot run here, or None if they can."""
    return unless_required("emulators", _available())
