"""The cost of launches, barriers and a flag on a card, by the probes of kernels/cuda/probes.cu and probes_cluster.cu.

A cost is the slope between two numbers of rounds, so it excludes the launch around them. Every probe runs once with its
check on before it is timed: a barrier that lets a block pass early has no time. `bench.gpu.exchange_costs` measures the
exchange of data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from bench.gpu import timing
from bench.gpu.items_file import Item
from bench.worker_pool import ROOT

KERNELS = ROOT / "kernels" / "cuda"
ROUNDS = (200, 2200)
REPEATS = 5
# Rounds of a probe that is checked and not timed.
CHECKED = 7
# Kernels per chain, and threads of a small kernel in it: as a pointwise step of B = 32, H = 256.
CHAIN = 1000
SMALL = 32 * 256
CLUSTERS = (2, 4, 8)
BLOCK = 256
# Shared memory per block that allows one block per multiprocessor, as in a schedule with weights in shared memory.
WHOLE = 120 << 10
# A launch of clusters that takes this many times as long as one cluster ran in two waves.
TWO_WAVES = 1.7


@cache
def module(cooperative: bool = False, cluster: int = 0) -> Any:
    """The probes: of clusters of that size, or the others.

    cooperative: every block of a launch is on the card at once, or the launch is refused.
    """
    import cupy

    files: tuple[str, ...] = ("probes.cuh", "probes.cu")
    options: tuple[str, ...] = ("-std=c++17",)
    if cluster:
        files = ("probes.cuh", "ptx_cluster.cuh", "probes_cluster.cu")
        options = ("-std=c++17", f"-DRK_CLUSTER={cluster}")
    code = "".join(f'#line 1 "{file}"\n{(KERNELS / file).read_text(encoding="utf-8")}\n' for file in files)
    return cupy.RawModule(code=code, options=options, backend="nvrtc", enable_cooperative_groups=cooperative)


def slope(launch: Callable[[int], None]) -> dict[str, float]:
    """Microseconds per round: medians at two numbers of rounds, and the difference over the difference."""
    few, many = (float(np.median(timing.measure(partial(launch, n), 0.0, REPEATS).device)) * 1e3 for n in ROUNDS)
    return {"us": (many - few) / (ROUNDS[1] - ROUNDS[0]), "launch_us": few}


def _meeting(kernel: Any, blocks: int, extra: tuple[Any, ...], reset: Callable[[], None]) -> Item:
    """A probe (…, seen, wrong, rounds) over `blocks` blocks: the barrier alone, and with an exchange per round."""
    import cupy

    seen = cupy.zeros(2 * blocks, np.uint32)
    wrong = cupy.zeros(1, np.uint32)

    def launch(rounds: int, exchange: bool) -> None:
        reset()
        kernel((blocks,), (BLOCK,), (*extra, seen if exchange else np.uint64(0), wrong, np.int32(rounds)))

    launch(CHECKED, True)
    missed = int(wrong.get()[0])
    if missed:
        return {"status": "wrong", "why": f"{missed} blocks saw an earlier round"}
    return {
        "blocks": blocks,
        "alone": slope(lambda rounds: launch(rounds, False)),
        "with_exchange": slope(lambda rounds: launch(rounds, True)),
    }


def grid_sync(blocks: int) -> Item:
    """Cooperative groups' grid.sync() over `blocks` blocks of BLOCK threads."""
    return _meeting(module(cooperative=True).get_function("grid_sync"), blocks, (), lambda: None)


def grid_counter(blocks: int) -> Item:
    """The same barrier by an atomic counter."""
    import cupy

    counter = cupy.zeros(1, np.uint32)
    return _meeting(module(cooperative=True).get_function("grid_counter"), blocks, (counter,), lambda: counter.fill(0))


def flag_handoff() -> Item:
    """The one-way time of a flag from one multiprocessor to another through the L2 cache."""
    import cupy

    flags = cupy.zeros((2, 32), np.uint32)
    wrong = cupy.zeros(1, np.uint32)
    kernel = module(cooperative=True).get_function("flag_handoff")

    def launch(rounds: int) -> None:
        flags.fill(0)
        kernel((2,), (1,), (flags, wrong, np.int32(rounds)))

    launch(CHECKED)
    if int(wrong.get()[0]) or int(flags.get()[1, 0]) != CHECKED:
        return {"status": "wrong", "why": "a flag came out of turn"}
    return {"one_way_us": slope(launch)["us"] / 2}


