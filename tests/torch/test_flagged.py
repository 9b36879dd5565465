"""Resets and masks in traced models: one node a call, with the numbers of the eager call, at any T and B."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import rnnkit.torch as rt  # noqa: E402
from rnnkit.testing import assert_close  # noqa: E402
from rnnkit.torch import checks, flagged  # noqa: E402
from tests.helpers import slow_except  # noqa: E402
from tests.torch.test_compile import Recorded  # noqa: E402
from tests.torch.test_cuda_path import OnCard, card  # noqa: E402, F401
from tests.torch.tracing import assert_same, leaves, operator_nodes  # noqa: E402

pytestmark = pytest.mark.peers
I, H = 3, 4
F64 = torch.float64
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (rt.LSTM, {"num_layers": 2, "bidirectional": True}),
    "projected": (rt.LSTM, {"proj_size": 2, "batch_first": True}),
    "gru": (rt.GRU, {"bidirectional": True, "reset_after": False}),
    "options": (rt.LSTM, {"peephole": True, "clip": 1.0}),
    "slstm": (rt.SLSTM, {}),
}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def made(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    cls, options = KINDS[name]
    return cls(I, H, **{"dtype": F64, "backend": "numpy", **options, **more})


def given_to(layer: Any, T: int, B: int, seed: int = 0, dtype: Any = F64) -> tuple[Any, dict[str, Any]]:
    """x, and every other argument of a call; floating-point ones record gradients."""
    generator = torch.Generator().manual_seed(seed)
    D = 2 if layer.bidirectional else 1
    widths = [layer.proj_size or H, *[H] * (len(layer.state_names) - 1)]

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator, dtype=F64).to(dtype).requires_grad_()

    def state() -> Any:
        found = [normal(layer.num_layers * D, B, width) for width in widths]
        if "n" in layer.state_names:
            found[2] = (1 + found[2].detach().abs()).requires_grad_()
        return tuple(found) if len(found) > 1 else found[0]

    lead = (B, T) if layer.batch_first else (T, B)
    x = normal(*lead, I)
    lengths = torch.randint(0, T + 1, (B,), generator=generator)
    lengths[0] = T
    flags = {name: torch.rand(*lead, generator=generator) < share for name, share in (("resets", 0.3), ("mask", 0.7))}
    return x, {"hx": state(), "reset_state": state(), "lengths": lengths, **flags}


def weighted(results: Any) -> Any:
    return sum((r * torch.linspace(-1, 1.5, r.numel(), dtype=r.dtype).view(r.shape)).sum() for r in leaves(results))


def everything(call: Any, layer: Any, x: Any, named: dict[str, Any], **more: Any) -> list[Any]:
    """The results, and the gradients in x, the states, the reset state and the parameters."""
    results = call(x, **named, **more)
    wanted = [t for t in leaves((x, named)) if t.is_floating_point()] + list(layer.parameters())
    return [*leaves(results), *torch.autograd.grad(weighted(results), wanted, materialize_grads=True)]


NODES = {"forward_flagged": 1, "keep=True": 1, "backward_flagged": 1}


@pytest.mark.parametrize(
    ("name", "zero"),
    slow_except([(n, z) for n in KINDS for z in (False, True)], ("lstm", False), ("projected", True), unpack=True),
)
def test_compiled_as_one_node_at_any_size(name: str, zero: bool) -> None:
    layer = made(name)
    compiled = Recorded(layer)
    for T, B in ((9, 6), (7, 5), (2, 8)):  # no size equals another: a dimension with such a number stays fixed
        x, named = given_to(layer, T, B, seed=T)
        got = everything(compiled, layer, x, named, zero_output_for_mask=zero)
        assert_same(got, everything(layer, layer, x, named, zero_output_for_mask=zero))
    assert compiled.nodes == NODES


@pytest.mark.slow
def test_each_argument_alone_lists_and_unbatched_inputs() -> None:
    """Also without states, where a reset state begins, and where nothing is reset or masked."""
    layer = made("gru")
    x, named = given_to(layer, 6, 5)
    never = torch.zeros(6, 5, dtype=torch.bool)
    for names in (("resets",), ("mask",), ("resets", "reset_state"), ("resets", "mask", "hx")):
        chosen = {name: named[name] for name in names}
        torch._dynamo.reset()
        assert_same(everything(Recorded(layer), layer, x, chosen), everything(layer, layer, x, chosen))
    for flags in ({"resets": never, "reset_state": named["hx"]}, {"mask": ~never}, {"mask": (~never).tolist()}):
        torch._dynamo.reset()
        assert_same(everything(Recorded(layer), layer, x, flags), everything(layer, layer, x, flags))
    torch._dynamo.reset()
    one = {"resets": named["resets"][:, 1], "mask": named["mask"][:, 1], "lengths": torch.tensor([5])}
    assert_same(everything(Recorded(layer), layer, x[:, 1], one), everything(layer, layer, x[:, 1], one))


@pytest.mark.slow
def test_inductor_and_other_dtypes() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layer = made("lstm", dtype=dtype)
        x, named = given_to(layer, 6, 5, dtype=dtype)
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True)
        for a, b in zip(*(everything(f, layer, x, named) for f in (compiled, layer)), strict=True):
            assert a.dtype == b.dtype == dtype
            name = str(dtype).removeprefix("torch.")
            assert_close("result", a.detach().float().numpy(), b.detach().float().numpy(), name, "backward")
    layer = made("gru", dtype=torch.float32)
    x, named = given_to(layer, 6, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = torch.compile(layer, fullgraph=True)(x, **named)
    assert y.dtype == torch.bfloat16


@pytest.mark.slow
def test_random_masks_are_those_of_the_eager_call() -> None:
    rates = {"dropout": 0.3, "zoneout": (0.3, 0.2), "recurrent_dropout": 0.3, "input_dropout": 0.2}
    layer = made("lstm", **rates)
    x, named = given_to(layer, 6, 5)
    compiled = Recorded(layer, "aot_eager")
    for training in (True, False):
        layer.train(training)
        found = []
        for call in (compiled, layer):
            torch.manual_seed(3)
            found.append(everything(call, layer, x, named))
        assert_same(*found)


class Flagged(nn.Module):
    """A layer with flags as positional arguments."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any, resets: Any, mask: Any) -> Any:
        return self.layer(x, resets=resets, mask=mask)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_as_one_node_at_any_size(strict: bool) -> None:
    model = Flagged(made("lstm"))
    T, B = (torch.export.Dim(name, min=1, max=100) for name in ("T", "B"))

    def given(steps: int, rows: int) -> tuple[Any, ...]:
        x, named = given_to(model.layer, steps, rows)
        return x.detach(), named["resets"], named["mask"]

    program = torch.export.export(model, given(7, 5), dynamic_shapes=({0: T, 1: B},) * 3, strict=strict)
    for graph in (program.graph, program.run_decompositions().graph):
        assert operator_nodes(graph) == {"forward_flagged": 1, "keep=False": 1}
    for steps, rows in ((9, 4), (2, 3)):
        assert_same(program.module()(*given(steps, rows)), model(*given(steps, rows)))


