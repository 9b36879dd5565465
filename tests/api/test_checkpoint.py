"""Training that continues from a checkpoint has the bits of training without an interruption."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import rnnkit
from rnnkit.io import files as io
from tests.helpers import assert_same, refused, slow_except

KINDS: dict[str, Any] = {
    "sgd": lambda model: rnnkit.SGD(model, 0.05),
    "momentum": lambda model: rnnkit.SGD(model, 0.05, 0.9),
    "adagrad": lambda model: rnnkit.Adagrad(model, 0.05),
    "adam": lambda model: rnnkit.Adam(model, 0.01, (0.8, 0.99), 1e-7),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


class Run:
    """A training run with dropout, gradient clipping, a decreasing learning rate and randomly drawn batches."""

    def __init__(self, kind: str, dtype: str, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.model = rnnkit.Sequential(
            rnnkit.Embedding(7, 4, dtype=dtype, rng=rng),
            rnnkit.LastState(rnnkit.LSTM(4, 5, 3, dropout=0.4, dtype=dtype, backend="numpy", rng=rng)),
            rnnkit.Linear(5, 3, dtype=dtype, rng=rng),
        )
        self.optimizer = KINDS[kind](self.model)
        self.loss_fn, self.loader, self.step, self.best = rnnkit.CrossEntropyLoss(), np.random.default_rng(9), 0, 9.0

    def gradients(self) -> None:
        x = self.loader.integers(0, 7, (6, 4))
        self.optimizer.zero_grad()
        self.best = min(self.best, self.loss_fn(self.model(x), x.sum(0) % 3))
        self.model.backward(self.loss_fn.backward())
        rnnkit.clip_grad_norm(self.model, 1.0)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.gradients()
            self.optimizer.step()
            self.optimizer.lr *= 0.95
            self.step += 1

    def save(self, path: Any) -> None:
        scalars = {"best": self.best}
        rnnkit.save(self.model, path, optimizer=self.optimizer, rng=self.loader, step=self.step, scalars=scalars)

    def resume(self, path: Any) -> None:
        checkpoint = rnnkit.load(path)
        assert isinstance(checkpoint, rnnkit.Checkpoint)
        checkpoint.restore(self.model, self.optimizer, self.loader)
        assert checkpoint.step is not None
        self.step, self.best = checkpoint.step, checkpoint.scalars["best"]

    def everything(self) -> dict[str, Any]:
        """The complete state of the run."""
        state = self.optimizer.state_dict()
        found: dict[str, Any] = dict(self.model.state_dict())
        found |= {f"{i}.{slot}": value for i, entry in state["state"].items() for slot, value in entry.items()}
        layer: Any = self.model[1]
        found["rest"] = str((state["param_groups"], self.step, self.best))
        found["generators"] = str((layer.layer.rng.bit_generator.state, self.loader.bit_generator.state))
        return found


# Resuming


@EVERY_KIND
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_training_continues_bit_for_bit(kind: str, dtype: str, tmp_path: Path) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    whole, first = Run(kind, dtype), Run(kind, dtype)
    whole.train(7)
    first.train(3)
    first.save(tmp_path / "c")
    other = Run(kind, dtype, seed=1)
    other.train(2)
    other.resume(tmp_path / "c")
    assert_same(other.everything(), first.everything())
    other.train(4)
    assert_same(other.everything(), whole.everything())


SCRIPT = """
import hashlib, os, signal, sys
from pathlib import Path
from tests.api.test_checkpoint import Run

what, kind, dtype, path = sys.argv[1:]
run = Run(kind, dtype, seed=0 if what != "resumed" else 5)
if what == "whole":
    run.train(6)
elif what == "killed":
    for _ in range(3):
        run.train(1)
        run.save(path)
    run.gradients()
    os.kill(os.getpid(), signal.SIGKILL)
else:
    run.resume(path)
    run.train(6 - run.step)
total = hashlib.sha256()
for name, value in run.everything().items():
    total.update(name.encode())
    total.update(value.tobytes() if hasattr(value, "tobytes") else str(value).encode())
