"""The predicted time of a schedule's steps: a model fed by a card's facts and by the latencies below.

No constant was measured by rnnkit: each is PREDICTED from the source beside it, until `make gpu` has written the card's
own figures to bench/results/<card>/gpu.json, which `rates_of` then reads. What all schedules share, the products of x
before the steps and of the weights' gradients after them, is left out: it decides nothing. What a schedule does once
per call is part of it, and decides for few steps.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import rnnkit
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.core.cells import Cell
from rnnkit.core.dtypes import DType

RESULTS = Path(rnnkit.__file__).resolve().parents[1] / "bench" / "results"

# PREDICTED: cuBLAS's and a pointwise kernel's least duration. FlashRNN (arXiv 2412.07752), Haste and cuDNN's
# non-persistent kernels take 6 to 9 us per step with two or three of them on an H100.
PRODUCT_SECONDS = 3.0e-6
POINTWISE_SECONDS = 2.0e-6

# PREDICTED: clocks of tanh and exp in float32 one after the other, with the loads and the two barriers around them; and
# of one mma.sync m16n8k16 that waits for the one before it (24, by microbenchmarks of Ampere and Hopper).
ACTIVATION_CLOCKS = 250
MMA_CLOCKS = 24
MMA_BYTES = 32  # of a row's K that one mma multiplies
FMA_CLOCKS = 4

# PREDICTED: share of the peak that mma.sync reaches: 63% on Hopper, whose full rate needs wgmma.
MMA_SHARE = 0.63

# Bytes of shared memory that a multiprocessor reads per clock. CUDA C++ Programming Guide.
SHARED_BYTES_PER_CLOCK = 128

# PREDICTED: bytes per clock that a multiprocessor receives from others through distributed shared memory.
# Microbenchmarks of an H100 (arXiv 2402.13499) found 3.3 TB/s over all multiprocessors in clusters of 2 blocks, and
# less in larger ones.
PUSHED_BYTES_PER_CLOCK = 12

# FLOP per clock of a multiprocessor, dense: NVIDIA's white papers. By compute capability: float64, float32, TF32 and 16
# bits; 0 where the units are missing.
FLOP_PER_CLOCK = {
    70: (64, 128, 0, 1024),
    75: (4, 128, 0, 1024),
    80: (128, 128, 1024, 2048),
    86: (4, 256, 256, 512),
    89: (4, 256, 512, 1024),
    90: (256, 256, 2048, 4096),
    100: (128, 256, 4096, 8192),
    120: (4, 256, 512, 1024),
}


class Rates(NamedTuple):
    """What the model knows of a card beside its facts, in seconds. measured: whether by `make gpu` on such a card.

    node     from one node of a CUDA graph to the next
    hop      a tagged word from one multiprocessor to another, through the L2 cache
    cluster  the same through distributed shared memory
    """

    node: float
    hop: float
    cluster: float
    measured: bool = False


# PREDICTED: third-party measurements on an H100. A node of a chain of empty kernels takes 1.24 to 1.40 us, of which the
# kernel itself is a part that PRODUCT_SECONDS and POINTWISE_SECONDS contain. A hop through L2 takes 0.65 us, and so
# does a cluster's barrier, of which a pushed word takes about half.
EMPTY_NODE = 1.3e-6
PREDICTED = Rates(node=0.8e-6, hop=0.65e-6, cluster=0.35e-6)


def rates_of(card: CardFacts) -> Rates:
    """The card's own rates where a result file has them, else PREDICTED."""
    return _rates_in(RESULTS / slug(card.name) / "gpu.json")


