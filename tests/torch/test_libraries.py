"""Libraries that use PyTorch's recurrent layers, with rnnkit's in their place: Opacus, skorch, torchrl.

A library that is not installed is a reason to skip, unless RNNKIT_REQUIRED names peers. The extra is `torch-libraries`.
sb3-contrib is in test_programs.py.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import rnnkit.torch  # noqa: E402
from rnnkit.testing import assert_close  # noqa: E402
from tests.required import unless_required  # noqa: E402

pytestmark = pytest.mark.peers


def library(name: str) -> Any:
    """The module `name`; skips the test if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return pytest.skip(str(unless_required("peers", f"{name} does not import (extra torch-libraries): {error}")))


# Opacus has recurrent layers of its own, written in Python, and a test that compares them with torch.nn's


@pytest.fixture
def algorithms_as_before() -> Iterator[None]:
    """Opacus's test asks for deterministic algorithms, and leaves it at that."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("mode", ["rnn", "gru", "lstm"])
@pytest.mark.usefixtures("algorithms_as_before")
def test_opacus_own_test(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DPRNN, DPGRU and DPLSTM against rnnkit.torch: outputs and gradients, within Opacus's tolerances."""
    theirs = library("opacus.tests.dp_layers.dp_rnn_test")
    ours = {name: getattr(rnnkit.torch, name) for name in ("RNN", "GRU", "LSTM")}
    monkeypatch.setattr(theirs, "nn", types.SimpleNamespace(**{**vars(nn), **ours}))
    case = theirs.DPLSTM_test("test_rnn")
    inner = theirs.DPLSTM_test.test_rnn.hypothesis.inner_test
    torch.manual_seed(0)
    for packed in range(3):
        for layers, bidirectional, bias, batch_first, zero_init in (
            (1, False, True, False, True),
            (3, True, True, True, False),
            (2, True, False, False, False),
        ):
            inner(case, mode, 4, 5, 6, 3, layers, bidirectional, bias, batch_first, zero_init, packed)


# skorch


class Classifier(nn.Module):
    """The last output of a recurrent layer, as two classes."""

    def __init__(self, ours: bool, hidden: int = 6) -> None:
        super().__init__()
        layers: Any = rnnkit.torch if ours else nn
        self.rnn = layers.GRU(3, hidden, num_layers=2, batch_first=True, dropout=0.2, dtype=torch.float64)
        self.head = nn.Linear(hidden, 2, dtype=torch.float64)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(x)[0][:, -1])


def fitted(ours: bool, x: np.ndarray, classes: np.ndarray) -> Any:
    skorch = library("skorch")
    torch.manual_seed(0)
    net = skorch.NeuralNetClassifier(
        Classifier,
        module__ours=ours,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.05,
        max_epochs=4,
        batch_size=16,
        iterator_train__shuffle=True,
        verbose=0,
    )
    return net.fit(x, classes)


def test_skorch_fits_as_with_torch_nn(rng: np.random.Generator) -> None:
    x = rng.standard_normal((60, 7, 3))
    classes = (x[:, :, 0].sum(1) > 0).astype(np.int64)
    ours, theirs = fitted(True, x, classes), fitted(False, x, classes)
    for name in ("train_loss", "valid_loss"):
        assert_close(name, np.array(ours.history[:, name]), np.array(theirs.history[:, name]), "float64", "backward")
    assert ours.history[-1, "train_loss"] < ours.history[0, "train_loss"]
    assert_close("predict_proba", ours.predict_proba(x), theirs.predict_proba(x), "float64", "backward")


def test_skorch_copies_and_searches(rng: np.random.Generator) -> None:
    """What scikit-learn does with estimators: pickle, deepcopy, clone and a search in several sets."""
    library("skorch")
    selection = library("sklearn.model_selection")
    x = rng.standard_normal((40, 5, 3))
    classes = (x[:, -1, 0] > 0).astype(np.int64)
    net = fitted(True, x, classes)
    expected = net.predict_proba(x)
    for other in (pickle.loads(pickle.dumps(net.module_)), copy.deepcopy(net.module_)):
        net.module_ = other
        assert np.array_equal(net.predict_proba(x), expected)
    net.set_params(max_epochs=1, train_split=None)
    search = selection.GridSearchCV(net, {"module__hidden": [3, 5]}, cv=2, refit=True, error_score="raise")
    found = search.fit(x, classes)
    assert type(found.best_estimator_.module_.rnn) is rnnkit.torch.GRU
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()


# torchrl: LSTMModule and GRUModule, which ask for instances of torch.nn's layers


def recurrent(kind: str, layers: Any) -> Any:
    """A torchrl module over a layer of two, the same weights whatever `layers` is."""
    modules = library("torchrl.modules")
    torch.manual_seed(0)
    layer = getattr(layers, kind)(4, 5, 2, batch_first=True, dtype=torch.float64)
    hidden = ["h", "c"] if kind == "LSTM" else ["h"]
    out_keys = ["y", *[("next", name) for name in hidden]]
    return getattr(modules, f"{kind}Module")(**{kind.lower(): layer}, in_keys=["x", *hidden], out_keys=out_keys)


def trajectories(kind: str, B: int, T: int) -> Any:
    """Random inputs (B, T), with episodes that begin at other steps in each row, and states at every step."""
    tensordict = library("tensordict")
    drawn = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Any:
        return torch.randn(B, T, *shape, generator=drawn, dtype=torch.float64)

    begins = torch.zeros(B, T, 1, dtype=torch.bool)
    begins[:, 0] = True
    begins[0, 3] = begins[2, 1] = begins[2, 5] = True
    values = {"x": randn(4), "is_init": begins, "h": randn(2, 5)}
    return tensordict.TensorDict(values | ({"c": randn(2, 5)} if kind == "LSTM" else {}), [B, T])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_torchrl_over_whole_trajectories(kind: str) -> None:
    modules = library("torchrl.modules")
    found = []
    for layers in (rnnkit.torch.subclasses, nn):
        module = recurrent(kind, layers)
        with modules.set_recurrent_mode(True):
            result = module(trajectories(kind, 3, 7))
        last = result["next", "h"]
        (result["y"].square().sum() + last.sin().sum()).backward()
        gradients = {name: p.grad for name, p in module.named_parameters()}
        found.append({"y": result["y"].detach(), "h": last.detach(), **gradients})
    ours, theirs = found
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2 + 8
    for name, value in theirs.items():
        assert_close(name, ours[name].numpy(), value.numpy(), "float64", "backward")


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_torchrl_step_by_step_is_as_over_whole_trajectories(kind: str) -> None:
    """Also of a module that torchrl built itself, and `replace` swapped the layer of."""
    modules = library("torchrl.modules")
    module = recurrent(kind, nn)
    report = rnnkit.torch.replace(module, subclasses=True)
    assert len(report.swapped) == 1
    data = trajectories(kind, 3, 7)
    names = [name for name in ("h", "c") if name in data.keys()]  # noqa: SIM118 - a TensorDict has no `in`
    for name in names:
        data[name].zero_()  # step by step, torchrl begins every episode with zeros
    with modules.set_recurrent_mode(True):
        whole = module(data.clone())["y"]
    carried = {name: torch.zeros(3, 2, 5, dtype=torch.float64) for name in names}
    for t in range(7):
        step = data[:, t].select("x", "is_init")
        step.update(carried)
        result = module(step)
        carried = {name: result["next", name] for name in names}
        got, want = (y.detach().numpy() for y in (result["y"], whole[:, t]))
        assert_close(f"y of step {t}", got, want, "float64", "backward")
