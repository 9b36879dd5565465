"""GPU_RUN_MUTANTS: planted bugs of the run on a card and of the parity tool. See `tests.mutants`."""

from __future__ import annotations

from tests.mutation import Edit, Mutant

COMMAND, LINES, PROCESSES = "bench/gpu/__main__.py", "bench/gpu/items_file.py", "bench/gpu/processes.py"
RESULTS, SANITIZER, THROUGHPUT = "bench/gpu/result_file.py", "bench/gpu/sanitizer.py", "bench/gpu/throughput.py"
SMOKE, MEASURE, TESTING = "bench/gpu/smoke.py", "rnnkit/parity/measure.py", "rnnkit/testing.py"


def _row(name: str, edit: Edit, tests: str, pick: str) -> Mutant:
    return Mutant(name, (edit,), f"tests/test_{tests}.py", pick)


GPU_RUN_MUTANTS = (
    _row(
        "gpu run: items are not read where gpu.json was not written after them",
        Edit(RESULTS, "ended(read_lines(path.with_name(ITEMS)))", "ended([])"),
        "gpu_command",
        "killed_at_a_random_moment",
    ),
    _row(
        "gpu run: an item after part of a line is lost",
        Edit(LINES, 'text = b"\\n" + text', "pass"),
        "gpu_run",
        "garbage",
    ),
    _row(
        "gpu run: processes are not ended with the run",
        Edit(PROCESSES, "exit_with_parent.command((*self.command, *arguments)),", "(*self.command, *arguments),"),
        "gpu_run",
        "no_process_outlives",
    ),
    _row(
        "gpu run: a worker that hangs is hidden by the others",
        Edit(PROCESSES, "worker.process.pid in writers", "writers"),
        "gpu_run",
        "does_not_hide",
    ),
    _row(
        "gpu run: a worker's death fails the checks of the others",
        Edit(LINES, 'if line.get("pid") == pid and isinstance(line.get("start"), str):', 'if "start" in line:'),
        "gpu_run",
        "leaves_the_others",
    ),
    _row(
        "gpu run: goes on after the base case has failed",
        Edit(COMMAND, 'if part.name == "smoke":', 'if part.name == "none":'),
        "gpu_command",
        "base_case",
    ),
    _row(
        "gpu run: seconds of later parts are not kept",
        Edit(COMMAND, "self.deadline - kept, self._show", "self.deadline, self._show"),
        "gpu_command",
        "fits_its_seconds",
    ),
    _row(
        "gpu run: --only-failed repeats everything",
        Edit(RESULTS, 'return Todo(bool(bad), [{"part": part, "only": bad}])', "return Todo(bool(bad), [])"),
        "gpu_command",
        "only_failed_repeats",
    ),
    _row(
        "gpu run: a run of another card is taken",
        Edit(COMMAND, "report.card_name(earlier) != name", "False"),
        "gpu_command",
        "another_card",
    ),
    _row(
        "sanitizer: cases that did not run are right",
        Edit(SANITIZER, 'counted[1] != counted[2] or counted[4] == "not done"', "False"),
        "gpu_report",
        "cases_that_did_not_run",
    ),
    _row(
        "throughput: rnnkit is always timed first",
        Edit(THROUGHPUT, "        order.reverse()\n", ""),
        "gpu_throughput",
        "take_turns",
    ),
    _row(
        "smoke: the bits of a graph are not compared",
        Edit(SMOKE, "if any(array.tobytes() != other[name].tobytes() for other in results[1:]):", "if False:"),
        "gpu_smoke",
        "other_bits",
    ),
    _row(
        "parity: bits of two calls are not compared",
        Edit(MEASURE, "        if len(different) > 1:\n", "        if False:\n"),
        "parity_tool",
        "bits",
    ),
    _row(
        "parity: the root mean square is of the mean",
        Edit(TESTING, "np.sqrt(np.mean(np.square(shares / worst)))", "np.mean(shares / worst)"),
        "parity_tool",
        "errors",
    ),
)