def cluster_kernel(name: str, cluster: int) -> Any:
    """A cluster kernel that can be launched with WHOLE bytes of shared memory."""
    kernel = module(cluster=cluster).get_function(name)
    kernel.max_dynamic_shared_size_bytes = WHOLE
    return kernel


@cache
def resident(cluster: int, multiprocessors: int) -> int:
    """The number of clusters of such blocks that run at once. With more, the launch takes twice as long."""
    import cupy

    kernel = cluster_kernel("cluster_sync", cluster)
    wrong = cupy.zeros(1, np.uint32)
    arguments = (wrong, np.int32(ROUNDS[1]), np.int32(0))

    def ms(clusters: int) -> float:
        grid = (clusters * cluster,)
        block = (BLOCK,)
        samples = timing.measure(lambda: kernel(grid, block, arguments, shared_mem=WHOLE), 0.0, REPEATS)
        return float(np.median(samples.device))

    one = ms(1)
    most = max(1, multiprocessors // cluster)
    while most > 1 and ms(most) > TWO_WAVES * one:
        most -= 1
    return most


def cluster_sync(cluster: int, multiprocessors: int) -> Item:
    """cluster.sync() of clusters of `cluster` blocks: one cluster, and as many as run at once."""
    import cupy

    wrong = cupy.zeros(1, np.uint32)
    kernel = cluster_kernel("cluster_sync", cluster)

    def launch(rounds: int, clusters: int, exchange: bool) -> None:
        arguments = (wrong, np.int32(rounds), np.int32(exchange))
        kernel((clusters * cluster,), (BLOCK,), arguments, shared_mem=WHOLE)

    launch(CHECKED, 2, True)
    missed = int(wrong.get()[0])
    if missed:
        return {"status": "wrong", "why": f"{missed} blocks saw an earlier round"}
    many = resident(cluster, multiprocessors)
    return {
        "cluster": cluster,
        "resident": many,
        "one": slope(lambda rounds: launch(rounds, 1, False)),
        "all": slope(lambda rounds: launch(rounds, many, False)),
        "all_with_exchange": slope(lambda rounds: launch(rounds, many, True)),
    }


def launches() -> Item:
    """Microseconds per launch in a chain of CHAIN dependent launches: from the host, and in a CUDA graph.

    nothing: an empty kernel. count_up: one thread adds to the previous kernel's result. pass_on: each of SMALL threads
    reads the result of another block of the previous kernel, so the cost includes filling and draining a grid.
    """
    import cupy

    value = cupy.zeros(1, np.uint32)
    vectors = cupy.zeros((2, SMALL), np.uint32)
    n = np.int32(SMALL)
    grid = (SMALL // BLOCK,)
    there = (vectors[0], vectors[1], n)
    back = (vectors[1], vectors[0], n)
    found: Item = {"chain": CHAIN}
    found["nothing"] = _chain("nothing", (1,), 32, ((),))
    found["count_up"] = _chain("count_up", (1,), 32, ((value,),))
    found["pass_on"] = _chain("pass_on", grid, BLOCK, (there, back))
    # Every chain ran a number of times. The counts show whether each of its kernels ran.
    found["counted"] = int(value.get()[0])
    last = vectors[0].get()
    whole = bool((last == last[0]).all()) and all(int(n) and int(n) % CHAIN == 0 for n in (found["counted"], last[0]))
    return {**found, "status": "ok"} if whole else {"status": "wrong", "why": "a kernel of a chain was lost"}


def _chain(name: str, grid: tuple[int, ...], block: int, arguments: Sequence[tuple[Any, ...]]) -> dict[str, float]:
    """A chain of CHAIN launches of one kernel, which cycles through the arguments."""
    import cupy

    kernel = module().get_function(name)

    def chain() -> None:
        for i in range(CHAIN):
            kernel(grid, (block,), arguments[i % len(arguments)])

    chain()
    stream = cupy.cuda.Stream(non_blocking=True)
    timing.wait()
    with stream:
        stream.begin_capture()
        chain()
        graph = stream.end_capture()
    eager = timing.measure(chain, 0.0)
    captured = timing.measure(graph.launch, 0.0)
    return {
        "eager_us": float(np.median(eager.device)) * 1e3 / CHAIN,
        "host_us": eager.host * 1e3 / CHAIN,
        "graph_us": float(np.median(captured.device)) * 1e3 / CHAIN,
    }
