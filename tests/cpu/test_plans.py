"""How calls are divided over threads: the rates of each family of processors, and the division for 1 to 64 threads.

Nothing here is timed. The plan's estimates are compared with each other, for processors that the machine does not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise, product
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.numba import estimate, host, plan, prepared
from rnnkit.backends.numba.plan import Work, division, divisions, most_units, plan_for, threads_of
from rnnkit.backends.ragged import packing
from rnnkit.core.cells import CELLS
from rnnkit.kernels.cpu.jit import entry
from rnnkit.kernels.cpu.rows import row_functions
from rnnkit.kernels.cpu.simd import vectors

K, M = 1 << 10, 1 << 20

# LLVM's name, bytes of a vector, caches as the system reports them, the row of the table, and the divisions of the
# calls of CHOSEN on 2 and on 8 threads, as groups x members.
HOSTS = [
    ("znver2", 32, (32 * K, 512 * K, 16 * M), "amd-zen2", "1x2 1x8, 2x1 2x4, 2x1 8x1, 2x1 2x4, 2x1 8x1"),
    ("znver3", 32, (32 * K, 512 * K, 32 * M), "amd-zen2", "1x2 1x8, 2x1 2x4, 2x1 8x1, 2x1 8x1, 2x1 8x1"),
    ("znver4", 64, (32 * K, 1 * M, 32 * M), "amd-zen4", "1x2 1x8, 2x1 2x4, 2x1 8x1, 2x1 8x1, 2x1 8x1"),
    ("znver5", 64, (48 * K, 1 * M, 32 * M), "amd-zen5", "1x2 1x8, 1x2 1x8, 2x1 4x2, 2x1 4x2, 2x1 4x2"),
    ("skylake-avx512", 64, (32 * K, 1 * M, 33 * M), "intel-skylake-x", "1x2 1x8, 1x2 1x8, 1x2 2x4, 1x2 1x8, 1x2 4x2"),
    ("cascadelake", 64, (32 * K, 1 * M, 36 * M), "intel-skylake-x", "1x2 1x8, 1x2 1x8, 1x2 2x4, 1x2 1x8, 1x2 4x2"),
    (
        "icelake-server", 64, (48 * K, 1280 * K, 54 * M), "intel-skylake-x",
        "1x2 1x8, 1x2 1x8, 1x2 2x4, 1x2 1x8, 1x2 4x2",
    ),
    (
        "sapphirerapids", 64, (48 * K, 2 * M, 105 * M), "intel-sapphire-rapids",
        "1x2 1x8, 1x2 2x4, 1x2 4x2, 1x2 1x8, 2x1 8x1",
    ),
    (
        "emeraldrapids", 64, (48 * K, 2 * M, 260 * M), "intel-sapphire-rapids",
        "1x2 1x8, 1x2 2x4, 1x2 4x2, 1x2 1x8, 2x1 8x1",
    ),
    (
        "graniterapids", 64, (48 * K, 2 * M, 432 * M), "intel-sapphire-rapids",
        "1x2 1x8, 1x2 2x4, 1x2 4x2, 1x2 1x8, 2x1 8x1",
    ),
    ("haswell", 32, (32 * K, 256 * K, 8 * M), "intel-core", "1x2 1x8, 1x2 1x8, 2x1 4x2, 2x1 2x4, 2x1 4x2"),
    ("raptorlake", 32, (48 * K, 2 * M, 36 * M), "intel-core", "1x2 1x8, 1x2 2x4, 2x1 4x2, 2x1 4x2, 2x1 8x1"),
    ("neoverse-n1", 16, (64 * K, 1 * M, 32 * M), "arm-neoverse", "1x2 1x8, 1x2 1x8, 2x1 4x2, 2x1 4x2, 2x1 4x2"),
    ("neoverse-v1", 16, (64 * K, 1 * M, 32 * M), "arm-neoverse", "1x2 1x8, 1x2 1x8, 2x1 4x2, 2x1 4x2, 2x1 4x2"),
    ("neoverse-v2", 16, (64 * K, 2 * M, 36 * M), "arm-neoverse", "1x2 1x8, 1x2 2x4, 2x1 4x2, 2x1 4x2, 2x1 8x1"),
    ("apple-m1", 16, (0, 0, 0), "apple", "1x2 1x8, 2x1 2x4, 2x1 8x1, 2x1 8x1, 2x1 8x1"),
    ("riscv-of-tomorrow", 64, (0, 0, 0), "unknown", "1x2 1x8, 2x1 2x4, 2x1 8x1, 2x1 8x1, 2x1 8x1"),
    ("core2", 16, (0, 0, 0), "unknown", "1x2 1x8, 2x1 8x1, 2x1 8x1, 2x1 8x1, 2x1 8x1"),
]  # fmt: skip
CHOSEN = [("lstm", 1, 512), ("lstm", 8, 512), ("gru", 32, 512), ("lstm", 32, 1024), ("lstm", 32, 256)]  # cell, B, H

THREADS = range(1, 65)
GRID = list(product(("rnn_tanh", "gru_reset_before", "lstm"), (1, 64), (1, 3, 8, 37, 128), (24, 100, 256, 512, 1024)))


def work_of(cell: str, T: int, B: int, H: int, dtype: str = "float32", P: int = 0, N: int | None = None) -> Work:
    return Work(CELLS[cell], dtype, T, B, H, H, P or H, T * B if N is None else N, bool(P))


def use_host(patch: pytest.MonkeyPatch, chosen: host.Host) -> None:
    for module in (plan, estimate):
        patch.setattr(module, "host", lambda: chosen)


@pytest.mark.parametrize(("processor", "width", "caches", "row", "chosen"), HOSTS, ids=[h[0] for h in HOSTS])
def test_the_rates_and_the_division_of_each_family(processor, width, caches, row, chosen, monkeypatch) -> None:
    found = host.choose(processor, width, caches)
    use_host(monkeypatch, found)
    assert found.rates.name == row
    assert found.flop == found.rates.flop[width]
    divided = [[division(work_of(cell, 64, B, H), threads) for threads in (2, 8)] for cell, B, H in CHOSEN]
    assert ", ".join(" ".join(f"{g}x{m}" for g, m in pair) for pair in divided) == chosen
    assert ("assumed" in found.why) == (row not in ("amd-zen4", "intel-sapphire-rapids"))
    assert ("as the system reports them" in found.why) == (0 not in caches)


def test_every_processor_is_in_one_row() -> None:
    names = [name for row in host.RATES.values() for name in row.processors]
    assert len(names) == len(set(names)) > 30
    for row in host.RATES.values():
        assert [*row.flop.values()] == sorted(row.flop.values(), reverse=True)
        assert set(row.flop) <= {16, 32, 64}


def test_caches_of_the_system_replace_those_of_the_row() -> None:
    row = host.RATES["amd-zen2"]
    found = host.choose("znver2", 32, (0, 256 * K, 4 * M))
    assert found.caches == (row.caches[0], 256 * K, 4 * M)
    assert found.read_us(192 * K, 192 * K) == 192 * K / row.read[1]
    assert found.read_us(192 * K + 4, 192 * K + 4) == (192 * K + 4) / row.read[2]
    # The third level is shared: what the threads read together must fit.
    assert found.read_us(2 * M, 2.5 * M) == 2 * M / row.read[2]
    assert found.read_us(2 * M, 2.5 * M + 4) == 2 * M / row.read[3]
    assert found.read_us(1 * K, 100 * M) == 1 * K / row.read[0]


def test_caches_are_read_from_the_system(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda _: {5, 3}, raising=False)
    files = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"), ("3", "Unified", "1G")]
    for k, values in enumerate(files):
        folder = tmp_path / f"sys/devices/system/cpu/cpu3/cache/index{k}"
        folder.mkdir(parents=True)
        for name, value in zip(("level", "type", "size"), values, strict=True):
            (folder / name).write_text(value + "\n")
    assert host.system_caches(tmp_path) == (48 * K, 2 * M, 1 << 30)
    folder = tmp_path / "sys/devices/system/cpu/cpu3/cache"
    (folder / "index2/size").write_text("many\n")
    (folder / "index3/size").unlink()
    assert host.system_caches(tmp_path) == (48 * K, 0, 0)
    assert host.system_caches(tmp_path / "nowhere") == (0, 0, 0)
    assert host.system_caches(Path("/"))[0] >= 0


@pytest.fixture
def unread_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    host.host.cache_clear()
    prepared.forget()
    yield monkeypatch
    monkeypatch.undo()
    host.host.cache_clear()
    prepared.forget()


def test_a_variable_names_the_row_and_explain_says_so(unread_host) -> None:
    layer, x = rnnkit.LSTM(8, 512, backend="numba", rng=0), np.zeros((4, 8, 8), np.float32)
    before = rnnkit.explain(layer, x)
    assert before.rates == host.host().why
    assert f"rates     {before.rates}" in str(before)
    unread_host.setenv("RNNKIT_CPU_RATES", " amd-zen5 ")
    host.host.cache_clear()
    explained = rnnkit.explain(layer, x)
    assert explained.rates.startswith("amd-zen5 (AMD Zen 5; assumed): named by RNNKIT_CPU_RATES; caches ")
    assert rnnkit.explain(rnnkit.LSTM(8, 512, backend="numpy"), x).rates is None


def test_a_row_that_does_not_exist_is_refused_before_anything_runs(unread_host) -> None:
    layer, x = rnnkit.GRU(8, 16, backend="numba", rng=0), np.zeros((4, 2, 8), np.float32)
    unread_host.setenv("RNNKIT_CPU_RATES", "zen4")
    message = "^RNNKIT_CPU_RATES must be one of amd-zen2, .*, unknown, got 'zen4'$"
    for call in (host.host, lambda: layer(x), lambda: rnnkit.explain(layer, x)):
        with pytest.raises(ValueError, match=message):
            call()


# Up to 64 threads, simulated


@cache
def three_hosts() -> tuple[host.Host, ...]:
    sizes = {"znver4": (32 * K, 1 * M, 32 * M), "emeraldrapids": (48 * K, 2 * M, 260 * M), "neoverse-v1": (0, 0, 0)}
    return tuple(host.choose(name, 16 if "neo" in name else 64, caches) for name, caches in sizes.items())


def estimated(work: Work, chosen: tuple[int, int]) -> float:
    groups, members = chosen
    return estimate.shared_us(work, groups, most_units(work, members), members)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", range(3), ids=["zen4", "emerald rapids", "neoverse"])
def test_more_threads_are_never_estimated_slower(number, dtype, monkeypatch) -> None:
    use_host(monkeypatch, three_hosts()[number])
    for cell, T, B, H in GRID:
        work = work_of(cell, T, B, H, dtype)
        chosen = [division(work, threads) for threads in (*range(1, 17), 24, 32, 48, 64)]
        times = [estimated(work, one) for one in chosen]
        assert all(later <= earlier for earlier, later in pairwise(times)), (work, times)
        assert chosen[0] == (1, 1)
        assert times[0] == estimate.call_us(work)


def test_every_thread_has_a_balanced_share(monkeypatch) -> None:
    use_host(monkeypatch, three_hosts()[0])
    widest = 1
    for (cell, T, B, H), threads in product(GRID, (2, 3, 4, 6, 8, 12, 16, 32, 64)):
        work = work_of(cell, T, B, H)
        p = packing(T, B, None)
        made = plan_for(work, p, threads, False, False, False)
        assert made.groups * made.members == threads_of(work, threads) <= threads
        rows, lanes = np.diff(made.rows), vectors(work.dtype).lanes
        assert rows.min() >= 1
        assert rows.max() - rows.min() <= 1
        units = np.diff([first_unit(H, made.members, k) for k in range(made.members + 1)])
        assert units.min() >= 1
        assert units.max() == most_units(work, made.members)
        assert ceil(units.max() / lanes) == ceil(ceil(H / lanes) / made.members)
        widest = max(widest, made.groups * made.members)
    assert widest == 64


@cache
def _compiled_first_unit() -> Any:
    first = row_functions("float32").first_unit

    @entry(("test", "first_unit", "float32"))
    def of_kernels(width, members, member):
        return first(width, members, member)

    return of_kernels


def first_unit(width: int, members: int, member: int) -> int:
    """Where the kernels begin a member's share of the units."""
    return int(_compiled_first_unit()(width, members, member))


