"""Loaded modules on the stand-in for CuPy: dynamic shared memory, cooperative launches, clusters; a card's facts; and
counters that stay between calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkit.errors import DeviceError
from tests.cuda.cuda_helpers import cuda
from tests.tools import emulator
from tests.tools.cards import CARDS, simulated

needs_emulator = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))
i32 = np.int32

SOURCE = """
extern "C" __global__ void reversed(float* x) {
  extern __shared__ float staged[];
  staged[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  x[blockIdx.x * blockDim.x + threadIdx.x] = staged[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void meeting(unsigned* arrived, unsigned* seen, unsigned all) {
  if (threadIdx.x) return;
  atomicAdd(arrived, 1u);
  while (atomicAdd(arrived, 0u) < all) __nanosleep(32);
  seen[blockIdx.x] = all;
}

template <int N>
__global__ void add(float* x) { x[threadIdx.x] += N; }

#ifdef CLUSTER
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) clustered(int* x) { x[blockIdx.x] = blockIdx.x; }
#endif
"""


def build(*kernels: Any, cluster: int | None = None) -> Any:
    from rnnkit.backends.cupy.sources import Build, Source

    defines = () if cluster is None else (("CLUSTER", str(cluster)),)
    return Build("planted", (Source("planted.cu", SOURCE),), defines, kernels)


def kernel(name: str, **facts: Any) -> Any:
    from rnnkit.backends.cupy.sources import Kernel

    return Kernel(name, (64, 1, 1), **facts)


@needs_emulator
def test_shared_memory_is_opted_in_to_on_each_device() -> None:
    large = 100 << 10
    with cuda() as cp:
        from rnnkit.backends.cupy import modules

        made = build(kernel("reversed", shared_bytes=large))
        for device in (0, 1, 0):
            with cp.cuda.Device(device):
                x = cp.arange(64, dtype="float32")
                modules.kernels(made)["reversed"]((2,), (32,), (x,))
                want = np.arange(64).reshape(2, 32)[:, ::-1].ravel()
                np.testing.assert_array_equal(x.get(), want)
        assert [launch.shared_mem for launch in cp.fake.launches] == [large] * 3


@needs_emulator
def test_a_launch_may_need_more_shared_memory_than_the_ones_before() -> None:
    with cuda() as cp:
        from rnnkit.backends.cupy import modules

        loaded = modules.kernels(build(kernel("reversed")))["reversed"]
        x = cp.arange(64, dtype="float32")
        for shared in (256, 50 << 10, 227 << 10, 256):
            loaded((2,), (32,), (x,), shared)
        np.testing.assert_array_equal(x.get(), np.arange(64))
        with pytest.raises(cp.cuda.driver.CUDADriverError):
            loaded((2,), (32,), (x,), (227 << 10) + 1)


@needs_emulator
def test_modules_are_cached_per_device_and_have_template_instances() -> None:
    with cuda() as cp:
        from rnnkit.backends.cupy import modules

        made = build(kernel("add<3>"), kernel("add<4>"))
        first = modules.module(made)
        assert modules.module(made) is first
        x = cp.zeros(4, "float32")
        for name in ("add<3>", "add<4>"):
            first.kernels[name]((1,), (4,), (x,))
        np.testing.assert_array_equal(x.get(), np.full(4, 7))
        with cp.cuda.Device(1):
            assert modules.module(made) is not first


@needs_emulator
@pytest.mark.filterwarnings("error")  # CuPy's own warning when it reduces a grid
def test_a_cooperative_launch_that_does_not_fit_the_card_is_refused_before_it_runs() -> None:
    """It would wait for blocks that never start. Shared memory and threads limit what fits."""
    with cuda(**simulated(CARDS["Tesla T4"], MultiProcessorCount=3)) as cp:
        from rnnkit.backends.cupy import modules

        loaded = modules.kernels(build(kernel("meeting", cooperative=True)))["meeting"]
        assert loaded.resident_blocks(64, 0) == 3 * 16
        assert loaded.resident_blocks(512, 0) == 3 * 2
        assert loaded.resident_blocks(64, 33 << 10) == 3
        for blocks in (3, 2):
            arrived, seen = cp.zeros(1, "uint32"), cp.zeros(blocks, "uint32")
            loaded((blocks,), (64,), (arrived, seen, np.uint32(blocks)), 33 << 10)
            np.testing.assert_array_equal(seen.get(), np.full(blocks, blocks))
        before = len(cp.fake.launches)
        for grid, block, shared, words in (
            ((4,), (64,), 33 << 10, "meeting needs 4 blocks at once, and the card holds 3 of 64 threads and 33792"),
            ((7,), (512,), 0, "meeting needs 7 blocks at once, and the card holds 6 of 512 threads"),
            ((2, 4), (512,), 0, "meeting needs 8 blocks"),
        ):
            with pytest.raises(DeviceError, match=words):
                loaded(grid, block, (cp.zeros(1, "uint32"), cp.zeros(8, "uint32"), np.uint32(1)), shared)
        assert len(cp.fake.launches) == before
        assert all(launch.cooperative for launch in cp.fake.launches)


@needs_emulator
def test_clusters_of_more_than_eight_blocks_are_allowed_by_the_kernel() -> None:
    for size in (8, 16):
        with cuda() as cp:
            from rnnkit.backends.cupy import modules

            x = cp.zeros(16, "int32")
            modules.kernels(build(kernel("clustered", cluster=size), cluster=size))["clustered"]((16,), (1,), (x,))
            np.testing.assert_array_equal(x.get(), np.arange(16))
    with cuda() as cp:
        from rnnkit.backends.cupy import modules

        undeclared = modules.kernels(build(kernel("clustered"), cluster=16))["clustered"]
        with pytest.raises(cp.cuda.driver.CUDADriverError, match="clusters of 16"):
            undeclared((16,), (1,), (cp.zeros(16, "int32"),))
    with cuda(**simulated(CARDS["NVIDIA A100-SXM4-80GB"])) as cp:
        from rnnkit.backends.cupy import modules

        loaded = modules.kernels(build(kernel("clustered", cluster=8), cluster=8))["clustered"]
        with pytest.raises(cp.cuda.driver.CUDADriverError, match="no thread-block clusters"):
            loaded((8,), (1,), (cp.zeros(16, "int32"),))


@pytest.mark.parametrize("name", CARDS)
def test_facts_of_a_card(name: str) -> None:
    card = CARDS[name]
    with cuda(**simulated(card)):
        from rnnkit.backends.cupy.card import card_of

        found = card_of(1)
        assert found._replace(clock=card.clock, bandwidth=card.bandwidth) == card
        assert found.clock == pytest.approx(card.clock, rel=1e-3)
        assert found.bandwidth == pytest.approx(card.bandwidth, rel=1e-3)
        assert found.capability == f"{card.arch / 10:.1f}"


@pytest.mark.gpu
def test_facts_of_this_card() -> None:
    from rnnkit.backends.cupy.card import card_of

    found = card_of(0)
    if found.name not in CARDS:
        pytest.skip(f"{found.name} has no row in tests/tools/cards.py")
    want = CARDS[found.name]
    assert found._replace(clock=want.clock, bandwidth=want.bandwidth, l2_bytes=want.l2_bytes) == want
    assert found.l2_bytes == pytest.approx(want.l2_bytes, rel=0.25)
    assert found.clock == pytest.approx(want.clock, rel=0.25)
    assert found.bandwidth == pytest.approx(want.bandwidth, rel=0.05)


def test_counters_are_zero_at_first_and_stay() -> None:
    with cuda() as cp:
        from rnnkit.backends.cupy import arena

        held = arena.current().counters("flags", 64)
        assert not held._memory.get().any()
        held._memory.fill(7)
        assert arena.current().counters("flags", 16) is held
        assert (held._memory.get() == 7).all()
        assert arena.current().counters("other", 16) is not held
        larger = arena.current().counters("flags", 65)
        assert larger.size >= 65
        assert not larger._memory.get().any()
        with cp.cuda.Stream(non_blocking=True):
            assert arena.current().counters("flags", 16) is not larger


def test_epochs_of_counters_are_never_used_twice() -> None:
    with cuda():
        from rnnkit.backends.cupy import arena

        held = arena.current().counters("tags", 16)
        assert [held.epochs(3), held.epochs(1), held.epochs(5)] == [1, 4, 5]
        held._memory.fill(9)
        held._used = arena.MOST_EPOCHS - 4
        assert held.epochs(4) == arena.MOST_EPOCHS - 3
        assert (held._memory.get() == 9).all()
        assert held.epochs(2) == 1, "the tags begin again"
        assert not held._memory.get().any(), "after the memory is cleared"
