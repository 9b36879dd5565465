"""The measuring code and the GPU tests of `make gpu`, on the stand-in for CuPy.

The measured times mean nothing. The tests show that a wrong result is never timed, and run every line without a GPU.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rnnkit
from bench.gpu import call_model
from rnnkit.backends.cupy import sources
from rnnkit.core.dtypes import DTYPES
from tests.bench.gpu_card import part_items


def test_the_gpu_is_described(card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import card as module

    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Planted, 580.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = part_items(module, tmp_path / "lines")
    assert found["device"]["arch"] == 90
    assert found["attributes"]["attributes"]["MultiProcessorCount"] == 4
    assert found["limits"]["smi"]["driver_version"] == "580.1"
    assert found["versions"]["versions"]["cuda driver"] == "13.1"
    assert found["tools"]["tools"]["nvidia-smi"] == str(tool)
    monkeypatch.setattr(card.cuda.runtime, "getDeviceCount", lambda: 0)
    (none,) = part_items(module, tmp_path / "none").values()
    assert none["why"] == "the driver is there and sees no device"


def test_the_cublas_version_is_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import card as module
    from rnnkit.backends.cupy import cublas

    def answer(kind: int, number: Any) -> int:
        number._obj.value = 13 + kind
        return 0

    monkeypatch.setattr(cublas, "library", lambda: SimpleNamespace(cublasGetProperty=answer))
    assert module.cublas_version() == {"cublas": "13.14.15"}
    monkeypatch.setattr(cublas, "library", lambda: SimpleNamespace(cublasGetProperty=lambda kind, number: 7))
    with pytest.raises(RuntimeError, match="status 7"):
        module.cublas_version()


@pytest.mark.slow
def test_ceilings_are_measured(card: Any, tmp_path: Path) -> None:
    from bench.gpu import hardware_ceilings, hardware_ceilings_table

    found = part_items(hardware_ceilings, tmp_path / "lines")
    assert {key: item["why"] for key, item in found.items() if item["status"] != "ok"} == {}
    assert {"launches", "flag handoff", "hop flag", "hop tag", "grid.sync 4", "grid counter 8"} <= set(found)
    assert {f"all-gather {way} N={n} words=64" for way in ("flag", "tag") for n in (2, 4, 8)} <= set(found)
    assert {"cluster.sync 2", "DSMEM hop push C=2", "DSMEM hop pull C=2"} <= set(found)
    assert {f"DSMEM all-gather {way} C=2 words=64" for way in ("push", "mbarrier", "pull")} <= set(found)
    assert {f"product {d} {layout} 16" for d in DTYPES for layout in ("TN", "NN", "NT")} <= set(found)
    assert {f"step {d} {layout} B=2 H=8" for d in DTYPES for layout in ("TN", "NN", "NT")} <= set(found)
    assert found["step float32 TN B=2 H=8"]["shape"] == [2, 32, 8]
    assert found["step float32 NN B=2 H=8"]["shape"] == [2, 8, 32]
    assert found["step float32 NT B=2 H=8"]["shape"] == [32, 8, 32]
    assert found["launches"]["counted"] % 6 == 0 < found["launches"]["counted"]
    assert found["all-gather tag N=2 words=64"]["groups"] == 2
    assert found["pointwise float32 B=3 H=32"]["bytes"] == 4 * (2 * 3 * 128 + 2 * 128 + 4 * 3 * 32)
    rates = call_model.rates("fake", 1e6, list(found.values()))
    assert rates is not None
    assert rates.card.products == {d: found[f"product {d} TN 16"]["tflops"] * 1e12 for d in DTYPES}
    # The values that the model needs are measured before items that may exhaust the time of the part.
    order = list(found)
    assert max(map(order.index, ("launches", "copy 0 MiB", "product bfloat16 TN 16"))) < order.index("grid.sync 2")
    text = "\n".join(hardware_ceilings_table.lines(list(found.values())))
    for kind in (
        "launch:",
        "copy,",
        "grid.sync,",
        "all-gather, 8 blocks",
        "DSMEM hop",
        "DSMEM all-gather, 2 blocks",
        "step tf32 NT",
    ):
        assert kind in text


def test_clusters_are_not_available_on_older_gpus(card: Any, tmp_path: Path) -> None:
    from bench.gpu import hardware_ceilings
    from tests.tools import fakecupy

    with fakecupy.installed(arch="75", attributes={"MultiProcessorCount": 4}):
        found = part_items(hardware_ceilings, tmp_path / "lines")
    skipped = {key for key, item in found.items() if item["status"] == "skipped"}
    assert skipped == {key for key in found if key.startswith(("cluster.sync", "DSMEM"))} != set()
    assert {found[key]["why"] for key in skipped} == {"thread-block clusters need compute capability 9.0"}
    assert {key.split()[1] for key in found if key.startswith("product")} == set(DTYPES) - {"bfloat16"}


def test_table_of_ceilings_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every item of a real GPU, except one missing kind."""
    from bench.gpu import exchange_costs, hardware_ceilings, hardware_ceilings_table, sync_costs
    from tests.tools import fakecupy

    us = {"us": 1.0}
    canned: dict[str, Any] = {
        "launches": lambda: {name: {"eager_us": 1.0, "graph_us": 1.0} for name in ("nothing", "count_up", "pass_on")},
        "grid_sync": lambda blocks: {"blocks": blocks, "alone": us, "with_exchange": us},
        "grid_counter": lambda blocks: {"blocks": blocks, "alone": us, "with_exchange": us},
        "flag_handoff": lambda: {"one_way_us": 1.0},
        "cluster_sync": lambda cluster, sms: {"cluster": cluster, "resident": sms // cluster, "one": us, "all": us},
        "hop": lambda way: {"one_way_us": 1.0, "least_us": 0.5, "most_us": 1.5},
        "all_gather": lambda way, n, words, sms: {"members": n, "words": words, **us, "full_us": 1.0},
        "cluster_hop": lambda way, cluster: {"cluster": cluster, "one_way_us": 1.0},
        "cluster_gather": lambda way, cluster, words, sms: {"cluster": cluster, "words": words, **us, "full_us": 1.0},
        "copy": lambda size: {"gb_per_s": 1000.0},
        "pointwise": lambda dtype, B, H: {"gb_per_s": 1000.0},
        "product": lambda *given: {"tflops": 500.0, "ms": {"median": 0.1}},
    }
    for name, work in canned.items():
        for module in (sync_costs, exchange_costs, hardware_ceilings):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, work)
    with fakecupy.installed():
        found = part_items(hardware_ceilings, tmp_path / "lines")
    assert all(item["status"] == "ok" for item in found.values())
    assert len(found) < 200
    lines = hardware_ceilings_table.lines(list(found.values()))
    assert len(lines) <= 40
    assert max(map(len, lines)) < 160
    del found["all-gather tag N=8 words=512"]
    assert any(
        "8 blocks" in line and "512 words 1.00 (1.00) / -" in line
        for line in hardware_ceilings_table.lines([*found.values()])
    )


