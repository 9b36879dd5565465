"""Compiles every Numba CUDA kernel to PTX, and with nvJitLink to machine code, without a driver.

`python -m tests.tools.build_report.numba_ptx [all]` prints JSON. Run it in a separate process: numba-cuda replaces
Numba's numba.cuda, and one of its functions is patched. The JSON is {"unavailable": why} or {"registers": why not or
null, "kernels": [{"name", "arch", "float64", "facts", "usage"}]}, with `usage` null if there is no nvJitLink. Without
`all`, each kernel is compiled for one architecture, each architecture in turn.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from tests.tools.build_report import nvrtc

ARCHS = (75, 80, 90, 120)


def unavailable() -> str | None:
    """Why PTX cannot be compiled here, or None if it can."""
    try:
        import numba_cuda  # noqa: F401
        from cuda.pathfinder import load_nvidia_dynamic_lib

        load_nvidia_dynamic_lib("nvvm")
    except ImportError:
        return f"numba-cuda is not installed ({nvrtc.EXTRA})"
    except RuntimeError as error:
        return f"libNVVM does not load ({nvrtc.EXTRA}): {str(error).splitlines()[0]}"
    return nvrtc.unavailable()


def no_linker() -> str | None:
    """Why PTX cannot be linked to machine code here, or None if it can."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    try:
        load_nvidia_dynamic_lib("nvJitLink")
    except RuntimeError as error:
        return f"nvJitLink does not load ({nvrtc.EXTRA}): {str(error).splitlines()[0]}"
    return None


def ptx_of(kernel: Any, signature: tuple[Any, ...], arch: int) -> str:
    """The PTX of a Python function or a lazy `@cuda.jit` dispatcher, compiled with its own options."""
    from numba import cuda
    from numba.cuda import dispatcher

    capability = divmod(arch, 10)
    dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=capability, id=0)
    fastmath = bool(getattr(kernel, "targetoptions", {}).get("fastmath"))
    ptx, _ = cuda.compile_ptx(getattr(kernel, "py_func", kernel), signature, cc=capability, fastmath=fastmath)
    return ptx


def usage_of(ptx: str, arch: int) -> nvrtc.Usage:
    """The resource usage of the only kernel of `ptx`, from ptxas inside nvJitLink."""
    from cuda.bindings import nvjitlink

    linker = nvjitlink.create(2, [f"-arch=sm_{arch}", "-Xptxas=-v"])
    try:
        data = ptx.encode()
        nvjitlink.add_data(linker, nvjitlink.InputType.PTX, data, len(data), "kernel.ptx")
        nvjitlink.complete(linker)
        log = bytearray(nvjitlink.get_info_log_size(linker))
        nvjitlink.get_info_log(linker, log)
    finally:
        nvjitlink.destroy(linker)
    (usage,) = nvrtc.parse_usage(log.decode()).values()
    return usage


def report(kernels: Iterable[tuple[str, Any, tuple[Any, ...]]], every: bool) -> dict[str, Any]:
    """The report in the module docstring, of (name, dispatcher, signature) triples; every: for all architectures."""
    if reason := unavailable():
        return {"unavailable": reason}
    cannot_link = no_linker()
    rows = []
    for number, (name, kernel, signature) in enumerate(kernels):
        for arch in ARCHS if every else (ARCHS[number % len(ARCHS)],):
            ptx = ptx_of(kernel, signature, arch)
            rows.append(
                {
                    "name": name,
                    "arch": arch,
                    "float64": "float64" in str(signature),
                    "facts": nvrtc.ptx_facts(ptx),
                    "usage": None if cannot_link else usage_of(ptx, arch),
                }
            )
    return {"registers": cannot_link, "kernels": rows}


def problems(row: dict[str, Any]) -> list[str]:
    """The faults of one kernel of the report, as sentences."""
    facts = nvrtc.Facts(*row["facts"])
    found = [f"local memory: {facts.local}"] if facts.local else []
    if facts.doubles and not row["float64"]:
        found.append(f"float64: {facts.doubles}")
    if facts.calls:
        found.append(f"calls: {facts.calls}")
    if row["usage"]:
        usage = nvrtc.Usage(*row["usage"])
        if usage.stack or usage.spill_stores or usage.spill_loads:
            found.append(f"stack or spills: {usage}")
    return found


def of_options() -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """The float32 kernels of cells with options: those of OPTION_CASES, and with zoneout and a mask on h per gate."""
    from rnnkit.core.cells import cell_of
    from rnnkit.core.regularisation import Regularisation
    from rnnkit.kernels.numba_cuda import scan, scan_norm
    from rnnkit.testing import OPTION_CASES

    cells = [cell_of(case.cell) for case in OPTION_CASES]
    for name, zoneout_c in (("lstm", 0.1), ("gru", 0.0), ("gru_reset_before", 0.0)):
        rates = Regularisation(recurrent_dropout=0.1, zoneout_h=0.1, zoneout_c=zoneout_c, mask_per_gate=True)
        cells.append(rates.cell(cell_of(name), True))
    for cell in cells:
        scans = scan_norm if cell.normalises else scan
        for name, signature in scans.signatures("float32").items():
            yield f"{name}-{cell.key}-float32", getattr(scans.kernels(cell, "float32"), name), signature


def main() -> None:
    if reason := unavailable():
        print(json.dumps({"unavailable": reason}))
        return
    from rnnkit.kernels.numba_cuda import scan as cuda_scan

    print(json.dumps(report([*cuda_scan.compilable(), *of_options()], every=sys.argv[1:] == ["all"])))


if __name__ == "__main__":
    main()
