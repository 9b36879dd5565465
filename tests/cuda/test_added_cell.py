"""A cell that is added only by table rows runs on every backend, and a CUDA header that contradicts its row does not
compile.

The added cell is the minimal gated unit of Zhou et al. (2016): f = sigmoid(x_f + u_f), n = tanh(x_n + f u_n),
h = (1 - f) n + f h'. No file of rnnkit names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.backends import BACKENDS, select
from rnnkit.core.cells import CELLS, Cell, State, StepGradients, Weights, sigmoid
from rnnkit.errors import DeviceError
from rnnkit.functional import direction
from rnnkit.kernels.cells import HEADERS, POINTWISE, Header
from rnnkit.testing import Case, make_inputs, parity, run
from tests.cuda.cuda_helpers import assert_matches, cuda
from tests.cuda.test_numba_cuda import device
from tests.helpers import share_everything, slow_except
from tests.oracle.test_oracle import assert_finite_differences
from tests.tools import emulator, greenlets

needs_emulator = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))
needs_greenlets = pytest.mark.skipif(bool(greenlets.available()), reason=str(greenlets.available()))

NAME = "minimal_gated_unit"
CASES = (
    Case(NAME),
    Case(NAME, T=4, B=7, I=5, H=16, ragged=True),
    Case(NAME, T=3, B=13, I=9, H=33, reverse=True, bias=False),
)
PAIRS = [(case, dtype) for case in CASES for dtype in ("float32", "float16")]

HEADER = """
struct Cell {
  static const int kGates = 2;
  static const int kSaved = 3;
  static const bool kHasC = false;
  static const bool kReadsH = true;
  static const bool kSplits = true;
  static const bool kResetsBefore = false;

  static __device__ __forceinline__ void forward(const Compute* x, const Compute* u, Compute h_prev, Compute,
                                                 Compute* saved, Compute& h, Compute&) {
    const Compute f = sigmoid_of(x[0] + u[0]);
    const Compute n = tanh_of(x[1] + f * u[1]);
    h = n + f * (h_prev - n);
    saved[0] = f;
    saved[1] = n;
    saved[2] = u[1];
  }

  static __device__ __forceinline__ void backward(const Compute* saved, Compute h_prev, Compute, Compute dh, Compute,
                                                  Compute* dx, Compute* du, Compute& dh_direct, Compute&) {
    const Compute f = saved[0];
    const Compute n = saved[1];
    const Compute da_n = dh * (Compute(1) - f) * (Compute(1) - n * n);
    dx[0] = (dh * (h_prev - n) + da_n * saved[2]) * f * (Compute(1) - f);
    dx[1] = da_n;
    du[0] = dx[0];
    du[1] = da_n * f;
    dh_direct = dh * f;
  }
};
"""


def step_forward(x_side: Any, state: State, weights: Weights) -> tuple[State, dict[str, Any]]:
    (h_prev,) = state
    h_side = h_prev @ weights.w_hh.T
    h_side = h_side if weights.b_hh is None else h_side + weights.b_hh
    x_f, x_n = np.split(x_side, 2, axis=1)
    h_f, h_n = np.split(h_side, 2, axis=1)
    f = sigmoid(x_f + h_f)
    n = np.tanh(x_n + f * h_n)
    return ((1 - f) * n + f * h_prev,), {"h_prev": h_prev, "f": f, "n": n, "h_side_n": h_n}


def step_backward(kept: dict[str, Any], dstate: State, weights: Weights) -> StepGradients:
    (dh,) = dstate
    f = kept["f"]
    n = kept["n"]
    da_n = dh * (1 - f) * (1 - n * n)
    da_f = (dh * (kept["h_prev"] - n) + da_n * kept["h_side_n"]) * f * (1 - f)
    dh_side = np.concatenate([da_f, da_n * f], axis=1)
    return StepGradients(np.concatenate([da_f, da_n], axis=1), dh_side, (dh * f + dh_side @ weights.w_hh,))


def make(jit: Any, act: Any) -> SimpleNamespace:
    sigmoid_of = act.sigmoid
    tanh = act.tanh
    one = act.one

    @jit
    def forward(x, u, h_prev, c_prev):
        f = sigmoid_of(x[0] + u[0])
        n = tanh(x[1] + f * u[1])
        return (f, n, u[1]), n + f * (h_prev - n), c_prev

    @jit
    def backward(saved, h_prev, c_prev, dh, dc):
        f, n, u_n = saved
        da_n = dh * (one - f) * (one - n * n)
        da_f = (dh * (h_prev - n) + da_n * u_n) * f * (one - f)
        return (da_f, da_n), (da_f, da_n * f), dh * f, dc

    return SimpleNamespace(forward=forward, backward=backward)


CELL = Cell(
    NAME,
    gates=("f", "n"),
    states=("h",),
    forward=step_forward,
    backward=step_backward,
    products=(("h_prev", 0, 2),),
    saved=("f", "n", "h_side_n"),
    reads_h=True,
    splits_sides=True,
)


@contextmanager
def added(header: Path, text: str = HEADER) -> Iterator[None]:
    """Adds the cell's rows to all three tables."""
    header.write_text(text, encoding="utf-8")
    with (
        mock.patch.dict(CELLS, {NAME: CELL}),
        mock.patch.dict(POINTWISE, {NAME: make}),
        mock.patch.dict(HEADERS, {NAME: Header(str(header))}),
    ):
        yield


def assert_within(worst: dict[str, float]) -> None:
    over = {name: f"{ratio:.3g} x tolerance" for name, ratio in worst.items() if not ratio <= 1}
    assert not over, over


