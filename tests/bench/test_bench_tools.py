"""The small tools of the benchmark on tiny inputs: their results, and no time without a check."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import (
    cell_calls,
    cell_options,
    compressed,
    compressed_models,
    cpu_peaks,
    first_call,
    machine,
    resets,
    result_file,
    thread_contention,
    tool_result,
)
from bench.__main__ import main as bench_main
from bench.grid import FORWARD, FORWARD_BACKWARD, Point
from bench.peers import PeerRow
from bench.problem import Oracle, check, make_problem
from bench.worker import find_row

SPREAD = {"min", "p25", "median", "p75", "p95", "max", "count"}
TORCH = importlib.util.find_spec("torch") is not None
# A layer or Cell with a wrong first output element.
WRONG = """
from bench.peers import Prepared
from bench.peers import cells, rnnkit

def make(name):
    peer = cells.make("rnnkit") if name.startswith("cell") else rnnkit.make("numpy")
    prepare = peer.prepare
    def corrupted(problem, threads):
        call, results = prepare(problem, threads)
        def spoil(called):
            found = dict(results(called))
            found["y"] = found["y"].copy()
            found["y"].flat[0] += 1e-3
            return found
        return Prepared(call, spoil)
    peer.prepare = corrupted
    return peer
"""


@pytest.fixture
def wrong_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of a peer whose results are wrong, for child processes."""
    (tmp_path / "wrong_peer.py").write_text(WRONG)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "wrong_peer"


# CPU peaks


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_kernels_for_peaks_compute_the_counted_operations(dtype: str) -> None:
    add_up, read = cpu_peaks.make_kernels(dtype)
    lanes = cpu_peaks.vector_bytes() // np.dtype(dtype).itemsize
    out = np.full(64, 0.25, dtype)
    add_up(out.ctypes.data, 3)
    # s -> s / 4 + 1 / 4 three times, starting from 1 / 4; the results of all chains are summed.
    assert out[:lanes].tolist() == [cpu_peaks.ACCUMULATORS * (1 / 4 + 1 / 16 + 1 / 64 + 1 / 256)] * lanes
    assert out[lanes:].tolist() == [0.25] * (64 - lanes)
    step = cpu_peaks.READERS * lanes
    buffer = np.arange(3 * step, dtype=dtype)
    read(buffer.ctypes.data, buffer.nbytes, 2, out.ctypes.data)
    np.testing.assert_array_equal(out[:lanes], buffer.reshape(-1, lanes).sum(axis=0))


def test_read_bandwidth_of_every_memory_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_peaks, "SECONDS", 1e-4)
    monkeypatch.setattr(cpu_peaks, "REPEATS", 1)
    monkeypatch.setattr(cpu_peaks, "PAUSE", 0.0)
    monkeypatch.setattr(machine, "describe", lambda: {"caches": {"L1": "4K", "L2": "16K", "L3": "64K"}})
    found = cpu_peaks.measure("float32", 2)
    assert found["read_bytes"] == {"L1": 2048, "L2": 8192, "L3": 32768, "memory": 262144}
    assert set(found["read_gb_s"]) == {"L1", "L2", "L3", "memory"}
    assert set(found["fma_gflops"]) == {"1", "2"}
    assert all(rate > 0 for rate in (*found["read_gb_s"].values(), *found["fma_gflops"].values()))
    assert machine.cache_bytes("32M") == 2**25
    with pytest.raises(ValueError, match="must be a number and K, M or G, got '1 MB'"):
        machine.cache_bytes("1 MB")


def test_the_peak_is_the_maximum_of_several_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_peaks, "PAUSE", 0.0)
    planted = iter([100.0, 100.0, 90.0, 120.0, 101.0, 199.0, 1.0, 1.0])
    monkeypatch.setattr(cpu_peaks, "fma_gflops", lambda add_up, dtype, threads: next(planted))
    assert cpu_peaks.fma_peaks(None, "float32", 2) == {1: 101.0, 2: 199.0}  # the third trial has two cores available
    monkeypatch.setattr(cpu_peaks, "TRIALS", 2)
    planted = iter([100.0, 120.0, 90.0, 110.0])
    assert cpu_peaks.fma_peaks(None, "float32", 2) == {1: 100.0, 2: 120.0}
    assert list(planted) == []


def test_the_ceiling_in_the_document_has_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        machine, "in_child", lambda module, *a, threads: {"fma_gflops": {}} if module == "bench.cpu_peaks" else 7.0
    )
    found = machine.ceiling("float32", 2)
    assert found["gflops"] == {"1": 7.0, "2": 7.0}
    assert found["fma_gflops"] == {}


def test_a_failed_child_process_reports_its_error() -> None:
    assert machine.run_child("-c", "print(6 * 7)", threads=1) == "42\n"
    with pytest.raises(ValueError, match=r"python -c .* failed with 1: ArithmeticError: planted"):
        machine.run_child("-c", "raise ArithmeticError('planted')", threads=1)


