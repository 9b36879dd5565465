"""On a GPU: both CUDA backends against the float64 oracle, and their promises about streams, memory and graphs.

Skipped without a GPU, with the reason; `make gpu` runs it on one. Only comparisons with PyTorch need PyTorch, and skip
without it. Inline PTX is only in the probes of kernels/cuda, which have their own test (`test_probes_order_memory`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest

import rnnkit
from bench.gpu import sync_costs
from bench.grid import BENCHED, FORWARD_BACKWARD, Point
from bench.peers.rnnkit import Rnnkit
from bench.problem import FORWARD_NAMES, Oracle, check, make_problem
from rnnkit import parity, testing
from rnnkit.backends import BACKENDS, backend_row, pinned_names
from rnnkit.backends.cupy.step_products import cell_problem
from rnnkit.core import cells
from rnnkit.core.devices import cuda_problem, to_device, to_numpy
from rnnkit.errors import DeviceMemoryError
from rnnkit.functional import direction
from rnnkit.kernels.cells import HEADERS
from rnnkit.testing import (
    LARGE_CASES,
    Case,
    assert_close,
    kind_of,
    make_inputs,
    precision_of,
    run,
    widened,
)

NUMPY = {"backend": "numpy"}
# What `cupy` serves, of the tables of these names.
CELLS = {name: cell for name, cell in cells.CELLS.items() if name in HEADERS}
CASES = tuple(case for case in testing.CASES if case.cell in CELLS)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(cuda_problem() is not None, reason=str(cuda_problem()))]

SERVED = [
    (name, dtype)
    for name in pinned_names()
    if BACKENDS[name.partition(":")[0]].arrays == "cupy"
    for dtype in BACKENDS[name.partition(":")[0]].dtypes
]
CUPY = [(name, dtype) for name, dtype in SERVED if name.startswith("cupy")]


def served_here(backend: str, dtype: str, cell: str) -> None:
    """Skips the test if the GPU or the machine does not support it, or the backend or its schedule not the cell."""
    import cupy

    row, schedule = backend_row(backend)
    problem = row.problem()
    if problem:
        pytest.skip(f"not available: {problem}")
    if cell not in row.cells():
        pytest.skip(f"{backend} does not serve the cell {cell}")
    if schedule not in (None, "stepwise") and (lacking := cell_problem(CELLS[cell])):
        pytest.skip(lacking)
    if dtype == "bfloat16" and int(cupy.cuda.Device().compute_capability) < 80:
        pytest.skip("bfloat16 needs compute capability 8.0")


@lru_cache(maxsize=4)
def wanted(case: Case, stored: str) -> dict[str, np.ndarray]:
    """The oracle's results for the inputs rounded to a storage dtype."""
    return run(case, widened(make_inputs(case, stored)), "numpy")


def assert_parity(backend: str, case: Case, dtype: str) -> None:
    """Every output and gradient within DTYPES, and the same bits from call to call."""
    served_here(backend, dtype, case.cell)
    outcome = parity.run(parity.Check(backend, dtype, case, "cuda:0"))
    assert outcome.status == "ok", outcome.why


def layer_on_card(dtype: str = "float32", **options: Any) -> tuple[Any, Any]:
    """A small LSTM, and an input of (T, B, I) = (12, 5, 9)."""
    layer = rnnkit.LSTM(9, 20, dtype=dtype, device="cuda", rng=1, **options)
    x = np.random.default_rng(2).standard_normal((12, 5, 9)).astype(layer.dtype)
    return layer, to_device(x, "cuda:0")


# Values. `make gpu` runs the first three through `bench.gpu.parity`, and so omits tests with "parity" in their names.


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("backend", "dtype"), SERVED)
def test_parity(backend: str, dtype: str, case: Case) -> None:
    assert_parity(backend, case, dtype)


@pytest.mark.parametrize("case", LARGE_CASES, ids=str)
@pytest.mark.parametrize(("backend", "dtype"), CUPY)
def test_parity_of_large_cases(backend: str, dtype: str, case: Case) -> None:
    assert_parity(backend, case, dtype)


