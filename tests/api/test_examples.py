"""The example programs run by their commands, on every CPU backend, and reproduce the published numbers."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

import rnnkit
from rnnkit.examples import _common, char_rnn, keras_notebook, next_word
from rnnkit.testing import assert_close
from tests.cuda.standin import stand_in
from tests.helpers import ONE_BACKEND, slow_except

PROGRAMS = ("deep_classifier", "keras_notebook", "next_word", "char_rnn", "units_primer", "recurrent_policy")
ROOT = Path(__file__).parents[2]

# Options with enough training to reach what the program promises.
LEARNS = {
    "deep_classifier": ("--epochs", "15"),
    "keras_notebook": ("--steps", "400"),
    "next_word": (),
    "char_rnn": ("--steps", "300", "--hidden", "64", "--length", "40"),
    "units_primer": ("--steps", "300"),
    "recurrent_policy": (
        *("--updates", "60", "--longest", "6", "--rollout", "32"),
        *("--hidden", "16", "--learning-rate", "0.03"),
    ),
}
# Options with just enough training to compare numbers.
BRIEF = {
    "deep_classifier": ("--epochs", "1"),
    "keras_notebook": ("--steps", "5"),
    "next_word": ("--epochs", "40"),
    "char_rnn": ("--steps", "8", "--hidden", "32", "--batch", "4", "--length", "10"),
    "units_primer": ("--steps", "20"),
    "recurrent_policy": ("--updates", "3", "--corridors", "8", "--rollout", "16", "--hidden", "16"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """run(program, backend, *options) -> the result of its main, cached."""

    @cache
    def once(program: str, backend: str, *options: str) -> Any:
        module = importlib.import_module(f"rnnkit.examples.{program}")
        return module.main(["--backend", backend, "--out", str(tmp_path_factory.mktemp(program)), *options])

    return once


def all_losses(result: Any) -> np.ndarray:
    """All losses of a result in one array, whatever their field names."""
    losses = result.losses
    return np.array(losses if isinstance(losses, list) else [loss for one in losses.values() for loss in one])


# P1: the deep classifier


@pytest.mark.slow
@ONE_BACKEND
def test_deep_classifier_tells_sequences_apart(run: Any, cpu_backend: str) -> None:
    found = run("deep_classifier", cpu_backend, *LEARNS["deep_classifier"])
    assert found.accuracy["toy"] == 1
    assert found.accuracy["even or odd"] > 0.9
    assert found.accuracy["bilstm"] > 0.95
    assert [len(losses) for losses in found.losses.values()] == [20, 15, 15]
    assert all(losses[-1] < losses[0] / 5 for losses in found.losses.values())


@pytest.mark.slow
@ONE_BACKEND
def test_deep_classifier_by_cross_entropy(run: Any, cpu_backend: str) -> None:
    found = run("deep_classifier", cpu_backend, "--model", "deep", "--loss", "bce", "--seed", "1")
    assert found.accuracy["even or odd"] > 0.9
    assert found.losses["even or odd"][0] == pytest.approx(math.log(2), rel=0.3)


def test_deep_classifier_prints_every_epoch(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["--backend", "numpy", "--model", "toy", "--learning-rate", "0.25", "--out", str(tmp_path)]
    found = importlib.import_module("rnnkit.examples.deep_classifier").main(argv)
    printed = capsys.readouterr().out
    for epoch, loss in enumerate(found.losses["toy"], 1):
        assert f"toy, epoch {epoch:3d}: loss {loss:.4f}" in printed


# P2: the Keras notebook


@ONE_BACKEND
def test_keras_notebook_counts(run: Any, cpu_backend: str) -> None:
    found = run("keras_notebook", cpu_backend, *LEARNS["keras_notebook"]).counts
    assert list(found.values()) == [42, 27, 21, 48, 500_000, 29_312, 129, 529_441, 2_080]


@ONE_BACKEND
def test_keras_notebook_shapes(run: Any, cpu_backend: str) -> None:
    shapes = run("keras_notebook", cpu_backend, *LEARNS["keras_notebook"]).shapes
    assert shapes.pop("10 steps") == (10, 8)
    assert len(shapes) == 7
    for name, shape in shapes.items():
        assert shape == ((1, 4, 3) if "return_sequences" in name else (1, 3)), name


@ONE_BACKEND
def test_keras_notebook_golden_lstm(run: Any, cpu_backend: str) -> None:
    found = run("keras_notebook", cpu_backend, *LEARNS["keras_notebook"])
    forward = [0.35906473, 0.55111325, 0.59115744, 0.6303138]
    reverse = [0.7038734, 0.58863586, 0.3951699, 0.21942244]
    sequence = np.repeat(np.array([forward, reverse]).T, 3, axis=1)
    np.testing.assert_allclose(found.golden_sequence, sequence, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.golden_last, [0.6303138] * 3 + [0.7038734] * 3, rtol=0, atol=1e-6)


@ONE_BACKEND
def test_keras_notebook_learns_the_order_of_words(run: Any, cpu_backend: str) -> None:
    assert run("keras_notebook", cpu_backend, *LEARNS["keras_notebook"]).accuracy > 0.65


def test_a_number_that_differs_from_the_published_one_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(keras_notebook, "GOLDEN_FORWARD", [0.35906473, 0.55111325, 0.59115744, 0.6303158])
    with pytest.raises(AssertionError, match="not as published: forward, step 3"):
        keras_notebook.main(["--backend", "numpy", "--steps", "1", "--out", str(tmp_path)])


# P3: the next word


@ONE_BACKEND
def test_next_word_predicts_all_six(run: Any, cpu_backend: str) -> None:
    found = run("next_word", cpu_backend)
    wanted = ["dog", "coffee", "milk", "cat", "milk", "coffee"]
    assert found.predictions == {"TextRNN": wanted, "TextLSTM": wanted}
    for name, (_, published) in next_word.PUBLISHED.items():
        losses = found.losses[name]
        assert len(losses) == 500
        assert losses[0] == pytest.approx(math.log(9), rel=0.3)
        assert (np.diff(losses[99::100]) < 0).all()
        assert published / 5 < losses[-1] < published * 5


@ONE_BACKEND
def test_next_word_shapes(run: Any, cpu_backend: str) -> None:
    shapes = run("next_word", cpu_backend).shapes
    assert len(shapes) == 10
    for name, found in shapes.items():
        slots = (2 if "num_layers=2" in name else 1) * (2 if "bidirectional" in name else 1)
        first = (3, 5) if "batch_first" in name else (5, 3)
        states = ("h_0", "h_n") + (("c_0", "c_n") if "LSTM" in name else ())
        width = 12 if "bidirectional" in name else 6
        assert found == {"input": (*first, 4), "output": (*first, width)} | dict.fromkeys(states, (slots, 3, 6))


def test_next_word_prints_the_cost_each_100_epochs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = next_word.main(["--backend", "numpy", "--epochs", "200", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for losses in found.losses.values():
        for epoch in (100, 200):
            assert f"epoch {epoch:4d}  cost = {losses[epoch - 1]:.6f}" in printed
    assert printed.count("cost = ") == 4


# P4: the character RNN


@ONE_BACKEND
def test_char_rnn_learns_more_than_frequencies(run: Any, cpu_backend: str) -> None:
    found = run("char_rnn", cpu_backend, *LEARNS["char_rnn"])
    text = _common.python_documentation()
    entropy = -sum(n / len(text) * math.log(n / len(text)) for n in Counter(text).values())
    assert found.unigram_entropy == pytest.approx(entropy, rel=1e-12)
    assert found.smoothed < entropy - 0.5
    assert found.below == pytest.approx(entropy - np.mean(found.losses[-100:]))
    assert len(found.sample) == len("The ") + 40
    assert set(found.sample) <= set(text)


@pytest.mark.slow
@ONE_BACKEND
@pytest.mark.parametrize("options", [("--cell", "gru"), ("--cell", "lstm"), ("--cell", "lstm", "--layers", "2")])
def test_char_rnn_cells(run: Any, cpu_backend: str, options: tuple[str, ...]) -> None:
    found = run("char_rnn", cpu_backend, *BRIEF["char_rnn"], *options, "--steps", "30")
    assert found.losses[-1] < found.losses[0]


@ONE_BACKEND
def test_char_rnn_shapes(run: Any, cpu_backend: str) -> None:
    assert run("char_rnn", cpu_backend, *LEARNS["char_rnn"]).shapes == {
        "one to one": ((2, 5), (2, 5)),
        "one to many": ((2, 5), (4, 2, 5)),
        "many to one": ((4, 2, 5), (2, 5)),
        "many to many": ((4, 2, 5), (3, 2, 5)),
        "many to many, synced": ((4, 2, 5), (4, 2, 5)),
    }


def char_layers(backend: str, tmp_path: Path, cell: str) -> char_rnn.CharRNN:
    argv = ["--backend", backend, "--cell", cell, "--layers", "2", "--hidden", "6", "--out", str(tmp_path)]
    return char_rnn.CharRNN(5, _common.start(char_rnn.options(), argv))


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_char_rnn_carries_its_state(cpu_backend: str, tmp_path: Path, rng: np.random.Generator, cell: str) -> None:
    model = char_layers(cpu_backend, tmp_path, cell)
    x = rng.standard_normal((7, 3, 5)).astype(np.float32)
    whole = model(x)
    model.set_states([None, None])
    in_chunks = np.concatenate([model(x[:3]), model(x[3:4]), model(x[4:])])
    model.set_states([None, None])
    by_steps = np.stack([model.step(x_t) for x_t in x])
    assert_close("chunks", in_chunks, whole, "float32")
    assert_close("steps", by_steps, whole, "float32")


def test_char_rnn_clips_to_five_before_each_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    largest: list[tuple[float, float]] = []

    def clip(model: rnnkit.Module, value: float) -> None:
        before = max(float(abs(g).max()) for g in model.grads.values())
        original(model, value)
        largest.append((before, max(float(abs(g).max()) for g in model.grads.values())))

    original = rnnkit.clip_grad_value
    monkeypatch.setattr(rnnkit, "clip_grad_value", clip)
    char_rnn.main(["--backend", "numpy", *BRIEF["char_rnn"], "--out", str(tmp_path)])
    assert len(largest) == 8
    assert all(after == min(before, 5) for before, after in largest)


# P5: the units primer


@ONE_BACKEND
def test_units_primer_shapes(run: Any, cpu_backend: str) -> None:
    assert run("units_primer", cpu_backend, *LEARNS["units_primer"]).shapes == {
        "W": (64, 32),
        "U": (64, 64),
        "b": (64,),
        "outputs": (100, 64),
        "Embedding": (4, 20, 32),
        "SimpleRNN(32), return_sequences": (4, 20, 32),
        "SimpleRNN(32)": (4, 32),
        "SimpleRNN(32) -> Dense(1, sigmoid)": (4, 1),
    }


@ONE_BACKEND
def test_units_primer_learns_the_direction(run: Any, cpu_backend: str) -> None:
    assert run("units_primer", cpu_backend, *LEARNS["units_primer"]).accuracy > 0.8


def test_units_primer_prints_its_glossary(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    importlib.import_module("rnnkit.examples.units_primer").main(
        ["--backend", "numpy", "--steps", "1", "--out", str(tmp_path)]
    )
    printed = capsys.readouterr().out
    for word in ("cell", "units", "state", "output"):
        assert f"\n  {word} " in printed


# The recurrent policy


@ONE_BACKEND
def test_recurrent_policy_remembers_the_cue(run: Any, cpu_backend: str) -> None:
    found = run("recurrent_policy", cpu_backend, *LEARNS["recurrent_policy"])
    assert np.mean(found.right[:5]) < 0.65
    assert np.mean(found.right[-10:]) > 0.95
    assert found.difference < 1e-5
    assert found.frames_per_second["rnnkit.GRU, resets="] > 0


def test_recurrent_policy_single_steps_are_the_whole_sequence(cpu_backend: str, tmp_path: Path) -> None:
    """Also over the end of one update and the beginning of the next, with the state carried."""
    module = importlib.import_module("rnnkit.examples.recurrent_policy")
    options = module.common.parser(None, "recurrent_policy")
    options.add_argument("--hidden", type=int, default=8)
    options.add_argument("--learning-rate", type=float, default=0.01)
    run = module.common.start(options, ["--backend", cpu_backend, "--out", str(tmp_path)])
    policy = module.Policy(run)
    corridors = module.Corridors(6, 9, run.rng)
    first, h = module.acted(policy, corridors, None, 12)
    second, _ = module.acted(policy, corridors, h, 12)
    begins = np.concatenate([first.begins, second.begins])
    assert begins[1:].any(axis=1).sum() > 5
    y, _ = policy.gru(np.concatenate([first.seen, second.seen]), None, resets=begins)
    assert_close("hidden", y, np.concatenate([first.hidden, second.hidden]), "float32")


def test_corridors_begin_with_a_cue_and_reward_its_side() -> None:
    module = importlib.import_module("rnnkit.examples.recurrent_policy")
    corridors = module.Corridors(50, 7, np.random.default_rng(0))
    ages = np.zeros(50, int)
    cues = np.zeros(50, int)
    for _ in range(60):
        seen = corridors.observe()
        ages = np.where(corridors.begins, 1, ages + 1)
        cues = np.where(corridors.begins, seen[:, :2].argmax(1), cues)
        np.testing.assert_array_equal(seen[:, :2].sum(1), corridors.begins)
        ends = seen[:, 3] == 1
        assert ((ages[ends] >= 5) & (ages[ends] <= 7)).all()
        actions = np.arange(50) % 2
        np.testing.assert_array_equal(corridors.step(actions), ends & (actions == cues))
        np.testing.assert_array_equal(corridors.begins, ends)


# All programs


@ONE_BACKEND
@pytest.mark.parametrize("program", slow_except(PROGRAMS, "next_word", "char_rnn", "recurrent_policy"))
def test_figures_show_a_curve(run: Any, cpu_backend: str, program: str) -> None:
    figures = run(program, cpu_backend, *LEARNS[program]).figures
    assert len(figures) == (3 if program == "deep_classifier" else 1)
    for path in figures:
        pixels = image.imread(path)[..., :3]
        blue = np.all(np.abs(pixels - (0x1F / 255, 0x77 / 255, 0xB4 / 255)) < 0.02, axis=2)  # the first curve's colour
        rows, columns = np.nonzero(blue)
        assert np.ptp(rows) > pixels.shape[0] / 2, "the curve falls over half of the figure"
        assert np.ptp(columns) > pixels.shape[1] / 2


@ONE_BACKEND
@pytest.mark.parametrize("program", slow_except(PROGRAMS, "next_word", "char_rnn", "recurrent_policy"))
def test_a_seed_decides_everything(monkeypatch: pytest.MonkeyPatch, run: Any, cpu_backend: str, program: str) -> None:
    monkeypatch.setattr(_common, "loss_curve", lambda path, *_, **__: path)  # plotting takes most of the time
    options = (*BRIEF[program], "--seed", "3")
    found, again = run(program, cpu_backend, *options), run(program, cpu_backend, *options, "--seed", "3")
    other = run(program, cpu_backend, *BRIEF[program], "--seed", "4")
    np.testing.assert_array_equal(all_losses(found), all_losses(again))
    assert not np.array_equal(all_losses(found), all_losses(other))
    assert_close("losses", all_losses(found), all_losses(run(program, "numpy", *options)), "float32", "backward")


@pytest.mark.parametrize("program", slow_except(PROGRAMS, "next_word", "char_rnn"))
@pytest.mark.parametrize(
    "named", [*slow_except([("--backend", "cupy")]), ("--backend", "numba_cuda", "--device", "cuda:1")]
)
def test_programs_run_on_a_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Any, program: str, named: tuple[str, ...]
) -> None:
    """On the stand-in for CuPy: a program computes all its results, and the losses equal the CPU's."""
    monkeypatch.setattr(_common, "loss_curve", lambda path, *_, **__: path)
    argv = [*named, "--out", str(tmp_path), *BRIEF[program], "--seed", "3"]
    with stand_in(devices=2, names=("cupy", "numba_cuda")) as cp:
        before = cp.fake.live_blocks(0)
        found = importlib.import_module(f"rnnkit.examples.{program}").main(argv)
        if "cuda:1" in named:
            assert cp.fake.live_blocks(0) == before
            assert cp.cuda.Device().id == 1
    wanted = run(program, "numpy", *BRIEF[program], "--seed", "3")
    assert_close("losses", all_losses(found), all_losses(wanted), "float32", "backward")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("options", [("--backend", "cupy"), ("--backend", "numba_cuda"), ("--device", "cuda")])
