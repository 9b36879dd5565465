"""The CuPy backend and its device: named errors, order between streams, races between threads, unsupported GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.errors import DeviceError, DeviceMemoryError, UnsupportedDeviceError
from rnnkit.functional import direction
from rnnkit.testing import Case, assert_close, make_inputs, parity, run
from tests.cuda.cuda_helpers import CELLS, assert_matches, chunked, cuda, outputs
from tests.helpers import assert_same, slow_except
from tests.tools import emulator

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))

CELL_NAMES = tuple(CELLS)
SCHEDULES = [{"order": "ascending"}, {"order": "descending"}] + [{"order": "random", "seed": s} for s in (1, 2)]


@pytest.mark.parametrize("cell", slow_except(CELL_NAMES, "gru", "gru_reset_before"))
def test_no_race_and_no_access_out_of_bounds(cell: str) -> None:
    """Checks every access of every kernel for bounds, races and uninitialised memory, in four orders of threads."""
    cases = [Case(cell, T=3, B=3, I=3, H=5, ragged=True), Case(cell, T=2, B=9, I=2, H=33, reverse=True)]
    cases += [Case(cell, T=2, B=3, I=3, H=5, P=3, ragged=True)] if CELLS[cell].projects else []
    with cuda(mode="check") as cp:
        for case in cases:
            found = []
            for options in SCHEDULES:
                cp.fake.launch_options.update(seed=None)
                cp.fake.launch_options.update(options)
                inputs = make_inputs(case, "float32", device="cuda:0")
                found.append(run(case, inputs, "cupy"))
            assert_matches(found[0], run(case, make_inputs(case, "float64"), "numpy"))
            for other in found[1:]:
                assert_same(other, found[0])


def test_streams_do_not_share_a_workspace() -> None:
    """Calls on two unsynchronised streams, run late and interleaved, do not affect each other."""
    case = Case("lstm")
    want = {seed: run(case, make_inputs(case, "float64", seed), "numpy") for seed in (0, 1)}
    with cuda(lazy_streams=True) as cp:
        streams = [cp.cuda.Stream(non_blocking=True) for _ in range(2)]
        for _ in range(3):
            results = []
            for seed, stream in enumerate(streams):
                with stream:
                    results.append(outputs(case, make_inputs(case, "float32", seed, "cuda:0"), "cupy"))
            for seed, (stream, found) in enumerate(zip(streams, results, strict=True)):
                with stream:
                    assert_matches({name: value.get() for name, value in found.items()}, want[seed])


def a_layer(**settings: Any) -> tuple[Any, Any]:
    import cupy

    layer = rnnkit.LSTM(3, 4, 2, device="cuda", rng=1, **settings)
    return layer, cupy.asarray(np.random.default_rng(0).standard_normal((5, 2, 3)).astype(layer.dtype))


@contextmanager
def failing(layer: Any, error: type[Exception], *words: str) -> Iterator[None]:
    """The body raises `error` with every word, and changes neither parameters nor gradients."""
    before = {name: a.get() for store in (layer.params, layer.grads) for name, a in store.items()}
    with pytest.raises(error) as caught:
        yield
    assert caught.type is error
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)
    assert_same({name: a.get() for store in (layer.params, layer.grads) for name, a in store.items()}, before)


def test_out_of_memory() -> None:
    with cuda() as cp:
        layer, x = a_layer()
        cp.fake.limit_memory(0)
        with failing(layer, DeviceMemoryError, "cuda:0"):
            layer(x)
        cp.fake.limit_memory(8 << 10)
        with failing(layer, DeviceMemoryError, "lstm", "T=5", "B=2", "I=3", "H=4", "cuda:0"):
            layer(x)
        cp.fake.limit_memory(None)
        y, _ = layer(x)
        cp.fake.limit_memory(0)
        with failing(layer, DeviceMemoryError):
            layer.backward(y)
        cp.fake.limit_memory(None)
        layer.backward(y)
        assert all(cp.isfinite(grad).all() for grad in layer.grads.values())


@pytest.mark.parametrize(
    ("arch", "dtype", "words"),
    [("60", "float32", ("7.0", "6.0")), ("75", "bfloat16", ("bfloat16", "8.0", "7.5"))],
)
def test_unsupported_gpus(arch: str, dtype: str, words: tuple[str, ...]) -> None:
    pytest.importorskip("ml_dtypes")
    with cuda(arch=arch):
        layer, x = a_layer(dtype=dtype)
        with failing(layer, UnsupportedDeviceError, *words):
            layer(x)
        with pytest.raises(UnsupportedDeviceError):
            rnnkit.explain(layer, x)


def test_sources_that_do_not_compile() -> None:
    from rnnkit.backends.cupy import sources

    broken = lambda build: "this is no CUDA"  # noqa: E731
    with cuda():
        layer, x = a_layer()
        with mock.patch("rnnkit.backends.cupy.sources.source", broken), failing(layer, DeviceError, "compile"):
            layer(x)
        layer(x)
    assert sources.source is not broken


def test_out_of_memory_outside_the_pool() -> None:
    """Allocations of cuBLAS and the driver fail with the same error, after the pool has freed its blocks."""
    with cuda() as cp:
        layer, x = a_layer()
        with mock.patch.object(cp.fake.libcublas, "cublasCreate_v2", return_value=3), failing(layer, DeviceMemoryError):
            layer(x)
        real, answers = cp.fake.libcublas.cublasCreate_v2, iter([3])
        once = mock.patch.object(cp.fake.libcublas, "cublasCreate_v2", lambda out: next(answers, None) or real(out))
        with once:
            layer(x)
        from rnnkit.backends.cupy import launcher

        def full(*args: Any) -> Any:
            raise cp.cuda.driver.CUDADriverError(2)

        with mock.patch.object(launcher.Launcher, "forward_begin", full), failing(layer, DeviceMemoryError, "lstm"):
            layer(x)


@pytest.mark.parametrize("name", ["cublasGemmEx", "cublasCreate_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2"])
def test_errors_of_products(name: str) -> None:
    with cuda() as cp:
        layer, x = a_layer()
        with mock.patch.object(cp.fake.libcublas, name, return_value=13), failing(layer, DeviceError, "execution"):
            layer(x)
        layer(x)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_errors_of_launches(call: int) -> None:
    """In the first call, in a capture, and in a later call. The next call is right."""
    case = Case("gru")
    want = run(case, make_inputs(case, "float64"), "numpy")
    with cuda() as cp:
        inputs = make_inputs(case, "float32", device="cuda:0")
        for _ in range(call - 1):
            run(case, inputs, "cupy:stepwise")
        from rnnkit.backends.cupy import stepwise_launch

        def refused(*args: Any) -> Any:
            raise cp.cuda.driver.CUDADriverError(1)

        # A replay launches no step, so there the launch before it fails.
        owner, name = (stepwise_launch, "rows_by_units") if call < 3 else (stepwise_launch.StepLauncher, "set_call")
        with mock.patch.object(owner, name, refused), pytest.raises(DeviceError, match="gru in float32"):
            run(case, inputs, "cupy:stepwise")
        for _ in range(3):
            assert_matches(run(case, inputs, "cupy:stepwise"), want)


def test_a_call_on_a_capturing_stream() -> None:
    with cuda() as cp:
        case = Case("gru")
        inputs = make_inputs(case, "float32", device="cuda:0")
        stream = cp.cuda.Stream(non_blocking=True)
        with stream:
            run(case, inputs, "cupy")
            stream.begin_capture()
            with pytest.raises(DeviceError, match="captured"):
                direction.forward("gru", inputs.x, inputs.state0, inputs.weights, backend="cupy")
            stream.end_capture()


def test_numbers_of_arenas_and_graphs_are_bounded() -> None:
    """Many streams and shapes do not accumulate memory."""
    with cuda() as cp:
        from rnnkit.backends.cupy import arena

        with mock.patch.object(arena, "MOST_ARENAS", 2), mock.patch.object(arena, "MOST_GRAPHS", 3):
            for _ in range(4):
                with cp.cuda.Stream(non_blocking=True):
                    parity("cupy:stepwise", Case("rnn_tanh"), "float32", device="cuda:0")
            assert len(arena._local.arenas) == 2
            for T in range(1, 9):
                case = Case("rnn_tanh", T=T)
                inputs = make_inputs(case, "float32", device="cuda:0")
                for _ in range(3):
                    run(case, inputs, "cupy:stepwise")
            assert len(arena.current()._graphs) == 3


def test_more_shapes_than_graphs_are_not_captured_repeatedly() -> None:
    with cuda() as cp:
        from rnnkit.backends.cupy import arena

        held = [make_inputs(Case("rnn_tanh", T=T), "float32", device="cuda:0") for T in range(1, 6)]
        with mock.patch.object(arena, "MOST_GRAPHS", 4), cp.fake.counting() as counts:
            for _ in range(10):
                for T, inputs in enumerate(held, 1):
                    run(Case("rnn_tanh", T=T), inputs, "cupy:stepwise")
        assert counts.captures <= 2 * 5 * 5


def test_after_an_invalidated_capture_the_steps_are_launched() -> None:
    """For example if another thread synchronises the device. Nothing of the capture has run, and the call is right."""
    case = Case("lstm")
    want = run(case, make_inputs(case, "float64"), "numpy")
    with cuda() as cp:
        inputs = make_inputs(case, "float32", device="cuda:0")
        run(case, inputs, "cupy:stepwise")
        end = cp.cuda.Stream.end_capture

        def corrupted(stream: Any) -> Any:
            end(stream)
            raise cp.cuda.runtime.CUDARuntimeError(901)

        warning = pytest.warns(RuntimeWarning, match="could not be captured")
        with mock.patch.object(cp.cuda.Stream, "end_capture", corrupted), warning:
            assert_matches(run(case, inputs, "cupy:stepwise"), want)
        assert_matches(run(case, inputs, "cupy:stepwise"), want)


def test_handles_are_reused_by_the_next_arena() -> None:
    """Destroying a handle would synchronise."""
    from concurrent.futures import ThreadPoolExecutor

    with cuda() as cp:
        for seed in range(3):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(parity, "cupy", Case("rnn_tanh"), "float32", seed, "cuda:0").result()
        assert len(cp.fake.handles()) == 1


def test_no_features() -> None:
    """I = 0: h depends only on the biases and the state."""
    with cuda():
        for cell in CELL_NAMES:
            case = Case(cell, T=3, B=2, I=0, H=5)
            inputs = make_inputs(case, "float32", device="cuda:0")
            assert_matches(run(case, inputs, "cupy"), run(case, make_inputs(case, "float64"), "numpy"))


@pytest.mark.parametrize("limit", [0, 2 << 10, 16 << 10])
def test_out_of_memory_changes_nothing(limit: int) -> None:
    """Moving a model, an optimizer's step and loading a state dict are atomic, and succeed when repeated."""
    with cuda() as cp:

        def on_full_card(action: Any) -> None:
            cp.get_default_memory_pool().free_all_blocks()
            cp.fake.limit_memory(limit)
            with pytest.raises(DeviceMemoryError):
                action()
            cp.fake.limit_memory(None)

        on_full_card(lambda: rnnkit.LSTM(30, 40, device="cuda"))
        model = rnnkit.Sequential(rnnkit.LSTM(3, 40, rng=1), rnnkit.GRU(40, 20, rng=2))
        on_full_card(lambda: model.to("cuda"))
        assert {child.device for child in model.children().values()} == {"cpu"} == {model.device}
        assert all(isinstance(a, np.ndarray) for store in (model.params, model.grads) for a in store.values())
        twin = rnnkit.Sequential(rnnkit.LSTM(3, 40, rng=1), rnnkit.GRU(40, 20, rng=2))
        model.to("cuda")
        optimizers = [rnnkit.Adam(one, lr=0.1) for one in (model, twin)]
        for one in (model, twin):
            for grad in one.grads.values():
                grad[...] = 0.5
        on_full_card(optimizers[0].step)
        assert optimizers[0].t == 0
        for optimizer in optimizers:
            optimizer.step()
        for name, p in model.params.items():
            assert_close(name, p, twin.params[name], "float32")
        before = {name: p.get() for name, p in model.params.items()}
        zeros = {name: np.zeros(p.shape, p.dtype) for name, p in before.items()}
        on_full_card(lambda: model.load_state_dict(zeros))
        assert_same({name: p.get() for name, p in model.params.items()}, before)