@pytest.mark.parametrize("case", [case for case in LARGE_CASES if case.H <= 250], ids=str)
def test_parity_of_large_cases_by_numba(case: Case) -> None:
    assert_parity("numba_cuda", case, "float32")


@pytest.mark.parametrize("dtype", [dtype for name, dtype in CUPY if name == CUPY[0][0]])
def test_large_relu(dtype: str) -> None:
    """Forward as usual. Backward against the oracle's equations with the slopes of relu from the GPU's y."""
    served_here("cupy", dtype, "rnn_relu")
    case = Case("rnn_relu", 100, 16, 40, 200)
    inputs = make_inputs(case, dtype, device="cuda:0")
    half = inputs.weights.w_hh.dtype.type(0.5)
    inputs.weights = inputs.weights._replace(w_hh=(inputs.weights.w_hh * half).astype(inputs.weights.w_hh.dtype))
    got, given = run(case, inputs, "cupy", precision_of(dtype)), widened(inputs)
    want = run(case, given, "numpy")
    for name in ("y", "h_n"):
        assert_close(name, got[name], want[name], dtype)
    y, carry = got["y"].astype(np.float64), given.dstate_n[0]
    before = np.concatenate([given.state0[0][None], y[:-1]])
    da = np.empty_like(y)
    for t in range(case.T - 1, -1, -1):
        da[t] = (given.dy[t] + carry) * (y[t] > 0)
        carry = da[t] @ given.weights.w_hh
    flat = da.reshape(-1, case.H)
    answers = {"dx": da @ given.weights.w_ih, "dh0": carry, "db_ih": flat.sum(0), "db_hh": flat.sum(0)}
    answers |= {"dw_ih": flat.T @ given.x.reshape(-1, case.I), "dw_hh": flat.T @ before.reshape(-1, case.H)}
    for name, value in answers.items():
        assert_close(name, got[name], value, dtype, "backward")


@pytest.mark.parametrize("backend", ["cupy", "numba_cuda"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell in BENCHED])
def test_two_layers_in_both_directions(cell: str, dtype: str, backend: str) -> None:
    served_here(backend, dtype, cell)
    projected = {"P": 40} if CELLS[cell].projects else {}
    point = Point(cell, 20, 9, 30, 70, dtype, FORWARD_BACKWARD, layers=2, bidirectional=True, ragged=True, **projected)
    prepared = Rnnkit(backend).prepare(make_problem(point), threads=1)
    errors = check(point, Oracle(point), prepared.results(prepared.call()))
    if cell == "rnn_relu" and dtype == "float16":  # test_large_relu compares it with the slopes of the GPU's y
        errors = {name: error for name, error in errors.items() if name in FORWARD_NAMES}
    assert max(errors.values()) <= 1, errors


def test_two_layers_of_the_slstm_in_both_directions() -> None:
    served_here("cupy", "float32", "slstm")
    here, there = (rnnkit.SLSTM(30, 70, 2, bidirectional=True, rng=1, **on) for on in (NUMPY, {"device": "cuda"}))
    rng = np.random.default_rng(2)
    x, dy = (rng.standard_normal((20, 9, width)).astype(np.float32) for width in (30, 140))
    lengths = [20, 0, *rng.integers(1, 21, 7)]
    found = []
    for layer, put in ((here, np.asarray), (there, lambda a: to_device(a, "cuda:0"))):
        y, state_n = layer(put(x), lengths=lengths)
        dx, dstate0 = layer.backward(put(dy), state_n)
        found.append([to_numpy(a) for a in (y, *state_n, dx, *dstate0, *layer.grads.values())])
    for number, (want, got) in enumerate(zip(*found, strict=True)):
        assert_close(f"array {number}", got, want, "float32", "backward")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_results_equal_torch_on_the_gpu(cell: str, dtype: str) -> None:
    pytest.importorskip("torch", reason="not available: torch is not installed")
    from bench.gpu import inputs, rnnkit_and_torch

    served_here("cupy", dtype, cell)
    n = inputs.for_check(inputs.point_inputs(Point(cell, 24, 11, 50, 80, dtype, layers=2, bidirectional=True)))
    ours = rnnkit_and_torch.Ours(n)
    errors = inputs.errors(n, ours.results(ours.forward_backward()), rnnkit_and_torch.truth(n))
    assert max(errors.values()) <= 1, errors


