"""The loops in PyTorch beside which bench/cell_options.py measures: they compute what rnnkit's cells compute."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from bench import option_loops
from bench.cell_options import ROWS, Row
from tests.helpers import slow_except

pytestmark = pytest.mark.peers
BY_NAME = {row.name: row for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_loop_equals_the_oracle(row: Row) -> None:
    loop = option_loops.loop_of(row)
    if loop is None:
        assert dict(row.rates)["mask_per_gate"]
    else:
        assert option_loops.wrong(row, loop) is None


def test_the_loop_of_another_cell_is_reported() -> None:
    plain = option_loops.loop_of(BY_NAME["peephole"]._replace(cell="lstm"))
    clipped = BY_NAME["clip"]._replace(constants=(0.1,))
    assert plain is not None
    assert "of the loop differs from the oracle" in str(option_loops.wrong(clipped, plain))


@pytest.mark.parametrize("name", slow_except(["zoneout", "recurrent dropout"], "zoneout"))
def test_masks_are_drawn_and_calls_run(name: str) -> None:
    row = BY_NAME[name]
    loop = option_loops.loop_of(row)
    assert loop is not None
    sizes = {"T": 4, "B": 3, "I": 5, "H": 6}
    call = option_loops.loop_call(row, loop, sizes, compiled=False)
    call()
    tensors = option_loops.Tensors(option_loops.make_inputs(option_loops.Case(row.cell, **sizes), "float32"))
    one, two = (tensors.gradients(loop)[0] for _ in range(2))
    assert not one.equal(two)
