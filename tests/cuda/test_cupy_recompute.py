"""Gates that backward computes again, in the emulator, against the float64 oracle and beside gates that were saved.

Memory of the stand-in for CuPy is NaN until it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.functional import direction
from rnnkit.testing import Case, make_inputs, parity, run
from tests.cuda.cuda_helpers import chunked, cuda, outputs
from tests.cuda.test_cupy_overlap import LENGTHS, assert_all, layer_of, oracle, planned, results
from tests.helpers import parts, randn, slow_except
from tests.normalised import NORM_CASES
from tests.options import OPTION_CASES
from tests.tools import emulator

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

SCHEDULES = ("stepwise", "one_block", "grid", "cluster")
KINDS = {
    "rnn_tanh": Case("rnn_tanh", T=5, B=4, I=3, H=20, ragged=True),
    "rnn_relu": Case("rnn_relu", T=5, B=3, I=4, H=20, bias=False),
    "gru": Case("gru", T=5, B=4, I=3, H=20, ragged=True),
    "gru_reset_before": Case("gru_reset_before", T=5, B=4, I=3, H=20, ragged=True),
    "lstm": Case("lstm", T=5, B=4, I=3, H=20, ragged=True),
    "lstm_projected": Case("lstm", T=5, B=4, I=3, H=20, P=12, ragged=True),
}
DTYPES = ("float32", "float16", "bfloat16", "tf32", "float64")
MORE_CELLS = [*OPTION_CASES, *NORM_CASES, Case("slstm", T=4, B=5, I=3, H=7, ragged=True), Case("slstm", H=8)]


@pytest.fixture(scope="module")
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


@contextmanager
def recomputing() -> Iterator[None]:
    """Calls of `functional.direction` run on the backend that computes the gates again."""
    real = direction.select

    def select(*args: Any, **kwargs: Any) -> Any:
        choice = real(*args, **kwargs)
        return choice._replace(backend=choice.backend.recomputing()) if choice.row.name == "cupy" else choice

    with mock.patch.object(direction, "select", select):
        yield


def few_rows_at_once() -> Any:
    """Three row-steps of an LSTM of 20 units in float32 at once, so a chunk takes several rounds."""
    from rnnkit.backends.cupy import recompute_buffers

    return mock.patch.object(recompute_buffers, "CHUNK_BYTES", 2000)


def assert_parity(backend: str, case: Case, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    with chunked(2), few_rows_at_once(), recomputing():
        worst = parity(backend, case, dtype, device="cuda:0")
    over = {name: ratio for name, ratio in worst.items() if not ratio <= 1}
    assert not over, (case, over)


def _each() -> list[Any]:
    """Every schedule and kind, and dtypes; a few of them in `make test`."""
    every = [(s, k, d) for s in SCHEDULES for k in KINDS for d in DTYPES[:2]]
    every += [(s, k, d) for s in SCHEDULES for k in ("lstm", "gru_reset_before") for d in DTYPES[2:]]
    every = [row for row in every if (row[0], row[2]) != ("grid", "float64")]
    quick = [("stepwise", kind, "float32") for kind in KINDS]
    quick += [("one_block", "lstm", "float16"), ("grid", "gru", "float32"), ("cluster", "lstm_projected", "float16")]
    return slow_except(every, *quick, unpack=True)


@pytest.mark.parametrize(("schedule", "kind", "dtype"), _each())
def test_every_gradient_equals_the_oracles(cp: Any, schedule: str, kind: str, dtype: str) -> None:
    """In three chunks, the last one shorter; ragged rows, and the other direction of full ones."""
    case = KINDS[kind]
    assert_parity(f"cupy:{schedule}", case, dtype)
    assert_parity(f"cupy:{schedule}", replace(case, ragged=not case.ragged, reverse=True), dtype)


@pytest.mark.parametrize("case", slow_except(MORE_CELLS, MORE_CELLS[2], NORM_CASES[2], MORE_CELLS[-2]), ids=str)
def test_cells_of_stepwise_alone(cp: Any, case: Case) -> None:
    """Options, layer normalisation, several states beside h."""
    for dtype in ("float32",) if case in OPTION_CASES else ("float32", "float16"):
        assert_parity("cupy:stepwise", replace(case, T=5), dtype)


@pytest.mark.parametrize(("schedule", "kind"), [("stepwise", "gru"), ("one_block", "lstm_projected")])
def test_the_results_of_saved_gates(cp: Any, schedule: str, kind: str) -> None:
    """The forward pass has the same bits. The gates differ by the order of sums in a product at most."""
    inputs = make_inputs(KINDS[kind], "float32", device="cuda:0")
    with chunked(2):
        want = run(KINDS[kind], inputs, f"cupy:{schedule}")
    with chunked(2), recomputing():
        got = run(KINDS[kind], inputs, f"cupy:{schedule}")
    for name in want:
        if name in ("y", "h_n", "c_n"):
            np.testing.assert_array_equal(got[name], want[name])
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_wide_kernels(cp: Any) -> None:
    from rnnkit.backends.cupy import stepwise_launch

    with mock.patch.object(stepwise_launch, "WIDE_ELEMENTS", 0), cp.fake.counting() as counts:
        for kind in ("gru", "lstm_projected", "gru_reset_before"):
            assert_parity("cupy:stepwise", KINDS[kind], "float16")
    assert counts.launches["forward_step_wide"]


def test_a_backward_pass_can_be_repeated(cp: Any) -> None:
    """What was saved is as it was."""
    for case in (KINDS["lstm"], NORM_CASES[2], MORE_CELLS[-2]):
        inputs = make_inputs(case, "float32", device="cuda:0")
        with recomputing(), chunked(2), few_rows_at_once():
            given = (case.cell, inputs.x, inputs.state0, inputs.weights)
            _, _, saved = direction.forward(
                *given, lengths=inputs.lengths, backend="cupy:stepwise", constants=case.constants
            )
            assert saved is not None
            first, second = (direction.backward(saved, inputs.dy, inputs.dstate_n, inputs.weights) for _ in range(2))
        for a, b in zip((first[0], *first[1], *first[2]), (second[0], *second[1], *second[2]), strict=True):
            if a is not None:
                np.testing.assert_array_equal(a.get(), b.get())


def test_forward_saves_the_states_alone(cp: Any) -> None:
    """In bytes of CuPy's pool, which `explain` says. y is a result."""
    pool = cp.get_default_memory_pool()
    T, B, H = 40, 8, 32
    x = cp.asarray(randn(np.random.default_rng(0), T, B, 4, dtype="float16"))
    for name, states, gates in (("LSTM", 2 + 4, 8), ("GRU", 2, 8), ("RNN", 2, 2)):
        layer = getattr(rnnkit, name)(4, H, device="cuda", dtype="float16", rng=0)
        held = {}
        for how in (True, False):
            kept = layer(x, recompute_gates=how)
            del kept
            with rnnkit.no_grad():
                layer(x)  # frees what was saved
            before = pool.used_bytes()
            y, state_n = layer(x, recompute_gates=how)
            returned = sum(512 * -(-a.nbytes // 512) for a in (y, *parts(state_n)))
            held[how] = pool.used_bytes() - before - returned
            said = rnnkit.explain(layer, x, recompute_gates=how).kept_bytes
            assert held[how] == said == (states + (0 if how else gates)) * T * B * H, name
            del y, state_n


@pytest.mark.parametrize(
    ("kind", "products", "steps"),
    [("lstm", 2, 1), ("gru", 2, 1), ("lstm_projected", 2, 1), ("gru_reset_before", 3, 2)],
)
def test_launches_of_a_chunk(cp: Any, kind: str, products: int, steps: int) -> None:
    """A chunk takes two products, three where a step has a second product that the gates depend on."""
    case = KINDS[kind]
    inputs = make_inputs(case, "float32", device="cuda:0")
    counted = {}
    for again in (False, True):
        with chunked(2), recomputing() if again else chunked(2):
            run(case, inputs, "cupy:one_block")
            with cp.fake.counting() as counts:
                outputs(case, inputs, "cupy:one_block")
        counted[again] = counts
    chunks = 3
    more = counted[True].launches - counted[False].launches
    assert counted[True].gemms - counted[False].gemms == products * chunks
    assert more["forward_step"] + more["forward_output"] == steps * chunks
    assert more["set_call"] == chunks
    assert more["forward_begin"] == 1, "the biases"
    assert not counted[True].synchronisations
    assert not counted[False].launches["forward_step"]


def test_saved_gates_launch_what_they_did(cp: Any) -> None:
    """Free where it is off: the same launches and allocations, and nothing asks for the memory that is left."""
    from rnnkit.backends.cupy import recompute

    layer = rnnkit.LSTM(4, 8, device="cuda", rng=0)
    x = cp.ones((6, 3, 4), "float32")
    layer.backward(layer(x)[0])
    asked = mock.patch.object(cp.cuda.runtime, "memGetInfo", side_effect=AssertionError("asked"))
    never = mock.patch.object(recompute.Recomputation, "__init__", side_effect=AssertionError("computed again"))
    with asked, never:
        y, _ = layer(x)
        layer.backward(y)


# Stacks, directions, chunks


@pytest.mark.parametrize(("name", "schedule", "kwargs"), slow_except(
    [
        ("LSTM", "grid", {"dropout": 0.5}),
        ("GRU", "one_block", {}),
        ("LSTM", "cluster", {}),
        ("GRU", "grid", {"reset_after": False}),
    ],
    ("GRU", "one_block", {}),
    unpack=True,
))  # fmt: skip
def test_a_stack_in_any_order_of_the_streams(name: str, schedule: str, kwargs: dict[str, Any]) -> None:
    """The gates of the next launch of steps are computed beside those of this one; in 6 launches, in 3, and in one."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((11, 5, 4)).astype("float32")
    dy = rng.standard_normal((11, 5, 24)).astype("float32")
    plans = {None: (("late", 3, 2), ("early", 1, 4)), "ragged": (("early", 3, 4), ("late", 1, 11))}
    for rows, orders in plans.items():
        lengths = LENGTHS if rows else None
        wanted = oracle(name, x, lengths, dy, **kwargs)
        for order, at_once, steps in orders:
            with cuda(lazy_streams=order) as cp, planned(at_once, steps):
                there = layer_of(name, "cuda:0", f"cupy:{schedule}", **kwargs)
                there.rng = np.random.default_rng(5)
                got = results(there, cp.asarray(x), lengths, cp.asarray(dy), recompute_gates=True)
                assert_all(got, wanted)
                assert any(one.name == "forward_step" for one in cp.fake.launches)


def test_directions_resets_and_chunks(cp: Any) -> None:
    """Both directions of two layers, with lengths, with resets, with a bound and truncated."""
    here = rnnkit.LSTM(3, 6, 2, bidirectional=True, backend="numpy", dtype="float64", rng=1)
    there = rnnkit.LSTM(3, 6, 2, bidirectional=True, device="cuda", rng=1)
    for name, parameter in here.params.items():
        parameter[...] = there.params[name].get()
    rng = np.random.default_rng(2)
    x, dy = randn(rng, 12, 4, 3, dtype="float32"), randn(rng, 12, 4, 12, dtype="float32")
    resets = rng.random((12, 4)) < 0.2
    for lengths, options in (
        ([12, 0, 7, 3], {}),
        (None, {"resets": resets}),
        (None, {"max_saved_bytes": 12_000}),
        ([12, 0, 7, 3], {"truncate": 5}),
        (None, {"truncate": 5, "resets": resets}),
    ):
        alike = {name: value for name, value in options.items() if name != "max_saved_bytes"}
        want = results(here, x.astype("float64"), lengths, dy.astype("float64"), **alike)
        got = results(there, cp.asarray(x), lengths, cp.asarray(dy), recompute_gates=True, **options)
        assert_all(got, want)


def test_masks_on_x_and_weights(cp: Any) -> None:
    """The products are of the masked x and W_hh."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((11, 5, 4)).astype("float32")
    dy = rng.standard_normal((11, 5, 24)).astype("float32")
    masks = {"input_dropout": 0.4, "weight_dropout": 0.3, "dropout": 0.5}
    there = layer_of("GRU", "cuda:0", "cupy:one_block", layers=2, **masks)
    there.rng = np.random.default_rng(5)
    got = results(there, cp.asarray(x), None, cp.asarray(dy), recompute_gates=True)
    assert_all(got, oracle("GRU", x, None, dy, layers=2, **masks))


def test_the_memory_that_is_left_decides(cp: Any) -> None:
    """All layers save their gates, or none does. `explain` and the call agree. Nothing is asked for a small call."""
    x = np.ones((1024, 4, 8), np.float32)
    needed = 2 * 1024 * 4 * 64 * (24 + 4 + 4)  # gates and states, y of each layer, dx of two
    small_card = 90 << 20
    for total, spare, again in (
        (1 << 30, None, False),
        (small_card, None, False),
        (small_card, 10**4, False),
        (small_card, -1, True),
    ):
        with cuda(attributes={"TotalMemory": total}) as small:
            layer = rnnkit.LSTM(8, 64, 2, device="cuda", rng=0)
            given = small.asarray(x)
            pool = small.get_default_memory_pool()
            if spare is not None:
                pool.set_limit(pool.used_bytes() + needed + spare)
            (said,) = rnnkit.explain(layer, given).notes
            with mock.patch.object(rnnkit.functional.stack, "forward", side_effect=Stop) as called, pytest.raises(Stop):
                layer(given)
            assert getattr(called.call_args.args[0].choice.backend, "recomputes", False) == again
            assert ("computed again in backward" in said) == again, said
            assert ("the device has" in said) == (total == small_card)
            with rnnkit.no_grad():
                assert not rnnkit.explain(layer, given).notes


class Stop(Exception):
    """Ends a call."""


def test_bad_arguments(cp: Any) -> None:
    x = cp.ones((5, 3, 4), "float32")
    layer = rnnkit.LSTM(4, 6, device="cuda", rng=0)
    with pytest.raises(TypeError, match="recompute_gates must be True or False, got 1"):
        layer(x, recompute_gates=1)
    noisy = rnnkit.LSTM(4, 6, device="cuda", rng=0, zoneout=0.2)
    with pytest.raises(ValueError, match=r"recompute_gates must be None or False here \(cell lstm\S*: zoneout"):
        noisy(x, recompute_gates=True)
    assert "gates: saved for backward; cell lstm" in rnnkit.explain(noisy, x).notes[0]
    for backend in ("numba", "numpy"):
        here = rnnkit.LSTM(4, 6, backend=backend)
        with pytest.raises(ValueError, match=f"backend '{backend}' always saves the gates.*got True"):
            here(np.ones((5, 3, 4), np.float32), recompute_gates=True)
    with pytest.raises(TypeError, match="recompute_gates must be None for a Cell"):
        rnnkit.explain(rnnkit.LSTMCell(4, 6), np.ones((3, 4), np.float32), recompute_gates=True)


def test_the_schedule_of_a_stack(cp: Any) -> None:
    """A stack that runs by another schedule than one layer would computes its gates again too."""
    from rnnkit.backends.cupy import choice, recompute, schedules

    rng = np.random.default_rng(0)
    x = rng.standard_normal((11, 5, 4)).astype("float32")
    dy = rng.standard_normal((11, 5, 24)).astype("float32")
    wanted = oracle("GRU", x, None, dy, layers=2)
    (grid,) = (row for row in schedules.SCHEDULES if row.name == "grid")
    real = recompute.Recomputation.run
    again = mock.patch.object(recompute.Recomputation, "run", autospec=True, side_effect=real)
    with mock.patch.object(choice, "of_stack", return_value=(grid, "for two layers")), again as ran:
        there = rnnkit.GRU(4, 24, 2, device="cuda:0", rng=1)
        assert_all(results(there, cp.asarray(x), None, cp.asarray(dy), recompute_gates=True), wanted)
        said = rnnkit.explain(there, cp.asarray(x), recompute_gates=True)
    assert ran.call_count >= 2
    assert "schedule grid: for two layers; " in said.kernel
    assert "computes the gates of a launch's steps again" in said.kernel
