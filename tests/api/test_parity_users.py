"""rnnkit.parity for users: check_layer, the pytest fixture, and the code of docs/parity.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit import backends
from rnnkit.backends import BACKENDS
from rnnkit.backends import numpy as oracle
from rnnkit.core.devices import to_numpy
from rnnkit.parity import Check, LayerCheck, Outcome, check_layer
from rnnkit.parity.__main__ import main
from rnnkit.testing import Case, Errors
from tests.api.planted import off, planted
from tests.cuda.cuda_helpers import cuda
from tests.helpers import LAYERS, assert_same, layer_after_a_call, random_state, record, refused
from tests.tools import emulator

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "parity.md"
CASE = Case("lstm", T=4, B=3, I=4, H=5)
NO_CUDA = not backends.available("cupy")


# Layers of users


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_with_every_feature(name: str, dtype: str, rng: Any) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    options = {"proj_size": 4} if name == "lstm" else {}
    backend = "numpy" if dtype == "bfloat16" else None
    layer = LAYERS[name](5, 7, 2, bidirectional=True, batch_first=True, dtype=dtype, backend=backend, rng=1, **options)
    x = rng.standard_normal((3, 6, 5)).astype(layer.dtype)
    outcome = check_layer(layer, x, random_state(layer, 3, rng), [6, 0, 4])
    assert outcome.ok, outcome.why
    assert 0 < outcome.rms <= outcome.worst <= 1
    assert outcome.check == LayerCheck(backend or "numba", dtype, repr(layer), "cpu", 6, 3, True)
    states = layer.cell.states
    want = {"y", "dx", *(f"{s}_n" for s in states), *(f"d{s}0" for s in states), *(f"d{p}" for p in layer.params)}
    assert set(outcome.arrays) == want


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lstm", {"layer_norm": "torch", "norm_eps": 1e-2}),
        ("lstm", {"peephole": True, "clip": 0.5, "cell_clip": 0.3}),
        ("lstm", {"activations": ("HardSigmoid", "Relu", "Tanh"), "coupled": True}),
        ("lstm", {"zoneout": (0.3, 0.2), "zoneout_output": "zoned"}),
        ("gru", {"layer_norm": "dreamer"}),
        ("gru", {"reset_after": False, "recurrent_dropout": 0.3, "mask_per_gate": True, "zoneout": 0.2}),
        ("rnn", {"nonlinearity": "relu", "clip": 0.5, "input_dropout": 0.2, "weight_dropout": 0.1}),
    ],
)
def test_the_oracle_has_the_options_of_a_layer(name: str, options: dict[str, Any], rng: Any) -> None:
    kind = {"lstm": rnnkit.LSTM, "gru": rnnkit.GRU, "rnn": rnnkit.RNN}[name]
    layer = kind(5, 7, backend="numpy", rng=1, **options).eval()
    x = rng.standard_normal((6, 3, 5), dtype=np.float32)
    outcome = check_layer(layer, x, random_state(layer, 3, rng), [6, 0, 4])
    assert outcome.ok, outcome.why
    assert outcome.rms > 0


def test_an_unbatched_and_a_frozen_layer() -> None:
    layer = rnnkit.GRU(5, 7, rng=1).freeze()
    x = np.random.default_rng(0).standard_normal((6, 5), dtype=np.float32)
    assert check_layer(layer, x, lengths=4).ok
    assert layer.frozen
    assert check_layer(layer, x, backend="numpy").check.backend == "numpy"
    assert layer.backend is None


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_is_not_changed(name: str) -> None:
    layer = layer_after_a_call(name).eval()
    before, held = record(layer), {k: id(v) for k, v in layer.params.items()}
    x = np.random.default_rng(3).standard_normal((6, 2, 5), dtype=np.float32)
    given = x.copy()
    assert check_layer(layer, x, lengths=[3, 6]).ok
    assert_same(record(layer), before)
    assert {k: id(v) for k, v in layer.params.items()} == held
    np.testing.assert_array_equal(x, given)


def test_the_copy_has_nan_in_the_padding_and_is_frozen_like_the_layer() -> None:
    seen = []

    def forward(call: Any) -> Any:
        seen.append((np.isnan(call.x).any(axis=2), call.weights.w_hh.flags.writeable))
        return oracle.forward(call)

    layer = rnnkit.GRU(5, 6, rng=0)
    with planted(lambda found: None):
        row = BACKENDS["planted"].load()
        watched = types.SimpleNamespace(forward=forward, backward=row.backward, describe=row.describe)
        with mock.patch.object(type(BACKENDS["planted"]), "load", return_value=watched):
            for writeable in (True, False):
                backends.select.cache_clear()
                assert check_layer(layer, np.ones((3, 2, 5), np.float32), lengths=[1, 3], backend="planted").ok
                for padding, found in seen:
                    np.testing.assert_array_equal(padding, [[False, False], [True, False], [True, False]])
                    assert found is writeable
                assert len(seen) == 2
                seen.clear()
                layer.freeze()


def test_the_seed_determines_the_gradients() -> None:
    layer, x = rnnkit.GRU(5, 6, backend="numpy", rng=0), np.ones((3, 2, 5), np.float32)
    first, same, other = (check_layer(layer, x, seed=seed).arrays for seed in (1, 1, 2))
    assert first == same
    assert first["y"] == other["y"]
    assert first["dx"] != other["dx"]


def test_an_error_in_one_weight_of_one_layer_is_found() -> None:
    """The backend adds 0.01 to one recurrent weight of the second layer."""
    true_forward = oracle.forward

    def forward(call: Any) -> Any:
        if call.weights.w_ih.shape[1] == 8:
            call = call._replace(weights=call.weights._replace(w_hh=call.weights.w_hh.copy()))
            call.weights.w_hh[3, 2] += 0.01
        return true_forward(call)

    layer = rnnkit.LSTM(5, 8, 2, rng=1)
    x = np.random.default_rng(3).standard_normal((6, 2, 5), dtype=np.float32)
    with planted(lambda found: None):
        row = BACKENDS["planted"].load()
        assert check_layer(layer, x, backend="planted").ok
        faulty = types.SimpleNamespace(forward=forward, backward=row.backward, describe=row.describe)
        backends.select.cache_clear()
        with mock.patch.object(type(BACKENDS["planted"]), "load", return_value=faulty):
            outcome = check_layer(layer, x, backend="planted")
    assert outcome.status == "wrong"
    assert outcome.arrays["y"].worst > 1
    assert "NumPy" not in outcome.why


def test_a_layer_that_amplifies_rounding_is_explained() -> None:
    layer = rnnkit.RNN(5, 60, rng=0)
    layer.params["weight_hh_l0"] *= 5
    x = np.random.default_rng(0).standard_normal((100, 2, 5), dtype=np.float32)
    outcome = check_layer(layer, x)
    assert outcome.status == "wrong"
    assert "the NumPy backend in float32 is at" in outcome.why


@pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))
def test_a_layer_on_a_device_and_one_that_is_moved_there(rnnkit_parity: Any) -> None:
    x = np.random.default_rng(0).standard_normal((4, 2, 5), dtype=np.float32)
    host = rnnkit.GRU(5, 6, rng=0)
    with cuda() as cp:
        layer = rnnkit.LSTM(5, 6, 2, bidirectional=True, device="cuda:1", rng=0)
        with cp.cuda.Device(1):
            there = cp.asarray(x)
        before = {name: to_numpy(p).tobytes() for name, p in layer.params.items()}
        outcome = check_layer(layer, there, lengths=[4, 2])
        assert {name: to_numpy(p).tobytes() for name, p in layer.params.items()} == before
        named = rnnkit_parity(layer, there, backend="cupy:stepwise")
        moved = check_layer(host, x, device="cuda:1", backend="cupy:stepwise")
    assert outcome.ok, outcome.why
    assert (outcome.check.device, outcome.check.backend) == ("cuda:1", "cupy")
    assert (named.check.device, named.check.backend) == ("cuda:1", "cupy:stepwise")
    assert moved.ok, moved.why
    assert (moved.check.device, moved.check.backend) == ("cuda:1", "cupy:stepwise")
    assert (host.device, host.backend) == ("cpu", None)


def test_bad_arguments_of_check_layer(rng: Any) -> None:
    x = np.zeros((4, 2, 5), np.float32)
    gru = rnnkit.GRU(5, 6, backend="numpy", rng=0)
    for error, words, arguments in (
        (TypeError, ["layer", "RNN, GRU, LSTM or SLSTM", "Linear"], (rnnkit.Linear(5, 6), x)),
        (ValueError, ["layer", "dropout", "eval", "0.5"], (rnnkit.GRU(5, 6, 2, dropout=0.5, rng=0), x)),
        (ValueError, ["layer", "zoneout=0.5", "eval"], (rnnkit.GRU(5, 6, zoneout=0.5, backend="numpy"), x)),
        (ValueError, ["layer", "weight_dropout=0.5"], (rnnkit.GRU(5, 6, weight_dropout=0.5, backend="numpy"), x)),
        (TypeError, ["x", "float32", "float64"], (gru, x.astype(np.float64))),
        (ValueError, ["x", "input_size=5"], (gru, x[:, :, :4])),
        (ValueError, ["h0", "(1, 2, 6)"], (gru, x, np.zeros((1, 2, 5), np.float32))),
        (ValueError, ["lengths", "T = 4"], (gru, x, None, [5, 1])),
        (ValueError, ["x", "finite"], (gru, np.full_like(x, np.nan))),
    ):
        with refused(error, *words):
            check_layer(*arguments)
    with refused(ValueError, "seed", "-1"):
        check_layer(gru, x, seed=-1)
    with rnnkit.no_grad(), refused(RuntimeError, "no_grad"):
        check_layer(gru, x)
    padded = rng.standard_normal(x.shape).astype(np.float32)
    padded[2:, 1] = np.nan
    assert check_layer(gru, padded, lengths=[4, 2]).ok
    gru.params["bias_hh_l0"][2] = np.inf
    with refused(ValueError, "bias_hh_l0", "finite"):
        check_layer(gru, x)


# The fixture


pytest_plugins = ["rnnkit.parity.pytest_plugin"]


def test_the_fixture_passes(rnnkit_parity: Any) -> None:
    x = np.random.default_rng(0).standard_normal((6, 2, 5), dtype=np.float32)
    assert rnnkit_parity(rnnkit.GRU(5, 7, rng=0), x, lengths=[6, 1]).ok
    outcome = rnnkit_parity(cell="lstm", backend="numpy", dtype="float16", T=5, H=9, P=4, ragged=True)
    assert str(outcome.check) == "numpy float16 lstm-T5-B8-I32-H9-P4-ragged cpu"
    assert rnnkit_parity(cell="gru", T=3, B=2, I=3, H=4).check.backend == "numba"


def test_a_failure_of_the_fixture_lists_the_arrays_worst_first(rnnkit_parity: Any) -> None:
    with planted(off("dw_hh")):
        with pytest.raises(AssertionError) as caught:
            rnnkit_parity(cell="gru", backend="planted", T=3, B=2, I=3, H=4)
        lines = str(caught.value).splitlines()
        assert lines[0].startswith("planted float32 gru-T3-B2-I3-H4 cpu is wrong: over the bound: dw_hh at ")
        assert re.fullmatch(r"dw_hh +[\d.e+]+ +[\d.e+]+ +over the bound", lines[3])
        x = np.zeros((6, 2, 5), np.float32)
        with pytest.raises(AssertionError, match=r"dweight_hh_l0 at .* times it"):
            rnnkit_parity(rnnkit.GRU(5, 7, rng=0), x, backend="planted")


@pytest.mark.skipif(not NO_CUDA, reason="there is a CUDA device here")
def test_the_fixture_skips_or_fails_without_a_device(rnnkit_parity: Any) -> None:
    layer, x = rnnkit.GRU(5, 7, rng=0), np.zeros((6, 2, 5), np.float32)
    for arguments, options in (
        ((), {"cell": "gru", "backend": "cupy"}),
        ((), {"cell": "gru", "device": "cuda:1"}),
        ((layer, x), {"device": "cuda"}),
        ((layer, x), {"backend": "numba_cuda"}),
    ):
        with pytest.raises(pytest.skip.Exception, match="CuPy"):
            rnnkit_parity(*arguments, **options)
        # Also catches a skip: otherwise this test would be skipped, not fail.
        with pytest.raises((AssertionError, pytest.skip.Exception)) as caught:
            rnnkit_parity(*arguments, **options, required=True)
        assert caught.type is AssertionError
        assert re.match(r"required, and cannot be checked here: .*CuPy", str(caught.value))


def test_bad_arguments_of_the_fixture(rnnkit_parity: Any) -> None:
    for error, words, options in (
        (ValueError, ["cell", "gru", "None"], {}),
        (ValueError, ["dtype", "'float8'"], {"cell": "gru", "dtype": "float8"}),
        (ValueError, ["serves", "bfloat16"], {"cell": "gru", "dtype": "bfloat16", "backend": "numba_cuda"}),
        (ValueError, ["backend", "'fast'"], {"cell": "gru", "backend": "fast"}),
        (TypeError, ["options of a shape", "'hidden'"], {"cell": "gru", "hidden": 4}),
        (ValueError, ["T", "positive", "0"], {"cell": "gru", "T": 0}),
        (ValueError, ["P", "gru", "3"], {"cell": "gru", "P": 3}),
        (TypeError, ["required", "1"], {"cell": "gru", "required": 1}),
        (TypeError, ["x", "layer"], {"cell": "gru", "x": np.zeros(3)}),
        (TypeError, ["seed", "T"], {"layer": rnnkit.GRU(2, 3, rng=0), "x": np.zeros((1, 1, 2), np.float32), "T": 4}),
    ):
        with refused(error, *words):
            rnnkit_parity(**options)


# The documentation


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def python(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_python_of_the_documentation_runs(tmp_path: Path) -> None:
    files, programs = {}, []
    for block in blocks("python"):
        named = re.match(r"# (\w+\.py)\n", block)
        if named:
            files[named[1]] = block
        else:
            programs.append(block)
    assert sorted(files) == ["conftest.py", "test_layers.py"]
    for name, source in files.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    done = python(tmp_path, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", ".")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("3 passed, 1 skipped" if NO_CUDA else "4 passed") in done.stdout
    assert not NO_CUDA or "CuPy" in done.stdout
    assert len(programs) == 2
    for program in programs:
        done = python(tmp_path, "-c", program)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_commands_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 3
    monkeypatch.chdir(tmp_path)
    for line in commands:
        start = "python -m rnnkit.parity"
        assert line.startswith(start)
        assert main(line.removeprefix(start).split()) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"parity.json", "parity.html"}


def test_the_documentation_names_every_option_status_and_field() -> None:
    text = DOCS.read_text(encoding="utf-8")
    outcome = Outcome(Check("numpy", "float32", CASE, "cpu"), "ok", arrays={"y": Errors(0.0, 0.0)}).to_dict()
    names = [f"--{o}" for o in ("backend", "dtype", "cell", "device", "shape", "large", "json", "html")]
    names += [*outcome, *outcome["check"], *outcome["check"]["case"]]
    assert not [name for name in names if f"`{name}" not in text]
