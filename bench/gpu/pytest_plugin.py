"""A pytest plugin that writes every test's outcome as it ends.

    pytest -p bench.gpu.pytest_plugin --items FILE --seconds N [--share 2/4]

`--share 2/4` runs the second of four shares. Tests that compile the same kernels (a backend, cell and dtype) are in one
share, so no two processes compile the same ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.gpu.items_file import AGAIN, Lines, context_is_lost

SHOWN = 400


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("bench.gpu")
    group.addoption("--items", default=None, help="the file that outcomes are appended to")
    group.addoption("--part", default="tests", help="the part's name in it")
    group.addoption("--share", default="1/1", help="which share of how many is run")
    group.addoption("--seconds", type=float, default=1e9, help="tests that come later are not run")


def pytest_configure(config: Any) -> None:
    path = config.getoption("--items")
    if path is not None:
        which, count = map(int, config.getoption("--share").split("/"))
        lines = Lines(Path(path), config.getoption("--part"), config.getoption("--seconds"))
        config.pluginmanager.register(Reporter(lines, which, count), "rnnkit-lines")


class Reporter:
    """Writes the outcomes, and skips the other tests when the time is over."""

    def __init__(self, lines: Lines, which: int, count: int) -> None:
        self.lines = lines
        self.which = which
        self.count = count

    def pytest_collection_modifyitems(self, items: list[Any], config: Any) -> None:
        """Selects the tests of the share, without those that an earlier start or an earlier run has done."""
        groups = {group: i for i, group in enumerate(dict.fromkeys(map(group_of, items)))}
        mine = [item for item in items if groups[group_of(item)] % self.count == self.which - 1]
        mine = [item for item in mine if self.lines.wants(item.nodeid)]
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.lines.begin(nodeid)

    def pytest_runtest_setup(self, item: Any) -> None:
        if self.lines.left() < 0:
            pytest.skip("not run: the time is up")

    def pytest_runtest_logreport(self, report: Any) -> None:
        failed = report.outcome == "failed"
        if report.when != "call" and not failed and report.outcome != "skipped":
            return
        line = {"item": report.nodeid, "status": "ok", "seconds": round(report.duration, 3)}
        if failed:
            line |= {"status": "failed", "why": _why(report)}
        elif report.outcome == "skipped":
            reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
            status = next((s for s in ("not run", "not available") if f"{s}:" in reason), "skipped")
            line |= {"status": status, "why": reason.removeprefix("Skipped: ").removeprefix(f"{status}: ")[:SHOWN]}
        self.lines.write(line)
        if failed and context_is_lost():
            pytest.exit("the CUDA context is lost", AGAIN)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: Any, exitstatus: int) -> None:
        """Failed tests, which have lines, and a share without tests are no reason to start the process again."""
        if exitstatus in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.OK


def group_of(item: Any) -> str:
    """The backend, cell and dtype of a test. Tests of one group share kernels."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    named = [str(getattr(given[name], "cell", given[name])) for name in ("backend", "case", "dtype") if name in given]
    return "-".join(named) or item.nodeid.split("[")[0]


def _why(report: Any) -> str:
    """The place and the message of a failure."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = f"{crash.path}:{crash.lineno}: {crash.message}" if crash is not None else str(report.longrepr)
    return text[-SHOWN:] if crash is None else text[:SHOWN]
