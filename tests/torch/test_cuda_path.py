"""The operators on CUDA tensors, with a simulated CuPy: views by DLPack, PyTorch's stream, PyTorch's memory.

PyTorch for the CPU cannot make CUDA tensors. `OnCard` has the methods that rnnkit.torch calls of one, over an array of
the simulated CuPy, whose kernels run in the emulator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rnnkit.errors import DeviceError  # noqa: E402
from rnnkit.testing import assert_close  # noqa: E402
from rnnkit.torch import arrays, operators  # noqa: E402
from tests.tools import fakecupy  # noqa: E402
from tests.tools.fakecupy import _state  # noqa: E402

pytestmark = pytest.mark.peers


class OnCard:
    """A CUDA tensor, as far as rnnkit.torch uses one."""

    is_cpu = False
    is_cuda = True
    is_nested = False
    layout = torch.strided
    requires_grad = False
    _version = 0

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape = tuple(array.shape)
        self.device = torch.device("cuda", array.device.id)
        self.dtype = getattr(torch, str(array.dtype))

    def detach(self) -> OnCard:
        return self

    def contiguous(self) -> OnCard:
        return self

    def is_contiguous(self) -> bool:
        return True

    def is_inference(self) -> bool:
        return False

    def numel(self) -> int:
        return int(self.array.size)

    def data_ptr(self) -> int:
        return self.array.data.ptr

    def new_empty(self, size: int, dtype: Any) -> OnCard:
        import cupy

        return OnCard(cupy.empty(size, str(dtype).removeprefix("torch.")))

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The simulated card, with PyTorch's stream and allocator on it: what was allocated, and by which streams."""
    with fakecupy.installed() as cp:
        operators.choice_of.cache_clear()
        arrays._torch_allocator.cache_clear()
        stream = cp.cuda.Stream(non_blocking=True)
        blocks: dict[int, Any] = {}
        memory = _state.machine().memories[0]
        streams: list[Any] = []

        of_graphs: list[Any] = []

        def allocate(size: int, device: int, on: int) -> int:
            streams.append((device, on))
            with pytest.MonkeyPatch.context() as patch:
                # PyTorch's own cudaMalloc is allowed in a capture.
                patch.setattr(memory.machine.streams, "reject_malloc_in_strict_capture", lambda: None)
                block = memory.allocate(size, on)
            blocks[block.address] = block
            return block.address

        def free(address: int) -> None:
            block = blocks.pop(address)
            if current.capturing:
                of_graphs.append(block)  # stays with the graph, as in PyTorch's private pools
            else:
                memory.release(block, stream.ptr)

        current = SimpleNamespace(cuda_stream=stream.ptr, capturing=False)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current.capturing)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current)
        monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", allocate)
        monkeypatch.setattr(torch.cuda, "caching_allocator_delete", free)
        monkeypatch.setattr(torch, "from_dlpack", lambda array: OnCard(cp.from_dlpack(array)))
        yield SimpleNamespace(cp=cp, stream=stream, streams=streams, blocks=blocks, current=current)
    operators.choice_of.cache_clear()
    arrays._torch_allocator.cache_clear()


CELLS = ["rnn_tanh", "gru", "gru_reset_before", "lstm"]


def arguments(
    cell: str,
    bidirectional: bool,
    put: Any,
    seed: int = 3,
    *,
    lengths: list[int] | None = None,
    dropout: bool = False,
    P: int = 0,
    H: int = 6,
) -> tuple[list[Any], Any]:
    """x, states, weights, masks and lengths of two layers, and the gradients of their results."""
    T, B, I, L, D = 5, 3, 4, 2, 1 + bidirectional
    G = {"lstm": 4, "rnn_tanh": 1}.get(cell, 3)
    R = P or H
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Any:
        return put(0.4 * rng.standard_normal(shape, dtype=np.float32))

    states = [draw(L * D, B, width) for width in (R, H)[: 1 + (cell == "lstm")]]
    weights = [
        draw(*shape)
        for layer in range(L)
        for _ in range(D)
        for shape in ((G * H, D * R if layer else I), (G * H, R), (G * H,), (G * H,), (P, H))[: 4 + (P > 0)]
    ]
    masks = [put(2 * rng.integers(0, 2, (T, B, D * R)).astype(np.float32))] if dropout else []
    dresults = draw(T, B, D * R), [draw(*s.shape) for s in states]
    return [draw(T, B, I), states, weights, masks, None if lengths is None else torch.tensor(lengths)], dresults


