"""Options of cells as arguments of layers: what they mean, what is refused, what explain says."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.cell_options import Options
from rnnkit.core.cells import CELLS, cell_of
from rnnkit.core.option_arguments import parsed, text_of
from rnnkit.functional import direction
from rnnkit.testing import Case, make_inputs

X = np.random.default_rng(0).standard_normal((5, 3, 4))


def layer(**options: Any) -> rnnkit.LSTM:
    return rnnkit.LSTM(4, 6, dtype="float64", backend="numpy", rng=0, **options)


def test_equal_options_give_one_cell_and_none_give_the_row_itself() -> None:
    options = Options(peephole=True, activations=("HardSigmoid", "Tanh", "Tanh"))
    cell = CELLS["lstm"].with_options(options)
    assert cell is CELLS["lstm"].with_options(Options(peephole=True, activations=("HardSigmoid", "Tanh", "Tanh")))
    assert cell is cell_of(cell.key) is pickle.loads(pickle.dumps(cell))
    assert parsed(text_of(cell, (0.2, 0.5))) == (cell, (0.2, 0.5))
    assert CELLS["lstm"].with_options(Options()) is CELLS["lstm"] is cell_of("lstm")
    assert CELLS["lstm"].with_options(Options(activations=("Sigmoid", "Tanh", "Tanh"))) is CELLS["lstm"]
    assert [cell.key for cell in CELLS.values()] == list(CELLS)


def test_limits_that_nothing_reaches_change_nothing() -> None:
    plain, limited = layer(), layer(clip=1e6, cell_clip=1e6)
    y, _ = plain(X)
    limited_y, _ = limited(X)
    np.testing.assert_allclose(limited_y, y, rtol=1e-13)
    dx, _ = plain.backward(np.ones_like(y))
    np.testing.assert_allclose(limited.backward(np.ones_like(y))[0], dx, rtol=1e-12)


def test_cell_clip_limits_c() -> None:
    _, (_, c_n) = layer(cell_clip=0.01)(X)
    assert np.abs(c_n).max() == 0.01


def test_coupled_ignores_the_weights_of_f() -> None:
    coupled = layer(coupled=True)
    y, _ = coupled(X)
    coupled.backward(np.ones_like(y))
    assert not coupled.grads["weight_hh_l0"][6:12].any()
    coupled.params["bias_ih_l0"][6:12] = 9
    np.testing.assert_array_equal(coupled(X)[0], y)


def test_peepholes_are_parameters() -> None:
    peephole = layer(peephole=True, num_layers=2, bidirectional=True)
    names = [n for n in peephole.params if "peephole" in n]
    assert names == [f"weight_peephole_l{k}{s}" for k in (0, 1) for s in ("", "_reverse")]
    assert all(peephole.params[n].shape == (3, 6) for n in names)
    other = layer(peephole=True, num_layers=2, bidirectional=True)
    other.load_state_dict(peephole.state_dict())
    np.testing.assert_array_equal(other(X)[0], peephole(X)[0])
    with pytest.raises(KeyError, match="weight_peephole_l0"):
        layer().load_state_dict(layer(peephole=True).state_dict())


def test_options_go_with_resets_masks_chunks_and_bidirectional() -> None:
    options = {"peephole": True, "clip": 0.5, "cell_clip": 0.4, "activations": ("HardSigmoid", "Tanh", "Softsign")}
    own = layer(**options)
    resets = np.zeros((5, 3), bool)
    resets[2, 1] = True
    y, _ = own(X, resets=resets)
    first, _ = own(X[:2])
    second, _ = own(X[2:])
    np.testing.assert_allclose(y[:, 1], np.concatenate([first, second])[:, 1], rtol=1e-12)
    mask = np.ones((5, 3), bool)
    mask[3:, 0] = False
    np.testing.assert_allclose(own(X, mask=mask)[0][3, 0], own(X)[0][2, 0], rtol=1e-12)
    own.zero_grad()
    y, _ = own(X)
    dx, _ = own.backward(np.ones_like(y))
    grads = {n: g.copy() for n, g in own.grads.items()}
    own.zero_grad()
    y, _ = own(X, max_saved_bytes=5000)
    np.testing.assert_allclose(own.backward(np.ones_like(y))[0], dx, rtol=1e-9, atol=1e-12)
    for name, grad in grads.items():
        np.testing.assert_allclose(own.grads[name], grad, rtol=1e-9, atol=1e-12)
    both = rnnkit.Bidirectional(own)
    assert both.reverse_layer.cell is own.cell
    assert both(X)[0].shape == (5, 3, 12)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (rnnkit.LSTM, {"clip": 0}, "clip must be finite and above 0, got 0"),
        (rnnkit.LSTM, {"clip": float("inf")}, "clip must be finite"),
        (rnnkit.LSTM, {"cell_clip": -1.0}, "cell_clip must be finite and above 0"),
        (rnnkit.LSTM, {"activations": ("Tanh",)}, r"activations must be 3 \(f, g, h of ONNX\)"),
        (rnnkit.GRU, {"activations": ("Sigmoid", "Swish")}, r"activations\[1\] must be one of 'Relu', .*got 'Swish'"),
        (rnnkit.RNN, {"activations": ("Affine",)}, "Affine must be given as .'Affine', alpha, beta."),
        (rnnkit.RNN, {"activations": (("Tanh", 1.0),)}, "Tanh takes no numbers, got 1"),
        (rnnkit.RNN, {"activations": (("Elu", -1.0),)}, "alpha of activations.0. must be at least 0 for Elu"),
        (rnnkit.RNN, {"activations": (("ScaledTanh", 0.0, 1.0),)}, "must not be 0 for ScaledTanh"),
    ],
)
def test_a_bad_value_is_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(4, 6, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": "1"}, "clip must be a number above 0 or None, got '1'"),
        ({"clip": True}, "clip must be a number above 0 or None, got True"),
        ({"peephole": 1}, "peephole must be True or False, got 1"),
        ({"coupled": None}, "coupled must be True or False"),
        ({"strict": "yes"}, "strict must be True or False"),
        ({"activations": "Tanh"}, "activations must be a sequence"),
        ({"activations": (("Elu", "x"), "Tanh", "Tanh")}, r"alpha of activations\[0\] must be a number"),
    ],
)
def test_a_bad_type_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        rnnkit.LSTM(4, 6, **options)


def test_the_functional_form_checks_keys_and_constants() -> None:
    inputs = make_inputs(Case("lstm+peephole+clip", constants=(1.0,)))
    given = (inputs.x, inputs.state0, inputs.weights)
    with pytest.raises(ValueError, match=r"constants must be \(clip\), got \(\)"):
        direction.forward("lstm+peephole+clip", *given)
    with pytest.raises(ValueError, match="w_unit must be None for lstm"):
        direction.forward("lstm", *given)
    with pytest.raises(ValueError, match="names no option 'peep'"):
        direction.forward("lstm+peep", *given)
    with pytest.raises(ValueError, match="peephole is an option of an LSTM"):
        direction.forward("gru+peephole", *given)
    with pytest.raises(TypeError, match="w_unit must be"):
        direction.forward("lstm+peephole+clip", *given[:2], inputs.weights._replace(w_unit=None), constants=(1.0,))


def test_strict_refuses_the_oracle_and_explain_names_the_options() -> None:
    with pytest.raises(ValueError, match="backend 'numpy' has no compiled kernels, which strict=True demands"):
        rnnkit.LSTM(4, 6, backend="numpy", strict=True, clip=1.0)
    found = rnnkit.explain(layer(clip=1.0, peephole=True), X)
    assert "lstm+peephole+clip" in found.kernel or "lstm" in found.kernel
    assert "clip=1.0" in found.layer
    assert "peephole=True" in repr(layer(peephole=True))
