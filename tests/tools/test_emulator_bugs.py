"""Check mode finds a planted bug of every kind, with the kind and the line of the error, and nothing without it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.tools.emulator import EmulatorError, Memory, RaceError, available
from tests.tools.emulator.cases import SCHEDULES, marked_line, module
from tests.tools.emulator.errors import KINDS

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))

F, I, U = np.float32, np.int32, np.uint32


def ones(n: int = 64) -> np.ndarray:
    return np.ones(n, F)


class Case(NamedTuple):
    """A kernel of bugs.cu: the kind of its error, its launch, the numbers of its bugs, the mark of the line."""

    name: str
    kind: str
    grid: int = 1
    block: int = 64
    args: Callable[[], tuple] = lambda: (ones(),)
    launch: dict[str, Any] = {}  # noqa: RUF012
    bugs: tuple[int, ...] = (1,)
    mark: str = ""


def counter() -> np.ndarray:
    return np.zeros(1, U)


def handmade() -> tuple:
    return ones(128), ones(128), counter()


CASES = (
    Case("past_the_end", "bounds", 2, args=lambda: (ones(100), I(100))),
    Case("before_the_start", "bounds"),
    Case("past_dynamic_shared", "bounds", launch={"shared_mem": 256}),
    Case("past_static_shared", "bounds"),
    Case("index_past_array", "undefined"),
    Case("null_pointer", "bounds", args=lambda: (ones(), 0)),
    Case("misaligned_vector", "alignment", block=4),
    Case("int_overflow", "undefined", block=4, args=lambda: (np.zeros(4, I), I(70000))),
    Case("division", "undefined", block=4, args=lambda: (np.zeros(4, I),)),
    Case("failing_assert", "assert"),
    Case("lost_named_barrier", "deadlock"),
    Case("no_barrier_after_load", "race"),
    Case("no_barrier_before_reuse", "race"),
    Case("never_written", "uninitialised"),
    Case("barrier_of_some", "divergence"),
    Case("barriers_in_branches", "divergence"),
    Case("early_return", "divergence", args=lambda: (ones(), I(40))),
    Case("wrong_named_barrier", "race"),
    Case("half_a_warp_shuffles", "warp", block=32),
    Case("shuffle_from_outside", "warp", block=32),
    Case("masks_that_differ", "warp", block=32),
    Case("no_syncwarp", "race", bugs=(1, 2)),
    Case("mma_of_some", "warp", block=32),
    Case("blocks_race", "race", 4, 32),
    Case("plain_read_of_atomic", "race", 4, 1, args=lambda: (counter(), np.zeros(4, U))),
    Case("ldg_of_written", "readonly"),
    Case("handmade_barrier", "race", 4, 32, handmade, {"cooperative": True}, (1, 2, 3)),
    Case("handmade_barrier", "deadlock", 4, 32, handmade, {"cooperative": True}, (4,), "handmade_barrier_4"),
    Case("volatile_flag", "race", 2, 32, lambda: (ones(), ones(), np.zeros(1, I)), {"cooperative": True}, (1, 2)),
    Case("spins_alone", "deadlock", 2, 32, lambda: (counter(),)),
    Case("endless", "timeout", 1, 32, lambda: (ones(), ones()), {"time_limit": 0.3}),
    Case("cluster_exchange", "race", 8, 16, lambda: (ones(128), I(3)), bugs=(1,)),
    Case("cluster_exchange", "cluster", 8, 16, lambda: (ones(128), I(3)), bugs=(2,), mark="cluster_exchange_2"),
    Case("cluster_exchange", "cluster", 8, 16, lambda: (ones(128), I(3)), bugs=(3,)),
    Case("cluster_split", "race", 4, 16),
    Case("copy_not_waited_for", "async", block=32, args=lambda: (ones(128), ones(32))),
    Case("copy_left_behind", "async", block=32, args=lambda: (ones(128), ones(32))),
    Case("mbarrier_not_waited_for", "race", args=lambda: (ones(32), ones(32))),
)


def launch(case: Case, bug: int, mode: str = "check", **schedule: Any) -> None:
    module("bugs", mode).get_function(case.name)(
        (case.grid,), (case.block,), (*case.args(), I(bug)), **{**case.launch, **schedule}
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.name}-{c.bugs[0]}")
def test_a_planted_bug_is_found(case: Case) -> None:
    for bug in case.bugs:
        for schedule in SCHEDULES[:3]:
            with pytest.raises(EmulatorError) as caught:
                launch(case, bug, **schedule)
            error = caught.value
            assert error.kind == case.kind, error
            assert error.kind in KINDS
            assert isinstance(error, RaceError) == (case.kind == "race")
            # Two racing accesses are one finding. Which one is reported as the later depends on the schedule.
            place = f"bugs.cu:{marked_line('bugs', case.mark or case.name)}"
            assert re.search(rf"\b{re.escape(place)}\b", str(error)), error
            assert f"kernel {case.name}" in str(error)
            assert re.search(r"block \(\d+,0,0\) thread \(\d+,0,0\)", str(error)), error


@pytest.mark.parametrize("mode", ["fast", "check"])
@pytest.mark.parametrize("name", sorted({c.name for c in CASES}))
def test_without_a_bug_there_is_no_finding(name: str, mode: str) -> None:
    case = next(c for c in CASES if c.name == name)
    if name == "volatile_flag" and mode == "fast":
        pytest.skip("only check mode detects volatile reads and lets other threads run")
    for schedule in SCHEDULES:
        launch(case, 0, mode, **schedule)


def table_of(source: np.ndarray, result: np.ndarray, n: int) -> np.ndarray:
    table = np.zeros(1, np.dtype([("from", "u8"), ("to", "u8"), ("n", "i4"), ("pad", "i4")]))
    table[0] = (source.ctypes.data, result.ctypes.data, n, 0)
    return table


def test_a_pointer_loaded_from_memory_is_checked() -> None:
    a, b = np.arange(64, dtype=F), ones()
    memory = Memory()
    for array in (a, b, table := table_of(a, b, 64)):
        memory.add(array.ctypes.data, array.nbytes)
    kernel = module("bugs", "check").get_function("past_a_loaded_pointer")
    kernel((1,), (64,), (table, I(0)), memory=memory)
    np.testing.assert_array_equal(b, 2 * a)
    with pytest.raises(EmulatorError, match="out of bounds read of 4 bytes") as caught:
        kernel((1,), (64,), (table, I(1)), memory=memory)
    assert caught.value.where == ("bugs.cu", marked_line("bugs", "past_a_loaded_pointer"))
    memory.remove(a.ctypes.data)  # freed
    with pytest.raises(EmulatorError) as caught:
        kernel((1,), (64,), (table, I(0)), memory=memory)
    assert caught.value.kind == "bounds"


def test_a_write_to_a_read_only_buffer() -> None:
    a = ones()
    memory = Memory()
    memory.add(a.ctypes.data, a.nbytes, writable=False)
    with pytest.raises(EmulatorError, match="read-only") as caught:
        module("bugs", "check").get_function("ldg_of_written")((1,), (64,), (a.ctypes.data, I(0)), memory=memory)
    assert caught.value.kind == "readonly"


def test_grid_sync_needs_a_cooperative_launch() -> None:
    kernel = module("bugs", "check").get_function("not_cooperative")
    with pytest.raises(EmulatorError, match="not cooperative") as caught:
        kernel((4,), (32,), (ones(),))
    assert caught.value.where == ("bugs.cu", marked_line("bugs", "not_cooperative"))


def test_fast_mode_reports_faults() -> None:
    kernels = module("bugs", "fast")
    with pytest.raises(EmulatorError, match="invalid access") as caught:
        kernels.get_function("null_pointer")((1,), (64,), (ones(), 0, I(1)))
    assert caught.value.where == ("bugs.cu", marked_line("bugs", "null_pointer"))
    with pytest.raises(EmulatorError, match="division by zero") as caught:
        kernels.get_function("division")((1,), (4,), (np.zeros(4, I), I(1)))
    assert caught.value.where == ("bugs.cu", marked_line("bugs", "division"))
    a = ones()
    kernels.get_function("no_barrier_after_load")((1,), (64,), (a, I(0)))  # the module still works
    np.testing.assert_array_equal(a, ones())


def test_line_directives_are_respected() -> None:
    with pytest.raises(EmulatorError) as caught:
        module("features", "check").get_function("in_a_named_part")((1,), (4,), (ones(),))
    assert caught.value.where == ("named.cuh", 1000)
