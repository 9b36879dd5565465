"""`python -m tests.tools.build_report [--write [--changed]] [--arch 90 ...]`: compiles CUDA modules; their table."""

from __future__ import annotations

import argparse
import sys
import time

from tests.tools.build_report import nvrtc, occupancy, table


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 on success, 1 if a kernel breaks a rule, 2 if this machine cannot compile."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.build_report", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"rewrite {table.JSON.name} and {table.MARKDOWN.name}")
    parser.add_argument(
        "--changed",
        action="store_true",
        help="with --write: only the modules that are not in the table as they are now",
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=nvrtc.ARCHS, default=list(nvrtc.ARCHS))
    given = parser.parse_args(arguments)
    if given.write and set(given.arch) != set(nvrtc.ARCHS):
        parser.error("--write is of all architectures")
    if reason := nvrtc.unavailable() or occupancy.unavailable():
        print(reason, file=sys.stderr)
        return 2
    if given.changed and not given.write:
        parser.error("--changed needs --write")
    started = time.monotonic()
    try:
        made = table.make(given.arch, lambda line: print(line, flush=True), table.read() if given.changed else None)
    except (ValueError, nvrtc.CompileError) as error:
        print(error, file=sys.stderr)
        return 1
    if given.write:
        table.write(made)
        print(f"wrote {table.JSON.name} and {table.MARKDOWN.name}")
    else:
        print(table.as_markdown(made))
    print(f"NVRTC {nvrtc.version()}, {len(made['modules'])} modules in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
