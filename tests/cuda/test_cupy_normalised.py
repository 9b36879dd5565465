"""Cells with layer normalisation in the schedule `stepwise`, in the emulator, against the float64 oracle.

Memory of the stand-in for CuPy is NaN until it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.cells import Weights
from rnnkit.core.devices import to_device, to_numpy
from rnnkit.errors import UnsupportedDeviceError
from rnnkit.testing import Case, assert_close, make_inputs, parity, run
from tests.cuda.cuda_helpers import assert_matches, chunked, cuda
from tests.helpers import slow_except
from tests.normalised import NORM_CASES
from tests.required import needs_kernels
from tests.tools import emulator
from tests.tools.build_report import nvrtc, table

needs_emulator = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))
needs_nvrtc = needs_kernels(nvrtc.unavailable())

STEPWISE = "cupy:stepwise"
SMALL = NORM_CASES[2]
DTYPES = ["float32", "tf32", "float64", "float16", "bfloat16"]


@pytest.fixture(scope="module")
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


def assert_parity(case: Case, dtype: str) -> None:
    over = {name: ratio for name, ratio in parity(STEPWISE, case, dtype, device="cuda:0").items() if not ratio <= 1}
    assert not over, (case, over)


@needs_emulator
@pytest.mark.parametrize("case", slow_except(NORM_CASES, SMALL), ids=str)
def test_every_output_and_gradient_equals_the_oracles(cp: Any, case: Case) -> None:
    """Lengths and none; units below, at and above a warp and a block; one row, one step, one unit; no biases."""
    assert_parity(case, "float32")
    assert_parity(replace(case, reverse=not case.reverse, ragged=False), "float32")
    assert_parity(replace(case, bias=False, H=32), "float32")
    assert_parity(replace(case, T=3, B=2, H=70, ragged=False), "float32")
    assert_parity(replace(case, T=2, B=3, H=300, reverse=not case.reverse), "float32")
    assert_parity(replace(case, T=1, B=1, H=1, ragged=False), "float32")


@needs_emulator
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("case", NORM_CASES, ids=str)
def test_other_dtypes(cp: Any, case: Case, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    for reverse in (False, True):
        for ragged in (False, True):
            assert_parity(replace(case, reverse=reverse, ragged=ragged, T=9), dtype)


@needs_emulator
def test_gradients_over_several_chunks_and_in_later_calls(cp: Any) -> None:
    """Later calls replay graphs, which read norm_eps, gains and biases of their own call."""
    case = replace(SMALL, T=7, B=3, H=6)
    for seed, eps in ((0, 1e-2), (1, 1e-5), (2, 0.5)):
        inputs = make_inputs(case, "float32", seed, device="cuda:0")
        wide = make_inputs(case, "float64", seed)
        now = replace(case, constants=(eps,))
        with chunked(2):
            got = run(now, inputs, STEPWISE)
        assert_matches(got, run(now, wide, "numpy"))


@needs_emulator
@pytest.mark.slow
@pytest.mark.parametrize("case", NORM_CASES, ids=str)
def test_no_race_and_no_access_out_of_bounds(case: Case) -> None:
    case = replace(case, H=70, T=3, B=3)
    want = run(case, make_inputs(case, "float64"), "numpy")
    with cuda(mode="check") as cp:
        for seed in (None, 1):
            cp.fake.launch_options.update(seed=seed)
            assert_matches(run(case, make_inputs(case, "float32", device="cuda:0"), STEPWISE), want)


@needs_emulator
def test_a_mean_far_from_zero_costs_no_digits(cp: Any) -> None:
    """x W^T = 64 + small integers, exact in float32. A variance from sums of squares would be off by 1e-4."""
    case = replace(SMALL, I=2, H=24, ragged=False)
    inputs = make_inputs(case, "float32", device="cuda:0")
    wide = make_inputs(case)
    rng = np.random.default_rng(0)
    w_ih = np.stack([np.full(96, 64), rng.integers(-3, 4, 96)], axis=1).astype(np.float32)
    for given, put in ((inputs, cp.asarray), (wide, np.float64)):
        given.x[...] = 1
        given.weights = Weights(put(w_ih), *given.weights[1:])
    got = run(case, inputs, STEPWISE)
    assert_close("y", got["y"], run(case, wide, "numpy")["y"], "float32")


@needs_emulator
def test_bits_do_not_depend_on_the_order_of_threads(cp: Any) -> None:
    case = replace(SMALL, B=4, H=70)
    found = []
    for seed in (1, 2):
        cp.fake.launch_options.update(seed=seed)
        found.append(run(case, make_inputs(case, "float32", device="cuda:0"), STEPWISE))
    cp.fake.launch_options.clear()
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)


@needs_emulator
@pytest.mark.parametrize("kind", slow_except(["LSTM", "GRU"], "GRU"))
def test_layers_in_both_directions(cp: Any, kind: str) -> None:
    """Gradients are added to those of the layer, and a pinned schedule without row sums says so."""
    given = {"layer_norm": "haste", "num_layers": 2, "bidirectional": True, "rng": 0}
    layer = getattr(rnnkit, kind)(4, 6, device="cuda", strict=True, **given)
    oracle = getattr(rnnkit, kind)(4, 6, backend="numpy", **given)
    x = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    lengths = [5, 0, 3]
    for _ in range(3):
        y, _ = layer(to_device(x, "cuda:0"), lengths=lengths)
        want, _ = oracle(x, lengths=lengths)
        dx, _ = layer.backward(y)
        assert_close("y", to_numpy(y), want, "float32")
        assert_close("dx", to_numpy(dx), oracle.backward(want)[0], "float32", "backward")
    for name, grad in oracle.grads.items():
        assert_close(name, to_numpy(layer.grads[name]), grad, "float32", "backward")
    explanation = rnnkit.explain(layer, to_device(x, "cuda:0"))
    assert explanation.backend == "cupy"
    assert "schedule stepwise" in explanation.kernel
    for name in ("one_block", "cluster", "grid"):
        assert f"passed over {name}: cell {layer.cell.key}: its kernels have no options" in explanation.kernel
    pinned = getattr(rnnkit, kind)(4, 6, device="cuda", backend="cupy:grid", layer_norm="haste", rng=0)
    with pytest.raises(UnsupportedDeviceError, match="its kernels have no options"):
        pinned(to_device(x, "cuda:0"))


@needs_emulator
def test_a_step_has_one_product_and_one_launch(cp: Any) -> None:
    case = replace(SMALL, T=6, B=2, ragged=False)
    inputs = make_inputs(case, "float32", device="cuda:0")
    run(case, inputs, STEPWISE)
    with cp.fake.counting() as counts:
        run(case, inputs, STEPWISE)
    ran = counts.launches + counts.captured + counts.replayed
    assert ran["forward_step"] % 6 == 0
    assert ran["forward_step"] == ran["backward_step"]
    assert ran["norm_sums"] == 3


@needs_nvrtc
@pytest.mark.parametrize("storage", slow_except(["float64", "float32", "float16", "bfloat16"], "float32"))
@pytest.mark.parametrize("key", sorted({case.cell for case in NORM_CASES}))
def test_nvrtc_compiles_the_modules_without_faults(key: str, storage: str) -> None:
    from rnnkit.backends.cupy import stepwise_launch

    build = stepwise_launch.build(key, storage)
    report = table.compiled(build, 90)
    assert table.problems(report, build.kernels, 90, table.in_float64(build)) == []