# Cells


@pytest.mark.parametrize("passes", [FORWARD, FORWARD_BACKWARD])
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
@pytest.mark.parametrize("name", ["rnnkit", "rnnkit_grad", *(["torch", "torch_grad"] if TORCH else [])])
def test_cells_equal_a_layer_of_one_step(name: str, cell: str, passes: str) -> None:
    point = Point(cell, 1, 3, 5, 5, "float64", passes)
    peer = PeerRow(name, "bench.peers.cells").load()
    assert peer.unsupported(Point(cell, 2, 3, 5, 5)) == "a Cell is one step of one plain layer"
    if name.endswith("_grad") and passes == FORWARD_BACKWARD:
        assert peer.unsupported(point) == "forward+backward is measured without _grad"
        return
    assert peer.unsupported(point) is None
    prepared = peer.prepare(make_problem(point), threads=1)
    prepared.call()
    errors = check(point, Oracle(point), prepared.results(prepared.call()))
    assert len(errors) == (2 + (cell == "lstm")) + (6 + (cell == "lstm")) * (passes == FORWARD_BACKWARD)
    assert max(errors.values()) <= 1, errors


def test_only_right_calls_are_timed(wrong_peer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ceiling", lambda dtype, threads: {"gflops": {}})
    # The peer named torch is wrong here.
    rows = [
        cell_calls.ROWS[0],
        cell_calls.ROWS[1],
        PeerRow("torch", "bench.peers.cells"),
        PeerRow("cell_wrong", wrong_peer),
    ]
    chosen = [p for p in cell_calls.points("float32", (8,)) if (p.cell, p.B) == ("gru", 1)]
    found = cell_calls.measure(chosen, 1, 0.003, rows)
    result_file.validate(found)
    forward, both = (entry["results"] for entry in found["points"])
    assert forward["cell_wrong"]["status"] == both["cell_wrong"]["status"] == "wrong"
    assert "ms" not in forward["cell_wrong"]
    assert both["rnnkit_grad"]["status"] == "unsupported"
    text = cell_calls.render(found)
    median = 1e3 * forward["rnnkit"]["ms"]["median"]
    assert f"overhead of a gru call, at most: {median:.1f} us" in text
    ways = [line for line in text.splitlines() if line.startswith("gru ")]
    assert [" ".join(line.split()[3:5]) for line in ways] == [
        "forward, no_grad",
        f"forward {1e3 * forward['rnnkit_grad']['ms']['median']:.1f}",
        f"forward+backward {1e3 * both['rnnkit']['ms']['median']:.1f}",
    ]
    assert "cell_wrong at gru-T1-B1-I8-H8-float32-forward: y: up to" in text


# First call


@pytest.mark.slow
def test_first_call_measures_imports_and_calls() -> None:
    found = first_call.measure(1, ("gru",), (3, 2, 4), "numpy")
    assert set(found["import_s"]) == SPREAD
    assert found["import_s"]["min"] > 0
    assert set(found["first_calls"]) == {"gru forward", "gru forward+backward"}
    for result in found["first_calls"].values():
        assert result["status"] == "ok"
        assert set(result["first_ms"]) == set(result["second_ms"]) == SPREAD
        assert result["first_ms"]["count"] == 1
    assert "T 3, B 2, I = H = 4" in first_call.render(found)


@pytest.mark.slow
def test_first_call_gives_a_wrong_result_no_time(wrong_peer: str) -> None:
    found = first_call.measure(1, ("gru",), (3, 2, 4), f"{wrong_peer}:layer")
    for result in found["first_calls"].values():
        assert set(result) == {"status", "why"}
        assert result["status"] == "wrong"
    assert "wrong" in first_call.render(found)


# Compressed weights


def test_compressed_weights_are_measured_beside_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "SAMPLE", 0.0)
    results = compressed.measure((compressed.Shape("gru", 2, 1, 6),), 2, "numpy")
    assert [result["weights"] for result in results] == ["float32", "bfloat16", "int8"]
    assert [result["bytes"] for result in results] == [4 * 216, 2 * 216, 216 + 4 * 36]
    for result in results:
        assert result["status"] == "ok"
        assert set(result["us"]) == set(result["float32_over"]) == SPREAD
    assert len(compressed.render({"results": results, "models": []}).splitlines()) == 4
    monkeypatch.setattr(compressed, "error_ratio", lambda *_: 2.0)
    results = compressed.measure((compressed.Shape("lstm", 1, 2, 6),), 1, "numpy")
    assert "wrong" in compressed.render({"results": results, "models": []})


