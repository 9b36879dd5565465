"""Clusters of blocks: which sizes a card runs, and how many at once.

A cluster is scheduled as a whole, so nothing has to be checked but that one fits. CuPy does not reach the driver's
cuOccupancyMaxActiveClusters, so that is a rule: every card of compute capability 9.0 and later runs clusters of up to 8
blocks (CUDA C++ Programming Guide), and H100 and B200, compute capability 9.0 and 10.0, also of 16 blocks, which a
kernel must opt in to (Hopper and Blackwell Tuning Guides). A part of such a card (MIG) may lack 16 multiprocessors that
can form a cluster. A launch that the driver cannot schedule all the same is an error, before any of it runs.
"""

from __future__ import annotations

from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.step_products import Step

OLDEST_ARCH = 90
ALL_SIZES = (16, 8, 4)
SIZES = ALL_SIZES  # which the tests narrow
PORTABLE = 8
LARGE_ARCHS = (90, 100)
WHOLE_CARD = 100  # multiprocessors

# The size whose builds the build report has. They compile to the same code for every size.
REPORTED = 16

# Rows of DTYPES that have builds.
SERVED = ("float16", "bfloat16", "tf32", "float32", "float64")

# The files of an exchange between blocks of a cluster.
PTX = ("cuda/ptx_cluster.cuh", "cuda/cluster.cuh")


def mail_bytes(step: Step) -> int:
    """Static shared memory of a block, at most: its mbarriers, 16 bytes per message of a step."""
    return 16 * step.stages


def sizes_on(card: CardFacts) -> tuple[int, ...]:
    """The blocks of the clusters that the card runs, most first; none where it has no clusters."""
    if not card.clusters or card.arch < OLDEST_ARCH:
        return ()
    large = card.arch in LARGE_ARCHS and card.multiprocessors >= WHOLE_CARD
    return tuple(size for size in SIZES if size <= PORTABLE or large)


def at_once(card: CardFacts, members: int) -> int:
    """How many clusters of one block per multiprocessor run at once. PREDICTED from a third-party measurement: an H100
    with 132 multiprocessors runs 15 of 8 blocks, because a cluster lies in one of the card's GPCs of unequal size."""
    return max(1, card.multiprocessors // members - 1)
