"""What people run today where torch.nn has no layer for a cell: a loop over the steps in PyTorch, and Keras.

Each way is a forward and a backward of one layer: the gradients of x and of every weight. The loop computes x W_ih^T
before its steps, in PyTorch's operators (the equations of rnnkit/torch/equations.py, as a person would write them);
`compiled` is torch.compile of the same function, which unrolls the steps. Keras is its own layer on JAX, jitted; of
these options it has recurrent dropout, with a mask per gate.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import rnnkit
from bench.cell_options import Row
from rnnkit.core.cells import Weights, cell_of
from rnnkit.testing import Case, Inputs, make_inputs, run
from rnnkit.torch import equations
from rnnkit.torch.option_equations import step_of

Tensor = Any
Loop = Callable[..., tuple[Tensor, ...]]  # (x, state, weights) -> y, the final states
TOLERANCE = 1e-4
SMALL = {"T": 6, "B": 7, "I": 5, "H": 19}


def loop_of(row: Row) -> Loop | None:
    """The loop over steps of a row, or None: a mask for each gate needs a product for each of them."""
    rates = dict(row.rates)
    return None if rates.get("mask_per_gate") else _loop(row, rates)


def _loop(row: Row, rates: dict[str, Any]) -> Loop:
    """With masks drawn by PyTorch: of x, h and W_hh once per call, of zoneout in each step."""
    cell = cell_of(row.cell)
    step = step_of(cell, row.constants) if cell.options else equations.STEPS[cell.name]
    normalises = cell.normalises  # such a step adds the biases itself
    dropped = torch.nn.functional.dropout
    of_x = rates.get("input_dropout", 0.0)
    of_h = rates.get("recurrent_dropout", 0.0)
    of_w = rates.get("weight_dropout", 0.0)
    zones = rates.get("zoneout", 0.0)
    zones = zones if isinstance(zones, tuple) else (zones,)

    def loop(x: Tensor, state: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, ...]:
        w = Weights(*weights[:4], None, *weights[4:])
        if of_w:
            w = w._replace(w_hh=dropped(w.w_hh, of_w))
        if of_x:
            x = x * dropped(torch.ones_like(x[0]), of_x)
        mask = dropped(torch.ones_like(state[0]), of_h) if of_h else None
        x_side = torch.nn.functional.linear(x, w.w_ih, None if normalises else w.b_ih)
        outputs = []
        for t in range(x.shape[0]):
            new = step(x_side[t], state if mask is None else (state[0] * mask, *state[1:]), w)
            if any(zones):
                kept = [torch.rand_like(s) < p for s, p in zip(state, zones, strict=True)]
                new = tuple(torch.where(k, s, n) for k, s, n in zip(kept, state, new, strict=True))
            state = new
            outputs.append(state[0])
        return (torch.stack(outputs), *state)

    return loop


class Tensors:
    """The arrays of a case as leaves of autograd."""

    def __init__(self, inputs: Inputs) -> None:
        self.x = torch.tensor(inputs.x, requires_grad=True)
        self.state = tuple(torch.tensor(s) for s in inputs.state0)
        self.weights = [torch.tensor(w, requires_grad=True) for w in inputs.weights if w is not None]
        self.dy = torch.tensor(inputs.dy)

    def gradients(self, loop: Loop) -> list[Tensor]:
        """y, dx and the weights' gradients. The final states have none."""
        y, *_ = loop(self.x, self.state, self.weights)
        return [y.detach(), *torch.autograd.grad(y, [self.x, *self.weights], self.dy)]


def wrong(row: Row, loop: Loop) -> str | None:
    """Which of y, dx and dw_hh differs from the oracle's, and by how much, or None. Random masks have rates of 0."""
    if row.rates:
        zero = {name: 0.0 if not isinstance(rate, tuple) else (0.0, 0.0) for name, rate in row.rates}
        loop = _loop(row, zero)
    case = Case(row.cell, constants=row.constants, **SMALL)
    inputs = make_inputs(case, "float32")
    inputs.dstate_n = tuple(np.zeros_like(d) for d in inputs.dstate_n)
    want = run(case, inputs, "numpy")
    y, dx, _, dw_hh, *_ = Tensors(inputs).gradients(loop)
    for name, got in (("y", y), ("dx", dx), ("dw_hh", dw_hh)):
        error = np.abs(got.numpy() - want[name]).max()
        if not error <= TOLERANCE * max(1, np.abs(want[name]).max()):
            return f"{name} of the loop differs from the oracle's by {error:.1g}"
    return None


def loop_call(row: Row, loop: Loop, sizes: dict[str, int], compiled: bool) -> Callable[[], None]:
    """Forward and backward of the loop. compiled: by torch.compile, at the first call."""
    tensors = Tensors(make_inputs(Case(row.cell, constants=row.constants, **sizes), "float32"))
    function = torch.compile(loop, fullgraph=True, dynamic=False) if compiled else loop

    def call() -> None:
        tensors.gradients(function)

    return call


def keras_call(row: Row, sizes: dict[str, int]) -> Callable[[], None] | None:
    """Keras' LSTM with recurrent dropout, jitted by JAX; None for other rows."""
    rates = dict(row.rates)
    if row.cell != "lstm" or not rates.get("mask_per_gate"):
        return None
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import jax
    import keras

    if keras.backend.backend() != "jax":
        return None
    inputs = make_inputs(Case(row.cell, **sizes), "float32")
    inputs.state0 = tuple(np.zeros_like(s) for s in inputs.state0)
    w = inputs.weights
    assert w.b_ih is not None
    layer = keras.layers.LSTM(sizes["H"], return_sequences=True, recurrent_dropout=rates["recurrent_dropout"])
    layer.build((sizes["B"], sizes["T"], sizes["I"]))
    layer.set_weights([w.w_ih.T, w.w_hh.T, w.b_ih + w.b_hh])
    # Without its masks. tests/peers/test_keras_dropout.py compares it with them.
    got = np.asarray(layer(inputs.x.swapaxes(0, 1), training=False)).swapaxes(0, 1)
    np.testing.assert_allclose(got, run(Case(row.cell, **sizes), inputs, "numpy")["y"], rtol=0, atol=TOLERANCE)
    x = jax.numpy.asarray(inputs.x.swapaxes(0, 1))
    dy = jax.numpy.asarray(inputs.dy.swapaxes(0, 1))
    fixed = [v.value for v in layer.non_trainable_variables]

    def loss(trained: Any, x: Any, fixed: Any) -> tuple[Any, Any]:
        y, fixed = layer.stateless_call(trained, fixed, x, training=True)
        return (y * dy).sum(), fixed

    gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    trained = [v.value for v in layer.trainable_variables]

    def call() -> None:
        nonlocal fixed
        (_, fixed), found = gradients(trained, x, fixed)
        jax.block_until_ready(found)

    return call


def set_threads(threads: int) -> None:
    """Sets the threads of rnnkit and PyTorch. JAX takes all cores."""
    rnnkit.set_num_threads(threads)
    torch.set_num_threads(threads)