@pytest.mark.parametrize("fault", ["no sum", "a short sum"])
def test_a_wrong_product_is_not_timed(card: Any, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import hardware_ceilings
    from rnnkit.backends.cupy.cublas import Products

    right = Products._gemm

    def wrong(self: Any, ops: Any, sizes: tuple[int, int, int], a: Any, b: Any, out: Any, add: bool) -> None:
        m, n, k = sizes
        right(self, ops, (m, n, k - (fault == "a short sum")), a, b, out, add and fault != "no sum")

    assert {
        hardware_ceilings.product("float32", layout, 5, 12, 7, 0.0).get("status")
        for layout in hardware_ceilings.LAYOUTS
    } == {None}
    monkeypatch.setattr(Products, "_gemm", wrong)
    for layout in hardware_ceilings.LAYOUTS:
        found = hardware_ceilings.product("float32", layout, 5, 12, 7, 0.0)
        assert found["status"] == "wrong"
        assert set(found) == {"status", "why", "error"}


@pytest.mark.slow
def test_small_program_launches_every_kernel(card: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from bench.gpu import every_kernel

    with card.fake.counting() as counts:
        assert every_kernel.main(["--backends", "cupy", "--dtypes", "float16"]) == 0
    want = {kernel.name for build in sources.builds() if build.name.endswith("-float16") for kernel in build.kernels}
    assert want <= set(counts.launches) | set(counts.replayed)
    said = re.search(r"every_kernel: (\d+) of (\d+) cases done, 0 failed, probes not wanted", capsys.readouterr().out)
    assert said is not None
    done, served = map(int, said.groups())
    todo = len(every_kernel.work(["cupy"], ["float16"]))  # some are refused: a schedule does not serve them
    assert todo / 2 < done == served < todo
    assert every_kernel.main(["--backends", "cupy", "--dtypes", "float16", "--seconds", "-1"]) == 0
    assert f"every_kernel: 0 of {todo} cases done" in capsys.readouterr().out
    assert {(b, d) for d, b, _ in every_kernel.work(["numba_cuda"], ["float16", "bfloat16"])} == {
        ("numba_cuda", "float16")
    }


# The GPU tests on the stand-in: they must not have errors of their own


@pytest.fixture
def gpu_tests(card: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    from tests.cuda import test_gpu, test_gpu_calls

    monkeypatch.setattr(test_gpu_calls, "hold", lambda clocks=0: None)
    test_gpu.wanted.cache_clear()
    return SimpleNamespace(**vars(test_gpu) | vars(test_gpu_calls))


@pytest.mark.slow
def test_gpu_tests_run(gpu_tests: Any, tmp_path: Path) -> None:
    from rnnkit.testing import Case

    gpu_tests.test_parity("cupy", "float32", Case("lstm", ragged=True))
    gpu_tests.test_no_uninitialised_memory_is_read("cupy", "gru", "float32")
    gpu_tests.test_two_layers_in_both_directions("gru", "float32", "cupy")
    gpu_tests.test_the_second_call_captures_a_graph()
    gpu_tests.test_only_outputs_are_allocated()
    gpu_tests.test_gates_computed_again_give_the_gradients_of_saved_ones("cupy:grid", "float32")
    gpu_tests.test_out_of_memory_raises_a_named_error()
    gpu_tests.test_calls_run_on_the_current_stream("cupy")
    gpu_tests.test_optimizers_equal_the_cpu("Adam")
    gpu_tests.test_threads_share_no_state()
    gpu_tests.test_probes_order_memory()
    with pytest.raises(pytest.skip.Exception, match="one CUDA device"):
        gpu_tests.test_a_device_that_is_not_current()


def test_the_gpu_test_of_synchronisation_detects_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lazy streams, which run work only when waited for, act as a busy stream."""
    if problem := pytest.importorskip("tests.tools.emulator").available():
        pytest.skip(problem)
    from tests.cuda import test_gpu_calls
    from tests.tools import fakecupy

    monkeypatch.setattr(test_gpu_calls, "hold", lambda clocks=0: None)
    with fakecupy.installed(lazy_streams=True) as cupy:
        for ragged in (False, True):
            test_gpu_calls.test_a_call_returns_while_the_stream_is_busy(ragged)
        backward = rnnkit.LSTM.backward

        def waits(*given: Any) -> Any:
            cupy.cuda.get_current_stream().synchronize()
            return backward(*given)

        monkeypatch.setattr(rnnkit.LSTM, "backward", waits)
        with pytest.raises(AssertionError, match="a call synchronised"):
            test_gpu_calls.test_a_call_returns_while_the_stream_is_busy(False)


def test_gpu_tests_that_need_torch(gpu_tests: Any) -> None:
    pytest.importorskip("torch")
    gpu_tests.test_results_equal_torch_on_the_gpu("gru", "float32")
    with pytest.raises(pytest.skip.Exception, match="torch sees no CUDA device"):
        gpu_tests.test_torch_tensors_in_and_out()
