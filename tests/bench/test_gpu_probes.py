"""The probes of kernels/cuda/probes.cu and probes_cluster.cu in the emulator's check mode, also with planted faults."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from tests.helpers import slow_except

PROBES: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "launches": lambda barriers, hops: barriers.launches(),
    "grid.sync": lambda barriers, hops: barriers.grid_sync(4),
    "grid counter": lambda barriers, hops: barriers.grid_counter(4),
    "flag handoff": lambda barriers, hops: barriers.flag_handoff(),
    "hop flag": lambda barriers, hops: hops.hop("flag"),
    "hop tag": lambda barriers, hops: hops.hop("tag"),
    "all-gather flag": lambda barriers, hops: hops.all_gather("flag", 4, 64, 8),
    "all-gather tag": lambda barriers, hops: hops.all_gather("tag", 3, 64, 8),
    "cluster.sync": lambda barriers, hops: barriers.cluster_sync(4, 8),
    "DSMEM hop push": lambda barriers, hops: hops.cluster_hop("push", 4),
    "DSMEM hop pull": lambda barriers, hops: hops.cluster_hop("pull", 4),
    "DSMEM push": lambda barriers, hops: hops.cluster_gather("push", 4, 64, 8),
    "DSMEM mbarrier": lambda barriers, hops: hops.cluster_gather("mbarrier", 4, 64, 8),
    "DSMEM pull": lambda barriers, hops: hops.cluster_gather("pull", 4, 64, 8),
}
SCHEDULES: tuple[dict[str, Any], ...] = ({}, {"order": "descending"}, {"seed": 1}, {"seed": 2})


@contextmanager
def checked(schedule: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Runs the emulator in check mode with a schedule. Yields the modules that run the probes."""
    from bench.gpu import exchange_costs, sync_costs
    from tests.tools import fakecupy

    with fakecupy.installed(mode="check", attributes={"MultiProcessorCount": 8}) as cupy:
        cupy.fake.launch_options.update(schedule)
        sync_costs.module.cache_clear()
        yield sync_costs, exchange_costs


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_probes_have_no_race(card: Any, schedule: dict[str, Any]) -> None:
    with checked(schedule) as modules:
        for name, run in PROBES.items():
            assert run(*modules).get("status", "ok") == "ok", name


