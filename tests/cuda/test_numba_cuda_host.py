"""The host side of the Numba CUDA backend, without a GPU: its launches, streams and memory."""

from __future__ import annotations

import inspect
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.backends import Sizes
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES as ROWS
from rnnkit.functional import direction
from rnnkit.kernels.numba_cuda.launch_shape import FEWEST_BLOCKS
from rnnkit.testing import Case, make_inputs, run
from tests.cuda.test_numba_cuda import DEVICE, DTYPES, device, features, on_device
from tests.helpers import slow_except
from tests.tools import greenlets

pytestmark = pytest.mark.skipif(greenlets.available() is not None, reason=str(greenlets.available()))


@pytest.fixture(scope="module")
def compiled() -> dict[Any, tuple[str, Any]]:
    """Dispatcher -> (name, signature) of every kernel that tests/cuda/test_numba_ptx.py compiles."""
    from rnnkit.kernels.numba_cuda.scan import compilable

    return {kernel: (name, signature) for name, kernel, signature in compilable()}


@pytest.mark.parametrize("dtype", slow_except(DTYPES, "float32"))
def test_every_launched_kernel_and_signature_is_compiled_for_every_architecture(compiled: Any, dtype: str) -> None:
    seen = set()
    with device() as (_, launches):
        for case in [*features()[::3], *(Case(cell, T=1, B=1, I=1, H=1) for cell in CELLS)]:
            run(case, on_device(make_inputs(case, dtype)), "numba_cuda")
    for launch in launches:
        name, signature = compiled[launch.kernel]
        assert launch.types == signature, name
        seen.add(name)
    assert seen == {name for name, _ in compiled.values() if name.endswith(dtype)}


def test_the_compiled_list_has_every_kernel_and_dtype(compiled: Any) -> None:
    names = {name for name, _ in compiled.values()}
    assert names == {f"{way}-{cell}-{dtype}" for way in ("forward", "backward") for cell in CELLS for dtype in DTYPES}


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_pass_is_one_launch_without_synchronisation(cell: str, ragged: bool) -> None:
    case = Case(cell, T=6, B=4, ragged=ragged, P=3 if CELLS[cell].projects else 0)
    with device() as (cp, launches):
        held = on_device(make_inputs(case, "float16"))

        def both() -> Any:
            *_, saved = direction.forward(
                cell, held.x, held.state0, held.weights, lengths=held.lengths, backend="numba_cuda"
            )  # fmt: skip
            return direction.backward(saved, held.dy, held.dstate_n, held.weights)

        both()
        del launches[:]
        with cp.fake.counting() as counts:
            both()
    assert [launch.blocks for launch in launches] == [128, 128]
    assert not counts.synchronisations
    assert counts.memcpys["device to host"] == 0
    assert counts.memcpys["host to device"] == (2 if ragged else 0)  # the lengths, and the live steps
    assert counts.device_mallocs == 0, "all temporaries are from the memory pool"
    # x W_ih^T, dx, dW_ih, dW_hr, dW_hh; with reset before dW_hh is two products
    assert counts.gemms == 4 + (cell == "gru_reset_before") + CELLS[cell].projects
    assert counts.operations["sum"] == 2  # db_ih and db_hh


def test_launches_go_to_the_current_stream_of_the_arrays_device() -> None:
    inputs = make_inputs(Case("lstm"), "float32")
    with device(devices=2) as (cp, launches):
        with cp.cuda.Device(1):
            x, state0, weights = (put(cp, a) for a in (inputs.x, inputs.state0, inputs.weights))
            own = cp.cuda.Stream(non_blocking=True)
            with own:
                y, _, saved = direction.forward("lstm", x, state0, direction.Weights(*weights), backend="numba_cuda")
                direction.backward(saved, y, None, direction.Weights(*weights))
            direction.forward("lstm", x, state0, direction.Weights(*weights), backend="numba_cuda")
        assert y.device.id == 1
        assert [launch.stream for launch in launches] == [own.ptr, own.ptr, cp.cuda.Stream.null.ptr]
        assert own.ptr != cp.cuda.Stream.null.ptr
        # Device 0 is current.
        y, *_ = direction.forward("lstm", x, state0, direction.Weights(*weights), backend="numba_cuda")
        assert y.device.id == 1


def put(cp: Any, value: Any) -> Any:
    return (
        tuple(put(cp, v) for v in value) if isinstance(value, tuple) else None if value is None else cp.asarray(value)
    )


