"""RECOMPUTE_MUTANTS: bugs in gates that backward computes again, and in the choice to do so."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

RECOMPUTE = "rnnkit/backends/cupy/recompute.py"
SAVED = "rnnkit/backends/cupy/saved.py"
GATES = "rnnkit/functional/gates.py"
PROJECTED = "every_gradient and stepwise and projected"


def _again(name: str, file: str, at: str, old: str, new: str, pick: str = PROJECTED) -> Mutant:
    return row(f"gates again: {name}", file, at, old, new, "tests/cuda/test_cupy_recompute.py", pick)


def _choice(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"gates: {name}", file, at, old, new, "tests/cuda/test_gates_choice.py", pick)


RECOMPUTE_MUTANTS = (
    _again("each chunk has the values of the first one", SAVED, "of_chunk", " - n0 * width * of.itemsize", ""),
    _again("h of the first row-steps", RECOMPUTE, "_run_rows", "h_prev).at(first)", "h_prev).at(0)"),
    _again("c of the first row-steps", RECOMPUTE, "_take_cell_states", "c_prev[first : first + rows]", "c_prev[:rows]"),
    _again("values of the first row-steps", RECOMPUTE, "_run_rows", "values.row(first)", "values.row(0)"),
    _again("no biases", RECOMPUTE, "__init__", "address(weights.b_hh)", "0"),
    _again("states of other rows beside h", RECOMPUTE, "_in_place", "i32(rows),", "i32(p.B),", "slstm"),
    _again(
        "the second product of the gates before",
        RECOMPUTE,
        "_resets_before",
        "side.at(0, p.first_gates * p.H)",
        "side",
        "every_gradient and stepwise and reset_before",
    ),
    _again("two chunks share one buffer", RECOMPUTE, "run", "in self:", "in ():", "any_order and GRU-one_block"),
    _again(
        "steps do not wait for their gates",
        "rnnkit/backends/cupy/backward_pass.py",
        "run",
        "here.record(lane.ready[1 - parity])",
        "pass",
        "any_order and GRU-one_block",
    ),
    _again("the gates are saved too", SAVED, "_kept", "return (0, h_prev[1]),", "return columns[0],", "states_alone"),
    _again(
        "the stack's schedule saves the gates",
        "rnnkit/backends/cupy/one_schedule.py",
        "Pinned.for_stack",
        "replace(found, recomputes=self.recomputes)",
        "found",
        "schedule_of_a_stack",
    ),
    _again(
        "the pool's limit is not looked at",
        "rnnkit/backends/cupy/free_memory.py",
        "free_bytes",
        "if limit else free",
        "if not limit else free",
        "memory_that_is_left",
    ),
    _choice(
        "chunks where neither fits", GATES, "decide", "recomputing <= most < saving", "most < saving", "the_choice"
    ),
    _choice("what is allocated beside", GATES, "decide", "saving + beside > free", "saving > free", "the_choice"),
    _choice("lengths", GATES, "needs_of", "ragged)\n        above", "False)\n        above", "fits"),
    _choice("the operand is saved", SAVED, "_kept", "c_prev, (0, h_prev[1])", "c_prev, columns[3]", "per_unit"),
)
