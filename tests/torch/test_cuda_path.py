"""The operators on CUDA tensors, with a simulated CuPy: views by DLPack, PyTorch's stream, PyTorch's memory.

PyTorch for the CPU cannot make CUDA tensors. `OnCard` has the methods that rnnkit.torch calls of one, over an array of
the simulated CuPy, whose kernels run in the emulator.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rnnkit.testing import assert_close  # noqa: E402
from rnnkit.torch import arrays, operators  # noqa: E402
from tests.tools import fakecupy  # noqa: E402
from tests.tools.fakecupy import _state  # noqa: E402

pytestmark = pytest.mark.peers


class OnCard:
    """A CUDA tensor, as far as rnnkit.torch uses one."""

    is_cpu = False
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

        def allocate(size: int, device: int, on: int) -> int:
            streams.append((device, on))
            block = memory.allocate(size, on)
            blocks[block.address] = block
            return block.address

        def free(address: int) -> None:
            memory.release(blocks.pop(address), stream.ptr)

        current = SimpleNamespace(cuda_stream=stream.ptr)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current)
        monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", allocate)
        monkeypatch.setattr(torch.cuda, "caching_allocator_delete", free)
        monkeypatch.setattr(torch, "from_dlpack", lambda array: OnCard(cp.from_dlpack(array)))
        yield SimpleNamespace(cp=cp, stream=stream, streams=streams, blocks=blocks)
    operators.choice_of.cache_clear()
    arrays._torch_allocator.cache_clear()


CELLS = ["rnn_tanh", "gru", "gru_reset_before", "lstm"]


@pytest.mark.parametrize("cell", CELLS)
def test_results_are_those_of_the_cpu(cell: str, card: SimpleNamespace) -> None:
    rng = np.random.default_rng(5)
    T, B, I, H, L, D = 5, 3, 4, 6, 2, 2
    G = {"lstm": 4}.get(cell, 3 if cell.startswith("gru") else 1)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    x, lengths = draw(T, B, I), np.array([5, 0, 3])
    state0 = [draw(L * D, B, H) for _ in range(2 if cell == "lstm" else 1)]
    weights = [
        0.4 * draw(*shape)
        for layer in range(L)
        for _ in range(D)
        for shape in ((G * H, D * H if layer else I), (G * H, H), (G * H,), (G * H,))
    ]
    masks = [2 * rng.integers(0, 2, (T, B, D * H)).astype(np.float32)]
    dy, dstate_n = draw(T, B, D * H), [draw(*s.shape) for s in state0]

    def results(put: Any, get: Any) -> list[np.ndarray]:
        of_forward = (put(x), [*map(put, state0)], [*map(put, weights)], [*map(put, masks)], torch.tensor(lengths))
        options = {"cell": cell, "backend": None, "bidirectional": True}
        *forward, reserve = operators.forward(*of_forward, **options, keep=True)
        inference = operators.forward(*of_forward, **options, keep=False)
        backward = operators.backward(put(dy), [*map(put, dstate_n)], *of_forward, reserve, **options)
        return [get(a) for a in (*forward, *inference, *backward)]

    wanted = results(torch.from_numpy, lambda t: t.numpy())
    got = results(lambda a: OnCard(card.cp.asarray(a)), lambda t: card.cp.asnumpy(t.array))
    for k, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert_close(f"result {k}", a, b, "float32", "backward")


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
