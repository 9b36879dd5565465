"""rnnkit.torch.SLSTM: a layer with four states, against the float64 oracle and its equations as a loop of PyTorch."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

import rnnkit  # noqa: E402
import rnnkit.torch as rt  # noqa: E402
from rnnkit.core.cells import Weights  # noqa: E402
from rnnkit.parity import check_layer  # noqa: E402
from rnnkit.testing import assert_close, error_ratio  # noqa: E402
from tests.api.resets import inputs as flagged_inputs  # noqa: E402
from tests.helpers import slow_except  # noqa: E402
from tests.peers.test_slstm import scan, step  # noqa: E402
from tests.torch.releases import needs  # noqa: E402
from tests.torch.test_compile import Recorded  # noqa: E402
from tests.torch.test_cuda_path import OnCard, card  # noqa: E402, F401
from tests.torch.test_export import Wrapped  # noqa: E402
from tests.torch.test_resets import stepped  # noqa: E402
from tests.torch.tracing import Calls, assert_same, leaves, operator_nodes  # noqa: E402

pytestmark = pytest.mark.peers
I, H, T, B = 3, 4, 5, 3
F64 = torch.float64
LENGTHS = [5, 0, 3]
NAMES = ("h", "c", "n", "m")


def made(*arguments: Any, **options: Any) -> Any:
    """A layer in float64, whose weights are large enough for m to come from either gate."""
    torch.manual_seed(0)
    layer = rt.SLSTM(I, H, *arguments, **({"dtype": F64, "backend": "numpy"} | options))
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(2)
    return layer


def randn(*shape: int, dtype: Any = F64) -> Any:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def states(layer: Any, rows: int | None = B, dtype: Any = F64) -> tuple[Any, ...]:
    """Initial states that differ, n at least 1; a row without a step yet, n = 0, has c = 0 too."""
    slots = layer.num_layers * (2 if layer.bidirectional else 1)
    batch = () if rows is None else (rows,)
    h, c, n, m = (torch.randn(slots, *batch, H, dtype=dtype) for _ in NAMES)
    n = 1 + n.abs()
    if rows and rows > 2:
        n[:, -1] = 0
        c[:, -1] = 0
    return tuple(s.requires_grad_() for s in (h, c, n, m))


def weighted(results: Any) -> Any:
    """A sum over the results whose gradients all differ."""
    return sum((r * torch.linspace(-1, 1.5, r.numel(), dtype=r.dtype).view(r.shape)).sum() for r in leaves(results))


def everything(layer: Any, x: Any, hx: Any, compiled: Any = None, **options: Any) -> dict[str, Any]:
    """The results of a call, and the gradients of `weighted` in x, the states and the parameters.

    compiled: what is called instead of the layer, with its parameters.
    """
    y, state_n = (layer if compiled is None else compiled)(x, hx, **options)
    parameters = dict(layer.named_parameters())
    names = ["dx", *(f"d{name}0" for name in NAMES), *parameters]
    found = torch.autograd.grad(weighted((y, state_n)), [x, *hx, *parameters.values()])
    return dict(zip(["y", *NAMES], (y, *state_n), strict=True)) | dict(zip(names, found, strict=True))


def oracle(layer: Any, x: Any, hx: Any, lengths: Any) -> dict[str, np.ndarray]:
    """What `everything` returns, by rnnkit.SLSTM in float64."""
    plain = rnnkit.SLSTM(
        I, H, layer.num_layers, bias=layer.bias, bidirectional=layer.bidirectional, dtype="float64", backend="numpy"
    )
    plain.load_state_dict({n: t.double() for n, t in layer.state_dict().items()})
    y, state_n = plain(x.detach().double().numpy(), tuple(s.detach().double().numpy() for s in hx), lengths)
    grads = [np.linspace(-1, 1.5, a.size).reshape(a.shape) for a in (y, *state_n)]
    dx, dstates = plain.backward(grads[0], tuple(grads[1:]))
    found = dict(zip(["y", *NAMES], (y, *state_n), strict=True)) | {"dx": dx} | plain.grads
    return found | {f"d{name}0": d for name, d in zip(NAMES, dstates, strict=True)}


@pytest.mark.parametrize(
    ("backend", "dtype", "bias"),
    slow_except(
        [
            ("numpy", torch.float64, True),
            ("numpy", torch.float64, False),
            ("numba", torch.float32, True),
            ("numba", torch.bfloat16, True),
        ],
        ("numpy", torch.float64, True),
        unpack=True,
    ),
    ids=str,
)
def test_results_and_gradients_are_the_oracles(backend: str, dtype: Any, bias: bool) -> None:
    layer = made(2, bias=bias, bidirectional=True, backend=backend).to(dtype)
    x = randn(T, B, I, dtype=dtype)
    hx = states(layer, dtype=dtype)
    got, want = everything(layer, x, hx, lengths=LENGTHS), oracle(layer, x, hx, LENGTHS)
    assert got.keys() == want.keys()
    name_of = str(dtype).removeprefix("torch.")
    for name, value in got.items():
        assert value.dtype is dtype
        direction = "forward" if name in ("y", *NAMES) else "backward"
        value = value.detach().double().numpy()
        assert np.abs(value).max() > 1e-3, name
        if dtype is torch.bfloat16:
            assert error_ratio(value, want[name], name_of, direction) <= 1, name
        else:
            assert_close(name, value, want[name], name_of, direction)


def test_layouts_of_the_input() -> None:
    """batch_first, unbatched, a PackedSequence in any order, and no state for one of zeros."""
    layer = made(2, bidirectional=True)
    x = randn(T, B, I)
    hx = states(layer)
    want = layer(x, hx, lengths=[5, 2, 3])
    first = made(2, bidirectional=True, batch_first=True)
    y, state_n = first(x.transpose(0, 1), list(hx), lengths=[5, 2, 3])
    assert_same((y.transpose(0, 1), state_n), want, 0, 0)
    packed = pack_padded_sequence(x, [5, 2, 3], enforce_sorted=False)
    out, state_n = layer(packed, hx)
    assert_same((pad_packed_sequence(out)[0], state_n), want, 0, 0)
    alone = layer(x[:, 0], tuple(s[:, 0] for s in hx))
    assert_same(alone, (want[0][:, 0], tuple(s[:, 0] for s in want[1])), 1e-14, 1e-14)
    zeros = tuple(torch.zeros_like(s) for s in hx)
    assert_same(layer(x), layer(x, zeros), 0, 0)
    for count in (0, T):
        y, end = layer(x[:count], hx, lengths=[0] * B)
        assert y.shape == (count, B, 2 * H)
        assert not y.any()
        assert_same(end, hx, 0, 0)


def test_calls_that_continue_and_dropout() -> None:
    layer = made(2, dropout=0.5)
    x, hx = randn(T, B, I), states(layer)
    torch.manual_seed(1)
    dropped = layer(x, hx)[0]
    torch.manual_seed(1)
    assert torch.equal(layer(x, hx)[0], dropped)
    layer.eval()
    assert not torch.equal(layer(x, hx)[0], dropped)
    y, end = layer(x[:2], hx)
    again, last = layer(x[2:], end)
    assert_same((torch.cat([y, again]), last), layer(x, hx), 1e-14, 1e-14)


# Derivatives


def looped(weights: list[Any], x: Any, hx: Any, lengths: Any, directions: int) -> tuple[Any, Any]:
    """The stack as the loop of tests/peers/test_slstm.py."""
    ends = []
    count = len(weights) // hx[0].shape[0]
    for slot in range(0, hx[0].shape[0], directions):
        sides = []
        for k in range(slot, slot + directions):
            w = Weights(*weights[k * count : (k + 1) * count])
            y, end = scan(x, tuple(s[k] for s in hx), w, lengths, k > slot)
            sides.append(y)
            ends.append(end)
        x = torch.cat(sides, -1)
    return x, tuple(torch.stack(of_all) for of_all in zip(*ends, strict=True))


def test_second_derivatives_are_those_of_a_loop() -> None:
    """The gradients of all gradients, in x, every state and every weight, also past steps that have ended."""
    layer = made(2, bidirectional=True)
    x, hx = randn(T, B, I), states(layer)
    wanted = [x, *hx, *layer.parameters()]
    found = []
    for results in (layer(x, hx, lengths=LENGTHS), looped(layer._flat_weights, x, hx, LENGTHS, 2)):
        first = torch.autograd.grad(weighted(results), wanted, create_graph=True)
        found.append((first, torch.autograd.grad(weighted(first), wanted)))
    assert_same(found[0], found[1], 1e-10, 1e-11)
    assert all(g.abs().max() > 1e-4 for g in found[0][1])


def as_function(layer: Any, given: int) -> Callable[..., tuple[Any, ...]]:
    """The layer as a function of flat tensors: x, `given` states, the weights."""
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Any, *rest: Any) -> tuple[Any, ...]:
        weights = dict(zip(names, rest[given:], strict=True))
        return tuple(leaves(functional_call(layer, weights, (x, rest[:given] or None))))

    return function


@pytest.mark.parametrize("start", ["states", "zeros", "small n"])
def test_gradcheck_in_both_modes_and_gradgradcheck(start: str) -> None:
    layer = made(bidirectional=True)
    x, hx = randn(3, 2, I), states(layer, 2)
    if start == "small n":  # sums f n' + i below 1, through which no gradient flows
        hx = (*hx[:2], (0.05 * torch.rand(2, 2, H, dtype=F64) + 0.1).requires_grad_(), (hx[3] - 3).detach())
        hx[3].requires_grad_()
    given = (x, *(() if start == "zeros" else hx), *(p.detach().requires_grad_() for p in layer.parameters()))
    function = as_function(layer, 0 if start == "zeros" else 4)
    assert torch.autograd.gradcheck(function, given, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, given, fast_mode=True)


def test_the_gradient_at_ties() -> None:
    """Where a_i = p, that of m is the one of a_i, by backward and by the equations of forward mode and double backward.

    Where f n' + i = 1, that of n passes."""
    layer = made()
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
    ones = torch.ones(1, 1, H, dtype=F64)
    m0 = -nn.functional.logsigmoid(0 * ones)  # so p = 0 = a_i
    hx = (0 * ones, ones, ones, m0)
    x = torch.zeros(1, 1, I, dtype=F64)
    bias = layer.bias_ih_l0

    def ends(bias: Any) -> Any:
        return functional_call(layer, {"bias_ih_l0": bias}, (x, hx))[1]

    assert torch.equal(ends(bias)[3], 0 * ones)
    (of_m,) = torch.autograd.grad(ends(bias)[3].sum(), bias, create_graph=True)
    want = torch.zeros(4 * H, dtype=F64)
    want[:H] = 1
    assert torch.equal(of_m, want)
    tangent = torch.func.jvp(ends, (bias.detach(),), (torch.ones_like(bias),))[1]
    assert torch.equal(tangent[3], ones)
    n0 = (0.5 * ones).requires_grad_()
    shifted = torch.zeros(4 * H, dtype=F64)
    shifted[:H] = np.log(0.5)  # i = 0.5, f = 1
    half = functional_call(layer, {"bias_ih_l0": shifted}, (x, (0 * ones, ones, n0, m0)))[1]
    assert torch.equal(half[2], ones)
    (dn,) = torch.autograd.grad(half[2].sum(), n0, create_graph=True)
    assert torch.equal(dn, ones)
    tangent = torch.func.jvp(
        lambda n: functional_call(layer, {"bias_ih_l0": shifted}, (x, (0 * ones, ones, n, m0)))[1][2],
        (n0.detach(),),
        (ones,),
    )[1]
    assert torch.equal(tangent, ones)


