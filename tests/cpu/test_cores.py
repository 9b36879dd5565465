"""The default number of threads: cores, cgroup quotas of both versions, and two environment variables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rnnkit
from rnnkit.core import cpu_limits, thread_pool
from rnnkit.core.cpu_limits import cpu_quota, default_threads

ROOT = Path(__file__).resolve().parents[2]
V2 = "35 24 0:30 {mounted} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 25 0:28 {mounted} /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct"
OTHERS = "22 1 254:0 / / rw - ext4 /dev/vda rw\n34 25 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


def machine(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A root folder with these /proc files, and with `files` under its /sys/fs/cgroup."""
    own = root / "proc" / "self"
    own.mkdir(parents=True)
    (own / "cgroup").write_text(groups + "\n")
    (own / "mountinfo").write_text(f"{OTHERS}\n{mounts}\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def v2(root: Path, group: str, files: dict[str, str], mounted: str = "/") -> float | None:
    return cpu_quota(machine(root, f"0::{group}", V2.format(mounted=mounted), files))


def v1(root: Path, group: str, files: dict[str, tuple[int, int]], mounted: str = "/") -> float | None:
    written = {}
    for folder, (quota, period) in files.items():
        written[f"cpu,cpuacct/{folder}/cpu.cfs_quota_us"] = str(quota)
        written[f"cpu,cpuacct/{folder}/cpu.cfs_period_us"] = str(period)
    lines = f"12:memory:/elsewhere\n4:cpu,cpuacct:{group}\n1:name=systemd:/init\n0::/"
    return cpu_quota(machine(root, lines, V1.format(mounted=mounted), written))


def test_cgroup_v2_in_a_container(tmp_path) -> None:
    assert v2(tmp_path, "/", {"cpu.max": "150000 100000"}) == 1.5


def test_cgroup_v2_uses_the_smallest_quota_of_nested_groups(tmp_path) -> None:
    files = {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000", "a/b/c/cpu.max": "600000 200000"}
    assert v2(tmp_path, "/a/b/c", files) == 2.0


def test_cgroup_v2_ignores_other_groups(tmp_path) -> None:
    assert v2(tmp_path, "/a", {"a/cpu.max": "max 100000", "b/cpu.max": "50000 100000"}) is None


def test_cgroup_v2_path_relative_to_the_mount_root(tmp_path) -> None:
    assert v2(tmp_path, "/docker/abc/job", {"job/cpu.max": "300000 100000"}, mounted="/docker/abc") == 3.0


@pytest.mark.parametrize("group", ["/../../system", "/elsewhere"])
def test_cgroup_v2_with_a_group_outside_the_mount(group, tmp_path) -> None:
    assert v2(tmp_path, group, {"cpu.max": "100000 100000"}, mounted="/docker/abc") == 1.0


def test_cgroup_v1_in_nested_groups(tmp_path) -> None:
    files = {"a": (400_000, 100_000), "a/b": (-1, 100_000), "a/b/c": (350_000, 100_000)}
    assert v1(tmp_path, "/a/b/c", files) == 3.5


def test_cgroup_v1_in_a_container_with_the_path_of_the_host(tmp_path) -> None:
    assert v1(tmp_path, "/docker/abc", {".": (50_000, 100_000)}, mounted="/docker/abc") == 0.5


def test_cgroup_v1_in_a_container_whose_mount_hides_its_path(tmp_path) -> None:
    assert v1(tmp_path, "/docker/abc", {".": (50_000, 25_000)}) == 2.0


def test_cgroup_v1_without_a_quota(tmp_path) -> None:
    assert v1(tmp_path, "/a", {"a": (-1, 100_000)}) is None


def test_a_mount_point_with_a_space(tmp_path) -> None:
    mount = V2.format(mounted="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/of\\040mine")
    assert cpu_quota(machine(tmp_path, "0::/", mount, {"of mine/cpu.max": "250000 100000"})) == 2.5


@pytest.mark.parametrize("text", ["", "max", "max 100000", "nonsense", "1 0", "-5 100000", "0 100000", "1e3 1", "\0"])
def test_invalid_quotas_are_ignored(text, tmp_path) -> None:
    assert v2(tmp_path, "/", {"cpu.max": text}) is None


@pytest.mark.parametrize(("groups", "mounts"), [("", ""), (":::", " - "), ("0", "a b c - d e f"), ("0::/", "\0")])
def test_invalid_proc_files_are_ignored(groups, mounts, tmp_path) -> None:
    assert cpu_quota(machine(tmp_path, groups, mounts, {})) is None
    assert cpu_quota(tmp_path / "nowhere") is None


@pytest.fixture
def uncached_default(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Eight cores, no quota, no variables, no set_num_threads, and no cached default."""
    monkeypatch.delenv("RNNKIT_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cpu_limits, "cpu_quota", lambda: None)
    monkeypatch.setattr(thread_pool, "_threads", 0)
    default_threads.cache_clear()
    return monkeypatch


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    default_threads.cache_clear()


def threads_and_reason() -> tuple[int, str]:
    explained = rnnkit.explain(rnnkit.GRU(3, 4, backend="numba"), np.zeros((2, 5, 3), np.float32))
    assert explained.threads == rnnkit.get_num_threads()
    assert f"cpu, up to {explained.threads} threads ({explained.threads_why})" in str(explained)
    return explained.threads, explained.threads_why


def test_default_is_the_number_of_cores(uncached_default) -> None:
    assert threads_and_reason() == (8, "8 cores")


def test_default_is_the_affinity_mask(uncached_default) -> None:
    uncached_default.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert threads_and_reason() == (3, "affinity mask of 3 of 8 cores")


@pytest.mark.parametrize(("quota", "threads"), [(2.0, 2), (2.9, 2), (1.5, 1), (0.25, 1), (7.5, 7)])
def test_the_quota_is_rounded_down(quota, threads, uncached_default) -> None:
    uncached_default.setattr(cpu_limits, "cpu_quota", lambda: quota)
    assert threads_and_reason() == (threads, f"CPU quota of {quota:.4g} cores")


def test_a_quota_above_the_number_of_cores_is_ignored(uncached_default) -> None:
    uncached_default.setattr(cpu_limits, "cpu_quota", lambda: 64.0)
    assert threads_and_reason() == (8, "8 cores")


@pytest.mark.parametrize(
    ("value", "threads"),
    [("3", 3), ("3,2,1", 3), (" 3 ", 3), ("16", 8), ("", 8), ("0", 8), ("-1", 8), ("many", 8), ("1.5", 8)],
)
def test_omp_num_threads_is_an_upper_bound_unless_invalid(value, threads, uncached_default) -> None:
    uncached_default.setenv("OMP_NUM_THREADS", value)
    assert threads_and_reason() == (threads, "OMP_NUM_THREADS" if threads == 3 else "8 cores")


def test_rnnkit_num_threads_sets_the_number(uncached_default) -> None:
    uncached_default.setenv("OMP_NUM_THREADS", "1")
    uncached_default.setenv("RNNKIT_NUM_THREADS", " 12 ")
    uncached_default.setattr(cpu_limits, "cpu_quota", lambda: 1.0)
    assert threads_and_reason() == (12, "RNNKIT_NUM_THREADS")


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "4,2", "1e3", "0x4"])
def test_an_invalid_rnnkit_num_threads_raises(value, uncached_default) -> None:
    uncached_default.setenv("RNNKIT_NUM_THREADS", value)
    layer, x = rnnkit.GRU(64, 64, backend="numba"), np.zeros((50, 5, 64), np.float32)
    for call in (rnnkit.get_num_threads, lambda: rnnkit.explain(layer, x), lambda: layer(x)):
        with pytest.raises(ValueError, match=f"^RNNKIT_NUM_THREADS must be a positive whole number, got '{value}'$"):
            call()
    rnnkit.set_num_threads(2)
    assert threads_and_reason() == (2, "set_num_threads")
    layer(x)


def test_set_num_threads_overrides_and_none_restores_the_default(uncached_default) -> None:
    assert threads_and_reason() == (8, "8 cores")
    rnnkit.set_num_threads(5)
    assert threads_and_reason() == (5, "set_num_threads")
    uncached_default.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    rnnkit.set_num_threads(None)
    assert threads_and_reason() == (2, "affinity mask of 2 of 8 cores")


def test_the_default_is_read_once(uncached_default) -> None:
    def read_again() -> None:
        raise AssertionError("read again")

    assert threads_and_reason()[0] == 8
    uncached_default.setattr(cpu_limits, "cpu_quota", read_again)
    assert threads_and_reason()[0] == 8


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_reads_the_default_again(uncached_default) -> None:
    assert rnnkit.get_num_threads() == 8
    uncached_default.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert rnnkit.get_num_threads() == 8
    child = os.fork()
    if child == 0:
        os._exit(rnnkit.get_num_threads())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_import_does_not_read_the_default_and_processes_follow_the_environment() -> None:
    code = """if 1:
        import rnnkit
        from rnnkit.core import cpu_limits
        assert cpu_limits.default_threads.cache_info().currsize == 0
        print(rnnkit.get_num_threads())"""
    environment = {name: value for name, value in os.environ.items() if name != "RNNKIT_NUM_THREADS"}
    for variables, threads in (({"RNNKIT_NUM_THREADS": "3"}, "3"), ({"OMP_NUM_THREADS": "1"}, "1")):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment | variables, capture_output=True, text=True
        )
        assert done.stdout.strip() == threads, done.stderr
