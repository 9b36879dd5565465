"""Schedule D by counts and values: graphs for any lengths, wide kernels, directions side by side, outputs in place."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.core.cells import Weights
from rnnkit.functional import direction
from rnnkit.testing import Case, assert_close, make_inputs, parity, run
from tests.cuda.cuda_helpers import CELLS, LAYERS, assert_matches, chunked, cuda, of_few_builds
from tests.helpers import parts, randn, slow_except
from tests.tools import emulator

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

STEPWISE = "cupy:stepwise"
CELL_NAMES = tuple(CELLS)
DTYPES = ("float32", "float16", "bfloat16", "float64")
LENGTHS = ([6, 2, 5, 1, 5], [3, 6, 5, 2, 6], [1, 1, 2, 6, 5], [6, 6, 6, 5, 6], [4, 6, 1, 5, 6])
CELLS_AND_PROJECTIONS = [*((cell, 0) for cell in CELL_NAMES), ("lstm", 4)]


@pytest.fixture(scope="module")
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


# Graphs


@pytest.mark.parametrize(("cell", "P"), CELLS_AND_PROJECTIONS)
@pytest.mark.parametrize("reverse", [False, True])
def test_graphs_serve_lengths_that_never_ran(cp: Any, cell: str, P: int, reverse: bool) -> None:
    """With new lengths in every call, the third and later calls replay the graphs of the second."""
    case = Case(cell, T=6, B=5, I=3, H=6, P=P, reverse=reverse)
    held = make_inputs(case, "float32", device="cuda:0")
    wide = make_inputs(case, "float64")
    for number, lengths in enumerate(LENGTHS):
        held.lengths = wide.lengths = lengths
        with cp.fake.counting() as counts:
            got = run(case, held, STEPWISE)
        assert_matches(got, run(case, wide, "numpy"))
        if number >= 2:
            own = [name for name in counts.launches if name.startswith(("forward_step", "backward_step"))]
            assert (counts.captures, counts.graph_launches, own) == (0, 2, [])


def test_graphs_serve_other_numbers_of_steps(cp: Any) -> None:
    """More than 8 steps are cut into powers of two: 45 = 32 + 8 + 5, 61 = 32 + 16 + 8 + 5."""
    held = make_inputs(Case("gru", T=61, B=2, I=3, H=4), "float32", device="cuda:0")
    wide = make_inputs(Case("gru", T=61, B=2, I=3, H=4), "float64")
    captures = []
    for T in (45, 61, 45, 61, 45, 61):
        case = Case("gru", T=T, B=2, I=3, H=4)
        now = [mock.Mock(**vars(i)) for i in (held, wide)]
        for given, i in zip(now, (held, wide), strict=True):
            given.x, given.dy = i.x[:T], i.dy[:T]
        with cp.fake.counting() as counts:
            got, want = run(case, now[0], STEPWISE, None), run(case, now[1], "numpy")
        assert_matches(got, want)
        captures.append(counts.captures)
        if len(captures) > 4:
            assert counts.gemms == 4, "x W, dW_ih, dW_hh and dx are of whole chunks"
            assert counts.graph_launches == 2 * (3 if T == 45 else 4)
    assert captures[4:] == [0, 0]


@pytest.mark.parametrize("n", [1, 8, 9, 12, 13, 64, 100, 237, 255, 256])
def test_segments_cover_a_chunk_once(n: int) -> None:
    from rnnkit.backends.cupy.problem import Chunk
    from rnnkit.backends.ragged import packing

    lengths = np.random.default_rng(0).integers(1, n + 1, 9)
    lengths[2] = n
    for rows in (packing(n, 9, None), packing(n, 9, lengths)):
        for descending in (False, True):
            chunk = Chunk(0, n, 0, rows.steps, rows, descending)
            spans = chunk.spans()
            assert chunk.spans(backward=True) == spans[::-1]
            steps = sorted(t for s in spans for t in range(s.t0, s.t0 + s.steps))
            assert steps == list(range(n))
            assert len(spans) <= 8
            for s in spans:
                live = rows.counts[s.t0 : s.t0 + s.steps]
                assert live.max() <= s.rows <= 9
                assert rows.order is not None or s.first == s.t0 * 9
    assert len({s.rows for s in Chunk(0, n, 0, rows.steps, rows, False).spans()}) <= 4


def test_rows_of_length_0_keep_their_gradients_beside_infinite_weights(cp: Any) -> None:
    """They are never among the rows of a product, where zero times infinity would be NaN."""
    case = Case("lstm", T=3, B=3, I=2, H=4)
    inputs = make_inputs(case, "float32", device="cuda:0")
    inputs.lengths = [3, 0, 2]
    inputs.weights.w_hh[0, 0] = np.inf
    got = run(case, inputs, STEPWISE)
    for name, given in (("h_n", inputs.state0[0]), ("dh0", inputs.dstate_n[0]), ("dc0", inputs.dstate_n[1])):
        np.testing.assert_array_equal(got[name][1], given.get()[1])


# Kernels


@pytest.mark.parametrize(
    ("cell", "dtype"), slow_except(product(CELL_NAMES, DTYPES), *of_few_builds(DTYPES, CELL_NAMES), unpack=True)
)
def test_wide_kernels(cp: Any, cell: str, dtype: str) -> None:
    from rnnkit.backends.cupy import stepwise_launch

    pytest.importorskip("ml_dtypes")
    cases = [Case(cell, T=4, B=3, I=5, H=8), Case(cell, T=4, B=5, I=3, H=12, ragged=True, reverse=True)]
    cases += [Case(cell, T=3, B=3, I=3, H=8, P=4, ragged=ragged) for ragged in (False, True) if CELLS[cell].projects]
    with mock.patch.object(stepwise_launch, "WIDE_ELEMENTS", 0):
        for case in cases:
            with cp.fake.counting() as counts:
                worst = parity(STEPWISE, case, dtype, device="cuda:0")
            assert not {name: ratio for name, ratio in worst.items() if not ratio <= 1}, case
            steps = {name for name in counts.launches if "_step" in name or "_output" in name}
            assert steps
            assert all(name.endswith("_wide") for name in steps), steps


def test_wide_kernels_give_the_bits_of_the_narrow_ones(cp: Any) -> None:
    """Also where the rows of y and dy are not aligned to several units."""
    from rnnkit.backends.cupy import stepwise_launch

    case = Case("lstm", T=3, B=2, I=5, H=8)
    inputs = make_inputs(case, "float16", device="cuda:0")
    wide = cp.asarray(np.zeros((3, 2, 11), np.float16))
    wide[:, :, 1:9] = inputs.dy
    found = []
    for least in (0, 1 << 30):
        with mock.patch.object(stepwise_launch, "WIDE_ELEMENTS", least):
            results = []
            for dy in (inputs.dy, wide[:, :, 1:9]):
                y, state_n, saved = direction.forward("lstm", inputs.x, inputs.state0, inputs.weights, backend=STEPWISE)
                back = direction.backward(saved, dy, inputs.dstate_n, inputs.weights)
                results.append([a.get() for a in (y, *state_n, back[0], *back[1], *back[2][:4])])
            found.append(results)
    for got, want in zip(found[0] + found[1][1:], found[1] + found[1][:1], strict=True):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_wide_kernels_serve_large_steps(cp: Any) -> None:
    from rnnkit.backends.cupy import stepwise_launch

    for rows, units, bytes_, want in (
        (128, 512, 4, "wide"),
        (127, 512, 4, ""),
        (128, 514, 4, ""),
        (128, 514, 8, "wide"),
    ):
        launcher = mock.MagicMock()
        launcher.p.compute_bytes = bytes_
        launcher.p.cell.normalises = False
        stepwise_launch.StepLauncher._launch_step(launcher, "forward_step", rows, units)
        name, shape, _ = launcher.launch.call_args.args
        assert name == ("forward_step_wide" if want else "forward_step")
        (across, down), (x, y) = shape
        assert across * x >= units // (16 // bytes_ if want else 1)
        assert down * y >= rows


def test_each_kernel_reads_its_call_once() -> None:
    """As one struct: its fields are loaded together, and not when each is needed."""
    from rnnkit.backends.cupy import stepwise_launch

    for cell in ("lstm", "gru_reset_before", "slstm"):
        text = stepwise_launch.build(cell, "float32").sources[-1].text
        assert text.count("const Call call = *given;") == text.count("const Call* __restrict__ given")
        assert "given->" not in text


def test_what_every_cell_launches_is_compiled_once(cp: Any) -> None:
    with cuda() as fresh:
        for cell in CELL_NAMES:
            case = Case(cell, T=2, B=2, I=3, H=4)
            run(case, make_inputs(case, "float32", device="cuda:0"), STEPWISE)
        assert sum(fresh.fake.counts.compiles.values()) == len(CELL_NAMES) + 1
        assert [options for options in fresh.fake.counts.compiles if "RK_GATES" not in options] == [
            "-std=c++17 -DRK_FLOAT32=1"
        ]


@pytest.mark.parametrize(("cell", "P", "transposed"), [("lstm", 0, 1), ("gru_reset_before", 0, 1), ("lstm", 4, 2)])
def test_backward_in_tf32_transposes_the_weights_once(cp: Any, cell: str, P: int, transposed: int) -> None:
    """Then all products of its steps read both operands along K; dx alone does not."""
    from rnnkit.backends.cupy import cublas

    case = Case(cell, T=9, B=2, I=3, H=6, P=P)
    inputs = make_inputs(case, "float32", device="cuda:0")
    want = run(case, make_inputs(case, "float64"), "numpy")
    real = cublas.Products.rows_through
    through = mock.patch.object(cublas.Products, "rows_through", autospec=True, side_effect=real)
    with through as called, cp.fake.counting() as counts:
        got = run(case, inputs, STEPWISE, "tf32")
    assert counts.launches["transpose"] == transposed
    assert called.call_count == 1
    for name, value in got.items():
        assert_close(name, value, want[name], "tf32", "forward" if name in ("y", "h_n", "c_n") else "backward")
    with cp.fake.counting() as counts:
        run(case, inputs, STEPWISE)
    assert not counts.launches["transpose"]


# Directions, and outputs in place


def layers(name: str, device: str, dtype: str, **settings: Any) -> Any:
    backend = "numpy" if device == "cpu" else STEPWISE
    layer = LAYERS[name](3, 8, device=device, dtype=dtype, rng=3, bidirectional=True, backend=backend, **settings)
    drawn = np.random.default_rng(4)
    for parameter in layer.params.values():
        value = (randn(drawn, *parameter.shape) * np.float32(0.3)).astype("float16").astype(dtype)
        parameter[...] = value if device == "cpu" else put(value)
    return layer


def put(a: np.ndarray) -> Any:
    import cupy

    return cupy.asarray(a)


@pytest.mark.parametrize("dtype", slow_except(["float32", "float16"], "float32"))
@pytest.mark.parametrize("lengths", [None, [3, 6, 0, 5]])
@pytest.mark.parametrize("name", slow_except(LAYERS, "lstm", "gru_reset_before"))
def test_directions_run_side_by_side(name: str, lengths: Any, dtype: str) -> None:
    """On two streams that run late and in any order, with memory that is freed and used again between calls."""
    drawn = np.random.default_rng(0)
    x, dy = (randn(drawn, 6, 4, n).astype("float16") for n in (3, 16))
    there_and_here = []
    with cuda(lazy_streams=True) as cp:
        for device, kind in (("cuda:0", dtype), ("cpu", "float64")):
            layer = layers(name, device, kind, num_layers=2)
            given, gradient = (a.astype(kind) if device == "cpu" else put(a.astype(kind)) for a in (x, dy))
            for _ in range(4):
                layer.zero_grad()
                with cp.fake.counting() as counts:
                    y, state_n = layer(given, lengths=lengths)
                    dx, _ = layer.backward(gradient)
                    dx, _ = layer.backward(gradient)  # adds again
            assert not counts.synchronisations
            found = {"y": y, "dx": dx} | {f"state_n[{k}]": s for k, s in enumerate(parts(state_n))}
            there_and_here.append(found | {f"grad {n}": g for n, g in layer.grads.items()})
            if device != "cpu":
                streams = {launch.stream for launch in cp.fake.launches if launch.name == "set_call"}
                assert len(streams) == 2
        assert_matches(*there_and_here, dtype)


def test_the_reverse_direction_waits_for_its_input() -> None:
    """Its stream runs first here, although x is still to be computed on the current stream."""
    x = randn(np.random.default_rng(0), 6, 4, 3, dtype="float32")
    with cuda(lazy_streams=True) as cp:
        from rnnkit.backends.cupy import arena

        layer = layers("gru", "cuda:0", "float32")
        want, _ = layer(put(x))
        want = want.get()
        computed = put(x / 2) * np.float32(2)
        y, _ = layer(computed)
        arena.current().beside().synchronize()
        np.testing.assert_array_equal(cp.fake.peek(y)[:, :, 8:], want[:, :, 8:])
        np.testing.assert_array_equal(y.get(), want)


def test_a_failure_beside_joins_the_streams(cp: Any) -> None:
    from rnnkit.backends.cupy import stepwise

    layer = layers("lstm", "cuda:0", "float32")
    x = put(randn(np.random.default_rng(0), 6, 4, 3, dtype="float32"))
    want = layer(x)[0].get()
    real = stepwise.forward

    def failing(p: Any, call: Any) -> Any:
        if call.reverse:
            raise cp.cuda.driver.CUDADriverError(1)
        return real(p, call)

    with mock.patch.object(stepwise, "forward", failing), pytest.raises(rnnkit.errors.DeviceError):
        layer(x)
    np.testing.assert_array_equal(layer(x)[0].get(), want)


def test_directions_write_y_and_add_gradients_in_place(cp: Any) -> None:
    """No copy of y and no addition of gradients: only states and dx are moved by CuPy's own kernels."""
    layer = layers("lstm", "cuda:0", "float32")
    x, dy = (put(randn(np.random.default_rng(0), 6, 4, n, dtype="float32")) for n in (3, 16))
    for _ in range(3):
        with cp.fake.counting() as counts:
            y, _ = layer(x)
            layer.backward(dy)
    assert counts.operations == {"add": 1, "stack": 2}, "dx of both directions; dh0 and dc0"
    assert counts.memcpys == {"device to device": 4}, "h_n and c_n of both directions, into state_n"
    assert y.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16", "float64"])
