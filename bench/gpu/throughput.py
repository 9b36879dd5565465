"""Throughput beside torch and cuDNN over the grid: python -m bench.gpu.throughput. Parity first, at every point.

Of torch the faster counts, eager or captured into a CUDA graph; rnnkit is called as it is, and makes its own graphs.
Every contender runs over one set of inputs again and again: what fits the L2 cache is read from there, on both sides.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

import torch

from bench.gpu import cudnn, sample, timing
from bench.gpu.card import CLOCKS, smi
from bench.gpu.lines import AGAIN, Item, Lines
from bench.gpu.sides import Ours, Results, Side, Torch, errors, for_check, numbers, torch_device, truth
from bench.grid import FORWARD_BACKWARD, PASSES, Point

# Seconds of timed calls a pass and contender, and how often the contenders take turns.
SECONDS, ROUNDS = 0.03, 2
WALL_CALLS = 5

# A peer so far off is not doing the same work, and is not timed.
PEER_WRONG = 8.0

# Why torch would not be captured, by cell, whether rows are ragged, and whether there is a backward.
REFUSED: dict[tuple[str, bool, bool], str] = {}

# Clocks are read after so many points.
CLOCKS_EVERY = 20


def main(arguments: list[str] | None = None) -> int:
    lines = Lines.from_arguments(__doc__ or "", arguments)
    card = Card.here()
    for i, point in enumerate(sample.ordered()):
        key = f"{point.shape}-{point.dtype}"
        needs = 0.4 + 25 * sample.guessed_seconds(point)
        why = card.too_much(point)
        if why:
            lines.skip(key, why)
            continue
        found = lines.item(key, lambda point=point: measure_point(point, card), needs)
        if found is None:
            continue
        if found["status"] == "failed" and not usable():
            return AGAIN
        forget()
        if i % CLOCKS_EVERY == 0:
            lines.write({"clocks": smi(CLOCKS)})
    return 0


class Card:
    """What of the card decides a point's path and whether it fits."""

    def __init__(self, multiprocessors: int, arch: int, cudnn_version: int, free: float) -> None:
        self.multiprocessors, self.arch, self.cudnn_version, self.free = multiprocessors, arch, cudnn_version, free

    @classmethod
    def here(cls) -> Card:
        import cupy

        device = cupy.cuda.Device()
        free, _ = cupy.cuda.runtime.memGetInfo()
        version = torch.backends.cudnn.version() or 0
        return cls(device.attributes["MultiProcessorCount"], int(device.compute_capability), version, free)

    def too_much(self, point: Point) -> str | None:
        needs = sample.guessed_bytes(point)
        if needs > 0.8 * self.free:
            return f"would take about {needs / 2**30:.0f} GiB of the {self.free / 2**30:.0f} free"
        return None

    def paths(self, point: Point, passes: str) -> list[str]:
        """cuDNN's algorithm of each pass that a call has."""
        ways = (False, True) if passes == FORWARD_BACKWARD else (False,)
        return [cudnn.path(point, way, self.multiprocessors, self.arch, self.cudnn_version) for way in ways]


def usable() -> bool:
    """Whether the CUDA context still works: after an illegal access every call fails, whoever makes it."""
    try:
        timing.wait()
        if torch_device() == "cuda":
            torch.cuda.synchronize()
    except Exception:  # CuPy's error, torch's error
        return False
    return True


def forget() -> None:
    """Gives back what the last point held."""
    import cupy

    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    if torch_device() == "cuda":
        torch.cuda.empty_cache()


def measure_point(point: Point, card: Card) -> Item:
    """Both passes of a point, each {"status", ...}; the point's own status is the worst of theirs."""
    cudnn.set_arithmetic(torch, point.dtype)
    n = numbers(point)
    check = for_check(n)
    want, ours, peer = truth(check), Ours(n), Torch(n)
    found: Item = {"point": point.to_dict(), "rows_checked": len(n.rows), "passes": {}}
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
            **measure_pass(ours, peer, errors_of[ours], errors_of[peer], backward),
        }
    bad = {p["status"] for p in found["passes"].values()} - {"ok"}
    return {**found, "status": "wrong" if "wrong" in bad else "ok"}


def worst_error(side: Side, backward: bool, want: Results) -> float:
    """The worst error of the first call and of the third, which rnnkit replays from a graph."""
    call = side.ready(backward)
    worst = 0.0
    for repeat in range(3):
        called = call()
        if repeat != 1:
            worst = max(worst, *errors(side.n, side.results(called), want).values())
    return worst


def measure_pass(ours: Ours, peer: Torch, ours_error: float, peer_error: float, backward: bool) -> dict[str, Any]:
    """Times, where ours are within the tolerances."""
    if not ours_error <= 1:
        return {"status": "wrong", "error": ours_error}
    found: dict[str, Any] = {"status": "ok", "error": ours_error, "torch_error": peer_error}
    contenders = {"ours": ours.ready(backward)}
    if peer_error <= PEER_WRONG:
        contenders["torch_eager"] = peer.ready(backward)
        captured, why = _captured(peer, backward)
        if captured is None:
            found["torch_graph"] = {"why": why}
        else:
            contenders["torch_graph"] = captured
    found |= _times(contenders)
    point, seconds = ours.n.point, found["ours"]["ms"]["median"] / 1e3
    rates = {"sequences_per_s": point.B / seconds, "steps_per_s": point.steps() / seconds}
    return {**found, **rates, "gflops": point.flop() * (3 if backward else 1) / seconds / 1e9}


def _captured(peer: Torch, backward: bool) -> tuple[Any, str]:
    """The pass as a CUDA graph of torch's, or None and why not. What was refused once is not tried again."""
    kind = (peer.n.point.cell, peer.n.point.ragged, backward)
    if kind not in REFUSED:
        try:
            return peer.captured(peer.ready(backward)), ""
        except Exception as error:  # torch's, cuDNN's or CUDA's
            REFUSED[kind] = f"{type(error).__name__}: {error}"[:300]
    return None, REFUSED[kind]


def _times(contenders: dict[str, Any]) -> dict[str, Any]:
    device: dict[str, list[float]] = {name: [] for name in contenders}
    host: dict[str, float] = {}
    for call in contenders.values():
        for _ in range(3):
            call()
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            samples = timing.measure(call, SECONDS)
            device[name] += samples.device
            host[name] = samples.host
    return {
        name: {
            "ms": timing.summary(device[name]),
            "wall_ms": timing.wall(call, WALL_CALLS),
            "host_ms": host[name],
        }
        for name, call in contenders.items()
    }


if __name__ == "__main__":
    sys.exit(main())
