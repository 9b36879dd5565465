"""How the threads of a call divide its work, and where they wait for each other.

The threads form `groups` groups of `members`. A group has rows [b0, b1) of the batch, from a table, and walks the
sequence independently of the other groups. Inside a group each member has units [u0, u1) of every row, and the members
synchronise once or twice per step. Results do not depend on either number, not by a bit.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.memory import atomic_add, load_word
from rnnkit.kernels.cpu.threads import LINE, barrier, wait_for_count


class Part(NamedTuple):
    """One thread's part of a call: its group and its number there, its rows, and its barriers' addresses."""

    group: int
    member: int
    b0: int
    b1: int
    threads: int
    all_barrier: int
    group_barrier: int


@inner
def part_of(s, bounds, barriers, index):
    """The part of thread `index`. s: a Shape."""
    group = index // s.members
    return Part(
        group,
        index % s.members,
        load_word(bounds + 8 * group),
        load_word(bounds + 8 * group + 8),
        s.groups * s.members,
        barriers,
        barriers + LINE * (1 + group),
    )


@inner
def sync_all(p, times):
    """Waits for all threads of the call, for the `times`-th time."""
    if p.threads > 1:
        barrier(p.all_barrier, p.threads * times)


@inner
def sync_group(s, p, times):
    """Waits for the members of the group, for the `times`-th time."""
    if s.members > 1:
        barrier(p.group_barrier, s.members * times)


@inner
def arrive(s, p):
    """The first half of `sync_group`: what this thread wrote is published. Independent work may follow."""
    if s.members > 1:
        atomic_add(p.group_barrier, 1)


@inner
def await_group(s, p, times):
    """The second half of `sync_group`."""
    if s.members > 1:
        wait_for_count(p.group_barrier, s.members * times)