def test_the_largest_group_decides_the_time() -> None:
    three, four = (estimate.step_us(work_of("lstm", 64, B, 256), 2, 256, 1) for B in (3, 4))
    assert three == four
    ragged = work_of("lstm", 64, 4, 256, N=64 * 3)
    assert estimate.step_us(ragged, 2, 256, 1) < four


def test_a_choice_for_more_threads_is_at_hand_for_fewer() -> None:
    # So a call that gets only as many threads as its plan uses, gets that plan.
    for (cell, T, B, H), threads in product(GRID, (5, 16, 64)):
        work = work_of(cell, T, B, H)
        chosen = division(work, threads)
        assert division(work, chosen[0] * chosen[1]) == chosen
        assert set(divisions(work, threads - 1)) <= set(divisions(work, threads))


def test_small_calls_use_few_threads() -> None:
    assert division(work_of("lstm", 1, 1, 32), 64) == (1, 1)
    groups, members = division(work_of("rnn_tanh", 64, 4, 32), 64)
    assert groups * members <= 8


@pytest.mark.parametrize("lengths", [[64] + [1] * 31, [64, 0, 0, 0], [64] * 3 + [2, 1], list(range(1, 65))], ids=str)
def test_every_group_of_a_ragged_batch_has_rows(lengths) -> None:
    p = packing(64, len(lengths), np.array(lengths))
    for groups in range(1, len(lengths) + 1):
        bounds = p.bounds(groups)
        assert len(bounds) == groups + 1
        assert (bounds[0], bounds[-1]) == (0, len(lengths))
        assert min(np.diff(bounds)) >= 1, bounds
    work = work_of("gru", 64, len(lengths), 256, N=sum(lengths))
    for threads in (2, 8, 64):
        made = plan_for(work, p, threads, False, False, False)
        assert made.groups * made.members == threads_of(work, threads) <= threads
        assert min(np.diff(made.rows)) >= 1
