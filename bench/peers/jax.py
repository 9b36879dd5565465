"""JAX on the CPU: jit over lax.scan, with the input products outside the scan and weights transposed for h @ W.

forward+backward is one jitted jax.vjp, which returns the outputs and every gradient. lax.scan's `unroll` is 1: 2, 4 and
8 are up to 15% faster at some shapes and two to four times slower at others. Compilation is not timed.

Compiling takes about a second per shape. With JAX_COMPILATION_CACHE_DIR set to a folder and
JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS to 0, JAX caches its programs there, and a second run loads them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.grid import Point
from bench.peers import Prepared
from bench.problem import Problem
from rnnkit.core.cells import CELLS

ACTIVATIONS = {"rnn_tanh": jnp.tanh, "rnn_relu": jax.nn.relu}


def make(name: str) -> Jax:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    return Jax()


class Jax:
    def __init__(self) -> None:
        self.versions = {"jax": jax.__version__}

    def unsupported(self, point: Point) -> str | None:
        return None

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        point = problem.point
        names = CELLS[problem.point.cell].states
        params = {n: jnp.asarray(p.T if p.ndim == 2 else p) for n, p in problem.params.items()}
        x = jnp.asarray(problem.x)
        dy = jnp.asarray(problem.dy)
        state0 = tuple(map(jnp.asarray, problem.state0))
        dstate_n = tuple(map(jnp.asarray, problem.dstate_n))
        live = None
        if problem.lengths is not None:
            live = jnp.asarray(np.arange(point.T)[:, None, None] < problem.lengths[None, :, None])

        def forward(x: Any, state0: Any, params: Any) -> Any:
            return _network(point, x, state0, params, live)

        def forward_backward(x: Any, state0: Any, params: Any, dy: Any, dstate_n: Any) -> Any:
            outputs, pull = jax.vjp(forward, x, state0, params)
            return outputs, pull((dy, dstate_n))

        arguments = (x, state0, params, dy, dstate_n) if point.backward else (x, state0, params)
        compiled = jax.jit(forward_backward if point.backward else forward)

        def results(called: Any) -> dict[str, np.ndarray]:
            (y, state_n), gradients = called if point.backward else (called, None)
            found = {"y": y, **{f"{n}_n": s for n, s in zip(names, state_n, strict=True)}}
            if gradients is not None:
                dx, dstate0, dparams = gradients
                found |= {"dx": dx, **{f"d{n}0": d for n, d in zip(names, dstate0, strict=True)}}
                found |= {f"d{n}": d.T if d.ndim == 2 else d for n, d in dparams.items()}
            return {n: np.asarray(a) for n, a in found.items()}

        return Prepared(lambda: jax.block_until_ready(compiled(*arguments)), results)


def _network(point: Point, x: Any, state0: Any, params: Any, live: Any) -> Any:
    """Layers and directions in torch's order: y (T, B, D*R) and the states (L*D, B, ·)."""
    ends: list[Any] = []
    for layer in range(point.layers):
        outputs = []
        for direction in range(point.directions):
            own = f"_l{layer}" + ("_reverse" if direction else "")
            weights = {n.removesuffix(own): p for n, p in params.items() if n.endswith(own)}
            start = tuple(s[layer * point.directions + direction] for s in state0)
            y, end = _scan(point.cell, x, start, weights, live, direction == 1)
            outputs.append(y)
            ends.append(end)
        x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=2)
    return x, tuple(jnp.stack(s) for s in zip(*ends, strict=True))


def _scan(cell: str, x: Any, start: Any, w: dict[str, Any], live: Any, reverse: bool) -> Any:
    gates_x = x @ w["weight_ih"] + w["bias_ih"]

    def step(state: Any, at: Any) -> Any:
        gates, inside = at
        new = _step(cell, gates, state, w)
        if inside is None:
            return new, new[0]
        new = tuple(jnp.where(inside, n, s) for n, s in zip(new, state, strict=True))
        return new, jnp.where(inside, new[0], 0)

    end, y = jax.lax.scan(step, start, (gates_x, live), reverse=reverse)
    return y, end


def _step(cell: str, gates_x: Any, state: Any, w: dict[str, Any]) -> Any:
    h = state[0]
    w_hh = w["weight_hh"]
    b_hh = w["bias_hh"]
    if cell in ACTIVATIONS:
        return (ACTIVATIONS[cell](gates_x + h @ w_hh + b_hh),)
    if cell == "lstm":
        i, f, g, o = jnp.split(gates_x + h @ w_hh + b_hh, 4, axis=1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h @ w["weight_hr"] if "weight_hr" in w else h), c
    H = h.shape[1]
    x_r, x_z, x_n = jnp.split(gates_x, 3, axis=1)
    if cell == "gru":
        h_r, h_z, h_n = jnp.split(h @ w_hh + b_hh, 3, axis=1)
        r = jax.nn.sigmoid(x_r + h_r)
        z = jax.nn.sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + r * h_n)
    else:
        h_r, h_z = jnp.split(h @ w_hh[:, : 2 * H] + b_hh[: 2 * H], 2, axis=1)
        r = jax.nn.sigmoid(x_r + h_r)
        z = jax.nn.sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + (r * h) @ w_hh[:, 2 * H :] + b_hh[2 * H :])
    return ((1 - z) * n + z * h,)
