"""The numba backend's tests with the jobs compiled for 64-bit ARM (NEON) and run by QEMU's user mode.

    python -m tests.tools.arm [pytest arguments]   default: the numba backend's parity tests, three minutes

Python and the launch code run on the host. The job itself, with its threads, runs in QEMU. Needs qemu-aarch64 or
qemu-aarch64-static and aarch64-linux-gnu-gcc (Debian: qemu-user-static, gcc-aarch64-linux-gnu, libc6-dev-arm64-cross).
Exits with 3 if they are missing.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

TRIPLE, PROCESSOR, PAGE = "aarch64-linux-gnu", "cortex-a72", 1 << 12
DEFAULT = ["tests/cpu/test_parity.py", "-k", "numba"]
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
GCC = shutil.which("aarch64-linux-gnu-gcc")


class Arm:
    """Compiles jobs for 64-bit ARM and runs them in QEMU."""

    def __init__(self, folder: Path) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        self.llvm, self.folder = llvm, folder
        self.machine = llvm.Target.from_triple(TRIPLE).create_target_machine(
            cpu=PROCESSOR, opt=3, reloc="static", codemodel="small"
        )
        self.jobs: dict[int, Any] = {}  # compiled for the host, by address
        self.shared: dict[str, Any] = {}  # the same for functions that jobs call, by symbol
        self.objects: dict[str, Path] = {}  # those functions for ARM, by symbol
        self.programs: dict[int, Path] = {}
        self.arrays: dict[int, np.ndarray] = {}  # by address, for arguments that are only addresses
        self.calls = 0

    def program(self, address: int) -> Path:
        """The ARM program of the job that has this address on the host."""
        if address not in self.programs:
            path = self.folder / f"job{len(self.programs)}"
            for symbol, function in self.shared.items():
                if symbol not in self.objects:
                    self.objects[symbol] = self.compile(function, symbol, self.folder / f"shared{len(self.objects)}.o")
            job = self.compile(self.jobs[address], "job", path.with_suffix(".o"))
            sources = [str(Path(__file__).with_name("run.c")), str(job), *map(str, self.objects.values())]
            # Symbols that only the reporting of Python errors would call stay undefined.
            options = ["-O1", "-static", "-pthread", "-Wl,--unresolved-symbols=ignore-all"]
            subprocess.run([str(GCC), *options, *sources, "-o", str(path)], check=True, capture_output=True)
            self.programs[address] = path
        return self.programs[address]

    def compile(self, callback: Any, symbol: str, path: Path) -> Path:
        """Writes an object file for ARM in which the function is `symbol`."""
        # Removes Numba's reference counting, which has x86 intrinsics and which no kernel needs.
        text = re.sub(r"(= )[a-z ]*call i8 @llvm\.x86\.atomic\.sub.*", r"\1add i8 0, 0", callback.inspect_llvm())
        module = self.llvm.parse_assembly(text)
        module.triple, module.data_layout = TRIPLE, str(self.machine.target_data)
        function = module.get_function(callback.native_name)
        function.name, function.linkage = symbol, "external"
        path.write_bytes(self.machine.emit_object(module))
        return path

    def run(self, job: int, block: np.ndarray, threads: int, read: list[Any], written: list[Any]) -> None:
        """Runs the job on copies of these arrays at the same addresses, and copies the `written` ones back.

        block: the argument block, as 64-bit integers.
        """
        read = list({a.ctypes.data: a for a in read}.values())  # w_hh may be in the place of w_hr, too
        arrays = [(a, k >= len(read)) for k, a in enumerate([*read, *written, block]) if a.nbytes]
        ranges = [(a.ctypes.data, a.nbytes, int(out)) for a, out in arrays]
        spans: list[list[int]] = []
        for start, size, _ in sorted(ranges):
            low, high = start // PAGE * PAGE, -(-(start + size) // PAGE) * PAGE
            if spans and low <= spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], high)
            else:
                spans.append([low, high])
        words = [len(ranges), len(spans), block.ctypes.data, threads, *(w for r in ranges for w in r)]
        words += [w for low, high in spans for w in (low, high - low)]
        image = self.folder / "image"
        head = np.array(words, np.int64).tobytes()
        image.write_bytes(head + b"".join(ctypes.string_at(start, size) for start, size, _ in ranges))
        subprocess.run([str(QEMU), str(self.program(job)), str(image)], check=True, timeout=300)
        result = image.read_bytes()
        offset = len(head)
        for start, size, out in ranges:
            if out:
                ctypes.memmove(start, result[offset : offset + size], size)
            offset += size
        self.calls += 1

    def record(self, a: np.ndarray) -> np.ndarray:
        self.arrays[a.ctypes.data] = a
        return a

    def launch_forward(
        self, state, job, words, table, w_ih, w_hh, w_hr, b_ih, b_hh, projected, extras, workspace, digest, noise,
        h_prev, c_prev, operand, y_row, x, x_packed, h0, c0, y, h_n, c_n, values,
    ):  # fmt: skip
        """Replaces the function of this name in kernels/cpu/launch.py."""
        from rnnkit.backends.numba import memory
        from rnnkit.kernels.cpu.arguments import Forward, WeightAddresses

        s, threads, block, barriers = self._begin(Forward, words)
        size = s.own + threads * s.own_size
        buffer = self.arrays[workspace] if workspace else memory.aligned(size).memory
        buffers = [buffer] + ([self.arrays[digest]] if digest else [])
        workspace = buffer.ctypes.data
        arguments = Forward(
            shape=words.ctypes.data,
            x=x.ctypes.data,
            x_packed=x_packed.ctypes.data,
            rows=_rows(s, words, table),
            weights=WeightAddresses(*_weights(w_ih, w_hh, w_hr, b_ih, b_hh, projected)),
            h0=h0.ctypes.data,
            c0=c0.ctypes.data,
            y=y.ctypes.data,
            y_row=y_row,
            h_n=h_n.ctypes.data,
            c_n=c_n.ctypes.data,
            saved=_saved(values, h_prev, c_prev, operand),
            packed=digest + 64 if digest else workspace + size,
            digest=digest,
            workspace=workspace,
            barriers=barriers,
            extras=extras,  # 0: plain cells alone run here
            noise=noise,  # which plain cells do not read
        )
        _fill(block, arguments)
        packed_x = [] if x_packed.ctypes.data == x.ctypes.data else [x_packed]
        read = [words, table, w_ih, w_hh, w_hr, b_ih, b_hh, x, h0, c0]
        written = [_base(y), h_n, c_n, values, *packed_x]
        self.run(job, block, threads, read, [*written, *buffers])

    def launch_backward(
        self, state, job, words, table, w_ih, w_hh, w_hr, b_ih, b_hh, projected, extras, workspace, noise, h_prev,
        c_prev, operand, y_row, has_dy, biased, adds, wants_dx, wants_dweights, x_packed, values, dy, dh_n, dc_n, dh0,
        dc0, dgates_x, dgates_h, dprojected, dx_packed, dx, dw_ih, dw_hh, dw_hr, db_ih, db_hh,
    ):  # fmt: skip
        """Replaces the function of this name in kernels/cpu/launch.py."""
        from rnnkit.kernels.cpu.arguments import Backward, WeightAddresses

        s, threads, block, barriers = self._begin(Backward, words)
        biases = [a.ctypes.data if biased else 0 for a in (db_ih, db_hh)]
        arguments = Backward(
            shape=words.ctypes.data,
            x_packed=x_packed.ctypes.data,
            rows=_rows(s, words, table),
            weights=WeightAddresses(*_weights(w_ih, w_hh, w_hr, b_ih, b_hh, projected)),
            saved=_saved(values, h_prev, c_prev, operand),
            dy=dy.ctypes.data if has_dy else 0,
            y_row=y_row,
            dh_n=dh_n.ctypes.data,
            dc_n=dc_n.ctypes.data,
            dh0=dh0.ctypes.data,
            dc0=dc0.ctypes.data,
            dgates_x=dgates_x.ctypes.data,
            dgates_h=dgates_h.ctypes.data,
            dprojected=dprojected.ctypes.data,
            dx_packed=dx_packed.ctypes.data,
            dx=dx.ctypes.data if wants_dx else 0,
            dweights=WeightAddresses(*(a.ctypes.data * wants_dweights for a in (dw_ih, dw_hh, dw_hr)), *biases),
            adds=int(adds),
            workspace=workspace,
            barriers=barriers,
            extras=extras,  # 0: plain cells alone run here
            noise=noise,
        )
        _fill(block, arguments)
        written = [dh0, dc0, dgates_x, dgates_h, dprojected, dx_packed, dx, dw_ih, dw_hh, dw_hr, db_ih, db_hh]
        written = list({a.ctypes.data: a for a in written if a.nbytes}.values())
        read = [words, table, w_ih, w_hh, w_hr, b_ih, b_hh, x_packed, values, _base(dy), dh_n, dc_n]
        self.run(job, block, threads, read, [*written, self.arrays[workspace]])

    def _begin(self, kind: Any, words: np.ndarray) -> tuple[Any, int, np.ndarray, int]:
        """The call's shape, number of threads, an empty argument block of `kind`, and the address of its barriers."""
        from rnnkit.kernels.cpu.arguments import Shape, words_of

        s = Shape(*map(int, words[: len(Shape._fields)]))
        block = np.zeros(words_of(kind) + 8 * (s.groups + 2), np.int64)
        barriers = -(-(block.ctypes.data + 8 * words_of(kind)) // 64) * 64
        return s, s.groups * s.members, block, barriers


def _weights(w_ih: np.ndarray, w_hh: np.ndarray, w_hr: np.ndarray, *rest: Any) -> list[int]:
    *biases, projected = rest
    hr = w_hr.ctypes.data if projected else 0
    return [w_ih.ctypes.data, w_hh.ctypes.data, hr, *(b.ctypes.data for b in biases)]


def _rows(s: Any, words: np.ndarray, table: np.ndarray) -> Any:
    from rnnkit.kernels.cpu.arguments import Rows

    counts = table.ctypes.data + 8 * (s.T + 1)
    return Rows(table.ctypes.data, counts, counts + 8 * s.T, words.ctypes.data + 8 * len(s))


def _saved(values: np.ndarray, *offsets: int) -> Any:
    from rnnkit.kernels.cpu.arguments import SavedAddresses

    return SavedAddresses(values.ctypes.data, *(values.ctypes.data + offset for offset in offsets))


def _fill(block: np.ndarray, arguments: Any) -> None:
    """Writes the fields of a struct to `block`, those of nested structs in place."""
    words = [word for field in arguments for word in (field if isinstance(field, tuple) else (field,))]
    block[: len(words)] = words


def _base(a: np.ndarray) -> np.ndarray:
    """The array that `a` is a view of."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


def replace_host(arm: Arm) -> None:
    """Patches the backend to launch jobs on `arm`. Call it before any kernel is compiled."""
    from rnnkit.kernels.cpu import simd as vector

    vector.vector_bytes = lambda: 16
    from rnnkit.kernels.cpu import jit, system

    system.llvm = SimpleNamespace(get_process_triple=lambda: TRIPLE)
    compiled = jit._compiled

    def recorded(kind: Any, key: tuple[str, ...], arguments: int, function: Any) -> Any:
        callback = compiled(kind, key, arguments, function)
        if kind is jit.CFunc:
            arm.jobs[callback.address] = callback
        else:
            arm.shared[jit.symbol_of(key)] = callback
        return callback

    jit._compiled = recorded
    from rnnkit.backends.numba import layer as backend
    from rnnkit.backends.numba import memory
    from rnnkit.core import thread_pool

    aligned = memory.aligned

    def recorded_buffer(size: int) -> Any:
        buffer = aligned(size)
        arm.record(buffer.memory)
        return buffer

    memory.aligned = recorded_buffer
    backend.launch_forward, backend.launch_backward = arm.launch_forward, arm.launch_backward
    thread_pool.run_on_pool = lambda threads, microseconds, launch: launch(0, threads)


def main(arguments: list[str]) -> int:
    if QEMU is None or GCC is None:
        print("python -m tests.tools.arm: needs qemu-aarch64 and aarch64-linux-gnu-gcc", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=folder)
        arm = Arm(Path(folder))
        replace_host(arm)
        import pytest

        ended = pytest.main(["-p", "no:cacheprovider", *(arguments or DEFAULT)])
        print(f"{arm.calls} calls of {len(arm.programs)} jobs ran on {PROCESSOR} in QEMU")
        return int(ended)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
