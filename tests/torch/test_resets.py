"""Resets and masks beside torch.nn's layers that are stepped through them, in float64, with every gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import rnnkit  # noqa: E402
import rnnkit.torch  # noqa: E402
from rnnkit.testing import assert_close  # noqa: E402
from tests.api.resets import inputs  # noqa: E402
from tests.helpers import parts  # noqa: E402
from tests.torch.pairs import CONFIGS, label, pair  # noqa: E402

pytestmark = pytest.mark.peers
I, H, T, B = 3, 4, 7, 5
KINDS = ("resets", "resets given", "mask", "mask zero", "resets given mask lengths")
RESET_BEFORE = ("GRU", {"reset_after": False, "num_layers": 2, "bidirectional": True})


def cells_of(layer: Any) -> list[list[Any]]:
    """torch.nn's layer as one layer of one direction for each layer and direction, over the same parameters."""
    D = 2 if layer.bidirectional else 1
    found = []
    for k in range(layer.num_layers):
        width = layer.input_size if k == 0 else D * (layer.proj_size or layer.hidden_size)
        of_layer = []
        for d in range(D):
            more = {"nonlinearity": layer.nonlinearity} if isinstance(layer, torch.nn.RNN) else {}
            if layer.proj_size:
                more["proj_size"] = layer.proj_size
            one = type(layer)(width, layer.hidden_size, bias=layer.bias, dtype=torch.float64, **more)
            for name in list(one._parameters):
                own = name.replace("_l0", f"_l{k}" + "_reverse" * d)
                delattr(one, name)
                one.register_parameter(name, getattr(layer, own))
            one._init_flat_weights()
            of_layer.append(lambda x, s, one=one: _step(one, x, s))
        found.append(of_layer)
    return found