def operands(layer: Any, T: int, B: int, seed: int = 0) -> tuple[Any, ...]:
    """The positional arguments of the operator."""
    x, named = given_to(layer, T, B, seed, layer.weight_ih_l0.dtype)
    weights = [w.detach().requires_grad_() for w in layer._flat_weights]
    states = [list(leaves(named[name])) for name in ("hx", "reset_state")]
    return x, *states, weights, [], named["lengths"], named["resets"], named["mask"]


def options_of(layer: Any) -> dict[str, Any]:
    return {
        "cell": layer._cell_text(),
        "backend": layer.backend,
        "bidirectional": layer.bidirectional,
        "zero_output": False,
    }


def test_operators_pass_opcheck() -> None:
    layer = made("lstm")
    options = options_of(layer)
    given = operands(layer, 5, 3)
    torch.use_deterministic_algorithms(True)  # fills new tensors: parts of the reserve are not written
    try:
        for arguments in (given, (given[0], [], [], *given[3:5], None, None, given[7])):
            for keep in (False, True):
                torch.library.opcheck(torch.ops.rnnkit.forward_flagged.default, arguments, {**options, "keep": keep})
        plain = torch.utils._pytree.tree_map(lambda t: t.detach(), given)
        *results, reserve = torch.ops.rnnkit.forward_flagged(*plain, keep=True, **options)
        grads = [torch.randn_like(r) for r in results]
        of_backward = (grads[0], [None, *grads[2:]], *plain, reserve)
        for wants in ({}, {"wants_dx": False}, {"wants_dweights": False}):
            torch.library.opcheck(torch.ops.rnnkit.backward_flagged.default, of_backward, {**options, **wants})
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", slow_except(["lstm", "projected"], "projected"))
def test_groups_save_in_parts_of_the_reserve(name: str) -> None:
    layer = made(name, backend="numba", dtype=torch.float32, batch_first=False)
    options = options_of(layer)
    given = operands(layer, 9, 6)
    assert len(flagged._call(*given, rates=(), **options).found.groups) > 1
    results = torch.ops.rnnkit.forward_flagged(*given, keep=False, **options)
    grads = torch.autograd.grad(weighted(results), [given[0], *given[1], *given[2], *given[3]])
    wanted = everything(layer, layer, *given_to(layer, 9, 6, dtype=torch.float32))
    for k, (a, b) in enumerate(zip((*results, *grads), wanted, strict=True)):
        assert_close(f"result {k}", a.detach().numpy(), b.detach().numpy(), "float32", "backward")


