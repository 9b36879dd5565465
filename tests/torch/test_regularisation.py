"""rnnkit.torch's layers with zoneout and dropout on x, h and W_hh: derivatives, seeds, checkpointing, compilation."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

import rnnkit  # noqa: E402
import rnnkit.torch  # noqa: E402
from rnnkit.backends import Sizes  # noqa: E402
from rnnkit.backends.random_masks import input_mask, step_masks, weight_mask  # noqa: E402
from rnnkit.core.regularisation import Noise  # noqa: E402

pytestmark = pytest.mark.peers

ALL = {"input_dropout": 0.2, "recurrent_dropout": 0.3, "weight_dropout": 0.2, "zoneout": (0.3, 0.2)}


def make(**kwargs: Any) -> Any:
    torch.manual_seed(1)
    arguments = {"bidirectional": True, "dtype": torch.float64, "backend": "numpy"} | ALL | kwargs
    return rnnkit.torch.LSTM(3, 4, 2, **arguments)


def x_of(T: int = 5, B: int = 3) -> Any:
    return torch.randn(T, B, 3, dtype=torch.float64, requires_grad=True)


def outcome(layer: Any, x: Any, call: Any) -> list[Any]:
    """y and every gradient, from the seed 7."""
    torch.manual_seed(7)
    x.grad = None
    layer.zero_grad()
    y, (h, c) = call(x)
    ((y**2).sum() + (h * c).sum()).backward()
    return [y.detach().clone(), x.grad.clone(), *(p.grad.clone() for p in layer.parameters())]


def same(left: list[Any], right: list[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_the_seed_is_drawn_from_torch() -> None:
    layer, x = make(), x_of()
    first = outcome(layer, x, layer)
    assert same(first, outcome(layer, x, layer))
    assert not torch.equal(layer(x)[0], first[0])


def test_activation_checkpointing_draws_the_same_masks() -> None:
    layer, x = make(), x_of()
    assert same(outcome(layer, x, layer), outcome(layer, x, lambda x: checkpoint(layer, x, use_reentrant=False)))


def test_values_are_those_of_the_plain_layer() -> None:
    layer, x = make(), x_of()
    torch.manual_seed(7)
    seed = int(torch.randint(-(2**63), 2**63 - 1, (1,))) % 2**64
    plain = rnnkit.LSTM(3, 4, 2, bidirectional=True, dtype="float64", backend="numpy", **ALL)
    plain.load_state_dict({name: p.detach().numpy() for name, p in layer.state_dict().items()})

    class Fixed:
        def integers(self, *_: Any, **__: Any) -> int:
            return seed

    plain.rng = Fixed()
    y, _ = plain(x.detach().numpy())
    assert np.array_equal(y, outcome(layer, x, layer)[0].numpy())


@pytest.mark.parametrize("arguments", [{}, {"zoneout_output": "zoned"}, {"mask_per_gate": True}])
def test_a_loop_in_torch(arguments: dict[str, Any]) -> None:
    """Values and gradients against autograd through the equations, with the masks of the same seed."""
    layer = make(**arguments)
    layer = rnnkit.torch.LSTM(3, 4, dtype=torch.float64, backend="numpy", **ALL, **arguments)
    x = x_of()
    torch.manual_seed(7)
    y, (h, c) = layer(x)
    ((y**2).sum() + (h * c).sum()).backward()
    got = [x.grad.clone(), *(p.grad.clone() for p in layer.parameters())]
    torch.manual_seed(7)
    seed = int(torch.randint(-(2**63), 2**63 - 1, (1,))) % 2**64
    noise = Noise(layer.regularisation, seed)
    like = np.zeros((5, 3, 3))
    drawn = step_masks(noise, Sizes(5, 3, 3, 4, 4, 15), 4, like)
    x.grad = None
    layer.zero_grad()
    w_ih, w_hh, b_ih, b_hh = layer.parameters()
    masked_x = x * torch.from_numpy(input_mask(noise, like))
    masked_w = w_hh * torch.from_numpy(weight_mask(noise, w_hh.detach().numpy()))
    masks = [torch.from_numpy(drawn.hidden[g % len(drawn.hidden)]) for g in range(4)]
    zone_h, zone_c = (torch.from_numpy(z).double() for z in (drawn.zone_h, drawn.zone_c))
    h, c = x.new_zeros(3, 4), x.new_zeros(3, 4)
    ys = []
    for t in range(5):
        hidden = torch.cat([(h * m) @ w.T for m, w in zip(masks, masked_w.chunk(4), strict=True)], 1)
        i, f, g, o = (masked_x[t] @ w_ih.T + b_ih + b_hh + hidden).chunk(4, 1)
        raw = f.sigmoid() * c + i.sigmoid() * g.tanh()
        zoned = zone_c[t] * c + (1 - zone_c[t]) * raw
        out = o.sigmoid() * (zoned if layer.regularisation.zoned_output else raw).tanh()
        h, c = zone_h[t] * h + (1 - zone_h[t]) * out, zoned
        ys.append(h)
    loop = torch.stack(ys)
    torch.testing.assert_close(y, loop, rtol=0, atol=1e-12)
    ((loop**2).sum() + (h * c).sum()).backward()
    for a, b in zip(got, [x.grad, *(p.grad for p in layer.parameters())], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_gradcheck_in_both_modes_and_no_second_derivative() -> None:
    layer, x = make(), x_of(3, 2)

    def call(x: Any) -> Any:
        torch.manual_seed(3)
        return layer(x)[0]

    assert torch.autograd.gradcheck(call, (x,))
    with pytest.raises(NotImplementedError, match="double backward and forward mode of a layer with zoneout"):
        torch.autograd.gradgradcheck(call, (x,))
    layer.eval()
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], (x,))


def test_compiled_and_checked_by_opcheck() -> None:
    from rnnkit.torch.dispatch import Stack

    layer, x = make(), x_of()
    rates = tuple(map(float, layer.regularisation))
    options = Stack(layer._cell_text(), "numpy", True, 1, 0, rates).options
    weights = list(layer._flat_weights)
    noise = torch.tensor([5])
    torch.library.opcheck(torch.ops.rnnkit.forward.default, (x, [], weights, [noise], None), {**options, "keep": True})
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        y, _ = compiled(x)
        y.sum().backward()
        results.append(y.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_resets_and_copies() -> None:
    layer, x = make(), x_of()
    resets = torch.zeros(5, 3, dtype=torch.bool)
    resets[2, 1] = True
    torch.manual_seed(7)
    y, _ = layer(x, resets=resets)
    (y**2).sum().backward()
    torch.manual_seed(7)
    plain, _ = layer(x)
    assert torch.equal(y[:, [0, 2]], plain[:, [0, 2]])
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.manual_seed(7)
        assert torch.equal(twin(x)[0], plain)
    assert "zoneout=(0.3, 0.2)" in repr(layer)
