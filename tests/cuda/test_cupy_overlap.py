"""What runs beside the steps of a resident schedule: products of x, and other layers. Orders, results and the choice.

The stand-in runs the work of the streams in several orders that their events allow, so that a missing event gives other
numbers: tests/tools/fakecupy/_streams.py. It has no times, so nothing here shows that work does overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.cupy import overlap, schedules
from rnnkit.backends.cupy.cost import PREDICTED
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.interface import Sizes
from rnnkit.core.devices import to_device
from rnnkit.core.dtypes import DTYPES
from rnnkit.testing import assert_close
from tests.cuda.cuda_helpers import CELLS, cuda
from tests.helpers import parts, random_state, slow_except
from tests.tools import emulator
from tests.tools.cards import CARDS, simulated

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

H200, A100, T4 = CARDS["NVIDIA H200"], CARDS["NVIDIA A100-SXM4-80GB"], CARDS["Tesla T4"]
T, B, I, H = 11, 5, 4, 24
LENGTHS = [11, 3, 7, 1, 0]


@contextmanager
def planned(at_once: int, steps: int) -> Iterator[None]:
    """Both passes of every call of a resident schedule run `at_once` layers at once, in launches of `steps` steps."""
    from rnnkit.backends.cupy import choice, overlap

    def plan(
        schedule: Any, work: Any, card: Any, rates: Any, layers: int = 1, together: bool = False, backward: bool = False
    ) -> Any:
        runs = schedule.resident and work.sizes.N and schedule.load().blocks(work, card, backward)
        return overlap.Plan(layers if together else min(at_once, layers), steps) if runs else overlap.ALONE

    def forget() -> None:
        choice._chosen.cache_clear()
        choice.backward_plan.cache_clear()

    forget()
    with mock.patch.object(overlap, "plan", plan):
        yield
    forget()


def layer_of(name: str, device: str, backend: str, layers: int = 3, **kwargs: Any) -> Any:
    return getattr(rnnkit, name)(I, H, layers, device=device, backend=backend, rng=1, **kwargs)


def results(layer: Any, x: Any, lengths: Any, dy: Any, **options: Any) -> dict[str, Any]:
    """Outputs and every gradient, of y and of the final states, from states that are not zero."""
    drawn = np.random.default_rng(7)
    rows = x.shape[1]

    def state() -> Any:
        given = tuple(to_device(s, layer.device) for s in parts(random_state(layer, rows, drawn)))
        return given if len(given) > 1 else given[0]

    layer.zero_grad()
    y, state_n = layer(x, state(), lengths=lengths, **options)
    dx, dstate0 = layer.backward(dy, state())
    found = {"y": y, "dx": dx}
    for name, end, start in zip(layer.cell.states, parts(state_n), parts(dstate0), strict=True):
        found |= {f"{name}_n": end, f"d{name}0": start}
    return found | {f"d{name}": grad.copy() for name, grad in layer.grads.items()}


def oracle(name: str, x: Any, lengths: Any, dy: Any, layers: int = 3, **kwargs: Any) -> dict[str, Any]:
    """`results` of the same layer in float64 on the CPU, with dropout masks of seed 5."""
    here = layer_of(name, "cpu", "numpy", layers, dtype="float64", **kwargs)
    for key, parameter in layer_of(name, "cpu", "numpy", layers, **kwargs).params.items():
        here.params[key][...] = parameter
    here.rng = np.random.default_rng(5)
    return results(here, x.astype("float64"), lengths, dy.astype("float64"))


# Late and early for each plan: a missing event shows in one of the two. Layers at once, and steps of a launch.
PLANS = [("late", 3, 2), ("early", 3, 2), (1, 2, 4), ("late", 1, 2), ("early", 1, 3)]
CASES = [
    ("LSTM", "grid", None, {}),
    ("GRU", "grid", LENGTHS, {"dropout": 0.5}),
    ("GRU", "one_block", LENGTHS, {}),
    ("RNN", "one_block", None, {"dropout": 0.3}),
    ("LSTM", "cluster", LENGTHS, {"dropout": 0.5}),
    ("GRU", "cluster", LENGTHS, {"reset_after": False}),
]


@pytest.mark.parametrize(("name", "schedule", "lengths", "kwargs"), slow_except(CASES, CASES[1], unpack=True))
def test_a_stack_in_any_order_of_the_streams(name: str, schedule: str, lengths: Any, kwargs: dict[str, Any]) -> None:
    """Both passes, against the oracle. Memory of the stand-in is NaN before it is written."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, B, I)).astype("float32")
    dy = rng.standard_normal((T, B, H)).astype("float32")
    wanted = oracle(name, x, lengths, dy, **kwargs)
    for order, at_once, steps in PLANS:
        with cuda(lazy_streams=order) as cp, planned(at_once, steps):
            there = layer_of(name, "cuda:0", f"cupy:{schedule}", **kwargs)
            for _ in range(2):  # the second call finds the streams and events of the first
                there.rng = np.random.default_rng(5)
                got = results(there, cp.asarray(x), lengths, cp.asarray(dy))
                assert_all(got, wanted)
            for kernel in ("forward_chunk", "backward_chunk"):
                launched = [one for one in cp.fake.launches if one.name == kernel]
                assert len({one.stream for one in launched}) == at_once


