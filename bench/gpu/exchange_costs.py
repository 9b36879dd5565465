"""The cost of exchanging data between blocks, by the probes of kernels/cuda: a persistent schedule pays it per step.

A hop is one way from one block to another. An all-gather is one round in which every block writes its slice of a vector
and reads all of it. There are two ways through the L2 cache: data and then a flag (`flag`), or data and round number in
one 64-bit word (`tag`). In a cluster there are three ways: tagged words pushed into the peers' shared memory (`push`),
data pushed by asynchronous stores that an mbarrier counts (`mbarrier`), and data read from the peers' shared memory
after a cluster barrier (`pull`).

Every round is checked, timed or not: a value of another round makes the item "wrong".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.gpu import sync_costs
from bench.gpu.items_file import Item
from bench.gpu.sync_costs import CHECKED, WHOLE, slope

L2_WAYS = ("flag", "tag")
CLUSTER_WAYS = ("push", "mbarrier", "pull")
# 32-bit words of a vector: h at B = 1, H = 512 in float32, and at B = 4, H = 1024 in 16 bits.
VECTORS = (512, 2048)
# Addresses that a hop is measured at: an L2 cache of two partitions has a near and a far one. Words between them, and
# words of a cache line.
PLACES = 4
APART = 8192 + 32
LINE = 32

Launch = Callable[[int], None]


def hop(way: str) -> Item:
    """One way from one multiprocessor to another: median, minimum and maximum over PLACES addresses."""
    import cupy

    lines = cupy.zeros(PLACES * APART + 4 * LINE, np.uint32)
    wrong = cupy.zeros(1, np.uint32)
    kernel = sync_costs.module(cooperative=True).get_function(f"hop_by_{way}")

    def at(place: int) -> Launch:
        here = lines[place * APART :]

        def launch(rounds: int) -> None:
            lines.fill(0)
            kernel((2,), (1,), (here, wrong, np.int32(rounds)))

        return launch

    found = _timed({str(place): at(place) for place in range(PLACES)}, wrong)
    if "status" in found:
        return found
    ways = sorted(us / 2 for us in found.values())
    return {"one_way_us": float(np.median(ways)), "least_us": ways[0], "most_us": ways[-1]}


def all_gather(way: str, members: int, words: int, multiprocessors: int) -> Item:
    """Microseconds per round of one group of `members` blocks, and of as many groups as fit the multiprocessors."""
    import cupy

    groups = max(1, multiprocessors // members)
    wrong = cupy.zeros(1, np.uint32)
    flags = cupy.zeros(groups * -(-members // LINE) * LINE, np.uint32)
    vectors = cupy.zeros(groups * 2 * words, np.uint32 if way == "flag" else np.uint64)
    zeroed, shared = ((flags, vectors), 4 * words) if way == "flag" else ((vectors,), 8 * words)
    kernel = sync_costs.module(cooperative=True).get_function(f"gather_by_{way}")

    def of(many: int) -> Launch:
        def launch(rounds: int) -> None:
            for array in zeroed:
                array.fill(0)
            sizes = (np.int32(words), np.int32(members), np.int32(rounds))
            kernel((many * members,), (sync_costs.BLOCK,), (*zeroed, wrong, *sizes), shared_mem=shared)

        return launch

    found = _timed({"us": of(1), "full_us": of(groups)} if groups > 1 else {"us": of(1)}, wrong)
    return found if "status" in found else {"members": members, "words": words, "groups": groups, **found}


def cluster_hop(way: str, cluster: int) -> Item:
    """One way from block to block of a cluster: a tagged word pushed and sent back, or words pulled over a barrier.

    A pull is a whole all-gather of the least size by a warp of each block: its barrier is of the whole cluster anyway.
    """
    import cupy

    wrong = cupy.zeros(1, np.uint32)
    name = "hop_by_push" if way == "push" else f"gather_by_{way}"
    kernel = sync_costs.cluster_kernel(name, cluster)
    sizes, hops = ((), 2) if way == "push" else ((np.int32(4 * cluster),), 1)

    def launch(rounds: int) -> None:
        kernel((cluster,), (32,), (wrong, *sizes, np.int32(rounds)), shared_mem=WHOLE)

    found = _timed({"us": launch}, wrong)
    return found if "status" in found else {"cluster": cluster, "one_way_us": found["us"] / hops}


def cluster_gather(way: str, cluster: int, words: int, multiprocessors: int) -> Item:
    """Microseconds per round of one cluster, and of as many as run at once with one multiprocessor per block."""
    import cupy

    clusters = sync_costs.resident(cluster, multiprocessors)
    wrong = cupy.zeros(1, np.uint32)
    kernel = sync_costs.cluster_kernel(f"gather_by_{way}", cluster)

    def of(many: int) -> Launch:
        def launch(rounds: int) -> None:
            arguments = (wrong, np.int32(words), np.int32(rounds))
            kernel((many * cluster,), (sync_costs.BLOCK,), arguments, shared_mem=WHOLE)

        return launch

    found = _timed({"us": of(1), "full_us": of(clusters)}, wrong)
    return found if "status" in found else {"cluster": cluster, "words": words, "clusters": clusters, **found}


def _timed(launches: dict[str, Launch], wrong: Any) -> Item:
    """Microseconds per round of each launch; the status "wrong" where any round, timed or not, read a wrong value."""
    for launch in launches.values():
        launch(CHECKED)
    checked = int(wrong.get()[0])
    if checked:
        return {"status": "wrong", "why": f"{checked} values were not those of their round"}
    found: Item = {name: slope(launch)["us"] for name, launch in launches.items()}
    missed = int(wrong.get()[0])
    if missed:
        return {"status": "wrong", "why": f"{missed} values were not those of their round, in a timed launch"}
    return found
