"""truncate and max_saved_bytes: gradients cut every k steps, and backward within a number of bytes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.dtypes import DTYPES
from rnnkit.functional import chunked
from rnnkit.testing import assert_close
from tests.helpers import slow_except

T, B, I, H = 11, 4, 3, 5
LENGTHS = [11, 0, 6, 4]
LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn": (rnnkit.RNN, {}),
    "gru": (rnnkit.GRU, {"bidirectional": True}),
    "gru, reset before": (rnnkit.GRU, {"reset_after": False, "num_layers": 2}),
    "lstm": (rnnkit.LSTM, {"num_layers": 2, "bidirectional": True}),
    "lstm, projected": (rnnkit.LSTM, {"proj_size": 2}),
    "lstm, batch_first": (rnnkit.LSTM, {"batch_first": True, "bias": False}),
    "slstm": (rnnkit.SLSTM, {"num_layers": 2, "bidirectional": True}),
}


class Case:
    """A layer, and random arguments of a call and of its backward."""

    def __init__(self, name: str, backend: str | None, dtype: str = "float64") -> None:
        kind, options = LAYERS[name]
        self.layer = kind(I, H, dtype=dtype, backend=backend, rng=1, **options)
        draw = np.random.default_rng(2)
        self.several = len(self.layer.cell.states) > 1
        slots = self.layer.num_layers * self.layer.num_directions
        widths = self.layer._state_widths()

        def random(*shape: int) -> np.ndarray:
            return draw.standard_normal(shape).astype(DTYPES[dtype].storage)

        lead = (B, T) if self.layer.batch_first else (T, B)
        self.x = random(*lead, I)
        self.dy = random(*lead, self.layer.output_size)
        self.h0, self.dh = (tuple(random(slots, B, w) for w in widths) for _ in range(2))
        if "n" in self.layer.cell.states:
            self.h0[2][...] = 1 + np.abs(self.h0[2])

    def state(self, states: tuple[np.ndarray, ...]) -> Any:
        return states if self.several else states[0]

    def run(self, lengths: Any, dy: bool = True, **options: Any) -> dict[str, np.ndarray]:
        """y, the final states, dx, the gradients of the initial states and of the weights, by name."""
        self.layer.zero_grad()
        y, state_n = self.layer(self.x, self.state(self.h0), lengths, **options)
        dx, dstate0 = self.layer.backward(self.dy if dy else None, self.state(self.dh))
        pairs = [state if self.several else (state,) for state in (state_n, dstate0)]
        return _named(y, dx, *pairs, {name: g.copy() for name, g in self.layer.grads.items()})


def _named(y: Any, dx: Any, state_n: Any, dstate0: Any, grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {"y": y, "dx": dx, **grads}
    found |= {f"{name}_n": s for name, s in zip("hcnm", state_n, strict=False)}
    return found | {f"d{name}0": s for name, s in zip("hcnm", dstate0, strict=False)}


def check(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], dtype: str = "float64") -> None:
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        assert_close(name, found[name], want, dtype, "forward" if name in FORWARD else "backward")


FORWARD = ("y", "h_n", "c_n", "n_n", "m_n")
BACKENDS = pytest.mark.parametrize("backend", ["numba", "numpy"])
EACH = pytest.mark.parametrize("name", slow_except(list(LAYERS), "gru", "lstm"))


@BACKENDS
@EACH
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("steps", [1, 4, 11, 50])
def test_recomputed_chunks_change_nothing(name: str, backend: str, lengths: Any, steps: int, monkeypatch: Any) -> None:
    case = Case(name, backend)
    whole = case.run(lengths)
    chosen = chunked.Chunks(steps, cuts=False, recomputes=True)
    monkeypatch.setattr("rnnkit.functional.chunked.chunks_within", lambda *arguments: chosen)
    check(case.run(lengths, max_saved_bytes=1), whole)


@BACKENDS
@EACH
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("dy", [True, False])
def test_truncated_gradients(name: str, backend: str, lengths: Any, dy: bool) -> None:
    """Each chunk of a layer and direction is a call of its own, whose final states have no gradient, unless the row
    ends in it."""
    case = Case(name, backend)
    whole = case.run(lengths, dy)
    found = case.run(lengths, dy, truncate=4)
    check(found, _truncated_by_hand(case, lengths, dy, 4))
    of_call = [name for name in FORWARD if name in whole]
    check({name: found[name] for name in of_call}, {name: whole[name] for name in of_call})
    assert max(abs(found[name] - whole[name]).max() for name in whole) > 1e-3  # it does cut


def _truncated_by_hand(case: Case, lengths: Any, dy: bool, k: int) -> dict[str, np.ndarray]:
    """By single steps of the oracle: the gradient of a state is dropped where a row crosses a multiple of k."""
    layer = case.layer
    cell = layer.cell
    n = np.full(B, T) if lengths is None else np.array(lengths)
    x = case.x.swapaxes(0, 1) if layer.batch_first else case.x
    D = layer.num_directions
    all_weights = [c.weights for row in layer._caches() for c in row]
    tapes, ends, inputs = [], [], [x]
    for m in range(layer.num_layers):
        sides = []
        for d in range(D):
            w = all_weights[m * D + d]
            state = tuple(s[m * D + d] for s in case.h0)
            y = np.zeros((T, B, state[0].shape[1]))
            tape: dict[int, Any] = {}
            for t in reversed(range(T)) if d else range(T):
                side = inputs[-1][t] @ w.w_ih.T + (0 if w.b_ih is None else w.b_ih)
                new, tape[t] = cell.forward(side, state, w)
                live = (t < n)[:, None]
                state = tuple(np.where(live, a, b) for a, b in zip(new, state, strict=True))
                y[t] = np.where(live, new[0], 0)
            tapes.append(tape)
            ends.append(state)
            sides.append(y)
        inputs.append(np.concatenate(sides, 2))
    total = np.zeros_like(inputs[-1]) if not dy else case.dy.swapaxes(0, 1) if layer.batch_first else case.dy
    grads: dict[str, np.ndarray] = {}
    dstarts: list[Any] = [None] * len(all_weights)
    for m in reversed(range(layer.num_layers)):
        dx = np.zeros_like(inputs[m])
        for d in range(D):
            slot = m * D + d
            w = all_weights[slot]
            R = w.w_hh.shape[1]
            dstate = tuple(s[slot] for s in case.dh)
            sums = dict.fromkeys(("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"), 0.0)
            for t in range(T) if d else reversed(range(T)):
                live = (t < n)[:, None]
                given = tuple(np.where(live, s, 0) for s in dstate)
                given = (given[0] + np.where(live, total[t, :, d * R : (d + 1) * R], 0), *given[1:])
                step = cell.backward(tapes[slot][t], given, w)
                dx_side, dh_side = (np.where(live, a, 0) for a in (step.dx_side, step.dh_side))
                dx[t] += dx_side @ w.w_ih
                sums["weight_ih"] += dx_side.T @ inputs[m][t]
                sums["bias_ih"] += dx_side.sum(0)
                sums["bias_hh"] += dh_side.sum(0)
                for operand, first, end in cell.products:
                    part = slice(first * H, end * H)
                    block = np.zeros((cell.n_gates * H, R))
                    block[part] = dh_side[:, part].T @ np.where(live, tapes[slot][t][operand], 0)
                    sums["weight_hh"] += block
                if w.w_hr is not None:
                    sums["weight_hr"] += np.where(live, step.dprojected, 0).T @ tapes[slot][t]["m"]
                # The boundary between this step and the one before it in the order of the pass.
                boundary, before = (t + 1, t + 1 < n) if d else (t, np.full(B, t > 0))
                crosses = (boundary % k == 0) & before
                back = [np.where(crosses[:, None], 0, s) for s in step.dstate]
                dstate = tuple(np.where(live, a, b) for a, b in zip(back, dstate, strict=True))
            dstarts[slot] = dstate
            suffix = f"_l{m}" + "_reverse" * d
            grads |= {name + suffix: value for name, value in sums.items()}
        total = dx
    user = (lambda a: a.swapaxes(0, 1)) if layer.batch_first else (lambda a: a)
    states = [np.stack([e[k] for e in ends]) for k in range(len(case.h0))]
    starts = [np.stack([e[k] for e in dstarts]) for k in range(len(case.h0))]
    return _named(user(inputs[-1]), user(total), states, starts, {name: grads[name] for name in layer.grads})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=pytest.mark.slow)])
def test_chunks_in_other_dtypes(dtype: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Case("lstm", "numpy")
    case = Case("lstm", backend, dtype)
    exact.layer.load_state_dict({name: p.astype(np.float64) for name, p in case.layer.params.items()})
    for name in ("x", "dy"):
        setattr(exact, name, getattr(case, name).astype(np.float64))
    exact.h0, exact.dh = (tuple(a.astype(np.float64) for a in states) for states in (case.h0, case.dh))
    whole = exact.run(LENGTHS)
    monkeypatch.setattr("rnnkit.functional.chunked.chunks_within", lambda *arguments: chunked.Chunks(3, False, True))
    check(case.run(LENGTHS, max_saved_bytes=1), whole, dtype)
    check(case.run(LENGTHS, truncate=3), exact.run(LENGTHS, truncate=3), dtype)


def _held(function: Any) -> tuple[Any, int, int]:
    """The function's result, what it allocated that still exists, and its peak, in bytes."""
    tracemalloc.start()
    result = function()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return result, held, peak


