"""Launches and bytes per step, predicted and counted: python -m bench.gpu.counters.

CUPTI counts the launches through torch.profiler, which records every kernel of the process, also inside graphs. Where
it records none, the nodes of the graphs are counted. ncu's hardware counters give the bytes of a call without graphs.
"""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from typing import Any

from bench.gpu import call_model, exit_with_parent, timing
from bench.gpu.card import find_tool
from bench.gpu.items_file import Item, Lines, Unavailable
from bench.gpu.ncu_call import point_of
from bench.gpu.step_model import step_counts
from bench.grid import MAIN_CELLS, Point
from bench.worker_pool import ROOT
from rnnkit.backends.cupy import sources

POINTS = (*(Point(cell, 64, 32, 256, 256) for cell in MAIN_CELLS), Point("lstm", 64, 32, 256, 256, "float16"))
METRICS = ("lts__t_bytes.sum", "dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum")
NCU_SECONDS = 60.0
OWN = frozenset(kernel.name for build in sources.builds() for kernel in build.kernels)


def main(arguments: list[str] | None = None) -> int:
    lines = Lines.from_arguments(__doc__ or "", arguments)
    for point in POINTS:
        for backward in (False, True):
            key = f"launches {point.shape}-{point.dtype} {'forward+backward' if backward else 'forward'}"
            lines.item(key, lambda point=point, backward=backward: count(point, backward))
    tool = find_tool("ncu")
    for cell in MAIN_CELLS:
        key = f"bytes {cell}"
        if tool is None:
            lines.skip(key, "ncu is not on this machine", "not available")
        else:
            lines.item(key, lambda cell=cell: bytes_by_ncu(tool, cell, min(NCU_SECONDS, lines.left())), 12.0)
    return 0


def count(point: Point, backward: bool) -> Item:
    """The kernels of a call after the first ones. Raises Unavailable without torch, which makes inputs and profiles."""
    if importlib.util.find_spec("torch") is None:
        raise Unavailable("torch is not installed")
    from bench.gpu.inputs import point_inputs
    from bench.gpu.rnnkit_and_torch import Ours

    side = Ours(point_inputs(point), "cupy:stepwise")
    call = side.forward_backward if backward else side.forward
    for _ in range(3):
        call()
    timing.wait()
    want = call_model.launches(point, backward)
    names, how = profiled(call)
    if not names:
        how = "graph nodes"
        return {"predicted": want, "how": how, "graphs": graph_nodes()}
    own = [name for name in names if name in OWN]
    others: dict[str, int] = {}
    for name in names:
        if name not in OWN:
            others[name[:80]] = others.get(name[:80], 0) + 1
    found = {"kernels": len(own), "others": sum(others.values())}
    return {
        "status": "ok" if found["kernels"] == want["kernels"] else "wrong",
        "why": "" if found["kernels"] == want["kernels"] else f"{found['kernels']} kernels, not {want['kernels']}",
        "how": how,
        "predicted": want,
        "measured": found,
        "a_step": {"kernels": len(own) / point.T, "others": found["others"] / point.T},
        "other_kernels": dict(sorted(others.items(), key=lambda pair: -pair[1])[:12]),
    }


def profiled(call: Any) -> tuple[list[str], str]:
    """The names of the kernels that `call` runs, and how they were counted; no names where no profiler works."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=activities) as profile:
            call()
            timing.wait()
    except (RuntimeError, AssertionError) as error:  # CUPTI is missing or refused, or torch is without CUDA
        print(f"torch.profiler: {error}")
        return [], "no profiler"
    kernels = [event.name for event in profile.events() if is_kernel(event)]
    return kernels, "CUPTI through torch.profiler"


def is_kernel(event: Any) -> bool:
    """Whether an event of the profiler is a kernel: it ran on the device and is no copy."""
    on_device = str(event.device_type).endswith("CUDA")
    return on_device and not event.name.startswith(("Memcpy", "Memset"))


def graph_nodes() -> list[dict[str, int]]:
    """Nodes by type of every graph that this thread keeps for the current stream."""
    from cuda.bindings import runtime

    from rnnkit.backends.cupy import arena

    found = []
    for captured in arena.current()._graphs.values():
        handle = runtime.cudaGraph_t(captured.graph.graph)
        status, _, size = runtime.cudaGraphGetNodes(handle)
        status, nodes, _ = runtime.cudaGraphGetNodes(handle, size)
        if int(status):
            raise RuntimeError(f"cudaGraphGetNodes: {status!r}")
        kinds: dict[str, int] = {}
        for node in nodes:
            _, kind = runtime.cudaGraphNodeGetType(node)
            kinds[kind.name] = kinds.get(kind.name, 0) + 1
        found.append(kinds)
    return found


def bytes_by_ncu(tool: str, cell: str, seconds: float) -> Item:
    """The bytes that a step's kernels move, by the counters of the L2 cache and of memory."""
    program = [sys.executable, "-m", "bench.gpu.ncu_call", cell]
    command = [tool, "--clock-control", "none", "--csv", "--metrics", ",".join(METRICS), *program]
    ran = subprocess.run(
        exit_with_parent.command(tuple(command)), cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
    )
    print(ran.stdout[-4000:], ran.stderr[-2000:], flush=True)
    rows = parse_ncu(ran.stdout)
    if not rows:
        said = (ran.stdout + ran.stderr).strip().splitlines()[-3:]
        raise Unavailable(f"ncu counted nothing: {' | '.join(said)}"[:400])
    point = point_of(cell)
    ways = {"forward": False, "backward": True}
    predicted = {way: step_counts(cell, point.dtype, point.B, point.H, back)._asdict() for way, back in ways.items()}
    return {"point": point.to_dict(), "predicted_step": predicted, "kernels": rows}


def parse_ncu(text: str) -> dict[str, dict[str, float]]:
    """Kernel -> metric -> its mean over the launches, and "launches"; from ncu's CSV, one row per launch and metric."""
    body = [line for line in text.splitlines() if line.startswith('"')]
    sums: dict[str, dict[str, list[float]]] = {}
    for row in csv.DictReader(body):
        try:
            kernel = row["Kernel Name"].split("(")[0][:80]
            metric = row["Metric Name"]
            value = float(row["Metric Value"].replace(",", ""))
        except (KeyError, ValueError, AttributeError):
            continue
        unit = row.get("Metric Unit") or ""
        value *= {"Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}.get(unit, 1.0)
        name = f"{metric} ({unit})" if unit and "byte" not in unit else metric
        sums.setdefault(kernel, {}).setdefault(name, []).append(value)
    return {
        kernel: {
            "launches": float(max(len(values) for values in metrics.values())),
            **{name: sum(values) / len(values) for name, values in metrics.items()},
        }
        for kernel, metrics in sums.items()
    }


if __name__ == "__main__":
    sys.exit(main())
