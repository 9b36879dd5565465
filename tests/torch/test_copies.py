"""Copies, files, dtypes, devices and processes: modules of rnnkit.torch go where torch.nn's go."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.utils.data import DataLoader, Dataset  # noqa: E402

import rnnkit.torch  # noqa: E402
from rnnkit.testing import error_ratio  # noqa: E402
from tests.torch.pairs import CELLS, LAYERS, close, close_gradients, gradients, pair, states, tensors  # noqa: E402

pytestmark = pytest.mark.peers
F64 = torch.float64

EACH_MODULE = pytest.mark.parametrize("kind", [*LAYERS, *CELLS])


def an_input(kind: str, dtype: Any = F64) -> Any:
    """(5, 3, 4), or (3, 4) for a Cell."""
    return torch.randn((5, 3, 4) if kind in LAYERS else (3, 4), dtype=dtype)


def through_pickle(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


def through_torch_save(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_a_state_dict(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    made = copy.deepcopy(module)
    made.reset_parameters()
    made.load_state_dict(torch.load(file, weights_only=True), assign=True)
    return made


@EACH_MODULE
@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle, through_torch_save, through_a_state_dict])
def test_copies(kind: str, way: Any) -> None:
    """A copy computes the same, has weights of its own, and keeps the arguments that torch.nn does not have."""
    own = {"reset_after": False} if kind.startswith("GRU") else {}
    module = getattr(rnnkit.torch, kind)(4, 6, backend="numpy", dtype=F64, **own)
    x = an_input(kind)
    for called in (False, True):
        if called:
            module(x), module.requires_grad_(True)
        made = way(module)
        assert type(made) is type(module)
        assert made.backend == "numpy"
        assert repr(made) == repr(module)
        before = [t.clone() for t in tensors(module(x))]
        assert all(torch.equal(a, b) for a, b in zip(tensors(made(x)), before, strict=True))
        with torch.no_grad():
            for p in made.parameters():
                p.add_(0.25)
        assert all(torch.equal(a, b) for a, b in zip(tensors(module(x)), before, strict=True))
        assert not torch.equal(tensors(made(x))[0], before[0])
        assert [p.requires_grad for p in made.parameters()] == [p.requires_grad for p in module.parameters()]


@EACH_MODULE
def test_conversions(kind: str) -> None:
    """`.to(dtype)` and back: the results are those of torch.nn in the dtype."""
    ours, theirs = pair(kind, 4, 6, dtype=torch.float32)
    x = an_input(kind)
    for dtype in (torch.float64, torch.float32, torch.float64):
        ours.to(dtype), theirs.to(dtype)
        given = x.to(dtype).requires_grad_(True)
        got, want = gradients(ours, given), gradients(copy.deepcopy(theirs).double(), x.clone().requires_grad_(True))
        assert all(t.dtype is dtype for t in tensors(got[0]))
        close(got[0], want[0])
        close_gradients(got[1], want[1])


@EACH_MODULE
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(kind: str, dtype: Any) -> None:
    """`.half()` and `.bfloat16()`: 16-bit results, at most as far from float64 as rounding them, or torch.nn's, is."""
    ours, theirs = pair(kind, 4, 6, dtype=torch.float32)
    ours = ours.half() if dtype is torch.float16 else ours.bfloat16()
    theirs.load_state_dict(ours.state_dict())
    x = an_input(kind).to(dtype).requires_grad_(True)
    hx = states(ours, 3, dtype=dtype, requires_grad=True)
    wide = tuple(h.detach().double().requires_grad_(True) for h in tensors(hx))
    want = gradients(theirs.double(), x.detach().double().requires_grad_(True), wide if len(wide) == 2 else wide[0])
    got = gradients(ours, x, hx)
    name = str(dtype).removeprefix("torch.")
    for a, b in zip(tensors(got[0]), tensors(want[0]), strict=True):
        assert a.dtype is dtype
        assert error_ratio(a.detach().double().numpy(), b.detach().numpy(), name, "forward") <= 1
    for parameter, gradient in got[1].items():
        assert gradient.dtype is dtype
        assert error_ratio(gradient.double().numpy(), want[1][parameter].numpy(), name, "backward") <= 1, parameter


