"""Keras' LSTM and GRU with recurrent_dropout are rnnkit's with mask_per_gate, given the same masks."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")

import rnnkit  # noqa: E402
from rnnkit.backends.random_masks import fixed_mask  # noqa: E402
from rnnkit.core.regularisation import HIDDEN, Noise  # noqa: E402
from rnnkit.testing import assert_close  # noqa: E402

pytestmark = pytest.mark.peers

# Gates of rnnkit, by the place of Keras' mask: Keras' LSTM has i, f, c, o, its GRU z, r, h.
GATES = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2)}


class Fixed:
    def integers(self, *_: Any, **__: Any) -> int:
        return 77


@pytest.mark.parametrize(("name", "arguments"), [("LSTM", {}), ("GRU", {"reset_after": False})])
def test_recurrent_dropout(name: str, arguments: dict[str, Any], rng: Any) -> None:
    T, B, I, H, p = 6, 3, 4, 5, 0.4
    layer = getattr(rnnkit, name)(
        I, H, recurrent_dropout=p, mask_per_gate=True, backend="numpy", dtype="float32", rng=1, **arguments
    )
    peer = getattr(keras.layers, name)(H, return_sequences=True, recurrent_dropout=p, **arguments)
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    peer.build((B, T, I))
    order = GATES[name]
    w = {key.removesuffix("_l0"): value for key, value in layer.params.items()}

    def in_order(a: np.ndarray) -> np.ndarray:
        return np.concatenate([np.split(a, len(order))[gate] for gate in order])

    peer.set_weights([in_order(w["weight_ih"]).T, in_order(w["weight_hh"]).T, in_order(w["bias_ih"] + w["bias_hh"])])
    noise = Noise(layer.regularisation, 77)
    masks = [keras.ops.convert_to_tensor(fixed_mask(noise, HIDDEN, p, np.arange(B), H, x, gate)) for gate in order]
    peer.cell.get_recurrent_dropout_mask = lambda _: masks
    layer.rng = Fixed()
    y, _ = layer(x)
    got = keras.ops.convert_to_numpy(peer(x.swapaxes(0, 1), training=True)).swapaxes(0, 1)
    assert_close("y", y, got, "float32")
