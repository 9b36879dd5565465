"""Runs compute-sanitizer over `bench.gpu.every_kernel`: python -m bench.gpu.sanitizer.

There is an item per tool and stored dtype. memcheck and racecheck over every kernel come first, then the other tools
where there is time. A run counts its cases, and is "ok" only if all of them ran.
"""

from __future__ import annotations

import re
import subprocess
import sys

from bench.gpu import exit_with_parent
from bench.gpu.card import find_tool
from bench.gpu.items_file import Item, Lines, Unavailable
from bench.worker_pool import ROOT

# tf32 has the kernels of float32. racecheck looks at shared memory, of which Numba's kernels have none.
CUPY = ("--backends", "cupy")
RUNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    *(
        (tool, f"cupy {dtype}", (*CUPY, "--dtypes", dtype))
        for dtype in ("float32", "float16", "bfloat16", "float64")
        for tool in ("memcheck", "racecheck")
    ),
    ("memcheck", "numba_cuda", ("--backends", "numba_cuda")),
    ("synccheck", "cupy float32", (*CUPY, "--dtypes", "float32")),
    ("initcheck", "cupy float32", (*CUPY, "--dtypes", "float32")),
)
LEAST_SECONDS = 20.0
MOST_SECONDS = 60.0
# What a run may need beyond its own limit: the start under the tool, and the report at the end.
GRACE = 12.0

SUMMARIES = (
    re.compile(r"ERROR SUMMARY: (?P<errors>\d+) errors?"),
    re.compile(r"RACECHECK SUMMARY: \d+ hazards? displayed \((?P<errors>\d+) errors?, (?P<warnings>\d+) warnings?\)"),
)
REFUSALS = re.compile(r"Device not supported|not supported on|Unable to find|Failed to initialize|error 999", re.I)
KERNEL = re.compile(r"(?:at|in|by) (?:void )?([A-Za-z_]\w*)(?:<[^(]*>)?(?:\(.*\))?\+0x")
COUNTS = re.compile(r"every_kernel: (\d+) of (\d+) cases done, (\d+) failed, probes (done|not done|not wanted)")
SHOWN = 12


def main(arguments: list[str] | None = None) -> int:
    lines = Lines.from_arguments(__doc__ or "", arguments)
    tool = find_tool("compute-sanitizer")
    for name, what, extra in RUNS:
        key = f"{name} {what}"
        if tool is None:
            lines.skip(key, "compute-sanitizer is not on this machine", "not available")
            continue
        seconds = min(MOST_SECONDS, lines.left())
        lines.item(key, lambda name=name, s=seconds, extra=extra: check(tool, name, s, extra), LEAST_SECONDS)
    return 0


def check(tool: str, name: str, seconds: float, extra: tuple[str, ...]) -> Item:
    """One tool over the small program, in `seconds`."""
    own = max(2.0, seconds - GRACE)
    program = [sys.executable, "-m", "bench.gpu.every_kernel", "--seconds", f"{own:.0f}", *extra]
    command = exit_with_parent.command((tool, "--tool", name, "--print-limit", "30", *program))
    try:
        ran = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False
        )
        said = ran.stdout
        status = f"exit status {ran.returncode}"
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        status = f"ended after {seconds:.0f} s"
    text = said.decode(errors="replace")
    print(text[-20000:], flush=True)
    return parse(text, status)


def parse(text: str, status: str) -> Item:
    """What a tool's output says: its own summary of every case, or why that is not known.

    Raises Unavailable where the tool refuses this machine.
    """
    last = " | ".join([line for line in text.splitlines() if line.strip()][-3:])
    counted = COUNTS.search(text)
    found: Item = {}
    if counted:
        found = {"cases": f"{counted[1]} of {counted[2]}", "failed_cases": int(counted[3]), "probes": counted[4]}
    summaries = [match for pattern in SUMMARIES for match in pattern.finditer(text)]
    if not summaries:
        refused = REFUSALS.search(text)
        if refused:
            raise Unavailable(f"the tool refuses this machine: {refused[0]}; {last}"[:400])
        return {"status": "failed", "why": f"no summary, {status}: {last}"[:400], **found}
    errors = max(int(match["errors"]) for match in summaries)
    kernels = sorted(set(KERNEL.findall(text)))[:SHOWN]
    found |= {"errors": errors, "kernels": kernels}
    if errors:
        said = [line for line in text.splitlines() if line.startswith("=========")][:SHOWN]
        return {"status": "wrong", "why": f"{errors} errors: {' '.join(kernels)}"[:400], "said": said, **found}
    if counted is None:
        return {"status": "failed", "why": f"no errors, but the program did not come to its end: {last}"[:400], **found}
    if found["failed_cases"]:
        failed = [line for line in text.splitlines() if line.startswith("every_kernel: case")][:3]
        return {"status": "failed", "why": f"no errors, but cases failed: {' | '.join(failed)}"[:400], **found}
    if counted[1] != counted[2] or counted[4] == "not done":
        return {"status": "not run", "why": f"no errors in {found['cases']} cases, probes {counted[4]}", **found}
    return {"status": "ok", **found}


if __name__ == "__main__":
    sys.exit(main())
