"""Throughput of `make gpu` beside torch, on the stand-in for CuPy and a CPU: checks before times, refused captures."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rnnkit
from bench.gpu import cudnn, items_file, point_order, report, tables
from bench.grid import FORWARD_BACKWARD, Point
from rnnkit.testing import error_ratio
from tests.bench.gpu_card import part_items
from tests.bench.gpu_document import document

SMALL = [
    Point("lstm", 5, 4, 6, 9),
    Point("gru", 5, 10, 6, 9, "bfloat16", ragged=True),
    Point("rnn_tanh", 4, 3, 6, 9, "tf32", layers=2, bidirectional=True),
]


def test_throughput_is_measured(throughput: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = Point("lstm", 1024, 1 << 20, 64, 64)
    slow = Point("lstm", 1024, 512, 2048, 2048)
    monkeypatch.setattr(point_order, "ordered", lambda: iter([*SMALL, huge, slow]))
    free = 1e12
    monkeypatch.setattr(throughput.Card, "here", classmethod(lambda kind: kind(132, 90, 91400, free)))
    found = list(part_items(throughput, tmp_path / "lines", 30.0).values())
    assert [item["status"] for item in found] == ["ok"] * 3 + ["skipped", "not run"], found
    assert "GiB" in found[3]["why"]
    assert "s are left" in found[4]["why"]
    assert found[1]["rows_checked"] == 8
    made = document(found)
    for row in report.rows(made):
        assert row.error is not None
        assert 0 < row.error <= 1
        assert row.ratio
        assert row.torch_by == "eager"
    assert len(report.rows(made)) == 6
    assert "no card to capture on" in found[0]["passes"]["forward"]["torch_graph"]["why"]
    assert found[0]["passes"][FORWARD_BACKWARD]["flop"] == 3 * SMALL[0].flop()
    assert part_items(throughput, tmp_path / "lines", 30.0) == {item["item"]: item for item in found}  # once


def test_ragged_rows_are_timed_with_repeated_and_with_new_lengths(throughput: Any) -> None:
    here = throughput.Card(132, 90, 91400, 1e9)
    found = throughput.measure_point(SMALL[1], here, "cupy:stepwise")
    for passes in found["passes"].values():
        for contender in ("ours", "ours_fresh", "torch_eager", "torch_fresh", "torch_packed"):
            assert passes[contender]["ms"]["median"] > 0
        # Graphs replay for new lengths too: they read the live rows from memory.
        for contender in ("ours", "ours_fresh"):
            counts = passes[contender]["counts"]
            assert counts["replays"] >= 1
            assert counts["captures"] == counts["refused"] == 0
            assert passes[contender]["fell_back"] == []
    plain = throughput.measure_point(SMALL[0], here)["passes"]["forward"]
    assert "ours_fresh" not in plain
    assert plain["ours"]["host_ms"] > 0
    text = "\n".join(tables.SECTIONS["throughput"](document([{"item": "gru", **found}])))
    assert "ours_fresh" in text
    assert "fell back" not in text


def test_ragged_contenders_do_the_same_work(throughput: Any) -> None:
    """Packed rows give the values of padded ones. New lengths are equal on both sides, with equal results."""
    import torch

    from bench.gpu import inputs, rnnkit_and_torch

    point = Point("lstm", 5, 6, 6, 9, "float64", ragged=True)
    n = inputs.point_inputs(point)
    ours = rnnkit_and_torch.Ours(n)
    peer = rnnkit_and_torch.Torch(n)
    pack = torch.nn.utils.rnn.pack_padded_sequence
    lengths = torch.from_numpy(n.lengths)
    y, h, c, dx, *rest = peer.ready(True)()
    packed = peer.ready_packed(True)()
    torch.testing.assert_close(packed[0], pack(y, lengths, enforce_sorted=False).data)
    torch.testing.assert_close(packed[3], pack(dx, lengths, enforce_sorted=False).data)
    for got, want in zip((*packed[1:3], *packed[4:]), (h, c, *rest), strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(peer.ready_packed(False)()[0], packed[0])
    for backward in (False, True):
        calls = ours.ready_fresh(backward), peer.ready_fresh(backward)
        seen = []
        for _ in range(3):
            got = calls[0]()
            want = calls[1]()
            for a, b in zip(ours.results(got).values(), peer.results(want).values(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
            seen.append(ours.results(got)["y"])
        assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("ours_first", [True, False])
def test_both_sides_alternate_in_being_timed_first(
    throughput: Any, monkeypatch: pytest.MonkeyPatch, ours_first: bool
) -> None:
    from bench.gpu import timing

    monkeypatch.setattr(throughput, "ROUNDS", 2)
    order: list[str] = []
    measure = timing.measure

    def watched(call: Any, seconds: float) -> Any:
        order.append(call.name)
        return measure(call, seconds)

    monkeypatch.setattr(timing, "measure", watched)
    monkeypatch.setattr(throughput, "count_launches", lambda call: {})

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self) -> None: ...

    throughput._times({name: Named(name) for name in ("ours", "torch_eager", "torch_graph")}, ours_first)
    ours_in_front = ["ours", "torch_eager", "torch_graph"]
    rounds = [ours_in_front, ours_in_front[::-1]]
    assert [order[:3], order[3:]] == (rounds if ours_first else rounds[::-1])


@pytest.mark.slow
def test_points_alternate_the_side_that_is_first(
    throughput: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_order, "ordered", lambda: iter([SMALL[0], Point("lstm", 4, 3, 2, 5)]))
    monkeypatch.setattr(throughput.Card, "here", classmethod(lambda kind: kind(132, 90, 91400, 1e12)))
    monkeypatch.setattr(throughput, "clocks", lambda: {"sm_mhz": 1980.0})
    found = part_items(throughput, tmp_path / "lines", 30.0)
    assert [item["ours_first"] for item in found.values()] == [True, False]
    assert [item["clocks"] for item in found.values()] == [{"sm_mhz": 1980.0}] * 2


def test_the_pinned_schedule_is_timed(throughput: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import rnnkit_and_torch

    backends = []
    made = rnnkit_and_torch.make_layer
    monkeypatch.setattr(rnnkit_and_torch, "make_layer", lambda *given: (backends.append(given[1]), made(*given))[1])
    monkeypatch.setattr(point_order, "ordered", lambda: iter(SMALL[:1]))
    arguments = ["--items", str(tmp_path / "lines"), "--part", "throughput", "--seconds", "30"]
    assert throughput.main([*arguments, "--schedule", "stepwise"]) == 0
    assert backends == ["cupy:stepwise"]


def test_refused_capture_is_recorded_with_its_reason(
    throughput: Any, card: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.gpu import inputs, rnnkit_and_torch

    side = rnnkit_and_torch.Ours(inputs.point_inputs(SMALL[0]), "cupy:stepwise")
    side.forward()
    end_capture = card.cuda.Stream.end_capture

    def corrupted(stream: Any) -> Any:
        end_capture(stream)
        raise card.cuda.runtime.CUDARuntimeError(901)

    monkeypatch.setattr(card.cuda.Stream, "end_capture", corrupted)
    found = throughput.count_launches(side.forward)
    assert found["counts"]["refused"] == 1
    assert "could not be captured" in found["fell_back"][0]
    made = document(
        [{"item": "lstm", "status": "ok", "point": SMALL[0].to_dict(), "passes": {"forward": {"ours": found}}}]
    )
    assert "1 passes fell back from graphs, the first lstm forward" in "\n".join(tables._fell_back(made))


def test_without_torch_throughput_is_not_available(
    throughput: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.gpu import counters

    monkeypatch.setattr(throughput.importlib.util, "find_spec", lambda name: None)
    (found,) = part_items(throughput, tmp_path / "lines").values()
    assert (found["status"], "torch is not installed" in found["why"]) == ("not available", True)
    with pytest.raises(items_file.Unavailable, match="torch is not installed"):
        counters.count(SMALL[0], False)


def test_wrong_result_is_not_timed(throughput: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import inputs, rnnkit_and_torch

    here = throughput.Card(132, 90, 91400, 1e9)
    right = rnnkit.LSTM.backward
    monkeypatch.setattr(
        rnnkit.LSTM, "backward", lambda self, *given: (right(self, *given)[0] + 1e-3, right(self, *given)[1])
    )
    found = throughput.measure_point(SMALL[0], here)
    assert found["status"] == "wrong"
    assert found["passes"]["forward"]["status"] == "ok"
    wrong = found["passes"][FORWARD_BACKWARD]
    assert (wrong["status"], "ours" in wrong) == ("wrong", False)
    assert wrong["error"] > 1
    monkeypatch.undo()
    n = inputs.point_inputs(SMALL[0])
    found = throughput.measure_pass(
        rnnkit_and_torch.Ours(n), rnnkit_and_torch.Torch(n), 0.5, throughput.PEER_WRONG + 1, False
    )
    assert "torch_eager" not in found
    assert found["steps_per_s"] == pytest.approx(20 / found["ours"]["ms"]["median"] * 1e3, rel=1e-6)
    assert found["ours"]["ms"]["median"] > 0


class PlantedGraph:
    """The functions of torch.cuda for streams and graphs, for a machine without a GPU."""

    def __init__(self, *given: Any) -> None:
        self.replayed = 0

    def wait_stream(self, other: Any) -> None: ...

    def replay(self) -> None:
        self.replayed += 1

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...


def test_torch_is_captured(throughput: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from bench.gpu import inputs, rnnkit_and_torch

    graph = PlantedGraph()
    calls = []
    side = rnnkit_and_torch.Torch(inputs.point_inputs(SMALL[0]))
    monkeypatch.setattr(rnnkit_and_torch, "torch_device", lambda: "cuda")
    for name in ("Stream", "stream", "graph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, PlantedGraph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: calls.append("set back"))

    def call(result: float = 0.0) -> Any:
        calls.append("call")
        return (torch.full((2,), result),)

    replay = side.captured(call)
    assert calls == ["call"] * 4 + ["set back"]
    replay()
    assert graph.replayed == 2
    different = iter([0.0, 0.0, 0.0, 1.0])
    with pytest.raises(RuntimeError, match="result is another"):
        side.captured(lambda: call(next(different)))
    calls.clear()
    with pytest.raises(ZeroDivisionError):
        side.captured(lambda: calls.append("call") or (1 / 0 if len(calls) > 3 else ()))
    assert calls[-1] == "set back"
    monkeypatch.setattr(torch, "from_dlpack", lambda array: ("taken", array))
    monkeypatch.setattr(inputs, "torch_device", lambda: "cuda")
    assert rnnkit_and_torch.to_torch(3) == ("taken", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(2))
    throughput.forget()
    assert calls[-1] == 2


@pytest.mark.parametrize(("wrong_call", "seen"), [(0, True), (2, True), (None, False)])
def test_the_first_call_and_a_replayed_call_are_checked(throughput: Any, wrong_call: int | None, seen: bool) -> None:
    from bench.gpu import inputs

    n = inputs.point_inputs(SMALL[0])
    calls = iter(range(3))
    side = SimpleNamespace(
        n=n, ready=lambda backward: lambda: next(calls), results=lambda call: {"y": n.x + (call == wrong_call)}
    )
    assert (throughput.worst_error(side, False, {"y": n.x[:, n.rows].double()}) > 1) == seen


def test_a_lost_context_restarts_the_part(throughput: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_order, "ordered", lambda: iter(SMALL))
    monkeypatch.setattr(throughput, "measure_point", lambda *given, **options: 1 / 0)
    monkeypatch.setattr(throughput, "forget", lambda: None)
    monkeypatch.setattr(items_file, "context_is_lost", lambda: True)
    arguments = ["--items", str(tmp_path / "lines"), "--part", "throughput", "--seconds", "30"]
    for _ in range(3):
        with pytest.raises(SystemExit) as ended:
            throughput.main(arguments)
        assert ended.value.code == items_file.AGAIN
    assert throughput.main(arguments) == 0
    found = items_file.ended(items_file.read_lines(tmp_path / "lines"))["throughput"]
    assert [item["status"] for item in found.values()] == ["failed"] * 3


def test_errors_equal_those_of_the_library(throughput: Any) -> None:
    import torch

    from bench.gpu import inputs

    rng = np.random.default_rng(0)
    want = rng.standard_normal((4, 5))
    for dtype, kind in (("float32", "forward"), ("bfloat16", "backward")):
        got = want + 1e-4 * rng.standard_normal((4, 5))
        ratio = inputs.error(torch.from_numpy(got), torch.from_numpy(want), dtype, kind)
        assert ratio == pytest.approx(error_ratio(got, want, dtype, kind))
    assert inputs.error(torch.full((2,), math.nan), torch.zeros(2).double(), "float32", "forward") == math.inf
    assert inputs.error(torch.zeros(3), torch.zeros(2).double(), "float32", "forward") == math.inf


def test_torch_uses_the_arithmetic_of_the_dtype() -> None:
    torch = pytest.importorskip("torch")
    for dtype, allowed in (("tf32", True), ("float32", False), ("float16", False)):
        cudnn.set_arithmetic(torch, dtype)
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is allowed
    assert cudnn.torch_dtype(torch, "tf32") is torch.float32
    assert cudnn.torch_dtype(torch, "bfloat16") is torch.bfloat16
