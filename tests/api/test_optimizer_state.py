"""An optimizer's state dict has torch's format, and is checked completely before anything is loaded. No pickling."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

import rnnkit
from tests.helpers import assert_same, randn, refused
from tests.tools import fakecupy

KINDS: dict[str, Any] = {
    "sgd": lambda model: rnnkit.SGD(model, 0.1),
    "momentum": lambda model: rnnkit.SGD(model, 0.1, 0.9),
    "adagrad": lambda model: rnnkit.Adagrad(model, 0.1, eps=1e-9),
    "adam": lambda model: rnnkit.Adam(model, 0.1, (0.8, 0.99), 1e-7),
}
SLOTS = {"sgd": (), "momentum": ("momentum_buffer",), "adagrad": ("sum",), "adam": ("exp_avg", "exp_avg_sq")}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def models(dtype: str = "float32", seed: int = 1) -> list[rnnkit.Module]:
    """Two models with common names and shapes."""
    head = rnnkit.Linear(2, 3, dtype=dtype, rng=seed)
    return [rnnkit.Sequential(rnnkit.Linear(3, 2, dtype=dtype, rng=seed), rnnkit.Activation("tanh")), head]


def steps(kind: str, made: list[rnnkit.Module], optimizer: Any, count: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        for model in made:
            for grad in model.grads.values():
                grad[...] = randn(rng, *grad.shape, dtype=grad.dtype)
        optimizer.step()


def flat(optimizer: Any) -> dict[str, Any]:
    found = optimizer.state_dict()
    values = {f"{k}.{slot}": v for k, entry in found["state"].items() for slot, v in entry.items()}
    return values | {"groups": str(found["param_groups"])}


@EVERY_KIND
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_state_dict_has_torchs_format(kind: str, dtype: str) -> None:
    made = models(dtype)
    optimizer = KINDS[kind](made)
    assert optimizer.state_dict()["state"] == {}
    steps(kind, made, optimizer, 2)
    found = optimizer.state_dict()
    assert found.keys() == {"state", "param_groups"}
    (group,) = found["param_groups"]
    options = {"adam": {"betas": (0.8, 0.99), "eps": 1e-7}, "adagrad": {"eps": 1e-9}, "momentum": {"momentum": 0.9}}
    names = {"params": [0, 1, 2, 3], "param_names": ["0.0.weight", "0.0.bias", "1.weight", "1.bias"]}
    assert group == {"lr": 0.1, **options.get(kind, {"momentum": 0.0}), **names}
    slots = (*SLOTS[kind], *(("master",) if dtype == "float16" else ()))
    assert list(found["state"]) == ([0, 1, 2, 3] if slots else [])
    for entry, p in zip(found["state"].values(), (p for m in made for p in m.params.values()), strict=False):
        assert entry.keys() == {*slots, *(("step",) if kind == "adam" else ())}
        for slot in slots:
            assert entry[slot].shape == p.shape
            assert entry[slot].dtype == ("float64" if dtype == "float64" else "float32")
        assert entry.get("step", 2) == 2
    before = flat(optimizer)
    for entry in found["state"].values():  # copies
        for slot in slots:
            entry[slot] += 1
    assert_same(flat(optimizer), before)


@EVERY_KIND
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_new_optimizer_continues_from_a_state_dict(kind: str, dtype: str) -> None:
    made, others = models(dtype), models(dtype, 2)
    optimizer, other = KINDS[kind](made), KINDS[kind](others)
    other.lr = 7.0
    for start in (0, 3):  # also before the first step
        steps(kind, made, optimizer, start)
        steps(kind, others, other, 2, seed=4)
        for model, twin in zip(made, others, strict=True):
            twin.load_state_dict(model.state_dict())
        saved = optimizer.state_dict()
        other.load_state_dict(saved)
        for entry in saved["state"].values():
            for value in entry.values():
                if isinstance(value, np.ndarray):
                    value[...] = 77  # the loaded arrays must be copies
        assert_same(flat(other), flat(optimizer))
    steps(kind, made, optimizer, 2, seed=5)
    steps(kind, others, other, 2, seed=5)
    assert_same(flat(other), flat(optimizer))
    for model, twin in zip(made, others, strict=True):
        assert_same(twin.state_dict(), dict(model.state_dict()))


def group(**changes: Any) -> Any:
    def change(found: dict[str, Any]) -> None:
        found["param_groups"][0].update(changes)

    return change


def entry(place: int, **changes: Any) -> Any:
    def change(found: dict[str, Any]) -> None:
        found["state"][place].update(changes)

    return change


BAD: list[tuple[Any, type[Exception], tuple[str, ...]]] = [
    (lambda f: f.pop("state"), KeyError, ("state_dict must hold", "missing ['state']")),
    (lambda f: f.update(more=1), KeyError, ("extra ['more']",)),
    (lambda f: f.update(param_groups={}), ValueError, ("param_groups must be a list of one mapping", "dict")),
    (lambda f: f.update(param_groups=f["param_groups"] * 2), ValueError, ("param_groups", "2 of them")),
    (lambda f: f["param_groups"][0].pop("eps"), KeyError, ("param_groups[0]", "missing ['eps']", "Adam")),
    (group(weight_decay=0.1), KeyError, ("param_groups[0]", "extra ['weight_decay']")),
    (group(lr=-1.0), ValueError, ("param_groups[0]['lr'] must be at least 0", "-1.0")),
    (group(lr="1"), TypeError, ("param_groups[0]['lr']", "'1'")),
    (group(betas=(0.5, 1.0)), ValueError, ("param_groups[0]['betas'][1] must be in [0, 1)", "1.0")),
    (group(betas=0.5), TypeError, ("param_groups[0]['betas'] must be a pair", "0.5")),
    (group(params=[0, 1, 3, 2]), ValueError, ("param_groups[0]['params'][2] must be 2", "got 3")),
    (group(params=[0, 1, 2]), ValueError, ("param_groups[0]['params'][3] must be 3", "got nothing")),
    (group(params=4), TypeError, ("param_groups[0]['params'] must be a list", "int")),
    (group(param_names=["0.0.weight", "x", "1.weight", "1.bias"]), ValueError, ("[1] must be '0.0.bias'", "got 'x'")),
    (lambda f: f.update(state=[]), TypeError, ("state must be a mapping", "list")),
    (lambda f: f["state"].pop(3), KeyError, ("state must hold 0, 1, 2, 3", "missing ['3']")),
    (lambda f: f["state"].update({4: {}}), KeyError, ("extra ['4']",)),
    (lambda f: f["state"].update({3: 1}), TypeError, ("state[3] must be a mapping of slots", "int")),
    (lambda f: f["state"][3].pop("exp_avg"), KeyError, ("state[3]", "missing ['exp_avg']")),
    (entry(3, master=np.zeros(3)), KeyError, ("state[3]", "extra ['master']")),
    (entry(3, exp_avg=np.zeros(2, "f4")), ValueError, ("state[3]['exp_avg']", "shape (3,), got (2,)")),
    (entry(3, exp_avg=np.zeros(3)), TypeError, ("state[3]['exp_avg'] must have dtype float32, got float64",)),
    (entry(3, exp_avg="x"), ValueError, ("state[3]['exp_avg']", "shape (3,), got ()")),
    (entry(3, step=0), ValueError, ("state[3]['step'] must be a whole number of at least 1", "0")),
    (entry(3, step=1.5), ValueError, ("state[3]['step']", "1.5")),
    (entry(3, step=math.inf), ValueError, ("state[3]['step']", "inf")),
    (entry(3, step="2"), TypeError, ("state[3]['step']", "'2'")),
    (entry(3, step=5), ValueError, ("one step for all parameters", "[2, 5]")),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD)
def test_state_that_does_not_fit_changes_nothing(change: Any, error: type[Exception], words: tuple[str, ...]) -> None:
    made, others = models(), models(seed=2)
    optimizer, other = KINDS["adam"](made), KINDS["adam"](others)
    steps("adam", made, optimizer, 2)
    steps("adam", others, other, 1, seed=3)
    other.lr = 0.5
    found, before = optimizer.state_dict(), flat(other)
    change(found)
    with refused(error, *words):
        other.load_state_dict(found)
    assert_same(flat(other), before)


def test_states_of_other_optimizers_and_dtypes_are_refused() -> None:
    made, halves = models(), models("float16")
    adam, half = KINDS["adam"](made), KINDS["adam"](halves)
    steps("adam", made, adam, 1)
    steps("adam", halves, half, 1)
    with refused(KeyError, "state[0]", "missing ['master']"):
        half.load_state_dict(adam.state_dict())
    with refused(KeyError, "state[0]", "extra ['master']"):
        adam.load_state_dict(half.state_dict())
    for kind in ("sgd", "adagrad"):
        with refused(KeyError, "param_groups[0]", "extra ['betas'", type(KINDS[kind](made)).__name__):
            KINDS[kind](made).load_state_dict(adam.state_dict())
    with refused(TypeError, "state_dict must be a mapping", "list"):
        adam.load_state_dict([])
    # The option momentum determines the state.
    plain, heavy = KINDS["sgd"](made), KINDS["momentum"](made)
    steps("momentum", made, heavy, 1)
    plain.load_state_dict(heavy.state_dict())
    assert plain.momentum == 0.9
    assert_same(flat(plain), flat(heavy))


def test_numbers_as_arrays_and_lists_of_other_tools_load() -> None:
    """`step` as an array of one number, as in torch; `betas` as a list, as in JSON."""
    made = models()
    adam = KINDS["adam"](made)
    steps("adam", made, adam, 2)
    found, want = adam.state_dict(), flat(adam)
    for held in found["state"].values():
        held["step"] = np.array(2.0, "float32")
    found["param_groups"][0]["betas"] = [0.8, 0.99]
    other = KINDS["adam"](made)
    other.load_state_dict(found)
    assert_same(flat(other), want)
    assert other.t == 2


@EVERY_KIND
@pytest.mark.parametrize(
    "share",
    [copy.copy, copy.deepcopy, pickle.dumps, lambda o: pickle.dumps((o._models, o)), lambda o: copy.deepcopy([o])],
)
def test_an_optimizer_is_not_copied_without_its_model(kind: str, share: Any) -> None:
    """The copy would update a copy of the model, and not the user's model."""
    optimizer = KINDS[kind](models())
    name = type(optimizer).__name__
    with refused(TypeError, f"{name} cannot be pickled or copied", "state_dict", "rnnkit.save"):
        share(optimizer)


@EVERY_KIND
def test_state_moves_to_the_device_of_its_parameter(kind: str) -> None:
    with fakecupy.installed(devices=2) as cp:
        made, others = models("float16"), models("float16", 2)
        optimizer, other = KINDS[kind](made), KINDS[kind](others)
        steps(kind, made, optimizer, 2)
        for model, twin in zip(made, others, strict=True):
            twin.to("cuda:1").load_state_dict(model.state_dict())
        other.load_state_dict(optimizer.state_dict())
        for held in other.state.values():
            for value in held.values():
                assert isinstance(value, cp.ndarray)
                assert value.device.id == 1
        assert_same(flat(other), flat(optimizer))
        other.step()
