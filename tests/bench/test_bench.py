"""The benchmark: no time without a right result, counts equal to their formulas, grids, command-line options.

No test asserts a time. Planted peers are modules that run in worker processes, like the real ones.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench import grid, machine, problem
from bench.__main__ import main
from bench.grid import BENCHED as CELLS
from bench.grid import FORWARD, FORWARD_BACKWARD, Point
from bench.peers import PEERS
from bench.problem import Oracle, check, make_problem, select_rows
from rnnkit.backends.numba import host

NO_RUNS = {"repeated": 0, "unconfirmed": 0}
SMALL = {"T": 4, "B": 3, "I": 5, "H": 6}
VARIANTS: list[dict[str, Any]] = [{}, {"layers": 2, "bidirectional": True, "ragged": True}]


def outputs(name: str, point: Point) -> dict[str, np.ndarray]:
    """The results of a peer at a point, computed in this process."""
    given = make_problem(point)
    prepared = PEERS[name].load().prepare(given, threads=1)
    prepared.call()
    return select_rows(prepared.results(prepared.call()), given.rows)


# The correctness check


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_correctness_check_passes_rnnkit(cell: str, dtype: str, variant: dict[str, Any]) -> None:
    point = Point(cell, **SMALL, dtype=dtype, passes=FORWARD_BACKWARD, **variant)
    errors = check(point, Oracle(point), outputs("numpy", point))
    assert set(problem.param_shapes(point)) == {n[1:] for n in errors if n.startswith("d") and "_l" in n}
    assert max(errors.values()) <= 1, errors


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_correctness_check_passes_onnxruntime(cell: str, variant: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime")
    point = Point(cell, **SMALL, **variant)
    errors = check(point, Oracle(point), outputs("onnxruntime", point))
    assert max(errors.values()) <= 1, errors


def test_the_correctness_check_covers_every_array() -> None:
    point = Point("lstm", **SMALL, passes=FORWARD_BACKWARD, P=2)
    oracle = Oracle(point)
    right = outputs("numpy", point)
    assert set(right) == set(oracle.wanted(point))
    for name in right:
        corrupted = {k: a.copy() for k, a in right.items()}
        corrupted[name].flat[-1] += 1e-3
        assert [n for n, error in check(point, oracle, corrupted).items() if error > 1] == [name]
        for bad in (None, right[name].astype(np.float64), right[name][..., :1], np.full_like(right[name], np.nan)):
            corrupted = {k: a for k, a in right.items() if k != name} | ({} if bad is None else {name: bad})
            assert check(point, oracle, corrupted)[name] == math.inf


@pytest.mark.parametrize("cell", CELLS)
def test_a_few_rows_check_a_large_point(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "WHOLE_ORACLE_FLOP", 0)
    point = Point(cell, T=3, B=20, I=4, H=5, passes=FORWARD_BACKWARD, ragged=True)
    oracle = Oracle(point)
    got = outputs("numpy", point)
    assert oracle.rows is not None
    assert len(oracle.rows) == got["y"].shape[1] == got["dx"].shape[1] == problem.CHECKED_ROWS
    assert {0, 19} < set(oracle.rows)
    assert max(check(point, oracle, got).values()) <= 1
    got["y"][-1, 0] += 1
    assert check(point, oracle, got)["y"] > 1


def test_oracle_refuses_another_shape() -> None:
    point = Point("gru", **SMALL)
    with pytest.raises(ValueError, match="this oracle is of gru-T4-B3-I5-H6, not of gru-T5"):
        Oracle(point).wanted(replace(point, T=5))


def test_numbers_are_the_same_in_every_dtype() -> None:
    single, double = (make_problem(Point("lstm", **SMALL), dtype) for dtype in ("float32", "float64"))
    for a, b in ((single.x, double.x), (single.dy, double.dy), *zip(single.state0, double.state0, strict=True)):
        assert a.dtype == np.float32
        assert b.dtype == np.float64
        np.testing.assert_array_equal(a, b)
    for name, p in single.params.items():
        np.testing.assert_array_equal(p, double.params[name])


# The counts and the grids


def test_flop_of_one_step() -> None:
    # 4 gates of 7 units with 5 inputs and 7 states, two rows of three steps; a multiply-add is two FLOP.
    assert Point("lstm", 3, 2, 5, 7).flop() == 3 * 2 * 2 * (5 + 7) * 4 * 7
    assert Point("lstm", 3, 2, 5, 7, P=3).flop() == 3 * 2 * 2 * ((5 + 3) * 4 * 7 + 7 * 3)
    assert Point("rnn_relu", 3, 2, 5, 7, passes=FORWARD_BACKWARD).flop() == 3 * 3 * 2 * 2 * (5 + 7) * 7


@pytest.mark.parametrize("variant", [{}, {"layers": 3}, {"layers": 2, "bidirectional": True}, {"ragged": True}])
@pytest.mark.parametrize("cell", CELLS)
def test_flop_is_two_per_weight_and_step(cell: str, variant: dict[str, Any]) -> None:
    point = Point(cell, 6, 4, 5, 7, **variant)
    weights = sum(math.prod(s) for s in problem.param_shapes(point).values() if len(s) == 2)
    lengths = point.lengths()
    assert point.flop() == 2 * weights * (24 if lengths is None else lengths.sum())
    assert replace(point, passes=FORWARD_BACKWARD).flop() == 3 * point.flop()


def test_parameter_shapes_equal_the_layers() -> None:
    for cell in CELLS:
        point = Point(cell, 3, 2, 5, 7, layers=2, bidirectional=True, P=3 if cell == "lstm" else 0)
        layer = problem.make_layer(point, "numpy", "float32")
        assert problem.param_shapes(point) == {name: p.shape for name, p in layer.params.items()}


@pytest.mark.parametrize("name", grid.GRIDS)
def test_grids_have_every_main_cell_and_pass_once(name: str) -> None:
    kept, left_out = grid.points(name, "float32")
    everything = [*kept, *(point for point, _ in left_out)]
    assert len(set(map(str, everything))) == len(everything)
    assert {(p.cell, p.passes) for p in kept} >= {(c, p) for c in grid.MAIN_CELLS for p in grid.PASSES}
    assert all(point.too_much() == reason and reason for point, reason in left_out)
    assert not any(point.too_much() for point in kept)


def test_the_cpu_grid_has_the_documented_points() -> None:
    kept, left_out = grid.points("cpu", "float32", [FORWARD])
    everything = {replace(p, passes=FORWARD) for p in [*kept, *(point for point, _ in left_out)]}
    for cell in grid.MAIN_CELLS:
        for H in (32, 64, 100, 128, 256, 512, 1024):
            for B in (1, 4, 8, 32, 64, 128):
                assert {Point(cell, 64, B, H, H), Point(cell, 256, B, 40, H)} <= everything
                if H == 128:
                    assert {Point(cell, T, B, I, H) for T in (64, 256) for I in (H, 40)} <= everything
    assert {p.cell for p in everything} == set(CELLS)
    for feature in ("ragged", "bidirectional", "P"):
        assert any(getattr(p, feature) for p in everything)


def test_the_grid_is_filtered_by_cell_and_pass() -> None:
    kept, _ = grid.points("cpu", "float64", [FORWARD_BACKWARD], ["gru", "rnn_relu"])
    assert {p.cell for p in kept} == {"gru", "gru_reset_before", "rnn_relu"}
    assert {(p.passes, p.dtype) for p in kept} == {(FORWARD_BACKWARD, "float64")}


def test_a_sample_of_the_grid_has_every_length_and_pass() -> None:
    whole, _ = grid.points("cpu", "float32")
    some, _ = grid.points("cpu", "float32", every=4)
    assert set(map(str, some)) < set(map(str, whole))
    assert len(whole) / 6 < len(some) < len(whole) / 3
    assert {(p.T, p.passes, p.cell) for p in some} >= {
        (T, passes, cell) for T in (64, 256) for passes in grid.PASSES for cell in grid.MAIN_CELLS
    }


# The command and the machine


@pytest.mark.parametrize(
    ("option", "values", "wanted"),
    [
        ("--seconds-per-point", ("0", "-1", "nan", "inf", "soon"), "a number above 0"),
        ("--repeat", ("0", "-3", "1.5"), "a positive whole number"),
        ("--threads", ("0", "two"), "a positive whole number"),
    ],
)
def test_options_out_of_range_are_refused(
    option: str, values: tuple[str, ...], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values:
        with pytest.raises(SystemExit) as end:
            main([f"{option}={value}"])
        assert end.value.code == 2
        assert f"argument {option}: must be {wanted}, got {value!r}" in capsys.readouterr().err


def test_machine_is_described_without_naming_the_host() -> None:
    found = machine.describe()
    assert found["cores"] >= 1
    assert found["cpu"]
    name, _, rates = found["family"].partition(", ")
    assert host.RATES[name].source.startswith(rates.removesuffix(" rates"))
    xeon = {"cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "cores": 4, "flags": ["avx2", "avx512f"]}
    assert machine.slug(xeon) == "intel-xeon-4-cores"
    assert machine.slug({**xeon, "flags": ["avx2"]}) == "intel-xeon-avx2-4-cores"
    assert machine.matmul_gflops("float32", size=32, seconds=0.001) > 0
