"""On a GPU: promises other than values, about graphs, streams, threads, devices, optimizers and programs.

Skipped without a GPU, with the reason; `make gpu` runs it on one.
"""

from __future__ import annotations

import importlib
import itertools
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.devices import cuda_problem, to_device, to_numpy
from rnnkit.testing import Case, assert_close, error_ratio, make_inputs, run
from tests.cuda.test_gpu import layer_on_card, served_here, wanted

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(cuda_problem() is not None, reason=str(cuda_problem()))]

# Keeps a stream busy for about that many clock cycles.
SPIN = """
extern "C" __global__ void spin(long long clocks) {
  const long long begin = clock64();
  while (clock64() - begin < clocks) {}
}
"""
HALF_A_SECOND = 900_000_000


@cache
def spin() -> Any:
    import cupy

    return cupy.RawModule(code=SPIN, backend="nvrtc").get_function("spin")


def hold(clocks: int = HALF_A_SECOND) -> None:
    """Keeps the current stream busy for a while."""
    spin()((1,), (1,), (np.int64(clocks),))


# Graphs, streams, threads, devices


def test_the_second_call_captures_a_graph() -> None:
    import cupy

    from rnnkit.backends.cupy import arena

    case = Case("gru", 7, 3, 5, 41)
    inputs = make_inputs(case, "float32", device="cuda:0")
    with cupy.cuda.Stream():  # a stream with its own arena, ordered with the null stream
        graphs = arena.current()._graphs
        counts = [len(graphs)]
        for _ in range(4):
            run(case, inputs, "cupy:stepwise")
            counts.append(len(graphs))
    assert [after - before for before, after in itertools.pairwise(counts)] == [0, 2, 0, 0]


@pytest.mark.parametrize("ragged", [False, True])
def test_a_call_returns_while_the_stream_is_busy(ragged: bool) -> None:
    import cupy

    layer, x = layer_on_card()
    lengths = np.array([12, 0, 7, 3, 12]) if ragged else None
    dy = cupy.ones((12, 5, 20), np.float32)
    for _ in range(3):
        layer(x, lengths=lengths)
        layer.backward(dy)
    hold(1)
    cupy.cuda.get_current_stream().synchronize()
    hold()
    held = cupy.cuda.get_current_stream().record()
    layer(x, lengths=lengths)
    layer.backward(dy)
    assert not held.done, "a call synchronised"
    cupy.cuda.get_current_stream().synchronize()


@pytest.mark.parametrize("backend", ["cupy", "numba_cuda"])
def test_calls_run_on_the_current_stream(backend: str) -> None:
    import cupy

    served_here(backend, "float32", "lstm")
    layer, x = layer_on_card(backend=backend)
    want = to_numpy(layer(x)[0])
    other = cupy.cuda.Stream(non_blocking=True)
    late = cupy.full_like(x, np.nan)
    cupy.cuda.Device().synchronize()
    with other:
        for _ in range(3):  # launched, captured, replayed
            late.fill(np.nan)
            hold(HALF_A_SECOND // 10)
            late[...] = x
            got = layer(late)[0]
            other.synchronize()
            np.testing.assert_array_equal(to_numpy(got), want)


def test_threads_share_no_state() -> None:
    import cupy

    cases = [Case("lstm", 11, 4, 6, 33), Case("lstm", 11, 4, 6, 33, reverse=True), Case("gru", 9, 5, 8, 40)]
    problems: list[str] = []

    def work(which: int) -> None:
        case = cases[which % len(cases)]
        want = wanted_by_thread[which % len(cases)]
        stream = cupy.cuda.Stream(non_blocking=True) if which % 2 else cupy.cuda.Stream.null
        with stream:
            inputs = make_inputs(case, "float32", device="cuda:0")  # on the stream of the calls
            for _ in range(8):
                got = run(case, inputs, "cupy")
                worst = max(error_ratio(got[name], want[name], "float32", "backward") for name in want)
                if not worst <= 1:
                    problems.append(f"{case}: {worst}")

    wanted_by_thread = [wanted(case, "float32") for case in cases]
    cupy.cuda.Device().synchronize()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_a_device_that_is_not_current() -> None:
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one CUDA device")
    case = Case("lstm", 6, 4, 5, 30, ragged=True)
    want = wanted(case, "float32")
    with cupy.cuda.Device(0):
        got = run(case, make_inputs(case, "float32", device="cuda:1"), "cupy")
    assert max(error_ratio(got[name], want[name], "float32", "backward") for name in want) <= 1
    layer = rnnkit.GRU(4, 8, device="cuda:1", rng=0)
    y, _ = layer(to_device(np.ones((3, 2, 4), np.float32), "cuda:1"))
    assert y.device.id == 1


# Around the layers


def test_torch_tensors_in_and_out() -> None:
    torch = pytest.importorskip("torch", reason="not available: torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("not available: torch sees no CUDA device")
    layer, x = layer_on_card()
    given = torch.from_dlpack(x)
    y, _ = layer(given)
    back = torch.from_dlpack(y)
    assert back.device == given.device
    assert back.data_ptr() == y.data.ptr
    np.testing.assert_array_equal(back.cpu().numpy(), to_numpy(layer(x)[0]))
    half, x16 = layer_on_card("bfloat16")
    np.testing.assert_array_equal(to_numpy(half(torch.from_dlpack(x16))[0]), to_numpy(half(x16)[0]))


@pytest.mark.parametrize("optimizer", ["SGD", "Adagrad", "Adam"])
def test_optimizers_equal_the_cpu(optimizer: str) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        # The oracle on the CPU: compiling the Numba path would take longer than the test.
        layer = rnnkit.GRU(6, 10, dtype="float64", device=device, backend="numpy" if device == "cpu" else None, rng=3)
        step = getattr(rnnkit, optimizer)(layer, lr=0.05)
        x = np.random.default_rng(4).standard_normal((8, 3, 6))
        for _ in range(4):
            layer.zero_grad()
            y, _ = layer(to_device(x, "cpu" if device == "cpu" else "cuda:0"))
            layer.backward(y)
            step.step()
        found[device] = {name: to_numpy(p) for name, p in layer.params.items()}
    for name, p in found["cpu"].items():
        assert_close(name, found["cuda"][name], p, "float64", "backward")


@pytest.mark.parametrize(
    ("program", "options"),
    [("next_word", ("--epochs", "40")), ("units_primer", ("--steps", "20"))],
)
def test_example_programs_run_on_the_gpu(program: str, options: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="not available: matplotlib is not installed")
    main = importlib.import_module(f"rnnkit.examples.{program}").main
    losses = {}
    for backend in ("numpy", "cupy"):
        result = main(["--backend", backend, "--out", str(tmp_path / backend), *options]).losses
        values = result if isinstance(result, list) else [loss for one in result.values() for loss in one]
        losses[backend] = np.array(values, np.float64)
    np.testing.assert_allclose(losses["cupy"], losses["numpy"], rtol=2e-2)
