"""What runs beside the steps of a resident backward pass: products of the gradients, and other layers.

Orders of the streams, launches, bits and the choice. Values in several orders are those of
`test_cupy_overlap.test_a_stack_in_any_order_of_the_streams`, which runs both passes.
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
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES
from tests.cuda.cuda_helpers import chunked, cuda
from tests.cuda.test_cupy_overlap import (
    A100,
    H200,
    LENGTHS,
    T4,
    B,
    H,
    I,
    T,
    assert_all,
    layer_of,
    oracle,
    planned,
    results,
)
from tests.helpers import assert_same
from tests.tools import emulator
from tests.tools.cards import CARDS, simulated

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

KERNELS = ("gemm", "backward_chunk")


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """x and the gradient of y."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((T, B, I)).astype("float32"), rng.standard_normal((T, B, H)).astype("float32")


@contextmanager
def logged() -> Iterator[list[tuple[str, int]]]:
    """What runs from now on, in its order: its name and its stream."""
    from tests.tools.fakecupy._streams import Streams

    log: list[tuple[str, int]] = []
    submit = Streams.submit

    def noting(self: Any, node: Any, ptr: int | None = None, owners: Any = ()) -> None:
        run = node.run
        stream = self.current().ptr if ptr is None else ptr
        node.run = lambda: (log.append((node.name, stream)), run())
        submit(self, node, ptr, owners)

    with mock.patch.object(Streams, "submit", noting):
        yield log


def order(log: list[tuple[str, int]]) -> str:
    """Products as "p", and steps as "A" for the stream that began first, "B" for the next one."""
    lanes = list(dict.fromkeys(stream for name, stream in log if name == "backward_chunk"))
    letters = {lane: "AB"[number] for number, lane in enumerate(lanes)}
    found = [letters[stream] if name == "backward_chunk" else "p" for name, stream in log if name in KERNELS]
    return "".join(found)


def backward_order(layers: int, steps: int) -> str:
    """The order of a backward pass whose streams run as early as their events allow."""
    x, dy = inputs()
    with cuda(lazy_streams="early") as cp, planned(layers, steps):
        layer = layer_of("LSTM", "cuda:0", "cupy:one_block", layers=layers)
        layer(cp.asarray(x))[0].get()
        with logged() as log:
            layer.backward(cp.asarray(dy))
            cp.cuda.Stream.null.synchronize()
    return order(log)


def test_steps_run_ahead_of_the_products_before_them() -> None:
    """The steps of a chunk wait for the products of two chunks before alone. Three products: dx, dW_ih and dW_hh."""
    assert backward_order(1, 2) == "AA" + 4 * "pppA" + "pppppp"


def test_a_layer_begins_when_the_one_above_has_given_dx() -> None:
    """Before the weights' gradients of that one, and beside its next steps."""
    found = backward_order(2, 4)
    assert found.startswith("AApBpp"), found
    assert found.count("A") == found.count("B") == 3
    assert found.count("p") == 2 * 3 * 3


@pytest.mark.parametrize(("name", "lengths"), [("GRU", LENGTHS), ("LSTM", None)])
def test_the_same_bits_as_chunks_one_after_the_other(name: str, lengths: Any) -> None:
    """Sums are added up in the order of the chunks, whatever runs beside them."""
    x, dy = inputs()
    found = []
    for streams, at_once in (("early", 2), ("late", 1), (3, 2), (None, None)):
        given = {} if streams is None else {"lazy_streams": streams}
        with cuda(**given) as cp, chunked(4) if at_once is None else planned(at_once, 4):
            layer = layer_of(name, "cuda:0", "cupy:one_block", layers=2)
            got = results(layer, cp.asarray(x), lengths, cp.asarray(dy))
            found.append({key: value.get() for key, value in got.items()})
    for other in found[1:]:
        assert_same(other, found[0])


