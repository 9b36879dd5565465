"""Four programs with torch.nn's layers and with rnnkit's, side by side: the losses agree step by step."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from bench import torch_programs  # noqa: E402
from rnnkit.examples import _torch_common  # noqa: E402
from rnnkit.testing import assert_close  # noqa: E402
from tests.required import unless_required  # noqa: E402

pytestmark = pytest.mark.peers

# Options of a small run, and the dtype of the losses. The second loss depends on every gradient of the first step.
SMALL = {
    "torch_characters": ("--steps 5 --batch 4 --hidden 16 --dtype float64", "float64"),
    "torch_tagger": ("--steps 5 --batch 4 --hidden 12 --dtype float64", "float64"),
    "torch_compiled": ("--steps 5 --batch 3 --length 12 --hidden 16 --dtype float64 --compiler aot_eager", "float64"),
    "torch_recurrent_ppo": ("--steps 3 --rollout 24 --environments 3 --epochs 2 --hidden 16 --warmup 1", "float32"),
}
NEEDS = {"torch_recurrent_ppo": ("sb3_contrib", "gymnasium")}


def run(program: str, folder: Path, *options: str) -> _torch_common.Comparison:
    """What the program's main returns."""
    for module in ("matplotlib", "tqdm", *NEEDS.get(program, ())):
        if importlib.util.find_spec(module) is None:
            pytest.skip(str(unless_required("peers", f"{module} is not installed (extra torch-examples)")))
    module = importlib.import_module(f"rnnkit.examples.{program}")
    return module.main([*options, "--out", str(folder)])


@pytest.mark.parametrize("program", SMALL)
def test_the_losses_agree(program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, dtype = SMALL[program]
    found = run(program, tmp_path, *options.split())
    theirs, ours = (np.asarray(found.losses[layers]) for layers in ("torch.nn", "rnnkit"))
    assert len(ours) == int(options.split()[1])
    assert len(set(ours)) == len(ours)
    assert_close("losses", ours, theirs, dtype, "backward")
    assert all(len(times[layers]) == len(ours) for times in (found.wall, found.cpu) for layers in found.losses)
    assert found.figure is not None
    assert found.figure.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert f"torch.nn's time over rnnkit's: {found.ratio[1]:.2f}" in printed
    assert f"differ by at most {found.difference:.1e}" in printed


@pytest.mark.parametrize("layers", ["torch.nn", "rnnkit"])
def test_one_of_them_alone(layers: str, tmp_path: Path) -> None:
    options = ("--steps", "4", "--batch", "3", "--hidden", "8", "--dtype", "float64")
    both = run("torch_characters", tmp_path, *options)
    alone = run("torch_characters", tmp_path, *options, "--layers", layers)
    assert alone.losses == {layers: both.losses[layers]}


def test_generators_of_two_programs_do_not_meet() -> None:
    """Each sees the numbers that it would see alone, and the global ones are as before."""
    first, second = _torch_common.Generators(1), _torch_common.Generators(1)
    outside = torch.get_rng_state()
    drawn: dict[Any, list[Any]] = {first: [], second: []}
    for program in (first, first, second, first, second, second):
        with program():
            drawn[program].append((float(torch.rand(())), np.random.random()))  # noqa: NPY002
    assert drawn[first] == drawn[second]
    assert len(set(drawn[first])) == 3
    assert torch.equal(outside, torch.get_rng_state())


def test_bad_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("torch_tagger", tmp_path, "--steps", "3", "--warmup", "3")
    assert "--warmup must be at least 0 and below --steps 3, got 3" in capsys.readouterr().err


def test_the_benchmark_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("--steps", "4", "--batch", "3", "--hidden", "8")
    entry = torch_programs.measure("torch_characters", small, tmp_path)
    assert entry["status"] == "ok"
    assert entry["ratio"]["p25"] <= entry["ratio"]["median"] <= entry["ratio"]["p75"]
    assert entry["ms"]["rnnkit"]["count"] == entry["ms"]["torch.nn"]["count"] == 1
    assert entry["losses"]["difference"] < 1e-5
    wrong = {"program": "torch_tagger", "status": "wrong", "why": "the losses differ"}
    monkeypatch.setattr(torch_programs, "measure_all", lambda programs, extra, figures: [entry, wrong])
    monkeypatch.setattr(torch_programs, "PACKAGES", ("torch", "numpy"))
    assert torch_programs.main(["--out", str(tmp_path)]) == 1
    (path,) = tmp_path.glob("*/torch_programs.json")
    saved = json.loads(path.read_text())
    assert saved["results"] == [entry, wrong]
    assert saved["versions"]["torch"] == importlib.metadata.version("torch")


def test_a_program_with_other_losses_has_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _torch_common.Comparison("torch_tagger", "lines", 3, 0)
    found.losses = {"torch.nn": [1.0, 0.5], "rnnkit": [1.0, 0.501]}
    module = importlib.import_module("rnnkit.examples.torch_tagger")
    monkeypatch.setattr(module, "main", lambda argv: found)
    entry = torch_programs.measure("torch_tagger", (), tmp_path)
    assert entry["status"] == "wrong"
    assert "ms" not in entry