def test_transforms_of_torch_func() -> None:
    layer = made()
    function = as_function(layer, 4)
    fixed = [t.detach() for t in (*states(layer, 2), *layer.parameters())]
    xs = torch.randn(3, 4, 2, I, dtype=F64)
    with torch.no_grad(), Calls() as calls:
        got = torch.vmap(lambda x: function(x, *fixed))(xs)
    assert calls.counts == {"forward": 1}
    assert_same(got, [torch.stack(of_all) for of_all in zip(*(function(x, *fixed) for x in xs), strict=True)], 1e-13)

    def loss(*given: Any) -> Any:
        return weighted(function(*given))

    each = torch.func.grad(loss, argnums=tuple(range(1 + len(fixed))))
    got = torch.vmap(each, in_dims=(0, *[None] * len(fixed)))(xs, *fixed)
    for k, x in enumerate(xs):
        recorded = [t.clone().requires_grad_() for t in (x, *fixed)]
        assert_same([g[k] for g in got], torch.autograd.grad(loss(*recorded), recorded), 1e-12)
    tangents = [torch.randn_like(t) for t in (xs[0], *fixed)]
    slope = torch.func.jvp(loss, (xs[0], *fixed), tuple(tangents))[1]
    want = sum((g[0] * t).sum() for g, t in zip(got, tangents, strict=True))
    torch.testing.assert_close(slope, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kinds", ["resets", "resets given mask lengths"])
def test_resets_and_masks(kinds: str, rng: np.random.Generator) -> None:
    """Beside the loop over steps of tests/torch/test_resets.py, with every gradient."""
    layer = made(2, bidirectional=True)
    shaped = rnnkit.SLSTM(I, H, 2, bidirectional=True, dtype="float64", backend="numpy")
    given = flagged_inputs(shaped, rng, T=T, B=4, kinds=kinds)
    weights = layer._flat_weights

    def cell(slot: int) -> Any:
        w = Weights(*weights[4 * slot : 4 * slot + 4])
        return lambda x, state: step(x, state, w)

    x, *starts = (torch.tensor(a, requires_grad=True) for a in (given.x, *given.h0))
    again = None if given.reset_state is None else [torch.tensor(a, requires_grad=True) for a in given.reset_state]
    flags = {name: getattr(given, name) for name in ("lengths", "resets", "mask")}
    ours = layer(x, tuple(starts), reset_state=again, **flags)
    y, ends = stepped([[cell(0), cell(1)], [cell(2), cell(3)]], x, starts, given, again)
    wanted = [x, *starts, *(again or ()), *layer.parameters()]
    found = [
        torch.autograd.grad(weighted(results), wanted, materialize_grads=True) for results in (ours, (y, tuple(ends)))
    ]
    assert_same((ours, found[0]), ((y, ends), found[1]), 1e-11, 1e-12)


# Traced models


def traced_inputs(layer: Any, rows: int, steps: int) -> tuple[Any, ...]:
    torch.manual_seed(rows)
    return torch.randn(steps, rows, I, dtype=F64), tuple(s.detach() for s in states(layer, rows))


def test_compiled_as_one_node_at_any_size() -> None:
    torch._dynamo.reset()
    layer = made(bidirectional=True)
    compiled = Recorded(layer)
    for rows, steps in ((6, 9), (5, 2)):  # no size equals another: a dimension with such a number stays fixed
        x, hx = traced_inputs(layer, rows, steps)
        x.requires_grad_()
        hx = tuple(s.requires_grad_() for s in hx)
        lengths = torch.arange(rows) % (steps + 1)
        results = everything(layer, x, hx, compiled, lengths=lengths)
        assert_same(results, everything(layer, x, hx, lengths=lengths))
    assert compiled.nodes == {"forward": 1, "keep=True": 1, "backward": 1}


@needs("a PackedSequence in torch.compile")
def test_compiled_with_a_packed_sequence() -> None:
    torch._dynamo.reset()
    layer = made()
    packed = pack_padded_sequence(randn(T, B, I), [5, 4, 2])
    hx = states(layer)
    compiled = Recorded(lambda given, *hx: layer(given, hx))
    results = []
    for function in (compiled, lambda given, *hx: layer(given, hx)):
        y, state_n = function(packed, *hx)
        results.append((y.data, state_n, torch.autograd.grad(weighted((y.data, state_n)), layer.parameters())))
    assert_same(*results)


@pytest.mark.slow
def test_inductor() -> None:
    torch._dynamo.reset()
    layer = made()
    x, hx = randn(T, B, I), states(layer)
    compiled = torch.compile(layer, fullgraph=True)
    assert_same(everything(layer, x, hx, compiled), everything(layer, x, hx))


def test_exported_as_one_node_at_any_size() -> None:
    model = Wrapped(made(2))
    lengths = torch.tensor(LENGTHS)
    sizes = {0: torch.export.Dim("T", max=1000), 1: torch.export.Dim("B", max=1000)}
    rows = {1: sizes[1]}
    given = (*traced_inputs(model.layer, B, T), lengths)
    program = torch.export.export(model, given, dynamic_shapes=(sizes, (rows,) * 4, {0: sizes[1]}), strict=False)
    assert operator_nodes(program.graph) == {"forward": 1, "keep=False": 1}
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    other = (*traced_inputs(model.layer, 2, 7), torch.tensor([3, 7]))
    assert_same(loaded(*other), model(*other))


def test_operators_pass_opcheck() -> None:
    layer = made(bidirectional=True)
    x, hx = randn(T, B, I), states(layer)
    weights = [w.detach().requires_grad_() for w in layer._flat_weights]
    options = {"cell": "slstm", "backend": "numpy", "bidirectional": True}
    torch.use_deterministic_algorithms(True)  # fills new tensors: parts of the reserve are not written
    try:
        for state0 in (hx, ()):
            arguments = (x, list(state0), weights, [], torch.tensor(LENGTHS))
            for keep in (False, True):
                torch.library.opcheck(torch.ops.rnnkit.forward.default, arguments, {**options, "keep": keep})
        plain = (x.detach(), [s.detach() for s in hx], [w.detach() for w in weights], [], None)
        *results, reserve = torch.ops.rnnkit.forward(*plain, keep=True, **options)
        assert len(results) == 5
        grads = [torch.randn_like(r) for r in results]
        given = (grads[0], [None, *grads[2:]], *plain, reserve)
        torch.library.opcheck(torch.ops.rnnkit.backward.default, given, options)
    finally:
        torch.use_deterministic_algorithms(False)


# As a module


def test_state_dicts() -> None:
    """To and from rnnkit.SLSTM, and never to or from an LSTM."""
    layer = made(2, bidirectional=True)
    plain = rnnkit.SLSTM(I, H, 2, bidirectional=True, dtype="float64", backend="numpy", rng=0)
    shapes = {n: p.shape for n, p in plain.params.items()}
    assert {n: tuple(p.shape) for n, p in layer.named_parameters()} == shapes
    assert list(layer.state_dict()) == [*shapes, "slstm"]
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I, dtype=F64)
    np.testing.assert_array_equal(plain(x.numpy())[0], layer(x)[0].detach().numpy())
    other = rt.SLSTM(I, H, 2, bidirectional=True, dtype=F64, backend="numpy")
    tensors = {name: torch.from_numpy(p) for name, p in plain.state_dict().items()}
    other.load_state_dict({**tensors, "slstm": torch.tensor(True)})
    assert torch.equal(other(x)[0], layer(x)[0])
    for lstm in (nn.LSTM(I, H, 2, bidirectional=True), rt.LSTM(I, H, 2, bidirectional=True)):
        with pytest.raises(RuntimeError, match=r"Missing key.*slstm"):
            layer.load_state_dict(lstm.state_dict())
        with pytest.raises(RuntimeError, match=r"Unexpected key.*slstm"):
            lstm.load_state_dict(layer.state_dict())
    with pytest.raises(ValueError, match="those of a slstm cell, and it is a lstm"):
        rnnkit.LSTM(I, H, 2, bidirectional=True, backend="numpy").load_state_dict(layer.state_dict())
    model = nn.Sequential(nn.Linear(I, I, dtype=F64), layer)
    inside = rnnkit.Sequential(rnnkit.Linear(I, I, dtype="float64"), plain)
    inside.load_state_dict(model.state_dict())
    assert_close("y", inside(x.numpy()), model(x)[0].detach().numpy(), "float64")


