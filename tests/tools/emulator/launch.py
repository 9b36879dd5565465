"""Modules and launches: `Module(code, options, mode)`, `get_function(name)`, `function(grid, block, args, ...)`."""

from __future__ import annotations

import ctypes
import itertools
import re
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tests.tools.emulator import compile as compiling
from tests.tools.emulator.arguments import Parameter, bytes_of, live_buffers
from tests.tools.emulator.errors import EmulatorError, RaceError
from tests.tools.emulator.memory import Memory

# The limits of a launch, for compute capability 9.0.
MAX_THREADS = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_STATIC_SHARED = 48 * 1024
MAX_SHARED = 227 * 1024
MAX_CLUSTER = 16  # above 8 only by the kernel's attribute, which the stand-in for CuPy checks
# A cooperative launch is limited by the largest GPU. The limit of a real GPU also depends on the kernel's registers.
MULTIPROCESSORS, SHARED_OF_MULTIPROCESSOR, THREADS_OF_MULTIPROCESSOR, BLOCKS_OF_MULTIPROCESSOR = (
    192,
    228 * 1024,
    2048,
    32,
)

ORDERS = {"ascending": 0, "descending": 1, "random": 2}
STACK_BYTES = {"fast": 64 * 1024, "check": 128 * 1024}
_TEXT_BYTES = 16384
# One launch at a time in a process: runtimes share signal handlers and the measured processor time.
_launching = threading.Lock()
# Each library contains a runtime, which caches stacks and access records for its next launch: up to 300 MB. Only the
# libraries that launched last keep them, in the order of their launches.
_CACHING_LIBRARIES = 2
_launched: dict[str, ctypes.CDLL] = {}


def _note_launch(path: str, library: ctypes.CDLL) -> None:
    """Records that `library` launches now, and frees the cached memory of the least recently launched one."""
    _launched.pop(path, None)
    _launched[path] = library
    if len(_launched) > _CACHING_LIBRARIES:
        oldest = next(iter(_launched))
        _launched.pop(oldest)["emulator_release"]()


class Stats(NamedTuple):
    """Counts of a launch. accesses: checked memory accesses, 0 in fast mode."""

    threads: int
    switches: int
    barriers: int
    warp_ops: int
    accesses: int


class _Config(ctypes.Structure):
    """LaunchConfig of runtime/runtime.h."""

    _fields_ = [
        *[(name, ctypes.c_uint32 * 3) for name in ("grid", "block", "cluster")],
        *[(name, ctypes.c_uint32) for name in ("dynamic_shared", "cooperative", "schedule", "seed", "check")],
        *[
            (name, ctypes.c_uint32)
            for name in ("stack_bytes", "static_count", "variable_count", "buffer_count", "guard_count")
        ],
        ("time_limit", ctypes.c_double),
        *[
            (name, ctypes.c_void_p)
            for name in ("statics", "variables", "buffers", "parameter_kinds", "arguments", "kernel")
        ],
    ]


class _CStats(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in Stats._fields]


class Module:
    """The kernels of one source, compiled for the CPU.

    mode: "fast": -O1, results only. "check": every access is checked. Of the options, -D, -U, -I and
    -std are used, and others (architectures, --use_fast_math) are ignored. Raises EmulatorError of kind "compile" if
    the source does not compile.
    """

    def __init__(self, code: str, options: Sequence[str] = ("-std=c++17",), mode: str = "fast") -> None:
        if mode not in compiling.MODES:
            raise EmulatorError(f"mode {mode!r}: it must be 'fast' or 'check'", "arguments")
        self.code, self.options, self.mode = code, tuple(options), mode
        self._functions: dict[str, Function] = {}
        self._load(compiling.build(code, self.options, mode))

    def _load(self, built: compiling.Built) -> None:
        self.built = built
        self._library = ctypes.CDLL(str(built.path))
        self._statics = np.array([(o.offset, o.size) for o in built.statics], np.uint64).reshape(-1)
        self._variables = np.array([(o.offset, o.size) for o in built.variables], np.uint64).reshape(-1)

    @property
    def kernels(self) -> tuple[str, ...]:
        """The names of all kernels except templates."""
        return tuple(name for name in self.built.kernels if "<" not in name)

    def get_function(self, name: str) -> Function:
        """The kernel of this extern "C" name, or an instance of a template ("scan<4>"), compiled at its first use."""
        if name in self._functions:
            return self._functions[name]
        module = self
        if name not in self.built.kernels:
            if name.split("<")[0].strip() not in self.built.templates:
                raise EmulatorError(
                    f'there is no extern "C" kernel {name}; there are {", ".join(self.kernels)}', "compile"
                )
            module = Module.__new__(Module)
            module.code, module.options, module.mode, module._functions = self.code, self.options, self.mode, {}
            module._load(compiling.build(self.code, self.options, self.mode, [name]))
        function = self._functions[name] = Function(module, name)
        return function

    def resolve(self, message: str) -> str:
        """`message` with source lines in place of program counters, and names in place of variables' numbers."""
        counters = sorted(set(re.findall(r"\{pc:(0x[0-9a-f]+)\}", message)))
        # A program counter is a return address, so the call is before it.
        lines = compiling.source_lines(self.built.path, [int(c, 16) - 1 for c in counters])
        for counter, line in zip(counters, lines, strict=True):
            message = message.replace("{pc:" + counter + "}", line)
        message = re.sub(r"\{static:(\d+)\}", lambda m: self.built.statics[int(m[1])].name, message)
        return re.sub(r"\{variable:(\d+)\}", lambda m: self.built.variables[int(m[1])].name, message)


