"""What the probes of kernels/probes.cu measure: the cost of a launch, of a meeting of blocks, and of a flag.

A cost is the slope between two numbers of rounds, so that the launch around them is not in it. Every probe is run once
with its check switched on before it is timed: a barrier that does not hold has no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu import timing
from bench.gpu.lines import Item
from bench.pool import ROOT

SOURCE = ROOT / "kernels" / "probes.cu"
ROUNDS, REPEATS = (200, 2200), 5
CHAIN = 1000
CLUSTERS = (2, 4, 8)
BLOCK = 256


@cache
def module(cooperative: bool = False, cluster: int = 0) -> Any:
    """The probes. cooperative: every block of a launch is on the card at once, or the launch is refused."""
    import cupy

    options = ("-std=c++17", *((f"-DRK_CLUSTER={cluster}",) if cluster else ()))
    code = Path(SOURCE).read_text(encoding="utf-8")
    return cupy.RawModule(code=code, options=options, backend="nvrtc", enable_cooperative_groups=cooperative)


def _slope(launch: Callable[[int], None], rounds: Sequence[int] = ROUNDS) -> dict[str, float]:
    """Microseconds a round: medians at two numbers of rounds, and the difference over the difference."""
    few, many = (float(np.median(timing.measure(lambda n=n: launch(n), 0.0, REPEATS).device)) * 1e3 for n in rounds)
    return {"us": (many - few) / (rounds[1] - rounds[0]), "launch_us": few}


def _meeting(kernel: Any, blocks: int, extra: tuple[Any, ...], reset: Callable[[], None]) -> Item:
    """A probe of (…, seen, wrong, rounds) over so many blocks: alone, and with something handed over each round."""
    import cupy

    seen, wrong = cupy.zeros(2 * blocks, np.uint32), cupy.zeros(1, np.uint32)

    def launch(rounds: int, exchange: bool) -> None:
        reset()
        kernel((blocks,), (BLOCK,), (*extra, seen if exchange else np.uint64(0), wrong, np.int32(rounds)))

    launch(7, True)
    missed = int(wrong.get()[0])
    if missed:
        return {"status": "wrong", "why": f"{missed} blocks saw an earlier round"}
    return {
        "blocks": blocks,
        "alone": _slope(lambda rounds: launch(rounds, False)),
        "with_exchange": _slope(lambda rounds: launch(rounds, True)),
    }


def grid_sync(blocks: int) -> Item:
    """Cooperative groups' grid.sync() over so many blocks of 256 threads."""
    return _meeting(module(cooperative=True).get_function("grid_sync"), blocks, (), lambda: None)


def grid_counter(blocks: int) -> Item:
    """The same by an atomic counter of our own."""
    import cupy

    counter = cupy.zeros(1, np.uint32)
    return _meeting(module(cooperative=True).get_function("grid_counter"), blocks, (counter,), lambda: counter.fill(0))


def flag_handoff() -> Item:
    """One way of a flag from one multiprocessor to another through the L2 cache."""
    import cupy

    flags, wrong = cupy.zeros((2, 32), np.uint32), cupy.zeros(1, np.uint32)
    kernel = module(cooperative=True).get_function("flag_handoff")

    def launch(rounds: int) -> None:
        flags.fill(0)
        kernel((2,), (1,), (flags, wrong, np.int32(rounds)))

    launch(7)
    if int(wrong.get()[0]) or int(flags.get()[1, 0]) != 7:
        return {"status": "wrong", "why": "a flag came out of turn"}
    return {"one_way_us": _slope(launch)["us"] / 2}


def cluster_sync(cluster: int, multiprocessors: int) -> Item:
    """cluster.sync() of so many blocks, one cluster alone and as many as the card holds."""
    import cupy

    wrong = cupy.zeros(1, np.uint32)
    kernel = module(cluster=cluster).get_function("cluster_sync")

    def launch(rounds: int, clusters: int, exchange: bool) -> None:
        kernel((clusters * cluster,), (BLOCK,), (wrong, np.int32(rounds), np.int32(exchange)))

    launch(7, 2, True)
    missed = int(wrong.get()[0])
    if missed:
        return {"status": "wrong", "why": f"{missed} blocks saw an earlier round"}
    many = max(1, multiprocessors // cluster)
    return {
        "cluster": cluster,
        "one": _slope(lambda rounds: launch(rounds, 1, False)),
        "all": _slope(lambda rounds: launch(rounds, many, False)),
        "all_with_exchange": _slope(lambda rounds: launch(rounds, many, True)),
    }


def launches() -> Item:
    """Microseconds a launch in a chain of CHAIN: one after the other from the host, and in a CUDA graph."""
    import cupy

    value = cupy.zeros(1, np.uint32)
    found: Item = {"chain": CHAIN}
    for name, arguments in (("nothing", ()), ("count_up", (value,))):
        kernel = module().get_function(name)

        def chain(kernel: Any = kernel, arguments: tuple[Any, ...] = arguments) -> None:
            for _ in range(CHAIN):
                kernel((1,), (32,), arguments)

        chain()
        stream = cupy.cuda.Stream(non_blocking=True)
        timing.wait()
        with stream:
            stream.begin_capture()
            chain()
            graph = stream.end_capture()
        replay = graph.launch
        eager, captured = timing.measure(chain, 0.0), timing.measure(replay, 0.0)
        found[name] = {
            "eager_us": float(np.median(eager.device)) * 1e3 / CHAIN,
            "host_us": eager.host * 1e3 / CHAIN,
            "graph_us": float(np.median(captured.device)) * 1e3 / CHAIN,
        }
    # A chain ran once by itself, then in each of the calls above: none may be lost.
    found["counted"] = int(value.get()[0])
    return {**found, "status": "ok" if found["counted"] % CHAIN == 0 and found["counted"] else "wrong"}
