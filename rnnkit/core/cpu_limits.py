"""How many threads the CPU kernels use unless `set_num_threads` says otherwise, and the reason.

RNNKIT_NUM_THREADS names the number. Else it is the smallest of the cores in the affinity mask, the CPU quota of the
process's control groups (containers have one) rounded down, and OMP_NUM_THREADS. The kernels' threads wait for each
other, so one more than the quota allows would have all of them wait for the next period.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

NAMED, OPENMP = "RNNKIT_NUM_THREADS", "OMP_NUM_THREADS"


class Threads(NamedTuple):
    """A number of threads, and what it follows from."""

    number: int
    why: str


@cache
def default_threads() -> Threads:
    """The default of this process, read once; in a forked child once more, at its first call.

    Raises ValueError where RNNKIT_NUM_THREADS is no positive whole number.
    """
    named = os.environ.get(NAMED, "").strip()
    if named:
        if re.fullmatch("[0-9]+", named) is None or int(named) < 1:
            raise ValueError(f"{NAMED} must be a positive whole number, got {named!r}")
        return Threads(int(named), NAMED)
    bounds = [_usable_cores()]
    quota = cpu_quota()
    if quota is not None:
        bounds.append(Threads(max(1, int(quota)), f"CPU quota of {quota:.4g} cores"))
    openmp = _openmp_threads()
    if openmp is not None:
        bounds.append(Threads(openmp, OPENMP))
    return min(bounds, key=lambda bound: bound.number)


def _usable_cores() -> Threads:
    total = os.cpu_count() or 1
    if not hasattr(os, "sched_getaffinity"):
        return Threads(total, f"{total} cores")
    usable = len(os.sched_getaffinity(0))
    return Threads(usable, f"{total} cores" if usable >= total else f"affinity mask of {usable} of {total} cores")


def _openmp_threads() -> int | None:
    """OMP_NUM_THREADS, of a list the first; None where it is not set, or what OpenMP would not take either."""
    found = re.fullmatch(r"\s*([0-9]+)\s*(,.*)?", os.environ.get(OPENMP, ""))
    return int(found[1]) if found is not None and int(found[1]) > 0 else None


# The quota of Linux control groups, of both versions


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that the process may use per period; None where nothing bounds it.

    A group is bounded by all that it is in, so the smallest counts. root: of the file system, for tests.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, or /proc is hidden
        return None
    quotas = [
        quota
        for folder, version in _group_folders(groups, mounts)
        if (quota := _quota_v2(root / folder) if version == 2 else _quota_v1(root / folder)) is not None
    ]
    return min(quotas, default=None)


def _group_folders(groups: str, mounts: str) -> Iterator[tuple[str, int]]:
    """Each folder, relative to the root, of a group that the process is in, and the version: inner groups first."""
    own: dict[int, str] = {}
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            own[2] = path
        elif "cpu" in controllers.split(","):
            own[1] = path
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        place, system = before.split(" "), after.split(" ")
        if len(place) < 5 or len(system) < 3:
            continue
        version = {"cgroup2": 2, "cgroup": 1}.get(system[0])
        if version is None or version not in own or (version == 1 and "cpu" not in system[2].split(",")):
            continue
        mounted, at = (PurePosixPath(_unescaped(field)) for field in place[3:5])
        group = PurePosixPath(own[version])
        # Outside what is mounted here, as seen from within a container: the mount is all that can be seen.
        inner = group.relative_to(mounted) if group.is_relative_to(mounted) and ".." not in group.parts else None
        folder = at if inner is None else at / inner
        for one in (folder, *folder.parents):
            if one.is_relative_to(at):
                yield str(one).lstrip("/"), version


def _unescaped(field: str) -> str:
    """A field of mountinfo, where a blank is written as its octal code."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _quota_v2(group: Path) -> float | None:
    """cpu.max holds "max 100000", or the microseconds that may be used in a period, and the period."""
    return _ratio(*(_words(group / "cpu.max") or ["max", ""])[:2])


def _quota_v1(group: Path) -> float | None:
    quota, period = (_words(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return _ratio(quota[0], period[0]) if quota and period else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return []


def _ratio(quota: str, period: str = "100000") -> float | None:
    """None for "max", for v1's -1 and for what is no number."""
    if re.fullmatch("[0-9]+", quota) is None or re.fullmatch("[0-9]+", period) is None or int(period) == 0:
        return None
    return int(quota) / int(period) or None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=default_threads.cache_clear)