@pytest.mark.parametrize("cell", CELLS)
def test_results_are_those_of_the_cpu(cell: str, card: SimpleNamespace) -> None:
    options = {"cell": cell, "backend": None, "bidirectional": True}

    def results(put: Any, get: Any) -> list[np.ndarray]:
        given, dresults = arguments(cell, True, put, 5, lengths=[5, 0, 3], dropout=True)
        *forward, reserve = operators.forward(*given, **options, keep=True)
        inference = operators.forward(*given, **options, keep=False)
        backward = operators.backward(*dresults, *given, reserve, **options)
        return [get(a) for a in (*forward, *inference, *backward)]

    wanted = results(torch.from_numpy, lambda t: t.numpy())
    got = results(lambda a: OnCard(card.cp.asarray(a)), lambda t: card.cp.asnumpy(t.array))
    for k, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert_close(f"result {k}", a, b, "float32", "backward")


# What backward needs is in the reserve. The simulated memory is full of NaN before.


def of_oracle(dtype: str, *drawn: Any, **options: Any) -> list[np.ndarray]:
    """Results and gradients in float64, of arguments rounded to the dtype."""
    given, dresults = arguments(*drawn, lambda a: torch.from_numpy(a.astype(dtype).astype("d")), **options)
    of_call: Any = {"cell": drawn[0], "backend": "numpy", "bidirectional": drawn[1]}
    *results, reserve = operators.forward(*given, **of_call, keep=True)
    return [a.numpy() for a in (*results, *operators.backward(*dresults, *given, reserve, **of_call))]


def kernels(counts: Any) -> Any:
    """How often each kernel ran, by itself or in a graph."""
    ran = counts.launches + counts.replayed
    del ran["gemm"]  # counted elsewhere outside of graphs
    return ran


RAGGED = {"lengths": [4, 5, 5]}  # few steps less than the reserve has room for
RESERVED = [
    ("stepwise", "gru_reset_before", "float32", RAGGED | {"dropout": True}),
    ("stepwise", "lstm", "float32", {"dropout": True, "P": 5}),
    ("one_block", "lstm", "float32", RAGGED | {"dropout": True}),
    ("one_block", "gru", "float16", {"dropout": True}),
    ("grid", "lstm", "float16", RAGGED | {"dropout": True}),
    ("grid", "rnn_tanh", "float32", {"dropout": True}),
    ("cluster", "lstm", "float32", RAGGED | {"dropout": True, "H": 24}),
]


@pytest.mark.parametrize(("schedule", "cell", "dtype", "more"), RESERVED)
def test_backward_runs_no_forward(schedule: str, cell: str, dtype: str, more: Any, card: SimpleNamespace) -> None:
    cp = card.cp
    given, dresults = arguments(cell, True, lambda a: OnCard(cp.asarray(a.astype(dtype))), **more)
    options = {"cell": cell, "backend": f"cupy:{schedule}", "bidirectional": True}
    wanted = of_oracle(dtype, cell, True, **more)
    for _ in range(2):  # the second call replays graphs
        with cp.fake.counting() as inference:
            operators.forward(*given, **options, keep=False)
        with cp.fake.counting() as forward:
            *results, reserve = operators.forward(*given, **options, keep=True)
        with cp.fake.counting() as backward:
            results += operators.backward(*dresults, *given, reserve, **options)
        for k, (a, b) in enumerate(zip(results, wanted, strict=True)):
            assert_close(f"result {k}", cp.asnumpy(a.array), b, dtype, "backward")
        of_forward = {name for name in kernels(forward) if "forward" in name or name == "pack_rows"}
        assert {"forward_begin", "forward_end"} < of_forward
        assert of_forward.isdisjoint(kernels(backward) + backward.captured)
        assert not backward.synchronisations
        assert not backward.memcpys["device to host"]
        assert backward.memcpys["host to device"] == (4 if more.get("lengths") else 0)  # the order of ragged rows
        assert kernels(forward) == kernels(inference)
    assert forward.allocations <= inference.allocations


@pytest.mark.parametrize("later", ["grid", "stepwise"])
def test_backward_of_another_schedule(later: str, card: SimpleNamespace) -> None:
    """As where rnnkit.autotune has measured between forward and backward."""
    cp = card.cp
    given, dresults = arguments("lstm", True, lambda a: OnCard(cp.asarray(a)), **RAGGED)
    options = {"cell": "lstm", "bidirectional": True}
    *results, reserve = operators.forward(*given, **options, backend="cupy:one_block", keep=True)
    results += operators.backward(*dresults, *given, reserve, **options, backend=f"cupy:{later}")
    for k, (a, b) in enumerate(zip(results, of_oracle("float32", "lstm", True, **RAGGED), strict=True)):
        assert_close(f"result {k}", cp.asnumpy(a.array), b, "float32", "backward")


