"""rnnkit.torch.SLSTMCell: one step with four states, against rnnkit.SLSTMCell and the layer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402

import rnnkit  # noqa: E402
import rnnkit.torch as rt  # noqa: E402
from rnnkit.testing import assert_close  # noqa: E402
from tests.helpers import slow_except  # noqa: E402
from tests.torch.test_compile import Recorded  # noqa: E402
from tests.torch.test_slstm import F64, NAMES, randn, weighted  # noqa: E402
from tests.torch.tracing import assert_same, leaves  # noqa: E402

pytestmark = pytest.mark.peers
I, H, B = 3, 4, 3


def made(**options: Any) -> Any:
    """A Cell in float64, whose weights are large enough for m to come from either gate."""
    torch.manual_seed(0)
    cell = rt.SLSTMCell(I, H, **({"dtype": F64, "backend": "numpy"} | options))
    with torch.no_grad():
        for p in cell.parameters():
            p.mul_(2)
    return cell


def states(rows: int | None = B, dtype: Any = F64) -> tuple[Any, ...]:
    """States that differ, n at least 1; the last row has had no step, n = 0."""
    h, c, n, m = (torch.randn(*(() if rows is None else (rows,)), H, dtype=dtype) for _ in NAMES)
    n = 1 + n.abs()
    if rows is not None and rows > 2:  # finite differences would cross the corner at 0
        n[-1] = 0
        c[-1] = 0
    return tuple(s.requires_grad_() for s in (h, c, n, m))


@pytest.mark.parametrize(
    ("backend", "dtype", "bias"),
    slow_except(
        [("numpy", F64, True), ("numpy", F64, False), ("numba", torch.float32, True), ("numpy", torch.bfloat16, True)],
        ("numpy", F64, True),
        unpack=True,
    ),
    ids=str,
)
def test_values_and_gradients_are_those_of_rnnkit(backend: str, dtype: Any, bias: bool) -> None:
    cell = made(bias=bias, backend=backend, dtype=dtype)
    plain = rnnkit.SLSTMCell(I, H, bias=bias, dtype="float64", backend="numpy")
    plain.load_state_dict({name: t.double() for name, t in cell.state_dict().items()})
    x, hx = randn(B, I, dtype=dtype), states(dtype=dtype)
    new = cell(x, hx)
    parameters = dict(cell.named_parameters())
    found = torch.autograd.grad(weighted(new), [x, *hx, *parameters.values()])
    got = dict(zip(["dx", *(f"d{name}" for name in NAMES), *parameters], found, strict=True))
    wide = [t.detach().double().numpy() for t in (x, *hx)]
    want_new = plain(wide[0], tuple(wide[1:]))
    dx, dstate = plain.backward(tuple(np.linspace(-1, 1.5, s.size).reshape(s.shape) for s in want_new))
    want = {"dx": dx, **plain.grads} | {f"d{name}": d for name, d in zip(NAMES, dstate, strict=True)}
    name_of = str(dtype).removeprefix("torch.")
    for name, a, b in zip(NAMES, new, want_new, strict=True):
        assert_close(name, a.detach().double().numpy(), b, name_of)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert_close(name, got[name].double().numpy(), value, name_of, "backward")


def test_steps_are_those_of_the_layer() -> None:
    cell = made()
    layer = rt.SLSTM(I, H, dtype=F64, backend="numpy")
    layer.load_state_dict({f"{n}_l0" if n != "slstm" else n: t for n, t in cell.state_dict().items()})
    x, hx = torch.randn(5, B, I, dtype=F64), states()
    y, ends = layer(x, tuple(s[None] for s in hx))
    state: Any = hx
    for x_t, y_t in zip(x, y, strict=True):
        state = cell(x_t, state)
        torch.testing.assert_close(state[0], y_t)
    torch.testing.assert_close(state, tuple(s[0] for s in ends))
    one = layer(x[:1], tuple(s[None] for s in hx))[1]
    assert_same(cell(x[0], hx), tuple(s[0] for s in one), 0, 0)
    assert_same(cell(x[0, 1], tuple(s[1] for s in hx)), tuple(s[1] for s in cell(x[0], hx)))
    assert_same(cell(x[0]), cell(x[0], tuple(torch.zeros(4, B, H, dtype=F64))), 0, 0)


@pytest.mark.parametrize("given", [4, 0])
def test_gradcheck_in_both_modes_and_gradgradcheck(given: int) -> None:
    cell = made()
    names = [name for name, _ in cell.named_parameters()]
    tensors = (randn(2, I), *states(2)[:given], *(p.detach().requires_grad_() for p in cell.parameters()))

    def function(x: Any, *rest: Any) -> tuple[Any, ...]:
        weights = dict(zip(names, rest[given:], strict=True))
        return tuple(leaves(functional_call(cell, weights, (x, rest[:given] or None))))

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_compiled_as_one_node_at_any_size() -> None:
    torch._dynamo.reset()
    cell = made()
    compiled = Recorded(cell)
    for rows in (6, 5):
        x, hx = randn(rows, I), states(rows)
        given = [x, *hx, *cell.parameters()]
        results = compiled(x, hx), cell(x, hx)
        assert_same(results[0], results[1])
        assert_same(*(torch.autograd.grad(weighted(r), given) for r in results))
    assert compiled.nodes == {"forward": 1, "keep=True": 1, "backward": 1}
    exported = torch.export.export(made(), (torch.ones(2, I, dtype=F64), states(2)))
    x, hx = torch.randn(2, I, dtype=F64), states(2)
    assert_same(exported.module()(x, hx), made()(x, hx))


def test_state_dicts_copies_repr_explain_and_replace() -> None:
    cell = made(bias=False)
    assert list(cell.state_dict()) == ["weight_ih", "weight_hh", "slstm"]
    assert repr(cell) == "SLSTMCell(3, 4, bias=False, backend='numpy')"
    for lstm in (nn.LSTMCell(I, H, bias=False), rt.LSTMCell(I, H, bias=False)):
        with pytest.raises(RuntimeError, match=r"Missing key.*slstm"):
            cell.load_state_dict(lstm.state_dict())
        with pytest.raises(RuntimeError, match=r"Unexpected key.*slstm"):
            lstm.load_state_dict(cell.state_dict())
    x, hx = torch.randn(B, I, dtype=F64), states()
    for twin in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert_same(twin(x, hx), cell(x, hx), 0, 0)
    half = copy.deepcopy(cell).half()
    assert {s.dtype for s in half(x.half(), tuple(s.half() for s in hx))} == {torch.float16}
    assert half.slstm.dtype is torch.bool
    with torch.autocast("cpu", torch.bfloat16):
        assert {s.dtype for s in copy.deepcopy(cell).float()(x.float())} == {torch.bfloat16}
    with torch.device("meta"):
        assert [s.shape for s in rt.SLSTMCell(I, H)(torch.ones(B, I))] == [(B, H)] * 4
    mapped = torch.vmap(lambda x, *hx: cell(x, hx))(torch.stack([x, 2 * x]), *(torch.stack([s, s]) for s in hx))
    assert_same(tuple(s[1] for s in mapped), cell(2 * x, hx), 1e-12, 1e-12)
    found = rt.explain(cell, x, hx)
    assert found.backend == "numpy"
    assert "slstm" in found.kernel
    report = rt.replace(nn.ModuleDict({"ours": cell, "theirs": nn.LSTMCell(I, H)}))
    assert [s.names for s in report.swapped] == [("theirs",)]
    assert [(left.kind, left.why) for left in report.left] == [("rnnkit.torch.SLSTMCell", "is rnnkit's already")]


def test_bad_arguments() -> None:
    cell = made()
    x, (h, c, n, m) = torch.zeros(B, I, dtype=F64), states()
    wanted = r"hx must be a tuple of 4 tensors \(h_0, c_0, n_0, m_0\), got "
    for hx, error, got in (
        ((h, c), RuntimeError, wanted + "2"),
        (h, TypeError, wanted + r"one tensor of shape \(3, 4\)"),
        ((h, c, n, None), TypeError, r"hx\[3\] must be a torch.Tensor, got NoneType"),
        ((h, c, n[:2], m), RuntimeError, "Input batch size 3 doesn't match hidden2 batch size 2"),
        ((h, c, n, m[:, :2]), RuntimeError, "hidden3 has inconsistent hidden_size: got 2, expected 4"),
        ((h, c, n, m.float()), RuntimeError, r"hx\[3\] must have the dtype and device of input"),
    ):
        with pytest.raises(error, match=got):
            cell(x, hx)
    with pytest.raises(ValueError, match="Expected input to be 1D or 2D, got 3D"):
        cell(x[None])
    for unknown in ("zoneout", "peephole", "layer_norm"):
        with pytest.raises(TypeError, match=unknown):
            rt.SLSTMCell(I, H, **{unknown: 1})
    with pytest.raises(ValueError, match="has no compiled kernels"):
        rt.SLSTMCell(I, H, backend="numpy", strict=True)
    with pytest.raises(NotImplementedError, match=r"torch.jit.script cannot compile SLSTMCell of rnnkit.torch"):
        torch.jit.script(cell)