@pytest.mark.parametrize("name", slow_except(["gru", "lstm"], "lstm"))
@pytest.mark.parametrize("most", slow_except([200_000, 400_000], 400_000))
def test_the_bound_holds(name: str, most: int) -> None:
    """Measured: what the call leaves beside its results, and what it and backward take at most at one time."""
    kind, options = LAYERS[name]
    steps, rows, width = 500, 2, 16
    layer = kind(width, width, backend="numba", **options)
    x = np.random.default_rng(0).standard_normal((steps, rows, width)).astype(np.float32)
    dy = np.ones((steps, rows, layer.output_size), np.float32)
    for options in ({}, {"max_saved_bytes": most}):  # compiles, and fills caches
        layer(x, **options)
        layer.backward(dy)
    _, full, _ = _held(lambda: layer(x))
    _, _, of_backward = _held(lambda: layer.backward(dy))
    (y, state_n), held, _ = _held(lambda: layer(x, max_saved_bytes=most))
    states = state_n if isinstance(state_n, tuple) else (state_n,)
    held -= sum(a.nbytes for a in (y, *states))
    slack = 40_000  # Python's objects: a call per chunk
    assert held <= most + slack < full
    _, _, peak = _held(lambda: layer.backward(dy))
    assert peak <= of_backward + most + slack
    said = rnnkit.explain(layer, x, max_saved_bytes=most)
    assert "run again in backward" in said.kernel
    assert said.kept_bytes <= most


