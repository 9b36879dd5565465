"""PyTorch's tools around a layer: hooks, checkpointing, autocast, several backwards through one graph."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint, checkpoint_sequential  # noqa: E402

import rnnkit.torch  # noqa: E402
from rnnkit.testing import error_ratio  # noqa: E402
from tests.torch.pairs import CELLS, LAYERS, close, gradients, pair, states, tensors, total  # noqa: E402

pytestmark = pytest.mark.peers
F64 = torch.float64

EACH_MODULE = pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
EACH_LAYER = pytest.mark.parametrize("kind", LAYERS)


def an_input(kind: str, dtype: Any = F64) -> Any:
    """(5, 3, 4), or (3, 4) for a Cell."""
    shape = (5, 3, 4) if kind in LAYERS else (3, 4)
    return torch.randn(shape, dtype=dtype, requires_grad=True)


@EACH_MODULE
def test_module_hooks(kind: str) -> None:
    """Before and after forward, and around backward: they see and may change what torch.nn's see and may change."""
    found = []
    x = an_input(kind)
    for module in pair(kind, 4, 6):
        seen: list[Any] = []

        def before(_: Any, arguments: Any) -> Any:
            return (arguments[0] * 2,)

        def after(_: Any, arguments: Any, result: Any, seen: list[Any] = seen) -> None:
            seen.append(arguments[0].detach().clone())
            seen.extend(t.detach().clone() for t in tensors(result))

        def around(_: Any, of_inputs: Any, of_results: Any, seen: list[Any] = seen) -> Any:
            seen.extend(tensors(of_inputs) + tensors(of_results))
            return tuple(None if g is None else g * 3 for g in of_inputs)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
        module.register_full_backward_hook(around)
        seen.extend(torch.autograd.grad(total(module(x)), [x, *module.parameters()]))
        found.append(seen)
    assert len(found[0]) == len(found[1])
    close(found[0], found[1], "backward")


@EACH_MODULE
def test_tensor_hooks(kind: str) -> None:
    """On the results, the inputs and the weights, and those that run when a gradient was added to `.grad`."""
    found = []
    x = an_input(kind)
    hx = states(pair(kind, 4, 6)[0], 3, requires_grad=True)
    for module in pair(kind, 4, 6):
        seen: dict[str, Any] = {}
        x.grad = None
        result = module(x, hx)
        named = {"x": x, "y": tensors(result)[0], **dict(module.named_parameters())}

        def keep(grad: Any, name: str, seen: dict[str, Any] = seen) -> Any:
            seen[name] = grad.clone()
            return grad * 2

        handles = [t.register_hook(lambda g, name=name, keep=keep: keep(g, name)) for name, t in named.items()]
        weight = next(module.parameters())
        weight.register_post_accumulate_grad_hook(lambda p, seen=seen: seen.update(accumulated=p.grad.clone()))
        total(result).backward()
        for handle in handles:
            handle.remove()
        seen["x.grad"] = x.grad.clone()
        found.append(seen)
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        close(value, found[1][name], "backward", name)


@EACH_MODULE
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(kind: str, reentrant: bool) -> None:
    """With reentrant checkpoints, PyTorch gives nested results no gradient: of a layer, y alone is used."""
    ours, theirs = pair(kind, 4, 6)
    x = an_input(kind)
    hx = states(ours, 3)
    got = []
    for module, call in ((ours, lambda *a: checkpoint(ours, *a, use_reentrant=reentrant)), (theirs, theirs)):
        result = tensors(call(x, hx))[: 1 if reentrant else None]
        total(result).backward()
        got.append((result, [x.grad.clone(), *(p.grad for p in module.parameters())]))
        x.grad = None
    close(got[0][0], got[1][0])
    close(got[0][1], got[1][1], "backward")


def test_checkpointing_draws_the_same_dropout_again() -> None:
    ours, theirs = pair("LSTM", 4, 6, num_layers=3, dropout=0.5)
    x = an_input("LSTM")
    found = []
    for call, module in ((lambda a: checkpoint(ours, a, use_reentrant=False), ours), (theirs, theirs)):
        torch.manual_seed(2)
        result = call(x)
        total(result).backward()
        found.append([x.grad.clone(), *(p.grad for p in module.parameters())])
        x.grad = None
    close(found[0], found[1], "backward")