@pytest.mark.parametrize(
    ("B", "H", "blocks", "threads"), [(1, 1, 128, 32), (513, 1, 129, 32), (2, 33, 128, 64), (1, 300, 128, 256)]
)
def test_one_block_per_four_rows_of_whole_warps(B: int, H: int, blocks: int, threads: int) -> None:
    case = Case("rnn_relu", T=1, B=B, I=1, H=H)
    with device() as (_, launches):
        held = on_device(make_inputs(case, "float32"))
        direction.forward(case.cell, held.x, held.state0, held.weights, backend="numba_cuda", keep=False)
    assert [(launch.blocks, launch.threads) for launch in launches] == [(blocks, threads)]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", slow_except(DTYPES, "float32"))
@pytest.mark.parametrize("cell", slow_except(CELLS, "gru_reset_before"))
def test_the_bytes_of_explain_equal_the_allocated_bytes(cell: str, dtype: str, ragged: bool) -> None:
    P = 16 if CELLS[cell].projects else 0
    case = Case(cell, T=8, B=6, I=24, H=32, P=P, ragged=ragged)
    inputs = make_inputs(case, dtype)
    steps = case.T * case.B if inputs.lengths is None else int(inputs.lengths.sum())
    sizes = Sizes(case.T, case.B, case.I, case.H, P or case.H, steps)
    for keep in (True, False):
        with device() as (cp, _):
            from rnnkit.backends import numba_cuda

            held, used = on_device(inputs), cp.get_default_memory_pool().used_bytes
            direction.forward(
                cell, held.x, held.state0, held.weights, backend="numba_cuda", keep=False
            )  # the first call allocates what is cached
            before = used()
            with cp.fake.counting() as counts:
                y, state_n, saved = direction.forward(
                    cell, held.x, held.state0, held.weights, lengths=held.lengths, backend="numba_cuda", keep=keep
                )
            results = sum(a.nbytes for a in (y, *state_n))
            _, transient, kept, *_ = numba_cuda.describe(CELLS[cell], ROWS[dtype], sizes, keep)
            rounding = 4 * 512  # of the pool, for the few sizes that are no multiple of 512
            assert kept + results <= used() - before <= kept + results + rounding
            taken = counts.allocated_bytes - kept - results
            assert 0.85 * taken - 512 <= transient <= 1.1 * taken + 512
            del saved


def test_numba_accepts_the_calls_of_the_stand_in() -> None:
    """The functions of Numba that tests/tools/greenlets replaces, and no warning about a small grid."""
    from numba import cuda

    assert list(inspect.signature(cuda.external_stream).parameters) == ["ptr"]
    assert "sync" in inspect.signature(cuda.as_cuda_array).parameters
    for blocks, warned in ((FEWEST_BLOCKS, 0), (FEWEST_BLOCKS - 1, 1)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cuda.jit(lambda a: None)[blocks, 32, 0]
        assert len(caught) == warned


def test_explain_names_the_kernel() -> None:
    with device() as (cp, _):
        layer = rnnkit.LSTM(4, 70, device=DEVICE, backend="numba_cuda")
        text = str(rnnkit.explain(layer, cp.zeros((5, 3, 4), "float32")))
    assert "one launch per sequence, one block of 96 threads per 4 rows" in text


def test_the_cpu_path_does_not_import_cuda() -> None:
    code = (
        "import sys, numpy, rnnkit; y, _ = rnnkit.LSTM(3, 4)(numpy.ones((2, 2, 3), 'float32')); "
        "print([m for m in ('numba.cuda', 'cupy', 'rnnkit.kernels.numba_cuda.scan') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_float16_gates_are_not_rounded_before_both_sides_are_added() -> None:
    """x W_ih^T and b_hh cancel. In float16 each would be rounded to the spacing of numbers near 2048, which is 2."""
    weights = direction.Weights(*(np.array(w, np.float16) for w in ([[2047.0, 1.25]], [[0.0]], [0.0], [-2047.0])))
    x, h0 = np.ones((1, 1, 2), np.float16), np.zeros((1, 1), np.float16)
    with device() as (cp, _):
        x, h0, weights = cp.asarray(x), (cp.asarray(h0),), direction.Weights(*(cp.asarray(w) for w in weights[:4]))
        y, *_ = direction.forward("rnn_relu", x, h0, weights, backend="numba_cuda", keep=False)
        assert float(y.get()[0, 0, 0]) == 1.25
