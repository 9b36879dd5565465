"""Layers with zoneout and dropout on x, h and W_hh: modes, seeds, rows, resets, chunks, calls, and bad arguments."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import rnnkit
from tests.helpers import assert_same, randn, train_step

ALL = {"input_dropout": 0.2, "recurrent_dropout": 0.3, "weight_dropout": 0.2, "zoneout": 0.3}


def make(name: str = "LSTM", **kwargs: Any) -> Any:
    return getattr(rnnkit, name)(
        3, 4, 2, bidirectional=True, dtype="float64", backend="numpy", **({"rng": 11} | ALL | kwargs)
    )


def test_eval_without_zoneout_is_the_plain_layer(rng: Any) -> None:
    x, dy = randn(rng, 5, 3, 3), randn(rng, 5, 3, 8)
    off = dict.fromkeys(ALL, 0.0)
    plain = train_step(make(**off), x, None, dy, None)
    layer = make(zoneout=0.0).eval()
    assert_same(train_step(layer, x, None, dy, None), plain)
    assert not np.array_equal(layer.train()(x)[0], plain["y"])


def test_a_seed_gives_the_masks_and_each_call_others(rng: Any) -> None:
    x = randn(rng, 5, 3, 3)
    one, other = make(), make()
    first, second = one(x)[0], one(x)[0]
    assert not np.array_equal(first, second)
    assert np.array_equal(other(x)[0], first)
    assert np.array_equal(other(x)[0], second)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_have_the_rates_and_the_seeds(copied: Any, rng: Any) -> None:
    x = randn(rng, 5, 3, 3)
    layer = make(zoneout=(0.3, 0.2), zoneout_output="zoned")
    twin = copied(layer)
    assert twin.regularisation == layer.regularisation
    assert np.array_equal(twin(x)[0], layer(x)[0])


def test_several_calls_before_their_backwards(rng: Any) -> None:
    """Each backward draws the masks of its own call again, and any number of times."""
    x, dy = [randn(rng, 5, 3, 3) for _ in range(2)], randn(rng, 5, 3, 8)
    alone = make()
    expected = []
    for given in x:
        alone(given)
        expected.append(alone.backward(dy)[0])
    layer = make()
    calls = []
    for given in x:
        layer(given)
        calls.append(layer.last_call)
    for k in (1, 0, 1):
        assert np.array_equal(layer.backward(dy, call=calls[k])[0], expected[k])


def test_results_of_a_row_depend_on_its_number_alone(rng: Any) -> None:
    """Neither on the lengths of other rows nor on their number."""
    x = randn(rng, 5, 4, 3)
    whole = make()(x, lengths=[5, 3, 1, 4])[0]
    part = make()(x[:, :2], lengths=[5, 3])[0]
    other = make()(x, lengths=[5, 3, 4, 0])[0]
    assert np.array_equal(whole[:, :2], part)
    assert np.array_equal(whole[:, :2], other[:, :2])
    same = np.repeat(x[:, :1], 4, axis=1)
    y = make()(same)[0]
    assert all(not np.array_equal(y[:, 0], y[:, b]) for b in range(1, 4))


def test_layers_and_directions_have_masks_of_their_own(rng: Any) -> None:
    """Two directions of equal weights on a sequence that reads the same both ways."""
    half = randn(rng, 3, 2, 3)
    x = np.concatenate([half, half[::-1]])
    layer = rnnkit.GRU(3, 4, bidirectional=True, dtype="float64", backend="numpy", rng=1, **ALL)
    for name in [n for n in layer.params if n.endswith("_reverse")]:
        layer.params[name][...] = layer.params[name.removesuffix("_reverse")]
    y, _ = layer(x)
    assert not np.array_equal(y[:, :, :4], y[::-1, :, 4:])
    y, _ = rnnkit.GRU(3, 4, bidirectional=True, dtype="float64", backend="numpy", rng=1)(x)
    assert y.shape == (6, 2, 8)


def test_resets_keep_the_masks_of_their_row(rng: Any) -> None:
    """A row with a reset before every step is as many rows of one step, all with the masks on x and h of that row."""
    x = randn(rng, 3, 2, 3)
    layer = rnnkit.RNN(3, 4, dtype="float64", backend="numpy", rng=1, input_dropout=0.5, recurrent_dropout=0.5)
    resets = np.zeros((3, 2), bool)
    resets[:, 0] = True
    same = np.repeat(x[:1], 3, axis=0)
    y, _ = layer(same, resets=resets)
    assert np.array_equal(y[0, 0], y[1, 0])
    assert np.array_equal(y[0, 0], y[2, 0])
    plain = rnnkit.RNN(3, 4, dtype="float64", backend="numpy", rng=1, input_dropout=0.5, recurrent_dropout=0.5)
    assert np.array_equal(plain(same)[0][:, 1], y[:, 1])


def test_zoneout_differs_from_step_to_step_also_after_resets(rng: Any) -> None:
    layer = rnnkit.RNN(3, 64, dtype="float64", backend="numpy", rng=1, zoneout=0.5)
    x = np.repeat(randn(rng, 1, 1, 3), 3, axis=0)
    y, _ = layer(x, resets=np.ones((3, 1), bool))
    kept = y[:, 0] == 0  # zoneout kept the reset state
    assert 0.25 < kept.mean() < 0.75
    assert not np.array_equal(kept[0], kept[1])


@pytest.mark.parametrize("how", [{"truncate": 2}, {"max_saved_bytes": 3500}])
@pytest.mark.parametrize("lengths", [None, [7, 2, 4]])
def test_chunks_draw_the_masks_of_the_whole_sequence(how: dict[str, int], lengths: Any, rng: Any) -> None:
    x, dy = randn(rng, 7, 3, 3), randn(rng, 7, 3, 4)

    def layer() -> Any:
        return rnnkit.LSTM(3, 4, dtype="float64", backend="numpy", rng=11, **ALL)

    whole, chunked = layer(), layer()
    y, _ = whole(x, lengths=lengths)
    assert np.array_equal(chunked(x, lengths=lengths, **how)[0], y)
    if "truncate" not in how:
        np.testing.assert_allclose(chunked.backward(dy)[0], whole.backward(dy)[0], rtol=0, atol=1e-12)
        for name, gradient in whole.grads.items():
            np.testing.assert_allclose(chunked.grads[name], gradient, rtol=0, atol=1e-12)


def test_weights_are_never_stale(rng: Any) -> None:
    """Masked weights are made anew in each call, also under no_grad, where packed weights are cached."""
    x = randn(rng, 4, 2, 96, dtype="float32")
    layer = rnnkit.LSTM(96, 96, rng=1, weight_dropout=0.5)
    oracle = rnnkit.LSTM(96, 96, rng=1, weight_dropout=0.5, backend="numpy")
    with rnnkit.no_grad():
        for k in range(4):
            if k == 2:
                for each in (layer, oracle):
                    each.params["weight_hh_l0"][...] *= 0.5
            np.testing.assert_allclose(layer(x)[0], oracle(x)[0], rtol=0, atol=1e-5)


def test_repr_names_the_rates() -> None:
    layer = rnnkit.LSTM(3, 4, zoneout=(0.1, 0.2), zoneout_output="zoned", recurrent_dropout=0.3, mask_per_gate=True)
    assert (
        repr(layer) == "LSTM(3, 4, recurrent_dropout=0.3, mask_per_gate=True, zoneout=(0.1, 0.2), "
        "zoneout_output='zoned', dtype=float32)"
    )


@pytest.mark.parametrize(
    ("name", "arguments", "error", "said"),
    [
        ("GRU", {"zoneout": 1.5}, ValueError, r"zoneout must be a number in \[0, 1\], got 1.5"),
        ("GRU", {"zoneout": "0.5"}, TypeError, "zoneout must be a number"),
        ("GRU", {"zoneout": (0.1, 0.2)}, ValueError, "zoneout must be one rate for a layer without c"),
        ("LSTM", {"zoneout": (0.1, 0.2, 0.3)}, ValueError, "zoneout must be a rate or a pair of rates"),
        ("LSTM", {"zoneout": (0.1, -0.2)}, ValueError, "zoneout of c must be"),
        ("LSTM", {"zoneout_output": "new"}, ValueError, "zoneout_output must be one of"),
        ("LSTM", {"zoneout_output": "zoned"}, ValueError, "zoneout_output must be 'raw' without zoneout of c"),
        ("LSTM", {"mask_per_gate": True}, ValueError, "mask_per_gate must be False without recurrent_dropout"),
        ("RNN", {"recurrent_dropout": True}, TypeError, "recurrent_dropout must be a number"),
        ("RNN", {"input_dropout": float("nan")}, ValueError, "input_dropout must be"),
        ("RNN", {"weight_dropout": -1}, ValueError, "weight_dropout must be"),
        ("LSTM", {"zoneout": (0.1, 0.2), "peephole": True}, ValueError, "zoneout of c must be 0 with peephole"),
    ],
)
def test_bad_arguments(name: str, arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        getattr(rnnkit, name)(3, 4, **arguments)


def test_the_functional_form_refuses_cells_that_need_masks() -> None:
    from rnnkit.functional import direction

    weights = direction.Weights(np.ones((4, 2)), np.ones((4, 4)))
    with pytest.raises(ValueError, match="cell must have no zoneout and no recurrent dropout"):
        direction.forward("rnn_tanh+zoneout_h", np.ones((3, 2, 2)), (np.ones((2, 4)),), weights)