def test_probes_order_memory() -> None:
    """grid.sync, a counter, a flag and cluster.sync order earlier writes."""
    import cupy

    from bench.gpu import every_kernel

    every_kernel.probe()
    assert sync_costs.grid_sync(8)["blocks"] == 8
    assert cupy.cuda.Device().attributes["MultiProcessorCount"] > 0


# Memory


def poison_pool() -> None:
    """Fills the memory pool with free blocks that contain NaN in every dtype."""
    import cupy

    held = [cupy.full(size, 0xFF, np.uint8) for size in [512 * 2**k for k in range(15)] * 3]
    del held


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", ["cupy", "numba_cuda"])
def test_no_uninitialised_memory_is_read(backend: str, cell: str, dtype: str) -> None:
    served_here(backend, dtype, cell)
    projection = 18 if CELLS[cell].projects else 0
    for case in (Case(cell, 9, 6, 7, 35, ragged=True, reverse=True), Case(cell, 5, 3, 4, 33, P=projection)):
        inputs = make_inputs(case, dtype, device="cuda:0")
        want = wanted(case, dtype)
        poison_pool()
        got = run(case, inputs, backend)
        for name, array in want.items():
            assert_close(name, got[name], array, dtype, kind_of(name))


def test_only_outputs_are_allocated() -> None:
    import cupy

    case, pool = Case("lstm", 16, 8, 32, 64), cupy.get_default_memory_pool()
    inputs = make_inputs(case, "float32", device="cuda:0")

    def forward() -> Any:
        return direction.forward("lstm", inputs.x, inputs.state0, inputs.weights, backend="cupy", keep=False)

    for _ in range(3):
        forward()
    used, total = pool.used_bytes(), pool.total_bytes()
    y, state_n, _ = forward()
    outputs = sum(-(-a.nbytes // 512) * 512 for a in (y, *state_n))
    assert pool.used_bytes() - used == outputs
    assert pool.total_bytes() == total
    del y, state_n
    for _ in range(5):
        _, _, saved = direction.forward("lstm", inputs.x, inputs.state0, inputs.weights, backend="cupy")
        direction.backward(saved, inputs.dy, inputs.dstate_n, inputs.weights)
        del saved
        steady = pool.total_bytes()
    direction.forward("lstm", inputs.x, inputs.state0, inputs.weights, backend="cupy")
    assert pool.total_bytes() == steady


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("backend", [name for name in pinned_names() if name.startswith("cupy:")])
def test_gates_computed_again_give_the_gradients_of_saved_ones(backend: str, dtype: str) -> None:
    served_here(backend, dtype, "lstm")
    layer, x = layer_on_card(dtype, backend=backend, num_layers=2)
    found = []
    for again in (True, False):
        layer.zero_grad()
        y, _ = layer(x, lengths=[12, 0, 7, 3, 12], recompute_gates=again)
        dx, _ = layer.backward(y)
        found.append({"dx": to_numpy(dx)} | {name: to_numpy(grad).copy() for name, grad in layer.grads.items()})
    for name, want in found[1].items():
        assert_close(name, found[0][name], want.astype("float64"), dtype, "backward")


def test_out_of_memory_raises_a_named_error() -> None:
    import cupy

    layer, x = layer_on_card()
    layer(x)
    before = {name: to_numpy(p).copy() for name, p in layer.params.items()}
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    wide = cupy.zeros((4000, 500, 9), np.float32)
    limit = pool.get_limit()
    pool.set_limit(size=pool.total_bytes() + (1 << 20))
    try:
        with pytest.raises(DeviceMemoryError, match="does not fit"):
            layer(wide)
    finally:
        pool.set_limit(size=limit)
    for name, p in layer.params.items():
        np.testing.assert_array_equal(to_numpy(p), before[name])
    layer(x)