@pytest.mark.parametrize(("block", "words", "members"), [(256, 2048, 8), (32, 512, 7), (64, 48, 24)])
def test_gathers_of_all_sizes(card: Any, block: int, words: int, members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several loads per thread, in several batches; slices of different lengths; as many slices as pairs."""
    from bench.gpu import exchange_costs, sync_costs

    monkeypatch.setattr(sync_costs, "BLOCK", block)
    for way in exchange_costs.L2_WAYS:
        assert exchange_costs.all_gather(way, members, words, 2 * members).get("groups") == 2
    for way in exchange_costs.CLUSTER_WAYS:
        assert exchange_costs.cluster_gather(way, 4, words, 4).get("words") == words


@pytest.mark.parametrize(("arch", "cluster"), [(75, 0), (90, 0), (90, 2), (90, 8)])
def test_probes_compile_without_spills(arch: int, cluster: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import sync_costs
    from tests.tools.build_report import nvrtc

    if reason := nvrtc.unavailable():
        pytest.skip(reason)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=SimpleNamespace))
    probes = sync_costs.module.__wrapped__(cluster=cluster)
    report = nvrtc.compile_module(probes.code, probes.options, arch)
    assert len(report.kernels) == (5 if cluster else 10)
    for name, usage in report.kernels.items():
        assert (usage.stack, usage.spill_stores, usage.spill_loads) == (0, 0, 0), name
    assert not any(report.facts)
    assert report.warnings == ()


def test_small_program_launches_every_probe(card: Any) -> None:
    """So that compute-sanitizer checks each of them."""
    from bench.gpu import every_kernel, sync_costs
    from tests.tools import emulator

    with card.fake.counting() as counts:
        every_kernel.probe()
    modules = (sync_costs.module(), sync_costs.module(cluster=2))
    kernels = {name for m in modules for name in emulator.Module(m.code, options=m.options).kernels}
    assert len(kernels) == 15
    assert kernels == set(counts.launches)


class Fault(NamedTuple):
    """A bug in a file of the probes: after `after`, replaces `old` by `new`. kinds: of the emulator's errors."""

    probe: str
    file: str
    after: str
    old: str
    new: str
    kinds: tuple[str, ...] = ("wrong",)


COMMON = "probes.cuh"
GRID = "probes.cu"
CLUSTER = "probes_cluster.cu"
NO_ORDER = ("wrong", "race")
FAULTS = {
    "a chain's kernel does not read": Fault("launches", GRID, "pass_on(", "from[(i + blockDim.x) % n] + 1", "1"),
    "no grid.sync": Fault("grid.sync", GRID, " grid_sync(", "grid.sync();", "", NO_ORDER),
    "no wait for the counter": Fault(
        "grid counter", GRID, "grid_counter(", "(unsigned)round * gridDim.x", "0u", NO_ORDER
    ),
    "a flag too early": Fault(
        "flag handoff", GRID, "flag_handoff(", "store_release(mine, round)", "store_release(mine, round + 1)"
    ),
    "a hop's flag is no release": Fault(
        "hop flag", COMMON, "", "emulator::store_release(p, v)", "emulator::store_relaxed(p, v)", ("race",)
    ),
    "a hop's flag is no acquire": Fault(
        "hop flag", COMMON, "", "emulator::load_acquire(p)", "emulator::load_relaxed(p)", ("race",)
    ),
    "a hop does not wait": Fault(
        "hop flag", GRID, "hop_by_flag(", "has_come(load_acquire(other), round)", "true", NO_ORDER
    ),
    "a hop's tag is not compared": Fault("hop tag", COMMON, "", "return (int)(tag - round) >= 0;", "return true;"),
    "flags are no releases": Fault(
        "all-gather flag", COMMON, "", "emulator::store_release(p, v)", "emulator::store_relaxed(p, v)", ("race",)
    ),
    "flags are not waited for": Fault(
        "all-gather flag", GRID, "gather_by_flag(", "has_come(load_acquire(flags + m), round)", "true", NO_ORDER
    ),
    "flags, one buffer": Fault("all-gather flag", GRID, "gather_by_flag(", "(round & 1) * pairs", "0", NO_ORDER),
    "flags, no barrier before the release": Fault(
        "all-gather flag", GRID, "last.y + 1);\n    }\n", "    __syncthreads();\n", "", NO_ORDER
    ),
    "tags are not compared": Fault("all-gather tag", COMMON, "", "return (int)(tag - round) >= 0;", "return true;"),
    "tags, one buffer": Fault("all-gather tag", GRID, "gather_by_tag(", "vectors + round % 2 * pairs", "vectors"),
    "tags, no barrier of the block": Fault(
        "all-gather tag",
        GRID,
        "gather_by_tag(",
        "        patience);\n    __syncthreads();\n",
        "        patience);\n",
        NO_ORDER,
    ),
    "tags, one buffer of the block": Fault(
        "all-gather tag", GRID, "gather_by_tag(", "seen + round % 2 * pairs", "seen", NO_ORDER
    ),
    "no first cluster.sync": Fault(
        "cluster.sync", CLUSTER, "cluster_sync(", "  cluster.sync();  // a peer", "  // a peer", ("cluster",)
    ),
    "no cluster.sync": Fault(
        "cluster.sync", CLUSTER, "theirs[round & 1] = round;\n", "    cluster.sync();\n", "", NO_ORDER
    ),
    "a push is not waited for": Fault("DSMEM hop push", COMMON, "", "return (int)(tag - round) >= 0;", "return true;"),
    "no cluster.sync before a push": Fault(
        "DSMEM hop push", CLUSTER, "slot = 0;\n", "  cluster.sync();\n", "", ("cluster",)
    ),
    "pushed tags are not compared": Fault("DSMEM push", COMMON, "", "return (int)(tag - round) >= 0;", "return true;"),
    "pushed, one buffer": Fault(
        "DSMEM push", CLUSTER, "gather_by_push(", "inbox + round % 2 * pairs", "inbox + pairs", ("wrong", "deadlock")
    ),
    "bytes are not waited for": Fault(
        "DSMEM mbarrier", CLUSTER, "", "phase_ended(barrier, parity);", "true;", (*NO_ORDER, "barrier")
    ),
    "a barrier of too few bytes": Fault(
        "DSMEM mbarrier",
        CLUSTER,
        "",
        "expect_bytes(barrier, words * 4)",
        "expect_bytes(barrier, words * 4 - 16)",
        ("deadlock", "barrier", "race"),
    ),
    "bytes, no barrier of the block": Fault(
        "DSMEM mbarrier",
        CLUSTER,
        "go on to write it.\n",
        "    __syncthreads();\n",
        "",
        ("wrong", "race", "deadlock", "barrier"),
    ),
    "no cluster.sync before a pull": Fault(
        "DSMEM pull", CLUSTER, "gather_by_pull(", "    cluster.sync();\n    Share", "    Share", ("cluster", "race")
    ),
    "a block leaves while it is read": Fault(
        "DSMEM pull", CLUSTER, "missed += read_quads(v, load, vector);\n", "  cluster.sync();\n", "", ("cluster",)
    ),
    "pulled, one buffer": Fault(
        "DSMEM pull", CLUSTER, "gather_by_pull(", "shared_memory + round % 2 * each", "shared_memory", NO_ORDER
    ),
}


@pytest.mark.parametrize("name", slow_except(FAULTS, *list(FAULTS)[::7]))
def test_a_wrong_probe_is_not_timed(card: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one of the schedules it is "wrong" or the emulator reports an error, and it never has a time."""
    from bench.gpu import sync_costs
    from tests.tools.emulator import EmulatorError

    fault = FAULTS[name]
    for file in (COMMON, GRID, "ptx_cluster.cuh", CLUSTER):
        text = (sync_costs.KERNELS / file).read_text(encoding="utf-8")
        if file == fault.file:
            head, mark, tail = text.partition(fault.after) if fault.after else ("", "", text)
            assert fault.old in tail, "the text to replace was not found"
            text = head + mark + tail.replace(fault.old, fault.new, 1)
        (tmp_path / file).write_text(text, encoding="utf-8")
    monkeypatch.setattr(sync_costs, "KERNELS", tmp_path)
    seen = []
    for schedule in SCHEDULES:
        with checked(schedule) as modules:
            try:
                found = PROBES[fault.probe](*modules)
            except EmulatorError as error:
                seen.append(error.kind)
            else:
                seen.append(found.get("status", "ok"))
                assert seen[-1] == "ok" or set(found) == {"status", "why"}
    assert set(seen) & set(fault.kinds), seen