@EACH_MODULE
def test_meta_device(kind: str) -> None:
    """Shapes without values; `to_empty` and a state_dict give it values."""
    ours, theirs = pair(kind, 4, 6, dtype=torch.float32)
    x = an_input(kind, torch.float32)
    with torch.device("meta"):
        built = getattr(rnnkit.torch, kind)(4, 6)
    for module in (built, getattr(rnnkit.torch, kind)(4, 6, device="meta"), copy.deepcopy(ours).to("meta")):
        results = module(x.to("meta"))
        for a, b in zip(tensors(results), tensors(theirs(x)), strict=True):
            assert a.is_meta
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
        sum(t.sum() for t in tensors(results)).backward()
        assert all(p.grad.is_meta for p in module.parameters())
    made = built.to_empty(device="cpu")
    made.load_state_dict(ours.state_dict())
    close(made(x), theirs(x))
    assigned = getattr(rnnkit.torch, kind)(4, 6, device="meta")
    assigned.load_state_dict(ours.state_dict(), assign=True)
    close(assigned(x), theirs(x))


def test_meta_device_with_lengths_and_all_options() -> None:
    layer = rnnkit.torch.LSTM(4, 6, 2, bidirectional=True, proj_size=3, batch_first=True, dropout=0.5, device="meta")
    y, (h_n, c_n) = layer(torch.empty(3, 5, 4, device="meta"), lengths=torch.empty(3, dtype=torch.int64, device="meta"))
    assert (y.shape, h_n.shape, c_n.shape) == ((3, 5, 6), (4, 3, 3), (4, 3, 6))


@EACH_MODULE
@pytest.mark.parametrize("swapping", [False, True])
def test_conversions_that_swap_parameters(kind: str, swapping: bool) -> None:
    """`torch.__future__.set_swap_module_params_on_conversion`: refused while weak references to parameters exist."""
    ours, theirs = pair(kind, 4, 6, dtype=torch.float32)
    x = an_input(kind)
    torch.__future__.set_swap_module_params_on_conversion(swapping)
    try:
        with torch.no_grad():
            ours(x.float())
        ours.to(F64), theirs.to(F64)
        close(ours(x), theirs(x))
        if kind in CELLS:  # torch.nn's layers cannot load by swapping
            ours.load_state_dict({name: p * 0.5 for name, p in theirs.state_dict().items()})
            theirs.load_state_dict(ours.state_dict())
            close(ours(x), theirs(x))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@EACH_MODULE
def test_inference_mode(kind: str) -> None:
    """Modules and inputs made inside and outside of it, in every combination."""
    ours, theirs = pair(kind, 4, 6)
    x = an_input(kind)
    want = theirs(x)
    close(ours(x), want)
    with torch.inference_mode():
        made, _ = pair(kind, 4, 6)
        inside = ours(x)
        assert all(t.is_inference() for t in tensors(inside))
        close(inside, want)
        close(made(x), want)
        made.weight_hh_l0.mul_(0.5) if kind in LAYERS else made.weight_hh.mul_(0.5)
        theirs.weight_hh_l0.mul_(0.5) if kind in LAYERS else theirs.weight_hh.mul_(0.5)
        close(made(x), theirs(x))
        y = an_input(kind)
    with torch.no_grad():
        close(ours(y), pair(kind, 4, 6)[1](y))


class Encoded(Dataset):  # type: ignore[type-arg]
    """Items that a layer computes in the process of the worker that loads them."""

    def __init__(self, module: Any, x: Any) -> None:
        self.module, self.x = module, x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> Any:
        with torch.no_grad():
            return self.module(self.x[k])[0]


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_dataloader_workers(kind: str) -> None:
    """Forked after the parent called the module, so that kept weights and the thread pool exist there."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")
    ours, theirs = pair(kind, 4, 160, dtype=torch.float32)
    x = torch.randn(6, 9, 4)
    with torch.no_grad():
        ours(x), ours(x)
        want = torch.stack([theirs(row)[0] for row in x])
    got = torch.cat(list(DataLoader(Encoded(ours, x), batch_size=3, num_workers=2, multiprocessing_context="fork")))
    close(got, want)
    with torch.no_grad():
        close(ours(x[0]), theirs(x[0]))


def _train(module: Any, x: Any) -> None:
    for _ in range(3):
        module.zero_grad()
        module(x)[0].sum().backward()
        with torch.no_grad():
            for p in module.parameters():
                p -= 0.01 * p.grad


def test_weights_in_shared_memory() -> None:
    """`share_memory()` and a child process that trains (Hogwild): the parent's next call uses what the child wrote."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")
    ours, theirs = pair("GRU", 4, 6)
    x = torch.randn(5, 3, 4, dtype=F64)
    with torch.no_grad():
        ours(x)
    ours.share_memory()
    child = multiprocessing.get_context("fork").Process(target=_train, args=(ours, x))
    child.start()
    child.join()
    assert child.exitcode == 0
    _train(theirs, x)
    close(ours(x), theirs(x))
