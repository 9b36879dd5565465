"""Stand-in parts for tests of the runner of `make gpu`: each name selects the behaviour of a process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from bench.gpu.processes import Part

ROOT = Path(__file__).parents[2]

PROGRAM = r"""
import json, os, signal, subprocess, sys, time
what = sys.argv.pop(1)
from bench.gpu.items_file import Lines, Unavailable
lines = Lines.from_arguments("", sys.argv[1:])
print("this is", what, flush=True)
def missing():
    raise Unavailable("planted library is not installed")
if what == "card":
    lines.item("device", lambda: {"name": "Planted Card 9", "arch": 90})
    raise SystemExit
if what == "no-card":
    lines.write({"item": "device", "status": "failed", "why": "planted: no driver"})
    raise SystemExit
if what == "base":
    for name in ("nvrtc", "cublas", "one step"):
        lines.item(name, lambda: {})
    raise SystemExit
if what == "no-base":
    lines.item("nvrtc", lambda: {})
    lines.item("cublas", lambda: 1 / 0)
    lines.item("one step", lambda: {})
    raise SystemExit
if what.startswith("steady"):  # each finished item is also written to WITNESS, for the test
    count, _, share = what[6:].partition("-")
    for i in range(int(count)):
        key = f"item {share}{i}"
        if lines.wants(key):
            lines.item(key, lambda: time.sleep(float(os.environ.get("PAUSE", "0.01"))))
            with open(os.environ["WITNESS"], "a") as file:
                file.write(key + "\n")
    raise SystemExit
lines.item("first", lambda: {"value": 1.5})
if what == "fails":
    lines.item("second", lambda: 1 / 0)
    raise SystemExit(4)
if what == "raises":
    raise RuntimeError("planted last words")
if what == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lines.item("second", lambda: time.sleep(600))
if what == "garbage":
    sys.stdout.buffer.write(bytes(range(256)) * 20000)
    with open(sys.argv[sys.argv.index("--items") + 1], "ab") as file:
        file.write(b'{"item": 3}\n[1, 2]\nnull\n\xff\xfe{{{\n{"start": "whole"}\n')
        file.write(b'{"part": "garbage", "item": "x", "status": "splendid"}\n{"start": "cut')
if what == "dies":
    for name in ("second", "third", "fourth"):
        lines.item(name, (lambda: os._exit(9)) if name == "third" else lambda: {})
if what == "done":
    lines.item("late", lambda: None, needs=1e6)
    lines.item("odd", lambda: {"nan": float("nan"), "inf": float("inf")})
    lines.item("missing", missing)
if what == "mends":  # its second item fails until the file MENDED exists
    def second():
        assert os.path.exists(os.environ["MENDED"]), "planted fault"
    lines.item("second", second)
    lines.item("third", lambda: {})
"""


def part(what: str, *more: str, environment: tuple[tuple[str, str], ...] = (), **options: Any) -> Part:
    """The Part of that name. more: its other workers."""
    program = (sys.executable, "-c", PROGRAM)
    surroundings = (("PYTHONPATH", str(ROOT)), *environment)
    given = {"most": 20.0, "least": 1.0, **options}
    return Part(
        what.partition("-")[0] if what.startswith("steady") else what,
        tuple((*program, name) for name in (what, *more)),
        environment=surroundings,
        **given,
    )


def has_ended(process: int) -> bool:
    """Whether a process has ended, also if it is a zombie."""
    stat = Path(f"/proc/{process}/stat")
    try:
        os.kill(process, 0)
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True