@pytest.mark.slow
def test_example_models_are_evaluated_with_each_kind_of_weights() -> None:
    model = ("--cell", "gru", "--hidden", "8", "--chunk", "3", "--backend", "numpy")
    found = compressed_models.of_models((model,), steps=2, longest=5)
    assert [result["weights"] for result in found] == ["float32", "bfloat16", "int8"]
    assert found[0]["more_than_float32"] == found[0]["largest_difference"] == 0
    for result in found[1:]:
        assert 0 < result["mean_difference"] < result["largest_difference"] < 0.01
        assert abs(result["more_than_float32"]) < 0.01
    assert len(compressed.render({"results": [], "models": found}).splitlines()) == 6


# Resets and masks


def test_resets_are_measured_beside_the_plain_call(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = resets.Shape("lstm", 6, 4, 3, 5, 0.3)
    found = resets.measure((shape,), 2, "numpy")
    calls = [result["call"] for result in found["results"]]
    assert calls[:5] == ["plain", "resets", "mask", "mask, zeros", "resets and mask"]
    assert calls[5:] == (["torch.nn, step by step"] if TORCH else [])
    for result in found["results"]:
        assert result["status"] == "ok"
        assert set(result["ms"]) == set(result["over_plain"]) == SPREAD
        assert result["ms"]["count"] == 2
    assert found["results"][0]["over_plain"]["max"] == 1
    assert len(resets.render(found).splitlines()) == 1 + len(calls)
    monkeypatch.setattr(resets, "error_ratio", lambda *_: 2.0)
    found = resets.measure((shape,), 1, "numpy")
    assert found["results"][1]["status"] == "wrong"
    assert "wrong" in resets.render(found)


# Thread contention


@pytest.mark.slow
def test_thread_contention_has_every_scenario() -> None:
    point = Point("gru", 3, 2, 4, 4, passes=FORWARD_BACKWARD)
    scenarios = ("alone", "blas", "two callers", *(["torch", "torch and blas"] if TORCH else []))
    found = thread_contention.measure([point], 1, 0.01, scenarios, "numpy")
    assert [result["scenario"] for result in found["results"]] == list(scenarios)
    for result in found["results"]:
        assert result["status"] == "ok"
        assert set(result["ms"]) == SPREAD
        callers = 2 if result["scenario"] == "two callers" else 1
        assert result["ms"]["count"] >= callers * thread_contention.LEAST_CALLS
    text = thread_contention.render(found)
    assert text.startswith("other libraries on 1 threads")
    assert len(text.splitlines()) == 2 + len(scenarios)


@pytest.mark.slow
def test_thread_contention_is_also_measured_on_one_thread() -> None:
    found = thread_contention.measure([Point("gru", 3, 2, 4, 4)], 2, 0.01, ("alone", "blas"), "numpy")
    met = [(result["scenario"], result["threads"], result["status"]) for result in found["results"]]
    assert met == [("alone", 2, "ok"), ("blas", 2, "ok"), ("blas", 1, "ok")]


def test_thread_contention_gives_a_wrong_result_no_time(wrong_peer: str) -> None:
    found = thread_contention.measure(
        [Point("gru", 3, 2, 4, 4)], 1, 0.01, ("alone", "two callers"), f"{wrong_peer}:layer"
    )
    assert [result["status"] for result in found["results"]] == ["wrong", "wrong"]
    assert not any("ms" in result for result in found["results"])
    assert thread_contention.render(found).count("wrong") == 2


def test_work_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[Any] = []
    ones = np.ones

    class Counted:
        def __init__(self, *shape: Any) -> None:
            self.of = ones(*shape)

        def __matmul__(self, other: Any) -> Any:
            products.append(other)
            return self.of

    monkeypatch.setattr(thread_contention.np, "ones", Counted)
    for scenario, count in (("alone", 0), ("two callers", 0), ("blas", 1)):
        products.clear()
        thread_contention.work_between_calls(scenario, 1)()
        assert len(products) == count


def test_file_of_a_tool(tmp_path: Path) -> None:
    found = tool_result.with_machine(results=[tool_result.checked(0.5, {"ms": [1.0, 2.0, 3.0]})])
    path = tool_result.save("tool", found, tmp_path)
    assert path.parent.parent == tmp_path
    assert json.loads(path.read_text()) == found
    assert {"date", "commit", "machine", "load"} <= set(found)
    assert found["results"][0]["ms"]["median"] == 2.0
    assert tool_result.checked(float("nan"), {"ms": [1.0]})["status"] == "wrong"
    assert find_row("numpy").name == "numpy"


def test_options_are_a_command_of_bench(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        bench_main(["options", "--T", "0"])
    assert "--T" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--T", "0"], "argument --T: must be a positive whole number, got '0'"),
        (["--rounds", "few"], "argument --rounds: must be a positive whole number, got 'few'"),
        (["--no-compile"], "--no-compile is only for --peers"),
    ],
)
def test_bad_arguments_of_cell_options(arguments: list[str], problem: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cell_options.main(arguments)
    assert problem in capsys.readouterr().err
