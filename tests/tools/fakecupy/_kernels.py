"""`cupy.RawModule` and `cupy.RawKernel`: CUDA C++ run by the emulator, launched with CuPy's rules for arguments."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from tests.tools.fakecupy import _launch, _state
from tests.tools.fakecupy._errors import CompileException, CUDADriverError
from tests.tools.fakecupy._pointers import MemoryPointer
from tests.tools.fakecupy._streams import Node

_pointers = itertools.count(0xF0000000, 16)

# Blocks of a cluster: on every card with clusters, and the most that a kernel may ask for.
PORTABLE_CLUSTER = 8
LARGE_CLUSTER = 16


class Launch(NamedTuple):
    """The arguments of one launch, as `cp.fake.launches` lists it."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_mem: int
    cooperative: bool
    stream: int
    device: int
    args: tuple[Any, ...]


class Function:
    """A kernel of a module loaded on one device: the emulator's kernel, and the attributes set on it."""

    def __init__(self, emulated: Any, name: str) -> None:
        self.emulated, self.name, self.ptr = emulated, name, next(_pointers)
        machine = _state.machine()
        self.device = machine.device()
        # Static and dynamic shared memory together, until a kernel opts in to more.
        self.max_dynamic_shared_size_bytes = machine.attributes["MaxSharedMemoryPerBlock"] - emulated.static_shared
        self.large_clusters = False  # whether clusters of more than eight blocks are allowed

    @property
    def shared_size_bytes(self) -> int:
        return self.emulated.static_shared

    def allow_shared(self, size: int) -> None:
        """Sets the most dynamic shared memory of a launch. Raises CUDADriverError if the card has less."""
        if size + self.shared_size_bytes > _state.machine().attributes["MaxSharedMemoryPerBlockOptin"]:
            raise CUDADriverError(1, f"{size} bytes of shared memory")
        self.max_dynamic_shared_size_bytes = size

    @property
    def max_threads_per_block(self) -> int:
        return self.emulated.max_threads

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Any,
        shared_mem: int = 0,
        stream: Any = None,
        enable_cooperative_groups: bool = False,
    ) -> None:
        """Launches on the current stream, or on `stream`.

        args: device arrays (their address), NumPy scalars and arrays of one entry (their value), Python numbers (8
        bytes each, as CuPy passes them), None (a null pointer). Raises TypeError for others, CUDADriverError for sizes
        that no launch can have.
        """
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError("grid and block must be tuples")
        machine = _state.machine()
        if self.device != machine.device():
            raise CUDADriverError(400, f"{self.name} was loaded on device {self.device}")
        grid = tuple(max(1, int(n)) for n in (*grid, 1, 1)[:3])
        block = tuple(max(1, int(n)) for n in (*block, 1, 1)[:3])
        _check_sizes(self, grid, block, shared_mem)
        if enable_cooperative_groups:
            grid = _co_resident(self, grid, block, shared_mem)
        values = [_argument(arg) for arg in args]
        ptr = (machine.streams.current() if stream is None else stream).ptr
        if enable_cooperative_groups:
            machine.streams.gang(ptr, prod(grid))
        options = {"shared_mem": shared_mem, "cooperative": enable_cooperative_groups}
        memory = machine.memory()
        launch = Launch(self.name, grid, block, shared_mem, enable_cooperative_groups, ptr, memory.device, args)
        machine.launches.append(launch._replace(args=tuple(values)))

        def run() -> None:
            self.run(grid, block, values, memory=memory.emulated(), **options, **machine.launch_options)

        addresses = [int(value) for value in values if isinstance(value, (np.int64, np.uint64))]
        pointed = tuple(memory.find(address) for address in addresses if memory.holds(address))
        node = Node(self.name, ("launches", self.name), run, pointed)
        machine.streams.submit(node, ptr, tuple(args))

    def run(self, grid: tuple[int, ...], block: tuple[int, ...], args: list[Any], **how: Any) -> None:
        """Raises CUDADriverError if a driver would reject the launch, or else the error that the emulator finds."""
        from tests.tools.emulator import EmulatorError

        try:
            self.emulated(grid, block, args, **how)
        except EmulatorError as error:
            if error.kind == "launch":
                raise CUDADriverError(1, str(error)) from error
            raise


