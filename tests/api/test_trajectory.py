"""rnnkit.trajectory against single steps of the oracle's equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close
from tests.helpers import ONE_BACKEND, parts, randn, random_state

KINDS: list[tuple[Any, dict[str, Any]]] = [
    (rnnkit.LSTM, {}),
    (rnnkit.LSTM, {"proj_size": 4}),
    (rnnkit.GRU, {}),
    (rnnkit.RNN, {}),
]
T, B, I, H = 6, 4, 3, 5


@ONE_BACKEND
@pytest.mark.parametrize("of_layer", [0, -1])
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
def test_states_and_gates_are_those_of_single_steps(
    kind: Any, options: dict[str, Any], of_layer: int, cpu_backend: str
) -> None:
    layer = kind(I, H, 2, bidirectional=True, dtype="float32", backend=cpu_backend, rng=0, **options)
    rng = np.random.default_rng(1)
    x, state = randn(rng, T, B, I, dtype="float32"), random_state(layer, B, rng)
    state = tuple(s.astype(np.float32) for s in parts(state))
    lengths = [4, 0, 6, 1]
    got = rnnkit.trajectory(layer, x, state if len(state) > 1 else state[0], lengths, of_layer=of_layer)
    assert list(got) == list(dict.fromkeys((*layer.cell.states, *layer.cell.gates)))
    if of_layer == -1:
        y, _ = layer(x, state if len(state) > 1 else state[0], lengths)
        np.testing.assert_array_equal(got["h"], y)
        x = rnnkit.trajectory(layer, x, state if len(state) > 1 else state[0], lengths, of_layer=0)["h"]
    k = of_layer % 2
    for d in range(2):
        suffix = f"_l{k}" + ("_reverse" if d else "")
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        weights = rnnkit.core.cells.Weights(
            *[
                None if name + suffix not in layer.params else layer.params[name + suffix].astype(np.float64)
                for name in names
            ]
        )
        for b, length in enumerate(lengths):
            now = tuple(s[2 * k + d, b : b + 1].astype(np.float64) for s in state)
            for t in range(T):
                t = length - 1 - t if d else t
                if not 0 <= t < length:
                    continue
                x_side = x[t, b : b + 1] @ weights.w_ih.T + weights.b_ih
                now, kept = layer.cell.forward(x_side, now, weights)
                want = dict(zip(layer.cell.states, now, strict=True)) | {
                    g: kept[g] for g in layer.cell.gates if g != "h"
                }
                for name, value in want.items():
                    width = value.shape[1]
                    assert_close(name, got[name][t, b, d * width : (d + 1) * width], value[0], "float32")
    for name, value in got.items():
        assert not value[4:, 0].any(), name
        assert not value[:, 1].any(), name


def test_layouts_and_bad_arguments() -> None:
    layer = rnnkit.GRU(I, H, batch_first=True, backend="numpy", rng=0)
    x = np.ones((B, T, I), np.float32)
    assert rnnkit.trajectory(layer, x)["z"].shape == (B, T, H)
    assert rnnkit.trajectory(layer, x[0])["z"].shape == (T, H)
    with pytest.raises(ValueError, match=r"of_layer must be in \[-1, 1\), got 1"):
        rnnkit.trajectory(layer, x, of_layer=1)
    with pytest.raises(TypeError, match="layer must be an RNN, GRU or LSTM, got Linear"):
        rnnkit.trajectory(rnnkit.Linear(2, 3), x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not serve a layer with a clip"):
        rnnkit.trajectory(rnnkit.GRU(I, H, clip=1.0), x)