class Function:
    """A kernel, to be called as `function(grid, block, args, ...)`."""

    def __init__(self, module: Module, name: str) -> None:
        info = module.built.kernels[name]
        library = module._library
        self.module, self.name = module, name
        self.static_shared = info.static_shared
        self._address = ctypes.cast(library[f"emulator_call_{info.number}"], ctypes.c_void_p).value
        self._launch = library["emulator_launch"]
        kinds, sizes = ctypes.create_string_buffer(1024), (ctypes.c_uint32 * 1024)()
        count = library[f"emulator_describe_{info.number}"](kinds, sizes)
        self._kinds = kinds.raw[: count + 1]
        self.parameters = tuple(Parameter(chr(kinds.raw[i]), sizes[i]) for i in range(count))
        self.cluster = self._numbers(f"emulator_cluster_{info.number}", info.cluster, (1, 1, 1))
        self.max_threads = self._numbers(f"emulator_bounds_{info.number}", info.launch_bounds, (MAX_THREADS,))[0]
        offsets = list(itertools.accumulate((-(-p.size // 16) * 16 for p in self.parameters), initial=0))
        self._storage = bytearray(max(offsets[-1], 16))
        base = ctypes.addressof((ctypes.c_char * len(self._storage)).from_buffer(self._storage))
        self._offsets = offsets[:-1]
        self._pointers = (ctypes.c_void_p * max(count, 1))(*(base + o for o in self._offsets))

    def _numbers(self, symbol: str, present: bool, default: tuple[int, ...]) -> tuple[int, ...]:
        if not present:
            return default
        values = (ctypes.c_uint32 * 8)()
        self.module._library[symbol](values)
        return tuple(values[i] or 1 for i in range(len(default)))

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        cooperative: bool = False,
        memory: Memory | None = None,
        seed: int | None = None,
        order: str = "ascending",
        time_limit: float = 60.0,
    ) -> Stats:
        """Runs the kernel to completion.

        args: NumPy scalars of the parameters' sizes, ints as pointers, arrays (their address; an array is a live buffer
        for the launch). seed: of a random schedule (order "random"). time_limit: seconds of processor time.
        Raises EmulatorError, and in check mode RaceError, of the kinds in errors.KINDS.
        """
        if order not in ORDERS:
            raise EmulatorError(f"order {order!r}: it is one of {', '.join(ORDERS)}", "arguments")
        grid, block = _triple(grid), _triple(block)
        self._check_launch(grid, block, shared_mem, cooperative)
        checking = self.module.mode == "check"
        config = _Config()
        config.grid[:], config.block[:], config.cluster[:] = grid, block, self.cluster
        config.dynamic_shared, config.cooperative, config.check = shared_mem, int(cooperative), int(checking)
        config.schedule = ORDERS["random" if seed is not None else order]
        config.seed = (seed or 0) & 0xFFFFFFFF
        config.stack_bytes, config.time_limit = STACK_BYTES[self.module.mode], time_limit
        config.static_count, config.statics = len(self.module.built.statics), self.module._statics.ctypes.data
        variables = self.module.built.variables
        config.variable_count, config.variables = len(variables), self.module._variables.ctypes.data
        config.guard_count = sum(v.name.startswith(compiling.GUARD) for v in variables)
        config.parameter_kinds = ctypes.cast(ctypes.c_char_p(self._kinds), ctypes.c_void_p).value
        config.arguments, config.kernel = ctypes.addressof(self._pointers), self._address
        buffers = live_buffers(memory, args) if checking else np.zeros((0, 3), np.uint64)
        config.buffer_count, config.buffers = len(buffers), buffers.ctypes.data
        with _launching:
            _note_launch(str(self.module.built.path), self.module._library)
            self._pack(args)
            return self._run(config)

    def _run(self, config: _Config) -> Stats:
        kind, text = ctypes.create_string_buffer(64), ctypes.create_string_buffer(_TEXT_BYTES)
        stats = _CStats()
        result = self._launch(ctypes.byref(config), kind, len(kind), text, len(text), ctypes.byref(stats))
        if result:
            message = self.module.resolve(text.value.decode(errors="replace"))
            which = kind.value.decode()
            raise (RaceError if which == "race" else EmulatorError)(f"kernel {self.name}: {message}", which)
        return Stats(*(getattr(stats, name) for name in Stats._fields))

    def _check_launch(self, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int, cooperative: bool) -> None:
        """Raises EmulatorError if a driver would reject the launch."""

        def reject(why: str) -> None:
            raise EmulatorError(f"kernel {self.name} with grid {grid} and block {block}: {why}", "launch")

        threads = block[0] * block[1] * block[2]
        if any(not 1 <= n <= most for n, most in zip(block, MAX_BLOCK, strict=True)) or threads > MAX_THREADS:
            reject(f"{threads} threads per block; {MAX_THREADS} at most, and {MAX_BLOCK} in x, y and z")
        if threads > self.max_threads:
            reject(f"{threads} threads per block, above its __launch_bounds__ of {self.max_threads}")
        if any(not 1 <= n <= most for n, most in zip(grid, MAX_GRID, strict=True)):
            reject(f"a grid has from 1 to {MAX_GRID} blocks in x, y and z")
        if self.static_shared > MAX_STATIC_SHARED:
            reject(f"{self.static_shared} bytes of static shared memory; {MAX_STATIC_SHARED} at most")
        if shared_mem < 0 or self.static_shared + shared_mem > MAX_SHARED:
            reject(f"{self.static_shared} + {shared_mem} bytes of shared memory; {MAX_SHARED} at most")
        cluster = self.cluster[0] * self.cluster[1] * self.cluster[2]
        if any(g % c for g, c in zip(grid, self.cluster, strict=True)) or cluster > MAX_CLUSTER:
            reject(f"clusters of {self.cluster} blocks; {MAX_CLUSTER} at most, and the grid must be a multiple of them")
        if cooperative:
            shared = self.static_shared + shared_mem + 1024
            held = min(
                SHARED_OF_MULTIPROCESSOR // shared, THREADS_OF_MULTIPROCESSOR // threads, BLOCKS_OF_MULTIPROCESSOR
            )
            if grid[0] * grid[1] * grid[2] > held * MULTIPROCESSORS:
                most = held * MULTIPROCESSORS
                reject(f"a cooperative launch runs all blocks concurrently, and the largest GPU holds {most}")

    def _pack(self, args: Sequence[Any]) -> None:
        if len(args) != len(self.parameters):
            counts = f"{len(args)} arguments for {len(self.parameters)} parameters"
            raise EmulatorError(f"kernel {self.name}: {counts}", "arguments")
        for i, (arg, parameter) in enumerate(zip(args, self.parameters, strict=True)):
            data = bytes_of(arg, parameter)
            if isinstance(data, str):
                raise EmulatorError(f"kernel {self.name}, argument {i}: {data}", "arguments")
            offset = self._offsets[i]
            self._storage[offset : offset + len(data)] = data


def _triple(sizes: Sequence[int]) -> tuple[int, ...]:
    if not 1 <= len(sizes) <= 3:
        raise EmulatorError(f"grid and block have one to three numbers, not {len(sizes)}", "launch")
    return (*(int(n) for n in sizes), *(1,) * (3 - len(sizes)))