@pytest.mark.parametrize(("T", "steps"), [(6, 256), (7, 2), (260, 256)])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradients_are_added_to_those_of_the_layer(cp: Any, cell: str, T: int, steps: int, dtype: str) -> None:
    """In one product, in slices and over several chunks; with one rounding."""
    from rnnkit.backends.cupy import problem

    kind = "float32" if dtype == "tf32" else dtype
    drawn = np.random.default_rng(1)
    x, dy = (randn(drawn, T, 3, n).astype("float16") for n in (3, 5))
    found = []
    for device in ("cuda:0", "cpu"):
        own = dtype if device != "cpu" else "float64"
        layer = LAYERS[cell](3, 5, device=device, dtype=own, rng=0, backend="numpy" if device == "cpu" else STEPWISE)
        for parameter in layer.params.values():
            value = (randn(np.random.default_rng(5), *parameter.shape) * np.float32(0.3)).astype("float16")
            parameter[...] = value.astype(parameter.dtype) if device == "cpu" else put(value.astype(kind))
        for grad in layer.grads.values():
            grad[...] = 1.5
        before = {n: g if device == "cpu" else g.data.ptr for n, g in layer.grads.items()}
        given, gradient = (a.astype("float64") if device == "cpu" else put(a.astype(kind)) for a in (x, dy))
        with chunked(steps), mock.patch.object(problem, "SLICE_ROWS", 8 if T == 7 else 512):
            layer(given)
            layer.backward(gradient)
        if device != "cpu":
            assert before == {n: g.data.ptr for n, g in layer.grads.items()}
        found.append({f"grad {n}": g for n, g in layer.grads.items()})
    assert_matches(*found, dtype)


def test_gradients_of_a_functional_call_are_new_arrays(cp: Any) -> None:
    case = Case("gru")
    inputs = make_inputs(case, "float32", device="cuda:0")
    _, _, saved = direction.forward("gru", inputs.x, inputs.state0, inputs.weights, backend=STEPWISE)
    _, _, first = direction.backward(saved, inputs.dy, inputs.dstate_n, inputs.weights)
    _, _, second = direction.backward(saved, inputs.dy, inputs.dstate_n, inputs.weights)
    for name in Weights._fields[:4]:
        a, b = getattr(first, name), getattr(second, name)
        assert a.data.ptr != b.data.ptr
        np.testing.assert_array_equal(a.get(), b.get())