@pytest.fixture
def uncached_choices() -> Iterator[None]:
    """Clears cached choices of backends before and after the test, since they depend on the added cell."""
    select.cache_clear()
    yield
    select.cache_clear()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_of_the_added_oracle_are_finite_differences(case: Case, tmp_path: Path) -> None:
    with added(tmp_path / "cell.cuh"):
        assert_finite_differences(Case(NAME, T=4, B=3, I=2, H=3, reverse=case.reverse, ragged=case.ragged))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_added_cell_runs_in_numba(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long scans and single steps, on one thread and on two, with a separate cache for the compiled cell."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    with added(tmp_path / "cell.cuh"):
        for threads in (1, 2):
            share_everything(monkeypatch, threads)
            for case in (*CASES, Case(NAME, T=1, B=5, I=4, H=19), Case(NAME, T=6, B=2, I=3, H=40, ragged=True)):
                assert_within(parity("numba", case, dtype))


def test_a_cell_with_only_an_oracle_is_refused_by_other_backends(uncached_choices: None) -> None:
    with mock.patch.dict(CELLS, {NAME: CELL}):
        choice = select("cpu", "float32", NAME)
        assert choice.row.name == "numpy"
        assert f"numba: does not serve the cell {NAME}" in choice.why
        assert_within(parity("numpy", CASES[0], "float64"))
        with pytest.raises(ValueError, match=f"backend 'numba' serves the cells rnn_tanh, .*, got {NAME}"):
            select("cpu", "float32", NAME, "numba")
        inputs = make_inputs(CASES[0], "float32")
        with pytest.raises(ValueError, match=f"serves the cells .*, got {NAME}"):
            direction.forward(NAME, inputs.x, inputs.state0, inputs.weights, backend="numba")


@needs_emulator
def test_a_cell_with_only_an_oracle_is_refused_on_cuda(uncached_choices: None) -> None:
    with mock.patch.dict(CELLS, {NAME: CELL}), cuda():
        for backend in ("cupy", "numba_cuda"):
            if BACKENDS[backend].problem() is None:
                with pytest.raises(ValueError, match=f"backend '{backend}' serves the cells .*, got {NAME}"):
                    select("cuda:0", "float32", NAME, backend)
        with pytest.raises(RuntimeError, match=f"no backend can run {NAME}.*does not serve the cell {NAME}"):
            select("cuda:0", "float32", NAME)


@needs_emulator
def test_a_cell_with_several_states_beside_h_goes_to_a_gpu() -> None:
    with cuda():
        layer = rnnkit.SLSTM(3, 4, backend=None)
        layer.to("cuda")
        assert select(layer.device, "float32", "slstm").row.name == "cupy"


@needs_emulator
@pytest.mark.parametrize(("case", "dtype"), slow_except(PAIRS, (CASES[1], "float32"), unpack=True), ids=str)
def test_added_cell_runs_in_cuda_cpp(case: Case, dtype: str, tmp_path: Path) -> None:
    with added(tmp_path / "cell.cuh"), cuda():
        assert_within(parity("cupy", case, dtype, device="cuda:0"))


@needs_greenlets
@pytest.mark.parametrize(("case", "dtype"), slow_except(PAIRS, (CASES[1], "float32"), unpack=True), ids=str)
def test_added_cell_runs_in_numba_cuda(case: Case, dtype: str, tmp_path: Path) -> None:
    with added(tmp_path / "cell.cuh"), device(1):
        assert_within(parity("numba_cuda", case, dtype, device="cuda:0"))


@needs_emulator
@pytest.mark.slow
def test_edited_header_is_compiled_again(tmp_path: Path) -> None:
    """Also after its steps are captured in a graph, which would replay the old kernels."""
    case = CASES[0]
    header = tmp_path / "cell.cuh"
    with added(header, HEADER.replace("sigmoid_of(", "tanh_of(")), cuda():
        want = run(case, make_inputs(case, "float64"), "numpy")
        inputs = make_inputs(case, "float32", device="cuda:0")
        other = [run(case, inputs, "cupy") for _ in range(3)][-1]
        assert np.abs(other["y"] - want["y"]).max() > 0.01
        header.write_text(HEADER, encoding="utf-8")
        for _ in range(3):
            assert_matches(run(case, inputs, "cupy"), want)


@needs_emulator
@pytest.mark.parametrize(
    ("constant", "wrong"),
    slow_except(
        [
            ("kGates", "4"),
            ("kSaved", "4"),
            ("kHasC", "true"),
            ("kReadsH", "false"),
            ("kSplits", "false"),
            ("kResetsBefore", "true"),
        ],
        ("kGates", "4"),
        unpack=True,
    ),
)
def test_header_that_contradicts_its_row_does_not_compile(constant: str, wrong: str, tmp_path: Path) -> None:
    lines = [
        f"{line.partition('=')[0]}= {wrong};" if f" {constant} =" in line else line for line in HEADER.splitlines()
    ]
    assert sum(line.endswith(f"= {wrong};") and constant in line for line in lines) == 1
    with added(tmp_path / "cell.cuh", "\n".join(lines)), cuda():
        inputs = make_inputs(CASES[0], "float32", device="cuda:0")
        with pytest.raises(DeviceError) as caught:
            run(CASES[0], inputs, "cupy")
    assert f"{constant} " in str(caught.value.__cause__)


def test_every_cell_has_a_row_for_each_target() -> None:
    assert set(POINTWISE) == set(CELLS)
    assert set(HEADERS) == set(CELLS)
