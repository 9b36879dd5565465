"""The measuring code of `make gpu`, and the tests of a card, on the stand-in CuPy.

Figures that come out here mean nothing. What is held is that a wrong result is never timed, and that every line has run
before a card is had.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rnnkit
from bench.gpu import model
from rnnkit.backends.cuda import sources
from rnnkit.dtypes import DTYPES
from tests.gpu_card import part_items, stand_in_card


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with stand_in_card(monkeypatch) as cupy:
        yield cupy


def test_card_is_described(card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_cublas_version_is_asked_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import card as module
    from rnnkit.backends.cuda import cublas

    def answer(kind: int, number: Any) -> int:
        number._obj.value = 13 + kind
        return 0

    monkeypatch.setattr(cublas, "library", lambda: SimpleNamespace(cublasGetProperty=answer))
    assert module.cublas_version() == {"cublas": "13.14.15"}
    monkeypatch.setattr(cublas, "library", lambda: SimpleNamespace(cublasGetProperty=lambda kind, number: 7))
    with pytest.raises(RuntimeError, match="status 7"):
        module.cublas_version()


def test_ceilings_are_measured(card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import ceilings

    found = part_items(ceilings, tmp_path / "lines")
    assert {key: item["why"] for key, item in found.items() if item["status"] != "ok"} == {}
    assert {"launches", "flag handoff", "grid.sync 4", "grid counter 8", "cluster.sync 2"} <= set(found)
    assert found["launches"]["counted"] % 5 == 0 < found["launches"]["counted"]
    assert found["product float64 16"]["tflops"] > 0
    assert found["pointwise float32 B=3 H=32"]["bytes"] == 4 * (2 * 3 * 128 + 2 * 128 + 4 * 3 * 32)
    assert model.rates("fake", 1e6, list(found.values())) is not None


def test_older_cards_have_no_clusters(card: Any, tmp_path: Path) -> None:
    from bench.gpu import ceilings
    from tests import fakecupy

    with fakecupy.installed(arch="75", attributes={"MultiProcessorCount": 4}):
        found = part_items(ceilings, tmp_path / "lines")
    assert found["cluster.sync 2"]["why"] == "thread-block clusters need compute capability 9.0"
    assert {key.split()[1] for key in found if key.startswith("product")} == set(DTYPES) - {"bfloat16"}


def test_a_barrier_that_does_not_hold_is_not_timed(card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import barriers

    broken = tmp_path / "probes.cu"
    text = barriers.SOURCE.read_text()
    assert text.count("grid.sync();") == text.count("store_release(mine, round);\n    unsigned") == 1
    broken.write_text(
        text.replace("grid.sync();", "").replace(
            "store_release(mine, round);\n    unsigned", "store_release(mine, round + 1);\n    unsigned"
        )
    )
    monkeypatch.setattr(barriers, "SOURCE", broken)
    for found in (barriers.grid_sync(4), barriers.flag_handoff()):
        assert found["status"] == "wrong"
        assert set(found) == {"status", "why"}


def test_small_program_launches_every_kernel(card: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from bench.gpu import small

    with card.fake.counting() as counts:
        assert small.main(["--backends", "cupy", "--dtypes", "float16"]) == 0
    want = {kernel.name for build in sources.builds() if build.name.endswith("-float16") for kernel in build.kernels}
    assert want <= set(counts.launches) | set(counts.replayed)
    assert {"grid_sync", "grid_counter", "flag_handoff", "cluster_sync"} <= set(counts.launches)
    said = capsys.readouterr().out
    assert "probes done\nsmall: 11 of 11 cases done" in said
    assert small.main(["--backends", "cupy", "--dtypes", "float16", "--seconds", "-1"]) == 0
    assert "small: 0 of 11 cases done" in capsys.readouterr().out
    assert {(b, d) for d, b, _ in small.work(["numba_cuda"], ["float16", "bfloat16"])} == {("numba_cuda", "float16")}


# The tests of a card, on the stand-in: they must not fail for a reason of their own


@pytest.fixture
def gpu_tests(card: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    from tests import test_gpu, test_gpu_calls

    monkeypatch.setattr(test_gpu_calls, "hold", lambda clocks=0: None)
    test_gpu.wanted.cache_clear()
    return SimpleNamespace(**vars(test_gpu) | vars(test_gpu_calls))


def test_gpu_tests_run(gpu_tests: Any, tmp_path: Path) -> None:
    from rnnkit.testing import Case

    gpu_tests.test_parity("cupy", "float32", Case("lstm", ragged=True))
    gpu_tests.test_nothing_is_read_before_it_is_written("cupy", "gru", "float32")
    gpu_tests.test_two_layers_in_both_directions("gru", "float32", "cupy")
    gpu_tests.test_the_second_call_is_a_graph()
    gpu_tests.test_no_memory_is_taken_beyond_the_outputs()
    gpu_tests.test_out_of_memory_has_a_name()
    gpu_tests.test_the_current_stream_is_respected("cupy")
    gpu_tests.test_optimizers_follow_the_cpu("Adam")
    gpu_tests.test_threads_share_nothing()
    gpu_tests.test_probes_hold()
    with pytest.raises(pytest.skip.Exception, match="one CUDA device"):
        gpu_tests.test_another_device_than_the_current_one()


def test_gpu_test_of_waiting_sees_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that run nothing before they must stand for a busy one."""
    if problem := pytest.importorskip("tests.emulator").available():
        pytest.skip(problem)
    from tests import fakecupy, test_gpu_calls

    monkeypatch.setattr(test_gpu_calls, "hold", lambda clocks=0: None)
    with fakecupy.installed(lazy_streams=True) as cupy:
        for ragged in (False, True):
            test_gpu_calls.test_a_call_returns_while_the_stream_is_busy(ragged)
        backward = rnnkit.LSTM.backward

        def waits(*given: Any) -> Any:
            cupy.cuda.get_current_stream().synchronize()
            return backward(*given)

        monkeypatch.setattr(rnnkit.LSTM, "backward", waits)
        with pytest.raises(AssertionError, match="a call waited for the device"):
            test_gpu_calls.test_a_call_returns_while_the_stream_is_busy(False)


def test_gpu_tests_that_need_a_torch(gpu_tests: Any) -> None:
    pytest.importorskip("torch")
    gpu_tests.test_torch_on_the_card("gru", "float32")
    with pytest.raises(pytest.skip.Exception, match="torch sees no CUDA device"):
        gpu_tests.test_torch_tensors_in_and_out()