def test_least_bytes_are_said_and_are_enough() -> None:
    layer = rnnkit.LSTM(8, 16, num_layers=2, backend="numba")
    x = np.ones((300, 2, 8), np.float32)
    with pytest.raises(ValueError, match=r"max_saved_bytes must be at least [\d,]+ for this call, got 1,000") as caught:
        layer(x, max_saved_bytes=1000)
    least = int(str(caught.value).split()[5].replace(",", ""))
    y, _ = layer(x, max_saved_bytes=least)
    assert_close("y", y, layer(x)[0], "float32")
    with rnnkit.no_grad():
        layer(x, max_saved_bytes=least)


def test_bytes_that_suffice_save_everything() -> None:
    layer = rnnkit.GRU(8, 16, backend="numba")
    x = np.ones((30, 2, 8), np.float32)
    assert rnnkit.explain(layer, x, max_saved_bytes=10**9) == rnnkit.explain(layer, x)


def test_a_million_steps() -> None:
    """1,000,000 steps of forward and backward in 4 MB, where saving everything takes 40."""
    layer = rnnkit.GRU(2, 2, rng=0, backend="numba")
    x = np.random.default_rng(0).standard_normal((1_000_000, 1, 2)).astype(np.float32)
    dy = np.ones_like(x)
    layer(x[:100])
    layer.backward(dy[:100])
    layer.zero_grad()
    _, held, _ = _held(lambda: layer(x, max_saved_bytes=4_000_000))
    assert held - x.nbytes <= 4_000_000 + 1_000_000  # y; and Python's objects
    dx, dh0 = layer.backward(dy)
    grads = {name: g.copy() for name, g in layer.grads.items()}
    layer.zero_grad()
    layer(x)
    expected, dh0_expected = layer.backward(dy)
    check({"dx": dx, "dh0": dh0, **grads}, {"dx": expected, "dh0": dh0_expected, **layer.grads}, "float32")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"truncate": 0}, "truncate must be"),
        ({"truncate": 2.5}, "truncate must be"),
        ({"truncate": True}, "truncate must be"),
        ({"max_saved_bytes": -1}, "max_saved_bytes must be"),
        ({"max_saved_bytes": "all"}, "max_saved_bytes must be"),
        ({"truncate": 2, "max_saved_bytes": 10**6}, "max_saved_bytes must be None with truncate, got 1000000"),
        ({"truncate": 0, "resets": np.ones((5, 3), bool)}, "truncate must be"),
        ({"truncate": 2, "max_saved_bytes": 10**6, "mask": np.zeros((5, 3), bool)}, "max_saved_bytes must be None"),
        ({"max_saved_bytes": 9, "resets": np.ones((5, 3), bool)}, "max_saved_bytes must be at least"),
    ],
)
def test_bad_arguments(options: dict[str, Any], said: str) -> None:
    layer = rnnkit.GRU(4, 6)
    x = np.ones((5, 3, 4), np.float32)
    for call in (layer, lambda x, **given: rnnkit.explain(layer, x, **given)):
        with pytest.raises((ValueError, TypeError), match=said):
            call(x, **options)


@pytest.mark.parametrize("options", [{"truncate": 3}, {"max_saved_bytes": 10**6}])
def test_no_steps(options: dict[str, int]) -> None:
    layer = rnnkit.LSTM(4, 6, bidirectional=True)
    h0 = np.ones((2, 3, 6), np.float32)
    y, (h_n, _) = layer(np.ones((0, 3, 4), np.float32), (h0, h0), **options)
    assert y.shape == (0, 3, 12)
    assert (h_n == h0).all()
    _, (dh0, _) = layer.backward(None, (2 * h0, None))
    assert (dh0 == 2 * h0).all()