def by_pointer(ptr: int) -> Function:
    """The function whose `kernel.ptr` is this. Raises CUDADriverError if there is none."""
    for function in _state.machine().functions.values():
        if function.ptr == ptr:
            return function
    raise CUDADriverError(400, f"{ptr:#x} is not a function")


def _module(code: str, options: tuple[str, ...], names: tuple[str, ...]) -> Any:
    """The emulator's module of a source, compiled once per device. Raises CompileException with g++'s messages."""
    machine = _state.machine()
    key = (code, options, names, machine.device())
    with machine.lock:
        if key not in machine.modules:
            from tests.tools import emulator

            problem = emulator.available()
            if problem:
                raise RuntimeError(f"kernels cannot run: {problem}")
            machine.tallies.add("compiles", " ".join(options))
            try:
                machine.modules[key] = emulator.Module(code, options=options, mode=machine.mode)
            except emulator.EmulatorError as error:
                raise CompileException(str(error), code, "kernel.cu", options) from error
        return machine.modules[key]


class RawModule:
    """`cupy.RawModule`: compiled at the first request for a kernel, on each device separately."""

    def __init__(
        self,
        *,
        code: str | None = None,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
        jitify: Any = None,
    ) -> None:
        if (code is None) == (path is None):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        if code is None:
            raise NotImplementedError("the simulation runs sources, not binaries")
        if not isinstance(options, tuple):
            raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})")
        self.code, self.options, self.backend = code, options, backend
        self.enable_cooperative_groups = enable_cooperative_groups
        self.name_expressions = tuple(name_expressions or ())

    def compile(self, log_stream: Any = None) -> None:
        _module(self.code, self.options, self.name_expressions)

    def get_function(self, name: str) -> RawKernel:
        """The kernel of that name. Raises CompileException, or CUDADriverError if there is none."""
        kernel = RawKernel(
            self.code, name, self.options, self.backend, enable_cooperative_groups=self.enable_cooperative_groups
        )
        kernel._names = self.name_expressions
        kernel._function()
        return kernel


class RawKernel:
    """`cupy.RawKernel`: kernel(grid, block, args, shared_mem=0, stream=None)."""

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        *,
        enable_cooperative_groups: bool = False,
        jitify: Any = None,
    ) -> None:
        self.code, self.name, self.options, self.backend = code, name, options, backend
        self.enable_cooperative_groups = enable_cooperative_groups
        self.__name__ = name
        self._names: tuple[str, ...] = ()

    def _function(self) -> Function:
        machine = _state.machine()
        key = (self.code, self.options, self._names, self.name, machine.device())
        with machine.lock:
            if key not in machine.functions:
                module = _module(self.code, self.options, self._names)
                from tests.tools.emulator import EmulatorError

                try:
                    emulated = module.get_function(self.name)
                except EmulatorError as error:
                    if self.name in self._names:  # a template instance, compiled now
                        raise CompileException(str(error), self.code, "kernel.cu", self.options) from error
                    raise CUDADriverError(500, f"{self.name}: {error}") from error
                machine.functions[key] = Function(emulated, self.name)
            return machine.functions[key]

    def compile(self, log_stream: Any = None) -> None:
        self._function()

    @property
    def kernel(self) -> Function:
        return self._function()

    @property
    def attributes(self) -> dict[str, int]:
        """CuPy's keys. Values that only the real compiler knows (registers, spills) are 0."""
        function = self._function()
        unknown = ("const_size_bytes", "local_size_bytes", "num_regs", "cache_mode_ca")
        arch = int(_state.machine().arch)
        return {
            **dict.fromkeys(unknown, 0),
            "max_threads_per_block": function.max_threads_per_block,
            "shared_size_bytes": function.shared_size_bytes,
            "ptx_version": arch,
            "binary_version": arch,
            "max_dynamic_shared_size_bytes": function.max_dynamic_shared_size_bytes,
            "preferred_shared_memory_carveout": -1,
        }

    @property
    def shared_size_bytes(self) -> int:
        return self._function().shared_size_bytes

    @property
    def max_threads_per_block(self) -> int:
        return self._function().max_threads_per_block

    @property
    def num_regs(self) -> int:
        return 0

    @property
    def local_size_bytes(self) -> int:
        return 0

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._function().max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        self._function().allow_shared(size)

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Any, *, shared_mem: int = 0, stream: Any = None
    ) -> None:
        """See `Function.__call__`."""
        cooperative = self.enable_cooperative_groups
        self._function()(grid, block, args, shared_mem=shared_mem, stream=stream, enable_cooperative_groups=cooperative)


