"""truncate with resets and a mask: against a loop of PyTorch in float64 that detaches the state every k steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.cells import Weights
from rnnkit.core.dtypes import DTYPES
from rnnkit.nn.rnn import PARTS
from rnnkit.testing import assert_close
from tests.api.resets import Inputs, inputs, kind_of, trained
from tests.api.test_resets import CONFIGS, cast, gradients_of, made
from tests.helpers import parts, slow_except

torch = pytest.importorskip("torch")

KINDS = ("resets", "resets given", "mask", "mask zero", "resets mask lengths", "resets given mask zero lengths")
T, B, K = 11, 5, 3


def by_loop(layer: Any, given: Inputs, dy: Any, dends: Any, k: int) -> dict[str, np.ndarray]:
    """What `trained` returns, by autograd through the equations of docs/resets-and-masks.md.

    The gradient of a state is cut where a row goes from one step to the next across a multiple of k. That of an output
    which a masked step repeats is not.
    """
    from rnnkit.torch.equations import STEPS

    def leaf(a: Any) -> Any:
        return torch.tensor(np.asarray(a, np.float64), requires_grad=True)

    x, starts = leaf(given.x), [leaf(s) for s in parts(given.h0)]
    again = [] if given.reset_state is None else [leaf(s) for s in parts(given.reset_state)]
    params = {name: leaf(p) for name, p in layer.params.items()}
    steps, rows, _ = x.shape
    lengths = torch.tensor(np.full(rows, steps) if given.lengths is None else given.lengths)
    none = np.zeros((steps + 1, rows), bool)
    resets, mask = none.copy(), ~none
    resets[:steps] = none[:steps] if given.resets is None else given.resets
    mask[:steps] = ~none[:steps] if given.mask is None else given.mask
    resets, mask = torch.from_numpy(resets), torch.from_numpy(mask)
    ends: list[Any] = []
    y = x
    for layer_number in range(layer.num_layers):
        sides = []
        for d in range(layer.num_directions):
            suffix = f"_l{layer_number}" + "_reverse" * d
            w = Weights(*[params.get(name + suffix) for _, name in PARTS])
            slot = layer_number * layer.num_directions + d
            state = [s[slot] for s in starts]
            restart = [s[slot] for s in again] or [torch.zeros_like(s) for s in state]
            output = torch.zeros_like(state[0])
            outputs: list[Any] = [None] * steps
            for t in reversed(range(steps)) if d else range(steps):
                inside = t < lengths
                # The boundary that the row crosses to come to this step, and whether it was in the step before.
                boundary = t + 1 if d else t
                crosses = (boundary < lengths if d else inside) & (boundary % k == 0 and (t > 0 or d == 1))
                state = [torch.where(crosses[:, None], s.detach(), s) for s in state]
                begins = ((boundary < lengths) & resets[boundary])[:, None]
                state = [torch.where(begins, a, s) for a, s in zip(restart, state, strict=True)]
                output = torch.where(begins, 0.0, output)
                side = y[t] @ w.w_ih.T + (0 if w.b_ih is None else w.b_ih)
                new = STEPS[layer.cell.name](side, tuple(state), w)
                live = (inside & mask[t])[:, None]
                state = [torch.where(live, n, s) for n, s in zip(new, state, strict=True)]
                output = torch.where(live, new[0], output)
                shown = live if given.zero_output_for_mask else inside[:, None]
                outputs[t] = torch.where(shown, output, 0.0)
            sides.append(torch.stack(outputs))
            ends.append(state)
        y = torch.cat(sides, -1)
    state_n = [torch.stack(of_all) for of_all in zip(*ends, strict=True)]
    leaves = {"dx": x} | {f"dstate0[{n}]": s for n, s in enumerate(starts)}
    leaves |= {f"dreset_state[{n}]": s for n, s in enumerate(again)}
    leaves |= {f"grad {name}": p for name, p in params.items()}
    results = [y, *state_n]
    seeds = [torch.from_numpy(np.asarray(d, np.float64)) for d in (dy, *parts(dends))]
    grads = torch.autograd.grad(results, list(leaves.values()), seeds, allow_unused=True, materialize_grads=True)
    found = {"y": y} | {f"state_n[{n}]": s for n, s in enumerate(state_n)} | dict(zip(leaves, grads, strict=True))
    return {name: value.detach().numpy() for name, value in found.items()}


@pytest.mark.parametrize("kinds", slow_except(KINDS, "resets given", "resets given mask zero lengths", "mask"))
@pytest.mark.parametrize("config", CONFIGS)
def test_gradients_are_those_of_a_loop_that_detaches(config: str, kinds: str, rng: np.random.Generator) -> None:
    layer = made(config)
    given = inputs(layer, rng, T, B, kinds)
    dy, dends = gradients_of(layer, given, rng)
    want = by_loop(layer, given, dy, dends, K)
    got = trained(layer, given, dy, dends, truncate=K)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert_close(name, got[name], value, "float64", kind_of(name))
    whole = trained(layer, given, dy, dends)
    assert max(abs(got[name] - whole[name]).max() for name in got) > 1e-3  # it does cut


def test_a_state_that_masked_steps_carry_across_a_boundary_has_no_gradient() -> None:
    """Before the first step that is not masked, after the last one, and in rows that are masked throughout."""
    layer = made("gru")
    rng = np.random.default_rng(3)
    given = inputs(layer, rng, 8, 6, "resets given mask")
    given.mask[:] = True
    given.resets[:] = False
    given.mask[:4, 0] = False  # the initial state is carried across a boundary, and to one
    given.mask[:2, 1] = False
    given.mask[4:, 2] = False
    given.mask[:, 3] = False
    given.resets[2, 4], given.mask[2:5, 4] = True, False  # so is a reset state
    given.resets[3:, 5], given.mask[:, 5] = True, False
    dy, dends = gradients_of(layer, given, rng)
    want = by_loop(layer, given, dy, dends, 4)
    got = trained(layer, given, dy, dends, truncate=4)
    for name, value in want.items():
        assert_close(name, got[name], value, "float64", kind_of(name))
    assert not got["dstate0[0]"][0, 0].any()
    assert got["dstate0[0]"][0, 1].any()
    assert not got["dstate0[0]"][:, 3].any()
    assert not got["dreset_state[0]"][0, 4].any()


@pytest.mark.parametrize(
    ("config", "dtype"),
    slow_except(
        [("lstm", "float32"), ("gru", "float32"), ("lstm, projected", "float16"), ("gru", "bfloat16")],
        ("lstm", "float32"),
        unpack=True,
    ),
)
def test_compiled_chunks(config: str, dtype: str, rng: np.random.Generator) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    storage = DTYPES[dtype].storage
    oracle, layer = made(config), made(config, backend="numba", dtype=dtype)
    for name, p in oracle.params.items():
        layer.params[name][...] = p.astype(storage)
        p[...] = layer.params[name]
    given = inputs(layer, rng, T, B, "resets given mask lengths")
    dy, dends = gradients_of(layer, given, rng)
    exact = Inputs(*[cast(v, "float64") for v in given])
    want = by_loop(oracle, exact, np.asarray(dy, np.float64), cast(dends, "float64"), K)
    got = trained(layer, given, dy, dends, truncate=K)
    for name, value in want.items():
        assert_close(name, got[name], value, dtype, kind_of(name))


def test_options_and_random_masks_go_with_it(rng: np.random.Generator) -> None:
    """One chunk is the plain call, with the same masks. More chunks change no result of the call."""
    rates = {"zoneout": (0.3, 0.2), "recurrent_dropout": 0.3, "input_dropout": 0.2, "dropout": 0.3}
    options = {"num_layers": 2, "bidirectional": True, "clip": 1.0, "cell_clip": 0.5}
    kinds = "resets given mask lengths"
    found = {}
    for k in (None, T, K):
        layer = rnnkit.LSTM(3, 4, dtype="float64", backend="numpy", rng=1, **options, **rates)
        draw = np.random.default_rng(5)
        given = inputs(layer, draw, T, B, kinds)
        found[k] = trained(layer, given, *gradients_of(layer, given, draw), truncate=k)
    for name, value in found[None].items():
        assert_close(name, found[T][name], value, "float64", kind_of(name))
        if kind_of(name) == "forward":
            assert_close(name, found[K][name], value, "float64")
    assert abs(found[K]["dx"] - found[None]["dx"]).max() > 1e-3


def test_edges(rng: np.random.Generator) -> None:
    """Nothing flagged, resets at the first step alone, no gradient of y, inference, a batch and layout of the user."""
    layer = rnnkit.GRU(3, 4, dtype="float64", backend="numpy", rng=1, batch_first=True)
    x = rng.standard_normal((B, T, 3))
    nothing = np.zeros((B, T), bool)
    plain, _ = layer(x, truncate=K)
    layer.zero_grad()
    dx, _ = layer.backward(np.ones_like(plain))
    y, _ = layer(x, resets=nothing, mask=~nothing, truncate=K)
    np.testing.assert_array_equal(y, plain)
    np.testing.assert_array_equal(layer.backward(np.ones_like(y))[0], dx)
    first = nothing.copy()
    first[:, 0] = True
    y, _ = layer(x, resets=first, truncate=K)
    np.testing.assert_array_equal(y, plain)
    np.testing.assert_array_equal(layer.backward(np.ones_like(y))[0], dx)
    y, _ = layer(x, mask=nothing, truncate=K)
    dx, dh0 = layer.backward(None, np.ones((1, B, 4)))
    assert not y.any()
    assert not dx.any()
    assert not dh0.any()
    with rnnkit.no_grad():
        layer(x, resets=~nothing, truncate=K)
    y, _ = layer(x[:, :0], resets=~nothing[:, :0], truncate=K)
    assert y.shape == (B, 0, 4)


def test_explain_says_in_which_chunks() -> None:
    layer = rnnkit.GRU(3, 4, backend="numpy")
    mask = np.ones((T, B), bool)
    mask[4, 1] = False
    said = rnnkit.explain(layer, np.ones((T, B, 3), np.float32), mask=mask, truncate=K)
    assert "in 4 chunks of at most 3 steps, gradients of states cut between them" in said.kernel
