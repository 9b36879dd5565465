"""Weights that other tools compute before each call: parametrizations, weight norm, weight drop, functional_call."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize  # noqa: E402

from tests.torch.pairs import (  # noqa: E402
    CELLS,
    LAYERS,
    an_input,
    close,
    close_gradients,
    gradients,
    pair,
    recurrent,
    states,
    total,
    write_in_place,
)

pytestmark = pytest.mark.peers

EACH_MODULE = pytest.mark.parametrize("kind", [*LAYERS, *CELLS])


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Any) -> Any:
        """Twice the weight, and a bit."""
        return 2 * weight + 0.125


@EACH_MODULE
def test_parametrize(kind: str) -> None:
    ours, theirs = pair(kind, 4, 6)
    x = an_input(ours)
    ours(x)
    for module in (ours, theirs):
        parametrize.register_parametrization(module, recurrent(module), Doubled())
    got, want = gradients(ours, x), gradients(theirs, x)
    close(got[0], want[0])
    close_gradients(got[1], want[1])
    with parametrize.cached():
        close(ours(x), theirs(x))
    write_in_place(dict(ours.named_parameters())[f"parametrizations.{recurrent_original(ours)}.original"])
    write_in_place(dict(theirs.named_parameters())[f"parametrizations.{recurrent_original(theirs)}.original"])
    close(ours(x), theirs(x))
    for module in (ours, theirs):
        parametrize.remove_parametrizations(module, recurrent_original(module))
    close(ours(x), theirs(x))


def recurrent_original(module: Any) -> str:
    return next(iter(module.parametrizations))


@EACH_MODULE
def test_weight_norm_and_spectral_norm(kind: str) -> None:
    def old(module: Any, name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return nn.utils.weight_norm(module, name)

    for norm in (old, parametrizations.weight_norm, parametrizations.spectral_norm):
        ours, theirs = pair(kind, 4, 6)
        name = recurrent(ours)
        x = an_input(ours)
        ours(x)
        for module in (ours, theirs):
            torch.manual_seed(1)
            norm(module, name)
            module.eval()  # spectral_norm changes its vectors at each access in training, and torch.nn has more of them
        for _ in range(3):
            got, want = gradients(ours, x), gradients(theirs, x)
            close(got[0], want[0])
            close_gradients(got[1], want[1])
            for module in (ours, theirs):
                with torch.no_grad():
                    for p in module.parameters():
                        p.add_(0.0625)
    ours, theirs = pair(kind, 4, 6)
    for module in (ours, theirs):
        old(module, name)
        nn.utils.remove_weight_norm(module, name)
    close(ours(x), theirs(x))


class WeightDrop(nn.Module):
    """fastai's: the recurrent weight is kept aside, and a dropped copy is put in its place before each call."""

    def __init__(self, module: Any, p: float) -> None:
        super().__init__()
        self.module, self.p, self.name = module, p, recurrent(module)
        weight = getattr(module, self.name)
        self.raw = nn.Parameter(weight.detach().clone())
        module._parameters[self.name] = nn.functional.dropout(weight, p, training=False)

    def forward(self, *arguments: Any) -> Any:
        """A call with a dropped weight."""
        dropped = nn.functional.dropout(self.raw, self.p, self.training)
        if self.name in self.module._parameters:
            del self.module._parameters[self.name]
        setattr(self.module, self.name, dropped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return self.module(*arguments)


@EACH_MODULE
def test_weight_drop(kind: str) -> None:
    ours, theirs = (WeightDrop(module, 0.5) for module in pair(kind, 4, 6))
    x = an_input(ours.module)
    hx = states(ours.module, 3)
    for _ in range(2):
        found = []
        for module in (ours, theirs):
            module.zero_grad()
            torch.manual_seed(5)
            result = module(x, hx)
            total(result).backward()
            found.append((result, {name: p.grad for name, p in module.named_parameters()}))
        close(found[0][0], found[1][0])
        assert found[0][1]["raw"].any()
        close_gradients({"raw": found[0][1]["raw"]}, {"raw": found[1][1]["raw"]})
    ours.eval(), theirs.eval()
    close(ours(x), theirs(x))


@EACH_MODULE
def test_functional_call(kind: str) -> None:
    ours, theirs = pair(kind, 4, 6)
    x = an_input(ours)
    hx = states(ours, 3)
    before = ours(x)
    other = {name: (p.detach() * 0.5 + 0.1).requires_grad_(True) for name, p in ours.named_parameters()}
    found = []
    for module in (ours, theirs):
        result = torch.func.functional_call(module, other, (x, hx))
        found.append((result, torch.autograd.grad(total(result), list(other.values()))))
    close(found[0][0], found[1][0])
    close(found[0][1], found[1][1], "backward")
    close(ours(x), before)
    narrow = {name: p.detach().float() for name, p in other.items()}
    result = torch.func.functional_call(ours, narrow, (x.float(),))
    close(result, torch.func.functional_call(theirs, narrow, (x.float(),)))
