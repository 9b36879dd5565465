"""Every feature of the emulator against NumPy, in both modes, with several schedules."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tools.emulator import EmulatorError, Function, Memory, Module, available
from tests.tools.emulator.cases import SCHEDULES, module

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))

F, I, U = np.float32, np.int32, np.uint32


@pytest.fixture(params=("fast", "check"))
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=SCHEDULES, ids=lambda s: "-".join(map(str, s.values())) or "ascending")
def schedule(request: pytest.FixtureRequest) -> dict:
    return request.param


@pytest.fixture
def get(mode: str):
    """The kernel of features.cu by its name."""
    return module("features", mode).get_function


def test_indices_in_three_dimensions(get) -> None:
    grid, block = (2, 3, 2), (4, 2, 3)
    out = np.zeros((12, 24, 8), U)
    stats = get("indices")(grid, block, (out,))
    assert stats.threads == 12 * 24
    for b in range(12):
        for t in range(24):
            thread, place = (t % 4, t // 4 % 2, t // 8), (b % 2, b // 2 % 3, b // 6)
            assert tuple(out[b, t]) == (*thread, *place, t, b * 24 + t)


def test_arguments_of_every_kind(get) -> None:
    shape = np.zeros((), np.dtype([("scale", "f8"), ("n", "i4"), ("pad", "i4")]))
    shape["scale"], shape["n"] = -2.5, -9
    args = (
        F(0.1),
        np.float64(0.1),
        I(-3),
        U(4_000_000_000),
        np.int64(-(2**40)),
        np.bool_(True),
        np.float16(1.5),
        shape[()],
    )
    out = np.zeros(9)
    get("all_kinds")((1,), (1,), (out, *args))
    np.testing.assert_array_equal(out, [F(0.1), 0.1, -3, 4_000_000_000, -(2**40), 1, 1.5, -2.5, -9])


def test_pointers_as_numbers_and_arrays(get) -> None:
    a = np.arange(8, dtype=F)
    memory = Memory()
    memory.add(a.ctypes.data, a.nbytes)
    twice = get("twice_float")
    for pointer in (a, a.ctypes.data, np.uint64(a.ctypes.data)):
        twice((1,), (8,), (pointer,), memory=memory)
    np.testing.assert_array_equal(a, 8 * np.arange(8, dtype=F) + 35)


def test_variables_of_the_module(mode: str) -> None:
    code = module("features", mode).code + "\n// another module\n"
    own = Module(code, ("-DSHIFT=5",), mode)
    out, count = np.zeros(4, F), np.zeros(1, U)
    for _ in range(6):
        own.get_function("module_variables")((1,), (4,), (out,))
    own.get_function("count_of_launches")((1,), (1,), (count,))
    np.testing.assert_array_equal(out, [1, 10, 100, 1000])
    assert count[0] == 6


def test_templates_macros_and_options(get) -> None:
    a, n = np.arange(48, dtype=F), np.arange(8, dtype=I)
    get("add_constant<3, float>")((1,), (48,), (a,))
    get("twice_int")((1,), (8,), (n,))
    np.testing.assert_array_equal(a, np.arange(48) + 3)
    np.testing.assert_array_equal(n, 2 * np.arange(8) + 5)
    with pytest.raises(EmulatorError, match="no extern"):
        get("never_compiled")


def test_static_and_dynamic_shared_memory(get, schedule: dict) -> None:
    a = np.random.default_rng(0).standard_normal((5, 64)).astype(F)
    expected = a[:, ::-1] + np.arange(5, dtype=F)[:, None]
    get("reverse")((5,), (64,), (a,), shared_mem=256, **schedule)
    np.testing.assert_array_equal(a, expected)


def test_block_votes(get, schedule: dict) -> None:
    flags = np.array([[0] * 40, [2] * 40, [1, 0] * 20], I)
    out = np.zeros((3, 3), I)
    get("barrier_votes")((3,), (40,), (flags, out), **schedule)
    np.testing.assert_array_equal(out, [[0, 0, 0], [1, 1, 40], [1, 0, 20]])


def test_named_barriers(get, schedule: dict) -> None:
    a = np.arange(128, dtype=F)
    expected = np.concatenate([np.roll(a[:64], -3), np.roll(a[64:], -6)])
    get("named_barriers")((1,), (128,), (a, I(3)), **schedule)
    np.testing.assert_array_equal(a, expected)


def test_shuffles(get, schedule: dict) -> None:
    v = np.random.default_rng(1).standard_normal((2, 32)).astype(F)
    out = np.zeros((8, 2, 32), F)
    get("shuffles")((1,), (64,), (v, out), **schedule)
    lane = np.arange(32)
    sources = [
        np.full(32, 5),
        lane // 8 * 8 + (lane + 3) % 8,
        lane ^ 9,
        np.where(lane + 3 < 32, lane + 3, lane),
        np.where(lane >= 3, lane - 3, lane),
        np.where(lane % 4 < 3, lane + 1, lane),
    ]
    for row, source in zip(out, sources, strict=False):
        np.testing.assert_array_equal(row, v[:, source])
    np.testing.assert_allclose(out[6], np.broadcast_to(v.sum(1, dtype=np.float64)[:, None], (2, 32)), rtol=1e-6)
    np.testing.assert_array_equal(out[7], v[:, lane // 8 * 8 + 2] + (lane % 8).astype(F))


def _bits(chosen: np.ndarray) -> int:
    return sum(1 << i for i in np.flatnonzero(chosen).tolist())


def test_warp_votes(get, schedule: dict) -> None:
    v = np.random.default_rng(2).integers(0, 8, 32).astype(I)
    out = np.zeros((8, 32), U)
    get("votes")((1,), (32,), (v, out), **schedule)
    odd = v % 2 == 1
    low, high = _bits(odd & (np.arange(32) < 16)), _bits(odd & (np.arange(32) >= 16))
    expected = [_bits(v > 3), (v > 6).any(), 1, [_bits(v == x) for x in v], v.sum(), v.max(), [low] * 16 + [high] * 16]
    for row, want in zip(out, expected, strict=False):
        np.testing.assert_array_equal(row, np.broadcast_to(np.array(want, U), 32))


def test_syncwarp_orders_shared_memory(get, schedule: dict) -> None:
    a = np.arange(128, dtype=F).reshape(4, 32)
    expected = np.roll(a, -3, axis=1)
    get("warp_transpose")((1,), (128,), (a,), **schedule)
    np.testing.assert_array_equal(a, expected)


def test_grid_sync(get, schedule: dict) -> None:
    x, y = np.arange(6 * 32, dtype=F), np.zeros(6 * 32, F)
    expected = np.roll(x, -5 * 32) + 5
    get("grid_rounds")((6,), (32,), (x, y, I(5)), cooperative=True, **schedule)
    np.testing.assert_array_equal(y, expected)


def test_last_block_to_finish(get, schedule: dict) -> None:
    x = np.random.default_rng(3).integers(-9, 9, (7, 64)).astype(F)
    partial, total, counter = np.zeros(7, F), np.zeros(1, F), np.zeros(1, U)
    get("last_block_sums")((7,), (64,), (x, partial, total, counter), **schedule)
    np.testing.assert_array_equal(partial, x.sum(1))
    assert total[0] == x.sum()
    assert counter[0] == 7


def test_flags_between_blocks(get, schedule: dict) -> None:
    data, flags = np.zeros((5, 4, 32), F), np.zeros(4, U)
    get("pipeline_of_blocks")((4,), (32,), (data, flags, I(5)), cooperative=True, **schedule)
    np.testing.assert_array_equal(data, np.arange(1, 6)[:, None, None] * np.arange(1, 5)[:, None] * np.ones(32))


def test_atomics(get, schedule: dict) -> None:
    i, u = np.array([0, 0, -1, 1], I), np.array([2**32 - 1, 0, 0, 0, 0, 0, 0], U)
    f, d, q, olds = np.zeros(1, F), np.zeros(1), np.zeros(1, np.uint64), np.zeros(96, U)
    get("atomics")((3,), (32,), (i, u, f, d, q, olds), **schedule)
    np.testing.assert_array_equal(i, [192, -288, 100, -100])
    np.testing.assert_array_equal(np.sort(olds), 2 * np.arange(96))
    xors = np.bitwise_xor.reduce(np.arange(96))
    np.testing.assert_array_equal(u, [0, 2**32 - 1, xors, 96 % 10, 10 - 96 % 10, 480, 77])
    assert (f[0], d[0], int(q[0])) == (48, 24, 96 << 33)


def test_clusters_and_distributed_shared_memory(get, schedule: dict) -> None:
    out = np.zeros((4, 4, 32), F)  # clusters, ranks, threads
    stats = get("cluster_ring")((4, 4), (32,), (out,), shared_mem=128, **schedule)
    ranks = np.roll(np.arange(4), -1)[:, None]
    np.testing.assert_array_equal(out, np.broadcast_to(1100 * ranks + np.arange(32), (4, 4, 32)))
    assert stats.barriers == 8


def test_asynchronous_copies(get, schedule: dict) -> None:
    a = np.random.default_rng(4).standard_normal((5, 128)).astype(F)
    out = np.zeros_like(a)
    get("copy_pipeline")((1,), (32,), (a, out, I(5)), **schedule)
    expected = a.copy()
    for t in (0, 3):
        expected[t].reshape(32, 4)[:, 2:] = 0
    np.testing.assert_array_equal(out, expected)


def test_mbarriers(get, schedule: dict) -> None:
    a = np.random.default_rng(5).standard_normal((7, 32)).astype(F)
    out = np.zeros_like(a)
    get("mbarrier_ring")((1,), (64,), (a, out, I(7)), **schedule)
    np.testing.assert_array_equal(out, a[:, ::-1])


def _arrivals(function: Function, **schedule) -> np.ndarray:
    order = np.zeros(96, U)
    function((3,), (32,), (np.zeros(1, U), order), **schedule)
    return order


def test_a_seed_determines_the_schedule(get) -> None:
    function = get("arrivals")
    np.testing.assert_array_equal(_arrivals(function), np.arange(96))
    np.testing.assert_array_equal(_arrivals(function, order="descending"), np.arange(96)[::-1])
    one, again, other = (_arrivals(function, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert sorted(one) == list(range(96))
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, np.arange(96))


def test_many_blocks_need_few_switches() -> None:
    """Threads without barriers run one after the other on one fiber."""
    a = np.zeros(200 * 256, F)
    stats = module("features", "fast").get_function("twice_float")((200,), (256,), (a,))
    assert stats.threads == stats.switches == 200 * 256
    np.testing.assert_array_equal(a, np.full(a.size, 5, F))