def test_moving_a_layer_to_a_device_without_its_backend() -> None:
    with cuda():
        for layer in (rnnkit.LSTM(3, 4, backend="numba"), rnnkit.LSTMCell(3, 4, backend="numpy")):
            with pytest.raises(ValueError, match="takes numpy arrays, got cupy arrays"):
                layer.to("cuda")
            assert layer.device == "cpu"


def test_explain_includes_the_workspace_of_the_stream() -> None:
    with cuda() as cp:
        layer = rnnkit.LSTM(5, 7, 2, bidirectional=True, device="cuda")
        x = cp.zeros((6, 3, 5), "float32")
        explained = rnnkit.explain(layer, x).workspace_bytes
        with cp.fake.counting() as counts:
            y, state_n = layer(x)
        found = counts.allocated_bytes - y.nbytes - sum(s.nbytes for s in state_n)
        assert found <= explained * 1.01
        assert explained <= found * 1.5


def test_memory_does_not_grow_with_time() -> None:
    """Inference over a sequence ten times as long needs no more workspace."""
    with cuda() as cp, chunked(4):
        case, peak = Case("lstm", T=8, B=2), []
        for T in (8, 80):
            inputs = make_inputs(Case("lstm", T=T, B=2), "float32", device="cuda:0")
            with cp.fake.counting() as counts:
                found = direction.forward(
                    "lstm", inputs.x, inputs.state0, inputs.weights, backend="cupy:stepwise", keep=False
                )
            peak.append(counts.allocated_bytes - found[0].nbytes)
        assert peak[1] <= peak[0], (case, peak)
