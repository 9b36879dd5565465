"""Options of cells through rnnkit.torch: as rnnkit's layers, all derivatives, ONNX, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import rnnkit  # noqa: E402
import rnnkit.torch  # noqa: E402
from rnnkit.torch.dispatch import Stack  # noqa: E402
from rnnkit.torch.equations import run as by_equations  # noqa: E402

pytestmark = pytest.mark.peers

LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {"peephole": True, "clip": 0.7, "cell_clip": 0.5}),
    "coupled": (
        "LSTM",
        {"peephole": True, "coupled": True, "proj_size": 3, "activations": ("HardSigmoid", "Softsign", ("Elu", 0.7))},
    ),
    "gru": ("GRU", {"clip": 0.5, "activations": ("Softplus", ("ScaledTanh", 1.2, 0.7))}),
    "reset before": ("GRU", {"reset_after": False, "clip": 0.5, "activations": ("Sigmoid", ("Affine", 0.6, 0.1))}),
    "rnn": ("RNN", {"clip": 0.9, "activations": (("LeakyRelu", 0.1),)}),
    "threshold": ("RNN", {"activations": (("ThresholdedRelu", 0.2),)}),
}
SMALL = "lstm"
NAMES = [pytest.param(name, marks=() if name == SMALL else pytest.mark.slow) for name in LAYERS]


def both(name: str) -> tuple[Any, Any]:
    """A layer of rnnkit.torch and one of rnnkit, with equal weights, in float64."""
    kind, options = LAYERS[name]
    shape = {"num_layers": 2, "bidirectional": True, "backend": "numpy", **options}
    layer = getattr(rnnkit.torch, kind)(4, 6, dtype=torch.float64, **shape)
    plain = getattr(rnnkit, kind)(4, 6, dtype="float64", **shape)
    plain.load_state_dict({n: p.detach() for n, p in layer.named_parameters()}, cells=plain.cell.name)
    return layer, plain


@pytest.mark.parametrize("name", NAMES)
def test_results_and_gradients_equal_those_of_rnnkit_and_of_the_equations(name: str) -> None:
    torch.manual_seed(0)
    layer, plain = both(name)
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    lengths = [5, 0, 3]
    y, _ = layer(x, lengths=lengths)
    want, _ = plain(x.detach().numpy(), lengths=lengths)
    np.testing.assert_allclose(y.detach().numpy(), want, atol=1e-12)
    y.sum().backward()
    dx, _ = plain.backward(np.ones_like(want))
    np.testing.assert_allclose(x.grad.numpy(), dx, atol=1e-12)
    stack = Stack(layer._text, "numpy", True, 0, 0)
    looped, *_ = by_equations(stack, torch.tensor(lengths), x, *layer._flat_weights)
    torch.testing.assert_close(looped, y)
    own = torch.autograd.grad(looped.sum(), list(layer.parameters()), allow_unused=True)
    for (parameter, value), grad in zip(layer.named_parameters(), own, strict=True):
        np.testing.assert_allclose(value.grad.numpy(), plain.grads[parameter], atol=1e-12, err_msg=parameter)
        torch.testing.assert_close(value.grad, torch.zeros_like(value) if grad is None else grad)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_first_and_second_derivatives(name: str) -> None:
    torch.manual_seed(1)
    layer, _ = both(name)
    x = torch.randn(2, 1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: layer(a)[0], (x,))
    assert torch.autograd.gradgradcheck(lambda a: layer(a)[0], (x,))


def test_two_clips_over_the_same_weights() -> None:
    one = rnnkit.torch.LSTM(4, 6, clip=0.7, backend="numpy")
    other = rnnkit.torch.LSTM(4, 6, clip=0.1, backend="numpy")
    for name, parameter in one.named_parameters():
        setattr(other, name, parameter)
    x = torch.randn(5, 3, 4)
    first = one(x)[0]
    assert (other(x)[0] - first).abs().max() > 1e-3
    torch.testing.assert_close(one(x)[0], first)
    torch.testing.assert_close(copy.deepcopy(one)(x)[0], first)


def test_arguments_show_and_are_checked() -> None:
    layer = rnnkit.torch.LSTM(4, 6, peephole=True, clip=0.5)
    assert layer.extra_repr() == "4, 6, peephole=True, clip=0.5"
    assert [n for n, _ in layer.named_parameters()][-1] == "weight_peephole_l0"
    with pytest.raises(ValueError, match="clip must be finite and above 0"):
        rnnkit.torch.GRU(4, 6, clip=-1.0)
    with pytest.raises(ValueError, match="backend 'numpy' has no compiled kernels"):
        rnnkit.torch.LSTM(4, 6, clip=0.5, backend="numpy", strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peephole", "coupled", "gru", "rnn"])
def test_onnx_runtime_computes_an_exported_layer(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    from rnnkit.torch.onnx import translation_table

    kind, options = LAYERS.get(name, ("LSTM", {"peephole": True, "clip": 0.7}))
    options = {key: value for key, value in options.items() if key != "proj_size"}
    layer = getattr(rnnkit.torch, kind)(4, 6, 2, bidirectional=True, backend="numpy", **options).eval()
    x = torch.randn(5, 3, 4)
    path = str(tmp_path / "layer.onnx")
    torch.onnx.export(layer, (x,), path, dynamo=True, custom_translation_table=translation_table())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got[0], layer(x)[0].detach().numpy(), atol=1e-5)


@pytest.mark.slow
def test_onnx_refuses_what_it_does_not_have(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from rnnkit.torch.onnx import translation_table

    layer = rnnkit.torch.LSTM(4, 6, cell_clip=0.5, backend="numpy").eval()
    with pytest.raises(Exception, match="cell_clip"):
        torch.onnx.export(
            layer,
            (torch.ones(5, 3, 4),),
            str(tmp_path / "layer.onnx"),
            dynamo=True,
            custom_translation_table=translation_table(),
        )
