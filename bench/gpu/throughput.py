"""Throughput beside torch and cuDNN over the grid: python -m bench.gpu.throughput. Each point is checked first.

torch is called eagerly and captured into a CUDA graph, and the faster of the two counts. rnnkit is called as users
call it, and makes its graphs itself. The contenders are timed in turn, and their order is reversed in every round.
Every call has the same inputs, so what fits the L2 cache is read from there. Ragged batches are timed with lengths that
repeat and with new lengths at every call, and torch also with batches that are packed before and stay packed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import sys
import warnings
from collections.abc import Callable
from typing import Any

from bench.gpu import items_file as file
from bench.gpu import point_order, timing
from bench.gpu.card import clocks
from bench.gpu.items_file import Item, Lines
from bench.grid import FORWARD_BACKWARD, PASSES, Point

# Seconds of timed calls per pass and contender in a round, and rounds over the contenders.
SECONDS = 0.03
ROUNDS = 2
WALL_CALLS = 5
COUNTED_CALLS = 2

# A peer with a larger error, in tolerances, does not do the same work, and is not timed.
PEER_WRONG = 8.0

# Why torch could not be captured, by cell, whether the batch is ragged, and whether there is a backward.
REFUSED: dict[tuple[str, bool, bool], str] = {}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    file.add_arguments(parser)
    parser.add_argument("--schedule", help="of the CuPy backend, instead of its choice")
    options = parser.parse_args(arguments)
    lines = Lines(options.items, options.part, options.seconds)
    if importlib.util.find_spec("torch") is None:
        lines.skip("torch", "torch is not installed: there is nothing to compare with", "not available")
        return 0
    backend = "cupy" if options.schedule is None else f"cupy:{options.schedule}"
    card = Card.here()
    for i, point in enumerate(point_order.ordered()):
        key = f"{point.shape}-{point.dtype}"
        why = card.too_much(point)
        if why:
            lines.skip(key, why)
            continue
        needs = 0.4 + 25 * point_order.guessed_seconds(point)
        lines.item(key, lambda i=i, point=point: measure_point(point, card, backend, ours_first=i % 2 == 0), needs)
        forget()
    return 0


class Card:
    """The properties of the card that decide cuDNN's algorithm and whether a point fits."""

    def __init__(self, multiprocessors: int, arch: int, cudnn_version: int, free: float) -> None:
        self.multiprocessors = multiprocessors
        self.arch = arch
        self.cudnn_version = cudnn_version
        self.free = free

    @classmethod
    def here(cls) -> Card:
        import cupy
        import torch

        device = cupy.cuda.Device()
        free, _ = cupy.cuda.runtime.memGetInfo()
        version = torch.backends.cudnn.version() or 0
        return cls(device.attributes["MultiProcessorCount"], int(device.compute_capability), version, free)

    def too_much(self, point: Point) -> str | None:
        needs = point_order.guessed_bytes(point)
        if needs > 0.8 * self.free:
            return f"would take about {needs / 2**30:.0f} GiB of the {self.free / 2**30:.0f} free"
        return None

    def paths(self, point: Point, passes: str) -> list[str]:
        """cuDNN's algorithm of each pass that a call has."""
        from bench.gpu import cudnn

        ways = (False, True) if passes == FORWARD_BACKWARD else (False,)
        return [cudnn.path(point, way, self.multiprocessors, self.arch, self.cudnn_version) for way in ways]


def forget() -> None:
    """Frees the memory of the last point."""
    import cupy
    import torch

    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_point(point: Point, card: Card, backend: str = "cupy", ours_first: bool = True) -> Item:
    """Both passes of a point, each {"status", ...}. The point's status is the worse of theirs."""
    import torch

    from bench.gpu import cudnn
    from bench.gpu.inputs import for_check, point_inputs
    from bench.gpu.rnnkit_and_torch import Ours, Torch, truth

    cudnn.set_arithmetic(torch, point.dtype)
    n = point_inputs(point)
    check = for_check(n)
    want = truth(check)
    ours = Ours(n, backend)
    peer = Torch(n)
    found: Item = {"point": point.to_dict(), "rows_checked": len(n.rows), "ours_first": ours_first, "passes": {}}
    for passes in PASSES:
        backward = passes == FORWARD_BACKWARD
        errors_of = {}
        for side in (ours, peer):
            side.use(check)
            errors_of[side] = worst_error(side, backward, want)
            side.use(n)
        found["passes"][passes] = {
            "paths": card.paths(point, passes),
            "flop": point.flop() * (3 if backward else 1),
            **measure_pass(ours, peer, errors_of[ours], errors_of[peer], backward, ours_first),
        }
    bad = {p["status"] for p in found["passes"].values()} - {"ok"}
    return {**found, "clocks": clocks(), "status": "wrong" if "wrong" in bad else "ok"}