def test_without_a_gpu_programs_print_one_error_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, program: str, options: tuple[str, str]
) -> None:
    monkeypatch.setattr("rnnkit.core.devices.cuda_problem", lambda: "CuPy finds no CUDA device")
    for name in ("cupy", "numba_cuda"):
        row = dataclasses.replace(_common.BACKENDS[name], problem=lambda: "CuPy finds no CUDA device")
        monkeypatch.setitem(_common.BACKENDS, name, row)
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"rnnkit.examples.{program}").main(list(options))
    assert end.value.code == 2
    message = {"--backend": f"backend {options[1]!r} cannot run here", "--device": "device 'cuda' cannot be used"}[
        options[0]
    ]
    wanted = f"python -m rnnkit.examples.{program}: {message}: CuPy finds no CUDA device\n"
    assert capsys.readouterr().err == wanted


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "gpu"), "device must be None, 'cpu', 'cuda' or 'cuda:<index>', got 'gpu'"),
        (("--backend", "torch"), "backend must be None or one of 'numba', 'numpy', 'cupy', 'numba_cuda', got 'torch'"),
        (("--seed", "-1"), "--seed must be a whole number of at least 0, got -1"),
        (("--seed", "x"), "argument --seed: invalid int value: 'x'"),
        (("--out", __file__), "--out must be a folder"),
    ],
)
def test_bad_options_end_with_one_message(
    capsys: pytest.CaptureFixture[str], program: str, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"rnnkit.examples.{program}").main(list(options))
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        ("char_rnn", ("--chunk", "0"), "--chunk: must be a positive whole number, got '0'"),
        ("char_rnn", ("--temperature", "0"), "--temperature: must be a number above 0, got '0'"),
        ("deep_classifier", ("--learning-rate", "nan"), "--learning-rate: must be a number above 0, got 'nan'"),
        ("deep_classifier", ("--loss", "mae"), "--loss: invalid choice: 'mae'"),
        ("next_word", ("--epochs", "1.5"), "--epochs: must be a positive whole number, got '1.5'"),
    ],
)
def test_bad_numbers(capsys: pytest.CaptureFixture[str], program: str, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(f"rnnkit.examples.{program}").main(list(options))
    assert message in capsys.readouterr().err


def test_streams_shorter_than_a_chunk(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--batch 100000 makes streams of \d characters: too short for --chunk"):
        char_rnn.main(["--backend", "numpy", "--batch", "100000", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("program", "module", "name"),
    [(program, module, module) for program in PROGRAMS for module in ("tqdm", "matplotlib")]
    + [("deep_classifier", "sklearn", "scikit-learn")],
)
def test_missing_extras_are_named(
    monkeypatch: pytest.MonkeyPatch, program: str, module: str, name: str, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"rnnkit.examples.{program}").main(["--backend", "numpy", "--out", f"{tmp_path}/out"])
    assert end.value.code == f"this program needs {name}: pip install 'rnnkit[examples]'"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", PROGRAMS)
def test_only_digits_need_scikit_learn(monkeypatch: pytest.MonkeyPatch, program: str, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr(_common, "loss_curve", lambda path, *_, **__: path)
    options = ("--model", "toy") if program == "deep_classifier" else BRIEF[program]
    found = importlib.import_module(f"rnnkit.examples.{program}").main(
        ["--backend", "numpy", "--out", str(tmp_path), *options]
    )
    assert len(all_losses(found)) > 0


def test_each_program_runs_by_its_command(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for program in PROGRAMS:
        command = [sys.executable, "-m", f"rnnkit.examples.{program}", "--help"]
        shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        for option in ("--backend", "--device", "--seed", "--out"):
            assert option in shown.stdout


def test_a_backend_that_does_not_run_on_the_device_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    with stand_in(), pytest.raises(SystemExit) as end:
        next_word.main(["--backend", "numpy", "--device", "cuda"])
    assert end.value.code == 2
    assert "--backend numpy takes numpy arrays, which are not on --device cuda" in capsys.readouterr().err