def slug(name: str) -> str:
    """A card's folder in bench/results."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@cache
def _rates_in(file: Path) -> Rates:
    if not file.exists():
        return PREDICTED
    document = json.loads(file.read_text(encoding="utf-8"))
    items = document.get("parts", {}).get("ceilings", {}).get("items", [])
    ok = {item["item"]: item for item in items if item.get("status") == "ok"}
    if "launches" not in ok or "hop tag" not in ok:
        return PREDICTED
    pushes = [item["one_way_us"] for name, item in ok.items() if name.startswith("DSMEM hop push ")]
    return Rates(
        node=max(0.0, ok["launches"]["count_up"]["graph_us"] * 1e-6 - (EMPTY_NODE - PREDICTED.node)),
        hop=ok["hop tag"]["one_way_us"] * 1e-6,
        cluster=min(pushes) * 1e-6 if pushes else PREDICTED.cluster,
        measured=True,
    )


class Load(NamedTuple):
    """A step of one block: what it multiplies, reads and waits for.

    rows, units, K   the block's product: (rows, K) by (K, units times outputs)
    shared_bytes     weights that it reads from shared memory
    exchange_bytes   what it reads of other blocks' h through the L2 cache
    waits            seconds until the others' h arrives
    outputs          of the product per unit; 0 for the cell's gates
    """

    rows: int
    units: int
    K: int
    shared_bytes: int
    exchange_bytes: int = 0
    waits: float = 0.0
    outputs: int = 0


def flop_rate(card: CardFacts, dtype: DType) -> float:
    """FLOP per second of one multiprocessor."""
    arch = max((known for known in FLOP_PER_CLOCK if known <= card.arch), default=min(FLOP_PER_CLOCK))
    float64, float32, tf32, half = FLOP_PER_CLOCK[arch]
    per_clock = {"float64": float64, "float32": float32, "tf32": tf32 or float32}.get(dtype.name, half)
    return card.clock * per_clock * (MMA_SHARE if on_tensor_cores(dtype) else 1.0)


def on_tensor_cores(dtype: DType) -> bool:
    """Whether the resident schedules multiply this dtype by mma.sync."""
    return dtype.name not in ("float32", "float64")


def l2_rate(card: CardFacts) -> float:
    """Bytes per second that all multiprocessors together read from the L2 cache: 32 per clock each. PREDICTED."""
    return 32 * card.multiprocessors * card.clock


def resident_step(cell: Cell, dtype: DType, card: CardFacts, load: Load) -> float:
    """Seconds of one stage of a step of a block whose weights stay on the chip: a product and what follows it."""
    flop = 2.0 * load.rows * load.units * (load.outputs or cell.n_gates) * load.K
    if on_tensor_cores(dtype):
        chain = load.K * dtype.storage.itemsize / MMA_BYTES * MMA_CLOCKS
    else:
        chain = load.K * FMA_CLOCKS / 4  # four sums at once
    product = max(
        flop / flop_rate(card, dtype),
        chain / card.clock,
        load.shared_bytes / (SHARED_BYTES_PER_CLOCK * card.clock),
    )
    slower = 8 if dtype.name == "float64" and flop_rate(card, dtype) < 64 * card.clock else 1
    activation = slower * ACTIVATION_CLOCKS / card.clock
    exchange = load.exchange_bytes / (32 * card.clock)
    return load.waits + exchange + product + activation


def resident_begin(card: CardFacts, rates: Rates, packed: int, members: int = 1) -> float:
    """Seconds before the first step: one launch packs the weights, of `packed` bytes, and each block loads its part."""
    moved = 2 * packed
    packing = max(POINTWISE_SECONDS, moved / (l2_rate(card) if moved < 0.8 * card.l2_bytes else card.bandwidth))
    return rates.node + packing + packed / members / (32 * card.clock)


def pushed(received: int, card: CardFacts, rates: Rates) -> float:
    """Seconds until a block has received what the other blocks of its cluster push to it. received: its bytes."""
    return rates.cluster + received / (PUSHED_BYTES_PER_CLOCK * card.clock)


def resident_seconds(steps: int, blocks: int, at_once: int, step: float) -> float:
    """Seconds of all steps. blocks: that the batch needs; at_once: that the card holds; step: of one block."""
    return steps * -(-blocks // max(1, at_once)) * step


def stepwise_step(cell: Cell, dtype: DType, card: CardFacts, rates: Rates, sizes: tuple[int, int, int]) -> float:
    """Seconds of one step of schedule D. sizes: live rows, H and R."""
    rows, H, R = sizes
    s = dtype.storage.itemsize
    c = dtype.compute.itemsize
    GH = cell.n_gates * H
    weights = (GH * R + (R * H if R != H else 0)) * s
    in_l2 = weights < 0.8 * card.l2_bytes
    flop = 2.0 * rows * weights / s
    product = max(
        flop / (flop_rate(card, dtype) * card.multiprocessors),
        weights / (l2_rate(card) if in_l2 else card.bandwidth),
    )
    moved = rows * (2 * GH * c + (cell.n_saved + 2) * H * s + 2 * len(cell.states) * H * c)
    pointwise = moved / l2_rate(card)
    seconds = 0.0
    stages = 2 if R != H or cell.resets_before else 1
    for _ in range(stages):
        seconds += max(PRODUCT_SECONDS, product / stages) + max(POINTWISE_SECONDS, pointwise / stages)
        seconds += 2 * rates.node
    return seconds