class First(nn.Module):
    """The first result of a layer, for nn.Sequential."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        """y."""
        return self.layer(x)[0]


def test_checkpoint_sequential() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(*[First(getattr(rnnkit.torch, kind)(6, 6, dtype=F64)) for kind in LAYERS])
    theirs = nn.Sequential(*[First(getattr(nn, kind)(6, 6, dtype=F64)) for kind in LAYERS])
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 3, 6, dtype=F64, requires_grad=True)
    got = checkpoint_sequential(ours, 2, x, use_reentrant=False)
    wanted = (got, [x, *ours.parameters()]), (theirs(x), [x, *theirs.parameters()])
    grads = [torch.autograd.grad(total(y), inputs) for y, inputs in wanted]
    close(got, wanted[1][0])
    close(grads[0], grads[1], "backward")


@EACH_MODULE
def test_several_backwards(kind: str) -> None:
    """retain_graph; gradients of two losses of one call; without retain_graph torch.nn's error."""
    ours, theirs = pair(kind, 4, 6)
    x = an_input(kind)
    found = []
    for module in (ours, theirs):
        result = module(x)
        weights = [x, *module.parameters()]
        first = torch.autograd.grad(total(result), weights, retain_graph=True)
        again = torch.autograd.grad(total(result), weights, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        other = torch.autograd.grad(tensors(result)[-1].square().sum(), weights)
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(total(result), weights)
        found.append((first, other))
    close(found[0], found[1], "backward")


@EACH_MODULE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(kind: str, dtype: Any) -> None:
    """Results in autocast's dtype for every module; gradients in float32; values as close as the dtype allows."""
    ours, theirs = pair(kind, 4, 6, dtype=torch.float32)
    x = an_input(kind, torch.float32)
    hx = states(ours, 3, torch.float32, requires_grad=True)
    wide = copy.deepcopy(theirs).double()
    wide_hx = tuple(h.detach().double().requires_grad_(True) for h in tensors(hx))
    want = gradients(wide, x.detach().double().requires_grad_(True), wide_hx if len(wide_hx) == 2 else wide_hx[0])
    name = str(dtype).removeprefix("torch.")
    for given in ((x, hx), (x.detach().to(dtype), hx)):
        with torch.autocast("cpu", dtype=dtype):
            result = ours(*given)
        assert all(t.dtype is dtype for t in tensors(result))
        for a, b in zip(tensors(result), tensors(want[0]), strict=True):
            assert error_ratio(a.detach().double().numpy(), b.detach().numpy(), name, "backward") <= 1
    with torch.autocast("cpu", dtype=dtype):
        result = ours(x, hx)
    named = {"input 0": x} | {f"input {k + 1}": h for k, h in enumerate(tensors(hx))} | dict(ours.named_parameters())
    grads = torch.autograd.grad(total(tuple(t.float() for t in tensors(result))), list(named.values()))
    for key, grad in zip(named, grads, strict=True):
        assert grad.dtype is torch.float32
        assert error_ratio(grad.double().numpy(), want[1][key].numpy(), name, "backward") <= 1, key


@EACH_MODULE
def test_where_autocast_does_nothing(kind: str) -> None:
    """Switched off inside; for another device; float64 modules; and mixed float64 and float32, an error as outside."""
    ours, theirs = pair(kind, 4, 6, dtype=torch.float32)
    x = an_input(kind, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        close(ours(x), theirs(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wide, wide_theirs = pair(kind, 4, 6)
        close(wide(x.double()), wide_theirs(x.double()))
        for module in (ours, theirs):
            with pytest.raises(RuntimeError):
                module(x.double())
            with pytest.raises(RuntimeError):
                module(x.long())
        hx = states(ours, 3)
        with pytest.raises(RuntimeError, match="hx"):
            ours(x, hx)


@EACH_LAYER
def test_a_graph_frees_its_memory(kind: str) -> None:
    """After backward, and when the results go without one; with a module that is deleted, nothing keeps its weights."""
    ours, _ = pair(kind, 4, 6)
    for backward in (True, False):
        x = an_input(kind)
        result = ours(x)
        ours(x.detach())
        if backward:
            total(result).backward()
        watched = [weakref.ref(x), weakref.ref(tensors(result)[0])]
        del x, result
        gc.collect()
        assert [w() for w in watched] == [None, None]
    weights = [weakref.ref(p) for p in ours.parameters()]
    del ours
    gc.collect()
    assert all(w() is None for w in weights)


@EACH_LAYER
def test_saved_tensor_hooks(kind: str) -> None:
    """`saved_tensors_hooks`, as for offloading: backward from tensors that were stored and loaded."""
    ours, theirs = pair(kind, 4, 6)
    x = an_input(kind)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone().numpy(force=True), torch.from_numpy):
        got = ours(x)
    want = theirs(x)
    close(
        torch.autograd.grad(total(got), [x, *ours.parameters()]),
        torch.autograd.grad(total(want), [x, *theirs.parameters()]),
        "backward",
    )
    with torch.autograd.graph.save_on_cpu():
        close(torch.autograd.grad(total(ours(x)), x), torch.autograd.grad(total(theirs(x)), x), "backward")


@EACH_LAYER
def test_anomaly_and_no_grad_modes(kind: str) -> None:
    ours, theirs = pair(kind, 4, 6)
    x = an_input(kind)
    with torch.autograd.set_detect_anomaly(True):
        close(torch.autograd.grad(total(ours(x)), x), torch.autograd.grad(total(theirs(x)), x), "backward")
        with pytest.raises(RuntimeError, match="nan"):
            total(ours(x * float("nan"))).backward()
    with torch.no_grad():
        assert not any(t.requires_grad for t in tensors(ours(x)))
    with torch.no_grad(), torch.enable_grad():
        assert all(t.requires_grad for t in tensors(ours(x)))


@EACH_LAYER
def test_optimizers_follow_torch_nn(kind: str) -> None:
    """Twenty steps of Adam with clipping: the loss curves are equal to rounding."""
    curves = []
    x = torch.randn(6, 5, 4, dtype=F64)
    for module in pair(kind, 4, 6, num_layers=2, bidirectional=True):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (module(x)[0] - 0.25).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimizer.step()
            losses.append(loss.detach())
        curves.append(torch.stack(losses))
    assert curves[0][-1] < curves[0][0]
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-9, atol=1e-12)