def _check_sizes(function: Function, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int) -> None:
    limits = _state.machine().attributes
    cluster = prod(function.emulated.cluster)
    if cluster > 1 and not limits["ClusterLaunch"]:
        raise CUDADriverError(1, f"{function.name}: the card has no thread-block clusters")
    if cluster > (LARGE_CLUSTER if function.large_clusters else PORTABLE_CLUSTER):
        raise CUDADriverError(1, f"{function.name} with clusters of {cluster} blocks")
    largest = [limits[f"MaxGridDim{axis}"] for axis in "XYZ"], [limits[f"MaxBlockDim{axis}"] for axis in "XYZ"]
    too_large = any(n > most for n, most in zip((*grid, *block), (*largest[0], *largest[1]), strict=True))
    threads = block[0] * block[1] * block[2]
    if too_large or threads > limits["MaxThreadsPerBlock"]:
        raise CUDADriverError(1, f"{function.name} of {grid} blocks of {block} threads")
    if shared_mem > function.max_dynamic_shared_size_bytes:
        raise CUDADriverError(
            1, f"{function.name} with {shared_mem} bytes of dynamic shared memory: set max_dynamic_shared_size_bytes"
        )


def _co_resident(function: Function, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int) -> tuple[int, ...]:
    """The grid. As in CuPy, a 1-D grid too large to be co-resident is reduced, with a warning."""
    from tests.tools.fakecupy._runtime import occupancyMaxActiveBlocksPerMultiprocessor as occupancy

    each = occupancy(function.ptr, block[0] * block[1] * block[2], shared_mem)
    most = each * _state.machine().attributes["MultiProcessorCount"]
    if grid[0] * grid[1] * grid[2] <= most:
        return grid
    if grid[1] == grid[2] == 1:
        warnings.warn(
            f"The grid size will be reduced from {grid[0]} to {most}, as the specified grid size exceeds the limit.",
            stacklevel=3,
        )
        return (most, 1, 1)
    raise ValueError(f"The specified grid size ({' * '.join(map(str, grid))}) exceeds the limit ({most}).")


def _argument(arg: Any) -> Any:
    """A kernel argument for the emulator: pointers as uint64, values as NumPy scalars."""
    if arg is None:
        return np.uint64(0)
    if _launch.is_array(arg):
        _launch.check_device(arg)
        return np.uint64(arg.data.ptr if arg.size else 0)
    if isinstance(arg, MemoryPointer):
        return np.uint64(arg.ptr)
    if isinstance(arg, np.ndarray):
        if arg.size != 1:
            raise TypeError(
                f"You are trying to pass a numpy.ndarray of shape {arg.shape} as a kernel parameter. Only "
                "numpy.ndarrays of size one can be passed by value. If you meant to pass a pointer to __global__ "
                "memory, you need to pass a cupy.ndarray instead."
            )
        return arg.reshape(-1)[0]
    if isinstance(arg, np.generic):
        return arg
    if type(arg) is int:
        return np.uint64(arg) if arg >= 2**63 else np.int64(arg)
    if type(arg) in (bool, float, complex):
        return np.asarray(arg)[()]
    raise TypeError(f"Unsupported type {type(arg)}")
