"""What replace() and restore() leave as it is, with the reason; bad arguments; and the report."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
import rnnkit.torch  # noqa: E402
from tests.torch.models import model, record  # noqa: E402

nn = torch.nn
pytestmark = pytest.mark.peers


class Plain(nn.LSTM):
    pass


class OwnForward(nn.GRUCell):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return input


class OwnLayer(nn.RNNBase):
    def __init__(self) -> None:
        super().__init__("LSTM", 4, 6)


def with_forward() -> nn.Module:
    layer = nn.LSTM(4, 6)
    layer.forward = lambda *_: None  # type: ignore[method-assign]
    return layer


def with_attribute(name: str) -> nn.Module:
    layer = nn.GRU(4, 6)
    setattr(layer, name, 1)
    return layer


def sharded() -> nn.Module:
    layer = nn.GRU(4, 6)
    mixin = type("FSDPModule", (), {"__module__": "torch.distributed.fsdp"})  # PyTorch 2.4 has it elsewhere
    layer.__class__ = type("FSDPGRU", (mixin, nn.GRU), {})  # as fully_shard does
    return layer


def lazy() -> nn.Module:
    layer = nn.LSTM(4, 6)
    layer.weight_ih_l0 = nn.UninitializedParameter()
    return layer


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(4, 6)), {nn.LSTM})[0]


HERE = __name__
LEFT = {
    "ours": (lambda: rnnkit.torch.GRU(4, 6), "rnnkit.torch.GRU", "is rnnkit's already"),
    "ours, as a subclass": (
        lambda: rnnkit.torch.subclasses.GRU(4, 6),
        "rnnkit.torch.subclasses.GRU",
        "is rnnkit's already",
    ),
    "a subclass": (
        lambda: Plain(4, 6),
        f"{HERE}.Plain",
        "its class is derived from torch.nn.LSTM: derive it from rnnkit.torch.LSTM instead",
    ),
    "a forward": (
        lambda: OwnForward(4, 6),
        f"{HERE}.OwnForward",
        "its class is derived from torch.nn.GRUCell, and has a forward of its own",
    ),
    "another layer": (
        OwnLayer,
        f"{HERE}.OwnLayer",
        "its class is derived from torch.nn.RNNBase, and defines another layer",
    ),
    "a forward that was set": (with_forward, "torch.nn.LSTM", "a forward was set on it"),
    "an attribute": (
        lambda: with_attribute("backend"),
        "torch.nn.GRU",
        "an attribute 'backend' was set on it, which rnnkit's class has too",
    ),
    "a hidden attribute": (
        lambda: with_attribute("cell_name"),
        "torch.nn.GRU",
        "an attribute 'cell_name' was set on it, which rnnkit's class has too",
    ),
    "lazy": (lazy, "torch.nn.LSTM", "has parameters that are not initialised: call the model once before"),
    "complex": (
        lambda: nn.LSTM(4, 6, dtype=torch.complex64),
        "torch.nn.LSTM",
        "no backend can run lstm in complex64 on cpu: numba: does not serve complex64; numpy: does not serve complex64",
    ),
    "sharded": (sharded, f"{HERE}.FSDPGRU", "its class was changed by fully_shard: call replace before"),
    "scripted": (lambda: torch.jit.script(nn.GRU(4, 6)), "RecursiveScriptModule of GRU", "is compiled by TorchScript"),
    "quantized": (quantized, "torch.ao.nn.quantized.dynamic.modules.rnn.LSTM", "is quantized"),
    "quantizable": (
        lambda: torch.ao.nn.quantizable.LSTM(4, 6),
        "torch.ao.nn.quantizable.modules.rnn.LSTM",
        "is quantized",
    ),
}


@pytest.mark.parametrize("case", LEFT)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_swapped_is_left_and_named(case: str) -> None:
    make, kind, why = LEFT[case]
    module = nn.Sequential(nn.GRU(4, 6), make())
    before = record(module[1])
    report = rnnkit.torch.replace(module)
    assert [s.names for s in report.swapped] == [("0",)]
    assert [(entry.names, entry.kind, entry.why) for entry in report.left] == [(("1",), kind, why)]
    assert record(module[1]) == before
    assert f"  1  {kind}: {why}" in str(report).splitlines()


def test_parameters_on_other_devices_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.GRU(4, 6)

    class Elsewhere(nn.Parameter):
        device = torch.device("mps")

    layer.bias_hh_l0 = Elsewhere(layer.bias_hh_l0.data)
    (left,) = rnnkit.torch.replace(layer).left
    assert left.why == "its parameters are on mps, and rnnkit runs on cpu and cuda"


def test_a_backend_that_does_not_serve_a_layer_leaves_it() -> None:
    module = nn.Sequential(nn.GRU(4, 6), nn.GRU(6, 6, dtype=torch.complex64))
    report = rnnkit.torch.replace(module, backend="numba")
    assert [s.names for s in report.swapped] == [("0",)]
    assert "backend 'numba' serves" in report.left[0].why


def test_replacing_twice_swaps_nothing_more() -> None:
    module = model()
    rnnkit.torch.replace(module)
    before = record(module)
    report = rnnkit.torch.replace(module, subclasses=True)
    assert report.swapped == ()
    assert {entry.why for entry in report.left} == {"is rnnkit's already"}
    assert record(module) == before


def test_restore_leaves_what_was_built_as_ours() -> None:
    module = nn.Sequential(rnnkit.torch.GRU(4, 6), nn.GRU(6, 6), nn.LSTM(6, 6))
    rnnkit.torch.replace(module)
    module[1].reset_after = False
    report = rnnkit.torch.restore(module)
    assert [s.names for s in report.swapped] == [("2",)]
    assert [(entry.names, entry.why) for entry in report.left] == [
        (("0",), "was built as rnnkit's"),
        (("1",), "has reset_after=False, which torch.nn does not have"),
    ]
    assert type(module[0]) is type(module[1]) is rnnkit.torch.GRU


def test_restore_leaves_a_class_that_was_changed_since() -> None:
    layer = nn.GRU(4, 6)
    rnnkit.torch.replace(layer)
    layer.__class__ = type("FSDPGRU", (rnnkit.torch.GRU,), {})
    (left,) = rnnkit.torch.restore(layer).left
    assert left.why == "its class was changed after replace"
    assert type(layer).__name__ == "FSDPGRU"


# Bad arguments, and the report


def test_bad_arguments() -> None:
    layer = nn.GRU(4, 6)
    for function in (rnnkit.torch.replace, rnnkit.torch.restore):
        with pytest.raises(TypeError, match=r"^module must be a torch.nn.Module, got OrderedDict$"):
            function(layer.state_dict())
    with pytest.raises(ValueError, match=r"backend must be None or one of 'numba', 'numpy'.*got 'fast'"):
        rnnkit.torch.replace(layer, backend="fast")
    with pytest.raises(TypeError, match="subclasses must be"):
        rnnkit.torch.replace(layer, subclasses=1)
    assert type(layer) is nn.GRU


def test_the_report_is_a_table() -> None:
    module = nn.ModuleDict({"encoder": nn.LSTM(4, 6), "head": nn.Linear(6, 1), "own": OwnForward(4, 6)})
    module["again"] = module["encoder"]
    assert str(rnnkit.torch.replace(module)) == (
        "swapped\n"
        "  encoder, again  torch.nn.LSTM -> rnnkit.torch.LSTM\n"
        "left\n"
        f"  own             {HERE}.OwnForward: its class is derived from torch.nn.GRUCell, and has a forward of its own"
    )
    assert str(rnnkit.torch.replace(nn.Linear(1, 1))) == "no recurrent layer"
