"""The default number of threads of the CPU kernels, and what determines it.

RNNKIT_NUM_THREADS sets the number. Otherwise it is the minimum of the number of cores in the affinity mask, the CPU
quota of the process's control groups (as in containers), rounded down, and OMP_NUM_THREADS. The kernels' threads wait
for each other at barriers, so with one thread more than the quota allows, all would wait for the next quota period.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

OWN_VARIABLE = "RNNKIT_NUM_THREADS"
OPENMP_VARIABLE = "OMP_NUM_THREADS"


class Threads(NamedTuple):
    """A number of threads, and what determines it."""

    number: int
    why: str


@cache
def default_threads() -> Threads:
    """The default number of threads of this process. It is cached; a forked child determines it again.

    Raises ValueError if RNNKIT_NUM_THREADS is not a positive whole number.
    """
    number = os.environ.get(OWN_VARIABLE, "").strip()
    if number:
        if re.fullmatch("[0-9]+", number) is None or int(number) < 1:
            raise ValueError(f"{OWN_VARIABLE} must be a positive whole number, got {number!r}")
        return Threads(int(number), OWN_VARIABLE)
    bounds = [_usable_cores()]
    quota = cpu_quota()
    if quota is not None:
        bounds.append(Threads(max(1, int(quota)), f"CPU quota of {quota:.4g} cores"))
    openmp = _openmp_threads()
    if openmp is not None:
        bounds.append(Threads(openmp, OPENMP_VARIABLE))
    return min(bounds, key=lambda bound: bound.number)


def _usable_cores() -> Threads:
    total = os.cpu_count() or 1
    if not hasattr(os, "sched_getaffinity"):
        return Threads(total, f"{total} cores")
    usable = len(os.sched_getaffinity(0))
    return Threads(usable, f"{total} cores" if usable >= total else f"affinity mask of {usable} of {total} cores")


def _openmp_threads() -> int | None:
    """The first element of OMP_NUM_THREADS; None if it is not set or has a value that OpenMP rejects."""
    match = re.fullmatch(r"\s*([0-9]+)\s*(,.*)?", os.environ.get(OPENMP_VARIABLE, ""))
    return int(match[1]) if match is not None and int(match[1]) > 0 else None


# The quota of Linux control groups, versions 1 and 2


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The CPU time that the process may use per period, in cores; None if it is not limited.

    Every enclosing control group limits the process, so the minimum applies. root: root of the file system, for tests.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, or /proc is hidden
        return None
    folders = [(root / folder, version) for folder, version in _group_folders(groups, mounts)]
    quotas = [_quota_v2(folder) if version == 2 else _quota_v1(folder) for folder, version in folders]
    return min([quota for quota in quotas if quota is not None], default=None)


def _group_folders(groups: str, mounts: str) -> Iterator[tuple[str, int]]:
    """Yields folder (relative to the root) and version of each control group of the process, innermost first."""
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
        mount = before.split(" ")
        file_system = after.split(" ")
        if len(mount) < 5 or len(file_system) < 3:
            continue
        version = {"cgroup2": 2, "cgroup": 1}.get(file_system[0])
        if version is None or version not in own or (version == 1 and "cpu" not in file_system[2].split(",")):
            continue
        mounted, mount_point = (PurePosixPath(_unescaped(field)) for field in mount[3:5])
        group = PurePosixPath(own[version])
        # In a container, the group may be outside of what is mounted. Then only the mount itself is visible.
        inner = group.relative_to(mounted) if group.is_relative_to(mounted) and ".." not in group.parts else None
        innermost = mount_point if inner is None else mount_point / inner
        for folder in (innermost, *innermost.parents):
            if folder.is_relative_to(mount_point):
                yield str(folder).lstrip("/"), version


def _unescaped(field: str) -> str:
    """A field of mountinfo, in which spaces and other characters are escaped as octal codes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _quota_v2(group: Path) -> float | None:
    """The quota in cpu.max: "max 100000", or the microseconds per period and the period in microseconds."""
    return _ratio(*(_fields(group / "cpu.max") or ["max", ""])[:2])


def _quota_v1(group: Path) -> float | None:
    quota, period = (_fields(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return _ratio(quota[0], period[0]) if quota and period else None


def _fields(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return []


def _ratio(quota: str, period: str = "100000") -> float | None:
    """quota / period; None for "max", for -1 (no limit in version 1), and for values that are not numbers."""
    if re.fullmatch("[0-9]+", quota) is None or re.fullmatch("[0-9]+", period) is None or int(period) == 0:
        return None
    return int(quota) / int(period) or None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=default_threads.cache_clear)