def test_copies_repr_explain_and_conversions() -> None:
    layer = rt.SLSTM(I, H, 2, batch_first=True, bidirectional=True, backend="numpy", dtype=F64)
    assert repr(layer) == "SLSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True, backend='numpy')"
    assert layer.mode == "SLSTM"
    bound = H**-0.5
    assert all(p.abs().max() <= bound for p in layer.parameters())
    x = torch.randn(B, T, I, dtype=F64)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert_same(twin(x), layer(x), 0, 0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        twin = copy.deepcopy(layer).to(dtype)
        y, state_n = twin(x.to(dtype))
        assert {t.dtype for t in (y, *state_n)} == {dtype}
        assert twin.slstm.dtype is torch.bool
    with torch.autocast("cpu", torch.bfloat16):
        y, state_n = layer.float()(x.float())
    assert {t.dtype for t in (y, *state_n)} == {torch.bfloat16}
    for keep in (True, False):
        with torch.set_grad_enabled(keep):
            found = rt.explain(layer, x.float(), states(layer, dtype=torch.float32))
        assert found.backend == "numpy"
        assert "slstm" in found.kernel
        assert (found.kept_bytes > 0) == keep
    with torch.device("meta"):
        on_meta = rt.SLSTM(I, H, bidirectional=True)
        y, state_n = on_meta(torch.ones(T, B, I))
    assert [t.shape for t in (y, *state_n)] == [(T, B, 2 * H)] + [(2, B, H)] * 4


def test_weights_and_states_are_read_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels are given is the tensors' memory, and what they return becomes tensors without a copy."""
    from rnnkit.torch import operators

    layer = made()
    x, hx = torch.randn(T, B, I, dtype=F64), [s.detach() for s in states(layer)]
    seen = []
    run = operators.stack.forward

    def noted(call: Any) -> Any:
        results = run(call)
        seen.append((call, results))
        return results

    monkeypatch.setattr(operators.stack, "forward", noted)
    with torch.no_grad():
        y, state_n = layer(x, hx)
    ((call, (got, ends, _)),) = seen
    assert call.x.ctypes.data == x.data_ptr()
    assert [s.ctypes.data for s in call.state0] == [s.data_ptr() for s in hx]
    weights = call.layers[0][0].weights
    assert weights.w_hh.ctypes.data == layer.weight_hh_l0.data_ptr()
    assert [a.ctypes.data for a in (got, *ends)] == [t.data_ptr() for t in (y, *state_n)]


class SLSTMLayer(nn.Module):
    """A module of another library that has such a name."""

    def __init__(self) -> None:
        super().__init__()
        self.slstm_cell = nn.Linear(I, H)

    def forward(self, x: Any) -> Any:
        return self.slstm_cell(x)


def test_replace_leaves_it_and_foreign_modules() -> None:
    model = nn.ModuleDict({"ours": made(), "theirs": SLSTMLayer(), "lstm": nn.LSTM(I, H)})
    report = rt.replace(model, backend="numpy")
    assert [s.names for s in report.swapped] == [("lstm",)]
    assert [(left.names, left.kind, left.why) for left in report.left] == [
        (("ours",), "rnnkit.torch.SLSTM", "is rnnkit's already")
    ]
    assert type(model["theirs"]) is SLSTMLayer
    report = rt.restore(model)
    assert [s.names for s in report.swapped] == [("lstm",)]
    assert [left.why for left in report.left] == ["was built as rnnkit's"]
    assert type(model["ours"]) is rt.SLSTM


def test_bad_arguments() -> None:
    layer = made()
    x, (h, c, n, m) = torch.zeros(T, B, I, dtype=F64), states(layer)
    wanted = r"hx must be a tuple of 4 tensors \(h_0, c_0, n_0, m_0\), got "
    for hx, error, got in (
        ((h, c), RuntimeError, wanted + "2"),
        (h, TypeError, wanted + r"one tensor of shape \(1, 3, 4\)"),
        ({}, TypeError, wanted + "dict"),
        ((h, c, n, None), TypeError, r"hx\[3\] must be a torch.Tensor, got NoneType"),
        ((h, c, n[0], m), RuntimeError, r"the tensors of hx should also be 3-D but got \(3-D, 3-D, 2-D, 3-D\)"),
        ((h, c, n[:, :2], m), RuntimeError, r"Expected hidden\[2\] size \(1, 3, 4\), got \[1, 2, 4\]"),
        ((h, c, n, m.float()), RuntimeError, r"hx\[3\] must have the dtype and device of input"),
    ):
        with pytest.raises(error, match=got):
            layer(x, hx)
    with pytest.raises(RuntimeError, match="reset_state: hx must be a tuple of 4 tensors"):
        layer(x, resets=torch.ones(T, B, dtype=torch.bool), reset_state=(h, c))
    for unknown in ("proj_size", "zoneout", "peephole", "layer_norm"):
        with pytest.raises(TypeError, match=unknown):
            rt.SLSTM(I, H, **{unknown: 1})
    with pytest.raises(ValueError, match="has no compiled kernels"):
        rt.SLSTM(I, H, backend="numpy", strict=True)
    with pytest.raises(ValueError, match="hidden_size must be greater than zero"):
        rt.SLSTM(I, 0)
    with pytest.raises(NotImplementedError, match=r"torch.jit.script cannot compile SLSTM of rnnkit.torch"):
        torch.jit.script(layer)


def test_onnx_has_no_node_for_it() -> None:
    pytest.importorskip("onnxscript")
    from rnnkit.torch.onnx import translation_table

    (translate,) = translation_table().values()
    with pytest.raises(ValueError, match="a layer of the cell slstm cannot be exported to ONNX, which has no node for"):
        translate(None, [], made()._flat_weights, [], cell="slstm")


def test_functions_of_plain_layers_name_pytorch() -> None:
    x = np.ones((T, B, I), np.float32)
    for take in (rnnkit.trajectory, check_layer, lambda layer, _: rnnkit.Bidirectional(layer)):
        with pytest.raises(TypeError, match="LSTM or SLSTM, got SLSTM, a module of PyTorch"):
            take(made(), x)


@pytest.mark.slow
def test_on_a_cuda_device_the_kernels_of_cupy_run(card: Any) -> None:  # noqa: F811
    from rnnkit.torch import operators

    layer = made(bidirectional=True, dtype=torch.float32)
    with torch.no_grad():
        given = [t.detach().numpy() for t in (randn(T, B, I, dtype=torch.float32), *states(layer, dtype=torch.float32))]
        grads = [torch.randn(T, B, 2 * H).numpy(), *(torch.randn(2, B, H).numpy() for _ in NAMES)]
        weights = [w.numpy() for w in layer._flat_weights]

    def results(put: Any, get: Any, backend: str | None) -> list[np.ndarray]:
        x, *state0 = map(put, given)
        dy, *dstate_n = map(put, grads)
        call = (x, state0, list(map(put, weights)), [], torch.tensor(LENGTHS))
        options = {"cell": "slstm", "backend": backend, "bidirectional": True}
        *forward, reserve = operators.forward(*call, **options, keep=True)
        return list(map(get, (*forward, *operators.backward(dy, dstate_n, *call, reserve, **options))))

    wanted = results(lambda a: torch.from_numpy(a.astype("float64")), lambda t: t.numpy(), "numpy")
    got = results(lambda a: OnCard(card.cp.asarray(a)), lambda t: card.cp.asnumpy(t.array), None)
    for k, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert_close(f"result {k}", a, b, "float32", "backward")
