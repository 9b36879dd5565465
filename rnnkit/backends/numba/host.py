"""The rates of this processor, which estimates and plans are made from.

A table has the rates by family of processors, and the system says how large the caches are. Nothing is measured at run
time: a probe of a few milliseconds is off by a factor of two where neighbours use the machine. Rates choose how work is
divided over threads, and never change a bit of a result. RNNKIT_CPU_RATES names a row instead of the one that fits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding as llvm

from rnnkit.kernels.cpu.vec_type import vector_bytes

VARIABLE = "RNNKIT_CPU_RATES"

KIB, MIB = 1 << 10, 1 << 20

# The part of a cache that weights may fill: x, the gates and the states need the rest, and other cores share the third
# level.
OWN_PART, SHARED_PART = 3 / 4, 5 / 8


class Rates(NamedTuple):
    """A row of the table. Rates are of one core, per microsecond, in float32.

    name        what RNNKIT_CPU_RATES may say
    about       the processors, in words
    processors  LLVM's names of them
    source      "measured" with the processor, or "assumed": from the vendor's documents, never measured
    flop        FLOP, by the bytes of a vector
    read        bytes from the first, second and third level of the caches, and from memory
    caches      bytes of these levels where the system does not report them. Of the second level 0 if there is none of a
                core's own
    """

    name: str
    about: str
    processors: tuple[str, ...]
    source: str
    flop: dict[int, float]
    read: tuple[float, float, float, float]
    caches: tuple[int, int, int]


_ASSUMED = "assumed"
# SSE2 has no multiply-add. It is used where a virtual machine hides the wider vectors.
_SSE2 = {16: 25e3}

RATES: dict[str, Rates] = {
    row.name: row
    for row in (
        Rates(
            "amd-zen2", "AMD Zen 2 and 3", ("znver2", "znver3"), _ASSUMED,
            {32: 100e3} | _SSE2, (200e3, 100e3, 70e3, 20e3), (32 * KIB, 512 * KIB, 16 * MIB),
        ),
        # One multiply-add per cycle of 64 bytes, two of 32.
        Rates(
            "amd-zen4", "AMD Zen 4", ("znver4",), "measured on an EPYC of Zen 4",
            {64: 112e3, 32: 100e3} | _SSE2, (200e3, 110e3, 80e3, 28e3), (32 * KIB, 1 * MIB, 32 * MIB),
        ),
        Rates(
            "amd-zen5", "AMD Zen 5", ("znver5",), _ASSUMED,
            {64: 200e3, 32: 110e3} | _SSE2, (350e3, 180e3, 90e3, 35e3), (48 * KIB, 1 * MIB, 32 * MIB),
        ),
        # Two multiply-adds per cycle of 64 bytes. The third level belongs to the whole chip, and is slow.
        Rates(
            "intel-skylake-x", "Intel Xeon, Skylake-X to Ice Lake",
            ("skylake-avx512", "cascadelake", "cooperlake", "icelake-server"), _ASSUMED,
            {64: 130e3, 32: 80e3} | _SSE2, (250e3, 100e3, 20e3, 12e3), (32 * KIB, 1 * MIB, 24 * MIB),
        ),
        Rates(
            "intel-sapphire-rapids", "Intel Xeon, Sapphire Rapids to Granite Rapids",
            ("sapphirerapids", "emeraldrapids", "graniterapids", "graniterapids-d"), "measured on an Emerald Rapids",
            {64: 160e3, 32: 80e3} | _SSE2, (290e3, 125e3, 25e3, 15e3), (48 * KIB, 2 * MIB, 100 * MIB),
        ),
        # The cores for efficiency of a hybrid processor are slower: they are not considered.
        Rates(
            "intel-core", "Intel Core, Haswell to Arrow Lake",
            (
                "haswell", "broadwell", "skylake", "cannonlake", "icelake-client", "tigerlake", "rocketlake",
                "alderlake", "raptorlake", "meteorlake", "arrowlake", "arrowlake-s", "lunarlake",
            ), _ASSUMED,
            {64: 120e3, 32: 120e3} | _SSE2, (250e3, 120e3, 50e3, 25e3), (32 * KIB, 256 * KIB, 8 * MIB),
        ),
        Rates(
            "arm-neoverse", "Arm Neoverse, as Graviton 2 to 4",
            ("neoverse-n1", "neoverse-n2", "neoverse-n3", "neoverse-v1", "neoverse-v2", "neoverse-v3"), _ASSUMED,
            {16: 60e3}, (100e3, 60e3, 25e3, 20e3), (64 * KIB, 1 * MIB, 32 * MIB),
        ),
        # The second level belongs to a cluster of cores. So it has the third one's place.
        Rates(
            "apple", "Apple M1 to M4", ("apple-m1", "apple-m2", "apple-m3", "apple-m4"), _ASSUMED,
            {16: 80e3}, (150e3, 0.0, 90e3, 60e3), (128 * KIB, 0, 12 * MIB),
        ),
        Rates(
            "unknown", "processors without a row", (), _ASSUMED,
            {64: 112e3, 32: 100e3} | _SSE2, (200e3, 110e3, 80e3, 28e3), (32 * KIB, 1 * MIB, 32 * MIB),
        ),
    )
}  # fmt: skip


class Host(NamedTuple):
    """What estimates use.

    rates   the row of the table
    flop    its FLOP per microsecond with this processor's vectors
    caches  bytes of the three levels, 0 for a level that no core has for itself
    why     which row this is and why, in words
    """

    rates: Rates
    flop: float
    caches: tuple[int, int, int]
    why: str

    @property
    def shared_bytes(self) -> float:
        """The most weights that stay in the third level."""
        return self.caches[2] * SHARED_PART

    def read_us(self, own: float, total: float) -> float:
        """Microseconds in which one thread reads `own` bytes of weights again, while all of them read `total` bytes."""
        read = self.rates.read
        first, second, _ = self.caches
        if own <= first * OWN_PART:
            return own / read[0]
        if own <= second * OWN_PART:
            return own / read[1]
        return own / (read[2] if total <= self.shared_bytes else read[3])


@cache
def host() -> Host:
    """The rates of this processor. Raises ValueError if RNNKIT_CPU_RATES names no row."""
    return choose(llvm.get_host_cpu_name(), vector_bytes(), system_caches(), os.environ.get(VARIABLE, "").strip())


def choose(processor: str, width: int, found: tuple[int, int, int], named: str = "") -> Host:
    """The rates of a processor.

    Args:
        processor: LLVM's name of it.
        width: the bytes of its vectors.
        found: bytes of its caches as the system reports them, 0 for those that it does not.
        named: the name of a row to use instead of the processor's; "" for none.

    Raises:
        ValueError: there is no row of that name.
    """
    if named and named not in RATES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(RATES)}, got {named!r}")
    fitting = next((row for row in RATES.values() if processor in row.processors), RATES["unknown"])
    rates = RATES[named] if named else fitting
    if named:
        why = f"named by {VARIABLE}"
    elif rates.processors:
        why = f"the processor is {processor}"
    else:
        why = f"there is no row for the processor {processor}"
    sizes = [size or own for size, own in zip(found, rates.caches, strict=True)]
    if not rates.caches[1]:
        sizes = [sizes[0], 0, found[2] or found[1] or rates.caches[2]]
    reported = "as the system reports them" if all(found) else "not all reported by the system"
    listed = ", ".join(_in_words(size) for size in sizes if size)
    flop = rates.flop.get(width) or min(rates.flop.values())
    about = f"{rates.name} ({rates.about}; {rates.source}): {why}; caches {listed}, {reported}"
    return Host(rates, flop, (sizes[0], sizes[1], sizes[2]), about)


def _in_words(size: int) -> str:
    return f"{size / MIB:g} MiB" if size >= MIB else f"{size / KIB:g} KiB"


def system_caches(root: Path = Path("/")) -> tuple[int, int, int]:
    """Bytes of the data caches of the first core that this process may use, by level, as Linux reports them.

    0 for a level that it does not report, and for all on other systems. root: root of the file system, for tests.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    sizes = dict(_cache_sizes(root / f"sys/devices/system/cpu/cpu{min(usable)}/cache"))
    return sizes.get("1", 0), sizes.get("2", 0), sizes.get("3", 0)


def _cache_sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, text = (
                (index / name).read_text(encoding="ascii").strip() for name in ("level", "type", "size")
            )
        except (OSError, ValueError):
            continue
        number = re.fullmatch("([0-9]+)([KMG]?)", text)
        if kind != "Instruction" and number is not None:
            yield level, int(number[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[number[2]]
