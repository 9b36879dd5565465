"""CardFacts of real cards, for tests without them, and the arguments of `fakecupy.installed` that simulate one.

Sources: the CUDA C++ Programming Guide (limits by compute capability), NVIDIA's white papers and data sheets
(multiprocessors, L2, boost clocks, bandwidth). A test marked `gpu` compares the row of the card that it runs on.
"""

from __future__ import annotations

from typing import Any

from rnnkit.backends.cupy.card import CardFacts

# By compute capability: shared memory per block and per multiprocessor in KiB, and threads per multiprocessor.
LIMITS = {
    70: (96, 96, 2048),
    75: (64, 64, 1024),
    80: (163, 164, 2048),
    86: (99, 100, 1536),
    89: (99, 100, 1536),
    90: (227, 228, 2048),
    100: (227, 228, 2048),
    120: (99, 100, 1536),
}
OLDEST_CLUSTERS = 90


def _card(name: str, arch: int, multiprocessors: int, l2_mib: float, clock_ghz: float, gb_per_s: float) -> CardFacts:
    block, multiprocessor, threads = LIMITS[arch]
    return CardFacts(
        name=name,
        arch=arch,
        multiprocessors=multiprocessors,
        shared_block=block << 10,
        shared_multiprocessor=multiprocessor << 10,
        registers=65536,
        threads=threads,
        l2_bytes=int(l2_mib * 2**20),
        cooperative=True,
        clusters=arch >= OLDEST_CLUSTERS,
        clock=clock_ghz * 1e9,
        bandwidth=gb_per_s * 1e9,
    )


CARDS = {
    card.name: card
    for card in (
        _card("Tesla V100-SXM2-32GB", 70, 80, 6, 1.53, 898),
        _card("Tesla T4", 75, 40, 4, 1.59, 320),
        _card("NVIDIA GeForce RTX 2080 Ti", 75, 68, 5.5, 1.545, 616),
        _card("NVIDIA A100-SXM4-40GB", 80, 108, 40, 1.41, 1555),
        _card("NVIDIA A100-SXM4-80GB", 80, 108, 40, 1.41, 2039),
        _card("NVIDIA A30", 80, 56, 24, 1.44, 933),
        _card("NVIDIA A10", 86, 72, 6, 1.695, 600),
        _card("NVIDIA GeForce RTX 3090", 86, 82, 6, 1.695, 936),
        _card("NVIDIA L4", 89, 58, 48, 2.04, 300),
        _card("NVIDIA GeForce RTX 4090", 89, 128, 72, 2.52, 1008),
        _card("NVIDIA L40S", 89, 142, 96, 2.52, 864),
        _card("NVIDIA H100 PCIe", 90, 114, 50, 1.755, 2039),
        _card("NVIDIA H100 80GB HBM3", 90, 132, 50, 1.98, 3352),
        _card("NVIDIA H200", 90, 132, 50, 1.98, 4917),
        _card("NVIDIA B200", 100, 148, 126, 1.965, 8184),
        _card("NVIDIA GeForce RTX 5090", 120, 170, 96, 2.407, 1792),
    )
}


def simulated(card: CardFacts, **others: int) -> dict[str, Any]:
    """Arguments of `fakecupy.installed` for devices with these facts. others: further attributes."""
    attributes = {
        "MultiProcessorCount": card.multiprocessors,
        "MaxSharedMemoryPerBlockOptin": card.shared_block,
        "MaxSharedMemoryPerMultiprocessor": card.shared_multiprocessor,
        "ReservedSharedMemoryPerBlock": 1024 if card.arch >= 80 else 0,
        "MaxRegistersPerMultiprocessor": card.registers,
        "MaxThreadsPerMultiProcessor": card.threads,
        "L2CacheSize": card.l2_bytes,
        "CooperativeLaunch": int(card.cooperative),
        "ClusterLaunch": int(card.clusters),
        "ClockRate": round(card.clock / 1e3),
        "MemoryClockRate": round(card.bandwidth / 1e3 / 1024),
        "GlobalMemoryBusWidth": 4096,
    }
    return {"arch": str(card.arch), "name": card.name, "attributes": attributes | others}