def test_layers_at_once_save_in_the_reserve(card: SimpleNamespace) -> None:
    from tests.cuda.test_cupy_overlap import planned

    cp = card.cp
    more: Any = RAGGED | {"dropout": True}
    given, dresults = arguments("gru", False, lambda a: OnCard(cp.asarray(a)), **more)
    options = {"cell": "gru", "backend": "cupy:one_block", "bidirectional": False}
    with planned(2, 2):
        *results, reserve = operators.forward(*given, **options, keep=True)
        steps = {launch.stream for launch in cp.fake.launches if launch.name == "forward_chunk"}
        results += operators.backward(*dresults, *given, reserve, **options)
        steps_back = {launch.stream for launch in cp.fake.launches if launch.name == "backward_chunk"}
    assert len(steps) == len(steps_back) == 2
    for k, (a, b) in enumerate(zip(results, of_oracle("float32", "gru", False, **more), strict=True)):
        assert_close(f"result {k}", cp.asnumpy(a.array), b, "float32", "backward")


@pytest.mark.parametrize("lengths", [None, [3, 5, 0]])
def test_a_traced_reserve_has_the_same_size(lengths: Any, card: SimpleNamespace) -> None:
    """T and B are symbols, and the size says nothing about them."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    options: Any = {"cell": "lstm", "backend": "cupy", "bidirectional": True, "keep": True}
    given, _ = arguments("lstm", True, lambda a: OnCard(card.cp.asarray(a)), lengths=lengths, P=5)
    reserve = operators.forward(*given, **options)[-1]
    symbols = ShapeEnv()
    mode = FakeTensorMode(shape_env=symbols)
    kinds = [DimDynamic.DYNAMIC, DimDynamic.DYNAMIC, DimDynamic.STATIC]
    given, _ = arguments("lstm", True, torch.from_numpy, lengths=lengths, P=5)
    x = mode.from_tensor(given[0], symbolic_context=StatelessSymbolicContext(kinds))
    x.fake_device = torch.device("cuda", 0)
    traced = operators._forward_shapes(x, *given[1:], **options)[-1]
    assert traced.shape[0].node.hint == reserve.numel()
    assert not symbols.guards


def test_work_is_on_pytorchs_stream_and_in_pytorchs_memory(card: SimpleNamespace) -> None:
    cp = card.cp
    x, h0 = OnCard(cp.zeros((4, 2, 3), "f")), OnCard(cp.zeros((1, 2, 5), "f"))
    weights = [OnCard(cp.ones(shape, "f")) for shape in ((15, 3), (15, 5), (15,), (15,))]
    options: Any = {"cell": "gru", "backend": None, "bidirectional": False, "keep": False}
    operators.forward(x, [h0], weights, [], None, **options)  # allocates what stays with the stream
    before = len(card.streams)
    with cp.fake.counting() as counts:
        y, h_n = operators.forward(x, [h0], weights, [], None, **options)
    assert not counts.synchronisations
    assert card.streams[before:]
    assert set(card.streams) == {(0, card.stream.ptr)}
    assert {y.data_ptr(), h_n.data_ptr()} <= set(card.blocks)
    held = len(card.blocks)
    del y, h_n
    assert len(card.blocks) == held - 2  # given back to PyTorch with the tensors


def test_memory_of_the_reverse_direction_is_of_its_own_stream(card: SimpleNamespace) -> None:
    """PyTorch gives freed memory to the next allocation of the same stream, while the other direction still runs."""
    cp = card.cp
    x, h0 = OnCard(cp.zeros((4, 2, 3), "f")), OnCard(cp.zeros((2, 2, 5), "f"))
    weights = [OnCard(cp.ones(shape, "f")) for shape in ((15, 3), (15, 5), (15,), (15,)) * 2]
    options: Any = {"cell": "gru", "backend": "cupy:stepwise", "bidirectional": True, "keep": True}
    lengths = torch.tensor([4, 2])
    operators.forward(x, [h0], weights, [], lengths, **options)
    launched = {launch.stream for launch in cp.fake.launches}
    assert len(launched) == 2
    assert {stream for _, stream in card.streams} == launched


def test_outside_a_call_cupy_is_as_it_was(card: SimpleNamespace) -> None:
    before = card.cp.cuda.get_current_stream().ptr
    with arrays.on_device(OnCard(card.cp.zeros(1, "f"))):
        assert card.cp.cuda.get_current_stream().ptr == card.stream.ptr
        card.cp.empty(8, "f")
    assert card.cp.cuda.get_current_stream().ptr == before
    made = len(card.streams)
    card.cp.empty(8, "f")
    assert len(card.streams) == made


# While PyTorch captures a CUDA graph


@contextmanager
def captured(card: SimpleNamespace) -> Iterator[list[Any]]:
    """As torch.cuda.graph: a capture on a stream of its own. Gives a list, which then has the graph."""
    stream = card.cp.cuda.Stream(non_blocking=True)
    made: list[Any] = []
    card.current.cuda_stream, card.current.capturing = stream.ptr, True
    stream.begin_capture(0)  # "global", PyTorch's default: no cudaMalloc in any thread
    try:
        yield made
    finally:
        made.append(stream.end_capture())
        card.current.cuda_stream, card.current.capturing = card.stream.ptr, False


@pytest.mark.parametrize(
    ("schedule", "cell", "bidirectional"),
    [("stepwise", "gru", True), ("one_block", "lstm", False), ("grid", "lstm", False)],
)
def test_a_captured_call(schedule: str, cell: str, bidirectional: bool, card: SimpleNamespace) -> None:
    """The graph computes with the values of its inputs at each replay. Nothing waits, and all memory is PyTorch's."""
    cp = card.cp
    options = {"cell": cell, "backend": f"cupy:{schedule}", "bidirectional": bidirectional}
    given, dresults = arguments(cell, bidirectional, lambda a: OnCard(cp.asarray(a)))

    def call() -> list[Any]:
        *results, reserve = operators.forward(*given, **options, keep=True)
        return [*results, *operators.backward(*dresults, *given, reserve, **options)]

    call()  # as PyTorch asks before a capture
    made = len(card.streams)
    with cp.fake.counting() as counts, captured(card) as graphs:
        call()
        results = call()
        stream = card.current.cuda_stream
    assert not counts.synchronisations
    assert not counts.memcpys["host to device"]
    assert not counts.launches
    assert not counts.gemms
    assert counts.allocations == len(card.streams) - made
    assert {on for _, on in card.streams[made:]} == {stream}

    from rnnkit.backends.cupy import arena  # that of the stand-in

    assert (0, stream) not in arena._local.arenas  # what a call keeps for the next one would be in the graph's memory

    flat = torch.utils._pytree.tree_leaves
    for seed in (4, 5):
        of_cpu, dof_cpu = arguments(cell, bidirectional, torch.from_numpy, seed)
        on_cpu = options | {"backend": None}
        *wanted, reserve = operators.forward(*of_cpu, **on_cpu, keep=True)
        wanted += operators.backward(*dof_cpu, *of_cpu, reserve, **on_cpu)
        for ours, other in zip(flat((given, dresults)), flat((of_cpu, dof_cpu)), strict=True):
            if ours is not None:
                ours.array[...] = cp.asarray(other.numpy())
        for result in results:
            result.array.fill(np.nan)
        call()  # between replays: neither disturbs the other
        graphs[0].launch(card.stream)
        for k, (a, b) in enumerate(zip(results, wanted, strict=True)):
            assert_close(f"result {k}", cp.asnumpy(a.array), b.numpy(), "float32", "backward")


def test_a_capture_before_any_call_is_refused(card: SimpleNamespace) -> None:
    from rnnkit.backends.cupy import arena

    given, _ = arguments("gru", False, lambda a: OnCard(card.cp.asarray(a)))
    arena._local.__dict__.clear()
    with captured(card), pytest.raises(DeviceError, match="make the same call before"):
        operators.forward(*given, cell="gru", backend="cupy:stepwise", bidirectional=False, keep=False)


def test_lengths_in_a_capture_are_refused(card: SimpleNamespace) -> None:
    """A graph would replay the copy of their order from host memory. Lengths that are all T decide nothing."""
    given, _ = arguments("gru", False, lambda a: OnCard(card.cp.asarray(a)))
    options: Any = {"cell": "gru", "backend": "cupy:stepwise", "bidirectional": False, "keep": False}
    operators.forward(*given, **options)
    for lengths, refused in ((torch.tensor([5, 2, 0]), True), (torch.tensor([5, 5, 5]), False)):
        given[-1] = lengths
        expected = pytest.raises(DeviceError, match="rows of different lengths cannot be captured")
        with captured(card), expected if refused else nullcontext():
            operators.forward(*given, **options)
