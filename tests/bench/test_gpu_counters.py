"""Predicted and counted launches and bytes of `make gpu`, on the stand-in for CuPy and a CPU."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.gpu import call_model, items_file
from bench.grid import Point
from rnnkit.backends.cupy import sources
from tests.bench.gpu_card import part_items

SMALL = Point("lstm", 5, 4, 6, 9)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "point",
    [
        pytest.param(Point("lstm", 7, 3, 5, 9), marks=pytest.mark.slow),
        pytest.param(Point("lstm", 7, 3, 5, 9, "float16"), marks=pytest.mark.slow),
        Point("gru", 7, 3, 5, 9, "float16"),
        Point("rnn_tanh", 27, 19, 5, 9),  # 513 row-steps: two slices, the second one shorter
    ],
    ids=str,
)
def test_launches_are_as_predicted(throughput: Any, card: Any, point: Point, backward: bool) -> None:
    from bench.gpu import inputs, rnnkit_and_torch

    side = rnnkit_and_torch.Ours(inputs.point_inputs(point), "cupy:stepwise")
    call = side.forward_backward if backward else side.forward
    for _ in range(3):
        call()
    with card.fake.counting() as counts:
        call()
    own = {kernel.name for build in sources.builds() for kernel in build.kernels}
    kernels = sum(n for name, n in (counts.launches + counts.replayed).items() if name in own)
    products = counts.gemms + sum(n for name, n in counts.replayed.items() if name not in own)
    want = call_model.launches(point, backward)
    assert (kernels, products) == (want["kernels"], want["products"])


NCU = """==PROF== Connected to process 7
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","forward_step(Call const*)","lts__t_bytes.sum","byte","1,024"
"0","forward_step(Call const*)","gpu__time_duration.sum","ns","2000"
"1","forward_step(Call const*)","lts__t_bytes.sum","Kbyte","3.072"
"1","forward_step(Call const*)","lts__t_bytes.sum","","n/a"
"""


def test_counters_of_ncu(throughput: Any, card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import counters, ncu_call

    monkeypatch.setattr(counters, "POINTS", (SMALL,))
    monkeypatch.setattr(ncu_call, "point_of", lambda cell: Point(cell, 2, 3, 5, 9))
    monkeypatch.setattr(counters, "point_of", ncu_call.point_of)
    tool = tmp_path / "ncu"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{NCU}END\n")
    tool.chmod(0o755)
    monkeypatch.setattr(counters, "find_tool", lambda name: str(tool))
    want = call_model.launches(SMALL, False)
    names = ["forward_step"] * want["kernels"] + ["ampere_sgemm"] * 6
    monkeypatch.setattr(counters, "profiled", lambda call: ((call(), names)[1], "planted"))
    found = part_items(counters, tmp_path / "lines")
    forward, both = (item for key, item in found.items() if key.startswith("launches"))
    assert (forward["status"], both["status"]) == ("ok", "wrong")
    assert forward["other_kernels"] == {"ampere_sgemm": 6}
    bytes_ = found["bytes gru"]["kernels"]["forward_step"]
    assert bytes_ == {"launches": 2.0, "lts__t_bytes.sum": 2048.0, "gpu__time_duration.sum (ns)": 2000.0}
    tool.write_text("#!/bin/sh\necho refused\n")
    with pytest.raises(items_file.Unavailable, match="ncu counted nothing: refused"):
        counters.bytes_by_ncu(str(tool), "gru", 9.0)
    monkeypatch.setattr(counters, "find_tool", lambda name: None)
    assert part_items(counters, tmp_path / "none")["bytes gru"]["status"] == "not available"
    ncu_call.main(["gru"])


def test_kernels_of_the_profiler_and_graph_nodes(throughput: Any, card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from bench.gpu import counters
    from rnnkit.backends.cupy import arena

    assert counters.profiled(lambda: None)[0] == []  # torch without CUDA
    events = [
        ("DeviceType.CUDA", "cutlass_gemm"),
        ("DeviceType.CUDA", "Memcpy HtoD"),
        ("DeviceType.CPU", "cudaLaunchKernel"),
    ]
    assert [counters.is_kernel(SimpleNamespace(device_type=t, name=n)) for t, n in events] == [True, False, False]
    made = [SimpleNamespace(device_type=kind, name=name) for kind, name in events]
    with monkeypatch.context() as patch:
        profile = nullcontext(SimpleNamespace(events=lambda: made))
        patch.setattr(torch.profiler, "profile", lambda activities: profile)
        assert counters.profiled(lambda: None) == (["cutlass_gemm"], "CUPTI through torch.profiler")
    kernel = SimpleNamespace(name="Kernel")
    copy = SimpleNamespace(name="Memcpy")
    runtime = SimpleNamespace(
        cudaGraph_t=lambda pointer: pointer,
        cudaGraphGetNodes=lambda graph, size=0: (0, [kernel, kernel, copy][:size], 3),
        cudaGraphNodeGetType=lambda node: (0, node),
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(counters, "profiled", lambda call: ([], ""))
    arena.current()._graphs.clear()
    monkeypatch.setattr(card.cuda.graph.Graph, "graph", 5, raising=False)
    found = counters.count(SMALL, False)
    assert (found["how"], found["graphs"]) == ("graph nodes", [{"Kernel": 2, "Memcpy": 1}])
    runtime.cudaGraphGetNodes = lambda graph, size=0: (1, [], 0)
    with pytest.raises(RuntimeError, match="cudaGraphGetNodes"):
        counters.graph_nodes()
