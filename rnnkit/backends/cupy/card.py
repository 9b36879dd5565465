"""CardFacts: what a schedule may know about the card that it is to run on."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

# cudaDeviceAttr, as in driver_types.h. CuPy does not name all of them.
MULTIPROCESSORS = 16
MEMORY_CLOCK = 36  # kHz
MEMORY_BUS = 37  # bits
L2_BYTES = 38
THREADS = 39
CLOCK = 13  # kHz
SHARED_MULTIPROCESSOR = 81
REGISTERS = 82
COOPERATIVE = 95
SHARED_BLOCK = 97
CLUSTERS = 120


class CardFacts(NamedTuple):
    """The attributes of a card that decide which schedules can run on it, and how fast. Sizes are in bytes.

    arch                   compute capability, 90 for 9.0
    shared_block           the most shared memory of a block, after opting in
    shared_multiprocessor  shared memory of a multiprocessor
    registers, threads     of a multiprocessor
    cooperative            whether a launch can guarantee that all its blocks are resident at once
    clusters               whether blocks can form clusters and access each other's shared memory
    clock                  Hz, of the multiprocessors
    bandwidth              bytes per second, of the card's memory
    """

    name: str
    arch: int
    multiprocessors: int
    shared_block: int
    shared_multiprocessor: int
    registers: int
    threads: int
    l2_bytes: int
    cooperative: bool
    clusters: bool
    clock: float
    bandwidth: float

    @property
    def capability(self) -> str:
        """The compute capability as NVIDIA writes it: "9.0"."""
        return f"{self.arch // 10}.{self.arch % 10}"


@cache
def card_of(device: int) -> CardFacts:
    """The facts of a device."""
    import cupy

    runtime = cupy.cuda.runtime

    def attribute(number: int) -> int:
        return int(runtime.deviceGetAttribute(number, device))

    def known(number: int) -> int:
        """An attribute that an older driver may not know; 0 there."""
        try:
            return attribute(number)
        except runtime.CUDARuntimeError:
            return 0

    name = runtime.getDeviceProperties(device)["name"]
    return CardFacts(
        name=name.decode() if isinstance(name, bytes) else str(name),
        arch=int(cupy.cuda.Device(device).compute_capability),
        multiprocessors=attribute(MULTIPROCESSORS),
        shared_block=attribute(SHARED_BLOCK),
        shared_multiprocessor=attribute(SHARED_MULTIPROCESSOR),
        registers=attribute(REGISTERS),
        threads=attribute(THREADS),
        l2_bytes=attribute(L2_BYTES),
        cooperative=bool(attribute(COOPERATIVE)),
        clusters=bool(known(CLUSTERS)),
        clock=1e3 * attribute(CLOCK),
        # Two transfers per clock; an eighth of a byte per line of the bus.
        bandwidth=1e3 * attribute(MEMORY_CLOCK) * 2 * attribute(MEMORY_BUS) / 8,
    )