def test_reserves_have_room_for_every_group() -> None:
    """Whatever is reset or masked: many short segments, one long one beside them, each half of the one before, none."""
    draw = np.random.default_rng(0)
    for cls, options in KINDS.values():
        layer = cls(I, H, **{**options, "batch_first": False}, backend="numba")
        for T, B, share in ((1, 1, 0.5), (200, 1, 0.02), (64, 40, 0.0), (64, 40, 0.9), (300, 7, 0.05), (1023, 1, 0.0)):
            given = list(operands(layer, T, B))
            given[6] = torch.from_numpy(draw.random((T, B)) < share)
            given[7] = torch.from_numpy(draw.random((T, B)) < 0.8)
            given[6][:, 0] = False
            given[7][:, 0] = True
            if T == 1023:
                given[6][[512, 768, 896, 960, 992, 1008, 1016, 1020, 1022]] = True
            call = flagged._call(*given, rates=(), **options_of(layer))
            *_, reserve = flagged._forward_shapes(*given, keep=True, **options_of(layer))
            assert (T * B > 1) * T * I <= sum(call.needed) <= reserve.shape[0]


def test_transforms_and_what_is_refused() -> None:
    layer = made("gru")
    options = options_of(layer)
    given = operands(layer, 4, 3)
    operator = torch.ops.rnnkit.forward_flagged
    xs = torch.stack([given[0].detach(), 2 * given[0].detach()])
    masks = torch.stack([given[7], ~given[7]])
    mapped = torch.vmap(lambda x, mask: operator(x, *given[1:7], mask, keep=False, **options)[0])(xs, masks)
    assert_same(mapped[1], operator(xs[1], *given[1:7], masks[1], keep=False, **options)[0])
    y = operator(*given, keep=False, **options)[0]
    (want,) = torch.autograd.grad(y.sum(), given[0], retain_graph=True)
    (dx,) = torch.autograd.grad(y.sum(), given[0], create_graph=True)
    assert torch.equal(dx, want)
    with pytest.raises(NotImplementedError, match="double backward of a traced call with resets or a mask"):
        torch.autograd.grad(dx.sum(), given[0])
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(lambda x: operator(x, *given[1:], keep=False, **options)[0], (xs[0],), (xs[1],))
    with pytest.raises(RuntimeError, match="compiled with other sources"):
        operator(*torch.utils._pytree.tree_map(lambda t: t.detach(), given), keep=True, layout="old", **options)
    for value, error, said in (
        (torch.ones(3, 4, dtype=torch.bool), ValueError, r"resets must have shape \(T, B\) = \(4, 3\), got \(3, 4\)"),
        (torch.ones(4, 3), TypeError, "resets must be booleans, got dtype torch.float32"),
    ):
        with pytest.raises(error, match=said):
            checks.step_flags("resets", value, given[0], True, False)
    for wrong in ({"reset_state": given[2][0]}, {"zero_output_for_mask": True}):
        with pytest.raises((ValueError, torch._dynamo.exc.Unsupported), match="without"):
            torch.compile(layer, fullgraph=True, backend="eager")(given[0], **wrong)


