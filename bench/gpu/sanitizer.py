"""compute-sanitizer over `bench.gpu.small`, a tool after the other: python -m bench.gpu.sanitizer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from bench.gpu.card import find_tool
from bench.gpu.lines import Item, Lines
from bench.pool import ROOT

# The share of the time left that each takes: memcheck and racecheck first, the others where there is time. racecheck
# looks at shared memory, of which Numba's kernels have none.
TOOLS: dict[str, tuple[float, tuple[str, ...]]] = {
    "memcheck": (0.4, ()),
    "racecheck": (0.35, ("--backends", "cupy")),
    "synccheck": (0.5, ("--backends", "cupy")),
    "initcheck": (0.9, ("--dtypes", "float32")),
}
LEAST_SECONDS = 15.0
# What a run may need beyond its own limit: the start under the tool, and the report at the end.
GRACE = 15.0

SUMMARIES = (
    re.compile(r"ERROR SUMMARY: (?P<errors>\d+) errors?"),
    re.compile(r"RACECHECK SUMMARY: \d+ hazards? displayed \((?P<errors>\d+) errors?, (?P<warnings>\d+) warnings?\)"),
)
REFUSALS = re.compile(r"Device not supported|not supported on|Unable to find|Failed to initialize|error 999", re.I)
KERNEL = re.compile(r"(?:at|in|by) (?:void )?([A-Za-z_]\w*)(?:<[^(]*>)?(?:\(.*\))?\+0x")
SHOWN = 12


def main(arguments: list[str] | None = None) -> int:
    lines = Lines.from_arguments(__doc__ or "", arguments)
    tool = find_tool("compute-sanitizer")
    for name, (share, extra) in TOOLS.items():
        if tool is None:
            lines.skip(name, "compute-sanitizer is not on this machine")
            continue
        seconds = lines.left() * share
        needs = LEAST_SECONDS + (lines.left() if seconds < LEAST_SECONDS else 0)
        lines.item(name, lambda name=name, s=seconds, extra=extra: check(tool, name, s, extra), needs)
    return 0


def check(tool: str, name: str, seconds: float, extra: tuple[str, ...]) -> Item:
    """One tool over the small program, in about `seconds`."""
    own = max(5.0, seconds - GRACE)
    program = [sys.executable, "-m", "bench.gpu.small", "--seconds", f"{own:.0f}", *extra]
    command = [tool, "--tool", name, "--print-limit", "30", *program]
    try:
        ran = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds + GRACE, check=False
        )
        said, status = ran.stdout, f"exit status {ran.returncode}"
    except subprocess.TimeoutExpired as late:
        said, status = late.stdout or b"", f"ended after {seconds + GRACE:.0f} s"
    text = said.decode(errors="replace")
    print(text[-20000:], flush=True)
    return {**parse(text, status), "command": " ".join([Path(tool).name, *command[1:3]])}


def parse(text: str, status: str) -> Item:
    """What a tool's output says: its own summary, or that there is none and why."""
    progress = re.search(r"small: (\d+) of (\d+) cases done", text)
    done = {"cases": f"{progress[1]} of {progress[2]}"} if progress else {"cases": "not all"}
    done["probes"] = "done" if "probes done" in text else "not done"
    for pattern in SUMMARIES:
        found = list(pattern.finditer(text))
        if found:
            errors = max(int(match["errors"]) for match in found)
            kernels = sorted(set(KERNEL.findall(text)))[:SHOWN]
            said = [line for line in text.splitlines() if line.startswith("=========")][:SHOWN] if errors else []
            return {"status": "wrong" if errors else "ok", "errors": errors, "kernels": kernels, "said": said, **done}
    refused = REFUSALS.search(text)
    last = [line for line in text.splitlines() if line.strip()][-3:]
    if refused:
        return {"status": "skipped", "why": f"the tool refuses this machine: {refused[0]}; {' | '.join(last)}"[:400]}
    return {"status": "failed", "why": f"no summary, {status}: {' | '.join(last)}"[:400], **done}


if __name__ == "__main__":
    sys.exit(main())