def test_launches_are_those_of_the_chunks() -> None:
    """Per layer and chunk one launch of steps and three products. Nothing waits on the host, and nothing is copied."""
    x, dy = inputs()
    with cuda() as cp:
        counted = {}
        for at_once in (1, 2):
            with planned(at_once, 4):
                layer = layer_of("LSTM", "cuda:0", "cupy:grid", layers=2)
                layer(cp.asarray(x))
                given = cp.asarray(dy)
                with cp.fake.counting() as counts:
                    layer.backward(given)
            assert counts.launches["backward_chunk"] == 2 * 3
            assert counts.gemms == 2 * 3 * 3
            assert not counts.synchronisations
            assert not counts.memcpys["device to host"]
            counted[at_once] = counts.launches
        assert counted[1] == counted[2]


def test_inside_a_capture_nothing_runs_beside_the_steps() -> None:
    x, dy = inputs()
    with cuda() as cp, planned(2, 2):
        from rnnkit.backends.cupy import arena

        there = layer_of("GRU", "cuda:0", "cupy:grid", layers=2)
        given, back = cp.asarray(x), cp.asarray(dy)
        stream = cp.cuda.Stream(non_blocking=True)
        stream.wait_event(cp.cuda.Stream.null.record())
        with stream:
            there(given)
            there.backward(back)
            h0 = cp.zeros((2, B, H), "float32")
            assert "backward in launches of 2 steps: 2 layers at once" in rnnkit.explain(there, given).kernel
            with mock.patch.object(arena, "refuse_capture", return_value=None), cp.fake.counting() as counts:
                stream.begin_capture()
                there(given, h0)
                there.backward(back, h0)
                said = rnnkit.explain(there, given).kernel
                stream.end_capture()
    assert counts.captured["backward_chunk"] == 2
    assert not counts.launches
    assert "inside a capture nothing runs beside the steps" in said
    assert "at once" not in said.partition("inside a capture")[2]