def assert_all(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        kind = "forward" if name in ("y", "h_n", "c_n") else "backward"
        assert_close(name, got[name], want[name], "float32", kind)


def test_a_product_runs_ahead_of_the_steps_before_it() -> None:
    """Where lanes run as late as their events allow, each product but the first two waits for one launch of steps."""
    from tests.tools.fakecupy._streams import Streams

    log: list[str] = []
    submit = Streams.submit

    def noting(self: Any, node: Any, *args: Any) -> None:
        run = node.run
        node.run = lambda: (log.append(node.name), run())
        submit(self, node, *args)

    with cuda(lazy_streams="late") as cp, planned(1, 2), mock.patch.object(Streams, "submit", noting):
        y, _ = layer_of("GRU", "cuda:0", "cupy:grid", layers=1)(cp.zeros((T, B, I), "float32"))
        y.get()
    order = ["product" if name == "gemm" else "steps" for name in log if name in ("gemm", "forward_chunk")]
    assert " ".join(order) == "product " + 5 * "product steps " + "steps"


def test_inside_a_capture_layers_follow_each_other() -> None:
    """A stream that the call forks off would end with it, and the capture goes on. One launch of steps a layer."""
    with cuda() as cp, planned(2, 2):
        from rnnkit.backends.cupy import arena

        there = layer_of("GRU", "cuda:0", "cupy:grid", layers=2)
        x = cp.asarray(np.random.default_rng(0).standard_normal((T, B, I)).astype("float32"))
        stream = cp.cuda.Stream(non_blocking=True)
        stream.wait_event(cp.cuda.Stream.null.record())
        with stream:
            there(x)
            h0 = cp.zeros((2, B, H), "float32")
            with mock.patch.object(arena, "refuse_capture", return_value=None), cp.fake.counting() as counts:
                stream.begin_capture()
                there(x, h0)
                stream.end_capture()
    assert counts.captured["forward_chunk"] == 2
    assert not counts.launches


def test_layers_at_once_fit_the_card_together() -> None:
    """The stand-in refuses cooperative launches that may run at once and that the card does not hold together."""
    x = np.random.default_rng(0).standard_normal((17, 11, I)).astype("float32")
    wanted, _ = layer_of("LSTM", "cpu", "numpy")(x)
    for multiprocessors, at_once in ((12, 3), (4, 2), (2, 1)):
        with cuda(**simulated(H200._replace(multiprocessors=multiprocessors))) as cp:
            from rnnkit.backends.cupy import overlap

            with mock.patch.object(overlap, "CHUNK_SECONDS", 0.0):
                there = layer_of("LSTM", "cuda:0", "cupy:grid")
                y, _ = there(cp.asarray(x))
                said = rnnkit.explain(there, cp.asarray(x)).kernel
            assert_close("y", y, wanted, "float32")
            lanes = {one.stream for one in cp.fake.launches if one.name == "forward_chunk"} - {0}
            assert len(lanes) == (at_once if at_once > 1 else 0)
            assert (f"{at_once} layers at once" in said) == (at_once > 1)


@pytest.mark.parametrize("multiprocessors", [132, 6])
def test_directions_at_once_fit_the_card_together(multiprocessors: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 11, I)).astype("float32")
    dy = rng.standard_normal((3, 11, 2 * 37)).astype("float32")
    wide = {"bidirectional": True, "rng": 1}
    wanted = results(rnnkit.LSTM(I, 37, backend="numpy", **wide), x, None, dy)
    with cuda(**simulated(H200._replace(multiprocessors=multiprocessors))) as cp:
        there = rnnkit.LSTM(I, 37, device="cuda:0", backend="cupy:grid", **wide)
        assert_all(results(there, cp.asarray(x), None, cp.asarray(dy)), wanted)
        for name in ("forward_chunk", "backward_chunk"):
            launched = [one for one in cp.fake.launches if one.name == name]
            assert len({one.stream for one in launched}) == (2 if multiprocessors == 132 else 1)


def test_the_plan() -> None:
    """By predicted time, from the facts of cards that are not here."""

    def plan(card: Any, dtype: str, sizes: tuple[int, ...], layers: int = 1, pinned: str | None = None) -> Any:
        T, B, I, H = sizes
        work = Work(CELLS["lstm"], DTYPES[dtype], Sizes(T, B, I, H, H, T * B), keep=False)
        chosen, _ = schedules.choose(work, card, PREDICTED, pinned)
        return overlap.plan(chosen, work, card, PREDICTED, layers)

    stack = (512, 10, 256, 256)
    assert plan(H200, "float32", stack, 6) == (3, 32)
    assert plan(H200, "float32", stack, 6, "grid") == (6, 16)
    assert plan(A100, "float32", stack, 6).layers == 2, "its shared memory holds no larger members"
    assert plan(T4, "float32", stack, 6).layers == 1
    assert plan(H200, "bfloat16", (32, 8, 64, 64), 1) == overlap.ALONE, "one launch"
    assert plan(A100, "bfloat16", (256, 32, 512, 512)).steps == 64
    assert plan(H200, "float32", (256, 32, 512, 512)) == overlap.ALONE, "the steps leave 4 multiprocessors"
    for card in CARDS.values():
        for layers in (1, 2, 6, 20):
            at_once = plan(card, "float16", stack, layers).layers
            assert 1 <= at_once <= min(layers, overlap.MOST_LAYERS)


def test_streams_are_made_once_and_by_need() -> None:
    x = np.zeros((8, B, I), "float32")
    with cuda() as cp:
        from rnnkit.backends.cupy import arena

        there = layer_of("GRU", "cuda:0", "cupy:grid")
        there(cp.asarray(x))
        mine = arena.current()
        assert mine._lane is None
        assert not mine._parts
        with planned(3, 2):
            there(cp.asarray(x))
            lanes = [part.lane for part in mine.parts(3)]
            there(cp.asarray(x))
            assert [part.lane for part in mine.parts(3)] == lanes
            assert len(mine._parts) == 2