print(total.hexdigest())
"""


KILLED = slow_except([("adam", "float16"), ("adam", "float32")], ("adam", "float16"), unpack=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize(("kind", "dtype"), KILLED)
def test_killed_training_continues_in_another_process(kind: str, dtype: str, tmp_path: Path) -> None:
    def process(what: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SCRIPT, what, kind, dtype, str(tmp_path / "c")]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])

    whole, killed = process("whole"), process("killed")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = process("resumed")
    assert whole.returncode == resumed.returncode == 0, whole.stderr + resumed.stderr
    assert resumed.stdout == whole.stdout
    assert len(whole.stdout.strip()) == 64


# Contents of the file


def test_a_checkpoint_loads_as_a_weight_file(tmp_path: Path) -> None:
    run = Run("adam", "float32")
    run.train(2)
    scalars = {
        "best": float("nan"),
        "epoch": np.int32(3),
        "lr": np.float32(0.1),
        "note": "naïve",
        "none": None,
        "on": True,
    }
    rnnkit.save(run.model, tmp_path / "c", optimizer=run.optimizer, step=2, scalars=scalars)
    found = rnnkit.load(tmp_path / "c")
    assert_same(found, run.model.state_dict(), in_order=True)
    assert found.layers["1."]["cell"] == "lstm"
    assert found.step == 2
    assert str(found.scalars) == str({name: getattr(v, "item", lambda v=v: v)() for name, v in scalars.items()})
    want = run.optimizer.state_dict()
    assert found.optimizer["param_groups"][0].items() >= {"lr": run.optimizer.lr, "eps": 1e-7}.items()
    for index, entry in want["state"].items():
        assert_same(found.optimizer["state"][index], entry)
    other = Run("adam", "float32", seed=3)
    other.model.load_state_dict(found)
    assert_same(other.model.state_dict(), run.model.state_dict(), in_order=True)
    names = set(safetensors.numpy.load_file(tmp_path / "c"))
    assert {"0.weight", "optimizer.0.exp_avg", "optimizer.0.exp_avg_sq"} <= names
    rnnkit.save(run.model, tmp_path / "w")
    plain = rnnkit.load(tmp_path / "w")
    assert not isinstance(plain, rnnkit.Checkpoint)
    for twin in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        twin.restore(run.model, run.optimizer)


def test_several_modules_and_generators_by_name(tmp_path: Path) -> None:
    def make(seed: int) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        models = {"encoder": rnnkit.GRU(2, 3, backend="numpy", rng=seed), "decoder": rnnkit.GRUCell(3, 3, rng=seed)}
        generators = {"shuffle": np.random.default_rng(seed), "noise": np.random.Generator(np.random.MT19937(seed))}
        generators["augment"] = generators["noise"]
        return models, rnnkit.Adam(list(models.values())), generators

    models, optimizer, generators = make(1)
    for model in models.values():
        for grad in model.grads.values():
            grad[...] = 1
    optimizer.step()
    generators["noise"].random(5)
    rnnkit.save(models, tmp_path / "c", optimizer=optimizer, rng=generators)
    others = make(2)
    rnnkit.load(tmp_path / "c").restore(*others)
    for name, model in models.items():
        assert_same(others[0][name].state_dict(), model.state_dict(), in_order=True)
    assert others[1].t == 1
    for name, generator in generators.items():
        assert generator.random() == others[2][name].random(), name


def test_state_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    run = Run("adam", "float32")
    run.train(2)
    run.save(tmp_path / "c")
    checkpoint = rnnkit.load(tmp_path / "c")

    def separate() -> rnnkit.Sequential:
        model = Run("adam", "float32", 4).model
        model[1].layer.rng = np.random.default_rng(0)
        return model

    other = Run("adam", "float32", 4)
    other.train(1)
    before = other.everything()
    model, optimizer, loader = other.model, other.optimizer, other.loader
    half = Run("adam", "float16").model
    wrong_model = rnnkit.Sequential(*list(model)[:2], rnnkit.Linear(5, 4))
    for arguments, error, words in (
        ((model, None, loader), ValueError, ("optimizer must be what the checkpoint was saved with", "one, got none")),
        ((model, optimizer), ValueError, ("random generators", "also has ['rng']", "lacks none")),
        ((model, optimizer, {"a": loader}), ValueError, ("also has ['rng']", "lacks ['rng.a']")),
        ((model, optimizer, 7), TypeError, ("rng must be a numpy.random.Generator", "int")),
        (
            (model, optimizer, np.random.Generator(np.random.MT19937(0))),
            ValueError,
            ("rng must be a generator over PCG64, got MT19937",),
        ),
        ((model, optimizer, model[0].rng), ValueError, ("shared as in the checkpoint", "one generator")),
        ((separate(), optimizer, loader), ValueError, ("shared as in the checkpoint", "two generators")),
        ((model, rnnkit.SGD(model, 0.1), loader), KeyError, ("param_groups[0]", "momentum", "SGD")),
        ((model, rnnkit.Adam(model[1]), loader), ValueError, ("param_groups[0]['params'][12]", "nothing", "got 12")),
        ((model, run.optimizer, loader), ValueError, ("optimizer must update parameters of this model",)),
        ((wrong_model, optimizer, loader), ValueError, ("2.weight must have shape (4, 5)",)),
        (
            (half, rnnkit.Adam(half), loader),
            TypeError,
            ("0.weight must have the checkpoint's dtype float32", "float16"),
        ),
        ((model.state_dict(), optimizer, loader), TypeError, ("model must be a Module", "StateDict")),
    ):
        with refused(error, *words):
            checkpoint.restore(*arguments)
        assert_same(other.everything(), before)
    other.resume(tmp_path / "c")
    assert_same(other.everything(), run.everything())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"step": -1}, ValueError, "step must be at least 0, got -1"),
        ({"step": 1.0}, TypeError, "step must be a whole number, got 1.0"),
        ({"step": True}, TypeError, "step must be a whole number, got True"),
        ({"scalars": [1]}, TypeError, "scalars must be a mapping of names to numbers and strings, got list"),
        ({"scalars": {"a": np.ones(2)}}, TypeError, "scalars must map names to numbers, strings or None, got 'a'"),
        ({"scalars": {1: 2}}, TypeError, "scalars must map names to numbers, strings or None, got 1: 2"),
        ({"rng": 3}, TypeError, "rng must be a numpy.random.Generator"),
        ({"rng": {"a": None}}, TypeError, "'a': NoneType"),
        ({"optimizer": 3}, TypeError, "optimizer must be one of rnnkit's optimizers, got int"),
        (
            {"optimizer": rnnkit.SGD(rnnkit.Linear(2, 2), 0.1)},
            ValueError,
            "optimizer must update parameters of this model",
        ),
    ],
)
def test_unsupported_values_are_rejected_before_anything_is_written(
    given: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with refused(error, message):
        rnnkit.save(rnnkit.Linear(2, 2), tmp_path / "c", **given)
    with refused(TypeError, "model must be a Module or a mapping of names to Modules"):
        rnnkit.save({"a": np.ones(2)}, tmp_path / "c", step=1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_previous_checkpoint(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run("adam", "float32")
    run.train(1)
    run.save(tmp_path / "c")
    before = (tmp_path / "c").read_bytes()
    run.train(1)

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr(io.safetensors_format, "as_bytes", full)
        else:
            patch.setattr(os, moment, full)
        with pytest.raises(OSError, match="no space left"):
            run.save(tmp_path / "c")
    assert os.listdir(tmp_path) == ["c"]
    assert (tmp_path / "c").read_bytes() == before


def test_damaged_checkpoints_name_their_file(tmp_path: Path) -> None:
    run, path = Run("adam", "float32"), tmp_path / "checkpoint"
    run.train(1)
    run.save(path)
    whole = path.read_bytes()
    before = run.everything()
    lengths = [0, 4, 8, 100, len(whole) // 2, len(whole) - 1]
    damaged = [whole[:n] for n in lengths] + [
        whole + b"x",
        b"{}" * 40,
        whole.replace(b'\\"step\\": 1', b'\\"step\\": 2'),
    ]
    assert damaged[-1] != whole
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint' cannot be (read|loaded)"):
            rnnkit.load(path)
    assert_same(run.everything(), before)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        rnnkit.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("step"), "must hold optimizer, generators, step and scalars"),
        (lambda c: c.update(step="x"), "step must be a whole number, got 'x'"),
        (lambda c: c.update(step=-1), "step must be at least 0"),
        (lambda c: c.update(scalars={"a": []}), "scalars must map names"),
        (lambda c: c.update(optimizer=[]), "its optimizer must hold a state"),
        (lambda c: c.update(optimizer={"state": {"0": 1}, "param_groups": []}), "its optimizer must hold a state"),
        (lambda c: c.update(optimizer={"state": {"x": {}}, "param_groups": []}), "must number parameters, got 'x'"),
        (lambda c: c["optimizer"]["state"]["0"].update(exp_avg={"array": "y"}), "names the array 'y'"),
        (lambda c: c.update(generators=3), "its generators must be a list of states"),
        (lambda c: c["generators"]["of"].update(rng=7), "its generators must be a list of states"),
    ],
)
def test_a_crafted_checkpoint_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    run, path = Run("adam", "float32"), tmp_path / "c"
    run.train(1)
    run.save(path)
    with safetensors.safe_open(path, framework="np") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = json.loads(metadata["rnnkit.checkpoint"])
    change(found)
    metadata["rnnkit.checkpoint"] = json.dumps(found)
    metadata["rnnkit.sha256"] = io._digest(tensors, metadata)
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match="c' cannot be loaded: ") as caught:
        rnnkit.load(path)
    assert message in str(caught.value)