def _step(layer: Any, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    given = tuple(s[None] for s in state)
    _, end = layer(x[None], given if len(given) == 2 else given[0])
    return tuple(s[0] for s in parts(end))


def reset_before_cells(layer: Any) -> list[list[Any]]:
    """The equations of a GRU with reset_after=False."""

    def cell(suffix: str) -> Any:
        w_i, w_h, b_i, b_h = (getattr(layer, f"{n}_{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        H = layer.hidden_size

        def step(x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
            (h,) = state
            x_r, x_z, x_n = (x @ w_i.T + b_i).chunk(3, 1)
            r = torch.sigmoid(x_r + h @ w_h[:H].T + b_h[:H])
            z = torch.sigmoid(x_z + h @ w_h[H : 2 * H].T + b_h[H : 2 * H])
            n = torch.tanh(x_n + (r * h) @ w_h[2 * H :].T + b_h[2 * H :])
            return ((1 - z) * n + z * h,)

        return step

    return [[cell(f"l{k}" + "_reverse" * d) for d in range(2)] for k in range(layer.num_layers)]


def stepped(cells: list[list[Any]], x: Any, starts: Any, given: Any, again: Any) -> tuple[Any, list[Any]]:
    """y and the final states by a loop over steps, differentiable. given: an `Inputs` for the flags and lengths."""
    T, B, _ = x.shape
    lengths = torch.full((B,), T) if given.lengths is None else torch.as_tensor(given.lengths)
    resets = torch.zeros(T + 1, B, dtype=torch.bool)
    if given.resets is not None:
        resets[:T] = torch.as_tensor(given.resets)
    mask = torch.ones(T, B, dtype=torch.bool) if given.mask is None else torch.as_tensor(given.mask)
    again = [torch.zeros_like(s) for s in starts] if again is None else again
    slot, ends = 0, []
    for of_layer in cells:
        sides = []
        for d, cell in enumerate(of_layer):
            state = tuple(s[slot] for s in starts)
            output = torch.zeros_like(state[0])
            ys: list[Any] = [None] * T
            for t in reversed(range(T)) if d else range(T):
                begins = ((t + d < lengths) & resets[t + d])[:, None]
                state = tuple(torch.where(begins, a[slot], s) for a, s in zip(again, state, strict=True))
                output = torch.where(begins, 0, output)
                inside = (t < lengths)[:, None]
                live = inside & mask[t][:, None]
                new = cell(x[t], state)
                state = tuple(torch.where(live, n, s) for n, s in zip(new, state, strict=True))
                output = torch.where(live, new[0], output)
                ys[t] = torch.where(live | (inside & (not given.zero_output_for_mask)), output, 0)
            sides.append(torch.stack(ys))
            ends.append(state)
            slot += 1
        x = torch.cat(sides, -1)
    return x, [torch.stack(of_all) for of_all in zip(*ends, strict=True)]


def made(kind: str, options: dict[str, Any]) -> tuple[Any, list[list[Any]]]:
    """rnnkit.torch's layer, and its cells for `stepped`, over parameters of their own with the same values."""
    if not options.get("reset_after", True):
        torch.manual_seed(0)
        layer = rnnkit.torch.GRU(I, H, dtype=torch.float64, **options)
        other = rnnkit.torch.GRU(I, H, dtype=torch.float64, **options)
        other.load_state_dict(layer.state_dict())
        return (layer, other), reset_before_cells(other)
    layer, other = pair(kind, I, H, **options)
    return (layer, other), cells_of(other)


def leaf(a: Any) -> Any:
    return torch.tensor(a, requires_grad=True)


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize(("kind", "options"), [*CONFIGS, RESET_BEFORE], ids=label)
def test_every_gradient_beside_torch_nn_stepped(
    kind: str, options: dict[str, Any], kinds: str, rng: np.random.Generator
) -> None:
    (layer, other), cells = made(kind, options)
    numbers = {"proj_size": 0, "bidirectional": False, "num_layers": 1, "nonlinearity": "tanh", **options}
    shaped = _shaped(kind, numbers)
    given = inputs(shaped, rng, T=T, B=B, kinds=kinds)
    results = []
    for ours in (True, False):
        x = leaf(given.x)
        starts = [leaf(s) for s in parts(given.h0)]
        again = None if given.reset_state is None else [leaf(s) for s in parts(given.reset_state)]
        if ours:
            y, ends = call(layer, x, starts, again, given)
        else:
            y, ends = stepped(cells, x, starts, given, again)
        torch.manual_seed(1)
        loss = (y * torch.randn_like(y)).sum() + sum((e * torch.randn_like(e)).sum() for e in ends)
        module = layer if ours else other
        wanted = [x, *starts, *(again or ()), *module.parameters()]
        results.append([y, *ends, *torch.autograd.grad(loss, wanted, materialize_grads=True)])
    for k, (got, want) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {k}", got.detach().numpy(), want.detach().numpy(), "float64", "backward")


def call(layer: Any, x: Any, starts: list[Any], again: list[Any] | None, given: Any) -> tuple[Any, list[Any]]:
    def hx(states: Any) -> Any:
        return None if states is None else (tuple(states) if len(states) == 2 else states[0])

    flags = {name: getattr(given, name) for name in ("resets", "mask")}
    if layer.batch_first:
        x = x.transpose(0, 1)
        flags = {name: None if f is None else torch.tensor(f.T) for name, f in flags.items()}
    more = {"lengths": given.lengths, "zero_output_for_mask": given.zero_output_for_mask, "reset_state": hx(again)}
    y, end = layer(x, hx(starts), **flags, **more)
    return (y.transpose(0, 1) if layer.batch_first else y), list(parts(end))


def _shaped(kind: str, options: dict[str, Any]) -> Any:
    """The plain layer of these sizes, which `inputs` takes its shapes from."""
    names = ("num_layers", "bidirectional") + (("proj_size",) if kind == "LSTM" else ())
    return getattr(rnnkit, kind)(I, H, **{n: options[n] for n in names}, dtype="float64", backend="numpy", rng=0)


def flagged(rng: np.random.Generator, layer: Any = None) -> tuple[Any, Any, dict[str, Any]]:
    layer = rnnkit.torch.GRU(I, H, 2, bidirectional=True, dtype=torch.float64) if layer is None else layer
    x = torch.tensor(rng.standard_normal((T, B, I)))
    return layer, x, {"resets": torch.tensor(rng.random((T, B)) < 0.3), "mask": torch.tensor(rng.random((T, B)) < 0.7)}


def test_without_a_reset_or_masked_step_it_is_the_plain_call(rng: np.random.Generator) -> None:
    layer, x, _ = flagged(rng)
    y, h_n = layer(x, resets=torch.zeros(T, B, dtype=torch.bool), mask=np.ones((T, B), bool).tolist())
    want_y, want_h = layer(x)
    assert torch.equal(y, want_y)
    assert torch.equal(h_n, want_h)


@pytest.mark.parametrize("masked", [False, True])
def test_a_reset_state_that_no_step_takes_has_gradients_of_zero(masked: bool) -> None:
    """The values of the flags decide neither whether it has a gradient nor whether its dtype is checked."""
    layer = rnnkit.torch.LSTM(I, H, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    again = tuple(torch.randn(1, B, H, dtype=torch.float64, requires_grad=True) for _ in range(2))
    flags = {"resets": torch.zeros(T, B, dtype=torch.bool), "mask": torch.full((T, B), not masked)}
    y, _ = layer(x, reset_state=again, **flags)
    assert torch.equal(y, torch.zeros_like(y) if masked else layer(x)[0])
    for found in torch.autograd.grad(y.sum(), again):
        assert torch.equal(found, torch.zeros_like(found))
    with pytest.raises(RuntimeError, match="must have the dtype and device of input"):
        layer(x, reset_state=tuple(a.float() for a in again), **flags)


def test_flags_and_lengths_that_are_made_inside_a_transform(rng: np.random.Generator) -> None:
    """torch.func wraps every tensor that is made inside it, also those that it does not differentiate."""
    layer, x, flags = flagged(rng)
    lengths = torch.tensor([7, 0, 5, 1, 6])

    def loss(x: Any, made: Any = torch.clone) -> Any:
        return layer(x, lengths=made(lengths), **{name: made(f) for name, f in flags.items()})[0].square().sum()

    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf, lambda t: t), leaf)
    assert torch.equal(torch.func.grad(loss)(x), want)
    assert torch.equal(torch.func.vjp(loss, x)[1](torch.ones((), dtype=x.dtype))[0], want)
    torch.testing.assert_close(torch.func.jvp(loss, (x,), (x,))[1], (want * x).sum())
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(x[None])[0], want)
    with pytest.raises(NotImplementedError, match="lengths mapped by"):
        torch.vmap(lambda n: layer(x, lengths=n, **flags)[0])(lengths[None])


def test_derivatives_of_the_gradients(rng: np.random.Generator) -> None:
    torch.manual_seed(2)
    layer = rnnkit.torch.LSTM(2, 3, dtype=torch.float64, proj_size=2)
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    h = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    c = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
    flags = {"resets": torch.tensor(rng.random((4, 3)) < 0.4), "mask": torch.tensor(rng.random((4, 3)) < 0.7)}

    def function(x: Any, h: Any, c: Any) -> Any:
        y, (h_n, c_n) = layer(x, (h, c), reset_state=(h.sin(), c.cos()), **flags)
        return y, h_n, c_n

    assert torch.autograd.gradcheck(function, (x, h, c))
    assert torch.autograd.gradgradcheck(function, (x, h, c))
    tangents = tuple(torch.randn_like(a) for a in (x, h, c))
    _, pushed = torch.func.jvp(function, (x, h, c), tangents)
    _, pull = torch.func.vjp(function, x, h, c)
    ways = tuple(torch.randn_like(p) for p in pushed)
    back = pull(ways)
    one = sum((p * w).sum() for p, w in zip(pushed, ways, strict=True))
    other = sum((b * t).sum() for b, t in zip(back, tangents, strict=True))
    torch.testing.assert_close(one, other)


def test_vmap_over_inputs(rng: np.random.Generator) -> None:
    layer, x, flags = flagged(rng)
    xs = torch.stack([x, 2 * x])
    got = torch.vmap(lambda x: layer(x, **flags)[0])(xs)
    torch.testing.assert_close(got, torch.stack([layer(x, **flags)[0] for x in xs]))
    with pytest.raises(NotImplementedError, match="resets mapped by"):
        torch.vmap(lambda r: layer(x, resets=r)[0])(torch.stack([flags["resets"]] * 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_dtypes_and_autocast(dtype: Any, rng: np.random.Generator) -> None:
    layer, x, flags = flagged(rng)
    x = x.float()
    layer = layer.float()
    if dtype is torch.float32:
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = layer(x, **flags)
        assert y.dtype == torch.bfloat16
        return
    want, _ = layer(x, **flags)
    leaf = x.to(dtype).requires_grad_()
    y, h_n = layer.to(dtype)(leaf, **flags)
    assert y.dtype == h_n.dtype == dtype
    assert_close("y", y.detach().double().numpy(), want.detach().numpy(), str(dtype).removeprefix("torch."))
    y.float().sum().backward()
    assert leaf.grad.dtype == dtype


def test_dropout_is_drawn_as_without_resets(rng: np.random.Generator) -> None:
    layer, x, _ = flagged(rng, rnnkit.torch.GRU(I, H, 2, dropout=0.5, dtype=torch.float64))
    never = np.zeros((T, B), bool)
    never[T - 1, B - 1] = True  # reset of one row at its last step: all other outputs are those of the plain call
    torch.manual_seed(5)
    y, _ = layer(x, resets=never)
    torch.manual_seed(5)
    want, _ = layer(x)
    torch.testing.assert_close(y[:-1], want[:-1])
    assert not torch.equal(y[-1, -1], want[-1, -1])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"resets": torch.zeros(B, T, dtype=torch.bool)}, ValueError, "resets must have shape"),
        ({"mask": torch.zeros(T, B)}, TypeError, "mask must be booleans, got dtype float32"),
        ({"reset_state": torch.zeros(4, B, H)}, ValueError, "reset_state must be None without resets"),
        ({"zero_output_for_mask": True}, ValueError, "zero_output_for_mask must be False without a mask"),
        (
            {"resets": torch.zeros(T, B, dtype=torch.bool), "reset_state": torch.zeros(4, T, H).double()},
            RuntimeError,
            "reset_state",
        ),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], words: str, rng: np.random.Generator) -> None:
    layer, x, _ = flagged(rng)
    with pytest.raises(error, match=words):
        layer(x, **options)


def test_packed_sequences_are_refused(rng: np.random.Generator) -> None:
    layer, x, flags = flagged(rng)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [T] * B)
    with pytest.raises(ValueError, match="None for a PackedSequence"):
        layer(packed, **flags)


def test_strict_layers_refuse_the_oracle_with_flags_too(rng: np.random.Generator) -> None:
    layer, x, flags = flagged(rng, rnnkit.torch.GRU(I, H, dtype=torch.float64, strict=True))
    layer.backend = "numpy"
    with pytest.raises(ValueError, match="has no compiled kernels"):
        layer(x, **flags)