@pytest.mark.slow
def test_torch_func_inside_a_compiled_function() -> None:
    """torch.func.grad records the backward too, whether or not somebody differentiates it."""
    layer = made("lstm")
    x, named = given_to(layer, 5, 3)

    def loss(x: Any, weights: Any, of_each: Any) -> Any:
        return weighted(torch.func.functional_call(layer, weights, (x,), of_each))

    weights = {name: w.detach() for name, w in layer.named_parameters()}
    of_each = torch.utils._pytree.tree_map(lambda t: t.detach(), named)
    function = torch.func.grad(loss, (0, 1))
    given = (x.detach(), weights, of_each)
    got = torch.compile(function, backend="aot_eager", fullgraph=True)(*given)
    assert_same(leaves(got), leaves(function(*given)))


def test_a_second_derivative_by_torch_func_is_refused() -> None:
    """Every level of torch.func records the call: a level that did not would take its derivative for zero."""
    layer = made("gru")
    x, state0, again, weights, *rest = torch.utils._pytree.tree_map(lambda t: t.detach(), operands(layer, 4, 3))

    def loss(x: Any, weights: Any) -> Any:
        given = (x, state0, again, weights, *rest)
        return torch.ops.rnnkit.forward_flagged(*given, keep=False, **options_of(layer))[0].square().sum()

    dx = torch.func.grad(loss)(x, weights)
    for inner in (0, 1):
        first = lambda x, w, inner=inner: leaves(torch.func.grad(loss, inner)(x, w))[0].sum()  # noqa: E731
        for outer in (0, 1):
            with pytest.raises(NotImplementedError, match="double backward of a traced call"):
                torch.func.grad(first, outer)(x, weights)
    value = lambda x: torch.func.grad_and_value(loss, 1)(x, weights)[1]  # noqa: E731
    assert_same(torch.func.grad(value)(x), dx)


@pytest.mark.slow
def test_on_a_cuda_device_the_kernels_of_cupy_run(card: Any) -> None:  # noqa: F811
    layer = made("lstm", dtype=torch.float32)
    with torch.no_grad():
        x, state0, again, weights, _, *flags = torch.utils._pytree.tree_map(lambda t: t.detach(), operands(layer, 7, 3))
        shapes = [(7, 3, 2 * H), *[(4, 3, H)] * 2]
        grads = [torch.randn(shape) for shape in shapes]

    def results(put: Any, get: Any, backend: str | None) -> list[np.ndarray]:
        call = (put(x), *([put(t) for t in tensors] for tensors in (state0, again, weights)), [], *flags)
        options = {**options_of(layer), "backend": backend}
        *forward, reserve = flagged.forward(*call, **options, keep=True)
        dy, *dstate_n = map(put, grads)
        return list(map(get, (*forward, *flagged.backward(dy, dstate_n, *call, reserve, **options))))

    wanted = results(lambda t: t.double(), lambda t: t.numpy(), "numpy")
    got = results(lambda t: OnCard(card.cp.asarray(t.numpy())), lambda t: card.cp.asnumpy(t.array), None)
    for k, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert_close(f"result {k}", a, b, "float32", "backward")


def test_inside_a_capture_they_are_refused(card: Any) -> None:  # noqa: F811
    """By name, before anything is launched: a graph would read from host memory which steps are whose."""
    layer = made("lstm", dtype=torch.float32)
    x, _, _, weights, *_ = torch.utils._pytree.tree_map(lambda t: t.detach(), operands(layer, 6, 3))
    resets = torch.zeros(6, 3, dtype=torch.bool)
    resets[3] = True
    put = [OnCard(card.cp.asarray(t.numpy())) for t in (x, *weights)]
    options = {**options_of(layer), "backend": None}
    card.current.capturing = True
    with (
        card.cp.fake.counting() as counts,
        pytest.raises(RuntimeError, match=r"^resets or a mask of an input on cuda:0 must not"),
    ):
        flagged.forward(put[0], [], [], put[1:], [], None, resets, None, **options, keep=True)
    assert not counts.launches
