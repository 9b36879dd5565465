"""bench.torch_calls: the overhead of a small call through rnnkit.torch."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from bench import torch_calls

pytestmark = pytest.mark.peers


def test_calls_through_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of call of every library has a time, and a wrong library has none."""
    found = torch_calls.measure(("gru", "lstm"), 0.002, rounds=2)
    results = found["results"]
    assert [r["kind"] for r in results] == [k for _ in "gl" for k in torch_calls.KINDS for _ in torch_calls.LIBRARIES]
    assert all(r["status"] == "ok" and r["error"] <= 1 and r["us"]["count"] == 2 for r in results)
    medians = [results[k]["us"]["median"] for k in range(3)]
    row = torch_calls.render(found).splitlines()[1].split()
    assert row[:6] == ["gru", "forward,", "no_grad", *(f"{m:.1f}" for m in medians)]
    assert row[6] == f"{medians[1] - medians[0]:.1f}"

    right = torch_calls._torch

    def wrong(library: str, problem: Any) -> Any:
        calls, found = right(library, problem)
        return calls, lambda: {name: a + (library == "rnnkit.torch") for name, a in found().items()}

    monkeypatch.setattr(torch_calls, "_torch", wrong)
    monkeypatch.setattr(torch_calls, "MAIN_CELLS", ("gru",))
    assert torch_calls.main(["--seconds", "0.002"]) == 1
    of_wrong = [r for r in torch_calls.measure(("gru",), 0.002, rounds=2)["results"] if r["status"] == "wrong"]
    assert {r["library"] for r in of_wrong} == {"rnnkit.torch"}
    assert not any("us" in r for r in of_wrong)
