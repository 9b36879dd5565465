"""rnnkit.torch's layers with layer normalisation: against a loop of torch.nn.functional.layer_norm in float64."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import rnnkit  # noqa: E402
import rnnkit.torch  # noqa: E402
from rnnkit.core.cells import cell_of  # noqa: E402
from rnnkit.testing import assert_close  # noqa: E402
from rnnkit.torch import operators  # noqa: E402
from rnnkit.torch.arrays import as_weights  # noqa: E402
from tests.helpers import slow_except  # noqa: E402
from tests.normalised_loop import step  # noqa: E402
from tests.torch.test_cuda_path import OnCard, card  # noqa: E402, F401

pytestmark = pytest.mark.peers

KINDS = [("LSTM", "haste"), ("LSTM", "torch"), ("GRU", "haste"), ("GRU", "dreamer")]
EPS = 1e-2


def make(kind: str, norm: str, **arguments: Any) -> Any:
    """A layer in float64 of random parameters, gains and biases included."""
    torch.manual_seed(0)
    given = {"layer_norm": norm, "norm_eps": EPS, "dtype": torch.float64, "backend": "numpy"} | arguments
    layer = getattr(rnnkit.torch, kind)(3, 4, **given)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return layer


def randn(*shape: int) -> Any:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def looped(layer: Any, x: Any, states: Any, lengths: Any) -> list[Any]:
    """y and the final states of a stack, by `step`."""
    key = f"{type(layer).__name__.lower()}+layer_norm={layer.layer_norm}"
    D = 2 if layer.bidirectional else 1
    count = len(layer._flat_weights) // (layer.num_layers * D)
    T = len(x)
    ends = []
    sides: list[Any] = []
    for slot in range(layer.num_layers * D):
        w = as_weights(layer._flat_weights[slot * count : (slot + 1) * count], cell_of(key))
        state = tuple(s[slot] for s in states)
        ys = [None] * T
        for t in reversed(range(T)) if slot % D else range(T):
            live = (torch.tensor(lengths) > t)[:, None]
            new = step(key, x[t], state, w, EPS)
            state = tuple(torch.where(live, n, s) for n, s in zip(new, state, strict=True))
            ys[t] = torch.where(live, new[0], 0.0)
        ends.append(state)
        sides.append(torch.stack(ys))
        if len(sides) == D:
            x = torch.cat(sides, -1)
            sides.clear()
    return [x, *(torch.stack(of_all) for of_all in zip(*ends, strict=True))]


def grads(results: Any, wanted: Any) -> Any:
    loss = sum((r * torch.linspace(-1, 1, r.numel(), dtype=r.dtype).view(r.shape)).sum() for r in results)
    return torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize(
    ("kind", "norm", "backend"),
    [*((*kind, "numpy") for kind in KINDS), pytest.param("GRU", "haste", "numba", marks=pytest.mark.slow)],
)
def test_results_and_gradients_are_those_of_a_loop(kind: str, norm: str, backend: str) -> None:
    layer = make(kind, norm, num_layers=2, bidirectional=True, backend=backend)
    lengths = [5, 0, 3]
    x = randn(5, 3, 3)
    states = [randn(4, 3, 4) for _ in layer.state_names]
    y, state_n = layer(x, states if len(states) == 2 else states[0], lengths=lengths)
    got = [y, *(state_n if isinstance(state_n, tuple) else (state_n,))]
    want = looped(layer, x, states, lengths)
    names = ["x", *layer.state_names, *dict(layer.named_parameters())]
    wanted = [x, *states, *layer.parameters()]
    for name, a, b in zip(["y", *layer.state_names], got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=name)
    for name, a, b in zip(names, grads(got, wanted), grads(want, wanted), strict=True):
        assert b.abs().max() > 1e-3, name
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("kind", "norm"), slow_except(KINDS, ("LSTM", "torch"), unpack=True))
def test_derivatives_of_every_parameter(kind: str, norm: str) -> None:
    layer = make(kind, norm)
    names = [name for name, _ in layer.named_parameters()]
    x = randn(2, 2, 3)

    def call(x: Any, *weights: Any) -> Any:
        y, state = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))
        return (y, *(state if isinstance(state, tuple) else (state,)))

    arguments = (x, *(p.detach().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(call, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)
    _, tangent = torch.func.jvp(lambda x: layer(x)[0], (x.detach(),), (torch.ones_like(x),))
    far = 1e-6
    moved = (layer(x + far)[0] - layer(x - far)[0]) / (2 * far)
    torch.testing.assert_close(tangent, moved, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("kind", "norm"), KINDS)
def test_parameters_are_those_of_the_plain_layer(kind: str, norm: str) -> None:
    layer = getattr(rnnkit.torch, kind)(3, 4, 2, layer_norm=norm, backend="numpy", dtype=torch.float64)
    plain = getattr(rnnkit, kind)(3, 4, 2, layer_norm=norm, backend="numpy", dtype="float64", rng=0)
    assert {n: tuple(p.shape) for n, p in layer.state_dict().items()} == {n: p.shape for n, p in plain.params.items()}
    for name, parameter in layer.named_parameters():
        if not name.startswith(("weight_ih", "weight_hh")):
            assert np.array_equal(parameter.detach().numpy(), plain.params[name]), name
    with torch.no_grad():
        layer.weight_layer_norm_l1.mul_(0.5)
        layer.bias_ih_l0.add_(0.5)
    plain.load_state_dict({n: p.numpy() for n, p in layer.state_dict().items()}, cells=plain.cell.name)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    want = layer(x)[0].detach()
    np.testing.assert_allclose(plain(x.numpy())[0], want.numpy(), rtol=0, atol=1e-13)
    assert f"layer_norm='{norm}'" in repr(layer)
    loaded = getattr(rnnkit.torch, kind)(3, 4, 2, layer_norm=norm, backend="numpy", dtype=torch.float64)
    loaded.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(twin(x)[0], want)
    layer.reset_parameters()
    for name, parameter in layer.named_parameters():
        if name.startswith("bias"):
            assert not parameter.any()
        elif name.startswith("weight_layer_norm"):
            shift = parameter[9] if kind == "LSTM" else torch.zeros(1)
            assert not shift.any()
            assert (parameter[:9] == 1).all()
        else:
            assert not torch.equal(parameter, loaded.get_parameter(name))


def test_the_norm_is_part_of_the_repr_and_of_the_call() -> None:
    layer = rnnkit.torch.LSTM(4, 6, layer_norm="torch", norm_eps=1e-3)
    assert layer.extra_repr() == "4, 6, layer_norm='torch', norm_eps=0.001"
    x = torch.randn(5, 3, 4)
    for backend in ("numpy", None):
        layer.backend = backend
        found = rnnkit.torch.explain(layer, x)
        assert found.backend == (backend or "numba")
        assert "layer_norm='torch'" in found.layer
    assert "lstm+layer_norm=torch scan" in found.kernel


def test_under_compile_the_call_is_one_node() -> None:
    layer = make("LSTM", "haste", bidirectional=True)
    x = randn(5, 3, 3)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    wanted = [x, *layer.parameters()]
    for got, want in zip(grads([compiled(x)[0]], wanted), grads([layer(x)[0]], wanted), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_on_the_meta_device_and_under_vmap() -> None:
    with torch.device("meta"):
        layer = rnnkit.torch.GRU(3, 4, layer_norm="haste", bidirectional=True)
    y, h_n = layer(torch.ones(5, 2, 3, device="meta"))
    assert y.is_meta
    assert (y.shape, h_n.shape) == ((5, 2, 8), (2, 2, 4))
    y.sum().backward()
    assert layer.weight_layer_norm_l0_reverse.grad.shape == (6, 4)
    layer = make("GRU", "dreamer")
    x = randn(4, 5, 2, 3)
    torch.testing.assert_close(torch.vmap(lambda x: layer(x)[0])(x), torch.stack([layer(one)[0] for one in x]))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("LSTM", {"layer_norm": "dreamer"}, "layer_norm must be one of 'haste', 'torch'"),
        ("GRU", {"layer_norm": "haste", "reset_after": False}, "layer_norm must be None with reset_after=False"),
        ("LSTM", {"layer_norm": "haste", "proj_size": 2}, "proj_size must be 0 with layer_norm, got 2"),
        ("LSTM", {"layer_norm": "haste", "zoneout": 0.1}, "zoneout must be off with layer_norm"),
        ("GRU", {"layer_norm": "haste", "clip": 0.1}, "clip must be off with layer_norm"),
        ("GRU", {"norm_eps": 0.1}, "norm_eps must be None without layer_norm"),
        ("GRU", {"layer_norm": "haste", "norm_eps": 0.0}, "norm_eps must be finite and above 0"),
        ("GRU", {"layer_norm": "haste", "backend": "numpy", "strict": True}, "has no compiled kernels"),
    ],
)
def test_bad_arguments(kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(rnnkit.torch, kind)(3, 4, **arguments)
    with pytest.raises(TypeError, match="unexpected keyword argument 'layer_norm'"):
        rnnkit.torch.RNN(3, 4, layer_norm="haste")


def test_weights_of_another_shape_are_refused() -> None:
    layer = make("GRU", "haste")
    layer.weight_layer_norm_l0 = torch.nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"weight_layer_norm_l0 must have the shape \(6, 4\), got \(3, 4\)"):
        layer(randn(5, 2, 3))


@pytest.mark.parametrize(("kind", "norm"), slow_except(KINDS, ("LSTM", "torch"), unpack=True))
def test_on_a_cuda_device_the_kernels_of_cupy_run(kind: str, norm: str, card: Any) -> None:  # noqa: F811
    layer = make(kind, norm, num_layers=2, bidirectional=True, dtype=torch.float32)
    rng = np.random.default_rng(0)
    options = {"cell": layer._text, "backend": None, "bidirectional": True}
    states = len(layer.state_names)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    given = [
        draw(5, 3, 3),
        *(draw(4, 3, 4) for _ in range(states)),
        draw(5, 3, 8),
        *(draw(4, 3, 4) for _ in range(states)),
    ]
    weights = [w.detach().numpy() for w in layer._flat_weights]

    def results(put: Any, get: Any, backend: str | None) -> list[np.ndarray]:
        x, *rest = map(put, given)
        state0, dy, dstate_n = rest[:states], rest[states], rest[states + 1 :]
        call = (x, state0, list(map(put, weights)), [], torch.tensor([5, 0, 3]))
        own = {**options, "backend": backend}
        *forward, reserve = operators.forward(*call, **own, keep=True)
        return list(map(get, (*forward, *operators.backward(dy, dstate_n, *call, reserve, **own))))

    wanted = results(lambda a: torch.from_numpy(a.astype("float64")), lambda t: t.numpy(), "numpy")
    got = results(lambda a: OnCard(card.cp.asarray(a)), lambda t: card.cp.asnumpy(t.array), None)
    for k, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert_close(f"result {k}", a, b, "float32", "backward")


@pytest.mark.slow
def test_onnx_refuses_it(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from rnnkit.torch.onnx import translation_table

    layer = rnnkit.torch.LSTM(4, 6, layer_norm="haste", backend="numpy").eval()
    with pytest.raises(Exception, match="layer_norm"):
        torch.onnx.export(
            layer,
            (torch.ones(5, 3, 4),),
            str(tmp_path / "layer.onnx"),
            dynamo=True,
            custom_translation_table=translation_table(),
        )