def worst_error(side: Any, backward: bool, want: dict[str, Any]) -> float:
    """The worst error of the first call and of the third, which rnnkit replays from a graph."""
    from bench.gpu.inputs import errors

    call = side.ready(backward)
    worst = 0.0
    for repeat in range(3):
        called = call()
        if repeat != 1:
            worst = max(worst, *errors(side.n, side.results(called), want).values())
    return worst


def measure_pass(
    ours: Any, peer: Any, ours_error: float, peer_error: float, backward: bool, ours_first: bool = True
) -> dict[str, Any]:
    """Times, where ours are within the tolerances."""
    if not ours_error <= 1:
        return {"status": "wrong", "error": ours_error}
    point = ours.n.point
    found: dict[str, Any] = {"status": "ok", "error": ours_error, "torch_error": peer_error}
    contenders = {"ours": ours.ready(backward)}
    if point.ragged:
        contenders["ours_fresh"] = ours.ready_fresh(backward)
    if peer_error <= PEER_WRONG:
        contenders["torch_eager"] = peer.ready(backward)
        if point.ragged:
            contenders["torch_fresh"] = peer.ready_fresh(backward)
            contenders["torch_packed"] = peer.ready_packed(backward)
        captured, why = _captured(peer, backward)
        if captured is None:
            found["torch_graph"] = {"why": why}
        else:
            contenders["torch_graph"] = captured
    found |= _times(contenders, ours_first)
    seconds = found["ours"]["ms"]["median"] / 1e3
    rates = {"sequences_per_s": point.B / seconds, "steps_per_s": point.steps() / seconds}
    return {**found, **rates, "gflops": point.flop() * (3 if backward else 1) / seconds / 1e9}


def _captured(peer: Any, backward: bool) -> tuple[Any, str]:
    """torch's pass as a CUDA graph, or None and the reason. A capture that failed once is not tried again."""
    kind = (peer.n.point.cell, peer.n.point.ragged, backward)
    if kind not in REFUSED:
        try:
            return peer.captured(peer.ready(backward)), ""
        except Exception as error:  # torch's, cuDNN's or CUDA's
            REFUSED[kind] = f"{type(error).__name__}: {error}"[:300]
    return None, REFUSED[kind]


def _times(contenders: dict[str, Callable[[], Any]], ours_first: bool) -> dict[str, Any]:
    """Per contender the device time, the host time to launch a call and the wall time; of ours also the launches."""
    device: dict[str, list[float]] = {name: [] for name in contenders}
    host: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders) if ours_first else list(reversed(contenders))
    launched = {}
    for name in order:
        for _ in range(3):
            contenders[name]()
        if name.startswith("ours"):
            launched[name] = count_launches(contenders[name])
    for _ in range(ROUNDS):
        for name in order:
            samples = timing.measure(contenders[name], SECONDS)
            device[name] += samples.device
            host[name].append(samples.host)
        order.reverse()
    return {
        name: {
            "ms": timing.summary(device[name]),
            "wall_ms": timing.wall(call, WALL_CALLS),
            "host_ms": min(host[name]),
            **launched.get(name, {}),
        }
        for name, call in contenders.items()
    }


def count_launches(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call of ours launches: single kernels, graphs and their contents, and why graphs were not used."""
    from rnnkit.backends.cupy import arena

    before = dataclasses.asdict(arena.counts())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(COUNTED_CALLS):
            call()
    after = dataclasses.asdict(arena.counts())
    counts = {name: (after[name] - before[name]) / COUNTED_CALLS for name in after}
    reasons = list(dict.fromkeys(str(warning.message)[:200] for warning in caught))
    if not counts["replays"]:
        reasons.append("no graph was replayed: the steps were launched one by one")
    return {"counts": counts, "fell_back": reasons}


if __name__ == "__main__":
    sys.exit(main())