def test_layers_at_once_fit_the_card_together() -> None:
    """Two layers with parts for one tile of rows each. The stand-in refuses launches that do not fit together."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 9, I)).astype("float32")
    dy = rng.standard_normal((9, 9, H)).astype("float32")
    wanted = oracle("LSTM", x, None, dy, layers=2)
    with cuda(**simulated(H200._replace(multiprocessors=6))) as cp, planned(2, 4):
        there = layer_of("LSTM", "cuda:0", "cupy:grid", layers=2)
        assert_all(results(there, cp.asarray(x), None, cp.asarray(dy)), wanted)
        launched = [one for one in cp.fake.launches if one.name == "backward_chunk"]
        assert len({one.stream for one in launched}) == 2
        assert len(launched) == 2 * 3 * 2, "a launch per tile of rows"


def test_a_failed_pass_leaves_no_work_behind() -> None:
    """Its memory is free for the current stream, which waits for what the lane has begun."""
    x, dy = inputs()
    with cuda(lazy_streams="late") as cp, planned(1, 2):
        from rnnkit.backends.cupy.one_block_backward import BackwardBlockLauncher as Launcher

        layer = layer_of("LSTM", "cuda:0", "cupy:one_block", layers=1)
        layer(cp.asarray(x))
        original = Launcher.backward_chunk

        def failing(self: Any, *given: Any) -> None:
            original(self, *given)
            raise RuntimeError("as a launch may")

        with mock.patch.object(Launcher, "backward_chunk", failing), pytest.raises(RuntimeError, match="as a launch"):
            layer.backward(cp.asarray(dy))
        with logged():
            cp.cuda.Stream.null.synchronize()
        from rnnkit.backends.cupy import arena

        lane = arena.current().lane.stream
        assert lane.done


def test_masks_on_x_keep_layers_apart() -> None:
    """They act between layers. And so says `explain`."""
    x, dy = inputs()
    wanted = oracle("GRU", x, None, dy, layers=2, input_dropout=0.4)
    with cuda() as cp, planned(2, 4):
        there = layer_of("GRU", "cuda:0", "cupy:one_block", layers=2, input_dropout=0.4)
        there.rng = np.random.default_rng(5)
        assert_all(results(there, cp.asarray(x), None, cp.asarray(dy)), wanted)
        assert "at once" not in rnnkit.explain(there, cp.asarray(x)).kernel


def test_the_plan() -> None:
    """By predicted time, from the facts of cards that are not here."""

    def plan(card: Any, dtype: str, sizes: tuple[int, ...], layers: int = 1, pinned: str | None = None) -> Any:
        T, B, I, H = sizes
        work = Work(CELLS["lstm"], DTYPES[dtype], Sizes(T, B, I, H, H, T * B), keep=True)
        chosen, _ = schedules.choose(work, card, PREDICTED, pinned)
        return overlap.plan(chosen, work, card, PREDICTED, layers, backward=True)

    stack = (512, 10, 256, 256)
    assert plan(H200, "float32", stack, 6) == (3, 64)
    assert plan(H200, "float32", stack, 6, "grid") == (6, 64)
    assert plan(H200, "float32", stack) == (1, 128)
    assert plan(A100, "float32", stack, 6) == (3, 32)
    assert plan(T4, "float32", stack, 6).layers == 1
    assert plan(H200, "bfloat16", (32, 8, 64, 64), 1) == overlap.ALONE, "one launch"
    assert plan(H200, "float32", stack, 6, "stepwise") == overlap.ALONE, "a launch per step"
    assert plan(A100, "bfloat16", (256, 32, 512, 512)) == (1, 64)
    assert plan(H200, "float32", (256, 32, 512, 512)) == overlap.ALONE, "products fill the card"
    for card in CARDS.values():
        for layers in (1, 2, 6, 20):
            at_once = plan(card, "float16", stack, layers).layers
            assert 1 <= at_once <= min(layers, overlap.MOST_LAYERS)


def test_the_plan_of_a_backward_pass_by_another_schedule() -> None:
    """`grid` leaves it to stepwise where it does not serve H: nothing runs beside those steps."""
    with cuda() as cp:
        layer = rnnkit.LSTM(4, 16, 2, device="cuda:0", backend="cupy:grid")
        explained = rnnkit.explain(layer, cp.zeros((64, 3, 4), "float32")).kernel
    assert "backward by stepwise" in explained
    assert "backward in launches" not in explained


def test_a_stack_has_the_schedule_that_runs_its_layers_in_the_least_time() -> None:
    """Which need not be that of one layer: `grid` has fewer blocks than clusters of 16, so more layers run at once."""
    with cuda(**simulated(H200)):
        from rnnkit.backends.cupy import choice

        work = Work(CELLS["lstm"], DTYPES["float32"], Sizes(512, 10, 256, 256, 256, 5120), keep=False)
        assert choice.chosen(work, 0, None)[0].name == "cluster"
        found = choice.of_stack(work, 0, 6)
        assert found is not None
        assert found[0].name == "grid"
        assert choice.of_stack(work, 0, 1) is None


def test_a_stack_runs_by_its_schedule_in_both_passes() -> None:
    x, dy = inputs()
    wanted = oracle("GRU", x, None, dy, layers=2)
    (grid,) = (row for row in schedules.SCHEDULES if row.name == "grid")
    with cuda() as cp:
        from rnnkit.backends.cupy import choice

        with mock.patch.object(choice, "of_stack", return_value=(grid, "for two layers")) as asked:
            there = rnnkit.GRU(I, H, 2, device="cuda:0", rng=1)
            assert_all(results(there, cp.asarray(x), None, cp.asarray(dy)), wanted)
            launched = [one for one in cp.fake.launches if one.name in ("forward_chunk", "backward_chunk")]
            assert len(launched) == 4
            assert all(one.cooperative for one in launched)
            assert "schedule grid: for two layers; " in rnnkit.explain(there, cp.asarray(x)).kernel
            assert asked.call_args.args[1:] == (0, 2)
