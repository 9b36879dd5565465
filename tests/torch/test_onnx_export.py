"""torch.onnx.export: LSTM, GRU and RNN nodes of ONNX, which ONNX Runtime runs with eager's numbers at any T and B."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

import rnnkit.torch as rt  # noqa: E402
from rnnkit.testing import assert_close  # noqa: E402
from rnnkit.torch.onnx import translation_table  # noqa: E402
from tests.torch.test_export import B, T, Wrapped  # noqa: E402
from tests.torch.tracing import inputs, leaves  # noqa: E402

pytestmark = pytest.mark.peers

# name -> (the layer, whether with lengths). The first word is the name of ONNX's operator.
LAYERS: dict[str, tuple[Callable[[], Any], bool]] = {
    "RNN": (lambda: rt.RNN(4, 6, nonlinearity="relu", bidirectional=True), True),
    "RNN_two_layers": (lambda: rt.RNN(4, 6, 2, bias=False), False),
    "GRU": (lambda: rt.GRU(4, 6, 2, bidirectional=True), True),
    "GRU_reset_before": (lambda: rt.GRU(4, 6, reset_after=False, bias=False), False),
    "LSTM": (lambda: rt.LSTM(4, 6, 2, bidirectional=True, dropout=0.5), True),
}


def to_onnx(model: Any, given: tuple[Any, ...], ragged: bool) -> Any:
    of_hx = ({1: B}, {1: B}) if isinstance(given[1], tuple) else {1: B}
    shapes = ({0: T, 1: B}, of_hx, {0: B} if ragged else None)
    table = translation_table()
    return torch.onnx.export(
        model, given, dynamo=True, dynamic_shapes=shapes, custom_translation_table=table, verbose=False
    )


@pytest.mark.parametrize("name", LAYERS)
def test_onnx_runtime_computes_what_eager_does(name: str) -> None:
    torch.manual_seed(0)
    make, ragged = LAYERS[name]
    layer = make()
    model = Wrapped(layer).eval()
    program = to_onnx(model, (*inputs(layer, 5, 3), torch.tensor([5, 2, 4]) if ragged else None), ragged)
    nodes = Counter(node.op_type for node in program.model.graph)
    assert nodes[name.split("_")[0]] == layer.num_layers
    session = ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for steps, lengths in ((7, [7, 3]), (4, [4, 1, 0, 2])):
        given = (*inputs(layer, steps, len(lengths)), torch.tensor(lengths) if ragged else None)
        feeds = zip(session.get_inputs(), leaves(given), strict=True)
        results = session.run(None, {place.name: tensor.numpy() for place, tensor in feeds})
        with torch.no_grad():
            expected = leaves(model(*given))
        for k, (got, want) in enumerate(zip(results, expected, strict=True)):
            assert_close(f"result {k}", got, want.numpy(), "float32")


def test_projection_is_refused() -> None:
    layer = rt.LSTM(4, 6, proj_size=5)
    with pytest.raises(Exception) as caught:
        to_onnx(Wrapped(layer).eval(), (*inputs(layer, 5, 3), None), False)
    assert "proj_size cannot be exported to ONNX" in messages(caught.value)


def test_dropout_is_refused() -> None:
    layer = rt.GRU(4, 6, 2, dropout=0.5)
    x, h = inputs(layer, 5, 3)
    forward = translation_table()[torch.ops.rnnkit.forward.default]
    with pytest.raises(ValueError, match=r"dropout cannot be exported to ONNX: call eval\(\)"):
        forward(x, [h], layer._flat_weights, [x], None, cell="gru")


def messages(error: BaseException | None) -> str:
    """The messages of an error and of its causes."""
    return "" if error is None else f"{error}\n{messages(error.__cause__)}"


def test_missing_onnxscript_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnxscript \(pip install onnxscript\)"):
        translation_table()


def test_the_program_in_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "from-torch.md"
    (program,) = [code for code in re.findall(r"```py\n(.*?)```", page.read_text(), re.DOTALL) if "onnx" in code]
    monkeypatch.chdir(tmp_path)
    exec(compile(program, str(page), "exec"), {})
    session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    x = torch.ones(3, 7, 4)
    y, h_n = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert y.shape == (3, 7, 6)
    assert h_n.shape == (1, 7, 6)
